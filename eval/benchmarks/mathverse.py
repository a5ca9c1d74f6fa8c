"""MathVerse: each problem in versions that move its facts from the text into the figure (2403.14624).

Published figures have a model extract and compare the answers. Here choices are read by rule and free answers compared as
mathematics; a judge sees what cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ...vlm.records import Sample
from ..readers import Row, pictures_of
from ..records import Item
from .base import ScoredRow, TableBenchmark, id_of, letter_of, mean, mean_by, text_of
from .hinted import HintedBenchmark
from .wemath import inline_options

TEXT_ONLY = "Text Only"
_ORDER = re.compile(r"\A(?:Please [^\n]*\n\s*Question:\s*|According to the question shown in the image[^\n]*)")
_IN_PICTURE = "Answer the question that is shown in the image."
_TAILS = {
    True: "\nPlease first conduct reasoning, and then answer the question and provide the correct option letter, "
    "e.g., A, B, C, D, at the end.",
    False: "\nPlease first conduct reasoning, and then answer the question and provide the final value, e.g., 1, 2.5, 300, "
    "at the end.",
}


def _item(row: Row, of: TableBenchmark) -> Item:
    """The version "Vision Only" has question and options in the picture: they are not told here either."""
    question, _, choices = _ORDER.sub("", text_of(row, "question")).partition("Choices:")
    options = inline_options(choices)
    chosen = text_of(row, "question_type").replace("_", "-") == "multi-choice"
    answer = text_of(row, "answer") or None
    if options and answer is not None:
        answer = letter_of(answer, options, row.place)
    sample = Sample(
        id=id_of(row), question=question.strip() or _IN_PICTURE, options=options, answer=answer,
        images=pictures_of(row, of.images), source=of.name,
    )  # fmt: skip
    about = row.get("metadata")
    about = about if isinstance(about, Mapping) else {}
    told = {"version": text_of(row, "problem_version")}
    told |= {level: text_of(row, level) or str(about.get(level) or "") for level in ("subject", "subfield")}
    categories = {level: value for level, value in told.items() if value}
    problem = text_of(row, "problem_index")
    return Item(
        sample, categories, group=f"problem {problem}" if problem else "", kind="choice" if chosen else "maths",
        extra={"tail": _TAILS[chosen]},
    )  # fmt: skip


def by_version(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """``overall``: the mean over the versions with a figure; then each version and each subject."""
    versions = mean_by(rows, "version")
    figures = [value for version, value in versions.items() if version != TEXT_ONLY]
    overall = mean(figures) if figures else mean(float(row["score"]) for row in rows)
    return {"overall": overall, **versions, **mean_by(rows, "subject")}


MATHVERSE = HintedBenchmark(
    name="mathverse",
    title="MathVerse",
    source_note="CaraJ/MathVerse-lmmseval testmini, AI4Math/MathVerse (parquet), MathVerse_MINI*.tsv",
    files=("testmini.parquet", "MathVerse_MINIV.tsv", "MathVerse_MINI.tsv"),
    splits=("testmini", "test"),
    columns={"index": ("sample_index", "id")},
    make=_item,
    total=by_version,
)
