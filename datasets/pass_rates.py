"""Pass rates of samples, as ``foveate data pass-rate`` writes them: what a curriculum sorts by.

One row a sample: ``{"id", "index", "k", "right", "pass_rate", ...}``, ``index`` being the sample's place in its data.
"From Seeing to Thinking" (2605.20177): 16 rollouts of the base model at temperature 0.7.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

_AGAIN = "run foveate data pass-rate again, or remove the line"


class PassRateError(ValueError):
    """A file of pass rates that cannot be used. Names the file, the line, and how to mend it."""


@dataclass(frozen=True)
class PassRates:
    """``by_index[index]`` is the id of a sample and its share of right rollouts, out of ``k``; the indices are 0 .. n - 1."""

    by_index: Mapping[int, tuple[str, float]]
    k: int


def read_pass_rates(path: Path) -> PassRates:
    """The pass rates in a file, the rows in any order (shards are put together with ``cat``).

    `PassRateError`: no rows, a row that is none, a sample met twice or missing between others, rows of different ``k``.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # an id may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise PassRateError(f"{path}: cannot be read ({error}); make it with foveate data pass-rate") from error
    rates: dict[int, tuple[str, float]] = {}
    places: dict[int | str, int] = {}
    k = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        sample_id, index, own_k, rate = _row(line, where)
        for name, value in (("index", index), ("id", sample_id)):
            first = places.setdefault(value, number)
            if first != number:
                raise PassRateError(
                    f"{where}: the {name} {value!r} stands in line {first} too; remove one of the lines, or give the samples ids "
                    "of their own"
                )
        if k and own_k != k:
            raise PassRateError(f"{where}: k is {own_k}, and {k} before; rates of other k do not compare, measure all with one")
        k = own_k
        rates[index] = (sample_id, rate)
    if not rates:
        raise PassRateError(f"{path}: no rows; run foveate data pass-rate to its end")
    missing = [index for index in range(max(rates) + 1) if index not in rates]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (" ..." if len(missing) > 5 else "")
        raise PassRateError(
            f"{path}: {len(missing)} samples are missing (index {shown}); put the files of all shards together with cat, or run "
            "foveate data pass-rate to its end"
        )
    return PassRates(MappingProxyType(dict(sorted(rates.items()))), k)


def _row(line: str, where: str) -> tuple[str, int, int, float]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PassRateError(f"{where}: not JSON ({error}); {_AGAIN}") from error
    if not isinstance(row, Mapping):
        raise PassRateError(f"{where}: expected an object, got {type(row).__name__}; {_AGAIN}")
    index, k, right, rate = (row.get(name) for name in ("index", "k", "right", "pass_rate"))
    if not isinstance(row.get("id"), str) or not _whole(index) or not _whole(k) or not _whole(right):
        raise PassRateError(f"{where}: expected a text id and whole numbers index, k and right, got {line[:160]}; {_AGAIN}")
    if k < 1 or index < 0 or not 0 <= right <= k:
        raise PassRateError(
            f"{where}: index {index}, k {k}, right {right}; expected index >= 0, k >= 1 and right from 0 to k; {_AGAIN}"
        )
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not math.isclose(rate, right / k, abs_tol=1e-6):
        raise PassRateError(f"{where}: pass_rate {rate!r} is not right / k = {right} / {k}; {_AGAIN}")
    return row["id"], index, k, float(rate)


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Summary:
    """What a file of pass rates says. ``bins`` are ``(label, samples)`` from hard to easy; shares are of 1."""

    samples: int
    mean: float
    bins: tuple[tuple[str, int], ...]
    unparsed_frac: float
    truncated_frac: float
    failed: int
    tokens_mean: float

    @property
    def all_wrong_frac(self) -> float:
        return self.bins[0][1] / self.samples

    @property
    def all_right_frac(self) -> float:
        return self.bins[-1][1] / self.samples


_EDGES = ((0.25, "up to 1/4"), (0.5, "up to 1/2"), (0.75, "up to 3/4"), (1.0, "below 1"))


def summarize(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """The rows of a file added up. `ValueError` for none."""
    if not rows:
        raise ValueError("no pass rates to add up")
    counts = {"0": 0, **{label: 0 for _, label in _EDGES}, "1": 0}
    for row in rows:
        rate = row["pass_rate"]
        inside = next(label for edge, label in _EDGES if rate <= edge)
        counts["0" if row["right"] == 0 else "1" if row["right"] == row["k"] else inside] += 1
    rollouts = sum(row["k"] for row in rows)
    return Summary(
        samples=len(rows),
        mean=sum(row["pass_rate"] for row in rows) / len(rows),
        bins=tuple(counts.items()),
        unparsed_frac=sum(row["unparsed"] for row in rows) / rollouts,
        truncated_frac=sum(row["truncated"] for row in rows) / rollouts,
        failed=sum(row["failed"] for row in rows),
        tokens_mean=sum(row["tokens_mean"] * row["k"] for row in rows) / rollouts,
    )
