"""Group-relative policy optimisation in its plain form (DeepSeekMath, 2402.03300, section 4.1), without a KL term.

Advantage of a rollout: its reward minus the group's mean, divided by the group's standard deviation (scale: std; with G - 1 as
TRL and verl have it, plus 1e-4 so that a group of equals gives zeros) or not (scale: none). Every action token gets it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...vlm.records import Group, Signal
from ..batch import Stream
from .base import Context, constant_NK
from .settings import GrpoSignal

_STD_FLOOR = 1e-4


class Grpo:
    def __init__(self, config: GrpoSignal) -> None:
        self.config = config

    def streams(self) -> list[Stream]:
        c = self.config
        return [Stream("grpo", c.weight, c.reduction, clip_low=c.clip_low, clip_high=c.clip_high)]

    def build(self, groups: Sequence[Group], context: Context) -> list[Signal]:
        signals = []
        for group in groups:
            rewards_G = [_total(group, index) for index in range(len(group.rollouts))]
            for rollout, advantage in zip(group.rollouts, advantages(rewards_G, self.config.scale), strict=True):
                signals.append(Signal(rollout, advantages_NK=constant_NK(rollout, advantage), stream="grpo"))
        return signals


def _total(group: Group, index: int) -> float:
    reward = group.rollouts[index].reward
    if reward is None:
        raise ValueError(f"sample {group.sample.id}: grpo needs rewards, and rollout {index} has none")
    return reward.total


def advantages(rewards_G: Sequence[float], scale: str) -> list[float]:
    """Group-relative advantages.

    >>> advantages([1.0, 0.0], "none")
    [0.5, -0.5]
    """
    mean = sum(rewards_G) / len(rewards_G)
    centred = [reward - mean for reward in rewards_G]
    if scale == "none":
        return centred
    std = math.sqrt(sum(value * value for value in centred) / (len(centred) - 1))
    return [value / (std + _STD_FLOOR) for value in centred]
