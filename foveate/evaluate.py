"""`foveate eval`: a model, a local copy of a benchmark, some modes; rows, a table, a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .eval.benchmarks.registry import benchmark
from .eval.compare import compare_runs
from .eval.corrupt import Corruption, corrupted
from .eval.diagnostics import (
    ablated,
    calibration,
    clean_minus_corrupted,
    gap_modes,
    regional_gap,
    render_clean_minus_corrupted,
    tool_use,
)
from .eval.engines import InProcess
from .eval.modes import mode
from .eval.records import Item, Mode, Row
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
    corruptions: Sequence[Corruption] = ()
    """Each is evaluated in a folder of its own below ``folder``."""
    retry_failed: bool = False
    command: str = ""


def run(asked: Asked, progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
    """Answer, score, add up and report; returns the summary that is written to ``summary.json``. Raises `ValueError`."""
    name, _, path = asked.bench.partition("=")
    chosen = benchmark(name)
    items, source = chosen.read(path or "-")
    modes = [one for wanted in asked.modes for one in _modes(wanted, asked)]
    engine: InProcess | Server
    if asked.server is not None:
        engine = asked.server
    else:
        engine = InProcess(load(asked.model, max_pixels=asked.max_pixels, device=asked.device))

    def rows_of(shown: Sequence[Item], folder: Path, modes: Sequence[Mode]) -> list[Row]:
        return evaluate(
            chosen.name, shown, modes, engine, folder, seed=asked.seed, limit=asked.limit, shard=asked.shard,
            shuffle=asked.shuffle, tail=chosen.prompt_tail, judge=asked.judge, about={**engine.about, "sha256": source.sha256},
            retry_failed=asked.retry_failed, progress=progress,
        )  # fmt: skip

    rows = rows_of(items, asked.folder, modes)
    worse = {}
    for how in asked.corruptions:
        # another picture has no evidence to show: modes that show some are left out
        fitting = [one for one in modes if how != "random_image" or not one.view.uses]
        worse[str(how)] = rows_of(corrupted(items, how, asked.seed), asked.folder / how, fitting) if fitting else []
    meta = {
        "model": asked.model, "source": dataclasses.asdict(source), "seed": asked.seed, "limit": asked.limit,
        "shard": f"{asked.shard[0]}/{asked.shard[1]}", "engine": engine.about, "command": asked.command,
    }  # fmt: skip
    found = summary(rows, chosen, meta, seed=asked.seed)
    extras = _diagnoses(rows, {asked.model: {"clean": rows, **worse}} if worse else {})
    found["diagnoses"] = {one.title: [list(row) for row in one.rows] for one in extras}
    write_atomically(asked.folder / "summary.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_report(asked.folder, rows, found, extras)
    return found


def _modes(name: str, asked: Asked) -> Sequence[Mode]:
    """The modes of a word: a mode's name, ``gap`` (the same prompt over picture, crop and boxed picture), ``tools-grey`` ..."""
    if name == "gap":
        return gap_modes(_mode("direct", asked))
    base, _, how = name.partition("-")
    if base == "tools" and how in ("grey", "blank", "other"):
        return (ablated(_mode("tools", asked), how),)  # type: ignore[arg-type]
    return (_mode(name, asked),)


def _mode(name: str, asked: Asked) -> Mode:
    only = {"tools": ("tools", "max_turns"), "consistency": ("n",)}
    elsewhere = {key for owner, keys in only.items() if owner != name for key in keys}
    return mode(name, asked.model == "tiny", **{key: value for key, value in asked.overrides.items() if key not in elsewhere})


def _diagnoses(rows: Sequence[Row], corruptions: Mapping[str, Mapping[str, Sequence[Row]]]) -> list[Extra]:
    """Further tables, where the modes that they need were asked for."""
    modes = {str(row["mode"]) for row in rows}
    made = []
    whole = next((one for one in ("full", "direct") if one in modes), None)
    if whole is not None and "crop" in modes:
        gap = regional_gap(rows, full=whole, crop="crop")
        shares = [("whole picture", gap["full"]), ("with the evidence framed", gap["boxed"]), ("the evidence alone", gap["crop"])]
        told = [[name, percent(one["value"]), interval_text(one["ci95"])] for name, one in shares if one is not None]
        told.append(["gap, points", signed(gap["gap"]["difference"]), " to ".join(map(signed, gap["gap"]["ci95"]))])
        note = "Accuracy on the whole picture and with its evidence cut out, on the same items: what a closer look would bring."
        made.append(Extra("From the whole picture to its evidence", note, [["", "%", "95 % interval"], *told]))
    if "tools" in modes and len(modes & {"tools-grey", "tools-blank", "tools-other", "direct"}):
        told = [
            [name, percent(one["a"]["value"]), signed(one["difference"]), " to ".join(map(signed, one["ci95"]))]
            for name, one in tool_use(rows).items()
        ]
        note = "The mode with tools minus each of the others: nothing lost to grey pictures means that nobody looked at them."
        made.append(
            Extra("What the tools' pictures are worth", note, [["instead", "%", "tools minus it", "95 % interval"], *told])
        )
    if corruptions:
        note = "Accuracy minus accuracy without what was taken away (Hallucination-as-Cue, 2604.03179); 0: it was not needed."
        made.append(Extra("Clean minus corrupted", note, render_clean_minus_corrupted(clean_minus_corrupted(corruptions))))
    sure = calibration(rows)
    if sure.get("stated_frac"):
        told = [[name, f"{sure[name]:.3f}"] for name in ("stated_frac", "ece", "brier", "auroc") if sure.get(name) is not None]
        made.append(Extra("Calibration", "Stated confidences against what was right.", [["", ""], *told]))
    return made


def compared(folder_a: Path, folder_b: Path, intersect: bool) -> dict[str, dict[str, Any]]:
    """Two evaluations, paired by item. `ValueError` when one is missing or they hold other items."""
    sides = [load_rows(folder) for folder in (folder_a, folder_b)]
    return compare_runs(*sides, intersect=intersect, benchmark=benchmark(str(sides[0][0]["benchmark"])))
