"""ZoomBench (Zooming without Zooming): questions about a small region, with the crop of it: read once in full and once in crop.

Mode ``direct`` shows the picture and mode ``crop`` its ``crop_image``; the difference of the two is the benchmark's "dual view"
gap.
"""

from __future__ import annotations

from ..readers import Row, pictures_of
from ..records import Item
from .base import TableBenchmark, plain_item, with_evidence


def _item(row: Row, of: TableBenchmark) -> Item:
    return with_evidence(plain_item(row, of), crops=pictures_of(row, ("crop_image",)))


ZOOMBENCH = TableBenchmark(
    name="zoombench",
    title="ZoomBench",
    source_note="hub: inclusionAI/ZoomBench, data/test.parquet",
    files=("ZoomBench.tsv", "zoombench.tsv"),
    columns={
        # the columns were renamed once: query and response became prompt and answer
        "question": ("query", "prompt", "problem"),
        "answer": ("response", "solution", "label"),
        "crop_image": ("crop", "crop_images", "cropped_image"),
    },
    categories={"category": "category", "task": "task"},
    make=_item,
)
