"""The laws of training, each broken once on purpose so that its test is known to fail."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from helpers import picture, scripted, turn, view_of

from foveate.train.batch import Stream, denominators, make_batches
from foveate.train.config import TeacherPart
from foveate.train.signals.base import constant_NK
from foveate.train.teacher import Teacher
from foveate.train.update import accumulate, checkpoint_layers
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Rollout, Signal, StopReason, View

STREAMS = {
    "distill": Stream("distill"),
    "grpo": Stream("grpo", clip_low=0.2, clip_high=0.2),
    "sft": Stream("sft", 0.5, "sequence"),
}
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return tiny_random(request.param, seed=1)


def kd(rollout: Rollout, teacher_view: View) -> Signal:
    return Signal(rollout, kd_weights_NK=constant_NK(rollout, 1.0), teacher_view=teacher_view, stream="distill")


def run(
    vlm: VLM, signals: list[Signal], micro_tokens: int = 100_000, shift_teacher: int = 0
) -> tuple[float, dict[str, torch.Tensor], object]:
    teacher = Teacher(vlm, TeacherPart())
    batches = make_batches(signals, STREAMS, vlm.renderer, micro_tokens)
    for batch in batches:
        if batch.teacher_keep_R is not None:
            batch.teacher_keep_R = (batch.teacher_keep_R - shift_teacher).clamp(min=0)
    vlm.model.zero_grad(set_to_none=True)
    found = accumulate(vlm, teacher, batches, 1.0)
    gradients = {name: one.grad.clone() for name, one in vlm.model.named_parameters() if one.grad is not None}
    return found.loss, gradients, found


@pytest.mark.parametrize("num_tools", [0, 1, 3])
@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
def test_law_1_same_view_same_weights_means_no_divergence(vlm: VLM, num_tools: int) -> None:
    view = view_of(picture(1, 84, 56), "what is it?")
    rollouts = [scripted(vlm, view, num_tools, index) for index in range(2)]
    loss, _, found = run(vlm, [kd(one, view) for one in rollouts])
    assert abs(loss) < 1e-6
    values = [value for turns in found.divergence_of.values() for row in turns for value in row]
    assert len(values) == sum(one.num_actions for one in rollouts)
    assert max(map(abs, values)) < 1e-6
    shifted, _, _ = run(vlm, [kd(one, view) for one in rollouts], shift_teacher=1)
    assert shifted > 1e-3, "a shift by one token must be seen"


@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
def test_law_2_the_teacher_keeps_the_observations_and_the_alignment_is_by_turn_and_k(vlm: VLM) -> None:
    student = view_of(picture(1, 84, 56), "what is it?")
    teacher = view_of(picture(2), picture(3), "a much longer prompt with the answer K: what is it?", role="teacher")
    rollout = scripted(vlm, student, 2)
    (batch,) = make_batches([kd(rollout, teacher)], STREAMS, vlm.renderer, 100_000)
    assert batch.teacher is not None
    assert batch.teacher_keep_R is not None
    assert len(batch.packed.ids_T) != len(batch.teacher.ids_T)
    assert torch.equal(batch.packed.targets_R, batch.teacher.targets_R), (
        "actions and observations are the same tokens in both views"
    )
    wanted = [one for part in rollout.turns for one in part.action_ids_K]
    assert batch.teacher.targets_R[batch.teacher_keep_R].tolist() == wanted
    assert batch.targets_R.tolist() == wanted
    assert [(address.turn, address.k) for address in batch.addresses] == [
        (n, k) for n, part in enumerate(rollout.turns) for k in range(len(part.action_ids_K))
    ]
    observed = {item.source.key for item in batch.teacher.items}
    assert {one.key for part in rollout.turns if part.observation for one in part.observation.pictures} <= observed


@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
def test_law_3_observations_are_read_and_never_learned(vlm: VLM) -> None:
    view = view_of(picture(1), "what is it?")

    def signal(seen: int, after: str | None) -> Signal:
        last = turn(vlm, "the answer is K", None if after is None else Message.user(after))
        first = turn(vlm, "zoom", Message.user(picture(seen)))
        rollout = Rollout("s", "g", 0, view, (first, last), StopReason.ANSWERED)
        return Signal(rollout, ce_weights_NK=constant_NK(rollout, 1.0), stream="sft")

    loss, gradients, _ = run(vlm, [signal(5, None)])
    other, _, _ = run(vlm, [signal(6, None)])
    assert abs(loss - other) > 1e-6, "what the tool showed must change what follows"
    same, same_gradients, _ = run(vlm, [signal(5, "words that nobody may learn")])
    assert same == pytest.approx(loss, abs=1e-6)
    for name, value in gradients.items():
        torch.testing.assert_close(same_gradients[name], value, atol=5e-6, rtol=1e-4)


def mixed_signals(vlm: VLM) -> list[Signal]:
    signals = []
    for g, num_tools in enumerate((0, 1, 2)):
        student, teacher = view_of(picture(g, 56 + 28 * g, 56), "q"), view_of(picture(50 + g), "q", role="teacher")
        for index in range(2):
            rollout = scripted(vlm, student, num_tools, index, f"g{g}", answer="K " * (1 + index + g))
            signals.append(kd(rollout, teacher))
            signals.append(Signal(rollout, advantages_NK=constant_NK(rollout, 0.5 - index), stream="grpo"))
            signals.append(Signal(rollout, ce_weights_NK=constant_NK(rollout, 1.0), stream="sft"))
    return signals


@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
def test_law_6_micro_batches_give_the_loss_of_the_whole(vlm: VLM) -> None:
    signals = mixed_signals(vlm)
    assert len(make_batches(signals, STREAMS, vlm.renderer, 1)) == 3
    whole, gradients, _ = run(vlm, signals)
    cut, cut_gradients, _ = run(vlm, signals, micro_tokens=1)
    assert cut == pytest.approx(whole, rel=1e-5)
    for name, value in gradients.items():
        torch.testing.assert_close(cut_gradients[name], value, atol=2e-6, rtol=1e-4)


def test_law_6_denominators_of_a_rank_are_those_of_the_step() -> None:
    vlm = tiny_random("qwen3_vl", seed=1)
    signals = mixed_signals(vlm)
    whole, _, _ = run(vlm, signals)
    totals, shares = denominators(signals, STREAMS), (signals[:6], signals[6:])
    teacher = Teacher(vlm, TeacherPart())
    parts = [accumulate(vlm, teacher, make_batches(share, STREAMS, vlm.renderer, 100_000, totals), 1.0).loss for share in shares]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_stream_weights_by_hand() -> None:
    vlm = tiny_random("qwen3_vl", seed=1)
    view = view_of(picture(1), "q")
    rollouts = [scripted(vlm, view, 0, index, "g", answer="K " * (index + 1)) for index in range(2)]
    signals = [Signal(one, ce_weights_NK=constant_NK(one, 1.0), stream="sft") for one in rollouts]
    (batch,) = make_batches(signals, STREAMS, vlm.renderer, 100_000)
    lengths = [one.num_actions for one in rollouts]
    assert lengths[0] != lengths[1]
    by_hand = [0.5 / 2 / length for length in lengths for _ in range(length)]  # stream weight, two rollouts, mean of each
    assert batch.ce[0].weights_R.tolist() == pytest.approx(by_hand)


def test_ema_teacher_by_hand() -> None:
    vlm = tiny_random("qwen3_vl", seed=1)
    teacher = Teacher(vlm, TeacherPart(weights="ema", rate=0.25))
    student = dataclasses.replace(vlm, model=copy.deepcopy(vlm.model))
    with torch.no_grad():
        for one in student.model.parameters():
            one.add_(1.0)
    before = next(teacher.vlm.model.parameters()).clone()
    teacher.follow(student, 1)
    torch.testing.assert_close(next(teacher.vlm.model.parameters()), before + 0.25)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
def test_recomputed_layers_give_the_same_gradients() -> None:
    vlm = tiny_random("qwen3_vl", seed=1)
    signals = mixed_signals(vlm)
    loss, gradients, _ = run(vlm, signals)
    vlm = tiny_random("qwen3_vl", seed=1)
    checkpoint_layers(vlm)
    calls: list[int] = []
    vlm.model.get_decoder().layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    again, same, _ = run(vlm, signals)
    assert again == pytest.approx(loss, rel=1e-6)
    assert len(calls) == 3, "teacher once, student once and once more in backward"
    for name, value in gradients.items():
        torch.testing.assert_close(same[name], value, atol=1e-6, rtol=1e-5)
