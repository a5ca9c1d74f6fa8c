"""Head and loss in one: three streams on the hidden states of the loss rows, without ever holding R x V logits.

Legend: R loss rows (action tokens with any weight), V vocabulary, D width, N rows of one term.

    loss = sum_r ce_weight_r (-log p(y_r)) + sum over policy terms and rows + sum over kd terms and rows

Weights come divided by the **global** denominators of their stream (law 6) and multiplied by its coefficient; nothing is
averaged here, so micro-batches simply add up. Rows pass through in chunks: the logits of a chunk become their own gradient, from
which the gradients of the hidden states and of the head are taken at once; backward only scales them. Head gradients are
accumulated in fp32 whatever the weights are: rounding every chunk to bf16 would bias training.

Imports torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .divergence import check_divergence, divergence_and_gradient


@dataclass
class PolicyRows:
    """Rows of one policy-gradient term; [N] rows of the batch's R.

    ``index_R`` are places among the R rows, each at most once; None: all. ``old_logprobs_R`` None: strictly on-policy, the ratio
    is 1. ``clip_low``, ``clip_high`` None: no clipping. ``loss`` turns the log-probs of some of the rows into their losses and
    must treat rows independently; its derivative is taken by autograd.
    """

    advantages_R: Tensor
    weights_R: Tensor
    old_logprobs_R: Tensor | None = None
    index_R: Tensor | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    loss: Callable[[Tensor, Tensor, Tensor, PolicyRows], Tensor] | None = None
    """(log-probs, old log-probs, advantages, self) -> losses; None: `clipped_policy_loss`."""


@dataclass
class KDRows:
    """Rows of one distillation term: the teacher's hidden states for [N] rows of the batch's R, and the teacher's head.

    ``temperature`` divides the logits of both sides (of their own accord: it is not multiplied with the sampling temperature).
    ``mix`` is the trust region: the student's share in the teacher's logits, without a gradient.
    """

    teacher_hidden_RD: Tensor
    teacher_weight_VD: Tensor
    weights_R: Tensor
    index_R: Tensor | None = None
    divergence: str = "jsd"
    beta: float = 0.5
    support: Literal["full", "top", "sampled"] = "full"
    top_c: int = 100
    temperature: float = 1.0
    mix: float = 0.0
    term_clip: float | None = None


@dataclass
class RowLoss:
    """Everything that the loss rows of a batch teach. Terms on the same row add up."""

    targets_R: Tensor
    ce_weights_R: Tensor | None = None
    policy: Sequence[PolicyRows] = ()
    kd: Sequence[KDRows] = ()


@dataclass
class PolicyStats:
    """[N] rows of one policy term, in the term's order: p_new / p_old, and whether clipping has stopped the gradient."""

    loss: Tensor
    ratio_R: Tensor
    clipped_R: Tensor


@dataclass
class HeadStats:
    """What a pass saw, detached. ``kd_R[i]`` are the divergences of term i in nats (not weighted), in the term's order."""

    logprobs_R: Tensor
    entropy_R: Tensor | None = None
    ce_loss: Tensor | None = None
    policy: list[PolicyStats] = field(default_factory=list)
    kd_R: list[Tensor] = field(default_factory=list)
    kd_loss: list[Tensor] = field(default_factory=list)


def head_loss(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    rows: RowLoss,
    *,
    temperature: float = 1.0,
    banned_ids: Sequence[int] = (),
    chunk: int | None = None,
    want_entropy: bool = False,
) -> tuple[Tensor, HeadStats]:
    """The loss of all streams (a scalar with gradients to ``hidden_RD`` and ``weight_VD``) and what was seen on the way.

    ``temperature`` and ``banned_ids`` are those of sampling: they shape log p in the ce and policy terms and the entropy; banned
    tokens leave the kd terms too, on both sides. Logits are computed in the dtype of the inputs (or of autocast), everything
    after them in fp32 (fp64 for fp64). ``chunk`` is the number of rows at a time; None: `rows_at_once`. No rows: 0, with zero
    gradients. Raises ValueError for shapes that do not fit, for a banned target with a weight and for settings that mean nothing.
    """
    _check(hidden_RD, weight_VD, rows, temperature, banned_ids)
    dtype = hidden_RD.dtype
    if torch.is_autocast_enabled(hidden_RD.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden_RD.device.type)
    need_grad = torch.is_grad_enabled() and (hidden_RD.requires_grad or weight_VD.requires_grad)
    chunk = rows_at_once(weight_VD) if chunk is None else chunk
    work = _HeadPass(rows, temperature, tuple(banned_ids), chunk, want_entropy, dtype, need_grad)
    loss: Tensor = _HeadLoss.apply(hidden_RD, weight_VD, work)
    assert work.stats is not None
    return loss, work.stats


def rows_at_once(weight_VD: Tensor) -> int:
    """Rows whose logits are worth holding together: 64 for Qwen's 152 k tokens (40 MB in fp32; 4 such buffers), more on a GPU,
    where every chunk reads the whole head again, and many more for a small vocabulary, where calls cost more than arithmetic."""
    return max(16, (40_000_000 if weight_VD.is_cuda else 10_000_000) // len(weight_VD))


def clipped_policy_loss(logprobs_R: Tensor, old_logprobs_R: Tensor, advantages_R: Tensor, rows: PolicyRows) -> Tensor:
    """PPO's clipped objective (Schulman et al. 2017, eq. 7) as a loss per row; without clip settings -ratio x advantage."""
    ratio_R = policy_ratio(logprobs_R, old_logprobs_R)
    plain_R = ratio_R * advantages_R
    if rows.clip_low is None and rows.clip_high is None:
        return -plain_R
    low = None if rows.clip_low is None else 1 - rows.clip_low
    high = None if rows.clip_high is None else 1 + rows.clip_high
    return -torch.minimum(plain_R, ratio_R.clamp(low, high) * advantages_R)


def policy_ratio(logprobs_R: Tensor, old_logprobs_R: Tensor) -> Tensor:
    """p_new / p_old, held below e^20 so that one absurd row gives a large number and not an inf."""
    return (logprobs_R - old_logprobs_R).clamp(max=20.0).exp()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, work: _HeadPass) -> Tensor:
        with torch.autocast(hidden_RD.device.type, enabled=False):
            loss, grad_hidden, grad_weight = work.run(hidden_RD, weight_VD)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        if bool(scale == 1):  # the usual case: a V x D gradient need not be copied
            return grad_hidden, grad_weight, None
        scaled = (None if grad is None else (grad * scale).to(grad.dtype) for grad in (grad_hidden, grad_weight))
        return (*scaled, None)  # type: ignore[return-value]


class _Selection:
    """Which rows of a term lie in which chunk."""

    def __init__(self, index_R: Tensor | None, num_rows: int, chunk: int, device: torch.device) -> None:
        self.chunk = chunk
        if index_R is None:
            self.index = self.order = torch.arange(num_rows, device=device)
        else:
            self.index, self.order = index_R.to(device).sort(stable=True)
            if len(self.index) and (self.index[0] < 0 or self.index[-1] >= num_rows or (self.index[1:] == self.index[:-1]).any()):
                raise ValueError(f"index_R of a loss term: places must be from 0 to {num_rows - 1}, each at most once")
        edges = torch.arange(0, num_rows + chunk, chunk, device=device)
        self.bounds: list[int] = torch.searchsorted(self.index, edges).tolist()

    def inside(self, number: int, size: int) -> tuple[Tensor | None, Tensor]:
        """(rows within chunk ``number`` of ``size`` rows, or None for all of them; their places among the term's rows)."""
        span = slice(self.bounds[number], self.bounds[number + 1])
        return None if span.stop - span.start == size else self.index[span] - number * self.chunk, self.order[span]


class _HeadPass:
    """One pass over the rows, chunk by chunk; leaves what it saw in ``stats``."""

    def __init__(
        self,
        rows: RowLoss,
        temperature: float,
        banned_ids: tuple[int, ...],
        chunk: int,
        want_entropy: bool,
        dtype: torch.dtype,
        need_grad: bool,
    ) -> None:
        self.rows, self.temperature, self.banned_ids, self.chunk = rows, temperature, banned_ids, chunk
        self.want_entropy, self.need_grad = want_entropy, need_grad
        self.dtype, self.wide = dtype, torch.float64 if dtype == torch.float64 else torch.float32
        self.stats: HeadStats | None = None

    def run(self, hidden_RD: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(loss, gradient of the hidden states, gradient of the head)."""
        rows, R, wide = self.rows, len(hidden_RD), self.wide

        def empty(n: int) -> Tensor:
            return torch.empty(n, dtype=wide, device=hidden_RD.device)

        self.logprobs_R, self.entropy_R = empty(R), empty(R) if self.want_entropy else None
        self.policy_R = [[empty(len(term.weights_R)) for _ in range(3)] for term in rows.policy]
        self.kd_R = [empty(len(term.weights_R)) for term in rows.kd]
        self.policy_places = [_Selection(term.index_R, R, self.chunk, hidden_RD.device) for term in rows.policy]
        self.kd_places = [_Selection(term.index_R, R, self.chunk, hidden_RD.device) for term in rows.kd]
        self.banned = torch.tensor(self.banned_ids, dtype=torch.long, device=hidden_RD.device)
        # Chunks take turns in the same memory: fresh pages cost a CPU more than the arithmetic on them.
        shape = (min(self.chunk, R), len(weight_VD))
        self.space = [torch.empty(shape, dtype=wide, device=hidden_RD.device) for _ in range(4 if rows.kd else 2)]
        self.sum_RV: Tensor | None = None
        teacher_heads = [term.teacher_weight_VD.to(self.dtype) for term in rows.kd]
        head = weight_VD.to(self.dtype)
        grad_hidden = torch.empty_like(hidden_RD) if self.need_grad and hidden_RD.requires_grad else None
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if self.need_grad and weight_VD.requires_grad else None
        for number, start in enumerate(range(0, R, self.chunk)):
            span = slice(start, min(start + self.chunk, R))
            hidden = hidden_RD[span].to(self.dtype)
            slope_RV = self._chunk(number, span, hidden, head, teacher_heads)
            if slope_RV is not None and grad_hidden is not None:
                grad_hidden[span] = slope_RV.to(self.dtype) @ head
            elif grad_hidden is not None:
                grad_hidden[span] = 0
            if slope_RV is not None and grad_weight is not None:
                grad_weight.addmm_(slope_RV.t(), hidden.to(wide))
        del self.space, self.sum_RV
        return self._total(), grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype)

    def _logits(self, hidden_RD: Tensor, weight_VD: Tensor, out_RV: Tensor) -> Tensor:
        if self.dtype == self.wide:
            return torch.mm(hidden_RD, weight_VD.t(), out=out_RV)
        return out_RV.copy_(hidden_RD @ weight_VD.t())

    def _logprobs(self, logits_RV: Tensor, temperature: float, out_RV: Tensor) -> Tensor:
        """Log-softmax with banned tokens out; ``logits_RV`` is used up."""
        if temperature != 1.0:
            logits_RV.div_(temperature)
        if self.banned_ids:
            logits_RV.index_fill_(1, self.banned, -torch.inf)
        return torch.log_softmax(logits_RV, -1, out=out_RV)

    def _chunk(self, number: int, span: slice, hidden_RD: Tensor, head: Tensor, teacher_heads: list[Tensor]) -> Tensor | None:
        """Derivative of the loss with respect to a chunk's logits; None where nothing is learned."""
        free, own = (one[: len(hidden_RD)] for one in self.space[:2])
        logprobs_RV = self._logprobs(self._logits(hidden_RD, head, free), self.temperature, own)
        targets = self.rows.targets_R[span, None]
        self.logprobs_R[span] = logprobs_RV.gather(1, targets)[:, 0]
        logprobs_RV.clamp_(min=torch.finfo(self.wide).min)  # a banned token counts 0 x finite, not 0 x inf
        if self.entropy_R is not None:
            self.entropy_R[span] = -torch.exp(logprobs_RV, out=free).mul_(logprobs_RV).sum(-1)
        slope_RV: Tensor | None = None
        for place, term in enumerate(self.rows.kd):
            slope_RV = self._distil(place, term, number, logprobs_RV, teacher_heads[place], slope_RV)
        coef_R = self._coefficients(number, span)
        if coef_R is None or not self.need_grad:
            return slope_RV
        coef_R = coef_R[:, None] / self.temperature
        own_RV = logprobs_RV.exp_().mul_(-coef_R).scatter_add_(1, targets, coef_R)  # log-probs become their own gradient
        return own_RV if slope_RV is None else slope_RV.add_(own_RV)

    def _distil(
        self, place: int, term: KDRows, number: int, logprobs_RV: Tensor, teacher_head: Tensor, slope_RV: Tensor | None
    ) -> Tensor | None:
        """Adds one kd term's part of a chunk's slope."""
        rows, places = self.kd_places[place].inside(number, len(logprobs_RV))
        if not len(places):
            return slope_RV
        start = number * self.chunk
        targets_R = self.rows.targets_R[start : start + len(logprobs_RV)]
        first, _, teacher, second = (one[: len(places)] for one in self.space)
        student = logprobs_RV if rows is None else logprobs_RV[rows]
        logits = self._logits(term.teacher_hidden_RD[places].to(self.dtype), teacher_head, first)
        if term.mix:
            logits.lerp_(torch.mul(student, self.temperature, out=second), term.mix)  # up to a constant, which softmax forgets
        teacher = self._logprobs(logits, term.temperature, teacher)
        if term.temperature != self.temperature:
            student = self._logprobs(torch.mul(student, self.temperature, out=first), term.temperature, torch.empty_like(student))
        value, gradient = divergence_and_gradient(
            term.divergence,
            student,
            teacher,
            term.beta,
            support=term.support,
            top_c=term.top_c,
            targets_R=targets_R if rows is None else targets_R[rows],
            term_clip=term.term_clip,
            scratch=(first, second),
        )
        self.kd_R[place][places] = value
        gradient.mul_(term.weights_R[places, None].to(self.wide) / term.temperature)
        if rows is None and len(self.rows.kd) == 1:
            return gradient
        if slope_RV is None:
            self.sum_RV = torch.empty_like(self.space[0]) if self.sum_RV is None else self.sum_RV
            slope_RV = self.sum_RV[: len(logprobs_RV)].zero_()
        return slope_RV.add_(gradient) if rows is None else slope_RV.index_add_(0, rows, gradient)

    def _coefficients(self, number: int, span: slice) -> Tensor | None:
        """d loss / d log p(target) of a chunk's rows, from the ce and policy terms."""
        logprobs_R = self.logprobs_R[span]
        coef_R = torch.zeros_like(logprobs_R)
        if self.rows.ce_weights_R is not None:
            coef_R -= self.rows.ce_weights_R[span]
        for term, chunks, (loss_R, ratio_R, clipped_R) in zip(self.rows.policy, self.policy_places, self.policy_R, strict=True):
            rows, places = chunks.inside(number, len(logprobs_R))
            new = logprobs_R if rows is None else logprobs_R[rows]
            old = new if term.old_logprobs_R is None else term.old_logprobs_R[places].to(self.wide)
            advantages, weights = term.advantages_R[places].to(self.wide), term.weights_R[places].to(self.wide)
            with torch.enable_grad():
                leaf = new.detach().clone().requires_grad_()
                loss = (term.loss or clipped_policy_loss)(leaf, old.detach(), advantages, term) * weights
                (slope,) = torch.autograd.grad(loss.sum(), leaf)
            loss_R[places], ratio_R[places] = loss.detach(), policy_ratio(new, old)
            clipped_R[places] = ((slope == 0) & (advantages != 0) & (weights != 0)).to(self.wide)
            coef_R.index_add_(0, torch.arange(len(new), device=new.device) if rows is None else rows, slope)
        return coef_R if self.rows.ce_weights_R is not None or self.rows.policy else None

    def _total(self) -> Tensor:
        """The loss, and ``stats``."""
        total = self.logprobs_R.new_zeros(())
        stats = self.stats = HeadStats(self.logprobs_R, self.entropy_R)
        if self.rows.ce_weights_R is not None:
            weights_R = self.rows.ce_weights_R.to(self.wide)
            stats.ce_loss = -torch.where(weights_R == 0, 0, weights_R * self.logprobs_R).sum()
            total = total + stats.ce_loss
        for loss_R, ratio_R, clipped_R in self.policy_R:
            stats.policy.append(PolicyStats(loss_R.sum(), ratio_R, clipped_R.bool()))
            total = total + stats.policy[-1].loss
        for term, value_R in zip(self.rows.kd, self.kd_R, strict=True):
            stats.kd_R.append(value_R)
            stats.kd_loss.append((term.weights_R.to(self.wide) * value_R).sum())
            total = total + stats.kd_loss[-1]
        return total


def _check(hidden_RD: Tensor, weight_VD: Tensor, rows: RowLoss, temperature: float, banned_ids: Sequence[int]) -> None:
    R, V = len(hidden_RD), len(weight_VD)
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: greedy sampling has no log-probs to learn from; use a temperature above 0")

    def fits(name: str, tensor: Tensor | None, n: int) -> None:
        if tensor is not None and len(tensor) != n:
            raise ValueError(f"{name} has {len(tensor)} rows, expected {n}")

    fits("targets_R", rows.targets_R, R)
    fits("ce_weights_R", rows.ce_weights_R, R)
    for term in rows.policy:
        n = R if term.index_R is None else len(term.index_R)
        for name in ("weights_R", "advantages_R", "old_logprobs_R"):
            fits(f"policy term: {name}", term.__dict__[name], n)
    for kd in rows.kd:
        check_divergence(kd.divergence, kd.beta, kd.support, kd.top_c, kd.term_clip)
        n = R if kd.index_R is None else len(kd.index_R)
        fits("kd term: weights_R", kd.weights_R, n)
        fits("kd term: teacher_hidden_RD", kd.teacher_hidden_RD, n)
        if len(kd.teacher_weight_VD) != V:
            raise ValueError(
                f"kd term: the teacher has {len(kd.teacher_weight_VD)} tokens and the student {V}; both need the same tokenizer"
            )
        if kd.temperature <= 0 or not 0 <= kd.mix <= 1:
            raise ValueError(f"kd term: temperature {kd.temperature} must be above 0 and mix {kd.mix} between 0 and 1")
    if banned_ids and rows.ce_weights_R is not None:
        banned = torch.isin(rows.targets_R, torch.tensor(list(banned_ids), device=rows.targets_R.device)) & (
            rows.ce_weights_R != 0
        )
        if banned.any():
            raise ValueError(
                f"targets_R: token {int(rows.targets_R[banned][0])} is banned and cannot be learned; take it out of the action"
            )
