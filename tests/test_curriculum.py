"""Samplers: orders, shares, factors and numbers of rollouts by hand; the same draws after a restore; runs killed and resumed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.datasets.curriculum import Curriculum, Pick, Shuffled, build_sampler
from foveate.datasets.curriculum_spec import (
    AnyCurriculum,
    CurriculumSpec,
    DotExpansion,
    DuetCurriculum,
    HintsSpec,
    RlcsExpansion,
    SortedCurriculum,
    TiersCurriculum,
    WindowCurriculum,
)
from foveate.datasets.mix import Blend, draw
from foveate.datasets.samplers_duet import allocate
from foveate.datasets.samplers_expansion import Expansion, most_balanced
from foveate.train import checkpoint, experience
from foveate.train.config import GrpoSignal
from foveate.train.loop import train
from foveate.train.recipes import RecipeError, load_recipe
from foveate.vlm.records import Group, Privileged, Reward, Rollout, Sample, StopReason, Turn, View

RLCS = RlcsExpansion(kind="rlcs")


def data(
    num: int, difficulty: Callable[[int], float | None] = lambda index: 0.5, name: str = "s", hints: int = 0
) -> list[Sample]:
    privileged = Privileged(hints=tuple(f"hint {level}" for level in range(hints)))
    return [
        Sample(id=f"{name}{index}", question="q", answer="K", difficulty=difficulty(index), privileged=privileged)
        for index in range(num)
    ]


def group_of(sample: Sample, right: int, rollouts: int, tokens: int = 4) -> Group:
    """``right`` of the rollouts say K, whose answer K is; the later a rollout the less probable."""
    played = []
    for index in range(rollouts):
        text = f"<answer>{'K' if index < right else 'no'}</answer>"
        turn = Turn(tuple(range(tokens)), (-0.1 * (index + 1),) * tokens, text, StopReason.ANSWERED)
        reward = Reward(float(index < right), outcome="right" if index < right else "wrong")
        played.append(Rollout(sample.id, "g", index, View("student", ()), (turn,), StopReason.ANSWERED, reward=reward))
    return Group(sample, tuple(played))


def step_of(
    sampler: Any, step: int, num: int, right: Callable[[Pick], float] = lambda pick: 0.5, rollouts: int = 4
) -> list[Pick]:
    """Draw, play (``right`` tells the share of right rollouts) and update."""
    picks = sampler.pick(step, range(num))
    counts = [pick.rollouts or rollouts for pick in picks]
    groups = [group_of(pick.sample, round(right(pick) * count), count) for pick, count in zip(picks, counts, strict=True)]
    sampler.update(step, groups)
    return list(picks)


def ids(picks: Sequence[Pick]) -> list[str]:
    return [pick.sample.id for pick in picks]


def rates_file(path: Path, rates: dict[str, float], k: int = 16) -> str:
    rows = [
        {"id": name, "index": index, "k": k, "right": round(rate * k), "pass_rate": round(rate * k) / k}
        for index, (name, rate) in enumerate(rates.items())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---------------------------------------------------------------------------------------------------- shuffled and sorted


@pytest.mark.parametrize("samples", [data(11), Blend([data(7), data(5, name="t")], [3, 1])])
def test_the_plain_kind_draws_as_ever_with_and_without_a_table(samples: Sequence[Sample]) -> None:
    plain = build_sampler(CurriculumSpec(), samples, 3, 4)
    assert isinstance(plain, Shuffled)
    table = build_sampler(CurriculumSpec(hints=HintsSpec()), samples, 3, 4)
    assert isinstance(table, Curriculum)
    want = [draw(samples, place, 3).id for place in range(24)]
    assert [name for step in range(6) for name in ids(plain.pick(step, range(4)))] == want
    with pytest.warns(UserWarning, match="none of the step's samples has hints"):
        assert [name for step in range(6) for name in ids(step_of(table, step, 4))] == want


def test_from_easy_to_hard_and_again(tmp_path: Path) -> None:
    samples = data(6)
    rates = dict(zip((one.id for one in samples), (0.25, 1.0, 0.0, 0.75, 0.75, 0.5), strict=True))
    spec = SortedCurriculum(kind="sorted", pass_rates=rates_file(tmp_path / "rates.jsonl", rates))
    orders = []
    for seed in range(8):
        sampler = build_sampler(spec, samples, seed, 3)
        drawn = [name for step in range(4) for name in ids(step_of(sampler, step, 3))]
        assert drawn[:6] == drawn[6:], "again from the easiest"
        assert [rates[name] for name in drawn[:6]] == [1.0, 0.75, 0.75, 0.5, 0.25, 0.0]
        orders.append(tuple(drawn[:6]))
    assert len(set(orders)) == 2, "only the two that are equally hard are shuffled"
    assert sampler.metrics()["curriculum/label"] == pytest.approx((0.5 + 0.25 + 0.0) / 3)


def test_the_hardest_part_goes_on() -> None:
    samples = data(10, lambda index: index / 10)
    sampler = build_sampler(SortedCurriculum(kind="sorted", hardest_frac=0.25), samples, 0, 5)
    drawn = [name for step in range(5) for name in ids(step_of(sampler, step, 5))]
    assert drawn[:10] == [f"s{index}" for index in range(10)]
    later = [drawn[place : place + 3] for place in (10, 13, 16, 19, 22)]
    assert all(set(epoch) == {"s7", "s8", "s9"} for epoch in later)
    assert len({tuple(epoch) for epoch in later}) > 1


def test_a_mixture_keeps_its_weights_and_each_ingredient_is_sorted() -> None:
    blend = Blend([data(6, lambda index: 1 - index / 6), data(4, lambda index: index / 8, name="t")], [3, 1])
    sampler = build_sampler(SortedCurriculum(kind="sorted"), blend, 0, 8)
    drawn = ids(step_of(sampler, 0, 8))
    assert [name for name in drawn if name[0] == "s"] == ["s5", "s4", "s3", "s2", "s1", "s0"]
    assert [name for name in drawn if name[0] == "t"] == ["t0", "t1"]


# ---------------------------------------------------------------------------------------------------------------- tiers


def test_tiers_get_their_shares() -> None:
    samples = data(1000, lambda index: index % 5 / 4)
    sampler = build_sampler(TiersCurriculum(kind="tiers"), samples, 0, 30)
    counts: Counter[int] = Counter()
    for step in range(60):
        picks = sampler.pick(step, range(30))
        assert len(set(ids(picks))) == 30, "no prompt twice in a step"
        own = Counter(int(pick.sample.id[1:]) % 5 for pick in picks)
        counts += own
        assert own[2] in (13, 14), "30 x 2 / 4.5 = 13.3"
    shares = [counts[tier] / 1800 for tier in range(5)]
    assert shares == pytest.approx([0.25 / 4.5, 1 / 4.5, 2 / 4.5, 1 / 4.5, 0.25 / 4.5], abs=0.01)


def test_the_first_of_a_steps_draws_have_these_shares_too() -> None:
    """A step with further rounds may need a part of its draws only."""
    sampler = build_sampler(TiersCurriculum(kind="tiers"), data(1000, lambda index: index % 5 / 4), 0, 30)
    drawn = [int(name[1:]) % 5 for step in range(200) for name in ids(sampler.pick(step, range(10)))]
    shares = [drawn.count(tier) / 2000 for tier in range(5)]
    assert shares == pytest.approx([0.25 / 4.5, 1 / 4.5, 2 / 4.5, 1 / 4.5, 0.25 / 4.5], abs=0.02)


def test_within_a_tier_the_least_drawn_come_first() -> None:
    sampler = build_sampler(TiersCurriculum(kind="tiers"), data(12), 0, 4)
    drawn = [name for step in range(6) for name in ids(step_of(sampler, step, 4))]
    assert Counter(drawn) == {f"s{index}": 2 for index in range(12)}
    assert sorted(drawn[:12]) == sorted(set(drawn))
    assert drawn[:12] != drawn[12:]


def test_a_prompt_changes_its_tier_when_its_rollouts_outweigh_its_label() -> None:
    sampler = build_sampler(TiersCurriculum(kind="tiers"), data(1), 0, 1)
    assert isinstance(sampler, Curriculum)
    tiers = [int(sampler.table.tier[0])]
    for step in range(4):
        step_of(sampler, step, 1, lambda pick: 1.0, rollouts=8)
        tiers.append(int(sampler.table.tier[0]))
    assert tiers == [2, 1, 1, 1, 0], "a label of 0.5 like 8 rollouts: 12/16, 20/24, 28/32, 36/40"


@pytest.mark.parametrize("rate", [1.0, 0.9, 0.89, 0.65, 0.35, 0.34, 0.1, 0.09, 0.0])
def test_edges_belong_to_the_easier_side(rate: float) -> None:
    sampler = build_sampler(TiersCurriculum(kind="tiers"), data(1, lambda _: 1 - rate), 0, 1)
    assert isinstance(sampler, Curriculum)
    assert sampler.table.tier[0] == sum(rate < edge for edge in (0.9, 0.65, 0.35, 0.1))


def test_tiers_too_small_for_their_share_and_tiers_without_one() -> None:
    samples = data(40, lambda index: 0.5 if index < 2 else 0.0)  # two in the middle, all others very easy
    spec = TiersCurriculum(kind="tiers", weights=(0.1, 0, 1, 0, 0))
    assert Counter(int(name[1:]) < 2 for name in ids(step_of(build_sampler(spec, samples, 0, 8), 0, 8))) == {True: 2, False: 6}
    three = data(40, lambda index: 0.5 if index < 2 else 0.0 if index < 10 else 0.25)
    drawn = ids(step_of(build_sampler(spec, three, 0, 8), 0, 8))
    assert max(int(name[1:]) for name in drawn) < 10, "a tier without a share does not fill up"
    unwanted = TiersCurriculum(kind="tiers", weights=(0, 1, 0, 1, 1))
    sampler = build_sampler(unwanted, samples, 0, 8)
    assert len(set(ids(step_of(sampler, 0, 8)))) == 8
    assert sampler.metrics()["curriculum/fallback"] == 8
    few = build_sampler(TiersCurriculum(kind="tiers"), data(3), 0, 8)
    assert set(Counter(ids(step_of(few, 0, 8))).values()) == {2, 3}, "data with fewer prompts than draws"


# ------------------------------------------------------------------------------------------------------------ expansion


def test_the_factor_of_rlcs_by_hand() -> None:
    factor = Expansion(RlcsExpansion(kind="rlcs", decay=0.75, start=1.0, most=4.0))
    seen = [factor.factor]
    for mixed in (0.5, 1.0, 0.0, 0.2):  # 1 / (1 - rate): 2, 1, without bound, 5
        factor.observe(mixed)
        seen.append(factor.factor)
    assert seen == [1.0, 1.25, 1.1875, 1.890625, 2.41796875]


def test_the_factor_of_dot_by_hand() -> None:
    factor = Expansion(DotExpansion(kind="dot", steps=2))
    seen = [factor.factor]
    for mixed in (0.5, 1.0, 1.0, 0.0, 0.0):
        factor.observe(mixed)
        seen.append(factor.factor)
    # 1 / 0.5; (1 + 0.25) / 0.75; at least 1.2; (1 + 0.5) / 0.5; at most 5
    assert seen == pytest.approx([1.5, 2.0, 5 / 3, 1.2, 3.0, 5.0])
    fixed = Expansion(DotExpansion(kind="dot", margin=1.1))
    fixed.observe(0.5)
    assert fixed.factor == pytest.approx(2.2)


def test_the_most_balanced_groups_are_kept_in_their_order() -> None:
    groups = [group_of(one, right, 8) for one, right in zip(data(6), (8, 2, 0, 4, 6, 5), strict=True)]
    assert [group.sample.id for group in most_balanced(groups, 3)] == ["s1", "s3", "s5"], "of 2 and 6 of 8 the first"
    bare = dataclasses.replace(groups[3], rollouts=tuple(dataclasses.replace(one, reward=None) for one in groups[3].rollouts))
    assert [group.sample.id for group in most_balanced([bare, *groups[:3]], 3)] == ["s0", "s1", "s2"]


class Played:
    """Stands for a task: the groups of a sampler's draws, every third with variance."""

    prompts = 4

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def play(self, step: int, engine: object, renderer: object, places: range, then: Any) -> list[Group]:
        picks = self.sampler.pick(step, places)
        return [group_of(pick.sample, int(place % 3 == 2), 2) for place, pick in zip(places, picks, strict=True)]


def test_a_step_plays_more_and_learns_from_the_most_balanced() -> None:
    sampler = build_sampler(CurriculumSpec(expansion=RLCS), data(40), 0, 4)
    task, settings = Played(sampler), GrpoSignal(kind="grpo")
    sizes = []
    for step in range(3):
        found = experience.play(task, step, None, None, settings)  # type: ignore[arg-type]
        sampler.update(step, found.played)
        sizes.append((len(found.played), len(found.groups)))
        metrics = sampler.metrics()
        assert metrics["curriculum/dropped_prompts"] == len(found.played) - 4
        assert metrics["curriculum/coverage"] == sum(played for played, _ in sizes) / 40, "what is dropped is known too"
    # 1 of 4 is mixed: .5 x 1 + .5 x 4; 3 of 10: .5 x 2.5 + .5 x 10/3
    assert sizes == [(4, 4), (10, 4), (12, 4)]
    assert [place for place, group in enumerate(found.played) if group in found.groups] == [2, 5, 8, 11]
    with pytest.raises(ValueError, match="remove one of them"):
        experience.play(task, 3, None, None, GrpoSignal(kind="grpo", filter_zero_variance=True, extra_rounds=1))  # type: ignore[arg-type]


def test_rewards_are_not_dealt_out_between_groups_of_different_sizes() -> None:
    groups = [group_of(one, 1, size) for one, size in zip(data(3), (2, 3, 2), strict=True)]
    with pytest.raises(ValueError, match="groups have 2 to 3 rollouts; remove shuffle"):
        experience.shuffled(groups, 0)


# --------------------------------------------------------------------------------------------------------------- window


def test_prompts_outside_the_window_rest_and_come_back() -> None:
    sampler = build_sampler(WindowCurriculum(kind="window", rest_steps=4), data(6), 0, 3)
    rate = {"s0": 0.0, "s1": 1.0}  # the others are always in between
    steps = [ids(step_of(sampler, step, 3, lambda pick: rate.get(pick.sample.id, 0.5))) for step in range(8)]
    assert sorted([*steps[0], *steps[1]]) == [f"s{index}" for index in range(6)], "all are looked at once"
    for name in rate:
        first = next(step for step, drawn in enumerate(steps) if name in drawn)
        assert [step for step, drawn in enumerate(steps) if name in drawn] == [first, first + 4], "least drawn first"
    assert sampler.metrics()["curriculum/fallback"] == 0


def test_when_everything_is_solved_the_least_recently_seen_are_drawn() -> None:
    sampler = build_sampler(WindowCurriculum(kind="window", rest_steps=100), data(6), 0, 2)
    steps = [set(ids(step_of(sampler, step, 2, lambda pick: 1.0))) for step in range(9)]
    assert steps[3:6] == steps[:3]
    assert steps[6:9] == steps[:3]
    assert sampler.metrics() == {
        "curriculum/allowed": 0.0,
        "curriculum/fallback": 2.0,
        "curriculum/coverage": 1.0,
        "curriculum/pass_rate": 1.0,
        "curriculum/pass_rate_known": 1.0,
    }


def test_the_rest_is_four_passes_unless_told() -> None:
    sampler = build_sampler(WindowCurriculum(kind="window"), data(10), 0, 4)
    assert isinstance(sampler, Curriculum)
    assert sampler._order.rest_steps == 10  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------------------------------------- duet


@pytest.mark.parametrize(
    ("spread", "tokens", "budget", "bounds", "want"),
    [
        ([1, 2], [10, 10], 60, (1, 32), [2, 4]),
        ([1, 1], [10, 40], 120, (1, 32), [4, 2]),  # a quarter of the length: twice as often
        ([0, 1], [10, 10], 60, (2, 32), [2, 4]),
        ([1, 1], [10, 10], 80, (1, 32), [4, 4]),  # the full budget of 4 each, met exactly
        ([1, 9], [10, 10], 100, (1, 4), [4, 4]),
        ([1, 1], [10, 10], 10, (2, 32), [2, 2]),  # too little: the least
        ([1, 1, 1], [10.1] * 3, 7 * sum([10.1] * 3), (1, 32), [7, 7, 7]),  # the same where the sum is rounded
        ([1e-9, 3e-9], [1000, 1000], 8000, (1, 32), [2, 6]),
    ],
)
def test_rollouts_by_hand(
    spread: list[float], tokens: list[float], budget: float, bounds: tuple[int, int], want: list[int]
) -> None:
    assert allocate(np.array(spread, float), np.array(tokens, float), budget, *bounds).tolist() == want


def test_duet_shares_out_what_it_knows() -> None:
    sampler = build_sampler(DuetCurriculum(kind="duet", budget_frac=1.0), data(4), 0, 4, rollouts=8)
    assert isinstance(sampler, Curriculum)
    first = sampler.pick(0, range(4))
    assert {(pick.rollouts, pick.weight) for pick in first} == {(8, 1.0)}, "nothing is known: all alike, as without duet"
    sampler.update(0, [group_of(pick.sample, 4, 8, tokens=10) for pick in first])
    table = sampler.table
    assert table.spread[0] > 0
    table.spread[:], table.tokens[:] = [1.0, 2.0, 3.0, 6.0], 10.0
    second = {pick.sample.id: pick for pick in sampler.pick(1, range(4))}
    assert [second[f"s{index}"].rollouts for index in range(4)] == [3, 5, 8, 16]  # 2.67, 5.3, 8, 16, and 32 in all
    assert [second[f"s{index}"].weight for index in range(4)] == pytest.approx([8 / 3, 8 / 5, 1.0, 1.0])
    sampler.update(1, [group_of(pick.sample, 1, pick.rollouts or 0, tokens=10) for pick in second.values()])
    values = sampler.metrics()
    assert (values["curriculum/rollouts_least"], values["curriculum/rollouts_most"]) == (3, 16)
    assert values["curriculum/budget_frac"] == 1.0


def test_the_weight_is_bounded_and_unknown_prompts_count_like_the_mean() -> None:
    spec = DuetCurriculum(kind="duet", budget_frac=1.0, least_rollouts=1, most_rollouts=100)
    sampler = build_sampler(spec, data(4), 0, 4, rollouts=25)
    assert isinstance(sampler, Curriculum)
    table = sampler.table
    table.rollouts[:3] = table.spreads[:3] = 1
    table.spread[:3], table.tokens[:3] = [0.0, 3.0, 6.0], 5.0
    picks = {pick.sample.id: pick for pick in sampler.pick(0, range(4))}
    assert [picks[f"s{index}"].rollouts for index in range(4)] == [1, 25, 49, 25]  # s3 has the mean spread of 3
    assert picks["s0"].weight == 20.0
    table.spread[:3] = 0.0
    sampler._plan = dataclasses.replace(sampler._plan, step=-1)
    assert {pick.rollouts for pick in sampler.pick(0, range(4))} == {25}, "no prompt has ever taught anything: all alike"


# ---------------------------------------------------------------------------------------------------------------- hints


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (HintsSpec(), [0, 1, 2, 1, 1, 2, 3, 3]),
        (HintsSpec(start=9, most=2), [3, 2, 2, 1, 1, 2, 2, 2]),
        (HintsSpec(lower_at=1.0), [0, 1, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_the_lowest_level_that_solves_is_looked_for(spec: HintsSpec, want: list[int]) -> None:
    sampler = build_sampler(CurriculumSpec(hints=spec), data(1, hints=3), 0, 1)
    rates, levels = iter([0.0, 0.0, 0.75, 0.5, 0.0, 0.0, 0.0, 0.0]), []
    for step in range(8):
        (pick,) = step_of(sampler, step, 1, lambda pick: next(rates))
        levels.append(pick.hint)
        assert sampler.metrics()["curriculum/hint_level"] == pick.hint
    assert levels == want


def test_a_sample_is_asked_for_no_more_hints_than_it_has() -> None:
    sampler = build_sampler(
        WindowCurriculum(kind="window", hints=HintsSpec(start=2)), [*data(1), *data(1, hints=5, name="t")], 0, 2
    )
    assert {pick.sample.id: pick.hint for pick in step_of(sampler, 0, 2)} == {"s0": 0, "t0": 2}
    assert sampler.metrics()["curriculum/hinted"] == 0.5
    more = build_sampler(CurriculumSpec(hints=HintsSpec(start=9)), data(1, hints=3), 0, 1)
    assert [step_of(more, step, 1, lambda pick: 0.75)[0].hint for step in range(5)] == [3, 2, 1, 0, 0]


# --------------------------------------------------------------------------------------------------------------- states

KINDS: dict[str, AnyCurriculum] = {
    "shuffled": CurriculumSpec(expansion=DotExpansion(kind="dot"), hints=HintsSpec()),
    "sorted": SortedCurriculum(kind="sorted", hardest_frac=0.5),
    "tiers": TiersCurriculum(kind="tiers", expansion=RLCS),
    "window": WindowCurriculum(kind="window", rest_steps=3),
    "duet": DuetCurriculum(kind="duet"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_sampler_draws_the_same_and_rounds_do_not_matter(kind: str, tmp_path: Path) -> None:
    samples = Blend([data(23, lambda index: index % 7 / 6, hints=2), data(9, name="t", hints=4)], [2, 1])

    def right(pick: Pick) -> float:
        return int(pick.sample.id[1:]) % 5 / 4

    def new() -> Any:
        return build_sampler(KINDS[kind], samples, 1, 6, rollouts=8)

    whole = new()
    for step in range(9):
        num = whole.draws(6)
        step_of(whole, step, num, right)
    whole.save(tmp_path)
    again = new()
    first = ids(again.pick(9, range(6)))
    again.load(tmp_path)
    num = whole.draws(6)
    want = whole.pick(9, range(num))
    assert again.draws(6) == num
    assert [*again.pick(9, range(2)), *again.pick(9, range(2, num))] == want
    for step in range(9, 14):
        assert step_of(again, step, again.draws(6), right) == step_of(whole, step, whole.draws(6), right)
        assert again.metrics() == whole.metrics()
    assert first != ids(want)[:6], "the state matters"


def logged(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


SMALL = [
    "steps=3",
    "prompts=3",
    "rollouts=3",
    "data.n=6",
    "threads=1",
    "eval=null",
    "checkpoint={every: 1, keep_last: 9}",
    "log_rollouts=0",
    "loggers=[]",
]
OWN = {
    "sorted": ["curriculum.hardest_frac=0.5"],
    "tiers": [],
    "window": ["curriculum.rest_steps=2"],
    "duet": ["curriculum.budget_frac=0.8", "sampling.max_new_tokens=24"],
    "hints": ["curriculum.hints.start=1"],
}
MOVED = {"tiers": "expansion", "duet": "rollouts_most", "hints": "hint_level", "window": "allowed", "sorted": "label"}


@pytest.mark.parametrize("kind", OWN)
def test_a_run_that_goes_on_from_a_checkpoint_logs_the_same_numbers(kind: str, tmp_path: Path) -> None:
    """Killed in its second step, that is: all that was written after the first is there or not, as the kill would have it."""
    config = load_recipe(f"tiny/curriculum_{kind}", [*SMALL, *OWN[kind]])
    train(config, tmp_path / "run")
    rows = logged(tmp_path / "run")
    for step in (2, 3):
        shutil.rmtree(checkpoint.folder_of(tmp_path / "run", step))
    train(config, tmp_path / "run")
    assert logged(tmp_path / "run") == rows
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert len({row[f"curriculum/{MOVED[kind]}"] for row in rows}) > 1, "the curriculum must have done something"


def test_duet_with_equal_shares_is_plain_grpo(tmp_path: Path) -> None:
    small = [*SMALL, "steps=1", "sampling.max_new_tokens=24"]
    for name, own in (("plain", "curriculum={kind: shuffled}"), ("duet", "curriculum={kind: duet, budget_frac: 1.0}")):
        train(load_recipe("tiny/curriculum_duet", [*small, own]), tmp_path / name)
    (plain,), (duet,) = logged(tmp_path / "plain"), logged(tmp_path / "duet")
    assert {name: value for name, value in duet.items() if not name.startswith("curriculum/")} == plain
    assert plain["optim/grad_norm"] > 0


# --------------------------------------------------------------------------------------------------------------- errors


def test_pass_rates_of_other_data_are_refused(tmp_path: Path) -> None:
    samples = data(6)
    for rates, message in (
        (dict.fromkeys(("s0", "s1"), 0.5), "pass rates of 2 samples, and the data have 6; measure all of these data"),
        (dict.fromkeys((f"t{index}" for index in range(6)), 0.5), "sample 0 is t0 there and s0 in the data; measure"),
    ):
        spec = SortedCurriculum(kind="sorted", pass_rates=rates_file(tmp_path / "rates.jsonl", rates))
        with pytest.raises(ValueError, match=message):
            build_sampler(spec, samples, 0, 2)
    swapped = dict.fromkeys(("s0", "s2", "s1", "s3", "s4", "s5"), 0.5)
    tiers = TiersCurriculum(kind="tiers", pass_rates=rates_file(tmp_path / "rates.jsonl", swapped))
    with pytest.raises(ValueError, match=r"rates.jsonl: sample [12] is s[12] there and s[12] in the data"):
        build_sampler(tiers, samples, 0, 6).pick(0, range(6))


def test_difficulties_that_cannot_be_used_are_named() -> None:
    for spec in (SortedCurriculum(kind="sorted"), TiersCurriculum(kind="tiers")):
        with pytest.raises(ValueError, match=r"sample s3 \(index 3\) has no difficulty; measure pass rates"):
            build_sampler(spec, data(5, lambda index: None if index == 3 else 0.5), 0, 2)
    many = data(5, lambda index: 7.0 if index == 3 else 0.5)
    assert ids(build_sampler(SortedCurriculum(kind="sorted"), many, 0, 5).pick(0, range(5)))[-1] == "s3", (
        "any scale can be sorted"
    )
    with pytest.raises(ValueError, match="sample 3 of the data has the difficulty 7; for tiers"):
        build_sampler(TiersCurriculum(kind="tiers"), many, 0, 2)


def test_duet_needs_the_number_of_rollouts() -> None:
    with pytest.raises(ValueError, match="give build_sampler their number"):
        build_sampler(DuetCurriculum(kind="duet"), data(2), 0, 1)


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("grpo", "curriculum={kind: tiers, weights: [0, 0, 0, 0, 0]}", "one of them above"),
        ("grpo", "curriculum={kind: tiers, edges: [0.1, 0.3, 0.6, 0.9]}", "fall from very easy to hard"),
        ("grpo", "curriculum={kind: window, low: 0.9, high: 0.1}", "swap them"),
        ("grpo", "curriculum={kind: duet, expansion: {kind: rlcs}}", "remove expansion"),
        ("grpo", "curriculum={kind: duet, least_rollouts: 40}", "lies above most_rollouts 32"),
        ("grpo", "curriculum={kind: shuffled, expansion: {kind: dot, least: 6}}", "least 6 lies above most 5"),
        ("grpo", "curriculum={kind: shuffled, hints: {}}", "student's view shows none"),
        ("sft", "curriculum={kind: sorted}", "sft goes through its data"),
        ("vision_opd", "curriculum={kind: window}", "only grpo rewards them"),
        ("dot", "curriculum={kind: shuffled, expansion: {kind: dot}}", "remove one of them"),
        ("dot", "curriculum={kind: duet}", "remove grpo.extra_rounds"),
        ("curriculum_duet", "signals.0.shuffle=true", "groups of different sizes"),
    ],
)
def test_curricula_that_make_no_sense_are_refused(recipe: str, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(f"tiny/{recipe}", [override])
