"""HR-Bench (2408.15556): 200 questions about pictures of 4K and 8K, each asked four times with its options moved round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..readers import Row
from ..records import Item, Source
from .base import ItemsOf, ScoredRow, TableBenchmark, mean, mean_by


class HRBench(TableBenchmark):
    """``group`` ties the cycles of one question: the k-th row of a cycle with the same question and options, in file order."""

    def read(self, path: str) -> tuple[Sequence[Item], Source]:
        """The items of a local copy. `ValueError` names file and row."""
        items, source = super().read(path)
        assert isinstance(items, ItemsOf)
        groups: dict[int, str] = {}
        questions: dict[tuple[str, ...], int] = {}
        seen: Counter[tuple[tuple[str, ...], str]] = Counter()
        for number, item in enumerate(items):
            question = (item.sample.question, *sorted(item.sample.options))
            cycle = item.categories.get("cycle", "")
            seen[question, cycle] += 1
            groups[number] = f"q{questions.setdefault(question, len(questions))}-{seen[question, cycle]}"

        def make(row: Row) -> Item:
            return replace(self.make(row, self), group=groups[row.index])

        return ItemsOf(items.rows, make), source


def _total(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """Per category the mean over its cycles' means; ``overall`` is the mean over the categories."""
    totals: dict[str, float] = {}
    for category in dict.fromkeys(str(row["categories"].get("category", "all")) for row in rows):
        own = [row for row in rows if row["categories"].get("category", "all") == category]
        cycles = mean_by(own, lambda row: f"cycle {row['categories'].get('cycle', '0')}")
        totals[category] = mean(cycles.values())
        totals.update({f"{category}, {name}": value for name, value in cycles.items()} if len(cycles) > 1 else {})
    return {"overall": mean(value for name, value in totals.items() if ", cycle" not in name), **totals}


HRBENCH = tuple(
    HRBench(
        name=f"hrbench-{size.lower()}",
        title=f"HR-Bench {size}",
        source_note=f"hub: DreamMr/HR-Bench, hr_bench_{size.lower()}.tsv or .parquet (VLMEvalKit: HRBench{size}.tsv)",
        files=(f"hr_bench_{size.lower()}.tsv", f"HRBench{size}.tsv", f"hr_bench_{size.lower()}.parquet"),
        tail="\nAnswer the option letter directly.",
        categories={"category": "category", "cycle": "cycle_category"},
        total=_total,
    )
    for size in ("4K", "8K")
)
