"""An anchor keeps a skill: the teacher's weights read the student's own rollouts in the very same view.

With teacher and student alike the divergence is 0; it grows only as the student forgets. Without it a student trained on full
views alone loses its reading of crops.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...vlm.records import Group, Signal
from ..batch import Stream
from ..config import Anchor
from .base import Context, constant_NK


class AnchorSignal:
    def __init__(self, config: Anchor) -> None:
        self.config = config
        self.stream = f"anchor:{config.name}"

    def streams(self) -> list[Stream]:
        return [Stream(self.stream, self.config.weight, "token", self.config.divergence)]

    def build(self, groups: Sequence[Group], context: Context) -> list[Signal]:
        return [
            Signal(rollout, kd_weights_NK=constant_NK(rollout, 1.0), teacher_view=rollout.view, stream=self.stream)
            for group in groups
            for rollout in group.rollouts
        ]
