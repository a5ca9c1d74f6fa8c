"""Samplers: which prompts a step draws, how often each is played, and what was learned about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..vlm.records import Group, Sample
from .curriculum_spec import CurriculumSpec
from .mix import draw


@dataclass(frozen=True)
class Pick:
    """A prompt to play: ``rollouts`` None is the run's number, ``weight`` becomes `Group.weight`, ``hint`` is the level of help
    (so many of ``sample.privileged.hints`` are shown)."""

    sample: Sample
    rollouts: int | None = None
    weight: float = 1.0
    hint: int = 0


class Sampler(Protocol):
    """Draws prompts. Between two calls of ``update`` it is a function of step and place alone, so that a resumed run, and a step
    that draws in several rounds, get the same prompts."""

    def pick(self, step: int, places: range) -> list[Pick]:
        """What stands at these places of step ``step`` (from 0)."""
        ...

    def update(self, step: int, groups: Sequence[Group]) -> None:
        """All groups that the step played, with their rewards where they have any."""
        ...

    def metrics(self) -> Mapping[str, float]: ...

    def save(self, folder: Path) -> None:
        """Write the state into an empty folder of a checkpoint."""
        ...

    def load(self, folder: Path) -> None: ...


class Shuffled:
    """Every prompt once an epoch, in a seeded order. Has no state."""

    def __init__(self, samples: Sequence[Sample], seed: int, draws_per_step: int) -> None:
        self._samples, self._seed, self._draws = samples, seed, draws_per_step

    def pick(self, step: int, places: range) -> list[Pick]:
        return [Pick(draw(self._samples, step * self._draws + place, self._seed)) for place in places]

    def update(self, step: int, groups: Sequence[Group]) -> None:
        pass

    def metrics(self) -> Mapping[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        pass

    def load(self, folder: Path) -> None:
        pass


def build_sampler(spec: CurriculumSpec, samples: Sequence[Sample], seed: int, draws_per_step: int) -> Sampler:
    """The sampler of a recipe; a step owns ``draws_per_step`` draws."""
    return Shuffled(samples, seed, draws_per_step)
