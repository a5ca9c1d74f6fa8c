"""Settings of group transforms: what is done to a step's groups after their rewards and before their advantages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from ...datasets.crops import Part
from ...datasets.curriculum_spec import DuetCurriculum

if TYPE_CHECKING:
    from ..config import RunConfig


class DotTransform(Part):
    """Dynamic outlier truncation (DOT, 2601.03969): where all rollouts of a group are right, those far longer than the others are
    cut off."""

    kind: Literal["dot"]
    alpha: float = pydantic.Field(3.0, ge=0, le=100)
    """So many standard deviations above the group's mean length the cut is made."""
    margin_tokens: int = pydantic.Field(32, ge=1)
    """Rollouts that reach less than this beyond the cut are left as they are."""

    def check(self, rollouts: int, longest_tokens: int) -> None:
        """Raise `ValueError` where no rollout of a group of ``rollouts``, with ``longest_tokens`` at most, can ever be cut.

        With G rollouts no z-score exceeds (G - 1) / sqrt(G); it is reached by one that is longer than G - 1 equal ones by d
        tokens, and then lies (z - alpha) d / sqrt(G) tokens beyond the cut.
        """
        most_z = (rollouts - 1) / math.sqrt(rollouts)
        if most_z <= self.alpha:
            need = next(size for size in range(2, 10**6) if (size - 1) / math.sqrt(size) > self.alpha)
            raise ValueError(
                f"transforms: dot with alpha {self.alpha:g} can never cut a rollout: in a group of {rollouts} no length lies "
                f"more than {most_z:.2f} standard deviations above the mean; use at least {need} rollouts, or an alpha below "
                f"{most_z:.2f}"
            )
        reach = (most_z - self.alpha) * (longest_tokens - 1) / math.sqrt(rollouts)
        if reach <= self.margin_tokens - 1:  # the cut is rounded down
            raise ValueError(
                f"transforms: dot can never cut a rollout: with {rollouts} rollouts of at most {longest_tokens} tokens and alpha "
                f"{self.alpha:g} none reaches more than {reach:.1f} tokens beyond the cut, and margin_tokens is "
                f"{self.margin_tokens}; lower one of the two"
            )


class RethinkTransform(Part):
    """Forced rethinking (VL-Rethinker, 2504.08837): a finished answer is cut or left whole, a trigger is put behind it, and the
    model goes on. What is right in the end takes the place of the rollout. The defaults are those of the released code."""

    kind: Literal["rethink"]
    room_tokens: int = pydantic.Field(1024, ge=0)
    """A rollout is left alone when it has fewer tokens than this left under sampling.max_new_tokens."""
    skip: float = pydantic.Field(0.35, ge=0, le=1)
    """Share of the rollouts that are left alone by chance."""
    easy: float = pydantic.Field(0.7, ge=0, le=1)
    """Wrong rollouts of a group with a higher accuracy than this are left alone."""
    cut: float = pydantic.Field(0.5, ge=0, le=1)
    """Share of the texts that are cut before the trigger."""
    cut_before_last: tuple[str, ...] = ("Wait", "\\boxed", "</think>")
    """Cut before the last of each, one after the other; ``</think>`` (not in the code, whose form has none) keeps the cut in the
    thought."""
    cut_before_first: tuple[str, ...] = ("<answer>", "answer")
    """Then before the first of each, in any case of letters; then before the last blank line."""
    neutral: float = pydantic.Field(0.5, ge=0, le=1)
    """Share of the triggers that do not say whether the answer was right."""
    neutral_triggers: dict[str, float] = pydantic.Field(
        default_factory=lambda: {"\n\nWait": 0.4, "\n\nWait, does it seem right?": 0.6}, min_length=1
    )
    """Texts and how often each is drawn."""
    right_trigger: str = "\n\nWait, let's double check"
    wrong_trigger: str = "\n\nWait, there might be a mistake"
    temperature: float = pydantic.Field(0.9, gt=0)
    least_tokens: int = pydantic.Field(30, ge=0)
    """What the model adds behind the trigger must have more tokens than this,"""
    most_tokens: int = pydantic.Field(1024, ge=2)
    """and fewer than this."""
    waits: tuple[str, ...] = ("wait,", "wait a", "alternatively")
    """What counts as a further wait in the text behind the trigger, in any case of letters."""
    most_waits: int = pydantic.Field(4, ge=1)
    """The trigger is the first of them."""
    most_per_prompt: int = pydantic.Field(2, ge=1)

    @pydantic.model_validator(mode="after")
    def _sense(self) -> RethinkTransform:
        if self.least_tokens + 1 >= self.most_tokens:
            raise ValueError(
                f"rethink: nothing has more than least_tokens {self.least_tokens} and fewer than most_tokens {self.most_tokens} "
                "tokens; set them further apart"
            )
        if min(self.neutral_triggers.values()) < 0 or not any(self.neutral_triggers.values()):
            raise ValueError("rethink: neutral_triggers needs shares of 0 or more, and one above 0")
        if not all((*self.neutral_triggers, self.right_trigger, self.wrong_trigger)):
            raise ValueError("rethink: a trigger without text is none; write one")
        return self


class DymeTransform(Part):
    """DyME (2506.23061): a group without a right rollout memorises a given text in place of its first, one with some right
    explores, and one that is all right rests."""

    kind: Literal["dyme"]
    template: str = "{rationale}\n{answer}"
    """What is memorised; {rationale} and {answer} are filled in from the sample. It must have the form that the reward reads."""


AnyTransform = Annotated[DotTransform | RethinkTransform | DymeTransform, pydantic.Field(discriminator="kind")]


def check_transforms(run: RunConfig) -> None:
    """Raise `ValueError` for transforms that could never do anything in this run, or undo each other's work."""
    grpo, sampling, kinds = run.grpo, run.sampling, [one.kind for one in run.transforms]
    if grpo is not None and grpo.nll_weight and grpo.nll_on == "edited" and "rethink" not in kinds:
        raise ValueError("signals: nll_on: edited learns what rethink has gone on with; add it to transforms, or use positive")
    if not run.transforms:
        return
    if grpo is None:
        raise ValueError("transforms: they change rewarded groups, and only grpo has rewards; add it to signals, or remove them")
    if grpo.shuffle:
        raise ValueError(
            "transforms: they choose by rewards that grpo.shuffle then deals out to other groups; remove one of them"
        )
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"transforms: each kind once, and here are {', '.join(kinds)}")
    for one in run.transforms:
        if isinstance(one, DotTransform):
            curriculum = run.curriculum
            most = curriculum.most_rollouts if isinstance(curriculum, DuetCurriculum) else run.rollouts
            one.check(most, sampling.max_new_tokens * sampling.max_turns)
            if grpo.filter_overlong:
                raise ValueError("transforms: what dot cuts off, filter_overlong takes out of the loss; remove one of them")
        if isinstance(one, RethinkTransform):
            if sampling.max_turns > 1:
                raise ValueError(
                    "transforms: rethink goes on with an answer, and nobody would carry out a call in it; use max_turns: 1"
                )
            if sampling.max_new_tokens <= one.room_tokens:
                raise ValueError(
                    f"transforms: rethink never finds {one.room_tokens} free tokens (room_tokens) under sampling.max_new_tokens "
                    f"{sampling.max_new_tokens}; lower the one or raise the other"
                )
