"""Rl and distillation on the same tokens: added (KDRL), or the one giving way to the other (TRACE).

Added is what a step does by itself: two signals, two streams, each with its own weight and denominator. Convex scales the
advantages: policy losses are homogeneous in them, so a share of the advantage is that share of the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ...vlm.records import Signal
from .distill_settings import DistillSignal
from .schedule import share
from .settings import GrpoSignal, SftSignal


def mixed(signals: Sequence[Signal], configs: Sequence[SftSignal | DistillSignal | GrpoSignal], step: int) -> list[Signal]:
    """The signals of all builders of a step (counted from 0), mixed as the recipe says."""
    mixed = list(signals)
    for config in configs:
        if isinstance(config, DistillSignal) and config.mix == "convex":
            mixed = convex(mixed, "distill", share(config.weight, step))
    return mixed


def convex(signals: Sequence[Signal], stream: str, share: float) -> list[Signal]:
    """Advantages times ``1 - share`` on every token that ``stream`` distils; all else as it is.

    TRACE (2605.10194): share is lam_k / w0, so that the loss of a span token is (1 - lam_k / w0) policy term + lam_k D.
    """
    distilled = {_key(one): one.kd_weights_NK for one in signals if one.stream == stream and one.kd_weights_NK is not None}
    if not 0 <= share <= 1:
        raise ValueError(f"mix: a share of {share} is not between 0 and 1")
    return [_scaled(one, distilled.get(_key(one)), 1 - share) for one in signals]


def _key(signal: Signal) -> tuple[str, int]:
    return signal.rollout.group_id, signal.rollout.index


def _scaled(signal: Signal, weights_NK: tuple[tuple[float, ...], ...] | None, factor: float) -> Signal:
    if signal.advantages_NK is None or weights_NK is None or factor == 1:
        return signal
    advantages_NK = tuple(
        tuple(advantage * factor if weight else advantage for advantage, weight in zip(*rows, strict=True))
        for rows in zip(signal.advantages_NK, weights_NK, strict=True)
    )
    return dataclasses.replace(signal, advantages_NK=advantages_NK)
