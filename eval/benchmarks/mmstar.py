"""MMStar (2403.20330): 1,500 questions that cannot be answered without the picture, six capabilities."""

from __future__ import annotations

import re
from dataclasses import replace

from ..readers import Row
from ..records import Item
from .base import LETTERS, TableBenchmark, letter_of, plain_item

_OPTIONS = re.compile(r"\s*\bOptions?:\s*(?=A[:.])", re.IGNORECASE)


def split_options(question: str) -> tuple[str, tuple[str, ...]]:
    """``(question, options)`` of "... Options: A: red, B: blue"; no options where the letters do not follow each other.

    >>> split_options("Which?\\nOptions: A: red, B: blue")
    ('Which?', ('red', 'blue'))
    """
    parts = _OPTIONS.split(question, maxsplit=1)
    if len(parts) != 2:
        return question, ()
    rest, options = parts[1][2:], []
    for letter in LETTERS[1:]:
        pieces = re.split(rf"[,;]?\s+{letter}[:.]\s*", rest, maxsplit=1)
        options.append(pieces[0].strip().removesuffix(".").strip())
        if len(pieces) == 1:
            break
        rest = pieces[1]
    return (parts[0].strip(), tuple(options)) if len(options) > 1 and all(options) else (question, ())


def _item(row: Row, of: TableBenchmark) -> Item:
    """The hub's file has the options at the end of the question, VLMEvalKit's in columns."""
    item = plain_item(row, of)
    question, options = ("", ()) if item.sample.options else split_options(item.sample.question)
    if not options or item.sample.answer is None:
        return item
    sample = replace(item.sample, question=question, options=options, answer=letter_of(item.sample.answer, options, row.place))
    return replace(item, sample=sample, kind="choice")


MMSTAR = TableBenchmark(
    name="mmstar",
    title="MMStar",
    source_note="hub: Lin-Chen/MMStar, val (VLMEvalKit: MMStar.tsv)",
    files=("MMStar.tsv",),
    splits=("val", "test"),
    categories={"category": "category", "l2": "l2_category"},
    make=_item,
)
