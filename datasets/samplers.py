"""Orders: which places of the data a step draws. What they have in common (table, expansion, hints) is in `curriculum`.

An order is asked for all draws of a step at once, and its answer depends on the step, on the position (how many draws were played
before), and on the table: it changes only when the table does. Indices are into the data as a sequence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ..vlm.records import Sample
from .curriculum_spec import TIERS, SortedCurriculum, TiersCurriculum, WindowCurriculum
from .mix import Blend, position_to_index
from .prompt_table import PromptTable
from .samplers_labels import Labels

_PASSES_RESTED = 4


class Order(Protocol):
    """Chooses prompts, and learns from the table what became of them."""

    def draws(self, step: int, position: int, num: int) -> np.ndarray:
        """The indices ``[num]`` of a step's draws."""
        ...

    def observe(self, indices: np.ndarray) -> None:
        """The table has taken in what a step saw of these prompts."""
        ...

    def metrics(self, step: int, indices: np.ndarray) -> Mapping[str, float]:
        """Before `observe`: what the draws of a step were."""
        ...


class InEpochs:
    """Every prompt once an epoch: the draws of `mix.draw`."""

    def __init__(self, samples: Sequence[Sample], seed: int) -> None:
        self._samples, self._seed = samples, seed
        self._starts = _starts(samples)

    def draws(self, step: int, position: int, num: int) -> np.ndarray:
        return np.array([self._at(place) for place in range(position, position + num)], np.int64)

    def _at(self, position: int) -> int:
        if isinstance(self._samples, Blend):
            source, index = self._samples.at(position, self._seed)
            return self._starts[source] + index
        return position_to_index(position, len(self._samples), self._seed)

    def observe(self, indices: np.ndarray) -> None:
        pass

    def metrics(self, step: int, indices: np.ndarray) -> Mapping[str, float]:
        return {}


class EasyToHard(InEpochs):
    """Sorted by label, each ingredient of a mixture by itself."""

    def __init__(self, spec: SortedCurriculum, samples: Sequence[Sample], labels: Labels, seed: int) -> None:
        super().__init__(samples, seed)
        self._spec, self._labels = spec, labels
        sizes = [len(source) for source in samples.sources] if isinstance(samples, Blend) else [len(samples)]
        ties = np.random.default_rng([seed % 2**32, len(samples)]).permutation(len(samples))
        self._orders = [
            start + np.lexsort((ties[start : start + size], -labels.rate[start : start + size]))
            for start, size in zip(self._starts, sizes, strict=True)
        ]

    def _at(self, position: int) -> int:
        source, rank = self._samples.turn(position) if isinstance(self._samples, Blend) else (0, position)
        order, again = self._orders[source], self._spec.hardest_frac
        if again is None or rank < len(order):
            return int(order[rank % len(order)])
        hardest = order[-math.ceil(again * len(order)) :]
        return int(hardest[position_to_index(rank - len(order), len(hardest), self._seed + source)])

    def metrics(self, step: int, indices: np.ndarray) -> Mapping[str, float]:
        return {"curriculum/label": float(self._labels.rate[indices].mean())}


class ByTier:
    """Every tier its share of the draws; within a tier the prompts that were drawn least often, in a seeded order."""

    def __init__(self, spec: TiersCurriculum, table: PromptTable, labels: Labels, seed: int) -> None:
        wrong = np.flatnonzero((labels.rate < 0) | (labels.rate > 1))
        if len(wrong):
            raise ValueError(
                f"sample {wrong[0]} of the data has the difficulty {1 - labels.rate[wrong[0]]:g}; for tiers it is a share of "
                "failures from 0 to 1: scale it, or name a file of pass rates in curriculum.pass_rates"
            )
        self._spec, self._table, self._label, self._seed = spec, table, labels.rate, seed
        table.tier[:] = self.tier_of(labels.rate)

    def tier_of(self, rate: np.ndarray) -> np.ndarray:
        """0 very easy .. 4 very hard. A rate on an edge belongs to the easier side, in spite of rounding.

        >>> tiers.tier_of(np.array([1.0, 0.9, 0.5, 0.1, 0.0]))     # with the default edges       # doctest: +SKIP
        array([0, 0, 2, 3, 4])
        """
        edges = np.array(self._spec.edges[::-1])
        return len(edges) - np.digitize(rate + 1e-9, edges)

    def draws(self, step: int, position: int, num: int) -> np.ndarray:
        table, rng = self._table, np.random.default_rng([self._seed % 2**32, step])
        members = [np.flatnonzero(table.tier == tier) for tier in range(len(TIERS))]
        weights = np.array([weight * bool(len(own)) for weight, own in zip(self._spec.weights, members, strict=True)])
        if weights.sum():
            marks = (rng.random() + np.arange(num)) / num  # every tier gets its share of the draws to within one
            bounds = np.cumsum(weights) / weights.sum()
            bounds[np.flatnonzero(weights)[-1] :] = 1.0
            wanted = np.bincount(np.searchsorted(bounds, marks, side="right"), minlength=len(TIERS))
        else:
            wanted = np.zeros(len(TIERS), np.int64)
        chosen = [least_drawn(table, own, int(count), rng) for own, count in zip(members, wanted, strict=True)]
        # A tier may hold fewer prompts than its share: others take their place, first those of tiers with a weight.
        for pool in (weights > 0, weights >= 0):
            short = num - sum(map(len, chosen))
            if short:
                left = np.setdiff1d(np.flatnonzero(pool[table.tier]), np.concatenate(chosen))
                chosen.append(least_drawn(table, left, short, rng))
        return rng.permutation(_as_many(np.concatenate(chosen), num))

    def observe(self, indices: np.ndarray) -> None:
        """A prompt's tier is that of ``(m label + n rate) / (m + n)``: n rollouts of the run, m those the label counts for."""
        table, weight = self._table, self._spec.label_rollouts
        scored = table.scored[indices]
        merged = (weight * self._label[indices] + scored * table.rate[indices]) / (weight + scored)
        table.tier[indices] = self.tier_of(merged)

    def metrics(self, step: int, indices: np.ndarray) -> Mapping[str, float]:
        tiers, weights = self._table.tier[indices], np.array(self._spec.weights)
        drawn = np.bincount(tiers, minlength=len(TIERS)) / len(indices)
        held = np.bincount(self._table.tier, minlength=len(TIERS)) / self._table.num
        values = {"curriculum/fallback": float((weights[tiers] == 0).sum())}
        for name, share, whole in zip(TIERS, drawn, held, strict=True):
            values |= {f"curriculum/drawn_{name}": float(share), f"curriculum/held_{name}": float(whole)}
        return values


class InWindow:
    """Prompts whose pass rate is inside the window, those never scored, and those that have rested; least drawn first."""

    def __init__(self, spec: WindowCurriculum, table: PromptTable, seed: int, draws_per_step: int) -> None:
        self._spec, self._table, self._seed = spec, table, seed
        self.rest_steps = spec.rest_steps or math.ceil(_PASSES_RESTED * table.num / draws_per_step)

    def allowed(self, step: int) -> np.ndarray:
        """Which prompts may be drawn at a step, as booleans."""
        table = self._table
        inside = (table.rate >= self._spec.low) & (table.rate <= self._spec.high)
        allowed: np.ndarray = inside | (table.scored == 0) | (step - table.last_step >= self.rest_steps)
        return allowed

    def draws(self, step: int, position: int, num: int) -> np.ndarray:
        table, rng = self._table, np.random.default_rng([self._seed % 2**32, step])
        allowed = self.allowed(step)
        chosen = least_drawn(table, np.flatnonzero(allowed), num, rng)
        short = num - len(chosen)
        if short:
            resting = np.flatnonzero(~allowed)
            chosen = np.concatenate([chosen, _least(table.last_step, resting, short, rng)])
        return rng.permutation(_as_many(chosen, num))

    def observe(self, indices: np.ndarray) -> None:
        pass

    def metrics(self, step: int, indices: np.ndarray) -> Mapping[str, float]:
        allowed = self.allowed(step)
        return {"curriculum/allowed": float(allowed.mean()), "curriculum/fallback": float((~allowed[indices]).sum())}


def least_drawn(table: PromptTable, members: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """The ``num`` of these prompts that were drawn least often, ties by chance; all of them when there are no more."""
    return _least(table.drawn, members, num, rng)


def _least(column: np.ndarray, members: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    if num >= len(members):
        return members
    if not num:
        return members[:0]
    keys = column[members] + rng.random(len(members))
    return members[np.argpartition(keys, num - 1)[:num]]


def _as_many(indices: np.ndarray, num: int) -> np.ndarray:
    return np.resize(indices, num)  # data with fewer prompts than draws: again from the first


def _starts(samples: Sequence[Sample]) -> list[int]:
    """Where the ingredients of a mixture begin."""
    sizes = [len(source) for source in samples.sources] if isinstance(samples, Blend) else [len(samples)]
    return list(itertools.accumulate(sizes[:-1], initial=0))
