"""MathVista: mathematics in figures, charts, pictures and text, with free and chosen answers (2310.02255).

Free answers are scored by rule: whole numbers as numbers, decimals rounded to the ``precision`` that the question asks for, lists
by their numbers. Published figures have a model extract the answer first. Skills, of which a question has several, are no
category here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...vlm.records import Sample
from ..readers import Row, pictures_of
from ..records import Item
from .base import TableBenchmark, accuracy, id_of, letter_of, lettered, listed, text_of
from .hinted import HintedBenchmark

_ASKED = re.compile(r"\A(?:Hint:[^\n]*\n)?\s*(?:Question:\s*)?(.*?)(?:\n\s*Choices:.*)?\Z", re.DOTALL)
_LEVELS = ("task", "category", "context", "grade")
_DECIMALS = {
    1: "a floating-point number with one decimal place and provide the final value, e.g., 1.2, 1.3, 1.4",
    2: "a floating-point number with two decimal places and provide the final value, e.g., 1.23, 1.34, 1.45",
}
_WHOLE = "an integer answer and provide the final value, e.g., 1, 2, 3"
_LIST = "a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4]"
_CHOICE_HINT = "\nHint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."


def _hint(wanted: str) -> str:
    return f"\nHint: Please answer the question requiring {wanted}, at the end."


def _item(row: Row, of: TableBenchmark) -> Item:
    """VLMEvalKit's file has the whole official query for a question, hint and choices included: both are taken off."""
    found = _ASKED.match(row.text("question"))
    question = found[1].strip() if found else row.text("question")
    unit = text_of(row, "unit")
    if unit and "(Unit:" not in question:
        question += f" (Unit: {unit})"
    options = lettered(listed(row.get("choices")))
    answer, extra, kind = _reference(row, options)
    sample = Sample(
        id=id_of(row), question=question, options=options, answer=answer, images=pictures_of(row, of.images), source=of.name
    )
    about = row.get("metadata")
    about = about if isinstance(about, Mapping) else {}
    told = {level: text_of(row, level) or str(about.get(level) or "") for level in _LEVELS}
    categories = {level: value for level, value in told.items() if value} | {"answer": "choice" if options else kind}
    return Item(sample, categories, kind=kind, extra=extra)


def _reference(row: Row, options: tuple[str, ...]) -> tuple[str | None, dict[str, Any], str]:
    """``(answer, extra, kind)``. The reference of a choice is the text of an option; the test split has none."""
    answer = text_of(row, "answer") or None
    if options:
        if answer is not None:
            same = [index for index, option in enumerate(options) if option == answer]
            answer = chr(ord("A") + same[0]) if same else letter_of(row.get("answer_option") or answer, options, row.place)
        return answer, {"tail": _CHOICE_HINT}, "choice"
    match text_of(row, "answer_type"):
        case "integer":
            return answer, {"tail": _hint(_WHOLE)}, "number"
        case "float":
            digits = int(float(text_of(row, "precision") or _decimals(answer or "")))
            return answer, {"tail": _hint(_DECIMALS.get(digits, _DECIMALS[2])), "precision": digits}, "rounded"
        case "list":
            return answer, {"tail": _hint(_LIST)}, "list"
    return answer, {}, "auto"


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


MATHVISTA = HintedBenchmark(
    name="mathvista",
    title="MathVista",
    source_note="AI4Math/MathVista testmini (parquet), MathVista_MINI.tsv",
    files=("MathVista_MINI.tsv",),
    splits=("testmini", "test"),
    columns={"index": ("pid", "id"), "decoded_image": ("image",)},
    images=("decoded_image",),
    make=_item,
    total=accuracy,
)
