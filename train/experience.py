"""A step's groups with their rewards. With dynamic sampling, prompts are drawn until enough groups teach something."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np

from ..datasets.samplers_expansion import most_balanced
from ..rewards.base import Query
from ..rewards.combine import score_groups
from ..vlm.generate import Engine, Sampling
from ..vlm.records import Group
from ..vlm.render import Renderer
from ..vlm.rollout import derive_seed
from ..vlm.segments import Segment, join
from .collect import Task
from .signals.filters import reasons
from .signals.settings import GrpoSignal


@dataclasses.dataclass(frozen=True)
class Played:
    """A step's experience: the groups to learn from, and all that were played, as they were, in the order of their places."""

    groups: list[Group]
    played: list[Group]


def whole(groups: list[Group]) -> Played:
    """Experience that is learned from as it was played."""
    return Played(groups, groups)


Change = Callable[[list[Group]], list[Group]]


def play(
    task: Task,
    step: int,
    engine: Engine,
    renderer: Renderer,
    grpo: GrpoSignal | None,
    change: Callable[[list[Group], Change], list[Group]] = lambda groups, score: groups,
) -> Played:
    """All groups that step ``step`` played, those that a filter will take out included; ``change`` is what transforms do to
    them, given what scores groups anew.

    Further rounds (DAPO, 2503.14476, section 3.2) draw as many prompts as still lack a group with something to learn, out of the
    range of draws that belongs to the step: a resumed run draws the same. A sampler that asks for more prompts than the step
    learns from says so beforehand (GLM-4.1V-Thinking, 2507.01006): of these the most balanced are kept, as transforms leave them.
    """
    if grpo is None:
        groups = task.play(step, engine, renderer)
        return whole(groups)
    groups, before = list[Group](), list[Group]()
    missing = drawn = task.sampler.draws(task.prompts)
    if drawn > task.prompts and grpo.extra_rounds:
        raise ValueError("curriculum.expansion and grpo.extra_rounds both draw prompts beyond the step's; remove one of them")

    def score(groups: list[Group]) -> list[Group]:
        return score_groups(groups, grpo.reward, lambda queries: continued(queries, engine, renderer))

    for _ in range(1 + grpo.extra_rounds):
        played = task.play(step, engine, renderer, range(len(before), len(before) + missing), score)
        before += played
        groups += change(played, score)
        missing = task.prompts - sum(None in reasons(group, grpo) for group in groups)
        if missing <= 0:
            break
    if drawn > task.prompts:
        groups = most_balanced(groups, task.prompts)
    return Played(shuffled(groups, derive_seed(task.seed, step, "shuffle")) if grpo.shuffle else groups, before)


def continued(queries: Sequence[Query], engine: Engine, renderer: Renderer) -> list[str]:
    """What the model writes next, greedily, behind each chat and the beginning of its reply."""
    texts: dict[int, str] = {}
    for length in {query.max_new_tokens for query in queries}:
        chosen = [place for place, query in enumerate(queries) if query.max_new_tokens == length]
        contexts = []
        for place in chosen:
            ids = np.asarray(renderer.encode(queries[place].prefix), np.int64)
            begun = Segment(ids, np.tile(np.arange(len(ids)), (3, 1)), len(ids))
            contexts.append(join((renderer.prompt(queries[place].messages), begun)))
        done = engine.generate(contexts, [[0]] * len(contexts), Sampling(temperature=0.0, max_new_tokens=length))
        texts |= {place: renderer.decode(one.ids) for place, (one,) in zip(chosen, done, strict=True)}
    return [texts[place] for place in range(len(queries))]


def shuffled(groups: list[Group], seed: int) -> list[Group]:
    """Every group with the rewards of another one: as many groups teach something as before, and nothing that is true.

    `ValueError` for groups of different sizes.
    """
    sizes = {len(group.rollouts) for group in groups}
    if len(sizes) > 1:
        raise ValueError(
            f"grpo.shuffle: rewards go from group to group, and groups have {min(sizes)} to {max(sizes)} rollouts; remove "
            "shuffle, or what makes them unequal (curriculum.kind: duet)"
        )
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    giver = {place: order[at - 1] for at, place in enumerate(order)}
    dealt = []
    for place, group in enumerate(groups):
        rewards = [one.reward for one in groups[giver[place]].rollouts]
        rollouts = tuple(dataclasses.replace(one, reward=reward) for one, reward in zip(group.rollouts, rewards, strict=True))
        dealt.append(dataclasses.replace(group, rollouts=rollouts))
    return dealt
