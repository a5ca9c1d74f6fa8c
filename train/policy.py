"""Policy terms: ratios, clipping, KL to a reference, and the correction for an engine whose log-probs differ from the trainer's.

Legend: R rows of one term. new: log-probs under the weights that learn; old: those that the ratio starts from; engine: what the
sampler said; ref: the reference's; A: advantages.

    ratio       token     exp(new - old)
                sequence  s = exp(mean over a rollout's action tokens of new - old), the same at all of them (GSPO, 2507.18071)
    policy      clip      -min(ratio A, clip(ratio, 1 - low, 1 + high) A)                   (PPO, 1707.06347, eq. 7)
                dual      where A < 0 no more than -c A                                     (1912.09729, eq. 5)
                cispo     -stopped(min(ratio, 1 + high)) A new, without a lower bound       (MiniMax-M1, 2506.13585)
    KL          k2        (new - ref)^2 / 2, whose gradient is that of KL(new || ref) on policy
                k3        exp(ref - new) - (ref - new) - 1, never negative, an unbiased estimate of the value
                k1        no term of the loss: `signals.grpo` takes it off the advantages
    correction  truncate  the policy term times min(w, cap), w = exp(old - engine)
                mask      the policy term times w, and times 0 where w > cap
                level     token, or sequence: one w for a rollout, the product over its action tokens

Without a correction the ratio starts from the engine's log-probs. With one it starts from the trainer's own: those before the
first of several updates (`update.remember_start`), or with one update those of now, so that the ratio is 1. The KL term is never
corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .batch import RlRows
from .losses import PolicyRows, clipped_policy_loss, policy_ratio
from .streams import Stream

Loss = Callable[[Tensor, Tensor, Tensor, PolicyRows], Tensor]


def dual_clip_loss(logprobs_R: Tensor, old_logprobs_R: Tensor, advantages_R: Tensor, rows: PolicyRows, *, most: float) -> Tensor:
    """`clipped_policy_loss`, held below ``-most x A`` where A < 0: a token that has become likely pushes back no harder."""
    plain_R = clipped_policy_loss(logprobs_R, old_logprobs_R, advantages_R, rows)
    return torch.where(advantages_R < 0, torch.minimum(plain_R, -most * advantages_R), plain_R)


def cispo_loss(logprobs_R: Tensor, old_logprobs_R: Tensor, advantages_R: Tensor, rows: PolicyRows) -> Tensor:
    """REINFORCE with a bounded ratio as its weight: no token loses its gradient."""
    most = None if rows.clip_high is None else 1 + rows.clip_high
    ratio_R = policy_ratio(logprobs_R.detach(), old_logprobs_R)
    return -(ratio_R if most is None else ratio_R.clamp(max=most)) * advantages_R * logprobs_R


def kl_estimate(kind: str, logprobs_R: Tensor, reference_R: Tensor) -> Tensor:
    """A sampled token's estimate of KL(policy || reference), in nats; an absurd row gives a large number and not an inf."""
    gap_R = logprobs_R - reference_R
    if kind == "k2":
        return gap_R.square() / 2
    return gap_R if kind == "k1" else (-gap_R).clamp(max=20.0).exp() + gap_R - 1


def sequence_sums(values_R: Tensor, sequence_R: Tensor) -> Tensor:
    """At every row, the sum over the rows of its rollout."""
    _, place_R = sequence_R.unique(return_inverse=True)
    return values_R.new_zeros(int(place_R.max()) + 1 if len(place_R) else 0).index_add(0, place_R, values_R)[place_R]


def sequence_means(values_R: Tensor, sequence_R: Tensor) -> Tensor:
    """At every row, the mean over the rows of its rollout."""
    return sequence_sums(values_R, sequence_R) / sequence_sums(torch.ones_like(values_R), sequence_R)


def correction_weights(
    old_R: Tensor, engine_R: Tensor, sequence_R: Tensor, *, mode: str, level: str, cap: float
) -> tuple[Tensor, Tensor]:
    """(weights after truncation or masking, the same before it), of truncated importance sampling and its masked kin."""
    gap_R = old_R - engine_R
    raw_R = (sequence_sums(gap_R, sequence_R) if level == "sequence" else gap_R).clamp(max=20.0).exp()
    if mode == "truncate":
        return raw_R.clamp(max=cap), raw_R
    return raw_R.where(raw_R <= cap, 0), raw_R


def needs_current(part: RlRows) -> bool:
    """Whether the log-probs of now must be known before the loss: sequence ratios and corrections need a pass of their own."""
    stream = part.stream
    return stream.ratio == "sequence" or (stream.correction != "none" and part.start_logprobs_R is None)


def policy_rows(part: RlRows, current_R: Tensor | None, device: torch.device) -> tuple[PolicyRows, dict[str, Tensor]]:
    """The policy term of one stream's rows, and what to report about the engine's mismatch (none without a correction).

    ``current_R`` are the log-probs of now at all rows of the batch, without a gradient. For the sequence ratio the old log-probs
    are moved to ``current - log s``: then exp(new - old) is s at every row and its derivative is s as well, so that the weighted
    sum over a rollout's rows has GSPO's gradient exactly, whatever chunk a row falls into (weights alike within a rollout).
    """
    stream, seen = part.stream, {}
    index_R, sequence_R = part.index_R.to(device), part.sequence_R.to(device)
    engine_R, weights_R = part.old_logprobs_R.to(device), part.weights_R.to(device)
    now_R = None if current_R is None else current_R[index_R]
    old_R = engine_R
    if stream.correction != "none":
        start_R = now_R if part.start_logprobs_R is None else part.start_logprobs_R.to(device)
        assert start_R is not None
        own_R, raw_R = correction_weights(
            start_R, engine_R, sequence_R, mode=stream.correction, level=stream.correction_level, cap=stream.correction_cap
        )
        gap_R = (start_R - engine_R).clamp(max=20.0)
        seen = {
            "mismatch_ratio": raw_R,
            "mismatch_kl": gap_R.exp() - gap_R - 1,
            f"{'truncated' if stream.correction == 'truncate' else 'masked'}_frac": (raw_R > stream.correction_cap).float(),
        }
        old_R, weights_R = start_R, weights_R * own_R
    if stream.ratio == "sequence":
        assert now_R is not None
        old_R = now_R - sequence_means(now_R - old_R, sequence_R)
    term = PolicyRows(
        index_R=index_R,
        advantages_R=part.advantages_R.to(device),
        weights_R=weights_R,
        old_logprobs_R=old_R,
        clip_low=stream.clip_low,
        clip_high=stream.clip_high,
        loss=_policy_loss(stream),
    )
    return term, seen


def kl_rows(part: RlRows, device: torch.device) -> PolicyRows | None:
    """The KL term in the loss of one stream's rows; None where it has none."""
    if part.stream.kl not in ("k2", "k3"):
        return None
    assert part.reference_R is not None
    assert part.kl_weights_R is not None
    weights_R = part.kl_weights_R.to(device)
    return PolicyRows(
        index_R=part.index_R.to(device),
        advantages_R=torch.ones_like(weights_R),
        weights_R=weights_R,
        old_logprobs_R=part.reference_R.to(device),
        loss=lambda new, reference, *_: kl_estimate(part.stream.kl, new, reference),
    )


def _policy_loss(stream: Stream) -> Loss | None:
    if stream.policy == "cispo":
        return cispo_loss
    return None if stream.dual_clip is None else partial(dual_clip_loss, most=stream.dual_clip)
