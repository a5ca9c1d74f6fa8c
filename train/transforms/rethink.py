"""Forced rethinking (VL-Rethinker, 2504.08837): rollouts go on behind "Wait", and are replaced where that ends in a right answer.

    ids of the answer (all, or those up to a cut)  +  ids of a trigger  +  ids sampled behind them

Rollouts have one turn. A cut in the text falls on the border of a token at or before it, since ids are never tokenized
again. The edited rollout has the log-probs of the weights of now, for all its tokens: it is what the policy would have had to say
by itself.

Everything is known by the rollout's group and index, never by its place in a list of continuations: the released code counts
along the kept ones into the rewards of all, which gives rewards to the wrong rollouts once one is dropped.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from ...vlm.generate import Completion, Sampling
from ...vlm.records import Group, Rollout, StopReason, Turn
from ...vlm.render import Renderer
from ...vlm.rollout import derive_seed
from ...vlm.segments import Segment, join
from .base import Counts, Tools, is_right
from .settings import RethinkTransform


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A rollout of the group at ``place``, and the ids with which its turn begins anew."""

    place: int
    rollout: Rollout
    prefix_ids: tuple[int, ...]


class Rethink:
    def __init__(self, config: RethinkTransform) -> None:
        self.config = config
        dropped = ("dropped_length", "dropped_waits", "dropped_wrong", "dropped_quota")
        self.counts = Counts("rethink", "asked", "cut", "replaced", "was_wrong", *dropped)

    def apply(self, groups: Sequence[Group], tools: Tools) -> list[Group]:
        """See `Transform.apply`."""
        self.counts.start(tools.step)
        plans = [plan for place, group in enumerate(groups) for plan in self._plans(place, group, tools)]
        self.counts.add("asked", len(plans))
        tried: dict[int, dict[int, Rollout]] = {}
        for plan, completion in zip(plans, self._complete(plans, tools), strict=True):
            total = tools.rules(groups[plan.place].sample).limits.total_tokens
            if (made := self._made(plan, completion, tools, total)) is not None:
                tried.setdefault(plan.place, {})[made.index] = made
        changed = list(groups)
        places = list(tried)
        trials = tools.score([_replaced(groups[place], tried[place]) for place in places])
        unsettled = []
        for place, trial in zip(places, trials, strict=True):
            accepted = self._accepted(groups[place], trial, tried[place])
            if len(accepted) == len(tried[place]):
                changed[place] = trial
            elif accepted:
                changed[place] = _replaced(groups[place], accepted)
                unsettled.append(place)
        # a term may compare siblings, and those of these groups are not the ones that were scored
        for place, group in zip(unsettled, tools.score([changed[place] for place in unsettled]), strict=True):
            changed[place] = group
        return _with_logprobs(changed, places, tools)

    def metrics(self) -> dict[str, float]:
        """See `Transform.metrics`."""
        return self.counts.values()

    def _plans(self, place: int, group: Group, tools: Tools) -> list[_Plan]:
        right = [is_right(one) for one in group.rollouts]
        easy = sum(right) / len(right) > self.config.easy
        plans = []
        for rollout, was_right in zip(group.rollouts, right, strict=True):
            draw = random.Random(derive_seed(tools.seed, "rethink", rollout.group_id, rollout.index))
            room = tools.sampling.max_new_tokens - rollout.num_actions
            unfinished = rollout.stop is not StopReason.ANSWERED or rollout.origin != "sampled" or room < self.config.room_tokens
            if unfinished or (easy and not was_right) or draw.random() < self.config.skip:
                continue
            plans.append(_Plan(place, rollout, self._prefix(rollout, was_right, draw, tools.renderer)))
        return plans

    def _prefix(self, rollout: Rollout, was_right: bool, draw: random.Random, renderer: Renderer) -> tuple[int, ...]:
        c, (turn,) = self.config, rollout.turns
        ids = turn.action_ids_K
        while ids and ids[-1] in renderer.stop_ids:
            ids = ids[:-1]
        if draw.random() < c.cut:
            ids = cut_ids(ids, renderer.token_bytes(ids), c)
            self.counts.add("cut")
        if draw.random() < c.neutral:
            trigger = draw.choices(list(c.neutral_triggers), list(c.neutral_triggers.values()))[0]
        else:
            trigger = c.right_trigger if was_right else c.wrong_trigger
        return (*ids, *renderer.encode(trigger))

    def _complete(self, plans: Sequence[_Plan], tools: Tools) -> list[Completion]:
        if not plans:
            return []
        contexts, seeds = [], []
        for plan in plans:
            one = plan.rollout
            ids = np.asarray(plan.prefix_ids, np.int64)
            begun = Segment(ids, np.tile(np.arange(len(ids)), (3, 1)), len(ids))
            contexts.append(join((tools.renderer.prompt(one.view.messages, one.sample_id), begun)))
            seeds.append([derive_seed(tools.seed, "rethought", one.group_id, one.index)])
        sampling = Sampling(self.config.temperature, tools.sampling.top_p, tools.sampling.top_k, self.config.most_tokens)
        return [done for (done,) in tools.engine.generate(contexts, seeds, sampling)]

    def _made(self, plan: _Plan, completion: Completion, tools: Tools, total_tokens: int | None) -> Rollout | None:
        """The edited rollout, without log-probs; None where the continuation is too short, too long or waits too often."""
        c, ids = self.config, (*plan.prefix_ids, *completion.ids)
        limit = tools.sampling.max_new_tokens if total_tokens is None else min(total_tokens, tools.sampling.max_new_tokens)
        fits = c.least_tokens < len(completion.ids) < c.most_tokens and len(ids) <= limit
        if not fits or completion.stop is not StopReason.ANSWERED:
            self.counts.add("dropped_length")
            return None
        text = tools.renderer.decode(completion.ids).lower()
        if 1 + sum(text.count(wait) for wait in c.waits) > c.most_waits:
            self.counts.add("dropped_waits")
            return None
        turn = Turn(ids, (0.0,) * len(ids), tools.renderer.decode(ids), StopReason.ANSWERED, None, tools.step)
        return dataclasses.replace(plan.rollout, turns=(turn,), reward=None, origin="edited")

    def _accepted(self, group: Group, trial: Group, tried: dict[int, Rollout]) -> dict[int, Rollout]:
        """Those of the scored continuations that are kept, by the index of their rollouts."""
        was_right = {one.index: is_right(one) for one in group.rollouts}
        accepted: dict[int, Rollout] = {}
        for one in trial.rollouts:
            if one.index not in tried:
                continue
            if not is_right(one):
                self.counts.add("dropped_wrong")
            elif len(accepted) == self.config.most_per_prompt:
                self.counts.add("dropped_quota")
            else:
                accepted[one.index] = one
                self.counts.add("was_wrong", not was_right[one.index])
        self.counts.add("replaced", len(accepted))
        return accepted


def cut_ids(ids: tuple[int, ...], bytes_K: Sequence[bytes], config: RethinkTransform) -> tuple[int, ...]:
    """As many of the first ids as spell no more than the text before the cut, and no half of a character."""
    text = b"".join(bytes_K)
    end = cut_place(text, config)
    borders = [0]
    for piece in bytes_K:
        borders.append(borders[-1] + len(piece))
    inside = [number for number, at in enumerate(borders) if at <= end and (at == len(text) or text[at] & 0xC0 != 0x80)]
    return ids[: inside[-1]]


def cut_place(text: bytes, config: RethinkTransform) -> int:
    """Where a UTF-8 text is cut: before the marks in the settings one after the other, then before the last blank line.

    >>> cut_place(b"One.\\n\\nTwo. Wait, \\\\boxed{3}", RethinkTransform(kind="rethink"))
    4
    """
    kept = text
    for mark in config.cut_before_last:
        at = kept.rfind(mark.encode())
        kept = kept if at < 0 else kept[:at]
    for mark in config.cut_before_first:
        at = kept.lower().find(mark.lower().encode())
        kept = kept if at < 0 else kept[:at]
    at = kept.rfind(b"\n\n")
    return len((kept if at < 0 else kept[:at]).rstrip())


def _replaced(group: Group, rollouts: dict[int, Rollout]) -> Group:
    """The group with these rollouts in place of those of the same index."""
    return dataclasses.replace(group, rollouts=tuple(rollouts.get(one.index, one) for one in group.rollouts))


def _with_logprobs(groups: list[Group], places: Sequence[int], tools: Tools) -> list[Group]:
    """The groups with log-probs of now in the edited rollouts of those at ``places``."""
    chosen = [one for place in places for one in groups[place].rollouts if one.origin == "edited"]
    if not chosen:
        return groups
    found = dict(zip(map(_key, chosen), tools.logprobs([(one, one.view) for one in chosen]), strict=True))
    for place in places:
        taught = {one.index: _scored(one, found[_key(one)]) for one in groups[place].rollouts if _key(one) in found}
        groups[place] = _replaced(groups[place], taught)
    return groups


def _key(rollout: Rollout) -> tuple[str, int]:
    return rollout.group_id, rollout.index


def _scored(rollout: Rollout, logprobs_NK: tuple[tuple[float, ...], ...]) -> Rollout:
    turns = zip(rollout.turns, logprobs_NK, strict=True)
    return dataclasses.replace(rollout, turns=tuple(dataclasses.replace(turn, action_logprobs_K=row_K) for turn, row_K in turns))
