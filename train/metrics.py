"""Numbers of a step and of a run, from records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..vlm.records import Group
from .checkpoint import Progress
from .config import RunConfig
from .signals import filters


def of_groups(groups: Sequence[Group]) -> dict[str, float]:
    """Means over a step's rollouts: length, turns, pictures, tool calls, how they stopped, and their rewards term by term."""
    rollouts = [one for group in groups for one in group.rollouts]
    count = max(1, len(rollouts))
    values = {
        "rollout/tokens": sum(one.num_actions for one in rollouts) / count,
        "rollout/turns": sum(len(one.turns) for one in rollouts) / count,
        "rollout/pictures": sum(len(one.pictures) for one in rollouts) / count,
        "rollout/calls": sum(len(one.calls) for one in rollouts) / count,
        "rollout/calls_failed": sum(call.error is not None for one in rollouts for call in one.calls) / count,
    }
    for stop, number in Counter(one.stop.value for one in rollouts).items():
        values[f"stop/{stop}"] = number / count
    rewards = [one.reward for one in rollouts if one.reward is not None]
    if rewards:
        values["reward/total"] = sum(one.total for one in rewards) / len(rewards)
        for name in sorted({name for one in rewards for name in one.terms}):
            values[f"reward/{name}"] = sum(one.terms.get(name, 0.0) for one in rewards) / len(rewards)
        for outcome, number in Counter(one.outcome for one in rewards).items():
            values[f"outcome/{outcome}"] = number / len(rewards)
        values["reward/groups_without_variance"] = sum(
            len({one.reward.total for one in group.rollouts if one.reward}) < 2 for group in groups
        ) / max(1, len(groups))
    return values


def of_filters(groups: Sequence[Group], config: RunConfig) -> dict[str, float]:
    """What the filters of a grpo signal took out of the step; nothing for other runs."""
    return {} if config.grpo is None else filters.counts(groups, config.grpo, config.prompts)


def summary(config: RunConfig, progress: Progress, after: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """What `summary.json` says: accuracy before and after by view, cost, and how to run it again."""
    result: dict[str, Any] = {"name": config.name, "model": config.model.name, "seed": config.seed, "steps": progress.step}
    for label, found in (("before", progress.before), ("after", after)):
        for view, numbers in found.get("views", {}).items():
            result[f"{view}_{label}"] = numbers["accuracy"]
            result.setdefault("ci95", {})[f"{view}_{label}"] = numbers["ci95"]
            result.setdefault("n", {})[view] = numbers["n"]
    result |= {"seconds": round(progress.seconds, 1), "rollouts": progress.rollouts, "action_tokens": progress.action_tokens}
    if progress.best_step is not None:
        result |= {"best_step": progress.best_step, "best_value": progress.best_value}
    result |= {"ended": progress.ended} if progress.ended else {}
    return result | dict(extra)
