"""Any table of questions: a TSV, CSV, JSON, JSON-lines or parquet file with options in A, B, C ... or a list, or open answers."""

from __future__ import annotations

from ..readers import Row, pictures_of
from ..records import Item
from .base import TableBenchmark, boxes_of, plain_item, with_evidence


class Custom(TableBenchmark):
    """Columns: question, image (or images, image_path), answer, A B C ... or options; category, l2-category, split, hint;
    boxes_px_xyxy (evidence, pixels) or crop_image. Other names that are common are known too.
    """

    def prompt_tail(self, item: Item) -> str:
        """VLMEvalKit's sentence for multiple choice; none for open questions."""
        return "\nPlease select the correct answer from the options above." if item.sample.options else ""


def _item(row: Row, of: TableBenchmark) -> Item:
    boxes = boxes_of(row, "boxes_px_xyxy", "boxes", "bbox", "bbox_2d", "target_instances")
    crops = pictures_of(row, ("crop_image", "crops"))
    return with_evidence(plain_item(row, of), boxes, crops)


CUSTOM = Custom(
    name="custom",
    title="Custom questions",
    source_note="any table with the columns question, image, answer and A, B, C ... or options",
    columns={"image": ("images", "image_path", "image_1", "bytes"), "crop_image": ("crop_images", "teacher_images")},
    categories={"category": "category", "l2": "l2-category", "split": "split"},
    make=_item,
)
