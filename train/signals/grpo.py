"""Group-relative policy optimisation (DeepSeekMath, 2402.03300, section 4.1) and its kin, put together from parts.

The parts: `advantage`, `scale`, `filters`, `train.policy` (ratio, clipping, KL, correction), `train.streams` (reduction). GRPO,
Dr. GRPO, RLOO, DAPO, GSPO, CISPO, SimpleTIR's filter, Balanced Aggregation, ADORA and GUI-G1 are settings of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...vlm.records import Group, Rollout, Signal, StopReason
from ..streams import Stream
from .advantage import advantages
from .base import Context, constant_NK
from .filters import memorises, reasons, rewards_of
from .scale import factor
from .settings import GrpoSignal

NLL = "nll"
"""The stream of the cross-entropy beside the policy term."""


class Grpo:
    """Every action token of a rollout gets the rollout's advantage, times the group's weight and scale; a filtered rollout gets a
    signal without a stream.

    An injected rollout (DyME, 2506.23061) has a cross-entropy weight of 1 in the same stream and its siblings have advantage 0:
    the group's gradient is the supervised one of that text, times what the reduction weighs a rollout of its length.

    With kl: k1 every token's advantage is lowered by ``kl_weight x (log p(token) - log p_ref(token))``, p being the policy that
    sampled it: the penalty of PPO's reward, taken after the group's normalisation and for the token alone (no return-to-go).
    The reference reads the rollout in the student's own view.
    """

    def __init__(self, config: GrpoSignal) -> None:
        self.config = config

    def streams(self) -> list[Stream]:
        c = self.config
        nll = [Stream(NLL, c.nll_weight)] if c.nll_weight else []
        return [
            Stream(
                "grpo",
                c.weight,
                c.reduction,
                clip_low=c.clip_low,
                clip_high=c.clip_high,
                dual_clip=c.dual_clip,
                policy=c.policy,
                ratio=c.ratio,
                correction=c.correction,
                correction_level=c.correction_level,
                correction_cap=c.correction_cap,
                kl=c.kl,
                kl_weight=c.kl_weight,
                constant_tokens=c.constant_tokens,
            ),
            *nll,
        ]

    def build(self, groups: Sequence[Group], context: Context) -> list[Signal]:
        signals = []
        for group in groups:
            for rollout, value, reason in zip(group.rollouts, self._values(group), reasons(group, self.config), strict=True):
                if rollout.origin == "injected":
                    signals.append(Signal(rollout, ce_weights_NK=constant_NK(rollout, group.weight), stream="grpo"))
                    continue
                taught = None if reason else constant_NK(rollout, value)
                signals.append(Signal(rollout, advantages_NK=taught, stream="grpo"))
                if taught is not None and self._imitates(rollout, value):
                    signals.append(Signal(rollout, ce_weights_NK=constant_NK(rollout, 1.0), stream=NLL))
        return signals if self.config.kl == "none" else self._with_reference(signals, context)

    def _values(self, group: Group) -> list[float]:
        """The advantages of a group."""
        if memorises(group):
            return [0.0] * len(group.rollouts)
        scale = group.weight * factor(group, self.config.scale)
        return [value * scale for value in advantages(rewards_of(group), self.config.advantage)]

    def _imitates(self, rollout: Rollout, value: float) -> bool:
        right = rollout.reward is not None and rollout.reward.outcome == "right" and rollout.stop is StopReason.ANSWERED
        chosen = rollout.origin == "edited" if self.config.nll_on == "edited" else value > 0
        return self.config.nll_weight > 0 and right and chosen

    def _with_reference(self, signals: Sequence[Signal], context: Context) -> list[Signal]:
        taught = [one for one in signals if one.advantages_NK is not None]
        score = context.score_reference or context.score_teacher
        scores = iter(score([(one.rollout, one.rollout.view) for one in taught]))
        return [one if one.advantages_NK is None else self._held(one, next(scores)) for one in signals]

    def _held(self, signal: Signal, reference_NK: tuple[tuple[float, ...], ...]) -> Signal:
        advantages_NK = signal.advantages_NK
        assert advantages_NK is not None
        if self.config.kl == "k1":
            advantages_NK = tuple(
                tuple(a - self.config.kl_weight * (p - q) for a, p, q in zip(row, turn.action_logprobs_K, reference, strict=True))
                for row, turn, reference in zip(advantages_NK, signal.rollout.turns, reference_NK, strict=True)
            )
        return Signal(signal.rollout, advantages_NK=advantages_NK, teacher_logprobs_NK=reference_NK, stream="grpo")
