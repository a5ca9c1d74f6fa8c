"""MME-RealWorld (2408.13257): high-resolution photographs of five domains, five options, the last of which says "not in it"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..readers import Row
from ..records import Item
from .base import ScoredRow, TableBenchmark, mean, mean_by, plain_item, text_of

_TAIL = (
    "\nSelect the best answer to the above multiple-choice question based on the image. Respond with only the letter "
    "(A, B, C, D, or E) of the correct option.\nThe best answer is:"
)
_TAIL_CN = "\n根据图像选择上述多项选择题的最佳答案。只需回答正确选项的字母（A, B, C, D 或 E）。\n最佳答案为："


def _item(row: Row, of: TableBenchmark) -> Item:
    """``category`` is "Perception/Remote Sensing" and so on: half and task."""
    category = text_of(row, "category")
    half = "Perception" if "perception" in category.lower() else "Reasoning"
    task = f"{half}/{category.rpartition('/')[2]}" if "/" in category else half
    levels = {"half": half, "task": task, "l2": text_of(row, "l2-category")}
    return replace(plain_item(row, of), categories={name: value for name, value in levels.items() if value})


def _total(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """Means over questions: of each task, of Perception and Reasoning, and ``overall``; "mean of tasks" weighs tasks equally."""
    halves, tasks = mean_by(rows, "half"), mean_by(rows, "task")
    totals = {"overall": mean(float(row["score"]) for row in rows), "mean of tasks": mean(tasks.values()), **halves}
    for half in halves:
        own = {name: value for name, value in tasks.items() if name.startswith(f"{half}/")}
        totals |= ({f"{half}, mean of tasks": mean(own.values())} if own else {}) | own
    return totals


def _one(suffix: str, title: str, note: str, files: tuple[str, ...], tail: str) -> TableBenchmark:
    return TableBenchmark(
        name=f"mme-realworld{suffix}", title=title, source_note=note, files=files, tail=tail, make=_item, total=_total,
        columns={"image": ("bytes", "image_path", "images"), "options": ("multi-choice options", "choices")},
    )  # fmt: skip


MME_REALWORLD = (
    _one(
        "", "MME-RealWorld", "hub: yifanzhang114/MME-RealWorld-Base64, or MME-RealWorld-Lmms-eval (parquet)",
        ("MME-RealWorld.tsv", "MME_RealWorld.tsv"), _TAIL,
    ),
    _one(
        "-lite", "MME-RealWorld-Lite", "hub: yifanzhang114/MME-RealWorld-lite-lmms-eval (VLMEvalKit: MME-RealWorld-Lite.tsv)",
        ("MME-RealWorld-Lite.tsv", "MME_RealWorld_Lite.tsv"), _TAIL,
    ),
    _one(
        "-cn", "MME-RealWorld-CN", "hub: yifanzhang114/MME-RealWorld-CN-Lmms-eval (VLMEvalKit: MME-RealWorld-CN.tsv)",
        ("MME-RealWorld-CN.tsv", "MME_RealWorld_CN.tsv"), _TAIL_CN,
    ),
)  # fmt: skip
