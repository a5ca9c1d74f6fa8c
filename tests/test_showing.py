"""What is written of a step's rollouts: every stream has its share, and both models' candidates are those of the plain way."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from helpers import picture, scripted, view_of

from foveate.train.config import RunConfig, TeacherPart
from foveate.train.divergence import divergence
from foveate.train.recorder import parse_rows
from foveate.train.showing import NUM_CANDIDATES, Look, chosen, looks, shown
from foveate.train.signals.base import constant_NK
from foveate.train.streams import Stream
from foveate.train.teacher import Teacher
from foveate.vlm.backbone import hidden_rows
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.packing import pack
from foveate.vlm.records import Rollout, Signal, StopReason, Turn, View

STUDENT = View("student", ())
STREAMS = {"distill": Stream("distill", divergence="reverse_kl", support="sampled"), "grpo": Stream("grpo")}


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "x",
            "steps": 10,
            "data": {"synth": "detail", "split": "train", "n": 8, "seed": 0},
            "student": "tiny.full",
            "prompts": 1,
            "signals": [{"kind": "distill", "teacher": "tiny.crop"}],
            "optimizer": {"lr": 1e-4},
            **changes,
        }
    )


def named(stream: str, group: str, index: int = 0) -> Signal:
    turn = Turn((5,), (-1.0,), "", StopReason.ANSWERED)
    return Signal(Rollout("s", group, index, STUDENT, (turn,), StopReason.ANSWERED), ce_weights_NK=((1.0,),), stream=stream)


def keys(signals: list[Signal]) -> list[tuple[str, str, int]]:
    return [(one.stream, one.rollout.group_id, one.rollout.index) for one in signals]


# ---------------------------------------------------------------- which


def test_the_first_stream_does_not_take_it_all() -> None:
    signals = [named("grpo", "main/0", i) for i in range(8)] + [named("distill", "main/0", i) for i in range(8)]
    assert keys(chosen(signals, 5)) == [
        ("grpo", "main/0", 0), ("grpo", "main/0", 1), ("grpo", "main/0", 2), ("distill", "main/0", 0), ("distill", "main/0", 1),
    ]  # fmt: skip


def test_a_stream_with_little_leaves_its_share_to_the_others_and_anchors_have_one_each() -> None:
    signals = [named("distill", "main/0"), *(named("grpo", f"main/{i}") for i in range(9))]
    signals += [
        named("anchor:crop", "anchor:crop/0"),
        named("anchor:crop", "anchor:crop/1"),
        named("anchor:zoom", "anchor:zoom/0"),
    ]
    found = keys(chosen(signals, 6))
    assert [name for name, _, _ in found] == ["distill", "grpo", "grpo", "grpo", "anchor:crop", "anchor:zoom"]
    assert found[-2:] == [("anchor:crop", "anchor:crop/0", 0), ("anchor:zoom", "anchor:zoom/0", 0)]
    assert [name for name, _, _ in keys(chosen(signals, 3))] == ["distill", "grpo", "anchor:crop"], "anchors: half at most"
    assert chosen(signals, 0) == []


def test_four_siblings_then_another_group() -> None:
    signals = [named("grpo", f"main/{g}", i) for g in range(2) for i in range(8)]
    assert [(group, index) for _, group, index in keys(chosen(signals, 8))] == [
        (f"main/{g}", i) for g in range(2) for i in range(4)
    ]  # fmt: skip


def test_most_steps_write_nothing() -> None:
    settings = config(log_rollouts_every=5, log_rollouts=1)
    signals = [named("distill", "main/0"), named("distill", "main/1")]
    assert [len(shown(settings, signals, step)) for step in (1, 2, 4, 5, 6, 10)] == [1, 0, 0, 1, 0, 1]


# ---------------------------------------------------------------- how


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen3_vl", seed=1, initializer_range=0.1)


@pytest.fixture(scope="module")
def other(vlm: VLM) -> Teacher:
    """A teacher whose weights differ from the student's."""
    teacher = Teacher(vlm, TeacherPart())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for one in teacher.vlm.model.parameters():
            one.add_(0.05 * torch.randn(one.shape, generator=generator))
    return teacher


def plain_logits(vlm: VLM, rollout: Rollout, view: View) -> list[torch.Tensor]:
    """Logits of a rollout's action tokens, turn by turn, read alone."""
    rendered = vlm.renderer.render(view, rollout.turns, rollout.sample_id)
    hidden = hidden_rows(vlm, pack([(rendered.prompt, [rendered.suffix])]))
    logits = (hidden @ vlm.head_weight.t()).detach()
    logits[:, list(vlm.renderer.banned_ids)] = -torch.inf
    return [logits[list(span)] for span in rendered.action_spans]


def check(found: list[list[tuple[tuple[int, float], ...]]], logits: list[torch.Tensor], temperature: float) -> None:
    for rows, turn_logits in zip(found, logits, strict=True):
        top = (turn_logits / temperature).softmax(-1).topk(NUM_CANDIDATES)
        assert [[token for token, _ in row] for row in rows] == top.indices.tolist()
        assert torch.tensor([[prob for _, prob in row] for row in rows]) == pytest.approx(top.values, abs=1e-5)


def test_candidates_and_divergences_are_those_of_each_reader_alone(vlm: VLM, other: Teacher) -> None:
    """Two streams of the same rollouts, with tool turns: distill with a view of the teacher's own, grpo read by the reference."""
    student, teacher_view = view_of(picture(1, 84, 56), "what is it?"), view_of(picture(2), "and the crop?", role="teacher")
    rollouts = [scripted(vlm, student, 2, index) for index in range(2)]
    signals = [Signal(one, advantages_NK=constant_NK(one, 1.0), stream="grpo") for one in rollouts]
    signals += [Signal(one, kd_weights_NK=constant_NK(one, 0.0), teacher_view=teacher_view, stream="distill") for one in rollouts]
    settings = config(sampling={"temperature": 0.7})
    found = looks(vlm, other, signals, STREAMS, settings)
    assert [dict(one.measure or {}) for one in found] == 2 * [{"divergence": "jsd", "beta": 0.5, "view": "student"}] + 2 * [
        {"divergence": "reverse_kl", "view": "teacher"}
    ]
    for signal, look in zip(signals, found, strict=True):
        own = plain_logits(vlm, signal.rollout, student)
        theirs = plain_logits(other.vlm, signal.rollout, signal.teacher_view or student)
        check(look.student_NK, own, 0.7)
        assert look.teacher_NK is not None
        check(look.teacher_NK, theirs, 0.7)
        kind = STREAMS[signal.stream].divergence
        assert look.divergence_NK is not None
        for values, s, t in zip(look.divergence_NK, own, theirs, strict=True):
            assert torch.tensor(values) == pytest.approx(divergence(kind, s.log_softmax(-1), t.log_softmax(-1)), abs=1e-5)
            assert max(values) > 1e-3, "the two must differ"


def test_without_a_teacher_there_are_the_students_candidates_alone(vlm: VLM) -> None:
    view = view_of(picture(1, 84, 56), "what is it?")
    rollout = scripted(vlm, view, 1)
    (look,) = looks(vlm, None, [Signal(rollout, advantages_NK=constant_NK(rollout, 1.0), stream="grpo")], STREAMS, config())
    check(look.student_NK, plain_logits(vlm, rollout, view), 1.0)
    assert look == Look(look.student_NK, None, None, None)


def test_a_trust_regions_teacher_is_the_mixture(vlm: VLM, other: Teacher) -> None:
    view = view_of(picture(1, 84, 56), "what is it?")
    rollout = scripted(vlm, view, 0)
    signal = Signal(rollout, kd_weights_NK=constant_NK(rollout, 1.0), teacher_view=view, stream="distill")
    mixed = Teacher(vlm, TeacherPart(weights="trust_region", rate=0.25))
    mixed.vlm = other.vlm
    (look,) = looks(vlm, mixed, [signal], STREAMS, config())
    own, theirs = plain_logits(vlm, rollout, view), plain_logits(other.vlm, rollout, view)
    assert look.teacher_NK is not None
    check(look.teacher_NK, [(0.25 * s + 0.75 * t).nan_to_num(nan=-torch.inf) for s, t in zip(own, theirs, strict=True)], 1.0)


def test_a_run_writes_what_its_step_learned_from(tmp_path: Path) -> None:
    """All rollouts of the first step are written: their tokens' mean divergence is the one that the update measured."""
    from foveate.train.loop import train

    settings = config(steps=1, prompts=4, log_rollouts=4, loggers=(), threads=1, sampling={"max_new_tokens": 6})
    train(settings, tmp_path / "run")
    rows = parse_rows((tmp_path / "run/rollouts/step_000001.jsonl").read_text(encoding="utf-8"))
    assert len(rows) == 4
    values = [value for row in rows for turn in row["turns"] for value in turn["divergence"]]
    (metrics,) = parse_rows((tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8"))
    assert sum(values) / len(values) == pytest.approx(metrics["loss/distill/divergence"], rel=1e-3)
    for turn in (turn for row in rows for turn in row["turns"]):
        assert len(turn["top_student"]) == len(turn["top_teacher"]) == len(turn["ids"])
        for text, logprob, top in zip(turn["tokens"], turn["logprobs"], turn["top_student"], strict=True):
            assert dict(map(tuple, top)).get(text, 0.0) == pytest.approx(math.exp(logprob), abs=2e-3) or text not in dict(top)


def test_a_rollout_without_a_token_is_no_error(vlm: VLM, other: Teacher) -> None:
    rollout = dataclasses.replace(scripted(vlm, view_of("hm?"), 0), turns=())
    (look,) = looks(vlm, other, [Signal(rollout, advantages_NK=(), stream="grpo")], STREAMS, config())
    assert (look.student_NK, look.divergence_NK) == ([], [])
