"""What a group transform is: it may cut, replace or add rollouts of a group, and says what must be computed anew.

The order of a step: rollouts, rewards, transforms (re-scored where they changed something), selection, advantages, replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...vlm.generate import Engine, Sampling
from ...vlm.records import Group, Rollout, Sample, View
from ...vlm.render import Renderer
from ...vlm.rollout import Rules

Score = Callable[[list[Group]], list[Group]]
Logprobs = Callable[[Sequence[tuple[Rollout, View]]], list[tuple[tuple[float, ...], ...]]]


@dataclass(frozen=True)
class Tools:
    """What a transform may use. ``step`` counts from 0; ``seed`` is the run's.

    ``score`` gives every rollout of the groups its reward anew. ``logprobs`` are the student's log-probs ``[N][K]`` of a
    rollout's tokens under the weights of now and the sampling temperature. ``rules`` says how a sample is played.
    """

    step: int
    seed: int
    engine: Engine
    renderer: Renderer
    sampling: Sampling
    rules: Callable[[Sample], Rules]
    score: Score
    logprobs: Logprobs


class Transform(Protocol):
    """One transform of a recipe."""

    def apply(self, groups: Sequence[Group], tools: Tools) -> list[Group]:
        """The groups in the same order, changed where the method says so. What it did is counted in `metrics`."""
        ...

    def metrics(self) -> dict[str, float]:
        """Counts of the last `apply`."""
        ...
