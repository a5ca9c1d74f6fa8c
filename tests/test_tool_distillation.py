"""Distillation over tool trajectories: the teacher sees the crop in its prompt, both read the same turns and tool pictures."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import picture, scripted, turn

from foveate.datasets.views import make_view, resolve_view
from foveate.train.batch import Batch, make_batches
from foveate.train.config import AnySignal, DistillSignal, GrpoSignal, RunConfig, TeacherPart
from foveate.train.losses import KDRows, RowLoss, head_loss
from foveate.train.measure import sampled_logprobs, token_values
from foveate.train.signals.base import Context
from foveate.train.signals.mix import mixed
from foveate.train.signals.registry import builder
from foveate.train.teacher import Teacher
from foveate.train.update import Gradients, accumulate
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Group, Privileged, Reward, Rollout, Sample, Signal, StopReason

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
ZOOMED = {"image": "replace_by_crop", "crop": {"scale": 3.0}}
BOTH = {"image": "append_crops", "crop": {"scale": 1.5}, "answer": " It is {answer}."}
K2 = {"support": "sampled", "divergence": "reverse_kl", "estimator": "k2"}
FADING = {"start": 0.5, "over_steps": 2}
TOOLS = "You may zoom."


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return tiny_random(request.param, seed=1)


def sample() -> Sample:
    evidence = Privileged(boxes_px_xyxy=((20, 10, 90, 60),))
    return Sample(id="s", question="what is it?", answer="K", images=(picture(1, 140, 112),), privileged=evidence)


def group(vlm: VLM, num_tools: tuple[int, ...], outcomes: str = "rw") -> Group:
    """Rollouts of the plain view with so many tool pictures each; outcomes r or w, in turn."""
    made = sample()
    view = make_view(made, resolve_view("full"), "student")
    rollouts = [scripted(vlm, view, num, index, answer="K " * (1 + index)) for index, num in enumerate(num_tools)]
    rewards = [
        Reward(1.0, outcome="right") if outcomes[n % len(outcomes)] == "r" else Reward(0.0, outcome="wrong")
        for n in range(len(rollouts))
    ]
    return Group(made, tuple(dataclasses.replace(one, reward=won) for one, won in zip(rollouts, rewards, strict=True)))


def distill(**changes: Any) -> DistillSignal:
    return DistillSignal.model_validate({"kind": "distill", "teacher": ZOOMED, **changes})


def context(vlm: VLM, teacher: Teacher, step: int = 0) -> Context:
    def measure(pairs: Any, stream: Any, what: Any) -> Any:
        return token_values(vlm, teacher, pairs, stream, what, micro_tokens=100_000, temperature=1.0)

    score = partial(sampled_logprobs, teacher.vlm, micro_tokens=100_000, temperature=1.0)
    return Context(score, step, lambda sample: TOOLS, vlm.renderer.token_bytes, measure)


def learn(
    vlm: VLM, teacher: Teacher, groups: list[Group], configs: list[AnySignal], step: int = 0
) -> tuple[Gradients, dict[str, torch.Tensor], list[Batch]]:
    """One pass of a step as the loop makes it: the loss, the gradients, and the batches they came from."""
    builders = [builder(one) for one in configs]
    signals = mixed([made for one in builders for made in one.build(groups, context(vlm, teacher, step))], configs, step)
    batches = make_batches(signals, {one.name: one for each in builders for one in each.streams()}, vlm.renderer, 100_000)
    vlm.model.zero_grad(set_to_none=True)
    found = accumulate(vlm, teacher, batches, 1.0)
    gradients = {name: one.grad.clone() for name, one in vlm.model.named_parameters() if one.grad is not None}
    return found, gradients, batches


def other_teacher(vlm: VLM) -> Teacher:
    """A teacher whose weights differ from the student's."""
    teacher = Teacher(vlm, TeacherPart())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for one in teacher.vlm.model.parameters():
            one.add_(0.02 * torch.randn(one.shape, generator=generator))
    return teacher


# ---- laws 1 to 3 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tools", [0, 1, 3])
@pytest.mark.parametrize("settings", [{"divergence": "jsd"}, {"divergence": "forward_kl", "term_clip": 0.05}, K2])
def test_same_view_and_weights_have_no_divergence_at_any_action_token(vlm: VLM, num_tools: int, settings: dict[str, Any]) -> None:
    made = group(vlm, (num_tools, num_tools))
    found, _, _ = learn(vlm, Teacher(vlm, TeacherPart()), [made], [distill(teacher="full", **settings)])
    values = [value for turns in found.divergence_of.values() for row in turns for value in row]
    assert len(values) == sum(one.num_actions for one in made.rollouts)
    assert max(map(abs, values)) < 1e-6
    zoomed, _, _ = learn(vlm, Teacher(vlm, TeacherPart()), [made], [distill(**settings)])
    values = [value for turns in zoomed.divergence_of.values() for row in turns for value in row]
    assert max(map(abs, values)) > 1e-6, "another view must be seen"


@pytest.mark.parametrize("view", [ZOOMED, BOTH])
@pytest.mark.parametrize("num_tools", [0, 1, 3])
def test_the_teachers_log_probs_meet_the_students_by_turn_and_token(vlm: VLM, num_tools: int, view: dict[str, Any]) -> None:
    """k2 of a token is half the squared difference of two numbers that are computed here apart, each in its own prompt."""
    made = group(vlm, (num_tools, 2))
    teacher = other_teacher(vlm)
    found, _, (batch,) = learn(vlm, teacher, [made], [distill(teacher=view, **K2)])
    seen = make_view(made.sample, resolve_view(view), "teacher")
    student = Teacher(vlm, TeacherPart())
    for rollout in made.rollouts:
        (theirs,) = sampled_logprobs(teacher.vlm, [(rollout, seen)], micro_tokens=100_000, temperature=1.0)
        (own,) = sampled_logprobs(student.vlm, [(rollout, rollout.view)], micro_tokens=100_000, temperature=1.0)
        for n, (a, b, k2) in enumerate(zip(own, theirs, found.divergence_of["g", rollout.index], strict=True)):
            assert k2 == pytest.approx([0.5 * (x - y) ** 2 for x, y in zip(a, b, strict=True)], rel=2e-3, abs=2e-6), n
    assert batch.teacher is not None
    assert len(batch.packed.ids_T) != len(batch.teacher.ids_T), "or a shift could not be seen"


def test_views_of_any_size_share_the_turns_and_their_pictures(vlm: VLM) -> None:
    made = group(vlm, (3,))
    (rollout,) = made.rollouts
    wanted = [token for one in rollout.turns for token in one.action_ids_K]
    shown = [one.key for played in rollout.turns if played.observation for one in played.observation.pictures]
    assert len(shown) == 3
    prompts = set()
    for view in (ZOOMED, BOTH, {"image": "replace_by_crop", "crop": {"scale": 1.0}}, "full"):
        _, _, (batch,) = learn(vlm, Teacher(vlm, TeacherPart()), [made], [distill(teacher=view)])
        assert batch.teacher is not None
        assert batch.teacher_keep_R is not None
        assert batch.teacher.targets_R[batch.teacher_keep_R].tolist() == wanted == batch.targets_R.tolist()
        assert torch.equal(batch.teacher.targets_R, batch.packed.targets_R), "observations are the same tokens too"
        seen = [item.source.key for item in batch.teacher.items if isinstance(item.source, Picture)]
        assert seen[-3:] == shown, "the teacher's pictures of the turns are the student's"
        assert len(batch.kd[0].weights_R) == rollout.num_actions, "observations have no weight"
        assert batch.kd[0].weights_R.sum() == pytest.approx(1.0)
        prompts.add(len(batch.teacher.ids_T))
    assert len(prompts) == 4, "four prompts of different lengths"


def test_the_teacher_is_offered_the_samples_tools_where_its_view_says_so(vlm: VLM) -> None:
    made = group(vlm, (1,))
    teacher = Teacher(vlm, TeacherPart())
    (signal,) = builder(distill(teacher={**BOTH, "system": "tools"})).build([made], context(vlm, teacher))
    assert signal.teacher_view is not None
    assert signal.teacher_view.messages[0] == Message.system(TOOLS)
    assert [one.size_px for one in signal.teacher_view.pictures] == [(140, 112), (105, 75)], "the picture, and its crop x 1.5"


def test_an_observation_is_read_by_the_teacher_and_teaches_nothing_itself(vlm: VLM) -> None:
    made = sample()
    view = make_view(made, resolve_view("full"), "student")

    def rollout(shown: int, after: str | None) -> Rollout:
        first = turn(vlm, "zoom", Message.user("<tool_response>", picture(shown), "</tool_response>"))
        last = turn(vlm, "the answer is K", None if after is None else Message.user(after))
        return Rollout("s", "g", 0, view, (first, last), StopReason.ANSWERED)

    teacher = other_teacher(vlm)
    seen = make_view(made, resolve_view(ZOOMED), "teacher")
    both = [(rollout(shown, None), seen) for shown in (5, 6)]
    one, two = (sampled_logprobs(teacher.vlm, [pair], micro_tokens=100_000, temperature=1.0)[0] for pair in both)
    assert one[0] == pytest.approx(two[0], abs=1e-6), "what comes later changes nothing before"
    assert max(abs(a - b) for a, b in zip(one[1], two[1], strict=True)) > 1e-4, "the teacher reads what the tool showed"

    found, gradients, _ = learn(vlm, teacher, [Group(made, (rollout(5, None),))], [distill()])
    more, same, _ = learn(vlm, teacher, [Group(made, (rollout(5, "words that nobody may learn"),))], [distill()])
    assert more.loss == pytest.approx(found.loss, rel=1e-5)
    for name, value in gradients.items():
        torch.testing.assert_close(same[name], value, atol=5e-6, rtol=1e-4)


# ---- the loss of the head -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "support", "clip"),
    [("reverse_kl", "sampled", None), ("forward_kl", "full", 0.05), ("reverse_kl", "full", 0.05), ("reverse_kl", "top", 0.05)],
)
def test_the_head_differentiates_k2_and_clipped_terms(divergence: str, support: Any, clip: float | None) -> None:
    """Rows given out of order, in chunks of 2, with weights and a temperature, against autograd on whole logits."""
    draw = torch.Generator().manual_seed(0)
    hidden, taught = (torch.randn(7, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    head, teacher_head = (torch.randn(9, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    index, weights = torch.tensor([5, 0, 3, 6]), torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
    targets = torch.tensor([1, 8, 0, 4, 2, 7, 3])
    hidden.requires_grad_()
    term = KDRows(taught[:4], teacher_head, weights, index, divergence, support=support, top_c=3, temperature=1.5, term_clip=clip)
    loss, stats = head_loss(hidden, head, RowLoss(targets, kd=[term]), chunk=2)
    (got,) = torch.autograd.grad(loss, hidden)

    student = (hidden @ head.T / 1.5).log_softmax(-1)[index]
    teacher = (taught[:4] @ teacher_head.T / 1.5).log_softmax(-1)
    if support == "sampled":
        values = 0.5 * (student - teacher).gather(1, targets[index][:, None])[:, 0] ** 2
    else:
        if support == "top":
            ids = student.topk(3, -1).indices
            student, teacher = (
                torch.cat([one.gather(1, ids), one.scatter(1, ids, -torch.inf).logsumexp(-1, True)], 1)
                for one in (student, teacher)
            )
        terms = teacher.exp() * (teacher - student) if divergence == "forward_kl" else student.exp() * (student - teacher)
        assert (terms > 0.05).any()
        values = terms.clamp(max=0.05).sum(-1)
    torch.testing.assert_close(stats.kd_R[0], values.detach(), rtol=1e-9, atol=1e-12)
    (want,) = torch.autograd.grad((weights * values).sum(), hidden)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)
    assert loss.item() == pytest.approx(float((weights * values.detach()).sum()))


# ---- rl and distillation in one update ----------------------------------------------------------------------------------

GRPO = GrpoSignal(kind="grpo", advantage="mean", clip_low=10.0, clip_high=10.0)


def test_kdrl_is_one_update_of_two_streams_with_weights_by_hand() -> None:
    vlm = tiny_random("qwen3_vl", seed=1)
    made = group(vlm, (1, 2, 1))  # right, wrong, right
    teacher, student = other_teacher(vlm), Teacher(vlm, TeacherPart())
    kdrl = distill(weight=0.005, rollouts="unparsed+wrong", **K2)
    found, gradients, (batch,) = learn(vlm, teacher, [made], [GRPO, kdrl])
    total = sum(one.num_actions for one in made.rollouts)
    wrong = made.rollouts[1]
    assert batch.rl[0].weights_R.tolist() == pytest.approx([1 / total] * total)
    assert batch.kd[0].weights_R.tolist() == pytest.approx([0.005 / total] * wrong.num_actions), "the mean is over all tokens"
    assert {batch.addresses[index].rollout.index for index in batch.kd[0].index_R.tolist()} == {1}

    by_hand = 0.0
    seen = make_view(made.sample, resolve_view(ZOOMED), "teacher")
    for rollout, advantage in zip(made.rollouts, (1 / 3, -2 / 3, 1 / 3), strict=True):
        (own,) = sampled_logprobs(student.vlm, [(rollout, rollout.view)], micro_tokens=100_000, temperature=1.0)
        for played, row in zip(rollout.turns, own, strict=True):
            ratios = [math.exp(new - old) for new, old in zip(row, played.action_logprobs_K, strict=True)]
            by_hand -= sum(advantage * ratio for ratio in ratios) / total
    (own,) = sampled_logprobs(student.vlm, [(wrong, wrong.view)], micro_tokens=100_000, temperature=1.0)
    (theirs,) = sampled_logprobs(teacher.vlm, [(wrong, seen)], micro_tokens=100_000, temperature=1.0)
    gaps = [a - b for x, y in zip(own, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    by_hand += 0.005 * sum(0.5 * gap**2 for gap in gaps) / total
    assert found.loss == pytest.approx(by_hand, rel=1e-4)

    _, rl, _ = learn(vlm, teacher, [made], [GRPO])
    _, kd, _ = learn(vlm, teacher, [made], [kdrl])
    assert all(one.abs().max() > 0 for one in (rl["lm_head.weight"], kd["lm_head.weight"]))
    for name, value in gradients.items():
        torch.testing.assert_close(value, rl[name] + kd[name], atol=1e-6, rtol=1e-4)


def test_k2_and_score_have_one_gradient_on_policy() -> None:
    """With the sampler's log-probs those of the student, both are (log p_S - log p_T) grad log p_S."""
    vlm = tiny_random("qwen3_vl", seed=1)
    made = group(vlm, (1, 2))
    student = Teacher(vlm, TeacherPart())
    scores = sampled_logprobs(student.vlm, [(one, one.view) for one in made.rollouts], micro_tokens=100_000, temperature=1.0)
    rollouts = [
        dataclasses.replace(
            one,
            turns=tuple(dataclasses.replace(a, action_logprobs_K=row) for a, row in zip(one.turns, score, strict=True)),
        )
        for one, score in zip(made.rollouts, scores, strict=True)
    ]
    on_policy = Group(made.sample, tuple(rollouts))
    teacher = other_teacher(vlm)
    sampled = {"support": "sampled", "divergence": "reverse_kl", "turns": "last"}
    first, k2, _ = learn(vlm, teacher, [on_policy], [distill(**sampled, estimator="k2")])
    second, score, _ = learn(vlm, teacher, [on_policy], [distill(**sampled)])
    assert first.loss > 0 != second.loss
    assert k2["lm_head.weight"].abs().max() > 1e-4
    for name, value in k2.items():
        torch.testing.assert_close(score[name], value, atol=2e-6, rtol=1e-3)


def test_trace_gives_each_span_token_its_convex_share() -> None:
    vlm = tiny_random("qwen3_vl", seed=1)
    made = group(vlm, (1, 1))
    teacher = other_teacher(vlm)
    trace = distill(
        divergence="reverse_kl",
        term_clip=0.05,
        reduction="sequence",
        weight={"start": 0.5, "hold_steps": 10, "over_steps": 30},
        rollouts="wrong",
        tokens="spans",
        spans={"kind": "regex", "pattern": r"zoom (\d)", "coverage_max_frac": 0.25},
        mix="convex",
    )
    rl = GRPO.model_copy(update={"reduction": "sequence"})
    wrong = made.rollouts[1]
    span = [(0, k) for k, token in enumerate(wrong.turns[0].action_ids_K) if vlm.renderer.decode([token]) == "1"]
    assert len(span) == 2 - 1, "'zoom 1 0': the first number"
    for step, lam in ((0, 0.5), (25, 0.25), (39, 0.5 / 30)):
        _, _, (batch,) = learn(vlm, teacher, [made], [rl, trace], step)
        assert batch.kd[0].weights_R.tolist() == pytest.approx([lam / 2 / wrong.num_actions]), "lam x (1/|S|) x |S|/|y| over 2"
        (place,) = batch.kd[0].index_R.tolist()
        assert [(one.turn, one.k) for one in [batch.addresses[place]]] == span
        advantages = dict(zip(batch.rl[0].index_R.tolist(), batch.rl[0].advantages_R.tolist(), strict=True))
        assert advantages.pop(place) == pytest.approx(-0.5 * (1 - lam / 0.5))
        assert set(advantages.values()) == {0.5, -0.5}
        assert batch.rl[0].weights_R[place] == pytest.approx(1 / 2 / wrong.num_actions)
    _, _, (batch,) = learn(vlm, teacher, [made], [rl, trace], 40)
    assert batch.kd == []
    assert batch.teacher is None, "after the schedule nothing of the teacher is left"


def test_what_is_measured_is_what_the_loss_sees() -> None:
    vlm = tiny_random("qwen3_vl", seed=1)
    made = group(vlm, (1, 2))
    teacher = other_teacher(vlm)
    stream = builder(distill(divergence="forward_kl")).streams()[0]
    pairs = [(one, make_view(made.sample, resolve_view(ZOOMED), "teacher")) for one in made.rollouts]
    found, _, (batch,) = learn(vlm, teacher, [made], [distill(divergence="forward_kl")])
    cut = token_values(vlm, teacher, pairs, stream, "divergence", micro_tokens=1, temperature=1.0)
    for one, rows in zip(made.rollouts, cut, strict=True):
        for mine, theirs in zip(rows, found.divergence_of["g", one.index], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    entropies = token_values(vlm, None, pairs, stream, "entropy", micro_tokens=100_000, temperature=1.0)
    mean = sum(value for rows in entropies for row in rows for value in row) / len(batch.keep_R)
    assert mean == pytest.approx(found.tally.means()["policy/entropy"], rel=1e-5)
    (signal, _) = builder(distill(divergence="forward_kl", tokens="top_divergence", top_frac=0.2)).build(
        [made], context(vlm, teacher)
    )
    flat = [value for row in cut[0] for value in row]
    chosen = [value for row in signal.kd_weights_NK or () for value in row]
    kept = [value for value, weight in zip(flat, chosen, strict=True) if weight]
    assert len(kept) == -(-len(flat) // 5)
    assert min(kept) >= max(value for value, weight in zip(flat, chosen, strict=True) if not weight)


# ---- through the loop ---------------------------------------------------------------------------------------------------


def test_a_run_fades_its_teacher_out(tmp_path: Path) -> None:
    from foveate.train.loop import step
    from foveate.train.run import Run

    recipe: dict[str, Any] = {
        "name": "kdrl", "model": "tiny", "steps": 3, "threads": 1, "prompts": 2, "rollouts": 4, "student": "tiny.full",
        "data": {"synth": "detail", "split": "train", "n": 8, "seed": 1}, "sampling": {"max_new_tokens": 10},
        "signals": [
            {"kind": "grpo"},
            {"kind": "distill", "teacher": "tiny.crop", "rollouts": "unparsed+wrong", "weight": FADING, **K2},
        ],
        "optimizer": {"lr": 1e-4}, "loggers": [],
    }  # fmt: skip
    run = Run(RunConfig.model_validate(recipe), tmp_path)
    assert run.teacher is not None
    calls: list[int] = []
    hook = run.teacher.vlm.model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(run.progress.step))
    for _ in range(3):
        step(run)
    hook.remove()
    assert set(calls) == {0, 1}, "at weight 0 the teacher is not run"


def test_a_run_without_rl_tells_outcomes_by_the_signals_own_reward(tmp_path: Path) -> None:
    from foveate.train.loop import collect
    from foveate.train.run import Run

    recipe: dict[str, Any] = {
        "name": "wrong_only", "model": "tiny", "steps": 1, "threads": 1, "prompts": 4, "rollouts": 2, "student": "tiny.full",
        "data": {"synth": "detail", "split": "train", "n": 8, "seed": 1}, "sampling": {"max_new_tokens": 10},
        "signals": [{"kind": "distill", "teacher": "tiny.crop", "rollouts": "wrong", "reward": {"answer": 1.0}}],
        "optimizer": {"lr": 1e-4}, "loggers": [],
    }  # fmt: skip
    found, signals = collect(Run(RunConfig.model_validate(recipe), tmp_path), 0)
    groups = found.groups
    wrong = [one for made in groups for one in made.rollouts if one.reward and one.reward.outcome == "wrong"]
    assert 0 < len(wrong) < 8
    assert [one.rollout for one in signals] == wrong
    assert all(isinstance(one, Signal) and one.kd_weights_NK for one in signals)
