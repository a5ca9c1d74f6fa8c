"""Settings of distillation: what the teacher sees, which divergence, on which tokens of which rollouts, how strongly and when."""

from __future__ import annotations

import re
from typing import Any, Literal

import pydantic

from ...datasets.crops import Part
from ...datasets.views import ViewSpec, resolve_view
from ...rewards.combine import RewardSpec
from .schedule import Weight


class SpanSpec(Part):
    """Which characters of a turn are meant (``tokens: spans``)."""

    kind: Literal["calls", "answer", "boxes", "regex", "annotated"]
    """calls: tool calls with their tags; answer: the text in the answer tags (or box) of the last turn; boxes: the numbers of
    every box written; regex: ``pattern``; annotated: where a right rollout got it and a wrong one lost it, by the evidence boxes
    of the sample (`routing.evidence_spans`)."""
    pattern: str = ""
    """regex: its first group is the span, or the whole match where it has no group."""
    coverage_max_frac: float = pydantic.Field(0.25, gt=0, le=1)
    """A rollout's spans may cover so much of its action tokens (TRACE: .25); later ones that would exceed it are left out."""

    @pydantic.model_validator(mode="after")
    def _pattern(self) -> SpanSpec:
        if (self.kind == "regex") != bool(self.pattern):
            raise ValueError("spans: pattern belongs to kind: regex; give both or neither")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"spans.pattern {self.pattern!r} is no regular expression: {error}") from error
        return self


class ExposureSpec(Part):
    """How much of the reference reasoning the teacher sees, learned while training (ATESD, 2605.11458)."""


class DistillSignal(Part):
    """On-policy self-distillation: the teacher re-scores the student's own tokens under a privileged view."""

    kind: Literal["distill"]
    teacher: ViewSpec
    """What the teacher is shown before the first turn (a preset's name or a view). The turns are the student's own, with their
    tool pictures."""
    weight: Weight = 1.0
    """A number, or a schedule ``{start, hold_steps, over_steps, end}``. At 0 the teacher is not run."""
    reduction: Literal["token", "sequence"] = "token"
    """token: mean over action tokens of the step; sequence: mean over rollouts of each rollout's mean."""
    mean_over: Literal["all", "selected"] = "all"
    """all: what is not selected counts as 0 in the means, so a rarer fault pulls less (reduction sequence: TRACE's mean over the
    span times its share of the rollout); selected: the means are over selected rollouts and tokens only."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "jsd"
    beta: float = pydantic.Field(0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture of jsd."""
    support: Literal["full", "top", "sampled"] = "full"
    """full vocabulary; top: the student's top_c candidates and one bucket for the rest; sampled: the sampled token alone."""
    top_c: int = pydantic.Field(100, ge=1)
    term_clip: float | None = pydantic.Field(None, gt=0)
    """Upper bound of each vocabulary term of the divergence, in nats (TRACE: 0.05); None: no bound."""
    estimator: Literal["score", "k2"] = "score"
    """support: sampled. score: the log-ratio when sampled is a per-token advantage (Imagine-OPD); k2: half the squared log-ratio,
    differentiated (KDRL). One update a step gives both the same gradient; k2 follows the weights in further ones."""
    temperature: float = pydantic.Field(1.0, gt=0)
    """Divides the logits of both before they are compared. estimator score takes the temperature of sampling."""
    rollouts: Literal["all", "right", "wrong", "unparsed+wrong"] = "all"
    """By the outcome of the answer; a rollout without a reference answer is in all only. KDRL: unparsed+wrong."""
    reward: RewardSpec | None = None
    """How outcomes are told in a run without an rl signal, whose own reward tells them otherwise."""
    turns: Literal["all", "first", "last", "calls"] = "all"
    """calls: turns that called a tool."""
    tokens: Literal["all", "top_entropy", "top_divergence", "spans"] = "all"
    """top_entropy, top_divergence: of each rollout the share ``top_frac`` of tokens where the student is least sure, or where the
    teacher differs most; measured before the update, at the price of one more forward pass (of both, for the divergence)."""
    top_frac: float | None = pydantic.Field(None, gt=0, le=1)
    spans: SpanSpec | None = None
    exposure: ExposureSpec | None = None
    """The share of the rationale that the teacher is shown is learned; None: all of it."""
    mix: Literal["additive", "convex"] = "additive"
    """convex (TRACE): on selected tokens the rl signal keeps 1 minus the share of ``weight`` that is left of its peak."""

    @pydantic.field_validator("teacher", mode="before")
    @classmethod
    def _teacher(cls, value: Any) -> Any:
        return resolve_view(value)

    @pydantic.model_validator(mode="after")
    def _sampled_is_reverse(self) -> DistillSignal:
        if self.support == "sampled" and self.divergence != "reverse_kl":
            raise ValueError(
                "support: sampled estimates the reverse KL and nothing else; set divergence: reverse_kl, or support: full or top"
            )
        if self.support == "sampled" and self.term_clip is not None:
            raise ValueError("term_clip bounds the terms of support: full and top; with support: sampled there is one term")
        if self.support != "sampled" and self.estimator != "score":
            raise ValueError(f"estimator: {self.estimator} is for support: sampled; the others have an exact gradient")
        if self.scored and self.temperature != 1:
            raise ValueError("estimator: score takes the temperature of sampling; remove temperature, or use estimator: k2")
        return self

    @pydantic.model_validator(mode="after")
    def _selection(self) -> DistillSignal:
        if (self.top_frac is None) == (self.tokens in ("top_entropy", "top_divergence")):
            raise ValueError("top_frac belongs to tokens: top_entropy or top_divergence; give both or neither")
        if (self.spans is None) == (self.tokens == "spans"):
            raise ValueError("spans belongs to tokens: spans; give both or neither")
        if self.mix == "convex" and self.scored:
            raise ValueError("mix: convex needs support: full or top, or estimator: k2; score is an advantage itself")
        if self.reward is not None and not self.needs_outcomes:
            raise ValueError("reward tells outcomes, and nothing here asks for them; remove it, or choose rollouts by outcome")
        return self

    @property
    def scored(self) -> bool:
        """True where distillation is an advantage (rl stream) and not a divergence (kd stream)."""
        return self.support == "sampled" and self.estimator == "score"

    @property
    def needs_outcomes(self) -> bool:
        """True where rollouts must have been rewarded before."""
        return self.rollouts != "all" or (self.spans is not None and self.spans.kind == "annotated")
