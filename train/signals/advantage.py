"""Group-relative advantages: what a rollout earned beyond its siblings.

Legend: G rollouts of a group.

    mean_std  (r - mean) / (std + 1e-4), std with G - 1 as TRL and verl have it       (DeepSeekMath, 2402.03300, section 4.1)
    mean      r - mean                                                                (Dr. GRPO, 2503.20783)
    rloo      r - mean of the others = (r - mean) G / (G - 1)                         (2402.14740, section 3.2)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_STD_FLOOR = 1e-4
_SAME = 1e-9
"""Rewards closer than this are equal: their difference is the rounding of a sum."""


def has_variance(rewards_G: Sequence[float]) -> bool:
    """Whether some rollout earned more than another."""
    return max(rewards_G) - min(rewards_G) > _SAME


def advantages(rewards_G: Sequence[float], kind: str) -> list[float]:
    """One advantage per rollout; exactly 0 for all when all have earned the same.

    >>> advantages([1.0, 0.0], "mean")
    [0.5, -0.5]
    >>> advantages([1.0, 0.0], "rloo")
    [1.0, -1.0]
    """
    size = len(rewards_G)
    if not has_variance(rewards_G):
        return [0.0] * size
    mean = sum(rewards_G) / size
    centred = [reward - mean for reward in rewards_G]
    if kind == "mean":
        return centred
    if kind == "rloo":
        return [value * size / (size - 1) for value in centred]
    std = math.sqrt(sum(value * value for value in centred) / (size - 1))
    return [value / (std + _STD_FLOOR) for value in centred]
