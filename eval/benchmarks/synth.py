"""Synthetic scenes as a benchmark: needs no file, has evidence boxes, and works in every mode with the embedded tiny model.

The place of the "local copy" says which: ``detail``, ``place:dev`` or ``place_crowd:test:512`` (world, split, number of
questions). Nothing, or "-", is ``detail:test:256``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import overload

from ...datasets.scene_stream import scene_samples
from ...datasets.scenes import SPLITS, WORLDS
from ...vlm.records import Sample
from ..records import Item, Source
from .base import ScoredRow, accuracy

_WORLD, _SPLIT, _NUM = "detail", "test", 256


class SceneItems(Sequence[Item]):
    """Samples of a world as items, drawn when they are indexed."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        sample = self._samples[range(len(self))[index]]
        return Item(sample, {"world": sample.tags["world"], "kind": sample.kind})


class Synth:
    """The benchmark; see `records.Benchmark`."""

    name = "synth"
    title = "Synthetic scenes"
    source_note = f"drawn on the spot: WORLD[:SPLIT[:N]], worlds {', '.join(WORLDS)}"

    def read(self, path: str) -> tuple[Sequence[Item], Source]:
        """The questions of a world. `ValueError` says what was expected."""
        world, split, number = (*path.split(":"), "", "", "")[:3] if path != "-" else ("", "", "")
        world, split, number = world or _WORLD, split or _SPLIT, number or str(_NUM)
        if world not in WORLDS or split not in SPLITS or not number.isdigit() or not int(number) or path.count(":") > 2:
            raise ValueError(
                f"synth={path}: expected WORLD[:SPLIT[:N]] with a world of {', '.join(WORLDS)} and a split of {', '.join(SPLITS)}"
            )
        items = SceneItems(scene_samples(world, split, int(number)))
        name = f"{world}:{split}:{number}"
        return items, Source(f"synth:{name}", hashlib.sha256(name.encode()).hexdigest(), len(items))

    def prompt_tail(self, item: Item) -> str:
        """None: the tiny model knows its own words only."""
        return ""

    def aggregate(self, rows: Sequence[ScoredRow]) -> dict[str, float]:
        """Accuracy, overall and by kind of question."""
        return accuracy(rows)


SYNTH = Synth()
