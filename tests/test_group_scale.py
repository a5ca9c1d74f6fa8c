"""What multiplies a group's advantages, by hand: ADORA, the difficulty weight of GUI-G1, the weight that a sampler gives."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
from helpers import picture

from foveate.rewards.combine import RewardSpec, score
from foveate.train.config import GrpoSignal
from foveate.train.loop import train
from foveate.train.recipes import load_recipe
from foveate.train.signals.advantage import advantages
from foveate.train.signals.base import Context
from foveate.train.signals.filters import counts, reasons
from foveate.train.signals.grpo import Grpo
from foveate.train.signals.scale import factor
from foveate.train.streams import denominators, row_weight
from foveate.vlm.records import Box, Group, Privileged, Reward, Rollout, Sample, StopReason, Turn, View

Way = tuple[int, bool]
"""Length in tokens, and whether right."""


def rollout(tokens: int, index: int, total: float, outcome: str) -> Rollout:
    turn = Turn((5,) * tokens, (-1.0,) * tokens, "", StopReason.ANSWERED)
    reward = Reward(total, outcome=outcome)  # type: ignore[arg-type]
    return Rollout("s", "g", index, View("student", ()), (turn,), StopReason.ANSWERED, reward=reward)


def group_of(*ways: Way, weight: float = 1.0, sample: Sample | None = None) -> Group:
    rollouts = (rollout(n, i, float(right), "right" if right else "wrong") for i, (n, right) in enumerate(ways))
    return Group(sample or Sample(id="s", question="q"), tuple(rollouts), weight)


def grpo(**settings: Any) -> GrpoSignal:
    return GrpoSignal.model_validate({"kind": "grpo", "advantage": "mean", **settings})


def taught(group: Group, **settings: Any) -> list[float | None]:
    made = Grpo(grpo(**settings)).build([group], Context(lambda pairs: []))
    return [None if one.advantages_NK is None else one.advantages_NK[0][0] for one in made]


# ---------------------------------------------------------------- adora


@pytest.mark.parametrize(
    ("ways", "vl", "llm"),
    [
        ([(30, True), (10, True), (20, False), (26, False)], 1.0, 1.0),  # longest right 30 > mean wrong 23
        ([(22, True), (10, True), (20, False), (26, False)], 0.1, 0.1),  # 22 < 23
        ([(23, True), (20, False), (26, False)], 0.1, 0.1),  # as long is not longer
        ([(20, False), (26, False)], 1.0, 0.1),  # none right
        ([(20, True), (26, True)], 0.1, 1.0),  # none wrong
        ([(30, True), (20, False), (4054, False)], 1.0, 1.0),  # the one at the cap is left out
        ([(30, True), (20, False), (4053, False)], 0.1, 0.1),
        ([(30, True), (4054, False)], 0.1, 1.0),  # nothing is left to compare with
    ],
)
def test_adora_by_hand(ways: Sequence[Way], vl: float, llm: float) -> None:
    for form, wanted in (("vl", vl), ("llm", llm)):
        settings = {"scale": {"kind": "adora", "form": form}}
        group = group_of(*ways)
        assert factor(group, grpo(**settings).scale) == wanted
        plain = advantages([float(right) for _, right in ways], "mean")
        assert taught(group, **settings) == pytest.approx([wanted * value for value in plain])


def test_adora_counts_as_right_what_a_recipe_says() -> None:
    """The LLM code asks for more than 1.01: an answer without its form is wrong there."""
    rollouts = (rollout(30, 0, 1.0, "right"), rollout(10, 1, 2.0, "right"), rollout(20, 2, 0.0, "wrong"))
    group = Group(Sample(id="s", question="q"), rollouts)
    assert factor(group, grpo(scale={"kind": "adora"}).scale) == 1.0, "30 > 20"
    assert factor(group, grpo(scale={"kind": "adora", "right_above": 1.01}).scale) == 0.1, "10 < (30 + 20) / 2"
    assert factor(group, grpo(scale={"kind": "adora", "right_above": 1.01, "damp": 0.5}).scale) == 0.5
    bare = dataclasses.replace(group, rollouts=(dataclasses.replace(rollouts[0], reward=None),))
    with pytest.raises(ValueError, match="g/0: a scale by right and wrong needs rewards"):
        factor(bare, grpo(scale={"kind": "adora"}).scale)


def test_without_a_cap_all_wrong_ones_count() -> None:
    group = group_of((30, True), (20, False), (5000, False))
    assert factor(group, grpo(scale={"kind": "adora"}).scale) == 1.0
    assert factor(group, grpo(scale={"kind": "adora", "cap_tokens": None}).scale) == 0.1


# ---------------------------------------------------------------- gui-g1


def boxed(*boxes_px: Box) -> Sample:
    return Sample(id="s", question="q", answer="x", images=(picture(1, 200, 100),), privileged=Privileged(boxes_px_xyxy=boxes_px))


BOX_SIZE = {"kind": "box_size", "typical_frac": 0.04, "power": 0.5, "least": 0.5, "most": 3.0}


@pytest.mark.parametrize(
    ("boxes_px", "weight"),
    [
        ([(0, 0, 40, 20)], 1.0),  # 800 of 20,000 px: 0.04
        ([(0, 0, 20, 10)], 2.0),  # half the side
        ([(0, 0, 80, 40)], 0.5),
        ([(0, 0, 200, 100)], 0.5),  # 0.2, held
        ([(0, 0, 4, 2)], 3.0),  # 10, held
        ([(0, 0, 0, 10)], 3.0),  # nothing to hit
        ([(0, 0, 20, 10), (100, 0, 140, 20)], 1.0),  # the larger
    ],
)
def test_small_boxes_count_more(boxes_px: list[Box], weight: float) -> None:
    group = group_of((4, True), (8, False), sample=boxed(*boxes_px))
    assert factor(group, grpo(scale=BOX_SIZE).scale) == pytest.approx(weight)
    assert taught(group, scale=BOX_SIZE) == pytest.approx([0.5 * weight, -0.5 * weight])


def test_the_loss_of_gui_g1_is_the_weighted_sum_over_64() -> None:
    """r - mean, no std; every token weighs rate / 64 in its rollout, and rollouts are averaged."""
    settings = grpo(scale=BOX_SIZE, reduction="constant", constant_tokens=64)
    group = group_of((4, True), (8, False), (8, False), sample=boxed((0, 0, 20, 10)))
    builder = Grpo(settings)
    made, (stream,) = builder.build([group], Context(lambda pairs: [])), builder.streams()
    totals = denominators(made, {"grpo": stream})
    pulls = [row_weight(one, stream, totals) * one.advantages_NK[0][0] for one in made if one.advantages_NK]
    assert pulls == pytest.approx([2.0 * value / 64 / 3 for value in (2 / 3, -1 / 3, -1 / 3)])


def test_boxes_must_be_there() -> None:
    group = group_of((4, True), (8, False))
    with pytest.raises(ValueError, match="sample s: scale box_size needs an evidence box"):
        factor(group, grpo(scale=BOX_SIZE).scale)
    with pytest.raises(pydantic.ValidationError, match="least \\(4\\) no larger than most \\(3\\)"):
        grpo(scale={**BOX_SIZE, "least": 4})
    with pytest.raises(pydantic.ValidationError):
        grpo(scale={"kind": "size"})


def test_an_edge_as_far_off_as_the_picture_is_wide_is_clamped() -> None:
    """4 / sum 1 / (1 - error / size) has a pole where an edge is off by the whole picture, and turns negative behind it."""
    sample = boxed((0.0, 0.0, 1.0, 10.0))
    totals = []
    for x2 in (999, 1000, 1005):
        turn = Turn((1,), (0.0,), f"[{x2 - 10}, 0, {x2}, 100]", StopReason.ANSWERED)
        one = Rollout("s", "g", 0, View("student", ()), (turn,), StopReason.ANSWERED)
        totals.append(score(sample, one, RewardSpec.model_validate({"preset": "gui_g1"})).total)
    far = 999 / 1000 - 1 / 200  # x2 is off by .994 of the width, x1 by .989
    assert totals[0] == pytest.approx(0.125 * 4 / (1 / (1 - 0.989) + 1 + 1 / (1 - far) + 1))
    assert totals[1] == pytest.approx(0.125 * 4 / (1 / (1 - 0.99) + 1 + 1 / (1 - 0.995) + 1))
    assert totals[2] == 0.0
    assert all(0 <= total < 0.01 for total in totals)


# ---------------------------------------------------------------- group weight


def test_a_groups_weight_multiplies_its_advantages() -> None:
    """DUET weighs a group by the inverse of how often it is drawn; 1 changes nothing, and weights and scales multiply."""
    ways = [(22, True), (10, True), (20, False), (26, False)]
    assert taught(group_of(*ways)) == [0.5, 0.5, -0.5, -0.5]
    assert taught(group_of(*ways, weight=2.5)) == [1.25, 1.25, -1.25, -1.25]
    assert taught(group_of(*ways, weight=2.5), scale={"kind": "adora"}) == pytest.approx([0.125, 0.125, -0.125, -0.125])
    assert taught(group_of(*ways, weight=0.0)) == [0.0] * 4
    assert taught(group_of(*ways, weight=0.0), filter_zero_variance=True) == [None] * 4
    assert reasons(group_of(*ways, weight=0.5), grpo(filter_zero_variance=True)) == [None] * 4


def test_scales_are_counted() -> None:
    groups = [group_of((30, True), (20, False)), group_of((10, True), (20, False))]
    found = counts(groups, grpo(scale={"kind": "adora"}), prompts=2)
    assert found == {"grpo/scale_mean": pytest.approx(0.55), "grpo/scaled_groups": 1.0}


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(("recipe", "overrides"), [("tiny/adora", []), ("tiny/gui_g1", ["rollouts=4"])])
def test_the_recipes_scale(recipe: str, overrides: list[str], tmp_path: Path) -> None:
    common = ["steps=2", "prompts=6", "threads=1", "loggers=[]", "eval=null", "checkpoint.best_view=null"]
    train(load_recipe(recipe, [*common, *overrides]), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss/total" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["grpo/scaled_groups"] > 0
        assert row["grpo/scale_mean"] != 1
    assert any(row["optim/grad_norm"] > 0 for row in rows)
