"""Synthetic samples that are drawn when they are asked for: a large data set costs nothing until it is used."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import overload

from ..vlm.records import Sample
from .scenes import World, samples, scene, split_seeds, world_of

_SCENES_KEPT = 512
_ONE_PER_OBJECT = frozenset({"letter", "where"})  # kinds that every object of every scene allows


class SceneSamples(Sequence[Sample]):
    """What `scenes.samples` lists, scene by scene on demand, for kinds whose number per scene is known beforehand."""

    def __init__(
        self,
        world: World,
        split: str,
        n: int,
        seed: int,
        kinds: tuple[str, ...],
        questions_per_scene: int,
        as_text: bool,
        canvas_px: int | None,
    ) -> None:
        self._world, self._split, self._seeds, self._kinds, self._canvas_px = (
            world,
            split,
            split_seeds(split, seed),
            kinds,
            canvas_px,
        )
        self._n, self._per_scene, self._as_text = n, questions_per_scene, as_text
        self._of_scene = functools.lru_cache(_SCENES_KEPT)(self._draw)

    def _draw(self, number: int) -> list[Sample]:
        turn = number * self._per_scene % len(self._kinds)
        seed = self._seeds[number]
        prefix = f"{self._world.name}-{self._split}-{seed}"
        kinds = self._kinds[turn:] + self._kinds[:turn]
        return scene(self._world, seed).samples(
            kinds, self._per_scene, canvas_px=self._canvas_px, as_text=self._as_text, id_prefix=prefix
        )

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._n))]
        place = index + self._n if index < 0 else index
        if not 0 <= place < self._n:
            raise IndexError(f"sample {index} of {self._n}")
        number, question = divmod(place, self._per_scene)
        return self._of_scene(number)[question]


def scene_samples(
    world: str,
    split: str,
    n: int,
    *,
    seed: int = 0,
    kinds: Sequence[str] = ("letter",),
    questions_per_scene: int = 1,
    as_text: bool = False,
    canvas_px: int | None = None,
) -> Sequence[Sample]:
    """The same samples in the same order as `scenes.samples`, drawn on demand where that is possible."""
    chosen = world_of(world)
    if set(kinds) <= _ONE_PER_OBJECT and questions_per_scene <= chosen.num_objects * len(set(kinds)):
        return SceneSamples(chosen, split, n, seed, tuple(kinds), questions_per_scene, as_text, canvas_px)
    return samples(
        chosen, split, n, seed=seed, kinds=kinds, questions_per_scene=questions_per_scene, as_text=as_text, canvas_px=canvas_px
    )
