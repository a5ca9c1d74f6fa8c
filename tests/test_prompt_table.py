"""The table of prompts: running means by hand, what is saved, and whose table it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from foveate.datasets.prompt_table import Outcome, PromptTable, outcome_of
from foveate.vlm.records import Group, Reward, Rollout, Sample, StopReason, Turn, View

Said = Literal["right", "wrong", "unparsed", "unscored"]


def group_of(*said: Said, logprobs: tuple[tuple[float, ...], ...] | None = None, rewarded: bool = True) -> Group:
    """Rollouts with these outcomes; a right one earns 1."""
    rollouts = []
    for index, outcome in enumerate(said):
        values = (-1.0,) * 3 if logprobs is None else logprobs[index]
        turn = Turn(tuple(range(len(values))), values, "text", StopReason.ANSWERED)
        reward = Reward(float(outcome == "right"), outcome=outcome) if rewarded else None
        rollouts.append(Rollout("s", "g", index, View("student", ()), (turn, turn), StopReason.ANSWERED, reward=reward))
    return Group(Sample(id="s", question="q"), tuple(rollouts))


def test_a_group_in_numbers() -> None:
    seen = outcome_of(group_of("right", "wrong", "unparsed", "unscored"))
    assert (seen.rollouts, seen.scored, seen.right, seen.tokens) == (4, 3, 1, 24)
    assert seen.rate == pytest.approx(1 / 3)
    assert [outcome_of(group_of(*said)).mixed for said in (("right", "wrong"), ("right", "right"), ("wrong", "unparsed"))] == [
        True,
        False,
        False,
    ]
    assert outcome_of(group_of("unscored", "unscored")).rate is None
    without = outcome_of(group_of("right", "wrong", rewarded=False))
    assert (without.rollouts, without.scored, without.spread) == (2, 0, None)


def test_the_spread_of_advantage_times_log_prob_by_hand() -> None:
    # two turns each: sums of log-probs -2 and -4; advantages +-0.5 / (sqrt(0.5) + 1e-4), their products differ by 6 x that
    seen = outcome_of(group_of("right", "wrong", logprobs=((-0.5, -0.5), (-2.0,))))
    assert seen.spread == pytest.approx(6 * 0.5 / (math.sqrt(0.5) + 1e-4) / math.sqrt(2), rel=1e-12)
    assert seen.spread == pytest.approx(3.0, abs=1e-3)
    assert outcome_of(group_of("right", "right", logprobs=((-1.0,), (-9.0,)))).spread == 0.0, "without an advantage, no noise"
    assert outcome_of(group_of("right")).spread is None


def test_running_means_by_hand() -> None:
    table, sample = PromptTable(5, decay=0.75), Sample(id="s", question="q")
    visits = [Outcome(2, 2, 2, 10, 4.0), Outcome(4, 4, 1, 40, None), Outcome(3, 0, 0, 6, 1.0), Outcome(4, 2, 0, 4, 1.0)]
    rates = []
    for step, seen in enumerate(visits):
        table.observe(step, 3, sample, seen)
        rates.append(float(table.rate[3]))
    # the first visit is taken whole, unscored rollouts change nothing: 1, .75 + .25 x .25, the same, .75 x .8125
    assert rates == [1.0, 0.8125, 0.8125, 0.609375]
    assert (table.drawn[3], table.rollouts[3], table.scored[3], table.last_step[3]) == (4, 13, 8, 3)
    assert table.tokens[3] == pytest.approx(60 / 13)
    assert (table.spread[3], table.spreads[3]) == (pytest.approx(2.0), 3)
    assert table.coverage == 0.2
    assert set(np.flatnonzero(table.drawn)) == {3}
    assert table.last_step[0] == -1


def filled(num: int = 50) -> PromptTable:
    table, rng = PromptTable(num, 0.3), np.random.default_rng(1)
    for step in range(40):
        index = int(rng.integers(num // 2)) * 2
        seen = Outcome(4, 4, int(rng.integers(5)), int(rng.integers(1, 99)), float(rng.random()))
        table.observe(step, index, Sample(id=f"naïve\u2028{index}", question="q"), seen)
    table.tier[::2], table.hint[::2] = 3, 2
    return table


def test_a_table_comes_back_exactly_and_only_drawn_prompts_are_saved(tmp_path: Path) -> None:
    table, again = filled(), PromptTable(50, 0.3)
    again.tier[:] = 1
    table.save(tmp_path)
    again.load(tmp_path)
    drawn = table.drawn > 0
    for name in PromptTable.COLUMNS:
        assert (again.__dict__[name][drawn] == table.__dict__[name][drawn]).all(), name
    assert again.ids == table.ids
    assert (again.tier[~drawn] == 1).all(), "what a sampler knew beforehand of the others stays"
    with np.load(tmp_path / "table.npz") as kept:
        assert kept["index"].tolist() == np.flatnonzero(drawn).tolist()
    for both in (table, again):
        both.observe(41, 4, Sample(id="naïve\u20284", question="q"), Outcome(2, 2, 1, 7, 0.5))
    assert again.rate[4] == table.rate[4]


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    PromptTable(3).save(tmp_path)
    again = PromptTable(3)
    again.load(tmp_path)
    assert again.coverage == 0.0


def test_a_table_of_other_data_is_refused(tmp_path: Path) -> None:
    table = filled()
    table.save(tmp_path)
    with pytest.raises(ValueError, match=r"of 50 prompts, and the data have 51; go on with the same data"):
        PromptTable(51).load(tmp_path)
    place = next(iter(table.ids))
    with pytest.raises(ValueError, match=rf"sample {place} of the data was naïve\u2028{place} and is other"):
        table.check(place, Sample(id="other", question="q"))
    with pytest.raises(ValueError, match="start afresh"):
        table.observe(50, place, Sample(id="other", question="q"), Outcome(1, 1, 1, 1, None))
    table.check(1, Sample(id="never drawn", question="q"))
