"""Selective sample replay: rollouts with an advantage are learned from again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..vlm.records import Signal
from .replay_settings import ReplaySpec


class Replay:
    def __init__(self, config: ReplaySpec, seed: int) -> None:
        self.config, self.seed = config, seed

    def merge(self, signals: Sequence[Signal], step: int) -> list[Signal]:
        """The signals to learn from in step ``step`` (from 0)."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        raise NotImplementedError
