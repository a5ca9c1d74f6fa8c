"""MMVP: pairs of pictures that look alike to CLIP, each with the same question and the other answer (2401.06209)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...vlm.records import Sample
from ..readers import Row, picture_of, pictures_of
from ..records import Item
from .base import LETTER_ONLY, ScoredRow, TableBenchmark, id_of, letter_of, mean, options_of

_MARKED = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|\Z)", re.DOTALL | re.IGNORECASE)


def _item(row: Row, of: TableBenchmark) -> Item:
    """``Questions.csv`` writes options as "(a) Open (b) Closed" and has no column of pictures: they are named by its Index."""
    options = options_of(row)
    if len(options) < 2:
        options = tuple(text for _, text in _MARKED.findall(row.text("options")))
    images = pictures_of(row) if row.columns("image") else (picture_of(f"MMVP Images/{id_of(row)}.jpg", row, "picture"),)
    sample = Sample(
        id=id_of(row), question=row.text("question"), options=options, answer=letter_of(row.text("answer"), options, row.place),
        images=images, source=of.name,
    )  # fmt: skip
    return Item(sample, group=f"pair {_number(row) // 2}", kind="choice")


def _number(row: Row) -> int:
    """The question's place in the official order, from 0: pairs are neighbours there."""
    return int(str(row["Index"])) - 1 if row.get("Index") is not None else row.index


def pairs(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """``overall``: share of pairs with both questions right; ``questions``: of questions. Halves of pairs are left out of the
    first."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(float(row["score"]))
    whole = [scores for group, scores in groups.items() if group and len(scores) == 2]
    return {"overall": mean(min(scores) for scores in whole), "questions": mean(float(row["score"]) for row in rows)}


MMVP = TableBenchmark(
    name="mmvp",
    title="MMVP",
    source_note="MMVP/MMVP: Questions.csv beside 'MMVP Images'; MMVP.tsv; lmms-lab-eval/MMVP (two pairs of references mended)",
    files=("Questions.csv", "MMVP.tsv"),
    columns={"index": ("Index", "id"), "answer": ("Correct Answer",), "options": ("Options",), "question": ("Question",)},
    tail=LETTER_ONLY,
    categories={},
    make=_item,
    total=pairs,
)
