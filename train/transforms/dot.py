"""Dynamic outlier truncation (DOT, 2601.03969): long answers become wrong where short ones would do.

In a group whose rollouts are all right, with L their lengths in action tokens over all turns:

    T = floor(mean(L) + alpha std(L)), std with G - 1;  a rollout with L - T >= margin keeps its first T action tokens

The cut falls where the T-th action token falls: later turns and what the tools said to them are gone, and so is the reply to the
turn that the cut falls into or ends with, since nothing reads it. The rollout then ends with `StopReason.TURN_TOKENS`, and the
reward is computed anew. It must come before groups without variance are filtered, for these groups have none before it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from ...vlm.records import Group, Rollout, StopReason, Turn
from ...vlm.render import Renderer
from .base import Counts, Tools, is_right
from .settings import DotTransform


class Dot:
    def __init__(self, config: DotTransform) -> None:
        self.config = config
        self.counts = Counts("dot", "groups_all_right", "cut", "cut_tokens", "cut_wrong")

    def apply(self, groups: Sequence[Group], tools: Tools) -> list[Group]:
        """See `Transform.apply`."""
        self.counts.start(tools.step)
        cut = {place: made for place, group in enumerate(groups) if (made := self._cut(group, tools.renderer)) is not None}
        scored = dict(zip(cut, tools.score(list(cut.values())), strict=True))
        for group in scored.values():
            self.counts.add("cut_wrong", sum(one.origin == "edited" and not is_right(one) for one in group.rollouts))
        return [scored.get(place, group) for place, group in enumerate(groups)]

    def metrics(self) -> dict[str, float]:
        """See `Transform.metrics`."""
        return self.counts.values()

    def _cut(self, group: Group, renderer: Renderer) -> Group | None:
        """The group with its long rollouts cut; None where none is."""
        if len(group.rollouts) < 2 or not all(map(is_right, group.rollouts)):
            return None
        self.counts.add("groups_all_right")
        most = limit([one.num_actions for one in group.rollouts], self.config.alpha)
        beyond = {one.index: one.num_actions - most for one in group.rollouts}
        beyond = {index: tokens for index, tokens in beyond.items() if tokens >= self.config.margin_tokens}
        self.counts.add("cut", len(beyond))
        self.counts.add("cut_tokens", sum(beyond.values()))
        if not beyond:
            return None
        rollouts = [shortened(one, most, renderer) if one.index in beyond else one for one in group.rollouts]
        return dataclasses.replace(group, rollouts=tuple(rollouts))


def limit(lengths_G: Sequence[int], alpha: float) -> int:
    """T of the lengths of a group.

    >>> limit([10] * 9 + [110], 2.0)
    83
    """
    return math.floor(statistics.mean(lengths_G) + alpha * statistics.stdev(lengths_G))


def shortened(rollout: Rollout, tokens: int, renderer: Renderer) -> Rollout:
    """The rollout with its first ``tokens`` action tokens (at least 1), as if a limit had ended it there; without a reward."""
    turns: list[Turn] = []
    for turn in rollout.turns:
        ids = turn.action_ids_K[:tokens]
        tokens -= len(ids)
        whole = len(ids) == len(turn.action_ids_K)
        if whole and tokens:
            turns.append(turn)
            continue
        text, stop = (turn.text, turn.stop) if whole else (renderer.decode(ids), StopReason.TURN_TOKENS)
        calls = turn.calls if whole else ()
        logprobs = turn.action_logprobs_K[: len(ids)]
        turns.append(Turn(ids, logprobs, text, stop, None, turn.policy_version, calls))
        break
    return dataclasses.replace(rollout, turns=tuple(turns), stop=StopReason.TURN_TOKENS, reward=None, origin="edited")
