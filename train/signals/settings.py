"""Settings of the signals that start from rewards or from given texts: sft and grpo. Those of distillation are beside it."""

from __future__ import annotations

from typing import Literal

import pydantic

from ...datasets.crops import Part
from ...rewards.combine import RewardSpec


class Weighted(Part):
    """What every signal has in common."""

    weight: float = pydantic.Field(1.0, ge=0)
    reduction: Literal["token", "sequence"] = "token"
    """token: mean over all action tokens of the step; sequence: mean over rollouts of each rollout's mean."""


class SftSignal(Weighted):
    """Supervised fine-tuning: minus the log-prob of a target text under the student's view; nothing is sampled."""

    kind: Literal["sft"]
    target: str = "<answer>{answer}</answer>"
    """The text to learn; {answer} and {rationale} are filled in from the sample."""


class GrpoSignal(Weighted):
    """Group-relative policy gradient in its plain form (DeepSeekMath, 2402.03300, section 4.1)."""

    kind: Literal["grpo"]
    reward: RewardSpec = RewardSpec()
    scale: Literal["std", "none"] = "std"
    """Divide the group's centred rewards by their standard deviation, or not (Dr. GRPO, 2503.20783)."""
    clip_low: float = pydantic.Field(0.2, ge=0)
    clip_high: float = pydantic.Field(0.2, ge=0)
