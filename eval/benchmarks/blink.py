"""BLINK (2404.12390): 14 kinds of questions that people answer at a glance, with one to four pictures each."""

from __future__ import annotations

from ..readers import Row
from ..records import Item
from .base import TableBenchmark, mean_of_parts, plain_item, replaced, text_of, without_choices


def _item(row: Row, of: TableBenchmark) -> Item:
    """The official ``prompt`` says more than ``question`` ("two points are circled ..."); its options are written by the view."""
    item, prompt = plain_item(row, of), text_of(row, "prompt")
    return replaced(item, question=without_choices(prompt)) if prompt else item


BLINK = TableBenchmark(
    name="blink",
    title="BLINK",
    source_note="hub: BLINK-Benchmark/BLINK, a folder for each of its 14 parts, val (VLMEvalKit: BLINK.tsv)",
    files=("BLINK.tsv",),
    columns={"sub_task": ("category", "task"), "index": ("idx", "id")},
    images=("image_1", "image_2", "image_3", "image_4", "image"),
    splits=("val", "validation", "test"),
    categories={"sub_task": "sub_task"},
    make=_item,
    total=mean_of_parts("sub_task"),
)
