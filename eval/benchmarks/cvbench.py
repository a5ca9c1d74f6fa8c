"""CV-Bench (Cambrian-1, 2406.16860): counting and relations in ADE20K and COCO, depth and distance in Omni3D."""

from __future__ import annotations

from collections.abc import Sequence

from ..readers import Row
from ..records import Item
from .base import ScoredRow, TableBenchmark, accuracy, mean, mean_by, plain_item, replaced, text_of, without_choices


def _item(row: Row, of: TableBenchmark) -> Item:
    item, prompt = plain_item(row, of), text_of(row, "prompt")
    return replaced(item, question=without_choices(prompt)) if prompt else item


def _total(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """2D is the mean of the sources ADE20K and COCO, 3D that of Omni3D, ``overall`` the mean of the two.

    A copy without the column ``source`` (VLMEvalKit's has one half a file) gives the mean over its rows.
    """
    sources, tasks = mean_by(rows, "source"), mean_by(rows, "task")
    flat = [value for name, value in sources.items() if not name.lower().startswith("omni3d")]
    deep = [value for name, value in sources.items() if name.lower().startswith("omni3d")]
    if not sources:
        return accuracy(rows)
    parts = {name: mean(values) for name, values in (("2D", flat), ("3D", deep)) if values}
    return {"overall": mean(parts.values()), **parts, **sources, **tasks}


CVBENCH = TableBenchmark(
    name="cv-bench",
    title="CV-Bench",
    source_note="hub: nyu-visionx/CV-Bench, test_2d.parquet and test_3d.parquet (VLMEvalKit: CV-Bench-2D.tsv, CV-Bench-3D.tsv)",
    columns={"index": ("idx", "id")},
    categories={"type": "type", "source": "source", "task": "task"},
    make=_item,
    total=_total,
)
