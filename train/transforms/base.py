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


class Counts:
    """What a transform did in a step: sums over all of the step's calls, each name from 0."""

    def __init__(self, prefix: str, *names: str) -> None:
        self._prefix, self._names, self._step = prefix, names, -1
        self._sums = dict.fromkeys(names, 0.0)

    def start(self, step: int) -> None:
        """A call in step ``step`` begins; dynamic sampling makes several of them."""
        if step != self._step:
            self._step, self._sums = step, dict.fromkeys(self._names, 0.0)

    def add(self, name: str, number: float = 1.0) -> None:
        self._sums[name] += number

    def values(self) -> dict[str, float]:
        return {f"{self._prefix}/{name}": value for name, value in self._sums.items()}


def is_right(rollout: Rollout) -> bool:
    """Whether the answer is right, whatever else the reward counts. Raises `ValueError` without a reward."""
    if rollout.reward is None:
        raise ValueError(f"rollout {rollout.group_id}/{rollout.index}: a transform looks at outcomes, and it has no reward")
    return rollout.reward.outcome == "right"


class Transform(Protocol):
    """One transform of a recipe."""

    def apply(self, groups: Sequence[Group], tools: Tools) -> list[Group]:
        """The groups in the same order, changed where the method says so. What it did is counted in `metrics`."""
        ...

    def metrics(self) -> dict[str, float]:
        """Counts of the last step in which `apply` was called."""
        ...
