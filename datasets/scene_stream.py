"""Synthetic samples that are drawn when they are asked for: a large data set costs nothing until it is used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import overload

from ..vlm.records import Sample
from .scenes import WORLDS, samples, scene, split_seeds, world_of
from .video_scenes import CLIP_WORLDS, ClipWorld, check_clip_kinds, clip_scene

_SCENES_KEPT = 512
_ALWAYS = frozenset({"letter", "where", "earlier"})  # kinds that every object, or pair of objects, of every scene allows


class SceneSamples(Sequence[Sample]):
    """Samples scene by scene on demand, for kinds whose number per scene is known beforehand.

    ``draw`` gives the ``per_scene`` samples of a scene, the scenes counted from 0.
    """

    def __init__(self, draw: Callable[[int], list[Sample]], n: int, per_scene: int) -> None:
        self._of_scene, self._n, self._per_scene = functools.lru_cache(_SCENES_KEPT)(draw), n, per_scene

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
    if world in CLIP_WORLDS:
        return _clip_samples(CLIP_WORLDS[world], split, n, seed, kinds, questions_per_scene, as_text, canvas_px)
    if world not in WORLDS:
        raise ValueError(f"unknown world {world!r}; expected one of {', '.join((*WORLDS, *CLIP_WORLDS))}")
    chosen, seeds = world_of(world), split_seeds(split, seed)
    if set(kinds) <= _ALWAYS and questions_per_scene <= chosen.num_objects * len(set(kinds)):

        def draw(number: int) -> list[Sample]:
            return scene(chosen, seeds[number]).samples(
                _in_turn(kinds, number * questions_per_scene), questions_per_scene, canvas_px=canvas_px, as_text=as_text,
                id_prefix=f"{world}-{split}-{seeds[number]}",
            )  # fmt: skip

        return SceneSamples(draw, n, questions_per_scene)
    return samples(
        chosen, split, n, seed=seed, kinds=kinds, questions_per_scene=questions_per_scene, as_text=as_text, canvas_px=canvas_px
    )


def _clip_samples(
    world: ClipWorld, split: str, n: int, seed: int, kinds: Sequence[str], per_scene: int, as_text: bool, canvas_px: int | None
) -> Sequence[Sample]:
    names, seeds = check_clip_kinds(kinds), split_seeds(split, seed)
    if as_text or per_scene > len(names):
        raise ValueError(
            f"world {world.name}: clips are not told as text, and have at most one question of each kind; "
            f"got as_text={as_text} and {per_scene} questions of {len(names)} kinds"
        )

    def draw(number: int) -> list[Sample]:
        prefix = f"{world.name}-{split}-{seeds[number]}"
        made = clip_scene(world, seeds[number], canvas_px=canvas_px)
        return made.samples(_in_turn(names, number * per_scene), per_scene, id_prefix=prefix)

    return SceneSamples(draw, n, per_scene)


def _in_turn(kinds: Sequence[str], before: int) -> tuple[str, ...]:
    """The kinds from the one whose turn it is, after ``before`` questions."""
    turn = before % len(kinds)
    return (*kinds[turn:], *kinds[:turn])
