"""Signals: numbers by hand."""

from __future__ import annotations

import dataclasses

import pytest
from helpers import picture, scripted, view_of

from foveate.train.config import Anchor, DistillSignal, GrpoSignal, SftSignal
from foveate.train.signals.advantage import advantages
from foveate.train.signals.anchor import AnchorSignal
from foveate.train.signals.base import Context
from foveate.train.signals.registry import builder
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.records import Group, Privileged, Reward, Rollout, Sample, Signal, Turn


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen3_vl", seed=1)


def no_teacher(pairs: object) -> list[tuple[tuple[float, ...], ...]]:
    raise AssertionError("this signal has no business with the teacher")


def group(vlm: VLM, rewards: tuple[float, ...] = (1.0, 0.0)) -> Group:
    image = picture(1, 100, 80)
    sample = Sample(id="s", question="q", answer="K", images=(image,), privileged=Privileged(boxes_px_xyxy=((10, 10, 50, 40),)))
    view = view_of(image, "q")
    rollouts = (scripted(vlm, view, 1, index) for index in range(len(rewards)))
    return Group(
        sample, tuple(dataclasses.replace(one, reward=Reward(value)) for one, value in zip(rollouts, rewards, strict=True))
    )


def test_grpo_advantages_by_hand() -> None:
    assert advantages([1.0, 0.0, 0.0, 1.0], "mean") == [0.5, -0.5, -0.5, 0.5]
    std = (4 * 0.25 / 3) ** 0.5
    assert advantages([1.0, 0.0, 0.0, 1.0], "mean_std") == pytest.approx(
        [0.5 / (std + 1e-4), -0.5 / (std + 1e-4), -0.5 / (std + 1e-4), 0.5 / (std + 1e-4)]
    )
    assert advantages([0.3, 0.3], "mean_std") == [0.0, 0.0]


def test_grpo_gives_every_action_token_its_rollouts_advantage(vlm: VLM) -> None:
    made = group(vlm)
    signals = builder(GrpoSignal(kind="grpo", advantage="mean")).build([made], Context(no_teacher))
    assert [one.advantages_NK for one in signals] == [
        tuple((value,) * len(turn.action_ids_K) for turn in rollout.turns)
        for value, rollout in zip((0.5, -0.5), made.rollouts, strict=True)
    ]
    unscored = dataclasses.replace(made, rollouts=tuple(dataclasses.replace(one, reward=None) for one in made.rollouts))
    with pytest.raises(ValueError, match="sample s: grpo needs rewards"):
        builder(GrpoSignal(kind="grpo")).build([unscored], Context(no_teacher))


def test_distillation_by_the_sampled_token_is_the_log_ratio(vlm: VLM) -> None:
    made = group(vlm)

    def teacher(pairs: object) -> list[tuple[tuple[float, ...], ...]]:
        return [tuple(tuple(-0.05 for _ in turn.action_ids_K) for turn in rollout.turns) for rollout, _ in pairs]  # type: ignore[attr-defined]

    config = DistillSignal.model_validate(
        {"kind": "distill", "teacher": "crop", "divergence": "reverse_kl", "support": "sampled"}
    )
    first, _ = builder(config).build([made], Context(teacher))
    for row, turn in zip(first.advantages_NK or (), made.rollouts[0].turns, strict=True):
        assert row == pytest.approx([-0.05 - own for own in turn.action_logprobs_K])
    assert first.kd_weights_NK is None
    with pytest.raises(ValueError, match="sampled estimates the reverse KL"):
        DistillSignal.model_validate({"kind": "distill", "teacher": "crop", "divergence": "jsd", "support": "sampled"})


def test_distillation_shows_the_teacher_the_crop_and_keeps_the_tokens(vlm: VLM) -> None:
    made = group(vlm)
    signals = builder(DistillSignal.model_validate({"kind": "distill", "teacher": "crop"})).build([made], Context(no_teacher))
    assert {one.teacher_view for one in signals} == {signals[0].teacher_view}, "one teacher prompt for the whole group"
    assert signals[0].teacher_view is not None
    (crop,) = signals[0].teacher_view.pictures
    assert crop.size_px == (60, 46), "box 40 x 30 with a quarter of its side around it: 60 x 45, whole pixels outwards"
    assert signals[0].rollout is made.rollouts[0]


def test_anchor_teacher_has_the_students_view(vlm: VLM) -> None:
    made = group(vlm)
    anchor = AnchorSignal(Anchor.model_validate({"name": "crop", "view": "crop", "prompts": 1, "weight": 0.25}))
    (stream,) = anchor.streams()
    assert (stream.name, stream.weight, stream.divergence) == ("anchor:crop", 0.25, "forward_kl")
    assert all(one.teacher_view is one.rollout.view for one in anchor.build([made], Context(no_teacher)))


def test_sft_weighs_every_action_token(vlm: VLM) -> None:
    made = group(vlm)
    (first, _) = builder(SftSignal(kind="sft")).build([made], Context(no_teacher))
    assert first.ce_weights_NK == tuple((1.0,) * len(turn.action_ids_K) for turn in made.rollouts[0].turns)


def test_signals_of_another_length_are_refused(vlm: VLM) -> None:
    rollout: Rollout = group(vlm).rollouts[0]
    with pytest.raises(ValueError, match="g/0: advantages_NK has lengths"):
        Signal(rollout, advantages_NK=((0.0,), (0.0,)), stream="grpo")
    with pytest.raises(ValueError, match="kd weights without a teacher view"):
        Signal(rollout, kd_weights_NK=tuple((1.0,) * len(turn.action_ids_K) for turn in rollout.turns), stream="distill")
    with pytest.raises(ValueError, match="3 action ids but 1 log-probs"):
        Turn((1, 2, 3), (0.0,), "", rollout.stop)
