"""How many rollouts each prompt of a step gets (DUET, 2605.08441: cost-weighted Neyman allocation)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .curriculum_spec import DuetCurriculum
from .prompt_table import PromptTable

_HALVINGS, _LOG_LAMBDA = 80, 60.0


def allocate(spread_Q: np.ndarray, tokens_Q: np.ndarray, budget: float, least: int, most: int) -> np.ndarray:
    """Rollouts of Q prompts: ``n_q = round(s_q / sqrt(lambda L_q))`` from ``least`` to ``most``, with the smallest lambda such
    that ``sum n_q L_q <= budget`` tokens, by bisection over its logarithm. ``least`` holds where the budget is too small.

    >>> allocate(np.array([1.0, 2.0]), np.array([10.0, 10.0]), 60.0, 1, 32)
    array([2, 4])
    """

    def rollouts(log_lambda: float) -> np.ndarray:
        counts_Q: np.ndarray = np.rint(spread_Q / np.sqrt(np.exp(log_lambda) * tokens_Q))
        return counts_Q.clip(least, most).astype(np.int64)

    low, high = -_LOG_LAMBDA, _LOG_LAMBDA
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if rollouts(middle) @ tokens_Q > budget * (1 + 1e-9):  # a budget that is met exactly is met in spite of rounding
            low = middle
        else:
            high = middle
    return rollouts(high)


@dataclass(frozen=True)
class Shares:
    """What `Duet.shares` gives: rollouts and group weights of a step's draws, and their planned cost of the full budget."""

    rollouts: np.ndarray
    weights: np.ndarray
    budget_frac: float


class Duet:
    """Allocates with what the table knows. A prompt that was not played yet counts like the mean of those that were."""

    def __init__(self, spec: DuetCurriculum, table: PromptTable, rollouts: int) -> None:
        self._spec, self._table, self._rollouts = spec, table, rollouts

    def shares(self, indices: np.ndarray) -> Shares:
        """For the draws of a step. All alike as long as nothing is known."""
        spec, table = self._spec, self._table
        spread_Q = _known(table.spread, table.spreads, indices)
        tokens_Q = np.maximum(_known(table.tokens, table.rollouts, indices), 1.0)
        if not spread_Q.any():  # no prompt of the step has ever had two different rewards
            spread_Q = np.ones(len(indices))
        full = self._rollouts * tokens_Q.sum()
        rollouts_Q = allocate(spread_Q, tokens_Q, spec.budget_frac * full, spec.least_rollouts, spec.most_rollouts)
        share_Q = np.clip(rollouts_Q / rollouts_Q.mean(), spec.least_share, 1.0)
        return Shares(rollouts_Q, 1.0 / share_Q, float(rollouts_Q @ tokens_Q / full))


def _known(values: np.ndarray, counts: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The values at these places; where there is none, the mean of all that there are, or 1."""
    known = counts > 0
    prior = values[known].mean() if known.any() else 1.0
    return np.where(known[indices], values[indices], prior)
