"""TreeBench (2507.07999): small objects in crowded scenes, with the boxes of what the answer rests on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ...visual_tools.boxes import iou
from ...vlm.records import Box
from ..readers import Row
from ..records import Item
from .base import ScoredRow, TableBenchmark, accuracy, boxes_of, mean, plain_item, with_evidence

_BOX = re.compile(r"<box>\s*\[?([^\[\]<>]{7,120})\]?\s*</box>")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _item(row: Row, of: TableBenchmark) -> Item:
    boxes = boxes_of(row, "target_instances")
    item = plain_item(row, of)
    return replace(with_evidence(item, boxes), extra={**item.extra, "boxes_px_xyxy": [list(box) for box in boxes]})


def boxes_in(text: str) -> list[Box]:
    """The boxes that a text names as ``<box>[x1,y1,x2,y2]</box>``, those without area aside."""
    found = []
    for match in _BOX.findall(text):
        numbers = [float(number) for number in _NUMBER.findall(match)]
        if len(numbers) == 4 and numbers[0] < numbers[2] and numbers[1] < numbers[3]:
            found.append((numbers[0], numbers[1], numbers[2], numbers[3]))
    return found


def grounding(texts: Sequence[str], boxes_px_xyxy: Sequence[Sequence[float]]) -> float:
    """Mean over the evidence boxes of the best IoU that a box of the texts has with each; 0 where none was named."""
    named = [box for text in texts for box in boxes_in(text)]
    best = []
    for given in boxes_px_xyxy:
        target: Box = (given[0], given[1], given[2], given[3])
        best.append(max((iou(box, target) for box in named), default=0.0))
    return mean(best)


def _total(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """Accuracy, overall and by category, and ``mIoU`` over the rows with evidence boxes (``row["extra"]``).

    Boxes in replies are taken as pixels of the original picture, as the benchmark's own prompt asks for them.
    """
    totals = accuracy(rows)
    boxed = [row for row in rows if (row.get("extra") or {}).get("boxes_px_xyxy")]
    if boxed:
        totals["mIoU"] = mean(grounding(row["texts"], row["extra"]["boxes_px_xyxy"]) for row in boxed)
    return totals


TREEBENCH = TableBenchmark(
    name="treebench",
    title="TreeBench",
    source_note="hub: HaochenWang/TreeBench, TreeBench.tsv (also VLMEvalKit)",
    files=("TreeBench.tsv",),
    columns={"options": ("multi-choice options", "choices")},
    tail="\nAnswer with the correct option's letter directly.",
    categories={"category": "category", "l2": "l2-category"},
    make=_item,
    total=_total,
)
