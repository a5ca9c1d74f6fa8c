"""POPE: is this object in the picture? Yes or no, with absent objects drawn at random, from popular ones, or adversarially
(2305.10355)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...datasets.raw_rows import RowError
from ..readers import Row
from ..records import Item
from .base import ScoredRow, TableBenchmark, mean, plain_item, replaced


def _item(row: Row, of: TableBenchmark) -> Item:
    item = plain_item(row, of)
    answer = (item.sample.answer or "").casefold()
    if answer not in ("yes", "no"):
        raise RowError(f"{row.place}: the answer {item.sample.answer!r}", "expected yes or no")
    return replace(replaced(item, answer=answer), kind="yes_no")


def _said(row: ScoredRow) -> str | None:
    """What was answered, by the outcome: a judged reply is no bare word. None: nothing that counts."""
    gold = str(row["gold"])
    if row["outcome"] == "right":
        return gold
    return {"yes": "no", "no": "yes"}[gold] if row["outcome"] == "wrong" and not row.get("runaway") else None


def _numbers(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """ "yes" is what is looked for. A reply that says neither is no "yes": it takes from recall, not from precision."""
    found = [(str(row["gold"]), _said(row)) for row in rows]
    hits, said = found.count(("yes", "yes")), sum(answer == "yes" for _, answer in found)
    there = sum(gold == "yes" for gold, _ in found)
    precision, recall = hits / said if said else 0.0, hits / there if there else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    share = said / len(rows) if rows else 0.0
    accuracy = mean(float(row["score"]) for row in rows)
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1, "yes ratio": share}


def total(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """``overall`` (accuracy), precision, recall, F1 and the share of "yes" among the replies; then all five for each category.

    VLMEvalKit's file lists several categories of one question, parted by commas: it counts in each of them.
    """
    by_category: dict[str, list[ScoredRow]] = {}
    for row in rows:
        for name in str(row["categories"].get("category", "")).split(","):
            by_category.setdefault(name.strip(), []).append(row)
    by_category.pop("", None)
    every = _numbers(rows)
    totals = {"overall": every["accuracy"], **every}
    for category, own in by_category.items():
        totals |= {f"{category}: {name}": value for name, value in _numbers(own).items()}
    return totals


POPE = TableBenchmark(
    name="pope",
    title="POPE",
    source_note="lmms-lab/POPE (parquet), POPE.tsv",
    files=("POPE.tsv",),
    columns={"index": ("id", "question_id")},
    tail="\nAnswer the question using a single word or phrase.",
    make=_item,
    total=total,
)
