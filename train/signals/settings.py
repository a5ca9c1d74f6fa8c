"""Settings of the signals that start from rewards or from given texts: sft and grpo. Those of distillation are beside it."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from ...datasets.crops import Part
from ...datasets.experts import ExpertSpec
from ...rewards.combine import RewardSpec


class Weighted(Part):
    """What every signal has in common."""

    weight: float = pydantic.Field(1.0, ge=0)
    reduction: Literal["token", "sequence"] = "token"
    """token: mean over all action tokens of the step; sequence: mean over rollouts of each rollout's mean."""


class SftSignal(Weighted):
    """Supervised fine-tuning: minus the log-prob of given actions under the student's view; nothing is sampled."""

    kind: Literal["sft"]
    source: Literal["target", "expert", "trajectories"] = "target"
    """What is learned: a target text; what a scripted expert does with a synthetic scene, in the dialect of the run's tools;
    trajectories from a file, which the run's ``data`` names."""
    target: str = "<answer>{answer}</answer>"
    """The text of source target; {answer} and {rationale} are filled in from the sample."""
    expert: ExpertSpec = ExpertSpec()
    thought_dropout: float = pydantic.Field(0.0, ge=0, le=1)
    """Share of a file's trajectories whose thoughts are emptied, drawn anew at each step (TON, 2505.16854)."""


class AdoraScale(Part):
    """ADORA: groups whose right answers are not the longer ones count less, since slow thinking should pay. After its code.

    A group keeps its advantages when its longest right answer is longer than the mean of its wrong ones, those of ``cap_tokens``
    or more left out; else they are multiplied by ``damp``.
    """

    kind: Literal["adora"]
    form: Literal["vl", "llm"] = "vl"
    """What is not said by that: a group without a right answer keeps its advantages in vl and is damped in llm; one with a right
    answer and no wrong one to compare with is damped in vl and keeps them in llm."""
    damp: float = pydantic.Field(0.1, ge=0, le=1)
    right_above: float | None = None
    """Right are rewards above this (its LLM code: 1.01, answer and format); None: right outcomes."""
    cap_tokens: int | None = pydantic.Field(4054, ge=1)
    """4054 in the LLM code, 4094 in the VL code; None: no cap."""


class BoxSizeScale(Part):
    """The difficulty weight of GUI-G1 (2505.15810): small boxes count more. Its weights were computed beforehand, by a formula
    that is not in the code; here ``(typical_frac / area)^power``, held between two bounds, with the area of the evidence box as a
    share of its picture."""

    kind: Literal["box_size"]
    typical_frac: float = pydantic.Field(0.005, gt=0, le=1)
    """Area of the box whose group counts once."""
    power: float = pydantic.Field(0.5, ge=0)
    """0.5: as the side of the box."""
    least: float = pydantic.Field(0.5, gt=0)
    most: float = pydantic.Field(2.0, gt=0)

    @pydantic.model_validator(mode="after")
    def _order(self) -> BoxSizeScale:
        if self.least > self.most:
            raise ValueError(f"scale: box_size needs least ({self.least:g}) no larger than most ({self.most:g})")
        return self


AnyScale = Annotated[AdoraScale | BoxSizeScale, pydantic.Field(discriminator="kind")]


class GrpoSignal(Part):
    """Group-relative policy gradient (DeepSeekMath, 2402.03300) and its switches, each a part of its own.

    Dr. GRPO: advantage mean, reduction constant. DAPO: clip_high 0.28, filter_zero_variance, extra_rounds, filter_overlong.
    GSPO: ratio sequence, reduction sequence, clip_low 3e-4, clip_high 4e-4. CISPO: policy cispo. SimpleTIR: filter_void,
    dual_clip 3. GUI-G1: advantage mean, reduction constant, constant_tokens 64, scale box_size. ADORA: scale adora.
    """

    kind: Literal["grpo"]
    weight: float = pydantic.Field(1.0, ge=0)
    reward: RewardSpec = RewardSpec()
    shuffle: bool = False
    """Control: every group gets the rewards of another group of the step; what is gained then is not learned from them."""
    advantage: Literal["mean_std", "mean", "rloo"] = "mean_std"
    """The group's centred rewards divided by their standard deviation; centred only; against the mean of the others."""
    scale: AnyScale | None = None
    """What multiplies the advantages of a whole group after they are centred and divided."""
    policy: Literal["clip", "cispo"] = "clip"
    """clip: PPO's pessimistic clipping. cispo: the ratio, bounded above by 1 + clip_high, only weighs the gradient of log p."""
    ratio: Literal["token", "sequence"] = "token"
    """sequence: one ratio for a rollout, the geometric mean over its action tokens; it needs much smaller clips."""
    clip_low: float = pydantic.Field(0.2, ge=0)
    clip_high: float = pydantic.Field(0.2, ge=0)
    dual_clip: float | None = pydantic.Field(None, gt=1)
    """Most that a negative advantage can be multiplied with; None: no bound. Common: 3."""
    reduction: Literal["token", "sequence", "constant", "balanced"] = "token"
    """Mean over all action tokens; over rollouts of their means; sum / (rollouts x constant_tokens); token means of the two signs
    of the advantage, weighted by their shares of the rollouts."""
    constant_tokens: int | None = pydantic.Field(None, ge=1)
    """Length for reduction constant; None: sampling.max_new_tokens x sampling.max_turns."""
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    """Pull to the teacher's weights, reading the student's view. k1: taken off every token's advantage; k2, k3: in the loss."""
    kl_weight: float = pydantic.Field(0.0, ge=0)
    nll_weight: float = pydantic.Field(0.0, ge=0)
    """A cross-entropy term beside the policy term, a mean over the tokens that it is on (VL-Rethinker, 2504.08837: 0.05)."""
    nll_on: Literal["edited", "positive"] = "edited"
    """Right rollouts that a transform has gone on with (the paper); all right ones with a positive advantage (its code)."""
    filter_zero_variance: bool = False
    """Groups whose rollouts all earned the same leave the loss and its denominators."""
    extra_rounds: int = pydantic.Field(0, ge=0)
    """Dynamic sampling: so many times a step may draw further prompts, as many as still lack a group that teaches something. The
    draws belong to the step: those that it does not need are passed over."""
    filter_overlong: bool = False
    """Rollouts that a limit of tokens or seconds cut off count in the baseline and teach nothing."""
    filter_void: bool = False
    """Rollouts that ended with neither a valid call nor an answer count in the baseline and teach nothing."""
    correction: Literal["none", "truncate", "mask"] = "none"
    """For an engine whose log-probs differ from the trainer's: weights p_trainer / p_engine, cut at the cap, or 0 above it."""
    correction_level: Literal["token", "sequence"] = "token"
    """sequence: one weight for a rollout, the product over its action tokens."""
    correction_cap: float = pydantic.Field(2.0, gt=0)

    @pydantic.model_validator(mode="after")
    def _sense(self) -> GrpoSignal:
        if (self.kl == "none") != (self.kl_weight == 0):
            raise ValueError(
                f"grpo: kl: {self.kl} with kl_weight: {self.kl_weight:g} does nothing; set both (k3, 0.001), or neither"
            )
        if self.constant_tokens is not None and self.reduction != "constant":
            raise ValueError(f"grpo: constant_tokens has no use with reduction: {self.reduction}; remove it or set constant")
        if self.dual_clip is not None and (self.policy == "cispo" or self.dual_clip <= 1 + self.clip_high):
            raise ValueError(
                f"grpo: dual_clip: {self.dual_clip:g} belongs to policy: clip and lies above 1 + clip_high; remove it or use 3"
            )
        if self.correction != "none" and self.ratio == "sequence" and self.correction_level == "token":
            raise ValueError("grpo: ratio: sequence has one weight for a rollout; set correction_level: sequence")
        if self.extra_rounds and not self.filter_zero_variance:
            raise ValueError("grpo: extra_rounds looks for groups with variance; set filter_zero_variance: true as well")
        return self
