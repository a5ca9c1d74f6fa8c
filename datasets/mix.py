"""The order of samples: seeded, without replacement within an epoch, and a function of the position alone.

A run that knows how many samples it has drawn can go on exactly, so the whole state is one number. A mixture of data sets is a
`Blend`: every source is drawn in its own epochs, and after any number of draws each has had its share to within one sample.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import TypeVar, cast, overload

import numpy as np

from ..vlm.records import Sample


def position_to_index(position: int, length: int, seed: int) -> int:
    """Which sample of ``length`` is drawn at a position: a new seeded permutation for every epoch of ``length`` positions.

    >>> sorted(position_to_index(place, 5, seed=0) for place in range(5))
    [0, 1, 2, 3, 4]
    """
    if length < 1 or position < 0:
        raise ValueError(
            f"position {position} of {length} samples; there must be at least one sample, and positions count from 0"
        )
    epoch, place = divmod(position, length)
    return int(_permutation(length, seed, epoch)[place])


@functools.lru_cache(32)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed % 2**32, epoch, length]).permutation(length)


class Blend(Sequence[Sample]):
    """Several data sets with weights. As a sequence it is one after the other; `draw` keeps to the weights."""

    def __init__(self, sources: Sequence[Sequence[Sample]], weights: Sequence[float] | None = None) -> None:
        if not sources or any(len(source) == 0 for source in sources):
            raise ValueError(f"a mixture needs data sets that are not empty, got {[len(source) for source in sources]} samples")
        given = [1.0] * len(sources) if weights is None else [float(weight) for weight in weights]
        if len(given) != len(sources) or min(given) <= 0:
            raise ValueError(f"a mixture needs one weight above 0 per data set, got {given} for {len(sources)}")
        self.sources = tuple(sources)
        self.shares = tuple(weight / sum(given) for weight in given)
        self._turn: array[int] = array("H")  # which source has the turn at a position, and how often it had it before
        self._rank: array[int] = array("Q")
        self._count = [0] * len(sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        for source in self.sources:
            if 0 <= place < len(source):
                return source[place]
            place -= len(source)
        raise IndexError(f"sample {index} of {len(self)}")

    def turn(self, position: int) -> tuple[int, int]:
        """``(source, how often it had the turn before)`` at a position. The source furthest behind its share has the turn."""
        while len(self._turn) <= position:
            drawn = len(self._turn) + 1
            behind = [share * drawn - count for share, count in zip(self.shares, self._count, strict=True)]
            source = behind.index(max(behind))
            self._turn.append(source)
            self._rank.append(self._count[source])
            self._count[source] += 1
        return self._turn[position], self._rank[position]

    def at(self, position: int, seed: int) -> tuple[int, int]:
        """``(source, index within it)`` at a position of the seeded order."""
        source, rank = self.turn(position)
        return source, position_to_index(rank, len(self.sources[source]), seed + source)


_Item = TypeVar("_Item")


def draw(samples: Sequence[_Item], position: int, seed: int) -> _Item:
    """The sample (or whatever a data set holds) at a position of the seeded order, of one data set or of a mixture."""
    if isinstance(samples, Blend):
        source, index = samples.at(position, seed)
        return cast("_Item", samples.sources[source][index])
    return samples[position_to_index(position, len(samples), seed)]
