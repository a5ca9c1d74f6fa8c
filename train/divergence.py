"""Divergences between a student and a teacher, and their gradients with respect to the student's logits in closed form.

Legend: R rows (token positions), V vocabulary, C candidates, P categories of a support (V, or C + 1 with a tail).

- ``forward_kl`` = KL(teacher || student): the student covers all that the teacher says (the limit of supervised learning).
- ``reverse_kl`` = KL(student || teacher): the student keeps to what the teacher also says.
- ``jsd``: with m = (1 - beta) p_S + beta p_T, (1 - beta) KL(p_S || m) + beta KL(p_T || m) (Agarwal et al. 2024, GKD, eq. 1;
  beta .5 is the setting of Vision-OPD).

Supports: ``full`` compares all V probabilities; ``top`` compares the student's C most probable tokens one by one and everything
else as one tail bucket, so both sides still sum to 1; with C = V it is ``full``. ``sampled`` looks at the sampled token y alone:
k2 = (log p_S(y) - log p_T(y))^2 / 2 (KDRL, 2506.02208), whose gradient (log p_S(y) - log p_T(y)) grad log p_S(y) is on average
over y ~ p_S the gradient of the reverse KL (its value is not the reverse KL).

``term_clip`` bounds every category's term of the sum from above (TRACE, 2605.10194: .05), so that a few tokens on which the
teacher is certain do not outweigh all others; a term that is cut has no gradient. The sum may then be below 0.

The gradient: for categories with probabilities P_c (each a sum of token probabilities p_v) and any D(P),
dD/dz_v = p_v (d_cat(v) - sum_c P_c d_c) with d_c = dD/dP_c. What is computed here is the *pull* G_c = P_c d_c, which is bounded
where d_c is not: P_c - Q_c for forward KL, P_c log(P_c / Q_c) for reverse KL, (1 - beta) P_c log(P_c / M_c) for JSD
(terms of d_c that are the same for all c cancel). A category whose term is cut has d_c = 0; up to the same cancelling constant
its pull is P_c for forward KL, -P_c for reverse KL, 0 for JSD.

Banned tokens have a log-probability of -inf on both sides: they contribute 0. Equal rows give exactly 0, not a rounding error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
SUPPORTS = ("full", "top", "sampled")

_MAX_GAP = 80.0
"""exp of it is finite in fp32. Where log p_T - log p_S is larger, p_S < e^-80 and what is cut is below any precision."""


def check_divergence(name: str, beta: float, support: str = "full", top_c: int = 1, term_clip: float | None = None) -> None:
    """Raise ValueError for settings that mean nothing."""
    if name not in DIVERGENCES:
        raise ValueError(f"divergence {name!r} is unknown; use one of {', '.join(DIVERGENCES)}")
    if name == "jsd" and not 0.0 < beta < 1.0:
        raise ValueError(
            f"jsd with beta {beta} is 0 everywhere; use beta between 0 and 1, or forward_kl / reverse_kl for the two ends"
        )
    if support not in SUPPORTS:
        raise ValueError(f"support {support!r} is unknown; use one of {', '.join(SUPPORTS)}")
    if support == "top" and top_c < 1:
        raise ValueError(f"support top with top_c {top_c}: at least one candidate is needed")
    if support == "sampled" and name != "reverse_kl":
        raise ValueError(f"support sampled with {name}: one token estimates the reverse KL only; use reverse_kl, or full or top")
    if term_clip is not None and not (term_clip > 0 and support != "sampled"):
        raise ValueError(f"term_clip {term_clip} with support {support}: it must be above 0, and is for full and top only")


def divergence(name: str, student_logprobs_RP: Tensor, teacher_logprobs_RP: Tensor, beta: float = 0.5) -> Tensor:
    """Divergence of every row in nats, [R]. Differentiable by autograd; half-precision inputs are computed in fp32."""
    check_divergence(name, beta)
    student, teacher = _safe(student_logprobs_RP), _safe(teacher_logprobs_RP)
    gap = teacher - student
    if name == "forward_kl":
        return (teacher.exp() * gap).sum(-1)
    if name == "reverse_kl":
        return -(student.exp() * gap).sum(-1)
    gap = gap.clamp(max=_MAX_GAP)
    student_to_mean = -torch.log1p(beta * torch.expm1(gap))
    return (1 - beta) * (student.exp() * student_to_mean).sum(-1) + beta * (teacher.exp() * (gap + student_to_mean)).sum(-1)


def divergence_and_gradient(
    name: str,
    student_logprobs_RV: Tensor,
    teacher_logprobs_RV: Tensor,
    beta: float = 0.5,
    *,
    support: str = "full",
    top_c: int = 100,
    targets_R: Tensor | None = None,
    term_clip: float | None = None,
    scratch: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The divergence of every row [R] and its derivative with respect to the student's logits [R, V], without autograd.

    Both inputs are log-probabilities normalised over the full vocabulary, of logits that were divided by the same temperature;
    the derivative is with respect to the divided logits. ``targets_R`` are the sampled tokens (support sampled). ``scratch`` is
    memory for two [R, V]: with it nothing of that size is allocated (but a mask under ``term_clip``), -inf is replaced in both
    inputs, the teacher's memory is used up, and the derivative lies in one of the three.
    """
    check_divergence(name, beta, support, top_c, term_clip)
    with torch.no_grad():
        student, teacher = _safe(student_logprobs_RV, scratch is not None), _safe(teacher_logprobs_RV, scratch is not None)
        first, second = scratch or (torch.empty_like(student), torch.empty_like(student))
        if support == "sampled":
            return _sampled(student, teacher, targets_R, first)
        if support == "full" or top_c >= student.shape[-1]:
            value, pull, prob = _pull(name, student, teacher, beta, term_clip, first, second)
            return value, pull.addcmul_(prob, pull.sum(-1, keepdim=True), value=-1)
        ids_RC = student.topk(top_c, dim=-1).indices
        student_RP, teacher_RP = _with_tail(student, ids_RC, first), _with_tail(teacher, ids_RC, first)
        spare = torch.empty_like(student_RP), torch.empty_like(student_RP)
        value, pull, prob = _pull(name, student_RP, teacher_RP, beta, term_clip, *spare)
        pull.addcmul_(prob, pull.sum(-1, keepdim=True), value=-1)
        # The tail's pull is shared among its tokens by p_v / P_tail; candidates are overwritten just after.
        gradient = torch.sub(student, student_RP[:, -1:], out=first).exp_().mul_(pull[:, -1:])
        return value, gradient.scatter_(1, ids_RC, pull[:, :-1])


def top_support(student_logprobs_RV: Tensor, teacher_logprobs_RV: Tensor, top_c: int) -> tuple[Tensor, Tensor, Tensor]:
    """The student's ``top_c`` tokens and a tail: ids [R, C], student's and teacher's log-probs [R, C + 1], the tail last.

    The tail is summed from its own tokens. The usual log(1 - sum of the candidates) is wrong by 6e-8 in fp32, which is more than
    the mass of most tails.
    """
    ids_RC = student_logprobs_RV.topk(min(top_c, student_logprobs_RV.shape[-1]), dim=-1).indices
    return ids_RC, _with_tail(student_logprobs_RV, ids_RC), _with_tail(teacher_logprobs_RV, ids_RC)


def sampled_token_advantage(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """Advantage of sampled tokens whose policy gradient is that of reverse KL: log p_T(y) - log p_S(y), any shape, detached.

    grad KL(p_S || p_T) = E_{y ~ p_S}[(log p_S(y) - log p_T(y)) grad log p_S(y)], so this is the one-sample estimate of the dense
    ``reverse_kl`` (Imagine-OPD): unbiased, with the variance of a policy gradient.
    """
    return _safe(teacher_logprobs.detach()) - _safe(student_logprobs.detach())


def _safe(logprobs: Tensor, in_place: bool = False) -> Tensor:
    """At least fp32, and the lowest finite number in place of -inf, so that 0 x log 0 is 0 and a difference of two is 0."""
    wide = logprobs.float() if logprobs.dtype in (torch.float16, torch.bfloat16) else logprobs
    low = torch.finfo(wide.dtype).min
    return wide.clamp_(min=low) if in_place else wide.clamp(min=low)


def _with_tail(logprobs_RV: Tensor, ids_RC: Tensor, scratch_RV: Tensor | None = None) -> Tensor:
    low = torch.finfo(logprobs_RV.dtype).min
    if scratch_RV is None:  # for autograd
        tail = logprobs_RV.scatter(1, ids_RC, -torch.inf).logsumexp(-1, keepdim=True)
    else:
        rest = scratch_RV.copy_(logprobs_RV).scatter_(1, ids_RC, low)
        peak = rest.amax(-1, keepdim=True)
        tail = rest.sub_(peak).exp_().sum(-1, keepdim=True).log_().add_(peak)
    return torch.cat([logprobs_RV.gather(1, ids_RC), tail.clamp(min=low)], -1)


def _sampled(student_RV: Tensor, teacher_RV: Tensor, targets_R: Tensor | None, out_RV: Tensor) -> tuple[Tensor, Tensor]:
    """k2 of the sampled tokens and its derivative: gap (1[v = y] - p_v)."""
    if targets_R is None:
        raise ValueError("support sampled: targets_R, the sampled tokens, are needed")
    place_R1 = targets_R[:, None]
    gap_R1 = student_RV.gather(1, place_R1) - teacher_RV.gather(1, place_R1)
    slope_RV = torch.exp(student_RV, out=out_RV).mul_(-gap_R1)
    return 0.5 * gap_R1[:, 0].square(), slope_RV.scatter_add_(1, place_R1, gap_R1)


Pull = tuple[Tensor, Tensor, Tensor]
"""(value [R], pull [R, P], the student's probabilities [R, P]); the two [R, P] lie in the teacher's memory or in the scratch."""


def _pull(
    name: str, student: Tensor, teacher: Tensor, beta: float, term_clip: float | None, first: Tensor, second: Tensor
) -> Pull:
    if term_clip is None:
        return _PULLS[name](student, teacher, beta, first, second)
    return _CLIPPED[name](student, teacher, beta, term_clip, first, second)


def _forward_kl_pull(student: Tensor, teacher: Tensor, beta: float, first: Tensor, second: Tensor) -> Pull:
    gap = torch.sub(teacher, student, out=first)
    teacher_prob = teacher.exp_()
    value = torch.mul(teacher_prob, gap, out=second).sum(-1)
    prob = torch.exp(student, out=first)
    return value, torch.sub(prob, teacher_prob, out=second), prob


def _reverse_kl_pull(student: Tensor, teacher: Tensor, beta: float, first: Tensor, second: Tensor) -> Pull:
    prob = torch.exp(student, out=second)
    pull = torch.sub(student, teacher, out=first).mul_(prob)
    return pull.sum(-1), pull, prob


def _jsd_pull(student: Tensor, teacher: Tensor, beta: float, first: Tensor, second: Tensor) -> Pull:
    gap = torch.sub(teacher, student, out=first).clamp_(max=_MAX_GAP)
    teacher_prob = teacher.exp_()
    value = torch.mul(teacher_prob, gap, out=second).sum(-1)
    to_mean = gap.expm1_().mul_(beta).log1p_().neg_()  # log(p_S / m)
    value.add_(torch.mul(teacher_prob, to_mean, out=second).sum(-1)).mul_(beta)
    prob = torch.exp(student, out=second)
    pull = to_mean.mul_(prob).mul_(1 - beta)
    return value.add_(pull.sum(-1)), pull, prob


_PULLS: dict[str, Callable[[Tensor, Tensor, float, Tensor, Tensor], Pull]] = {
    "forward_kl": _forward_kl_pull,
    "reverse_kl": _reverse_kl_pull,
    "jsd": _jsd_pull,
}


def _forward_kl_clipped(student: Tensor, teacher: Tensor, beta: float, clip: float, first: Tensor, second: Tensor) -> Pull:
    terms = torch.sub(teacher, student, out=first)
    teacher_prob = teacher.exp_()
    cut = terms.mul_(teacher_prob) > clip
    value = terms.masked_fill_(cut, clip).sum(-1)
    prob = torch.exp(student, out=first)
    return value, torch.sub(prob, teacher_prob.masked_fill_(cut, 0), out=second), prob


def _reverse_kl_clipped(student: Tensor, teacher: Tensor, beta: float, clip: float, first: Tensor, second: Tensor) -> Pull:
    prob = torch.exp(student, out=second)
    pull = torch.sub(student, teacher, out=first).mul_(prob)
    cut = pull > clip
    value = pull.masked_fill_(cut, clip).sum(-1)
    pull[cut] = -prob[cut]
    return value, pull, prob


def _jsd_clipped(student: Tensor, teacher: Tensor, beta: float, clip: float, first: Tensor, second: Tensor) -> Pull:
    gap = torch.sub(teacher, student, out=first).clamp_(max=_MAX_GAP)
    teacher_prob = teacher.exp_()
    terms = torch.mul(teacher_prob, gap, out=second)
    to_mean = gap.expm1_().mul_(beta).log1p_().neg_()  # log(p_S / m)
    terms.addcmul_(teacher_prob, to_mean).mul_(beta)
    prob = torch.exp(student, out=teacher)
    pull = to_mean.mul_(prob).mul_(1 - beta)
    cut = terms.add_(pull) > clip
    return terms.masked_fill_(cut, clip).sum(-1), pull.masked_fill_(cut, 0), prob


_CLIPPED: dict[str, Callable[[Tensor, Tensor, float, float, Tensor, Tensor], Pull]] = {
    "forward_kl": _forward_kl_clipped,
    "reverse_kl": _reverse_kl_clipped,
    "jsd": _jsd_clipped,
}
