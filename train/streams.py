"""Streams: the named losses of a run, and what each of their rows weighs.

A reduction turns the losses of a step's action tokens into one number. With A the rollouts that teach in the step:

    token      mean over all action tokens
    sequence   mean over rollouts of each rollout's mean (DeepSeekMath, 2402.03300, eq. 3)
    constant   sum over tokens / (rollouts x a fixed length): no bias towards short right answers (Dr. GRPO, 2503.20783)
    balanced   token means of the two signs of the advantage apart, weighted by n+/N and n-/N, their shares of the rollouts; those
               without an advantage are in neither (Balanced Aggregation, 2605.04077)

Every denominator is a sum over **all** signals of the step, so a step cut into micro-batches or spread over ranks has the loss of
the whole (law 6); the totals of ranks add up, name by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..vlm.records import Signal

Reduction = Literal["token", "sequence", "constant", "balanced"]
_NO_SIDE = 1e-9
"""Mean advantages closer to 0 than this are rounding, not a side."""


@dataclass(frozen=True)
class Stream:
    """One named loss: how its rows are weighted, and the settings of its divergence or policy term (see `policy`)."""

    name: str
    weight: float = 1.0
    reduction: Reduction = "token"
    divergence: str = "jsd"
    beta: float = 0.5
    support: Literal["full", "top", "sampled"] = "full"
    top_c: int = 100
    temperature: float = 1.0
    term_clip: float | None = None
    clip_low: float | None = None
    """None: no clipping (the gradient of the sampled-token estimate)."""
    clip_high: float | None = None
    dual_clip: float | None = None
    policy: Literal["clip", "cispo"] = "clip"
    ratio: Literal["token", "sequence"] = "token"
    correction: Literal["none", "truncate", "mask"] = "none"
    correction_level: Literal["token", "sequence"] = "token"
    correction_cap: float = 2.0
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    kl_weight: float = 0.0
    constant_tokens: int | None = None
    """Fixed length of reduction constant; None: the longest rollout that sampling allows."""


Denominators = Mapping[str, float]


def teaches(signal: Signal) -> bool:
    """False for a rollout that a filter has left without any stream."""
    return not (signal.advantages_NK is None and signal.ce_weights_NK is None and signal.kd_weights_NK is None)


def denominators(signals: Sequence[Signal], streams: Mapping[str, Stream], longest_tokens: int | None = None) -> dict[str, float]:
    """What the sums of each stream are divided by, over the whole step.

    Every token of a signal's present stream counts, whatever its weight: a zero advantage is an answer, not an absence.
    ``longest_tokens`` is the most action tokens that a rollout can have. Raises `ValueError` when a constant length is missing.
    """
    totals: dict[str, float] = {}

    def add(key: str, value: float) -> None:
        totals[key] = totals.get(key, 0.0) + value

    for signal in filter(teaches, signals):
        stream = streams[signal.stream]
        if stream.reduction == "sequence":
            add(stream.name, 1)
        elif stream.reduction == "constant":
            length = stream.constant_tokens or longest_tokens
            if length is None:
                raise ValueError(f"stream {stream.name}: reduction constant needs constant_tokens, the length to divide by")
            add(stream.name, length)
        else:
            add(stream.name, signal.rollout.num_actions)
        if stream.reduction == "balanced" and (side := _side(signal)):
            add(f"{stream.name} {side} rollouts", 1)
            add(f"{stream.name} {side} tokens", signal.rollout.num_actions)
    return totals


def row_weight(signal: Signal, stream: Stream, totals: Denominators) -> float:
    """Weight of every row of a signal in its stream's loss, the stream's coefficient included."""
    if stream.reduction == "balanced":
        side = _side(signal)
        if not side:
            return 0.0
        rollouts = {one: totals.get(f"{stream.name} {one} rollouts", 0.0) for one in "+-"}
        return stream.weight * rollouts[side] / sum(rollouts.values()) / totals[f"{stream.name} {side} tokens"]
    return plain_weight(signal, stream, totals)


def plain_weight(signal: Signal, stream: Stream, totals: Denominators) -> float:
    """`row_weight` without regard to the sign of the advantage: what a KL term in the loss weighs (balanced: as token)."""
    unit = stream.weight / totals[stream.name]
    return unit / signal.rollout.num_actions if stream.reduction == "sequence" else unit


def _side(signal: Signal) -> Literal["+", "-", ""]:
    """The sign of a rollout's mean advantage; a given text that is learned by cross-entropy is on the side of its weight."""
    values_NK = signal.ce_weights_NK if signal.advantages_NK is None else signal.advantages_NK
    assert values_NK is not None, "reduction balanced weighs advantages"
    mean = sum(map(sum, values_NK)) / max(1, signal.rollout.num_actions)
    if abs(mean) < _NO_SIDE:
        return ""
    return "+" if mean > 0 else "-"
