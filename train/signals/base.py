"""What a signal is: a function from a step's groups to per-token weights. The trainer knows nothing of the method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...vlm.records import Group, Rollout, Signal, View
from ..batch import Stream

ScoreTeacher = Callable[[Sequence[tuple[Rollout, View]]], list[tuple[tuple[float, ...], ...]]]
"""The teacher's log-probs ``[N][K]`` of each rollout's sampled tokens, read under the given view."""


@dataclass(frozen=True)
class Context:
    """What a signal may ask for."""

    score_teacher: ScoreTeacher


class SignalBuilder(Protocol):
    """One method: ``streams`` names its losses, ``build`` weighs the tokens of a step's groups (rewards already set)."""

    def streams(self) -> list[Stream]: ...

    def build(self, groups: Sequence[Group], context: Context) -> list[Signal]: ...


def constant_NK(rollout: Rollout, value: float) -> tuple[tuple[float, ...], ...]:
    """``value`` for every action token."""
    return tuple((value,) * len(turn.action_ids_K) for turn in rollout.turns)
