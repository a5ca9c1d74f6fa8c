"""Commands that make data with models: ``foveate data pass-rate``, ``perception``, ``thoughts`` and ``hindsight``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .cli_eval import _shard

if TYPE_CHECKING:
    from .asking import Model
    from .data_jobs import Report
    from .datasets.builders.evidence import What
    from .datasets.pass_rates import Summary

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_SOURCE = "A recipe, a data file, a hub id, or data as in a recipe: '{synth: detail, n: 64}'."
_CHANGES = "Keys of the recipe, or of the data: image_dir=photos."
_WHO = "tiny, a folder, a hub id, or URL=NAME of a server."
_BAR = 24

Workers = Annotated[int, typer.Option(min=1, max=64, help="Requests to a server at once.")]
PerMinute = Annotated[float | None, typer.Option(help="Most requests to a server a minute.")]
KeyEnv = Annotated[str, typer.Option(help="Environment variable that holds a server's key.")]
MaxPixels = Annotated[int | None, typer.Option(help="Most pixels of a picture in a model's eyes.")]
Family = Annotated[str | None, typer.Option(help="Of a served model, for coordinates: qwen2.5-vl.")]
AtOnce = Annotated[int | None, typer.Option(min=1, help="Samples that a model in this process has at once.")]
Changes = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=_CHANGES)]
Tokens = Annotated[int | None, typer.Option(min=1, help="Most tokens of a reply.")]


def pass_rate(
    source: Annotated[str, typer.Argument(help=_SOURCE)],
    target: Annotated[Path, typer.Argument(help="The .jsonl to write, a row a sample.")],
    overrides: Changes = None,
    model: Annotated[str | None, typer.Option(help=f"{_WHO} Default: the recipe's.")] = None,
    server: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible API, which has the model.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Rollouts of each sample.")] = 16,
    temperature: Annotated[float, typer.Option(min=0)] = 0.7,
    view: Annotated[str | None, typer.Option(help="Default: the recipe's student's, or answer.")] = None,
    max_new_tokens: Tokens = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many samples; may grow later.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: every n-th sample, from i = 0, into a file of its own.")] = "0/1",
    seed: Annotated[int | None, typer.Option(help="Of sampling; default: the recipe's, or 0.")] = None,
    at_once: AtOnce = None,
    workers: Workers = 16,
    per_minute: PerMinute = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    family: Family = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Measure how often a model is right about each sample, for a curriculum from easy to hard. Run again to go on."""
    from .data_source import open_source
    from .pass_rate import measure, plan_of

    data = open_source(source, overrides or [])
    name = model or (data.config.model.name if data.config is not None else None)
    if name is None:
        raise ValueError(f"{source} is no recipe and names no model; say which with --model")
    if max_pixels is None and data.config is not None and server is None and model is None:
        max_pixels = data.config.model.max_pixels
    who = _model(name if server is None else f"{server}={name}", workers, per_minute, key_env, max_pixels, family)
    plan = plan_of(data, name, k=k, temperature=temperature, view=view, max_new_tokens=max_new_tokens, seed=seed)
    with _bar() as bar:

        def show(done: int, total: int, before: int) -> None:
            bar("pass rates", done, total)

        found = measure(data, plan, who, target, limit=limit, shard=_shard(shard), at_once=at_once or 8, show=show)
    _rates(found, target, k)


def _rates(found: Summary, target: Path, k: int) -> None:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in (f"right of {k}", "samples", "%", ""):
        table.add_column(title, justify="left" if title in ("", f"right of {k}") else "right", no_wrap=True)
    most = max(count for _, count in found.bins)
    for label, count in found.bins:
        name = {"0": "none", "1": "all"}.get(label, label)
        table.add_row(name, str(count), f"{100 * count / found.samples:.1f}", "█" * round(_BAR * count / most))
    out.print(table)
    out.print(
        f"{found.samples} samples, mean pass rate {found.mean:.3f}; all right {found.all_right_frac:.1%}, all wrong "
        f"{found.all_wrong_frac:.1%}; of the rollouts unparsed {found.unparsed_frac:.1%}, cut off {found.truncated_frac:.1%}, "
        f"refused by the server {found.failed}; {found.tokens_mean:.0f} tokens each",
        soft_wrap=True,
    )
    out.print(f"  {escape(str(target))}", soft_wrap=True)


def perception(
    source: Annotated[str, typer.Argument(help="Pictures with captions: " + _SOURCE[0].lower() + _SOURCE[1:])],
    folder: Annotated[Path, typer.Argument(help="Folder for train.jsonl, dev.jsonl, test.jsonl and report.json.")],
    overrides: Changes = None,
    writer: Annotated[str, typer.Option(help=f"Writes the questions: {_WHO} scenes: synthetic scenes' own.")] = "",
    judge: Annotated[list[str] | None, typer.Option(help=f"Has to read it and not see it (again for more): {_WHO}")] = None,
    caption: Annotated[str, typer.Option(help="Column of the caption.")] = "caption",
    image: Annotated[str | None, typer.Option(help="Column of the picture, if not image, images or image_path.")] = None,
    open_ended: Annotated[bool, typer.Option("--open", help="Judges answer in words and see no options.")] = False,
    orders: Annotated[int, typer.Option(min=1, max=4, help="Orders of the options that judges are asked in.")] = 1,
    unparsed: Annotated[str, typer.Option(help="An answer to the picture that cannot be read: drop or missed.")] = "drop",
    writer_sees: Annotated[str, typer.Option(help="caption, or both: the picture too.")] = "caption",
    writer_tokens: Annotated[int, typer.Option(min=1)] = 1024,
    judge_tokens: Tokens = None,
    template: Annotated[str | None, typer.Option(help="Caption test, with {caption} and {question}.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of options and of the splits.")] = 0,
    at_once: AtOnce = None,
    workers: Workers = 16,
    per_minute: PerMinute = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    max_pixels: MaxPixels = None,
) -> None:
    """Questions from captions that every judge answers from the caption and misses in the picture. Run again to go on."""
    from .data_source import open_source
    from .datasets.builders.perception import CAPTION_TEMPLATE
    from .perception_job import SCENES, Perception, perception_job

    if not writer or not judge:
        raise ValueError("say who writes (--writer; scenes: of synthetic scenes) and who judges (--judge, again for more)")
    for name, value, known in (("--unparsed", unparsed, ("drop", "missed")), ("--writer-sees", writer_sees, ("caption", "both"))):
        if value not in known:
            raise ValueError(f"{name} {value}: expected {' or '.join(known)}")
    columns = [] if writer == SCENES else ["format=plain", f"columns.question={caption}"]
    columns += [f"columns.images={image}"] if image else []
    data = open_source(source, [*columns, *(overrides or [])])
    tiny = "tiny" in judge
    if tiny and not open_ended:
        raise ValueError("the embedded model knows no options; add --open")

    def made(word: str) -> Model:
        return _model(word, workers, per_minute, key_env, max_pixels, None, at_once)

    plan = Perception(
        writer=None if writer == SCENES else made(writer), judges=[made(word) for word in judge], open_ended=open_ended,
        orders=orders, image_unparsed="missed" if unparsed == "missed" else "drop", sees_picture=writer_sees == "both",
        caption_template=template or ("{caption} {question}" if tiny else CAPTION_TEMPLATE),
        judge_system="none" if tiny else None, writer_tokens=writer_tokens, judge_tokens=judge_tokens or (16 if tiny else 1024),
        seed=seed,
    )  # fmt: skip
    with _bar() as bar:
        report = perception_job(data, plan, folder, bar)
    _show(report, folder / "report.json")


def thoughts(
    source: Annotated[str, typer.Argument(help=_SOURCE)],
    target: Annotated[Path, typer.Argument(help="The .jsonl of trajectories to write; pictures go to images/ beside it.")],
    overrides: Changes = None,
    model: Annotated[str | None, typer.Option(help=f"Writes the thoughts: {_WHO} Default: the recipe's.")] = None,
    view: Annotated[str | None, typer.Option(help="Shows the writer the question and its answer.")] = None,
    dropout: Annotated[float, typer.Option(min=0, max=1, help="Share of thoughts emptied in the file.")] = 0.0,
    min_words: Annotated[int, typer.Option(min=1)] = 5,
    max_words: Annotated[int, typer.Option(min=1)] = 400,
    max_new_tokens: Tokens = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many samples.")] = None,
    seed: Annotated[int, typer.Option(help="Of the dropout.")] = 0,
    at_once: AtOnce = None,
    workers: Workers = 16,
    per_minute: PerMinute = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    max_pixels: MaxPixels = None,
) -> None:
    """Thoughts that lead to known answers, for a cold start that may think or not (TON). Run again to go on."""
    from .data_jobs import Thoughts, thoughts_job
    from .data_source import open_source, view_of
    from .datasets.builders.thoughts import THOUGHT_VIEW

    data = open_source(source, overrides or [])
    name = model or (data.config.model.name if data.config is not None else None)
    if name is None:
        raise ValueError(f"{source} is no recipe and names no model; say who writes with --model")
    plan = Thoughts(
        writer=_model(name, workers, per_minute, key_env, max_pixels, None, at_once),
        view=view_of(view) if view else THOUGHT_VIEW, max_new_tokens=max_new_tokens or (80 if name == "tiny" else 512),
        min_words=min_words, max_words=max_words, dropout=dropout, seed=seed,
    )  # fmt: skip
    with _bar() as bar:
        report = thoughts_job(data, plan, target, limit=limit, show=bar)
    _show(report, target.with_suffix(".report.json"))


def hindsight(
    file: Annotated[str, typer.Argument(help="Trajectories; several of a sample are tries.")],
    target: Annotated[Path, typer.Argument(help="The .jsonl of trajectories to write; pictures go to images/ beside it.")],
    judge: Annotated[str, typer.Option(help=f"Has to answer from the evidence alone: {_WHO}")] = "",
    evidence: Annotated[str, typer.Option(help="pictures (the tools'), captions (the model's), or both.")] = "both",
    tries: Annotated[int, typer.Option(min=1, help="Trajectories of a sample, in order of the file.")] = 3,
    max_new_tokens: Tokens = None,
    at_once: AtOnce = None,
    workers: Workers = 16,
    per_minute: PerMinute = None,
    key_env: KeyEnv = "OPENAI_API_KEY",
    max_pixels: MaxPixels = None,
) -> None:
    """Keep a trajectory if what it looked at is enough to answer from (Video-Thinker). Run again to go on."""
    from .data_jobs import hindsight_job
    from .datasets.builders.evidence import HINDSIGHT_SYSTEM
    from .datasets.trajectories import read_trajectories

    if not judge:
        raise ValueError("say who judges with --judge")
    kinds: dict[str, What] = {"pictures": "pictures", "captions": "captions", "both": "both"}
    if evidence not in kinds:
        raise ValueError(f"--evidence {evidence}: expected {', '.join(kinds)}")
    who = _model(judge, workers, per_minute, key_env, max_pixels, None, at_once)
    read = read_trajectories(file)
    with _bar() as bar:
        report = hindsight_job(
            read, who, target, what=kinds[evidence], tries=tries, max_new_tokens=max_new_tokens or (16 if who.is_tiny else 1024),
            system="none" if who.is_tiny else HINDSIGHT_SYSTEM, show=bar,
        )  # fmt: skip
    _show(report, target.with_suffix(".report.json"))


def _show(report: Report, file: Path) -> None:
    out.print(escape(report.text()), soft_wrap=True)
    out.print(f"  {escape(str(file))}", soft_wrap=True)


def _model(
    word: str, workers: int, per_minute: float | None, key_env: str, max_pixels: int | None, family: str | None,
    at_once: int | None = None,
) -> Model:  # fmt: skip
    from .asking import Model, Serving

    serving = Serving(workers=workers, per_minute=per_minute, key_env=key_env, family=family)
    return Model(word, serving, max_pixels, at_once=at_once or 32)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=err) as progress:
        lines: dict[str, Any] = {}

        def show(label: str, done: int, total: int) -> None:
            if label not in lines:
                lines[label] = progress.add_task(label, total=total)
            progress.update(lines[label], completed=done, total=total)

        yield show
