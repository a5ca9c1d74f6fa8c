"""Supervised fine-tuning: minus the log-prob of scripted actions under the student's view."""

from __future__ import annotations

from collections.abc import Sequence

from ...vlm.records import Group, Signal
from ..batch import Stream
from .base import Context, constant_NK
from .settings import SftSignal


class Sft:
    """Cross-entropy on the action tokens. What was left out: no packing across samples of one picture, no label smoothing."""

    def __init__(self, config: SftSignal) -> None:
        self.config = config

    def streams(self) -> list[Stream]:
        return [Stream("sft", self.config.weight, self.config.reduction)]

    def build(self, groups: Sequence[Group], context: Context) -> list[Signal]:
        return [
            Signal(rollout, ce_weights_NK=constant_NK(rollout, 1.0), stream="sft")
            for group in groups
            for rollout in group.rollouts
        ]
