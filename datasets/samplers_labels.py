"""How easy samples are before training: pass rates from a file, or what the data say of their difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..vlm.records import Sample
from .mix import Blend
from .pass_rates import read_pass_rates


@dataclass(frozen=True)
class Labels:
    """``rate[i]`` is the pass rate of sample i, or 1 - its difficulty: the higher the easier. ``ids`` are the samples of a
    ``file``, in order; empty: the labels are the samples' own."""

    rate: np.ndarray
    ids: tuple[str, ...] = ()
    file: str = ""

    def check(self, index: int, sample: Sample) -> None:
        """`ValueError` when the file speaks of another sample."""
        if self.ids and self.ids[index] != sample.id:
            raise ValueError(
                f"{self.file}: sample {index} is {self.ids[index]} there and {sample.id} in the data; measure the pass rates of "
                "these data (foveate data pass-rate), with the same limit, seed and order of a mixture"
            )


def read_labels(file: str | None, samples: Sequence[Sample]) -> Labels:
    """The labels of all samples. `ValueError` for a file of other data, and for a sample that has no difficulty."""
    if file is None:
        return Labels(1.0 - np.array(_difficulties(samples), np.float64))
    rates = read_pass_rates(Path(file)).by_index
    if len(rates) != len(samples) or max(rates) != len(samples) - 1:
        raise ValueError(
            f"{file}: pass rates of {len(rates)} samples, and the data have {len(samples)}; measure all of these data "
            "(foveate data pass-rate without a limit; shards are put together with cat)"
        )
    rows = [rates[index] for index in range(len(samples))]
    labels = Labels(np.array([rate for _, rate in rows], np.float64), tuple(sample_id for sample_id, _ in rows), file)
    for index in {0, len(samples) - 1}:  # another file is seen now and not when the first odd sample is drawn
        labels.check(index, samples[index])
    return labels


def _difficulties(samples: Sequence[Sample]) -> list[float]:
    from .read import LazySamples

    if isinstance(samples, Blend):
        return [value for source in samples.sources for value in _difficulties(source)]
    found = []
    for index in range(len(samples)):
        value = samples.difficulty(index) if isinstance(samples, LazySamples) else samples[index].difficulty
        if value is None or not np.isfinite(value):
            raise ValueError(
                f"sample {samples[index].id} (index {index}) has no difficulty; measure pass rates (foveate data pass-rate) and "
                "name the file in curriculum.pass_rates, or give every row a difficulty"
            )
        found.append(value)
    return found
