"""Benchmarks whose official sentence differs from question to question."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Item
from .base import TableBenchmark


@dataclass(kw_only=True)
class HintedBenchmark(TableBenchmark):
    """A table whose items carry their own sentence, ``extra["tail"]``."""

    def prompt_tail(self, item: Item) -> str:
        """The item's own sentence, or the benchmark's."""
        return str(item.extra.get("tail", self.tail))
