"""A step's groups with their rewards. With dynamic sampling, prompts are drawn until enough groups teach something."""

from __future__ import annotations

import dataclasses
import random

from ..rewards.combine import score_group
from ..vlm.generate import Engine
from ..vlm.records import Group
from ..vlm.render import Renderer
from ..vlm.rollout import derive_seed
from .collect import Task
from .signals.filters import reasons
from .signals.settings import GrpoSignal


def play(task: Task, step: int, engine: Engine, renderer: Renderer, grpo: GrpoSignal | None) -> list[Group]:
    """All groups that step ``step`` played, those that a filter will take out included.

    Further rounds (DAPO, 2503.14476, section 3.2) draw as many prompts as still lack a group with something to learn, out of the
    range of draws that belongs to the step: a resumed run draws the same.
    """
    if grpo is None:
        return task.play(step, engine, renderer)
    groups: list[Group] = []
    missing = task.prompts
    for _ in range(1 + grpo.extra_rounds):
        played = task.play(step, engine, renderer, range(len(groups), len(groups) + missing))
        groups += [score_group(group, grpo.reward) for group in played]
        missing = task.prompts - sum(None in reasons(group, grpo) for group in groups)
        if missing <= 0:
            break
    return shuffled(groups, derive_seed(task.seed, step, "shuffle")) if grpo.shuffle else groups


def shuffled(groups: list[Group], seed: int) -> list[Group]:
    """The groups with all their rewards dealt out anew, across groups: what a run learns from them is not in the rewards."""
    rewards = [one.reward for group in groups for one in group.rollouts]
    random.Random(seed).shuffle(rewards)
    dealt = iter(rewards)
    return [
        Group(group.sample, tuple(dataclasses.replace(one, reward=next(dealt)) for one in group.rollouts)) for group in groups
    ]
