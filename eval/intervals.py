"""How sure a measured accuracy is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from statsmodels.stats.proportion import proportion_confint


def accuracy_interval(num_right: int, num_items: int) -> tuple[float, float]:
    """95 % interval of an accuracy (Wilson's score interval: right also near 0 and 1)."""
    if num_items == 0:
        return 0.0, 1.0
    low, high = proportion_confint(num_right, num_items, alpha=0.05, method="wilson")
    return float(low), float(high)


def paired_gain_interval(
    before: Sequence[float], after: Sequence[float], seed: int = 0, resamples: int = 10_000
) -> tuple[float, float]:
    """95 % bootstrap interval of ``mean(after) - mean(before)`` on the same items, items resampled in pairs."""
    if len(before) != len(after):
        raise ValueError(f"paired comparison: {len(before)} items before, {len(after)} after; evaluate the same items")
    difference = np.asarray(after, float) - np.asarray(before, float)
    if difference.size == 0:
        return 0.0, 0.0
    draws = np.random.default_rng(seed).integers(0, difference.size, (resamples, difference.size), dtype=np.int32)
    low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
