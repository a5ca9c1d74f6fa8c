"""DyME (2506.23061): a group without a right rollout memorises, one with some explores, one that is all right rests.

    none right   the first rollout becomes a given text with a cross-entropy weight of 1, which is what advantage 1 at ratio 1
                 comes to; its siblings have advantage 0 and stay in the denominators (`signals.grpo`)
    some right   as it is: group-relative advantages
    all right    weight 0: advantages 0, whatever else the rewards count

Right is the outcome, not the total. Left out: the paper's refiner, a text model that rewrites the hints while the run goes on,
and its visual checker, a reward term that asks such a model; hints are taken as the data has them (``privileged.rationale``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ...datasets.trajectories import Trajectory
from ...vlm.records import Group
from ..collect import fill
from ..script import play_script
from .base import Counts, Tools, is_right
from .settings import DymeTransform


class Dyme:
    def __init__(self, config: DymeTransform) -> None:
        self.config = config
        self.counts = Counts("dyme", "memorise", "explore", "rest", "memorised_wrong")

    def apply(self, groups: Sequence[Group], tools: Tools) -> list[Group]:
        """See `Transform.apply`. Raises `ValueError` for a sample that lacks what the template asks for."""
        self.counts.start(tools.step)
        changed = list(groups)
        injected: dict[int, Group] = {}
        for place, group in enumerate(groups):
            right = sum(map(is_right, group.rollouts))
            self.counts.add("memorise" if not right else "explore" if right < len(group.rollouts) else "rest")
            if not right:
                injected[place] = self._injected(group, tools)
            elif right == len(group.rollouts):
                changed[place] = dataclasses.replace(group, weight=0.0)
        for place, group in zip(injected, tools.score(list(injected.values())), strict=True):
            self.counts.add("memorised_wrong", not is_right(group.rollouts[0]))
            changed[place] = group
        return changed

    def metrics(self) -> dict[str, float]:
        """See `Transform.metrics`. ``memorised_wrong``: texts that the run's own reward does not take for right answers."""
        return self.counts.values()

    def _injected(self, group: Group, tools: Tools) -> Group:
        first = group.rollouts[0]
        script = Trajectory(group.sample, (fill(self.config.template, group.sample, "dyme template"),))
        played = play_script(script, first.view, None, tools.renderer, policy_version=tools.step)
        given = dataclasses.replace(first, turns=played.turns, stop=played.stop, reward=None, origin="injected")
        return dataclasses.replace(group, rollouts=(given, *group.rollouts[1:]))
