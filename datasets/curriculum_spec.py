"""Which prompts a run draws, in which order and how often each is played: the settings. The samplers are in `curriculum`."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from .crops import Part

Frac = Annotated[float, pydantic.Field(ge=0, le=1)]
TIERS = ("very_easy", "easy", "medium", "hard", "very_hard")


class RlcsExpansion(Part):
    """Dynamic sampling expansion (GLM-4.1V-Thinking, 2507.01006): the running mean of 1 / (1 - rate), ``rate`` being the share of
    a step's prompts that were all right or all wrong. The paper gives no decay and no bounds."""

    kind: Literal["rlcs"]
    decay: float = pydantic.Field(0.5, ge=0, lt=1)
    """What the mean keeps of its past at each step."""
    start: float = pydantic.Field(1.0, ge=1)
    """Factor of the first step."""
    most: float = pydantic.Field(4.0, ge=1)
    """Bound of every step's 1 / (1 - rate), which has none when no prompt is mixed."""


class DotExpansion(Part):
    """Predictive dynamic sampling (DOT, 2601.03969): margin / mean share of mixed prompts in the last steps, clamped."""

    kind: Literal["dot"]
    steps: int = pydantic.Field(20, ge=1)
    margin: float | None = pydantic.Field(None, ge=1)
    """None: 1 + the standard deviation of those shares, as in the authors' code."""
    start: float = pydantic.Field(1.5, ge=1)
    """Factor of the first step."""
    least: float = pydantic.Field(1.2, ge=1)
    most: float = pydantic.Field(5.0, ge=1)

    @pydantic.model_validator(mode="after")
    def _order(self) -> DotExpansion:
        if self.least > self.most:
            raise ValueError(f"curriculum.expansion: least {self.least:g} lies above most {self.most:g}; swap them")
        return self


AnyExpansion = Annotated[RlcsExpansion | DotExpansion, pydantic.Field(discriminator="kind")]


class HintsSpec(Part):
    """Progressive hints (Keye-VL 1.5, 2509.01563): a prompt that is never right is shown one hint more the next time, one that is
    right often enough one less, so that each comes to the lowest level at which the model solves it. The student's view needs
    ``hints``."""

    start: int = pydantic.Field(0, ge=0)
    """Hints at the first time."""
    lower_at: float = pydantic.Field(0.75, gt=0, le=1)
    """Share of right rollouts from which on one hint less is shown."""
    most: int | None = pydantic.Field(None, ge=1)
    """Bound of the level; None: as many hints as a sample has. (The last level of the paper is the full solution.)"""


class Common(Part):
    """What all kinds have."""

    decay: float = pydantic.Field(0.5, ge=0, lt=1)
    """What a prompt's running pass rate keeps of its past each time that it is played."""
    expansion: AnyExpansion | None = None
    """Play more prompts than are learned from, and keep those with the most equal numbers of right and wrong rollouts."""
    hints: HintsSpec | None = None

    @property
    def needs_outcomes(self) -> bool:
        """What it does depends on which rollouts were right."""
        own = isinstance(self, TiersCurriculum | WindowCurriculum | DuetCurriculum)
        return own or self.expansion is not None or self.hints is not None


class CurriculumSpec(Common):
    """Every prompt once an epoch, in a seeded order."""

    kind: Literal["shuffled"] = "shuffled"


class SortedCurriculum(Common):
    """From easy to hard ("From Seeing to Thinking", 2605.20177, sorts each stage's data so). The order is that of the data before
    training; samples that are equally hard are shuffled. In a mixture each ingredient is sorted by itself and the weights hold:
    all ingredients grow harder together."""

    kind: Literal["sorted"]
    pass_rates: str | None = None
    """A file of ``foveate data pass-rate``; None: the samples' own ``difficulty``."""
    hardest_frac: float | None = pydantic.Field(None, gt=0, le=1)
    """What follows the end of the data: this share of it, the hardest, in seeded orders. None: all again from the easiest."""


class TiersCurriculum(Common):
    """Five tiers by pass rate (RLCS of GLM-4.1V-Thinking, 2507.01006), each with its share of the draws. The label from before
    training is merged with the running pass rate, so that prompts change tiers. The paper gives neither weights nor edges."""

    kind: Literal["tiers"]
    pass_rates: str | None = None
    """A file of ``foveate data pass-rate``; None: 1 - the samples' ``difficulty``."""
    weights: tuple[float, float, float, float, float] = (0.25, 1.0, 2.0, 1.0, 0.25)
    """Shares of the draws of very easy, easy, medium, hard and very hard prompts, among the tiers that hold any."""
    edges: tuple[Frac, Frac, Frac, Frac] = (0.9, 0.65, 0.35, 0.1)
    """Lowest pass rate of the first four tiers."""
    label_rollouts: float = pydantic.Field(8.0, gt=0)
    """The label counts like so many rollouts beside those of the run."""

    @pydantic.model_validator(mode="after")
    def _sense(self) -> TiersCurriculum:
        if min(self.weights) < 0 or max(self.weights) == 0:
            raise ValueError(f"curriculum.weights: {list(self.weights)}; expected numbers of at least 0, one of them above")
        if list(self.edges) != sorted(set(self.edges), reverse=True):
            raise ValueError(
                f"curriculum.edges: {list(self.edges)}; they fall from very easy to hard, such as [0.9, 0.65, 0.35, 0.1]"
            )
        return self


class WindowCurriculum(Common):
    """Prompts whose running pass rate is inside a window, and those never scored; the others rest and are looked at again."""

    kind: Literal["window"]
    low: Frac = 0.1
    high: Frac = 0.9
    rest_steps: int | None = pydantic.Field(None, ge=1)
    """None: as long as four passes over the data take. One pass is too short: as many would come back at each step as a plain
    shuffle draws of them."""

    @pydantic.model_validator(mode="after")
    def _order(self) -> WindowCurriculum:
        if self.low > self.high:
            raise ValueError(f"curriculum: low {self.low:g} lies above high {self.high:g}; swap them")
        return self


class DuetCurriculum(Common):
    """Rollouts where they tell most per token (DUET, 2605.08441): in a seeded order of prompts, prompt q is played
    ``s_q / sqrt(lambda L_q)`` times. The paper's stop behind an answer marker is left out: an engine would have to do it."""

    kind: Literal["duet"]
    budget_frac: float = pydantic.Field(0.5, gt=0)
    """Tokens of a step as a share of what ``rollouts`` for every prompt would cost."""
    least_rollouts: int = pydantic.Field(2, ge=1)
    """The paper's code has 1, whose only rollout has nothing to be compared with and teaches nothing."""
    most_rollouts: int = pydantic.Field(32, ge=1)
    least_share: float = pydantic.Field(0.05, gt=0, le=1)
    """A group weighs 1 / (its rollouts / the mean number), the denominator kept between this and 1."""

    @pydantic.model_validator(mode="after")
    def _sense(self) -> DuetCurriculum:
        if self.least_rollouts > self.most_rollouts:
            raise ValueError(
                f"curriculum: least_rollouts {self.least_rollouts} lies above most_rollouts {self.most_rollouts}; swap them"
            )
        if self.expansion is not None:
            raise ValueError("curriculum: duet plans the rollouts of the prompts that are learned from; remove expansion")
        return self


AnyCurriculum = Annotated[
    CurriculumSpec | SortedCurriculum | TiersCurriculum | WindowCurriculum | DuetCurriculum, pydantic.Field(discriminator="kind")
]
