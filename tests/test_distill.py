"""Distillation: which tokens, how strongly, when. Numbers by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers import picture, scripted, view_of

from foveate.train.batch import make_batches
from foveate.train.config import DistillSignal, GrpoSignal, RunConfig
from foveate.train.signals.base import Context
from foveate.train.signals.distill import Distill
from foveate.train.signals.mix import convex, mixed
from foveate.train.signals.registry import builder
from foveate.train.signals.routing import highest
from foveate.train.signals.schedule import Schedule, peak, share
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.records import Group, Privileged, Reward, Rollout, Sample, Signal


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen3_vl", seed=1)


def config(**changes: Any) -> DistillSignal:
    return DistillSignal.model_validate({"kind": "distill", "teacher": "crop", **changes})


def no_teacher(pairs: object) -> list[tuple[tuple[float, ...], ...]]:
    raise AssertionError("the teacher must not be run")


def context(vlm: VLM, step: int = 0, **more: Any) -> Context:
    return Context(no_teacher, step, token_bytes=vlm.renderer.token_bytes, **more)


def sample() -> Sample:
    return Sample(
        id="s", question="q", answer="K", images=(picture(1, 100, 80),), privileged=Privileged(boxes_px_xyxy=((10, 10, 50, 40),))
    )


def group(vlm: VLM, *outcomes: str, name: str = "g") -> Group:
    """Rollouts of one tool turn and an answer that grows with the index, so that all lengths differ."""
    made = sample()
    view = view_of(*made.images, "q")
    rollouts = [
        dataclasses.replace(
            scripted(vlm, view, 1, index, name, "x " * (index + 1)),
            reward=Reward(float(outcome == "right"), outcome=outcome) if outcome else None,  # type: ignore[arg-type]
        )
        for index, outcome in enumerate(outcomes)
    ]
    return Group(made, tuple(rollouts))


def lengths(one: Rollout) -> list[int]:
    return [len(turn.action_ids_K) for turn in one.turns]


# ---- schedule -----------------------------------------------------------------------------------------------------------


def test_schedules_of_the_papers_by_hand() -> None:
    trace = Schedule(start=0.5, hold_steps=10, over_steps=30)
    assert [trace.at(step) for step in (0, 9, 10)] == [0.5, 0.5, 0.5]
    assert trace.at(11) == pytest.approx(0.5 * 29 / 30)
    assert trace.at(25) == pytest.approx(0.25)
    assert [trace.at(step) for step in (40, 41, 1000)] == [0.0, 0.0, 0.0]
    kdrl = Schedule(start=5e-3, over_steps=8, end=1e-3)
    assert [kdrl.at(step) for step in range(10)] == pytest.approx([max(5e-3 - 5e-4 * step, 1e-3) for step in range(10)])
    assert (peak(0.3), share(0.3, 7), share(0.0, 7)) == (0.3, 1.0, 0.0)
    assert (peak(trace), share(trace, 25), share(trace, 40)) == (0.5, pytest.approx(0.5), 0.0)
    rising = Schedule(start=0.1, over_steps=10, end=0.4)
    assert (peak(rising), share(rising, 0), share(rising, 10)) == (0.4, pytest.approx(0.25), 1.0)


def test_a_coefficient_never_rises_from_zero() -> None:
    with pytest.raises(ValueError, match="that was 0 may not rise: the teacher was left behind"):
        config(weight={"start": 0.0, "over_steps": 10, "end": 0.5})
    with pytest.raises(ValueError):
        config(weight=-1.0)
    assert config(weight=0.25).weight == 0.25
    assert config(weight={"start": 0.5, "hold_steps": 10, "over_steps": 30}).weight == Schedule(
        start=0.5, hold_steps=10, over_steps=30
    )


def test_the_step_scales_the_tokens_and_zero_runs_no_teacher(vlm: VLM) -> None:
    groups = [group(vlm, "right", "wrong")]
    faded = Distill(config(weight={"start": 0.5, "hold_steps": 10, "over_steps": 30}))
    assert faded.streams()[0].weight == 0.5
    for step, wanted in ((0, 1.0), (25, 0.5), (37, 0.1)):
        signals = faded.build(groups, context(vlm, step))
        found = {value for one in signals for row in one.kd_weights_NK or () for value in row}
        assert len(signals) == 2
        assert max(found) == min(found) == pytest.approx(wanted)
    assert faded.build(groups, context(vlm, 40)) == []
    sampled = {"divergence": "reverse_kl", "support": "sampled"}
    assert Distill(config(weight={"start": 0.5, "over_steps": 30}, **sampled)).build(groups, context(vlm, 30)) == []
    assert Distill(config(weight=0.0, **sampled)).build(groups, context(vlm)) == []


# ---- which rollouts and turns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [("all", [0, 1, 2, 3]), ("right", [0]), ("wrong", [1]), ("unparsed+wrong", [1, 2])],
)
def test_rollouts_by_outcome(vlm: VLM, wanted: str, indices: list[int]) -> None:
    made = group(vlm, "right", "wrong", "unparsed", "unscored")
    signals = Distill(config(rollouts=wanted)).build([made], context(vlm))
    assert [one.rollout.index for one in signals] == indices


def test_outcomes_must_be_known(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="sample s: distillation chooses by outcome and rollout 0 has no reward"):
        Distill(config(rollouts="wrong")).build([group(vlm, "")], context(vlm))
    assert len(Distill(config()).build([group(vlm, "")], context(vlm))) == 1


@pytest.mark.parametrize(
    ("wanted", "chosen"), [("all", [1, 1, 1]), ("first", [1, 0, 0]), ("calls", [1, 1, 0]), ("last", [0, 0, 1])]
)
def test_turns(vlm: VLM, wanted: str, chosen: list[int]) -> None:
    made = sample()
    rollout = scripted(vlm, view_of(*made.images, "q"), 2)
    (signal,) = Distill(config(turns=wanted)).build([Group(made, (rollout,))], context(vlm))
    assert signal.kd_weights_NK == tuple((float(one),) * k for one, k in zip(chosen, lengths(rollout), strict=True))


def test_the_highest_of_each_rollout() -> None:
    among = ((True, True, True), (False, True))
    assert highest([[5, 1, 3], [9, 4]], among, 0.5) == ((True, False, False), (False, True)), "2 of 4, and 9 is not among them"
    assert highest([[5, 1, 3], [9, 4]], among, 0.51) == ((True, False, True), (False, True)), "rounded up to 3"
    assert highest([[2, 2, 2], [0, 2]], among, 0.5) == ((True, True, False), (False, False)), "of equals the earlier"
    assert highest([[], []], ((), ()), 0.5) == ((), ())


def test_top_tokens_come_from_what_was_measured(vlm: VLM) -> None:
    made = group(vlm, "right", "wrong")
    asked: list[Any] = []

    def measure(pairs: Any, stream: Any, what: str) -> Any:
        asked.append((len(pairs), stream.divergence, what))
        return [[[float(k) for k in range(length)] for length in lengths(rollout)] for rollout, _ in pairs]

    for tokens, what in (("top_entropy", "entropy"), ("top_divergence", "divergence")):
        build = Distill(config(tokens=tokens, top_frac=0.1, turns="last", rollouts="wrong", divergence="forward_kl")).build
        (signal,) = build([made], context(vlm, measure=measure))
        assert asked.pop() == (1, "forward_kl", what)
        last = lengths(signal.rollout)[-1]
        weights = signal.kd_weights_NK or ()
        assert not any(weights[0]), "the first turn is not among the chosen"
        assert [k for k, value in enumerate(weights[1]) if value] == list(range(last - -(-last // 10), last))


# ---- means --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("mean_over", ["all", "selected"])
def test_the_means_by_hand(vlm: VLM, reduction: str, mean_over: str) -> None:
    groups = [group(vlm, "right", "wrong", "wrong"), group(vlm, "wrong", "right", name="h")]
    distill = Distill(config(weight=0.5, rollouts="wrong", turns="last", reduction=reduction, mean_over=mean_over))
    signals = distill.build(groups, context(vlm))
    (stream,) = distill.streams()
    (batch,) = make_batches(signals, {"distill": stream}, vlm.renderer, 100_000)
    everyone = [one for made in groups for one in made.rollouts]
    wrong = [everyone[1], everyone[2], everyone[3]]
    last = [lengths(one)[-1] for one in wrong]
    by_hand = {
        ("token", "all"): [1 / sum(sum(lengths(one)) for one in everyone)] * 3,
        ("token", "selected"): [1 / sum(last)] * 3,
        ("sequence", "all"): [1 / 5 / sum(lengths(one)) for one in wrong],  # (1/|S|) sum over S, times |S|/|y|, over 5 rollouts
        ("sequence", "selected"): [1 / 3 / num for num in last],
    }[reduction, mean_over]
    weights = [0.5 * each for each, num in zip(by_hand, last, strict=True) for _ in range(num)]
    assert batch.kd[0].weights_R.tolist() == pytest.approx(weights)
    addresses = [batch.addresses[index] for index in batch.kd[0].index_R.tolist()]
    assert [(one.rollout.group_id, one.rollout.index, one.turn, one.k) for one in addresses] == [
        (one.group_id, one.index, 1, k) for one, num in zip(wrong, last, strict=True) for k in range(num)
    ]


def test_the_sampled_advantage_is_weighed_in_the_same_way(vlm: VLM) -> None:
    made = group(vlm, "right", "wrong")

    def teacher(pairs: Any) -> Any:
        return [tuple((-0.05,) * length for length in lengths(rollout)) for rollout, _ in pairs]

    settings = {"divergence": "reverse_kl", "support": "sampled", "rollouts": "wrong", "turns": "last"}
    (signal,) = Distill(config(**settings, mean_over="selected")).build([made], Context(teacher))
    num, last = sum(lengths(made.rollouts[1])), lengths(made.rollouts[1])[1]
    first, second = signal.advantages_NK or ((), ())
    assert set(first) == {0.0}
    assert second == pytest.approx([num / last * (-0.05 + 0.1 * (k + 1)) for k in range(last)])


# ---- mixing with rl -----------------------------------------------------------------------------------------------------


def test_convex_takes_from_rl_on_the_tokens_that_are_distilled(vlm: VLM) -> None:
    made = group(vlm, "right", "wrong")
    recipe = {"weight": {"start": 0.5, "hold_steps": 10, "over_steps": 30}, "rollouts": "wrong", "turns": "last", "mix": "convex"}
    configs = (GrpoSignal(kind="grpo", advantage="mean"), config(**recipe))
    for step, left in ((0, 0.0), (10, 0.0), (25, 0.5), (37, 0.9), (40, 1.0)):
        signals = [one for each in configs for one in builder(each).build([made], context(vlm, step))]
        right, wrong, *distilled = mixed(signals, configs, step)
        num = lengths(wrong.rollout)
        assert right.advantages_NK == tuple((0.5,) * k for k in lengths(right.rollout)), "not distilled, not touched"
        assert (wrong.advantages_NK or ())[0] == (-0.5,) * num[0]
        assert (wrong.advantages_NK or ())[1] == pytest.approx((-0.5 * left,) * num[1])
        assert len(distilled) == (step < 40)
        assert distilled == signals[2:], "distillation is not scaled again: its weight is lam_k already"
    additive = (configs[0], config(**{**recipe, "mix": "additive"}))
    assert mixed(signals, additive, 0) == signals
    with pytest.raises(ValueError, match="not between 0 and 1"):
        convex(signals, "distill", 1.5)


def test_convex_leaves_signals_without_advantages_alone(vlm: VLM) -> None:
    made = group(vlm, "wrong")
    (distilled,) = Distill(config()).build([made], context(vlm))
    filtered = Signal(made.rollouts[0], stream="grpo")
    assert convex([filtered, distilled], "distill", 1.0) == [filtered, distilled]


# ---- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support": "sampled"}, "support: sampled estimates the reverse KL"),
        ({"estimator": "k2"}, "estimator: k2 is for support: sampled"),
        ({"support": "sampled", "divergence": "reverse_kl", "term_clip": 0.05}, "there is one term"),
        ({"support": "sampled", "divergence": "reverse_kl", "temperature": 2}, "remove temperature, or use estimator: k2"),
        ({"support": "sampled", "divergence": "reverse_kl", "mix": "convex"}, "score is an advantage itself"),
        ({"tokens": "top_entropy"}, "top_frac belongs to tokens"),
        ({"top_frac": 0.5}, "top_frac belongs to tokens"),
        ({"tokens": "spans"}, "spans belongs to tokens: spans"),
        ({"spans": {"kind": "calls"}}, "spans belongs to tokens: spans"),
        ({"tokens": "spans", "spans": {"kind": "regex"}}, "pattern belongs to kind: regex"),
        ({"tokens": "spans", "spans": {"kind": "calls", "pattern": "x"}}, "pattern belongs to kind: regex"),
        ({"tokens": "spans", "spans": {"kind": "regex", "pattern": "("}}, "is no regular expression"),
        ({"reward": {"answer": 1.0}}, "reward tells outcomes, and nothing here asks for them"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


GRPO = {"kind": "grpo"}
K2 = {"support": "sampled", "divergence": "reverse_kl", "estimator": "k2"}


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ([{"rollouts": "wrong"}], "nothing tells outcomes; give it a reward, or add grpo"),
        ([GRPO, {"rollouts": "wrong", "reward": {"answer": 1.0}}], "remove distill's own reward"),
        ([{"mix": "convex"}], "add grpo, or use mix: additive"),
        (
            [{"support": "sampled", "divergence": "reverse_kl", "estimator": "k2", "temperature": 0.7}],
            "must be sampling.temperature 1",
        ),
        ([{"weight": {"start": 0.5, "over_steps": 3}}], "reaches 0 before the run ends"),
    ],
)
def test_runs_that_cannot_work_are_refused(signals: list[dict[str, Any]], message: str) -> None:
    recipe: dict[str, Any] = {
        "name": "x", "steps": 5, "data": {"synth": "detail", "split": "train", "n": 4}, "student": "full", "prompts": 2,
        "rollouts": 2, "optimizer": {"lr": 1e-3},
    }  # fmt: skip
    filled = [one if "kind" in one else {"kind": "distill", "teacher": "crop", **one} for one in signals]
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate({**recipe, "signals": filled})
    good = {"kind": "distill", "teacher": "crop", "rollouts": "wrong", "reward": {"answer": 1.0}}
    RunConfig.model_validate({**recipe, "signals": [good]})
    RunConfig.model_validate({**recipe, "signals": [GRPO, {**good, "reward": None, "weight": {"start": 0.5, "over_steps": 3}}]})
