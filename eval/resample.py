"""Intervals by resampling: items are drawn again with replacement, and items that belong together are drawn together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .intervals import accuracy_interval
from .records import Row

Interval = tuple[float, float]
_RESAMPLES = 5_000
_ROW_VISITS, _FEWEST, _MOST = 2_000_000, 200, 1_000
"""An official aggregate is a Python function of all rows: so many rows are given to it in all, within these numbers of draws."""
_AT_ONCE = 1 << 22


def unit_of(row: Row) -> str:
    """What is drawn as one: the row's group (a pair, the cycles of a question), or the item where there is none."""
    return f"group {row['group']}" if row.get("group") else f"item {row['item']}"


def score_of(row: Row) -> float:
    """The score, 0 to 1; 0 where there is none."""
    return float(row.get("score") or 0.0)


def estimate(rows: Sequence[Row], seed: int = 0) -> dict[str, object]:
    """Mean score of rows (one per item) with its 95 % interval: ``{"value", "ci95", "how", "n"}``.

    Wilson's interval where every row stands for itself and is 0 or 1, else a bootstrap over groups.
    """
    scores = [score_of(row) for row in rows]
    value = sum(scores) / len(scores) if scores else 0.0
    units = [unit_of(row) for row in rows]
    if plain(rows):
        return {"value": value, "ci95": list(accuracy_interval(round(sum(scores)), len(scores))), "how": "wilson", "n": len(rows)}
    low, high = mean_interval(scores, units, seed)
    return {"value": value, "ci95": list(widened((low, high), value, len(set(units)))), "how": "bootstrap", "n": len(rows)}


def plain(rows: Sequence[Row]) -> bool:
    """True when the mean score is a share of independent items: every score is 0 or 1, and no two rows belong together."""
    return len({unit_of(row) for row in rows}) == len(rows) and all(score_of(row) in (0.0, 1.0) for row in rows)


def widened(interval: Interval, value: float, num_units: int) -> Interval:
    """A bootstrap of equal values has no width, however few they are: at 0 and 1 Wilson's interval for the units stands in."""
    if interval[0] == interval[1] and value in (0.0, 1.0):
        return accuracy_interval(round(value * num_units), num_units)
    return interval


def mean_interval(values: Sequence[float], units: Sequence[str], seed: int = 0, resamples: int = _RESAMPLES) -> Interval:
    """95 % percentile bootstrap of the mean; values with the same unit are drawn together. (0, 0) for no values."""
    if len(values) != len(units):
        raise ValueError(f"{len(values)} values but {len(units)} units; give the unit of every value")
    if not values:
        return 0.0, 0.0
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    sums, counts = np.zeros(len(places)), np.zeros(len(places))
    for value, unit in zip(values, units, strict=True):
        sums[places[unit]] += value
        counts[places[unit]] += 1
    rng, means = np.random.default_rng(seed), []
    rows_at_once = max(1, _AT_ONCE // len(places))
    for start in range(0, resamples, rows_at_once):
        drawn = rng.integers(0, len(places), (min(rows_at_once, resamples - start), len(places)), dtype=np.int32)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def intervals(
    sides: Sequence[Sequence[Row]], measure: Callable[[Sequence[Sequence[Row]]], Mapping[str, float]], seed: int = 0
) -> dict[str, Interval]:
    """95 % bootstrap intervals of named numbers that ``measure`` makes of one or more lists of rows.

    All sides hold the same items, and each draw takes the same ones from every side, so that the interval of a difference is
    one of pairs. A group that is drawn again gets a name of its own ("g~1"): aggregates see two groups, not a larger one. A
    number that a draw does not have (a category that it misses) is left out of that draw.
    """
    units: dict[str, list[list[Row]]] = {}
    for side, rows in enumerate(sides):
        for row in rows:
            units.setdefault(unit_of(row), [[] for _ in sides])[side].append(row)
    if not units:
        return {}
    drawable, rng = list(units.values()), np.random.default_rng(seed)
    resamples = min(_MOST, max(_FEWEST, _ROW_VISITS // max(1, sum(map(len, sides)))))
    copies: dict[tuple[int, int], list[list[Row]]] = {}
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        times = np.bincount(rng.integers(0, len(drawable), len(drawable)), minlength=len(drawable))
        drawn: list[list[Row]] = [[] for _ in sides]
        for place in np.flatnonzero(times):
            for copy in range(times[place]):
                key = (int(place), copy)
                if key not in copies:
                    copies[key] = [[_again(row, copy) for row in rows] for rows in drawable[place]]
                for side, rows in enumerate(copies[key]):
                    drawn[side] += rows
        for name, value in measure(drawn).items():
            if np.isfinite(value):
                found.setdefault(name, []).append(float(value))
    ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _again(row: Row, copy: int) -> Row:
    return {**row, "group": f"{row['group']}~{copy}"} if copy and row.get("group") else row
