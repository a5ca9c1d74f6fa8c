"""Rows of an evaluation as the runner would write them, and a benchmark that adds them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.eval.records import Item, Row, Source

STATES = {
    "r": ("right", 1.0, "answered"),
    "w": ("wrong", 0.0, "answered"),
    "u": ("unparsed", 0.0, "answered"),
    "t": ("truncated", 0.0, "turn_tokens"),
    "f": ("failed", 0.0, "failed"),
}


def row(item: str, state: str = "r", mode: str = "direct", **changes: Any) -> Row:
    """One answer; ``state`` is a letter of `STATES`."""
    outcome, score, stop = STATES[state]
    parsed = {"r": "A", "w": "B"}.get(state)
    made: Row = {
        "benchmark": "made-up",
        "mode": mode,
        "item": item,
        "draw": 0,
        "categories": {},
        "group": "",
        "question": f"Question {item}?",
        "options": ["red", "blue"],
        "gold": "A",
        "texts": [f"It is {parsed}." if parsed else "Hm."],
        "parsed": parsed,
        "outcome": outcome,
        "score": score,
        "stop": stop,
        "tokens_in": 100,
        "tokens_out": 10,
        "tokens_image": 64,
        "calls": [],
        "seconds": 0.5,
        "error": "",
        "order": [0, 1],
        "story": [],
        "runaway": False,
    }
    return made | changes


def rows(states: str, mode: str = "direct", **changes: Any) -> list[Row]:
    """Items "0", "1", ... in these states."""
    return [row(str(place), state, mode, **changes) for place, state in enumerate(states)]


def mean(chosen: Sequence[Row]) -> float:
    return sum(one["score"] for one in chosen) / len(chosen) if chosen else 0.0


@dataclass(frozen=True)
class Plain:
    """The headline is the mean of the scores."""

    name: str = "made-up"
    title: str = "Made up"
    source_note: str = "nowhere"

    def read(self, path: str) -> tuple[Sequence[Item], Source]:
        raise NotImplementedError

    def prompt_tail(self, item: Item) -> str:
        return ""

    def aggregate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return {"overall": mean([dict(one) for one in rows])}


class Pairs(Plain):
    """A pair is right when both of its items are."""

    def aggregate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        groups: dict[str, list[float]] = {}
        for one in rows:
            groups.setdefault(one["group"], []).append(one["score"])
        return {"overall": sum(min(scores) for scores in groups.values()) / len(groups) if groups else 0.0}


class MeanOfMeans(Plain):
    """The mean over categories, which are reported too."""

    def aggregate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        names = sorted({one["categories"]["kind"] for one in rows})
        means = {name: mean([dict(one) for one in rows if one["categories"]["kind"] == name]) for name in names}
        return {"overall": sum(means.values()) / len(means) if means else 0.0, **means}
