"""What a signal is: a function from a step's groups to per-token weights. The trainer knows nothing of the method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ...vlm.records import Group, Rollout, Sample, Signal, View
from ..streams import Stream

ScoreTeacher = Callable[[Sequence[tuple[Rollout, View]]], list[tuple[tuple[float, ...], ...]]]
"""The teacher's log-probs ``[N][K]`` of each rollout's sampled tokens, read under the given view."""
ToolsPrompt = Callable[[Sample], str | None]
"""The system prompt that offers a sample's tools; None: it has none."""
TokenBytes = Callable[[Sequence[int]], list[bytes]]
"""The bytes that each token stands for; together they are the text."""
Measure = Callable[[Sequence[tuple[Rollout, View]], Stream, Literal["entropy", "divergence"]], list[list[list[float]]]]
"""``[N][K]`` of each rollout before the update, in nats: the student's entropy, or a stream's divergence to the teacher."""


def _unasked(*asked: object) -> list[object]:
    raise AssertionError("this context was made for signals that do not ask for it")


@dataclass(frozen=True)
class Context:
    """What a signal may ask for. ``step`` counts from 0."""

    score_teacher: ScoreTeacher
    step: int = 0
    tools_prompt: ToolsPrompt = _unasked  # type: ignore[assignment]
    token_bytes: TokenBytes = _unasked  # type: ignore[assignment]
    measure: Measure = _unasked  # type: ignore[assignment]
    score_reference: ScoreTeacher | None = None
    """What a KL term holds the student to; None: the teacher's weights."""


class SignalBuilder(Protocol):
    """One method: ``streams`` names its losses, ``build`` weighs the tokens of a step's groups (rewards already set)."""

    def streams(self) -> list[Stream]: ...

    def build(self, groups: Sequence[Group], context: Context) -> list[Signal]: ...


def constant_NK(rollout: Rollout, value: float) -> tuple[tuple[float, ...], ...]:
    """``value`` for every action token."""
    return tuple((value,) * len(turn.action_ids_K) for turn in rollout.turns)
