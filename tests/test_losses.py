"""The chunked head and loss: against plain autograd on whole logits, by hand, cut into micro-batches, in half precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.train.divergence import divergence, top_support
from foveate.train.losses import KDRows, PolicyRows, RowLoss, head_loss

R, V, D = 11, 23, 5
BANNED = (1, 2)
F64 = torch.float64


def make(seed: int = 0, dtype: torch.dtype = F64, rows: int = R) -> tuple[Tensor, Tensor, RowLoss]:
    """Hidden states, head and all streams at once: ce, two policy terms, four kd terms, overlapping on rows in any order."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64).to(dtype)

    def weight(n: int) -> Tensor:
        return torch.rand(n, generator=g, dtype=F64).to(dtype) / rows

    some, others = torch.randperm(rows, generator=g)[: rows // 2], torch.randperm(rows, generator=g)[:3]
    teacher, teacher_head = normal(rows, D), normal(V, D)
    policy = [
        PolicyRows(normal(rows), weight(rows), normal(rows) - 3, clip_low=0.2, clip_high=0.3),
        PolicyRows(normal(len(some)), weight(len(some)), index_R=some),
    ]
    kd = [
        KDRows(teacher, teacher_head, weight(rows)),
        KDRows(teacher[some], teacher_head, weight(len(some)), some, "forward_kl", temperature=2.0, mix=0.3),
        KDRows(teacher[others], teacher_head, weight(3), others, "reverse_kl", support="top", top_c=4),
        KDRows(teacher[others], teacher_head, weight(3), others, "jsd", beta=0.2, support="top", top_c=V, temperature=0.7),
    ]
    targets = torch.randint(3, V, (rows,), generator=g)
    return normal(rows, D).requires_grad_(), normal(V, D).requires_grad_(), RowLoss(targets, weight(rows), policy, kd)


def naive(hidden: Tensor, head: Tensor, rows: RowLoss, temperature: float, banned: Sequence[int]) -> Tensor:
    """The same loss from whole logits, by autograd."""
    keep = [v for v in range(len(head)) if v not in banned]
    logits = hidden @ head.t()

    def logprobs(z: Tensor, by: float) -> Tensor:
        return (z / by)[:, keep].log_softmax(-1)

    places = torch.tensor([keep.index(v) if v in keep else -1 for v in rows.targets_R.tolist()])
    own = logprobs(logits, temperature).gather(1, places[:, None])[:, 0]
    total = hidden.new_zeros(())
    if rows.ce_weights_R is not None:
        total = total - (rows.ce_weights_R * own).sum()
    for term in rows.policy:
        new = own if term.index_R is None else own[term.index_R]
        ratio = (new - (new.detach() if term.old_logprobs_R is None else term.old_logprobs_R)).exp()
        gain = ratio * term.advantages_R
        if term.clip_low is not None and term.clip_high is not None:
            gain = torch.minimum(gain, ratio.clamp(1 - term.clip_low, 1 + term.clip_high) * term.advantages_R)
        total = total - (term.weights_R * gain).sum()
    for kd in rows.kd:
        student = logits if kd.index_R is None else logits[kd.index_R]
        teacher = (1 - kd.mix) * (kd.teacher_hidden_RD @ kd.teacher_weight_VD.t()) + kd.mix * student.detach()
        ls, lt = logprobs(student, kd.temperature), logprobs(teacher, kd.temperature)
        if kd.support == "top" and kd.top_c < len(keep):
            _, ls, lt = top_support(ls, lt, kd.top_c)
        total = total + (kd.weights_R * divergence(kd.divergence, ls, lt, kd.beta)).sum()
    return total


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("chunk", [1, 4, None])
@pytest.mark.parametrize(("temperature", "banned"), [(1.0, ()), (0.7, BANNED)])
@pytest.mark.parametrize(("dtype", "limit"), [(F64, 1e-14), (torch.float32, 1e-6)])
def test_equals_whole_logits(
    chunk: int | None, temperature: float, banned: tuple[int, ...], dtype: torch.dtype, limit: float
) -> None:
    hidden, head, rows = make(1, dtype)
    loss, _ = head_loss(hidden, head, rows, temperature=temperature, banned_ids=banned, chunk=chunk)
    want = naive(hidden, head, rows, temperature, banned)
    assert relative(loss.detach(), want.detach()) < limit
    for got, true in zip(torch.autograd.grad(loss, (hidden, head)), torch.autograd.grad(want, (hidden, head)), strict=True):
        assert true.abs().max() > 1e-3
        assert relative(got, true) < 2 * limit


def test_every_stream_alone_equals_whole_logits() -> None:
    hidden, head, rows = make(2)
    for alone in (
        RowLoss(rows.targets_R, rows.ce_weights_R),
        *(RowLoss(rows.targets_R, policy=[term]) for term in rows.policy),
        *(RowLoss(rows.targets_R, kd=[term]) for term in rows.kd),
    ):
        loss, _ = head_loss(hidden, head, alone, chunk=4)
        want = naive(hidden, head, alone, 1.0, ())
        torch.testing.assert_close(loss, want)
        for got, true in zip(torch.autograd.grad(loss, (hidden, head)), torch.autograd.grad(want, (hidden, head)), strict=True):
            torch.testing.assert_close(got, true, rtol=1e-10, atol=1e-13)


def test_gradcheck() -> None:
    hidden, head, rows = make(3)
    # A trust region and a strictly on-policy ratio have stopped gradients, which differences do not see.
    rows = replace(rows, kd=[term for term in rows.kd if term.mix == 0], policy=rows.policy[:1])

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return head_loss(hidden, head, rows, temperature=0.8, banned_ids=BANNED, chunk=4)[0]

    assert torch.autograd.gradcheck(loss, (hidden, head))


def test_values_by_hand() -> None:
    """Two tokens, logits (0, 0) and (ln 3, 0): probabilities (1/2, 1/2) and (3/4, 1/4)."""
    hidden, head = torch.tensor([[0.0], [math.log(3)]], requires_grad=True), torch.tensor([[1.0], [0.0]])
    rows = RowLoss(
        torch.tensor([0, 0]),
        torch.tensor([2.0, 0.0]),
        [PolicyRows(torch.tensor([-1.0]), torch.tensor([0.5]), torch.tensor([math.log(0.5)]), torch.tensor([1]))],
    )
    loss, stats = head_loss(hidden, head, rows, want_entropy=True)
    # ce: 2 ln 2; policy: ratio (3/4) / (1/2) = 1.5, loss 1.5 x .5
    assert loss.item() == pytest.approx(2 * math.log(2) + 0.75)
    assert stats.ce_loss is not None
    assert stats.ce_loss.item() == pytest.approx(2 * math.log(2))
    assert stats.policy[0].loss.item() == pytest.approx(0.75)
    assert stats.policy[0].ratio_R.tolist() == pytest.approx([1.5])
    assert stats.logprobs_R.exp().tolist() == pytest.approx([0.5, 0.75])
    assert stats.entropy_R is not None
    assert stats.entropy_R.tolist() == pytest.approx([math.log(2), -0.75 * math.log(0.75) - 0.25 * math.log(0.25)])
    loss.backward()
    # d/dz0: ce -2 (1 - 1/2); policy .5 x 1.5 x (1 - 3/4)
    assert hidden.grad is not None
    assert hidden.grad[:, 0].tolist() == pytest.approx([-1.0, 0.1875])


def test_clipping_stops_the_gradient_on_the_right_side_only() -> None:
    head = torch.eye(2)
    hidden = torch.zeros(4, 2, requires_grad=True)  # p = 1/2
    old = torch.tensor([0.25, 0.25, 1.0, 1.0]).log()  # ratios 2, 2, .5, .5
    term = PolicyRows(torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.ones(4), old, clip_low=0.2, clip_high=0.3)
    loss, stats = head_loss(hidden, head, RowLoss(torch.zeros(4, dtype=torch.long), policy=[term]))
    assert loss.item() == pytest.approx(-1.3 + 2.0 - 0.5 + 0.8)
    assert stats.policy[0].clipped_R.tolist() == [True, False, False, True]
    loss.backward()
    # unclipped rows: -A ratio (1 - p)
    assert hidden.grad is not None
    assert hidden.grad[:, 0].tolist() == pytest.approx([0.0, 1.0, -0.25, 0.0])


def test_a_policy_term_of_ones_own() -> None:
    hidden, head, rows = make(4)
    term = PolicyRows(torch.full((R,), 2.0, dtype=F64), torch.ones(R, dtype=F64), loss=lambda new, old, adv, _: -adv * new)
    mine, _ = head_loss(hidden, head, RowLoss(rows.targets_R, policy=[term]), chunk=4)
    ce, _ = head_loss(hidden, head, RowLoss(rows.targets_R, torch.full((R,), 2.0, dtype=F64)))
    torch.testing.assert_close(torch.autograd.grad(mine, hidden), torch.autograd.grad(ce, hidden))


@pytest.mark.parametrize("cut", [[[0], [1], [2], [3]], [[0, 3], [1, 2]], [[2], [0, 1, 3]]])
def test_micro_batches_add_up_to_the_whole(cut: list[list[int]]) -> None:
    """Law 6: any split of the sequences gives the loss and gradients of the whole batch."""
    hidden, head, rows = make(5)
    sequence = torch.tensor([0] * 5 + [1] + [2] * 3 + [3] * 2)
    weights = torch.rand(R, dtype=F64)
    weights[[2, 7]] = 0
    old, advantages = rows.policy[0].old_logprobs_R, rows.policy[0].advantages_R
    teacher, teacher_head = rows.kd[0].teacher_hidden_RD, rows.kd[0].teacher_weight_VD
    assert old is not None

    def part(which: Tensor) -> Tensor:
        w = weights[which]
        term = PolicyRows(advantages[which], w, old[which], clip_low=0.2, clip_high=0.2)
        kd = KDRows(teacher[which], teacher_head, 0.5 * w)
        return head_loss(hidden[which], head, RowLoss(rows.targets_R[which], w, [term], [kd]), chunk=2)[0]

    whole = part(torch.arange(R))
    parts = [part(torch.cat([(sequence == s).nonzero()[:, 0] for s in group])) for group in cut]
    torch.testing.assert_close(sum(parts), whole)
    want = torch.autograd.grad(whole, (hidden, head))
    for got, true in zip(torch.autograd.grad(sum(parts), (hidden, head)), want, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(got, true, rtol=1e-10, atol=1e-13)



@pytest.mark.parametrize("support", ["full", "top"])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_a_teacher_that_is_the_student_teaches_nothing(name: str, support: Any) -> None:
    """Law 1 in the loss: divergence and gradient are exactly 0, and a shift by one row is seen."""
    hidden, head, rows = make(6, torch.float32)
    kd = KDRows(hidden.detach(), head.detach(), torch.ones(R), divergence=name, support=support, top_c=6)
    loss, stats = head_loss(hidden, head, RowLoss(rows.targets_R, kd=[kd]), banned_ids=BANNED, chunk=4)
    assert loss.item() == 0
    assert stats.kd_R[0].eq(0).all()
    assert max(grad.abs().max().item() for grad in torch.autograd.grad(loss, (hidden, head))) < 1e-7
    shifted = replace(kd, teacher_hidden_RD=hidden.detach().roll(1, 0))
    _, stats = head_loss(hidden, head, RowLoss(rows.targets_R, kd=[shifted]), banned_ids=BANNED, chunk=4)
    assert (stats.kd_R[0] > 1e-3).all()


def test_trust_region_goes_from_the_teacher_to_the_student() -> None:
    hidden, head, rows = make(7)
    means = []
    for mix in (0.0, 0.5, 1.0):
        _, stats = head_loss(hidden, head, RowLoss(rows.targets_R, kd=[replace(rows.kd[0], mix=mix)]), temperature=0.9)
        means.append(float(stats.kd_R[0].mean()))
    assert means[0] > means[1] > 0
    assert means[2] == pytest.approx(0, abs=1e-15)


def test_stats_are_in_the_order_of_the_term() -> None:
    hidden, head, rows = make(8)
    index = torch.tensor([9, 0, 10, 3])
    full = rows.kd[0]
    kd = replace(full, index_R=index, teacher_hidden_RD=full.teacher_hidden_RD[index], weights_R=full.weights_R[index])
    term = PolicyRows(torch.ones(4, dtype=F64), torch.ones(4, dtype=F64), torch.zeros(4, dtype=F64), index)
    _, stats = head_loss(hidden, head, RowLoss(rows.targets_R, policy=[term], kd=[full, kd]), chunk=4)
    torch.testing.assert_close(stats.kd_R[1], stats.kd_R[0][index])
    torch.testing.assert_close(stats.policy[0].ratio_R, stats.logprobs_R[index].exp())


def test_no_rows_is_zero_with_a_graph() -> None:
    hidden, head, rows = make(9, rows=R)
    nothing = torch.zeros(0, dtype=F64)
    kd = KDRows(torch.zeros(0, D, dtype=F64), head.detach(), nothing)
    empty = RowLoss(rows.targets_R[:0], nothing, [PolicyRows(nothing, nothing, nothing)], [kd])
    loss, stats = head_loss(hidden[:0], head, empty, want_entropy=True)
    loss.backward()
    assert loss.item() == 0
    assert stats.logprobs_R.shape == (0,)
    assert stats.kd_R[0].shape == (0,)
    assert hidden.grad is not None
    assert hidden.grad.eq(0).all()
    assert head.grad is not None
    assert head.grad.eq(0).all()


def test_rows_without_weight_teach_nothing_even_when_banned() -> None:
    hidden, head, rows = make(10)
    targets = rows.targets_R.clone()
    targets[3] = BANNED[0]
    weights = torch.ones(R, dtype=F64)
    weights[3] = 0
    loss, stats = head_loss(hidden, head, RowLoss(targets, weights), banned_ids=BANNED, chunk=4)
    (grad,) = torch.autograd.grad(loss, hidden)
    assert loss.isfinite()
    assert grad[3].eq(0).all()
    assert grad[2].abs().max() > 0
    assert stats.logprobs_R[3] == -math.inf
    with pytest.raises(ValueError, match="token 1 is banned"):
        head_loss(hidden, head, RowLoss(targets, torch.ones(R, dtype=F64)), banned_ids=BANNED)


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return out


def test_no_tensor_of_rows_times_vocabulary_exists() -> None:
    g = torch.Generator().manual_seed(0)
    rows, vocab, width, chunk = 96, 300, 4, 8
    hidden, head = torch.randn(rows, width, generator=g).requires_grad_(), torch.randn(vocab, width, generator=g).requires_grad_()
    w = torch.full((rows,), 1 / rows)
    teacher = torch.randn(rows, width, generator=g)
    kd = [
        KDRows(teacher, head.detach(), w, mix=0.1),
        KDRows(teacher[::2], head.detach(), w[::2], torch.arange(0, rows, 2), support="top", top_c=5),
    ]
    loss_of = RowLoss(torch.zeros(rows, dtype=torch.long), w, [PolicyRows(w, w)], kd)
    with _Largest() as seen:
        loss, _ = head_loss(hidden, head, loss_of, chunk=chunk, want_entropy=True)
        loss.backward()
    assert seen.numel == chunk * vocab


def test_backward_scales_and_can_be_repeated() -> None:
    hidden, head, rows = make(11)
    loss, _ = head_loss(hidden, head, rows)
    once = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    again = torch.autograd.grad(3 * loss, (hidden, head), retain_graph=True)
    loss.backward(retain_graph=True)
    loss.backward()
    for first, tripled, summed in zip(once, again, (hidden.grad, head.grad), strict=True):
        torch.testing.assert_close(tripled, 3 * first)
        assert summed is not None
        torch.testing.assert_close(summed, 2 * first)


def test_frozen_parts_and_no_grad() -> None:
    hidden, head, rows = make(12)
    want, _ = head_loss(hidden, head, rows)
    both = torch.autograd.grad(want, (hidden, head))
    only_hidden, _ = head_loss(hidden, head.detach(), rows)
    torch.testing.assert_close(torch.autograd.grad(only_hidden, hidden)[0], both[0])
    only_head, _ = head_loss(hidden.detach(), head, rows)
    torch.testing.assert_close(torch.autograd.grad(only_head, head)[0], both[1])
    with torch.no_grad():
        quiet, stats = head_loss(hidden, head, rows)
    torch.testing.assert_close(quiet, want.detach())
    assert not quiet.requires_grad
    assert not stats.logprobs_R.requires_grad


@pytest.mark.parametrize("way", ["bf16 weights", "autocast"])
def test_half_precision(way: str) -> None:
    """Close to fp32, gradients in the dtype of their tensors, and head gradients that do not lose to rounding chunk by chunk."""
    g = torch.Generator().manual_seed(1)
    rows, width = 256, 16
    hidden, head = torch.randn(rows, width, generator=g).bfloat16(), torch.randn(V, width, generator=g).bfloat16()
    teacher = torch.randn(rows, width, generator=g).bfloat16()
    w = torch.full((rows,), 1 / rows)
    targets = torch.zeros(rows, dtype=torch.long)  # one token always: its gradients all point one way, rounding would eat them

    def run(dtype: torch.dtype, autocast: bool = False) -> tuple[float, Tensor, Tensor]:
        h, m = hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, _ = head_loss(h, m, RowLoss(targets, w, kd=[KDRows(teacher.to(dtype), head.to(dtype), w)]), chunk=1)
        loss.backward()
        assert loss.dtype == torch.float32
        assert h.grad is not None
        assert m.grad is not None
        assert h.grad.dtype == dtype
        assert m.grad.dtype == dtype
        return loss.item(), h.grad.float(), m.grad.float()

    true = run(torch.float32)
    got = run(torch.bfloat16) if way == "bf16 weights" else run(torch.float32, autocast=True)
    assert got[0] == pytest.approx(true[0], rel=5e-3)
    assert relative(got[1], true[1]) < 2e-2
    assert relative(got[2], true[2]) < 6e-3  # 2^-8 for the result, little more


def test_mistakes_are_named() -> None:
    hidden, head, rows = make(13)
    kd, term = rows.kd[0], rows.policy[0]

    def refuse(match: str, **change: Any) -> None:
        with pytest.raises(ValueError, match=match):
            head_loss(hidden, head, RowLoss(rows.targets_R, **change))

    refuse("ce_weights_R has 3 rows, expected 11", ce_weights_R=torch.ones(3))
    refuse("policy term: advantages_R has 2 rows", policy=[replace(term, advantages_R=torch.ones(2))])
    refuse("kd term: teacher_hidden_RD has 4 rows", kd=[replace(kd, teacher_hidden_RD=kd.teacher_hidden_RD[:4])])
    refuse("same tokenizer", kd=[replace(kd, teacher_weight_VD=kd.teacher_weight_VD[:-1])])
    refuse("use one of forward_kl", kd=[replace(kd, divergence="js")])
    refuse("each at most once", kd=[replace(kd, index_R=torch.zeros(R, dtype=torch.long))])
    refuse("from 0 to 10", kd=[replace(kd, index_R=torch.arange(1, R + 1))])
    refuse("mix 2", kd=[replace(kd, mix=2.0)])
    with pytest.raises(ValueError, match="use a temperature above 0"):
        head_loss(hidden, head, rows, temperature=0.0)
