"""Settings of distillation: what the teacher sees, which divergence, on which tokens of which rollouts, how strongly and when."""

from __future__ import annotations

import re
from typing import Any, Literal

import pydantic

from ...datasets.crops import Part
from ...datasets.spec import DataSpec
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
    """How much of the reference reasoning the teacher sees, learned while training (ATESD, 2605.11458; see `train.exposure`).

    The paper's values of hold, horizon, discount and step are not published: these are ours.
    """

    probe: DataSpec
    """A few prompts with answers that are not trained on and not reported: the student's log-prob of their answers tells its
    progress. All of them are read at once, so a dozen or two."""
    probe_answer: str = "<answer>{answer}</answer>"
    """The reply whose log-prob is meant."""
    probe_every: int = pydantic.Field(5, ge=1)
    """Steps between two looks at the probe."""
    hold_steps: int = pydantic.Field(5, ge=1)
    """Steps for which an exposure is kept (H)."""
    horizon_steps: int = pydantic.Field(5, ge=1)
    """Steps whose progress judges it (L)."""
    discount: float = pydantic.Field(0.9, gt=0, le=1)
    loss_weight: float = pydantic.Field(1.0, ge=0)
    probe_weight: float = pydantic.Field(1.0, ge=0)
    """What a nat less of the distillation loss, and a nat more of the true answers' log-prob, count as progress."""
    decay: float = pydantic.Field(0.9, ge=0, lt=1)
    """Of the running means: statistics, baseline."""
    lr: float = pydantic.Field(0.2, gt=0)
    """Step of the controller's plain gradient ascent."""
    hidden: int = pydantic.Field(8, ge=1)
    """Width of its one hidden layer."""
    start_mean: float = pydantic.Field(0.5, gt=0, lt=1)
    start_concentration: float = pydantic.Field(4.0, gt=2)
    """a + b of the Beta distribution it starts from: 4 is broad (sd .22 at mean .5), 50 narrow."""

    @pydantic.model_validator(mode="after")
    def _sense(self) -> ExposureSpec:
        if self.probe.split == "test":
            raise ValueError(
                "exposure.probe: it steers the training, and what steers cannot be reported; use split: dev (synthetic), or a "
                "file of its own"
            )
        if self.probe_weight and self.probe_every > self.horizon_steps:
            raise ValueError(
                f"exposure: the probe is looked at every {self.probe_every} steps and an exposure is judged after "
                f"{self.horizon_steps}, so that some never see it; set probe_every to horizon_steps or less"
            )
        if not self.loss_weight and not self.probe_weight:
            raise ValueError("exposure: loss_weight and probe_weight are both 0, so that nothing is progress; set one")
        if min(self.start_mean, 1 - self.start_mean) * self.start_concentration <= 1:
            raise ValueError(
                f"exposure: start_mean {self.start_mean:g} with start_concentration {self.start_concentration:g} has no peak "
                "between 0 and 1; raise start_concentration above 1 / min(mean, 1 - mean)"
            )
        return self


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
    """The share of the rationale that the teacher is shown is learned; None: it is `teacher.rationale_frac`."""
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
        if self.exposure is not None and not (self.teacher.rationale and self.teacher.answer):
            raise ValueError(
                "exposure: the teacher is shown a part of the rationale, and always the final answer; give its view the "
                "templates rationale: '... {rationale}' and answer: '... {answer}'"
            )
        return self

    @property
    def scored(self) -> bool:
        """True where distillation is an advantage (rl stream) and not a divergence (kd stream)."""
        return self.support == "sampled" and self.estimator == "score"

    @property
    def needs_outcomes(self) -> bool:
        """True where rollouts must have been rewarded before."""
        return self.rollouts != "all" or (self.spans is not None and self.spans.kind == "annotated")
