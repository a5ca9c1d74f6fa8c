"""RealWorldQA (xAI): 765 photographs, many from vehicles; options, where there are any, stand in the question."""

from __future__ import annotations

from .base import TableBenchmark

REALWORLDQA = TableBenchmark(
    name="realworldqa",
    title="RealWorldQA",
    source_note="hub: lmms-lab/RealWorldQA (parquet), or VLMEvalKit's RealWorldQA.tsv",
    files=("RealWorldQA.tsv",),
)
"""Its sentences ("Please answer directly with ...") are part of the file; without options they stay in the question."""
