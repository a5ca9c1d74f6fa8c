"""What a run knows of each prompt: how often it was drawn and played, how often it was right, how long its rollouts were.

In memory every prompt of the data has a row of some 50 bytes; saved are the rows of prompts that were drawn:

    table.npz   the columns of `PromptTable`, and ``index``, the place in the data
    ids.json    their sample ids in the same order
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..vlm.records import Group, Rollout, Sample

_STD_FLOOR = 1e-4


@dataclass(frozen=True)
class Outcome:
    """What a group says about its prompt: rollouts in all, those that are right or wrong, those that are right; their tokens in
    all; ``spread``, the standard deviation of `pull`, None without two rewards."""

    rollouts: int
    scored: int
    right: int
    tokens: int
    spread: float | None

    @property
    def rate(self) -> float | None:
        """Share of right rollouts; None: no rollout is right or wrong."""
        return self.right / self.scored if self.scored else None

    @property
    def mixed(self) -> bool:
        """Some rollouts are right and some are not."""
        return 0 < self.right < self.scored


def outcome_of(group: Group) -> Outcome:
    """A group in numbers. An answer that could not be read is wrong; without a reference answer a rollout counts as neither."""
    outcomes = [one.reward.outcome for one in group.rollouts if one.reward is not None]
    scored = len(outcomes) - outcomes.count("unscored")
    tokens = sum(one.num_actions for one in group.rollouts)
    return Outcome(len(group.rollouts), scored, outcomes.count("right"), tokens, spread_of(group.rollouts))


def spread_of(rollouts: Sequence[Rollout]) -> float | None:
    """DUET's surrogate of a prompt's gradient noise: the standard deviation (with G - 1) over its rollouts of A x sum log p, A
    being the centred rewards divided by their standard deviation. None without two rewards."""
    rewards_G = np.array([one.reward.total for one in rollouts if one.reward is not None])
    if len(rewards_G) < 2 or len(rewards_G) < len(rollouts):
        return None
    logprobs_G = np.array([math.fsum(value for turn in one.turns for value in turn.action_logprobs_K) for one in rollouts])
    advantages_G = (rewards_G - rewards_G.mean()) / (rewards_G.std(ddof=1) + _STD_FLOOR)
    return float((advantages_G * logprobs_G).std(ddof=1))


class PromptTable:
    """A row for each of ``num`` prompts, by place in the data. ``decay``: what ``rate`` keeps of its past at each visit.

    Columns, each an array ``[num]``:

    - ``drawn``: times that the prompt was drawn, ``rollouts`` played and ``scored``, those of them that were right or wrong;
    - ``rate``: running mean of the share of right rollouts, meaningful where ``scored`` is above 0;
    - ``last_step``: the step (from 0) that last played it, -1: none;
    - ``tokens``: mean length of its rollouts in action tokens;
    - ``spread``, ``spreads``: mean of `spread_of`, and of how many visits;
    - ``tier``, ``hint``: the tier and the level of help that a sampler gives it.
    """

    COLUMNS = ("drawn", "rollouts", "scored", "rate", "last_step", "tokens", "spread", "spreads", "tier", "hint")

    def __init__(self, num: int, decay: float = 0.5) -> None:
        self.num, self.decay = num, decay
        self.ids: dict[int, str] = {}
        """Sample ids of the prompts that were drawn."""
        self.drawn, self.rollouts, self.scored, self.spreads = (np.zeros(num, np.int32) for _ in range(4))
        self.rate, self.tokens, self.spread = (np.zeros(num) for _ in range(3))
        self.last_step = np.full(num, -1, np.int32)
        self.tier, self.hint = np.zeros(num, np.int8), np.zeros(num, np.int16)

    def check(self, index: int, sample: Sample) -> None:
        """`ValueError` when another sample stood at this place before."""
        known = self.ids.get(index, sample.id)
        if known != sample.id:
            raise ValueError(
                f"prompt table: sample {index} of the data was {known} and is {sample.id}; go on with the same data, or start "
                "afresh"
            )

    def observe(self, step: int, index: int, sample: Sample, seen: Outcome) -> None:
        """Take in what a step saw of a prompt."""
        self.check(index, sample)
        self.ids[index] = sample.id
        before, self.last_step[index] = int(self.rollouts[index]), step
        self.drawn[index] += 1
        self.rollouts[index] += seen.rollouts
        self.tokens[index] += (seen.tokens - seen.rollouts * self.tokens[index]) / (before + seen.rollouts)
        if seen.rate is not None:
            keep = self.decay if self.scored[index] else 0.0
            self.rate[index] = keep * self.rate[index] + (1 - keep) * seen.rate
            self.scored[index] += seen.scored
        if seen.spread is not None:
            self.spreads[index] += 1
            self.spread[index] += (seen.spread - self.spread[index]) / self.spreads[index]

    @property
    def coverage(self) -> float:
        """Share of prompts that were drawn at least once."""
        return len(self.ids) / self.num

    def save(self, folder: Path) -> None:
        """Write the rows of all drawn prompts into a folder."""
        index = np.fromiter(self.ids, np.int64, len(self.ids))
        index.sort()
        columns = {name: self.__dict__[name][index] for name in self.COLUMNS}
        with (folder / "table.npz").open("wb") as stream:
            np.savez(stream, num=np.int64(self.num), index=index, **columns)
        ids = json.dumps([self.ids[place] for place in index.tolist()], ensure_ascii=False)
        (folder / "ids.json").write_text(ids, encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, into a table without a drawn prompt. `ValueError` for a table of other data."""
        ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
        with np.load(folder / "table.npz", allow_pickle=False) as kept:
            index, num = kept["index"], int(kept["num"])
            if num != self.num or len(ids) != len(index):
                raise ValueError(
                    f"prompt table: {len(index)} rows, {len(ids)} ids, of {num} prompts, and the data have {self.num}; go on "
                    "with the same data, or start afresh"
                )
            for name in self.COLUMNS:
                self.__dict__[name][index] = kept[name]
        self.ids = dict(zip(index.tolist(), ids, strict=True))
