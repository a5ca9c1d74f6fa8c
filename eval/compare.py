"""Two evaluations of the same items, item by item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from statsmodels.stats.contingency_tables import mcnemar

from .records import Benchmark, Row
from .resample import estimate, intervals, mean_interval, score_of, unit_of
from .tables import by_mode, categories_of, one_per_item, percent, signed

_NAMED = 5


class DifferentItems(ValueError):
    """The two sides do not hold the same items."""


def compare(
    rows_a: Sequence[Row], rows_b: Sequence[Row], *, intersect: bool = False, benchmark: Benchmark | None = None, seed: int = 0
) -> dict[str, Any]:
    """B against A, paired by item; each side holds one mode (see `compare_runs` for several).

    The result of `paired`. Raises `ValueError` for rows of two benchmarks (their ids may be equal by chance) or several modes,
    and `DifferentItems` when a side lacks items of the other; ``intersect`` compares those that both have.
    """
    for side, rows in (("A", rows_a), ("B", rows_b)):
        modes = list(by_mode(rows))
        if len(modes) != 1:
            raise ValueError(
                f"{side} holds {len(modes)} modes ({', '.join(modes) or 'no rows'}); give the rows of one, or use compare_runs"
            )
    names = [sorted({str(row["benchmark"]) for row in rows}) for rows in (rows_a, rows_b)]
    if names[0] != names[1]:
        raise ValueError(f"A is of {', '.join(names[0])} and B of {', '.join(names[1])}; compare evaluations of one benchmark")
    return paired(rows_a, rows_b, intersect=intersect, benchmark=benchmark, seed=seed)


def compare_runs(
    rows_a: Sequence[Row], rows_b: Sequence[Row], *, intersect: bool = False, benchmark: Benchmark | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """`compare` of every mode that both runs have, by its name; of the only modes of both where the names differ
    ("direct > tools"). `ValueError` when no modes can be paired."""
    a, b = by_mode(rows_a), by_mode(rows_b)
    pairs = {name: (a[name], b[name]) for name in a if name in b}
    if not pairs and len(a) == len(b) == 1:
        (name_a, only_a), (name_b, only_b) = *a.items(), *b.items()
        pairs = {f"{name_a} > {name_b}": (only_a, only_b)}
    if not pairs:
        raise ValueError(
            f"no mode is in both: A has {', '.join(a) or 'none'}, B has {', '.join(b) or 'none'}; evaluate both in one mode"
        )
    return {name: compare(*sides, intersect=intersect, benchmark=benchmark, seed=seed) for name, sides in pairs.items()}


def paired(
    rows_a: Sequence[Row], rows_b: Sequence[Row], *, intersect: bool = False, benchmark: Benchmark | None = None, seed: int = 0
) -> dict[str, Any]:
    """B minus A on the same items, whatever else differs.

    ``{"n", "a", "b", "difference", "ci95", "p_value", "mended", "broken", "num_both_right", "num_both_wrong", "num_only_a",
    "num_only_b", "num_questions_differ", "categories", "numbers"}``. ``difference`` is in mean score, -1 to 1, its 95 % interval
    a bootstrap of pairs (of groups of pairs, where items belong together). ``p_value`` is McNemar's exact test on right or
    not, two-sided, which takes items for independent. ``numbers`` are the benchmark's own, where one is given.
    """
    side_a, side_b = _by_item(rows_a), _by_item(rows_b)
    only_a, only_b = [item for item in side_a if item not in side_b], [item for item in side_b if item not in side_a]
    common = [item for item in side_a if item in side_b]
    if ((only_a or only_b) and not intersect) or not common:
        raise DifferentItems(_differ(only_a, only_b, len(common)))
    a, b = [side_a[item] for item in common], [side_b[item] for item in common]
    right = [(row_a["outcome"] == "right", row_b["outcome"] == "right") for row_a, row_b in zip(a, b, strict=True)]
    counts = {kind: right.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))}
    table = [[counts[True, True], counts[True, False]], [counts[False, True], counts[False, False]]]
    return {
        "n": len(common),
        "a": estimate(a, seed),
        "b": estimate(b, seed),
        **_difference(a, b, seed),
        "p_value": float(mcnemar(table, exact=True).pvalue),
        "mended": [item for item, was_and_is in zip(common, right, strict=True) if was_and_is == (False, True)],
        "broken": [item for item, was_and_is in zip(common, right, strict=True) if was_and_is == (True, False)],
        "num_both_right": counts[True, True],
        "num_both_wrong": counts[False, False],
        "num_only_a": len(only_a),
        "num_only_b": len(only_b),
        "num_questions_differ": sum(one.get("question") != two.get("question") for one, two in zip(a, b, strict=True)),
        "categories": _by_category(a, b, seed),
        "numbers": {} if benchmark is None else _numbers(a, b, benchmark, seed),
    }


def _by_item(rows: Sequence[Row]) -> dict[str, Row]:
    """One row per item by its id; where a file repeats an id, by its number among those."""
    times: Counter[str] = Counter()
    found: dict[str, Row] = {}
    for row in one_per_item(rows):
        item = str(row["item"])
        times[item] += 1
        found[item if times[item] == 1 else f"{item} ({times[item]})"] = row
    return found


def _differ(only_a: Sequence[str], only_b: Sequence[str], num_common: int) -> str:
    def some(items: Sequence[str]) -> str:
        return f"{len(items)}" + (f" ({', '.join(items[:_NAMED])}{', ...' if len(items) > _NAMED else ''})" if items else "")

    remedy = "evaluate the same items" + (f", or compare the {num_common} that both have (intersect)" if num_common else "")
    return f"not the same items: B lacks {some(only_a)} of A's, A lacks {some(only_b)} of B's; {remedy}"


def _difference(a: Sequence[Row], b: Sequence[Row], seed: int) -> dict[str, Any]:
    steps = [score_of(after) - score_of(before) for before, after in zip(a, b, strict=True)]
    return {"difference": sum(steps) / len(steps), "ci95": list(mean_interval(steps, [unit_of(row) for row in a], seed))}


def _by_category(a: Sequence[Row], b: Sequence[Row], seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    after = {id(before): row for before, row in zip(a, b, strict=True)}

    def one(rows: Sequence[Row]) -> dict[str, Any]:
        others = [after[id(row)] for row in rows]
        means = {name: sum(map(score_of, side)) / len(side) for name, side in (("a", rows), ("b", others))}
        return {"n": len(rows), **means, **_difference(rows, others, seed)}

    return {level: {name: one(rows) for name, rows in values.items()} for level, values in categories_of(a).items()}


def _numbers(a: Sequence[Row], b: Sequence[Row], benchmark: Benchmark, seed: int) -> dict[str, dict[str, Any]]:
    before, after = benchmark.aggregate(a), benchmark.aggregate(b)

    def steps(sides: Sequence[Sequence[Row]]) -> dict[str, float]:
        first, second = (benchmark.aggregate(side) for side in sides)
        return {name: second[name] - value for name, value in first.items() if name in second}

    ends = intervals([a, b], steps, seed)
    return {
        name: {
            "a": before[name],
            "b": after[name],
            "difference": after[name] - before[name],
            "ci95": list(ends.get(name, (0.0, 0.0))),
        }
        for name in before
        if name in after
    }


HEADER = ("", "items", "A %", "B %", "B − A, points", "95 % interval", "mended", "broken", "p (McNemar)")


def render_comparison(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Comparisons by name as rows of text, the header first; categories are indented below their comparison."""
    rows = [list(HEADER)]
    for name, one in results.items():
        p_value = "<0.0001" if one["p_value"] < 1e-4 else f"{one['p_value']:.4f}"
        sides = [percent(one["a"]["value"]), percent(one["b"]["value"])]
        change = [signed(one["difference"]), _ends(one["ci95"])]
        rows.append([name, str(one["n"]), *sides, *change, str(len(one["mended"])), str(len(one["broken"])), p_value])
        for official, number in one["numbers"].items():
            told = [percent(number["a"]), percent(number["b"]), signed(number["difference"]), _ends(number["ci95"])]
            rows.append([f"  official {official}", "", *told, "", "", ""])
        for values in one["categories"].values():
            for category, part in values.items():
                told = [percent(part["a"]), percent(part["b"]), signed(part["difference"]), _ends(part["ci95"])]
                rows.append([f"  {category}", str(part["n"]), *told, "", "", ""])
    return rows


def _ends(ci95: Sequence[float]) -> str:
    return f"{signed(ci95[0])} to {signed(ci95[1])}"
