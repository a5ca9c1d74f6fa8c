"""VisualProbe (Mini-o3, 2509.07969): hard visual search with open answers, in three degrees of difficulty."""

from __future__ import annotations

from .base import TableBenchmark

VISUALPROBE = tuple(
    TableBenchmark(
        name=f"visualprobe-{level.lower()}",
        title=f"VisualProbe {level}",
        source_note=f"hub: Mini-o3/VisualProbe_{level}, val.json beside its pictures; the authors report Avg@32 with a judge",
        files=(f"VisualProbe_{level}", "val.json", "val.jsonl"),
        columns={"image": ("images",), "question": ("problem",), "answer": ("solution",)},
        splits=("val", "test"),
    )
    for level in ("Easy", "Medium", "Hard")
)
