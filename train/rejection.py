"""Rejection sampling: the model's own trajectories, filtered, become the data of its next cold start.

ViLaSR (2506.09965, stage 2): keep a trajectory iff it is right, well-formed, and reflective. Every rollout that is dropped is
counted under the first filter that dropped it.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pydantic

from ..datasets.crops import Part
from ..datasets.trajectories import Trajectory, trajectory_row
from ..vlm.records import Group, Rollout, Sample, StopReason, Turn

Play = Callable[[Sequence[Sample]], Sequence[Group]]
"""Plays and rewards rollouts of these samples, one group each. The same samples give the same rollouts, whenever it is called."""

_Placed = tuple[int, Sample, Rollout]  # the number of a rollout among all, its sample, itself
_COORDINATES = ("box", "bbox_2d", "start", "end", "point", "points", "x", "y")


class Filters(Part):
    """What a rollout has to be. Applied in this order; the reasons of `reject` are in brackets.

    One that says nothing in one of its turns cannot be taught, and is always dropped [empty].
    """

    correct: bool = True
    """The answer is right [wrong, unparsed, unscored]."""
    valid: bool = True
    """It ended with an answer [unfinished], no call of it was wrong [call_error], and its form was right [format]."""
    format_term: str = "format"
    """The term of the reward that judges the form; a reward without it does not judge it."""
    format_least: float = 1.0
    """The least value of `format_term` that counts as right (DeepEyes gives 0 for a good form and -1 for a bad one: then 0)."""
    min_turns: int = pydantic.Field(default=1, ge=1)
    """Actions, the answer included [too_short]. ViLaSR's first stage: 3."""
    reflective: Literal["no", "label", "region"] = "no"
    """label: something with the same label is drawn or looked at again, in a later turn, with other coordinates; region: calls
    without a label count too, as if they had one label [not_reflective]."""
    dedupe: bool = True
    """One of several rollouts of a sample that say the same [duplicate]."""
    max_per_sample: int | None = pydantic.Field(default=None, ge=1)
    """At most so many rollouts of a sample, chosen by `choose` [surplus]; None: all."""
    choose: Literal["first", "shortest", "random"] = "first"
    """Which ones stay: in order of playing, with the fewest action tokens, or drawn with `seed`."""
    seed: int = 0


def reject(groups: Sequence[Group], filters: Filters) -> tuple[list[tuple[Sample, Rollout]], Counter[str]]:
    """``(kept, counts)``: the rollouts that stay, in order, and how many were ``kept`` or dropped, by reason.

    The counts add up to the number of rollouts. Groups of one sample are taken together. `ValueError` for a rollout without a
    reward when the filters ask for one.
    """
    counts: Counter[str] = Counter()
    passed: dict[str, list[_Placed]] = {}
    place = 0
    for group in groups:
        for rollout in group.rollouts:
            reason = _reason(rollout, filters)
            if reason is None:
                passed.setdefault(group.sample.id, []).append((place, group.sample, rollout))
            else:
                counts[reason] += 1
            place += 1
    kept: list[_Placed] = []
    for sample_id, own in passed.items():
        different = _different(own) if filters.dedupe else own
        chosen = _chosen(different, sample_id, filters)
        counts["duplicate"] += len(own) - len(different)
        counts["surplus"] += len(different) - len(chosen)
        kept += chosen
    counts["kept"] = len(kept)
    return [(sample, rollout) for _, sample, rollout in sorted(kept, key=lambda one: one[0])], +counts


def _different(own: Sequence[_Placed]) -> list[_Placed]:
    first: dict[tuple[str, ...], _Placed] = {}
    for one in own:
        first.setdefault(tuple(turn.text for turn in one[2].turns), one)
    return list(first.values())


def _chosen(own: list[_Placed], sample_id: str, filters: Filters) -> list[_Placed]:
    if filters.max_per_sample is None or len(own) <= filters.max_per_sample:
        return own
    if filters.choose == "random":
        return random.Random(f"{filters.seed}:{sample_id}").sample(own, filters.max_per_sample)
    ranked = own if filters.choose == "first" else sorted(own, key=lambda one: one[2].num_actions)
    return ranked[: filters.max_per_sample]


def _reason(rollout: Rollout, filters: Filters) -> str | None:
    """Why a rollout is dropped whatever its siblings are, or None."""
    reward = rollout.reward
    if not all(turn.text for turn in rollout.turns):
        return "empty"
    if reward is None and (filters.correct or filters.valid):
        raise ValueError(
            f"rollout {rollout.group_id}/{rollout.index} has no reward, and the filters correct and valid read it; "
            "score the groups first (rewards.combine.score_group)"
        )
    if filters.correct and reward is not None and reward.outcome != "right":
        return reward.outcome
    if filters.valid and reward is not None:
        if rollout.stop is not StopReason.ANSWERED:
            return "unfinished"
        if any(call.error is not None for call in rollout.calls):
            return "call_error"
        if reward.terms.get(filters.format_term, filters.format_least) < filters.format_least:
            return "format"
    if len(rollout.turns) < filters.min_turns:
        return "too_short"
    if filters.reflective != "no" and not reflective(rollout, labelled=filters.reflective == "label"):
        return "not_reflective"
    return None


def reflective(rollout: Rollout, *, labelled: bool = True) -> bool:
    """Whether something is drawn or looked at again, under the same label, in a later turn, with other coordinates.

    Wrong calls do not count. Without ``labelled`` all calls of a tool that name nothing share one label.
    """
    before: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for turn in rollout.turns:
        marks = [mark for mark in _marks(turn) if mark[0][1] or not labelled]
        if any(key in before and where not in before[key] for key, where in marks):
            return True
        for key, where in marks:
            before.setdefault(key, []).append(where)
    return False


def _marks(turn: Turn) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    """``((tool, label), coordinates)`` of everything that the turn's calls drew or looked at."""
    for call in turn.calls:
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            continue
        if call.error is not None or not isinstance(arguments, Mapping):
            continue
        listed = [entry for name in ("boxes", "lines") for entry in _entries(arguments.get(name))]
        for entry in listed or [arguments]:
            label = entry.get("label") or entry.get("text") or arguments.get("label") or ""
            where = {name: entry[name] for name in _COORDINATES if entry.get(name) is not None}
            if where:
                yield (call.name, " ".join(str(label).casefold().split())), where


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


# --- many samples, into a file ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RejectionReport:
    """What a file of kept trajectories is made of. ``counts`` are those of `reject`, over all samples."""

    target: str
    num_samples: int
    counts: Mapping[str, int]

    def text(self) -> str:
        """The report in one line."""
        dropped = ", ".join(f"{name} {number}" for name, number in sorted(self.counts.items()) if name != "kept")
        return f"{self.target}: {self.num_samples} samples, {self.counts.get('kept', 0)} kept, dropped: {dropped or 'none'}"


def sample_and_filter(
    samples: Iterable[Sample],
    play: Play,
    filters: Filters,
    target: Path,
    *,
    samples_at_once: int = 32,
    about: Mapping[str, Any] | None = None,
) -> RejectionReport:
    """Play the samples, write the rollouts that pass to ``target`` (`datasets.trajectories`), their pictures beside it.

    It may be killed anywhere: run again, it goes on behind the last chunk of samples that was finished, and nothing is lost or
    doubled. What is finished stands in a file beside ``target``, with the filters and with ``about`` (whatever else makes the
    rollouts: model, view, sampling): other ones are refused. A sample whose id was played before is passed over. `ValueError`.
    """
    ledger = _Ledger(target, {"filters": filters.model_dump(mode="json"), **(about or {})})
    waiting = _not_in(samples, ledger.done)
    while chunk := list(islice(waiting, samples_at_once)):
        kept, counts = reject(play(chunk), filters)
        rows = [
            {
                **trajectory_row(Trajectory.of(sample, one), target.parent),
                "rollout": one.index,
                "reward": one.reward and one.reward.total,
            }
            for sample, one in kept
        ]
        ledger.add(rows, [sample.id for sample in chunk], counts)
    return RejectionReport(str(target), len(ledger.done), dict(ledger.counts))


def _not_in(samples: Iterable[Sample], done: set[str]) -> Iterator[Sample]:
    drawn = set(done)
    for sample in samples:
        if sample.id not in drawn:
            drawn.add(sample.id)
            yield sample


class _Ledger:
    """The kept rows and, in a file beside them, what is done: one line a chunk, with the length of the rows after it.

    Rows are written first. Those that no line of the ledger knows of (the process was killed in between) are cut off.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any]) -> None:
        if target.suffix != ".jsonl":
            raise ValueError(f"{target}: trajectories are written as JSON lines; give a name that ends in .jsonl")
        self._rows, self._lines = target, target.with_suffix(".progress.jsonl")
        self.done: set[str] = set()
        self.counts: Counter[str] = Counter()
        target.parent.mkdir(parents=True, exist_ok=True)
        known = self._lines.read_bytes() if self._lines.exists() else b""
        known = known[: known.rfind(b"\n") + 1]  # a last line without its end was being written
        lines = [json.loads(line) for line in known.splitlines()]
        settings = json.loads(json.dumps(settings))
        size = lines[-1].get("bytes", 0) if lines else 0
        if (target.stat().st_size if target.exists() else 0) < size or (not lines and target.exists()):
            raise ValueError(f"{target} and {self._lines.name} do not belong together; move them away, or give another name")
        if not lines:
            lines = [{"settings": settings}]
            known = (json.dumps(lines[0]) + "\n").encode()
            self._lines.write_bytes(known)
        begun = lines[0]["settings"]
        if begun != settings:
            differ = sorted(name for name in {*begun, *settings} if begun.get(name) != settings.get(name))
            raise ValueError(f"{target} was begun with another {', '.join(differ)}; go on with the same, or give another name")
        _append(target, "")
        os.truncate(self._lines, len(known))
        os.truncate(target, size)
        for line in lines[1:]:
            self.done.update(line["done"])
            self.counts.update(line["counts"])

    def add(self, rows: Sequence[Mapping[str, Any]], ids: Sequence[str], counts: Mapping[str, int]) -> None:
        """A finished chunk."""
        size = _append(self._rows, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        _append(self._lines, json.dumps({"done": list(ids), "counts": dict(counts), "bytes": size}) + "\n")
        self.done.update(ids)
        self.counts.update(counts)


def _append(path: Path, text: str) -> int:
    """Put text at the end of a file, on the disk when this returns; the size of the file in bytes."""
    with path.open("ab") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell()
