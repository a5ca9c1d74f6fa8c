"""How many more prompts a step plays than it learns from, and which it keeps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..vlm.records import Group
from .curriculum_spec import AnyExpansion, RlcsExpansion
from .prompt_table import outcome_of


class Expansion:
    """The factor of the next step. Formulas are with the settings."""

    def __init__(self, spec: AnyExpansion) -> None:
        self._spec, self.factor, self._shares = spec, spec.start, list[float]()

    def observe(self, mixed_frac: float) -> None:
        """Take in which share of a step's prompts was neither all right nor all wrong."""
        spec = self._spec
        if isinstance(spec, RlcsExpansion):
            wanted = min(spec.most, 1 / mixed_frac) if mixed_frac else spec.most
            self.factor = spec.decay * self.factor + (1 - spec.decay) * wanted
            return
        self._shares = [*self._shares, mixed_frac][-spec.steps :]
        margin = 1 + statistics.pstdev(self._shares) if spec.margin is None else spec.margin
        mean = statistics.fmean(self._shares)
        self.factor = max(spec.least, min(spec.most, margin / mean if mean else spec.most))

    def state(self) -> dict[str, Any]:
        return {"factor": self.factor, "shares": self._shares}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.factor, self._shares = float(state["factor"]), [float(share) for share in state["shares"]]


def most_balanced(groups: Sequence[Group], num: int) -> list[Group]:
    """The ``num`` groups whose right and wrong rollouts are most equal in number, in their old order; of equals the first. Those
    without any right or wrong one come last."""

    def imbalance(place: int) -> float:
        rate = outcome_of(groups[place]).rate
        return 2.0 if rate is None else abs(2 * rate - 1)

    kept = sorted(sorted(range(len(groups)), key=imbalance)[:num])
    return [groups[place] for place in kept]
