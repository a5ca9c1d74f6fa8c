"""Coefficients that change with the step: a number, or a ramp.

TRACE (2605.10194): ``{start: 0.5, hold_steps: 10, over_steps: 30}``, .5 for a while, then down to 0, and the teacher rests.
KDRL (2506.02208): ``{start: 0.005, end: 0.001, over_steps: 200}``, down to a floor.

What is off (0) may come on once, after ``off_steps``: `train.teacher_settings` then has the teacher made a copy of the student
first, or refuses the recipe.
"""

from __future__ import annotations

from typing import Annotated

import pydantic

from ...datasets.crops import Part


class Schedule(Part):
    """``start`` until step ``hold_steps`` (counted from 0), then linear to ``end`` within ``over_steps`` steps, then ``end``."""

    off_steps: int = pydantic.Field(0, ge=0)
    """Off for so many steps first; all others are counted from there."""
    start: float = pydantic.Field(gt=0)
    hold_steps: int = pydantic.Field(0, ge=0)
    over_steps: int = pydantic.Field(ge=1)
    end: float = pydantic.Field(0.0, ge=0)
    """0: off from step ``hold_steps + over_steps`` on; nothing is computed for it any more."""

    @pydantic.field_validator("start", mode="before")
    @classmethod
    def _never_from_zero(cls, value: object) -> object:
        if value == 0:
            raise ValueError(
                "a coefficient that was 0 may not rise: the teacher was left behind meanwhile, and switching it on again is how "
                "runs have exploded; start from a small number above 0, or after off_steps"
            )
        return value

    @property
    def peak(self) -> float:
        """The largest value that it takes."""
        return max(self.start, self.end)

    def at(self, step: int) -> float:
        """The value at a step, counted from 0.

        >>> [Schedule(start=0.5, hold_steps=10, over_steps=30).at(step) for step in (0, 10, 25, 40, 99)]
        [0.5, 0.5, 0.25, 0.0, 0.0]
        """
        if step < self.off_steps:
            return 0.0
        done = min(1.0, max(0, step - self.off_steps - self.hold_steps) / self.over_steps)
        return self.start * (1 - done) + self.end * done


Weight = Annotated[float, pydantic.Field(ge=0)] | Schedule
"""A coefficient as a recipe writes it."""


def peak(weight: float | Schedule) -> float:
    """The largest value of a coefficient: the weight of its stream, of which `share` is used at a step."""
    return weight.peak if isinstance(weight, Schedule) else weight


def share(weight: float | Schedule, step: int) -> float:
    """The value at a step (from 0) as a share of `peak`, 0 to 1; 0 means: off, compute nothing."""
    if isinstance(weight, Schedule):
        return weight.at(step) / weight.peak
    return float(weight > 0)


def rises(weight: float | Schedule, steps: int) -> list[int]:
    """The steps of a run (from 0) in which a coefficient is on and was off in the step before."""
    if not isinstance(weight, Schedule):
        return []
    on = [weight.at(step) > 0 for step in range(steps)]
    return [step for step in range(1, steps) if on[step] and not on[step - 1]]
