"""LongVideoBench: videos of up to an hour, with questions that refer to a moment of them (2407.15754). Frames without subtitles;
the paper's main figures put the subtitles between the frames."""

from __future__ import annotations

from ...datasets.raw_rows import RowError
from ...vlm.records import Sample
from ..readers import Row
from ..records import Item
from .base import LETTER_ONLY, LETTERS, TableBenchmark, categories_of, id_of, lettered, listed, text_of
from .videomme import VideoBenchmark


def _item(row: Row, of: TableBenchmark) -> Item:
    """``correct_choice`` counts from 0; options that a question lacks are "N/A"."""
    assert isinstance(of, VideoBenchmark)
    given = listed(row.get("candidates")) or tuple(row.get(f"option{number}") for number in range(5))
    options = lettered(option for option in given if option not in (None, "", "N/A"))
    right = text_of(row, "correct_choice").removesuffix(".0")
    if right and (not right.isdigit() or int(right) >= len(options)):
        raise RowError(f"{row.place}: correct_choice {right!r} of {len(options)} options", "it counts the options from 0")
    name = row.text("video_path")
    sample = Sample(
        id=id_of(row), question=row.text("question"), options=options, answer=LETTERS[int(right)] if right else None,
        video=of.clip(row, name), source=of.name, kind=text_of(row, "question_category"),
    )  # fmt: skip
    categories = categories_of(row, of.categories)
    if "duration" in categories:
        categories["duration"] = f"up to {categories['duration'].removesuffix('.0')} s"
    return Item(sample, categories, group=f"video {name}", kind="choice")


LONGVIDEOBENCH = VideoBenchmark(
    name="longvideobench",
    title="LongVideoBench",
    source_note="longvideobench/LongVideoBench: lvb_val.json, and the archives extracted to videos/; LongVideoBench.tsv",
    files=("lvb_val.json", "LongVideoBench.tsv"),
    splits=("validation", "val", "test"),
    columns={"index": ("id",)},
    tail=LETTER_ONLY,
    categories={"duration": "duration_group", "question": "question_category", "topic": "topic_category"},
    make=_item,
)
