"""Data that models help to make, offline: perception questions from captions, thoughts for answers, trajectories that hold.

Every job asks through `asking.Answers`: what was answered is on disk at once. What a job writes is worked out from the answers
when they are all there, and written whole or not at all; so a job that is killed anywhere and started again ends with the files
of one that was not. Every row of the source is kept or dropped for one reason, and the reasons add up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .asking import Answers, Model, Show
from .data_source import Source
from .datasets.builders import evidence, thoughts
from .datasets.builders.journal import replace_text
from .datasets.read import ReadError
from .datasets.trajectories import TrajectoriesRead, Trajectory, drop_thoughts, write_trajectories
from .datasets.views import ViewSpec
from .eval.records import Item, Mode, Played
from .eval.scoring import score
from .train.script import ScriptError, play_script
from .vlm.records import Sample, View


@dataclass(frozen=True)
class Report:
    """What became of all rows: ``counts`` has "kept" and the reasons of the others, and adds up to ``total``."""

    target: str
    total: int
    counts: Mapping[str, int]
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(self.counts.values()) != self.total:
            raise RuntimeError(f"{self.target}: {dict(self.counts)} do not add up to {self.total}")

    @property
    def kept(self) -> int:
        return self.counts.get("kept", 0)

    def text(self) -> str:
        """The report in lines."""
        dropped = sorted(((number, name) for name, number in self.counts.items() if name != "kept" and number), reverse=True)
        lines = [f"{self.target}: {self.total} rows, {self.kept} kept, {self.total - self.kept} dropped"]
        lines += [f"  {number:>7}  {name}" for number, name in dropped]
        lines += [f"  {name}: {_told(value)}" for name, value in self.details.items()]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        told = {"total": self.total, "counts": dict(sorted(self.counts.items())), **self.details}
        replace_text(path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return str(value)


def outcome(sample: Sample, played: Played) -> str:
    """right, wrong, unparsed, truncated, failed, or unscored without a reference."""
    return str(score(Item(sample), played)["outcome"])


# --- thoughts -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Thoughts:
    """How thoughts are written. ``view`` shows the writer question and answer; ``dropout`` is the share of emptied thoughts."""

    writer: Model
    view: ViewSpec = thoughts.THOUGHT_VIEW
    max_new_tokens: int = 512
    min_words: int = 5
    max_words: int = 400
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.view.answer:
            raise ValueError(
                f"thoughts: the view {self.view.name or 'given'} does not tell the answer; the writer has to know it"
            )
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"thoughts: a dropout of {self.dropout}; expected a share from 0 to 1")


def thoughts_job(source: Source, plan: Thoughts, target: Path, *, limit: int | None = None, show: Show | None = None) -> Report:
    """Write a thought for each of the first ``limit`` samples; those that pass `thoughts.flaw` go to ``target`` as trajectories.

    Also dropped: failed, cut_off, other_answer (the writer ends with an answer of its own), unrenderable, no_answer, unreadable.
    Beside ``target``: ``NAME.answers.jsonl``, ``NAME.report.json`` and ``images/``. `ValueError`: the model cannot be asked.
    """
    count = min(len(source.samples), limit or len(source.samples))
    dropped: dict[int, str] = {}
    mode = Mode("thoughts", plan.view, max_new_tokens=plan.max_new_tokens)

    def items() -> Iterator[tuple[int, Item]]:
        for place in range(count):
            try:
                sample = source.build(place)
            except ReadError:
                dropped[place] = "unreadable"
                continue
            if not sample.answer:
                dropped[place] = "no_answer"
                continue
            yield place, Item(replace(sample, answer=thoughts.told_answer(sample)))

    with Answers(target.with_suffix(".answers.jsonl"), show) as answers:
        replies = answers.of(plan.writer, mode, items(), "writing", count)
    kept: list[tuple[int, str]] = []
    for place, played in sorted(replies.items()):
        sample, text = source.build(place), played.texts[-1] if played.texts else ""
        thought = thoughts.thought_in(text)
        wrong = "failed" if played.stop == "failed" else "cut_off" if played.stop != "answered" else None
        if wrong is None and "<answer>" in text and outcome(sample, played) != "right":
            wrong = "other_answer"
        wrong = wrong or thoughts.flaw(thought, sample, min_words=plan.min_words, max_words=plan.max_words)
        wrong = wrong or _unteachable(thoughts.with_thought(sample, thought), plan)
        if wrong is None:
            kept.append((place, thought))
        else:
            dropped[place] = wrong
    emptied = 0

    def made() -> Iterator[Trajectory]:
        nonlocal emptied
        for place, thought in kept:
            whole = thoughts.with_thought(source.build(place), thought)
            one = drop_thoughts(whole, plan.dropout, plan.seed)
            emptied += one is not whole
            yield one

    write_trajectories(made(), target)
    counts = Counter({"kept": len(kept), **Counter(dropped.values())})
    left_out = source.num_left_out if limit is None else 0
    counts["unreadable"] += left_out
    report = Report(str(target), count + left_out, +counts, {"emptied": emptied})
    report.write(target.with_suffix(".report.json"))
    return report


def _unteachable(trajectory: Trajectory, plan: Thoughts) -> str | None:
    """Whether a model in this process could be taught the text; a served one's tokens are not known here."""
    renderer = plan.writer.renderer
    if renderer is None:
        return None
    try:
        play_script(trajectory, View("student", ()), None, renderer)
    except ScriptError:
        return "unrenderable"
    return None


# --- hindsight ----------------------------------------------------------------------------------------------------------------


def hindsight_job(
    read: TrajectoriesRead,
    judge: Model,
    target: Path,
    *,
    what: evidence.What = "both",
    tries: int = 3,
    max_new_tokens: int = 1024,
    system: str = evidence.HINDSIGHT_SYSTEM,
    show: Show | None = None,
) -> Report:
    """Keep, of the first ``tries`` trajectories of each sample, the first whose evidence alone lets the judge answer right.

    Beside ``target``: ``NAME.answers.jsonl``, ``NAME.report.json`` and ``images/``. Dropped for: no_evidence, wrong, unparsed,
    failed, unscored (no reference), not_needed (an earlier one of the sample holds), further (beyond ``tries``), unreadable.
    """
    all_of = read.trajectories
    own = evidence.candidates((one.sample.id for one in all_of), tries)
    mode = Mode("hindsight", ViewSpec(name="hindsight", system=system), max_new_tokens=max_new_tokens)
    fate = dict.fromkeys(range(len(all_of)), "further")
    fate |= {place: "not_needed" for places in own for place in places}
    held: set[int] = set()

    def items(waiting: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Item]]:
        for _, place in waiting:
            sample = evidence.evidence(all_of[place], what)
            if sample is None:
                fate[place] = "no_evidence"
            else:
                yield place, Item(sample)

    with Answers(target.with_suffix(".answers.jsonl"), show) as answers:
        for turn in range(tries):
            waiting = [
                (number, own[number][turn]) for number in range(len(own)) if number not in held and turn < len(own[number])
            ]
            found = answers.of(judge, mode, items(waiting), f"try {turn + 1}", len(waiting))
            for number, place in waiting:
                if place in found:
                    why = evidence.reason(outcome(all_of[place].sample, found[place]))
                    fate[place] = why or "kept"
                    held |= set() if why else {number}
    write_trajectories((all_of[place] for place in sorted(fate) if fate[place] == "kept"), target)
    counts = Counter(fate.values())
    counts["unreadable"] += read.num_rows - len(all_of)
    report = Report(str(target), read.num_rows, +counts)
    report.write(target.with_suffix(".report.json"))
    return report
