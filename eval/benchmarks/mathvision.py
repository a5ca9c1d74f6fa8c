"""MATH-Vision: problems of mathematics competitions with their pictures, in five levels and sixteen subjects (2402.14804)."""

from __future__ import annotations

import re

from ...vlm.records import Sample
from ..readers import Row, pictures_of
from ..records import Item
from .base import TableBenchmark, categories_of, id_of, letter_of, options_of, text_of

_PLACEHOLDER = re.compile(r"<image\d*>")


def _item(row: Row, of: TableBenchmark) -> Item:
    """``<image1>`` marks where the one picture stands; figures to choose from lie in it, and the options are then A, B ..."""
    options, images = options_of(row), pictures_of(row, of.images)
    question = _PLACEHOLDER.sub("<image>", row.text("question"))
    if question.count("<image>") != len(images):
        question = question.replace("<image>", "").strip()
    answer = text_of(row, "answer") or None
    if options and answer is not None:
        answer = letter_of(answer, options, row.place)
    sample = Sample(id=id_of(row), question=question, options=options, answer=answer, images=images, source=of.name)
    return Item(sample, categories_of(row, of.categories), kind="choice" if options else "maths")


MATHVISION = TableBenchmark(
    name="mathvision",
    title="MATH-Vision",
    source_note="MathLLMs/MathVision test or testmini (parquet), MathVision.tsv, MathVision_MINI.tsv",
    files=("MathVision.tsv", "MathVision_MINI.tsv"),
    columns={"decoded_image": ("image",), "subject": ("category",)},
    images=("decoded_image",),
    tail='\nPlease solve the problem step by step and put your answer in one "\\boxed{}". '
    'If it is a multiple choice question, only one letter is allowed in the "\\boxed{}".',
    categories={"level": "level", "subject": "subject"},
    make=_item,
)
