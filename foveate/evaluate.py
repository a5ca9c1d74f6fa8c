"""`foveate eval`: a model, a local copy of a benchmark, some modes; rows, a table, a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .eval.benchmarks.registry import benchmark
from .eval.compare import compare_runs
from .eval.diagnostics import regional_gap
from .eval.engines import Engine, InProcess
from .eval.modes import mode
from .eval.report import Extra, write_report
from .eval.runner import Progress, evaluate, load_rows
from .eval.server import Server
from .eval.tables import interval_text, percent, signed, summary
from .rewards.terms.judge import Judge
from .train.recorder import write_atomically
from .vlm.load import load


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for. ``bench`` is NAME or NAME=PATH."""

    model: str
    bench: str
    modes: Sequence[str]
    folder: Path
    limit: int | None = None
    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    shuffle: bool | Literal["circular"] = True
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every mode: max_new_tokens, max_turns, tools, temperature, n."""
    server: Server | None = None
    max_pixels: int | None = None
    device: str = "auto"
    judge: Judge | None = None
    retry_failed: bool = False
    command: str = ""


def run(asked: Asked, progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
    """Answer, score, add up and report; returns the summary that is written to ``summary.json``. Raises `ValueError`."""
    name, _, path = asked.bench.partition("=")
    chosen = benchmark(name)
    items, source = chosen.read(path or "-")
    modes = [_mode(one, asked) for one in asked.modes]
    engine: Engine
    if asked.server is not None:
        engine, about = asked.server, asked.server.about
    else:
        engine = InProcess(load(asked.model, max_pixels=asked.max_pixels, device=asked.device))
        about = engine.about
    rows = evaluate(
        chosen.name, items, modes, engine, asked.folder, seed=asked.seed, limit=asked.limit, shard=asked.shard,
        shuffle=asked.shuffle, tail=chosen.prompt_tail, judge=asked.judge, about={**about, "sha256": source.sha256},
        retry_failed=asked.retry_failed, progress=progress,
    )  # fmt: skip
    meta = {
        "model": asked.model, "source": source.path, "sha256": source.sha256, "rows": source.num_rows,
        "problems": list(source.problems[:20]), "seed": asked.seed, "limit": asked.limit,
        "shard": f"{asked.shard[0]}/{asked.shard[1]}", "engine": about, "command": asked.command,
    }  # fmt: skip
    found = summary(rows, chosen, meta, seed=asked.seed)
    write_atomically(asked.folder / "summary.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_report(asked.folder, rows, found, _extras(rows))
    return found


def _mode(name: str, asked: Asked) -> Any:
    only_tools = {"max_turns", "tools"}
    changes = {key: value for key, value in asked.overrides.items() if name == "tools" or key not in only_tools}
    if name != "consistency":
        changes = {key: value for key, value in changes.items() if key != "n"}
    return mode(name, asked.model == "tiny", **changes)


def _extras(rows: Sequence[dict[str, Any]]) -> list[Extra]:
    """The gap from the whole picture to its evidence, where both were asked about."""
    modes = {str(row["mode"]) for row in rows}
    if not {"direct", "crop"} <= modes:
        return []
    gap = regional_gap(rows, full="direct", crop="crop")
    told = [
        ["whole picture", percent(gap["full"]["value"]), interval_text(gap["full"]["ci95"])],
        ["its evidence", percent(gap["crop"]["value"]), interval_text(gap["crop"]["ci95"])],
        ["gap, points", signed(gap["gap"]["difference"]), " to ".join(map(signed, gap["gap"]["ci95"]))],
    ]
    note = "Accuracy on the whole picture and with its evidence cut out, on the same items: what a closer look would bring."
    return [Extra("From the whole picture to its evidence", note, [["", "%", "95 % interval"], *told])]


def compared(folder_a: Path, folder_b: Path, intersect: bool) -> dict[str, dict[str, Any]]:
    """Two evaluations, paired by item. `ValueError` when one is missing or they hold other items."""
    sides = [load_rows(folder) for folder in (folder_a, folder_b)]
    return compare_runs(*sides, intersect=intersect, benchmark=benchmark(str(sides[0][0]["benchmark"])))
