"""Rollouts that teach nothing although they count in their group's baseline: to be compared with and to be learned from are two.

    zero_variance  all rollouts of the group earned the same (DAPO, 2503.14476, section 3.2), or the group has weight 0
    overlong       a limit cut the text off (DAPO, section 3.4): the reward says nothing about what would have come
    void           the rollout ended with neither a valid call nor an answer (SimpleTIR, 2509.02479): its last turn is drift, and
                   drift has exploding gradients

A filtered rollout leaves the loss and the denominators, whatever the reduction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...vlm.records import Group, Rollout, StopReason
from .advantage import has_variance
from .scale import factor
from .settings import GrpoSignal


def rewards_of(group: Group) -> list[float]:
    """The totals of a group's rewards. Raises `ValueError` where one is missing."""
    for index, one in enumerate(group.rollouts):
        if one.reward is None:
            raise ValueError(f"sample {group.sample.id}: grpo needs rewards, and rollout {index} has none")
    return [one.reward.total for one in group.rollouts if one.reward is not None]


def is_void(rollout: Rollout) -> bool:
    """Ended its turn and said no answer that could be read, or was ended for making no valid call."""
    unread = rollout.reward is not None and rollout.reward.outcome == "unparsed"
    return rollout.stop is StopReason.ERRORS or (unread and rollout.stop is StopReason.ANSWERED)


def memorises(group: Group) -> bool:
    """Whether the group learns a given text, so that its rollouts are not compared (DyME, 2506.23061)."""
    return any(one.origin == "injected" for one in group.rollouts)


def reasons(group: Group, settings: GrpoSignal) -> list[str | None]:
    """Why each rollout is filtered, the first reason that holds; None: it teaches. A given text is never filtered."""
    silent = group.weight == 0 or not (memorises(group) or has_variance(rewards_of(group)))
    if settings.filter_zero_variance and silent:
        return ["zero_variance"] * len(group.rollouts)
    return [
        None if one.origin == "injected"
        else "overlong" if settings.filter_overlong and one.stop.truncated
        else "void" if settings.filter_void and is_void(one)
        else None
        for one in group.rollouts
    ]  # fmt: skip


def counts(groups: Sequence[Group], settings: GrpoSignal, prompts: int) -> dict[str, float]:
    """Metrics: rollouts of a step that each filter in use took out, prompts drawn beyond ``prompts``, and the groups' scales."""
    found = Counter(reason for group in groups for reason in reasons(group, settings))
    used = {
        "zero_variance": settings.filter_zero_variance,
        "overlong": settings.filter_overlong,
        "void": settings.filter_void,
    }
    values = {f"grpo/filtered_{name}": float(found[name]) for name, on in used.items() if on}
    if settings.extra_rounds:
        values["grpo/extra_prompts"] = float(len(groups) - prompts)
    if settings.scale is not None:
        factors = [factor(group, settings.scale) for group in groups]
        values["grpo/scale_mean"] = sum(factors) / max(1, len(factors))
        values["grpo/scaled_groups"] = float(sum(one != 1 for one in factors))
    return values
