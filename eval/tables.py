"""From rows to numbers: ``summary.json``, and the tables that the terminal and the report show.

What every number is over: rates and costs are of answers (each draw of a self-consistency mode is one, and its cost counts),
accuracies are of items. An item that has no readable answer, was cut off or failed is wrong, and is counted as such.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .records import Benchmark, Row
from .resample import estimate, intervals, plain, score_of, unit_of, widened
from .scoring import vote

COSTS = ("tokens_in", "tokens_out", "tokens_image", "calls", "seconds")
_CURVE_POINTS = 48


def summary(rows: Sequence[Row], benchmark: Benchmark, meta: Mapping[str, Any] | None = None, seed: int = 0) -> dict[str, Any]:
    """What ``summary.json`` holds: per mode the official numbers, accuracy by category, rates and costs.

    ``{"benchmark", "title", "meta", "modes": {name: {"n", "draws", "overall", "accuracy", "numbers", "categories", "rates",
    "stops", "cost", "totals", "single"}}, "equal_cost"}``. Accuracies are ``{"value", "ci95", "how", "n"}``, 0 to 1; costs are
    means per item, tool calls counted, seconds added over draws. ``meta`` is kept as it is (model, source, seed, command ...).
    Raises `ValueError` for a row that is there twice.
    """
    modes = {name: _mode(answers, benchmark, seed) for name, answers in by_mode(rows).items()}
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "meta": dict(meta or {}),
        "modes": modes,
        "equal_cost": equal_cost(rows),
    }


def by_mode(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each mode, modes in order of their first row."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row["mode"]), []).append(row)
    return found


def one_per_item(rows: Sequence[Row]) -> list[Row]:
    """Rows of one mode, the draws of an item voted into one whose cost is that of all of them. `ValueError` for a draw that is
    there twice."""
    items: dict[tuple[str, int], list[Row]] = {}
    seen: set[tuple[str, int, int]] = set()
    for row in rows:
        # ids come from people's files and may repeat; the place in the file does not
        item, draw = (str(row["item"]), int(row.get("index", 0))), int(row.get("draw", 0))
        if (*item, draw) in seen:
            raise ValueError(f"item {item[0]}, draw {draw}: two rows of the mode {row['mode']}; keep one of them")
        seen.add((*item, draw))
        items.setdefault(item, []).append(row)
    return [draws[0] if len(draws) == 1 else vote(sorted(draws, key=lambda row: int(row["draw"]))) for draws in items.values()]


def cost_of(row: Row, name: str) -> float:
    """One of `COSTS`; calls are counted."""
    value = row.get(name) or 0
    return float(len(value)) if isinstance(value, Sequence) else float(value)


def _mode(answers: Sequence[Row], benchmark: Benchmark, seed: int) -> dict[str, Any]:
    items = one_per_item(answers)
    accuracy, numbers = estimate(items, seed), _official(items, benchmark, seed)
    draws = max(Counter(str(row["item"]) for row in answers).values())
    result = {
        "n": len(items),
        "draws": draws,
        "overall": numbers.get("overall", accuracy),
        "accuracy": accuracy,
        "numbers": numbers,
        "categories": {
            level: {name: estimate(chosen, seed) for name, chosen in values.items()}
            for level, values in categories_of(items).items()
        },
        "rates": rates(answers),
        "stops": dict(Counter(str(row.get("stop", "")) for row in answers).most_common()),
        "cost": {name: sum(cost_of(row, name) for row in items) / len(items) for name in COSTS},
        "totals": {name: sum(cost_of(row, name) for row in items) for name in COSTS},
        "right_per_1k_tokens_out": right_per_1k(items),
    }
    if draws > 1:
        # every draw of an item has its item's unit, so the interval does not take draws for items
        single = estimate([{**row, "group": unit_of(row)} for row in answers], seed)
        result["single"] = {**single, "n": len(items)}
    return result


def _official(items: Sequence[Row], benchmark: Benchmark, seed: int) -> dict[str, dict[str, Any]]:
    """The benchmark's own numbers, each with an interval."""
    values = benchmark.aggregate(items)
    is_share = plain(items) and _is_mean(items, benchmark)
    if is_share and set(values) == {"overall"}:
        return {"overall": estimate(items, seed)}
    ends = intervals([items], lambda sides: benchmark.aggregate(sides[0]), seed)
    num_units = len({unit_of(row) for row in items})
    found: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name == "overall" and is_share:
            found[name] = estimate(items, seed)
        elif math.isfinite(value):
            ci95 = widened(ends.get(name, (value, value)), value, num_units)
            found[name] = {"value": value, "ci95": list(ci95), "how": "bootstrap", "n": len(items)}
    return found


def _is_mean(items: Sequence[Row], benchmark: Benchmark) -> bool:
    """Is the headline the mean of the scores? Asked of uneven parts with one right row, for a mean of means, too, equals the mean
    where categories are even."""

    def differs(part: Sequence[Row]) -> bool:
        return not math.isclose(
            benchmark.aggregate(part).get("overall", math.nan), sum(map(score_of, part)) / len(part), abs_tol=1e-12
        )

    uneven = (items[: 1 + 2 * len(items) // 3], items[::3])
    probes = [
        [{**row, "score": float(not place), "outcome": "wrong" if place else "right"} for place, row in enumerate(part)]
        for part in uneven
    ]
    return not any(map(differs, (items, *probes)))


def categories_of(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """``{level: {category: rows}}``, categories in order of their names."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        for level, value in (row.get("categories") or {}).items():
            found.setdefault(str(level), {}).setdefault(str(value), []).append(row)
    return {level: dict(sorted(values.items())) for level, values in found.items()}


# --- rates ---------------------------------------------------------------------------------------------------------------------


def rates(rows: Sequence[Row]) -> dict[str, float]:
    """Shares of answers, 0 to 1: unparsed, truncated, failed and unscored are outcomes; runaway is the scorer's mark of a reply
    without end, and overlaps with them."""
    counted = Counter(row["outcome"] for row in rows)
    counted["runaway"] = sum(bool(row.get("runaway")) for row in rows)
    return {name: counted[name] / len(rows) for name in ("unparsed", "truncated", "failed", "runaway", "unscored")}


# --- accuracy at equal cost ----------------------------------------------------------------------------------------------------


def right_per_1k(items: Sequence[Row]) -> float | None:
    """Points won per 1,000 output tokens spent; None when nothing was written."""
    spent = sum(cost_of(row, "tokens_out") for row in items)
    return 1000 * sum(map(score_of, items)) / spent if spent else None


def accuracy_within(items: Sequence[Row], budget: float, cost: str = "tokens_out") -> float:
    """Accuracy when an item that cost more than ``budget`` counts as wrong: what a mode is worth under that limit."""
    return sum(score_of(row) for row in items if cost_of(row, cost) <= budget) / len(items) if items else 0.0


def equal_cost(rows: Sequence[Row]) -> dict[str, Any]:
    """All modes at the same limits on output tokens per item: ``{"budgets", "accuracy": {mode: [...]}, "curves": {mode:
    [[tokens, accuracy], ...]}}``. The limits are those within which each mode ends nine items of ten, the least first."""
    modes = {name: one_per_item(answers) for name, answers in by_mode(rows).items()}
    spent = {name: sorted(cost_of(row, "tokens_out") for row in items) for name, items in modes.items()}
    budgets = sorted({math.ceil(each[math.ceil(0.9 * len(each)) - 1]) for each in spent.values()})
    return {
        "budgets": budgets,
        "accuracy": {name: [accuracy_within(items, budget) for budget in budgets] for name, items in modes.items()},
        "curves": {name: _curve(items) for name, items in modes.items()},
    }


def _curve(items: Sequence[Row]) -> list[list[float]]:
    spent = sorted(cost_of(row, "tokens_out") for row in items)
    step = max(1, len(spent) // _CURVE_POINTS)
    budgets = sorted({*spent[::step], spent[-1]})
    return [[budget, accuracy_within(items, budget)] for budget in budgets]


# --- tables of text ------------------------------------------------------------------------------------------------------------

HEADER = (
    "mode", "items", "accuracy %", "95 % interval", "unparsed %", "truncated %", "failed %", "runaway %",
    "tokens in", "tokens out", "image tokens", "calls", "seconds", "right per 1k tokens",
)  # fmt: skip


def render(found: Mapping[str, Any]) -> list[list[str]]:
    """A summary as rows of text for the terminal, the header first: one row a mode."""
    rows = [list(HEADER)]
    for name, mode in found["modes"].items():
        cost, each = mode["cost"], mode["right_per_1k_tokens_out"]
        draws = f" × {mode['draws']}" if mode["draws"] > 1 else ""
        rows.append(
            [name, f"{mode['n']}{draws}", percent(mode["overall"]["value"]), interval_text(mode["overall"]["ci95"])]
            + [percent(mode["rates"][rate]) for rate in ("unparsed", "truncated", "failed", "runaway")]
            + [f"{cost[name]:,.0f}" for name in ("tokens_in", "tokens_out", "tokens_image")]
            + [f"{cost['calls']:.2f}", f"{cost['seconds']:.2f}", "–" if each is None else f"{each:.2f}"]
        )
    return rows


def render_categories(found: Mapping[str, Any]) -> list[list[str]]:
    """Accuracy by category as rows of text, one column a mode, the header first; empty without categories."""
    modes = found["modes"]
    places = list(
        dict.fromkeys((level, name) for mode in modes.values() for level, values in mode["categories"].items() for name in values)
    )
    rows = [["level", "category", "items", *modes]] if places else []
    for level, name in places:
        cells = [mode["categories"].get(level, {}).get(name) for mode in modes.values()]
        size = max(cell["n"] for cell in cells if cell)
        rows.append([level, name, str(size), *(percent(cell["value"]) if cell else "–" for cell in cells)])
    return rows


def percent(share: float) -> str:
    """A share in per cent with one digit."""
    return f"{100 * share:.1f}"


def interval_text(ci95: Sequence[float]) -> str:
    """Both ends in per cent."""
    return f"{percent(ci95[0])} to {percent(ci95[1])}"


def signed(share: float) -> str:
    """A difference in points with its sign; nothing has no sign."""
    text = f"{100 * share:+.1f}".replace("-", "\u2212")
    return "0.0" if text[1:] == "0.0" else text
