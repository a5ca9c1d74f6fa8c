"""Policy terms: every formula by hand, and its gradient against plain autograd on whole logits."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.train.batch import RlRows
from foveate.train.losses import HeadStats, PolicyRows, RowLoss, head_loss
from foveate.train.policy import (
    cispo_loss,
    correction_weights,
    dual_clip_loss,
    kl_estimate,
    kl_rows,
    needs_current,
    policy_rows,
    sequence_means,
    sequence_sums,
)
from foveate.train.streams import Stream

F64 = torch.float64
CPU = torch.device("cpu")
LENGTHS = (3, 1, 5, 4)
R, V, D = sum(LENGTHS), 13, 6
LN2 = math.log(2)


def rows(**bounds: Any) -> PolicyRows:
    nothing = torch.zeros(0)
    return PolicyRows(nothing, nothing, **bounds)


def slope(loss: Any, log_ratio: float, advantage: float, bounds: PolicyRows) -> tuple[float, float]:
    """(loss, its derivative by log p) of one token with p_old = 1/8."""
    old = torch.tensor([-3 * LN2], dtype=F64)
    new = (old + log_ratio).requires_grad_()
    value = loss(new, old, torch.tensor([advantage], dtype=F64), bounds)
    (grad,) = torch.autograd.grad(value.sum(), new)
    return float(value.detach()), float(grad)


def test_dual_clip_by_hand() -> None:
    bounds = rows(clip_low=0.2, clip_high=0.2)

    def three(*args: Tensor) -> Tensor:
        return dual_clip_loss(*args, most=3.0)  # type: ignore[arg-type]

    assert slope(three, 2 * LN2, -1.0, bounds) == pytest.approx((3.0, 0.0)), "ratio 4 against a bad token: held at 3"
    assert slope(three, LN2, -1.0, bounds) == pytest.approx((2.0, 2.0)), "ratio 2 is not held"
    assert slope(three, 2 * LN2, 0.5, bounds) == pytest.approx((-0.6, 0.0)), "a good token is clipped as ever"
    assert slope(three, -LN2, -1.0, bounds) == pytest.approx((0.8, 0.0))
    assert slope(three, -LN2, 0.5, bounds) == pytest.approx((-0.25, -0.25))


def test_cispo_by_hand() -> None:
    bounds = rows(clip_high=0.5)
    # ratio 4 is cut to 1.5, log p = ln(1/2); the gradient stays -1.5 A
    assert slope(cispo_loss, 2 * LN2, 2.0, bounds) == pytest.approx((-1.5 * 2 * -LN2, -3.0))
    assert slope(cispo_loss, 2 * LN2, -1.0, bounds) == pytest.approx((1.5 * -LN2, 1.5))
    assert slope(cispo_loss, -LN2, 1.0, bounds) == pytest.approx((-0.5 * -4 * LN2, -0.5)), "no bound below"
    assert slope(cispo_loss, 2 * LN2, 1.0, rows()) == pytest.approx((-4 * -LN2, -4.0)), "no bound at all"


def test_kl_estimates_by_hand() -> None:
    new, reference = torch.tensor([0.5], dtype=F64).log().requires_grad_(), torch.tensor([0.25], dtype=F64).log()
    for kind, value, derivative in (("k1", LN2, 1.0), ("k2", LN2**2 / 2, LN2), ("k3", 0.5 + LN2 - 1, 0.5)):
        found = kl_estimate(kind, new, reference)
        assert found.item() == pytest.approx(value)
        assert torch.autograd.grad(found, new)[0].item() == pytest.approx(derivative)


def test_kl_in_expectation_over_a_vocabulary_of_five() -> None:
    """k1 and k3 have the value of KL(p || q); k2 has its gradient, and k3 has not."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=g, dtype=F64).requires_grad_()
    p_V, q_V = logits.log_softmax(-1), torch.randn(5, generator=g, dtype=F64).log_softmax(-1)
    true = (p_V.exp() * (p_V - q_V)).sum()
    (wanted,) = torch.autograd.grad(true, logits, retain_graph=True)

    def expected(kind: str) -> Tensor:
        return (p_V.detach().exp() * kl_estimate(kind, p_V, q_V)).sum()

    assert expected("k1").item() == pytest.approx(true.item())
    assert expected("k3").item() == pytest.approx(true.item())
    assert abs(expected("k2").item() - true.item()) > 1e-3
    torch.testing.assert_close(torch.autograd.grad(expected("k2"), logits, retain_graph=True)[0], wanted)
    assert (torch.autograd.grad(expected("k3"), logits)[0] - wanted).abs().max() > 1e-2


def test_absurd_log_ratios_stay_finite() -> None:
    far, near = torch.tensor([-500.0], requires_grad=True), torch.tensor([-1.0])
    value = kl_estimate("k3", far, near)
    assert value.isfinite().all()
    assert value > 1e6
    assert correction_weights(near, far, torch.tensor([0]), mode="mask", level="token", cap=2.0)[0].item() == 0


def test_sums_and_means_of_rollouts() -> None:
    values, sequence = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([7, 2, 7, 2])  # any labels, in any order
    assert sequence_sums(values, sequence).tolist() == [4.0, 12.0, 4.0, 12.0]
    assert sequence_means(values, sequence).tolist() == [2.0, 6.0, 2.0, 6.0]
    assert sequence_sums(values[:0], sequence[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("mode", "level", "cap", "wanted"),
    [
        ("truncate", "token", 2.0, [2.0, 0.5, 1.5]),
        ("mask", "token", 2.0, [0.0, 0.5, 1.5]),
        ("truncate", "sequence", 1.8, [1.8, 1.8, 1.5]),  # the product of the first rollout's 4 and 1/2 is 2
        ("mask", "sequence", 1.8, [0.0, 0.0, 1.5]),
        ("mask", "sequence", 2.1, [2.0, 2.0, 1.5]),
    ],
)
def test_corrections_by_hand(mode: str, level: str, cap: float, wanted: list[float]) -> None:
    engine = torch.tensor([0.1, 0.6, 0.2], dtype=F64).log()
    trainer = torch.tensor([0.4, 0.3, 0.3], dtype=F64).log()
    weights, raw = correction_weights(trainer, engine, torch.tensor([0, 0, 1]), mode=mode, level=level, cap=cap)
    assert weights.tolist() == pytest.approx(wanted)
    assert raw.tolist() == pytest.approx([4.0, 0.5, 1.5] if level == "token" else [2.0, 2.0, 1.5])


# ---------------------------------------------------------------- against plain autograd


def problem(stream: Stream, seed: int = 0, start: bool = False) -> tuple[Tensor, Tensor, Tensor, RlRows]:
    """Hidden states, head, targets and rl rows in shuffled places: four rollouts of 3, 1, 5 and 4 tokens."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    hidden, head, targets = normal(R, D).requires_grad_(), normal(V, D).requires_grad_(), torch.randint(0, V, (R,), generator=g)
    own = (hidden @ head.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0].detach()
    sequence = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    order = torch.randperm(R, generator=g)
    part = RlRows(
        stream,
        index_R=order,
        advantages_R=torch.tensor([1.0, -1.5, 0.5, -0.25], dtype=F64)[sequence][order],
        old_logprobs_R=(own + 0.5 * normal(R))[order],
        weights_R=torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=F64)[sequence][order],
        sequence_R=sequence[order],
        reference_R=(own + 0.5 * normal(R))[order],
        kl_weights_R=torch.full((R,), 0.7, dtype=F64),
        start_logprobs_R=(own + 0.2 * normal(R))[order] if start else None,
    )
    return hidden, head, targets, part


def chunked(
    hidden: Tensor, head: Tensor, targets: Tensor, part: RlRows, chunk: int | None = None
) -> tuple[Tensor, HeadStats, dict[str, Tensor]]:
    current = None
    if needs_current(part):
        with torch.no_grad():
            current = head_loss(hidden, head, RowLoss(targets), chunk=chunk)[1].logprobs_R
    term, seen = policy_rows(part, current, CPU)
    terms = [one for one in (term, kl_rows(part, CPU)) if one is not None]
    loss, stats = head_loss(hidden, head, RowLoss(targets, policy=terms), chunk=chunk)
    return loss, stats, seen


def dense(hidden: Tensor, head: Tensor, targets: Tensor, part: RlRows) -> Tensor:
    """The same loss rollout by rollout, as the papers write it; GSPO's ratio is differentiated through all of its tokens."""
    stream = part.stream
    new_R = (hidden @ head.t()).log_softmax(-1).gather(1, targets[:, None])[:, 0][part.index_R]
    total = new_R.new_zeros(())
    for one in part.sequence_R.unique():
        mine = part.sequence_R == one
        new, engine, gain, weight = new_R[mine], part.old_logprobs_R[mine], part.advantages_R[mine], part.weights_R[mine]
        old = engine
        if stream.correction != "none":
            old = new.detach() if part.start_logprobs_R is None else part.start_logprobs_R[mine]
            w = ((old - engine).sum() if stream.correction_level == "sequence" else old - engine).exp()
            cap = stream.correction_cap
            weight = weight * (w.clamp(max=cap) if stream.correction == "truncate" else w * (w <= cap))
        ratio = (new - old).mean().exp() * torch.ones_like(new) if stream.ratio == "sequence" else (new - old).exp()
        if stream.policy == "cispo":
            assert stream.clip_high is not None
            total = total - (weight * ratio.detach().clamp(max=1 + stream.clip_high) * gain * new).sum()
        else:
            assert stream.clip_low is not None
            assert stream.clip_high is not None
            worth = torch.minimum(ratio * gain, ratio.clamp(1 - stream.clip_low, 1 + stream.clip_high) * gain)
            if stream.dual_clip is not None:
                worth = torch.where(gain < 0, torch.maximum(worth, stream.dual_clip * gain), worth)
            total = total - (weight * worth).sum()
        assert part.reference_R is not None
        assert part.kl_weights_R is not None
        if stream.kl == "k2":
            total = total + (part.kl_weights_R[mine] * (new - part.reference_R[mine]).square() / 2).sum()
        elif stream.kl == "k3":
            gap = part.reference_R[mine] - new
            total = total + (part.kl_weights_R[mine] * (gap.exp() - 1 - gap)).sum()
    return total


STREAMS = [
    Stream("grpo", clip_low=0.2, clip_high=0.3, policy=policy, ratio=ratio, kl=kl, dual_clip=dual)  # type: ignore[arg-type]
    for policy, ratio, kl, dual in itertools.product(("clip", "cispo"), ("token", "sequence"), ("none", "k2", "k3"), (None, 1.4))
    if dual is None or policy == "clip"
]
CORRECTED = [
    dataclasses.replace(STREAMS[0], correction=mode, correction_level=level, correction_cap=1.2, ratio=ratio)  # type: ignore[arg-type]
    for mode, level, ratio in itertools.product(("truncate", "mask"), ("token", "sequence"), ("token", "sequence"))
    if (level, ratio) != ("token", "sequence")  # refused: see GrpoSignal
]


def equal_gradients(stream: Stream, chunks: Sequence[int | None], start: bool = False) -> None:
    for seed in range(3):
        hidden, head, targets, part = problem(stream, seed, start)
        want = dense(hidden, head, targets, part)
        wanted = torch.autograd.grad(want, (hidden, head))
        assert wanted[0].abs().max() > 1e-3
        for chunk in chunks:
            loss, _, _ = chunked(hidden, head, targets, part, chunk)
            torch.testing.assert_close(loss, want)
            for got, true in zip(torch.autograd.grad(loss, (hidden, head)), wanted, strict=True):
                torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stream", STREAMS, ids=lambda s: f"{s.policy}-{s.ratio}-{s.kl}-{s.dual_clip}")
def test_losses_and_gradients_equal_the_formulas(stream: Stream) -> None:
    equal_gradients(stream, (1, 4, None))  # chunks cut through rollouts; the sequence ratio must not notice


@pytest.mark.parametrize("start", [False, True], ids=["one update", "several"])
@pytest.mark.parametrize("stream", CORRECTED, ids=lambda s: f"{s.correction}-{s.correction_level}-{s.ratio}")
def test_corrected_losses_and_gradients_equal_the_formulas(stream: Stream, start: bool) -> None:
    equal_gradients(stream, (4,), start)


def test_the_sequence_ratio_is_the_geometric_mean_at_every_token() -> None:
    hidden, head, targets, part = problem(dataclasses.replace(STREAMS[0], ratio="sequence"))
    _, stats, _ = chunked(hidden, head, targets, part, chunk=2)
    token = (stats.logprobs_R[part.index_R] - part.old_logprobs_R).exp()
    for one in range(len(LENGTHS)):
        mine = part.sequence_R == one
        wanted = token[mine].prod() ** (1 / LENGTHS[one])
        torch.testing.assert_close(stats.policy[0].ratio_R[mine], wanted.expand(LENGTHS[one]))
    assert (token - stats.policy[0].ratio_R).abs().max() > 0.1


def test_a_corrected_single_update_has_ratio_one_and_reports_the_mismatch() -> None:
    hidden, head, targets, part = problem(CORRECTED[0])
    _, stats, seen = chunked(hidden, head, targets, part)
    assert stats.policy[0].ratio_R.eq(1).all()
    assert not stats.policy[0].clipped_R.any()
    gap = stats.logprobs_R[part.index_R] - part.old_logprobs_R
    torch.testing.assert_close(seen["mismatch_ratio"], gap.exp())
    torch.testing.assert_close(seen["mismatch_kl"], gap.exp() - 1 - gap)
    assert seen["truncated_frac"].tolist() == (gap.exp() > 1.2).float().tolist()
    assert 0 < seen["truncated_frac"].mean() < 1


def test_no_second_pass_over_the_head_where_none_is_needed() -> None:
    plain, sequence, corrected = (problem(one, start=False)[3] for one in (STREAMS[0], STREAMS[6], CORRECTED[0]))
    assert sequence.stream.ratio == "sequence"
    assert [needs_current(one) for one in (plain, sequence, corrected)] == [False, True, True]
    assert not needs_current(problem(CORRECTED[0], start=True)[3]), "the start is known: nothing else is needed"
