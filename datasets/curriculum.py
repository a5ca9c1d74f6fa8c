"""Samplers: which prompts a step draws, how often each is played, and what was learned about them."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..vlm.records import Group, Sample
from .curriculum_spec import (
    AnyCurriculum,
    CurriculumSpec,
    DuetCurriculum,
    HintsSpec,
    SortedCurriculum,
    TiersCurriculum,
    WindowCurriculum,
)
from .mix import draw
from .prompt_table import Outcome, PromptTable, outcome_of
from .samplers import ByTier, EasyToHard, InEpochs, InWindow, Order
from .samplers_duet import Duet, Shares
from .samplers_expansion import Expansion
from .samplers_labels import Labels, read_labels


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

    def draws(self, prompts: int) -> int:
        """How many prompts the next step plays in order to learn from ``prompts``."""
        ...

    def pick(self, step: int, places: range) -> list[Pick]:
        """What stands at these places of step ``step`` (from 0)."""
        ...

    def update(self, step: int, groups: Sequence[Group]) -> None:
        """All groups that the step played, in the order of their places, with their rewards where they have any."""
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

    def draws(self, prompts: int) -> int:
        return prompts

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


@dataclass(frozen=True)
class _Plan:
    """All draws that a step may use."""

    step: int
    indices: np.ndarray
    shares: Shares | None


class Curriculum:
    """An order with a table of prompts, and what a recipe adds to it: expansion, numbers of rollouts, levels of help."""

    def __init__(
        self,
        spec: AnyCurriculum,
        samples: Sequence[Sample],
        draws_per_step: int,
        table: PromptTable,
        order: Order,
        labels: Labels | None = None,
        duet: Duet | None = None,
    ) -> None:
        self.table = table
        self._samples, self._per_step, self._order, self._labels, self._duet = samples, draws_per_step, order, labels, duet
        self._expansion = None if spec.expansion is None else Expansion(spec.expansion)
        self._hints = spec.hints
        if spec.hints is not None:
            table.hint[:] = spec.hints.start
        self._position, self._plan = 0, _Plan(-1, np.empty(0, np.int64), None)
        self._metrics: dict[str, float] = {}

    def draws(self, prompts: int) -> int:
        return prompts if self._expansion is None else math.ceil(prompts * self._expansion.factor)

    def pick(self, step: int, places: range) -> list[Pick]:
        plan = self._planned(step)
        return [self._at(plan, place) for place in places]

    def _planned(self, step: int) -> _Plan:
        if self._plan.step != step:
            indices = self._order.draws(step, self._position, self.draws(self._per_step))
            self._plan = _Plan(step, indices, None if self._duet is None else self._duet.shares(indices))
        return self._plan

    def _at(self, plan: _Plan, place: int) -> Pick:
        index = int(plan.indices[place])
        sample = self._samples[index]
        self.table.check(index, sample)
        if self._labels is not None:
            self._labels.check(index, sample)
        hint = 0 if self._hints is None else min(int(self.table.hint[index]), len(sample.privileged.hints))
        if plan.shares is None:
            return Pick(sample, hint=hint)
        return Pick(sample, int(plan.shares.rollouts[place]), float(plan.shares.weights[place]), hint)

    def update(self, step: int, groups: Sequence[Group]) -> None:
        plan = self._planned(step)
        indices, seen = plan.indices[: len(groups)], [outcome_of(group) for group in groups]
        values = dict(self._order.metrics(step, indices))
        if plan.shares is not None:
            counts = plan.shares.rollouts[: len(groups)]
            values |= {"curriculum/rollouts_least": float(counts.min()), "curriculum/rollouts_most": float(counts.max())}
            values |= {"curriculum/budget_frac": plan.shares.budget_frac}
        if self._hints is not None:
            values |= self._helped(self._hints, indices, groups, seen)
        for index, group, one in zip(indices.tolist(), groups, seen, strict=True):
            self.table.observe(step, index, group.sample, one)
        self._order.observe(indices)
        self._position += len(groups)
        self._plan = _Plan(-1, indices[:0], None)
        self._metrics = values | self._told(groups, seen)

    def _told(self, groups: Sequence[Group], seen: Sequence[Outcome]) -> dict[str, float]:
        rates = [one.rate for one in seen if one.rate is not None]
        known = self.table.rate[self.table.scored > 0]
        values = {
            "curriculum/coverage": self.table.coverage,
            "curriculum/pass_rate": sum(rates) / max(1, len(rates)),
            "curriculum/pass_rate_known": float(known.mean()) if len(known) else 0.0,
        }
        if self._expansion is not None:
            mixed = sum(one.mixed for one in seen) / len(seen)
            values |= {"curriculum/expansion": self._expansion.factor, "curriculum/mixed": mixed}
            values |= {"curriculum/dropped_prompts": float(len(groups) - self._per_step)}
            self._expansion.observe(mixed)
        return values

    def _helped(self, spec: HintsSpec, indices: np.ndarray, groups: Sequence[Group], seen: Sequence[Outcome]) -> dict[str, float]:
        lengths = [len(group.sample.privileged.hints) for group in groups]
        shown = [min(int(self.table.hint[index]), length) for index, length in zip(indices, lengths, strict=True)]
        if not any(lengths):
            warnings.warn("curriculum.hints: none of the step's samples has hints, so none was shown", stacklevel=3)
        for index, level, length, one in zip(indices.tolist(), shown, lengths, seen, strict=True):
            if one.rate is not None:
                moved = level + (one.right == 0) - (one.rate >= spec.lower_at)
                self.table.hint[index] = max(0, min(moved, length if spec.most is None else min(length, spec.most)))
        return {
            "curriculum/hint_level": sum(shown) / len(shown),
            "curriculum/hinted": sum(level > 0 for level in shown) / len(shown),
        }

    def metrics(self) -> Mapping[str, float]:
        return self._metrics

    def save(self, folder: Path) -> None:
        self.table.save(folder)
        state = {"position": self._position, "expansion": None if self._expansion is None else self._expansion.state()}
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        self.table.load(folder)
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self._position, self._plan = int(state["position"]), _Plan(-1, np.empty(0, np.int64), None)
        if self._expansion is not None:
            self._expansion.restore(state["expansion"])


def build_sampler(
    spec: AnyCurriculum, samples: Sequence[Sample], seed: int, draws_per_step: int, rollouts: int | None = None
) -> Sampler:
    """The sampler of a recipe; a step owns ``draws_per_step`` draws and plays a prompt ``rollouts`` times unless the sampler says
    otherwise. `ValueError` for labels that do not belong to the samples."""
    if isinstance(spec, CurriculumSpec) and spec.expansion is None and spec.hints is None:
        return Shuffled(samples, seed, draws_per_step)
    table = PromptTable(len(samples), spec.decay)
    if isinstance(spec, SortedCurriculum):
        labels = read_labels(spec.pass_rates, samples)
        return Curriculum(spec, samples, draws_per_step, table, EasyToHard(spec, samples, labels, seed), labels)
    if isinstance(spec, TiersCurriculum):
        labels = read_labels(spec.pass_rates, samples)
        return Curriculum(spec, samples, draws_per_step, table, ByTier(spec, table, labels, seed), labels)
    if isinstance(spec, WindowCurriculum):
        return Curriculum(spec, samples, draws_per_step, table, InWindow(spec, table, seed, draws_per_step))
    duet = None
    if isinstance(spec, DuetCurriculum):
        if rollouts is None:
            raise ValueError("curriculum: duet shares out the run's rollouts; give build_sampler their number for a prompt")
        duet = Duet(spec, table, rollouts)
    return Curriculum(spec, samples, draws_per_step, table, InEpochs(samples, seed), duet=duet)
