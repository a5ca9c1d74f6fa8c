"""On-policy self-distillation: the student's own tokens, re-scored by a teacher who sees more.

Sources: Vision-OPD (2605.18740, section 3: JSD 0.5 on the student's top-100 with a tail), Imagine-OPD (2606.08719: the sampled
token's log-ratio as a per-token advantage). Both are settings of this file: views, divergence, support.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...datasets.views import make_view
from ...vlm.records import Group, Signal
from ..batch import Stream
from ..divergence import sampled_token_advantage
from .base import Context, constant_NK
from .distill_settings import DistillSignal


class Distill:
    """support full | top: the kd stream, analytic gradient. support sampled: the rl stream, score-function gradient.

    In expectation over the student's samples the second is the gradient of the reverse KL of each token given its prefix; it
    has no return-to-go, no baseline and no normalisation, as in Imagine-OPD's code.
    """

    def __init__(self, config: DistillSignal) -> None:
        self.config = config

    def streams(self) -> list[Stream]:
        c = self.config
        return [
            Stream(
                "distill",
                c.weight,
                c.reduction,
                c.divergence,
                c.beta,
                "top" if c.support == "top" else "full",
                c.top_c,
                c.temperature,
            )
        ]

    def build(self, groups: Sequence[Group], context: Context) -> list[Signal]:
        pairs = [
            (rollout, view)
            for group in groups
            for view in [make_view(group.sample, self.config.teacher, "teacher")]
            for rollout in group.rollouts
        ]
        if self.config.support != "sampled":
            return [
                Signal(rollout, kd_weights_NK=constant_NK(rollout, 1.0), teacher_view=view, stream="distill")
                for rollout, view in pairs
            ]
        signals = []
        for (rollout, view), teacher_NK in zip(pairs, context.score_teacher(pairs), strict=True):
            advantages = tuple(
                tuple(sampled_token_advantage(torch.tensor(turn.action_logprobs_K), torch.tensor(row)).tolist())
                for row, turn in zip(teacher_NK, rollout.turns, strict=True)
            )
            signals.append(
                Signal(rollout, advantages_NK=advantages, teacher_logprobs_NK=teacher_NK, teacher_view=view, stream="distill")
            )
        return signals
