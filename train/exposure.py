"""Adaptive teacher exposure: how much of the reference reasoning the teacher sees, learned while training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .signals.distill_settings import ExposureSpec


class Exposure:
    """ATESD (2605.11458)."""

    def __init__(self, config: ExposureSpec, seed: int) -> None:
        self.config, self.seed = config, seed

    def metrics(self) -> dict[str, float]:
        return {}

    def alpha(self, step: int) -> float:
        """The share of the rationale that the teacher sees in step ``step`` (from 0)."""
        raise NotImplementedError

    def observe(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a finished step (number from 0)."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        raise NotImplementedError
