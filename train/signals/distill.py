"""On-policy self-distillation: the student's own tokens, re-scored by a teacher who sees more.

Sources: Vision-OPD (2605.18740, section 3: JSD 0.5 on the student's top-100 with a tail), Imagine-OPD (2606.08719: the sampled
token's log-ratio as a per-token advantage), KDRL (2506.02208: k2 beside rl, wrong rollouts only), TRACE (2605.10194: clipped
divergence on annotated spans, faded out), ATESD (2605.11458: the teacher sees a learned share of the rationale). All are settings
of this file: views, divergence, support, selection, schedule, exposure.

Over tool trajectories the teacher's view is its prompt; the turns, with what the tools showed the student, are shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain
from typing import Literal

import torch

from ...datasets.views import make_view
from ...vlm.records import Group, Rollout, Sample, Signal, View
from ..divergence import sampled_token_advantage
from ..exposure import Exposure
from ..streams import Stream
from . import routing
from .base import Context
from .distill_settings import DistillSignal
from .routing import Annotator, ChosenNK
from .schedule import Schedule, peak, share


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A rollout that may be distilled, and what the teacher sees in its place."""

    sample: Sample
    rollout: Rollout
    view: View


class Distill:
    """support full | top, or sampled with k2: the kd stream. sampled with score: the rl stream, score-function gradient.

    In expectation over the student's samples both sampled estimates have the gradient of the reverse KL of each token given its
    prefix; score has no return-to-go, no baseline and no normalisation, as in Imagine-OPD's code.

    The stream's weight is the coefficient's peak; the share of it that a step uses is in the tokens' weights, together with what
    turns the stream's denominator (tokens or rollouts of its signals) into the one of ``mean_over``.
    """

    def __init__(
        self, config: DistillSignal, annotator: Annotator = routing.evidence_spans, exposure: Exposure | None = None
    ) -> None:
        self.config = config
        self.annotator = annotator
        self.exposure = exposure

    def streams(self) -> list[Stream]:
        c = self.config
        stream = Stream(
            "distill",
            peak(c.weight),
            c.reduction,
            divergence=c.divergence,
            beta=c.beta,
            support="full" if c.scored else c.support,
            top_c=c.top_c,
            temperature=c.temperature,
            term_clip=c.term_clip,
        )
        return [stream]

    def build(self, groups: Sequence[Group], context: Context) -> list[Signal]:
        c = self.config
        left = share(c.weight, context.step if isinstance(c.weight, Schedule) else 0)
        if left == 0:
            return []
        candidates = [
            Candidate(group.sample, rollout, self._view(group.sample, context))
            for group in groups
            for rollout in group.rollouts
            if rollout.num_actions and routing.outcome_fits(rollout, c.rollouts)
        ]
        chosen = [(one, mask) for one, mask in zip(candidates, self._choose(candidates, context), strict=True) if _count(mask)]
        factors = self._factors(groups, chosen)
        weights = [
            tuple(tuple(left * factor if picked else 0.0 for picked in row) for row in mask)
            for factor, (_, mask) in zip(factors, chosen, strict=True)
        ]
        picked = [one for one, _ in chosen]
        if c.scored:
            return _advantages(picked, weights, context)
        return [
            Signal(one.rollout, kd_weights_NK=weights_NK, teacher_view=one.view, stream="distill")
            for one, weights_NK in zip(picked, weights, strict=True)
        ]

    def _view(self, sample: Sample, context: Context) -> View:
        spec = self.config.teacher
        if self.exposure is not None:
            spec = spec.model_copy(update={"rationale_frac": self.exposure.alpha(context.step)})
        return make_view(sample, spec, "teacher", context.tools_prompt(sample) if spec.system == "tools" else None)

    def _choose(self, candidates: Sequence[Candidate], context: Context) -> list[ChosenNK]:
        c = self.config
        rollouts = [one.rollout for one in candidates]
        if c.tokens == "spans":
            samples = [one.sample for one in candidates]
            return routing.spans_chosen(c, samples, rollouts, self.annotator, context.token_bytes)
        among = [routing.in_turns(one, c.turns) for one in rollouts]
        if c.top_frac is None:
            return among
        pairs = [(one.rollout, one.view) for one in candidates]
        what: Literal["entropy", "divergence"] = "entropy" if c.tokens == "top_entropy" else "divergence"
        values = context.measure(pairs, self.streams()[0], what) if pairs else []
        return [routing.highest(values_NK, mask, c.top_frac) for values_NK, mask in zip(values, among, strict=True)]

    def _factors(self, groups: Sequence[Group], chosen: Sequence[tuple[Candidate, ChosenNK]]) -> list[float]:
        """What each rollout's weights are multiplied with, so that the stream's mean is the one that was asked for."""
        c = self.config
        everyone = [rollout for group in groups for rollout in group.rollouts]
        if c.reduction == "sequence":
            if c.mean_over == "selected":
                return [one.rollout.num_actions / _count(mask) for one, mask in chosen]
            return [len(chosen) / len(everyone)] * len(chosen)
        present = sum(one.rollout.num_actions for one, _ in chosen)
        if c.mean_over == "selected":
            wanted = sum(_count(mask) for _, mask in chosen)
        else:
            wanted = sum(rollout.num_actions for rollout in everyone)
        return [present / wanted for _ in chosen]


def _count(mask: ChosenNK) -> int:
    return sum(chain.from_iterable(mask))


def _advantages(picked: Sequence[Candidate], weights: Sequence[tuple[tuple[float, ...], ...]], context: Context) -> list[Signal]:
    """Each token's weight times the log-ratio of teacher and student."""
    signals = []
    scored = context.score_teacher([(one.rollout, one.view) for one in picked]) if picked else []
    for one, weights_NK, teacher_NK in zip(picked, weights, scored, strict=True):
        advantages = tuple(
            _weighted(weights_K, sampled_token_advantage(torch.tensor(turn.action_logprobs_K), torch.tensor(teacher_K)))
            for weights_K, turn, teacher_K in zip(weights_NK, one.rollout.turns, teacher_NK, strict=True)
        )
        signals.append(
            Signal(one.rollout, advantages_NK=advantages, teacher_logprobs_NK=teacher_NK, teacher_view=one.view, stream="distill")
        )
    return signals


def _weighted(weights_K: tuple[float, ...], advantages_K: torch.Tensor) -> tuple[float, ...]:
    return tuple((torch.tensor(weights_K) * advantages_K).tolist())
