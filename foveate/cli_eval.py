"""``foveate eval MODEL --bench NAME=PATH --mode direct,tools`` and ``foveate eval compare A B``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

if TYPE_CHECKING:
    from .eval.runner import Progress

_SHORT = {
    "accuracy %": "acc %", "95 % interval": "95 %", "unparsed %": "unread %", "truncated %": "cut %", "failed %": "fail %",
    "runaway %": "run %", "tokens in": "in", "tokens out": "out", "image tokens": "image", "right per 1k tokens": "right/1k",
}  # fmt: skip
_TABLE_COLUMNS = 118
"""A table is never folded below this: cells cut in half say nothing."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def evaluate(
    model: Annotated[list[str], typer.Argument(metavar="MODEL | compare A B", help="A model, or two folders to compare.")],
    bench: Annotated[list[str] | None, typer.Option(help="NAME or NAME=PATH of a local copy; list: names.")] = None,
    mode: Annotated[str, typer.Option(help="direct, imagine, tools, crop, consistency, gap, tools-grey, ...")] = "direct",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many items.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of options and of sampling.")] = 0,
    shard: Annotated[str, typer.Option(help="i/n: every n-th item, from i = 0.")] = "0/1",
    options: Annotated[str, typer.Option(help="shuffled, circular (right in every rotation), or kept.")] = "shuffled",
    dialect: Annotated[str, typer.Option(help="Of mode tools.")] = "hermes",
    tool: Annotated[list[str] | None, typer.Option(help="Of mode tools (again for more); default: zoom.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="Of mode tools.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of one turn.")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Answers of mode consistency.")] = None,
    server: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible API, which has MODEL.")] = None,
    family: Annotated[str | None, typer.Option(help="Of the served model, for coordinates and image tokens.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Requests at once.")] = 16,
    per_minute: Annotated[float | None, typer.Option(help="Most requests a minute.")] = None,
    judge: Annotated[str | None, typer.Option(help="URL=MODEL of a served judge for replies that no rule can read.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a picture in the model's eyes.")] = None,
    corrupt: Annotated[str, typer.Option(help="blank_image, random_image, no_conditions, permuted_options; commas.")] = "",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what the engine failed at.")] = False,
    intersect: Annotated[bool, typer.Option("--intersect", help="compare: items that both have.")] = False,
    to: Annotated[Path | None, typer.Option(help="Folder; default: runs/eval/MODEL-BENCH.")] = None,
) -> None:
    """Evaluate a model on local copies of benchmarks; nothing is downloaded. Killed and run again, it goes on."""
    if model[0] == "compare":
        _compare(model[1:], intersect)
        return
    from .evaluate import Asked, run

    if len(model) > 1:
        raise ValueError(f"one model at a time, got {', '.join(model)}; to compare: foveate eval compare FOLDER FOLDER")
    if not bench or bench == ["list"]:
        _list()
        return
    tools = {"dialect": dialect, **({"tools": tool} if tool else {})}
    overrides: dict[str, Any] = {"tools": tools}
    given = (("max_turns", turns), ("max_new_tokens", max_new_tokens), ("n", n))
    overrides |= {name: value for name, value in given if value is not None}
    for one in bench:
        asked = Asked(
            model=model[0], bench=one, modes=[name.strip() for name in mode.split(",") if name.strip()],
            folder=to if to is not None and len(bench) == 1 else (to or Path("runs/eval")) / _folder(model[0], one),
            limit=limit, seed=seed, shard=_shard(shard), shuffle=_order(options), overrides=overrides,
            server=_server(server, model[0], workers, per_minute, family, max_pixels), max_pixels=max_pixels,
            judge=_judge(judge), corruptions=_corruptions(corrupt), retry_failed=retry_failed,
            command=shlex.join(["foveate", *sys.argv[1:]]),
        )  # fmt: skip
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Bar(TextColumn("{task.description}"), *columns, console=err) as bar:
            line = bar.add_task(one, total=None, rate="")

            def show(progress: Progress, bar: Bar = bar, line: Any = line) -> None:
                rate = f"{progress.per_second:.2f}/s, {progress.right} right, {progress.failed} failed"
                bar.update(line, total=progress.total, completed=progress.done, description=progress.mode, rate=rate)

            found = run(asked, show)
        _show(found, asked.folder)


def _show(found: dict[str, Any], folder: Path) -> None:
    from .eval.tables import render, render_categories

    source = found["meta"]["source"]
    where = f"{source['path']}, {source['num_rows']} rows, sha256 {source['sha256'][:12]}"
    out.print(f"[bold]{escape(found['title'])}[/]  {escape(where)}", soft_wrap=True)
    _table(render(found))
    categories = render_categories(found)
    if len(categories) > 2:
        _table(categories)
    for title, rows in found["diagnoses"].items():
        out.print(f"[bold]{escape(title)}[/]")
        _table(rows)
    for name in ("report.html", "summary.json", "rows.jsonl"):
        out.print(f"  {folder / name}", soft_wrap=True)


def _table(rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for place, title in enumerate(rows[0]):
        table.add_column(escape(_SHORT.get(title, title)), justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    Console(highlight=False, width=max(_TABLE_COLUMNS, out.width)).print(table)


def _compare(folders: Sequence[str], intersect: bool) -> None:
    from .eval.compare import render_comparison
    from .evaluate import compared

    if len(folders) != 2:
        raise ValueError(f"compare takes two folders of evaluations, got {len(folders)}")
    _table(render_comparison(compared(Path(folders[0]), Path(folders[1]), intersect)))


def _list() -> None:
    from .eval.benchmarks.registry import BENCHMARKS

    for name, one in BENCHMARKS.items():
        out.print(f"[bold]{name:<22}[/] {escape(one.title)}  [dim]{escape(one.source_note)}[/]", soft_wrap=True)


def _folder(model: str, bench: str) -> str:
    name = bench.partition("=")[0]
    return f"{Path(model).name}-{name}"


def _shard(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if not first.isdigit() or not second.isdigit() or int(first) >= int(second):
        raise ValueError(f"--shard {text}: expected i/n with i from 0 to n - 1, such as 0/4")
    return int(first), int(second)


def _corruptions(text: str) -> Any:
    from .eval.corrupt import CORRUPTIONS

    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in CORRUPTIONS]
    if unknown:
        raise ValueError(f"--corrupt {unknown[0]}: expected some of {', '.join(CORRUPTIONS)}")
    return names


def _order(text: str) -> Any:
    orders = {"shuffled": True, "circular": "circular", "kept": False}
    if text not in orders:
        raise ValueError(f"--options {text}: expected {', '.join(orders)}")
    return orders[text]


def _server(
    url: str | None, model: str, workers: int, per_minute: float | None, family: str | None, max_pixels: int | None
) -> Any:
    if url is None:
        return None
    from .eval.server import Server

    return Server(url=url, model=model, workers=workers, per_minute=per_minute, family=family, max_pixels=max_pixels)


def _judge(text: str | None) -> Any:
    if text is None:
        return None
    from .rewards.endpoint import Endpoint
    from .rewards.terms.judge import Judge

    url, _, served = text.rpartition("=")
    if not url or not served:
        raise ValueError(f"--judge {text}: expected URL=MODEL, such as http://localhost:8000/v1=gpt-oss-20b")
    return Judge(endpoint=Endpoint(url=url, model=served, cache="runs/eval/judge"))
