"""Synthetic videos: shapes drift about, and for a moment, between two shown frames, a ringed shape with a letter appears.

The clip of a sample holds a few evenly spread frames, and the ringed shape is in none of them: what is on it cannot be read
there, and when it comes can be told only roughly, since the background is dark from its first frame on. So a model has to find
the two neighbouring frames of which only the second is dark, and ask for the frames between them (`video_expert_calls`).

A clip is a function of (world, seed) and of nothing else, and its frames are drawn when they are asked for. Splits take their
seeds from the disjoint ranges of `scenes.split_seeds`. Kinds of question:

| kind | question | answer |
|---|---|---|
| when | At which second does the ringed shape appear? | 13 |
| colour | What colour is the ringed shape? | cyan |
| letter | What letter is on the ringed shape? | Z |
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..visual_tools.dialects.base import Call
from ..vlm.images import Picture
from ..vlm.messages import Clip
from ..vlm.records import Privileged, Sample
from .scenes import COLOURS, LETTERS, SHAPES, Scene, SceneObject, World

_RING_FRAC = 0.68  # of the shape's side: wide enough to hold the corners of a square
_RING_PX = 4


@dataclass(frozen=True, kw_only=True)
class ClipWorld:
    """How the clips of a world look and run. ``look`` gives canvas, letters and the sizes of the drifting shapes."""

    name: str
    look: World
    num_frames: int = 64
    fps: float = 1.0
    num_shown: int = 8
    """Frames that a sample's clip holds, evenly spread from first to last."""
    event_frames: int = 2
    """For so many frames the ringed shape is there."""
    ringed_px: tuple[float, float] = (46, 52)
    speed_px: tuple[float, float] = (1.5, 3.0)
    """How far a drifting shape goes from frame to frame, per axis."""
    dark: int = 80
    """By how many grey levels the background darkens when the ringed shape appears."""

    @property
    def shown(self) -> tuple[int, ...]:
        """Numbers of the shown frames."""
        return tuple(int(number) for number in np.linspace(0, self.num_frames - 1, self.num_shown).round())


CLIP_WORLDS: dict[str, ClipWorld] = {
    world.name: world
    for world in (
        ClipWorld(
            name="clip",
            look=World(name="clip", canvas_px=128, grid=1, num_objects=3, object_px=(36, 40), jitter_px=0, glyph_px=(14, 20)),
        ),
    )
}


def clip_world_of(world: ClipWorld | str) -> ClipWorld:
    """The clip world with this name. Raises `ValueError` naming the known ones."""
    if isinstance(world, ClipWorld):
        return world
    if world not in CLIP_WORLDS:
        raise ValueError(f"unknown clip world {world!r}; expected one of {', '.join(CLIP_WORLDS)}")
    return CLIP_WORLDS[world]


@dataclass(frozen=True)
class _Script:
    """What happens in a clip: where each shape starts and where it drifts to (fractions of the canvas, per frame)."""

    drifting: tuple[tuple[SceneObject, float, float], ...]
    ringed: SceneObject
    start: int
    background: int


@dataclass(frozen=True)
class ClipScene:
    """A whole synthetic video; a `VideoSource`. Known by world, seed and size; make one with `clip_scene`."""

    world: ClipWorld
    seed: int
    canvas_px: int

    @property
    def duration_s(self) -> float:
        return (self.world.num_frames - 1) / self.world.fps

    @property
    def ringed(self) -> SceneObject:
        """The ringed shape."""
        return _script(self.world, self.seed).ringed

    @property
    def event(self) -> range:
        """Numbers of the frames with the ringed shape."""
        start = _script(self.world, self.seed).start
        return range(start, start + self.world.event_frames)

    @property
    def hidden(self) -> range:
        """Numbers of the frames between the two shown frames around the event."""
        after = next(number for number in self.world.shown if number > self.event.start)
        before = max(number for number in self.world.shown if number < self.event.start)
        return range(before + 1, after)

    def second(self, number: int) -> float:
        """When frame ``number`` is shown."""
        return number / self.world.fps

    def draw(self, number: int) -> np.ndarray:
        """Frame ``number`` as ``[H, W, 3]`` uint8 RGB."""
        script, side = _script(self.world, self.seed), self.canvas_px
        objects = [
            replace(item, x_frac=_bounced(item.x_frac + number * dx, item), y_frac=_bounced(item.y_frac + number * dy, item))
            for item, dx, dy in script.drifting
        ]
        background = script.background - self.world.dark * (number >= script.start)
        ringed = (script.ringed,) if number in self.event else ()
        canvas = Scene(self.world.look, self.seed, (*objects, *ringed), (), background).draw(side)
        for item in ringed:
            centre, radius = (round(item.x_frac * side), round(item.y_frac * side)), round(_RING_FRAC * item.side_frac * side)
            cv2.circle(canvas, centre, radius, (0, 0, 0), max(1, round(_RING_PX * side / self.world.look.canvas_px)), cv2.LINE_AA)
        return canvas

    def frames_at(self, times_s: Sequence[float]) -> Clip:
        """The frames nearest to these seconds, one for each, in this order. Raises `ValueError` for none or no finite ones."""
        if not times_s or not all(math.isfinite(time) for time in times_s):
            raise ValueError(f"frames are asked for by finite seconds, at least one; got {list(times_s)[:8]}")
        last = self.world.num_frames - 1
        return self.clip([math.ceil(min(max(time * self.world.fps, 0), last) - 0.5) for time in times_s])

    def clip(self, numbers: Sequence[int]) -> Clip:
        """The clip of these frames."""
        pictures = {number: Picture.of(self.draw(number)) for number in set(numbers)}
        return Clip(tuple(pictures[n] for n in numbers), tuple(self.second(n) for n in numbers), self)

    def samples(self, kinds: Sequence[str] = ("letter",), count: int = 1, *, id_prefix: str | None = None) -> list[Sample]:
        """The first ``count`` kinds of question about this clip; its evidence is the shape's box in the frames of the event."""
        ringed, start_s, end_s = self.ringed, self.second(self.event[0]), self.second(self.event[-1])
        asked = {
            "when": ("At which second does the ringed shape appear?", f"{start_s:g}", 0.4),
            "colour": ("What colour is the ringed shape?", ringed.colour, 0.5),
            "letter": ("What letter is on the ringed shape?", ringed.letter, 0.6),
        }
        clip = self.clip(self.world.shown)
        return [
            Sample(
                id=f"{id_prefix or f'{self.world.name}-{self.seed}'}-{kind}",
                question=asked[kind][0],
                answer=asked[kind][1],
                video=clip,
                privileged=Privileged(
                    boxes_px_xyxy=(ringed.box_px_xyxy(self.canvas_px),),
                    rationale=f"At {start_s:g} s the ringed {ringed.name} appears at {ringed.place} and shows {ringed.letter}.",
                ),
                source=f"synth:{self.world.name}",
                kind=kind,
                difficulty=asked[kind][2],
                tags={"world": self.world.name, "scene": str(self.seed), "start_s": f"{start_s:g}", "end_s": f"{end_s:g}"},
            )
            for kind in check_clip_kinds(kinds)[:count]
        ]


CLIP_KINDS = ("when", "colour", "letter")


def check_clip_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds as a tuple. Raises `ValueError` for an unknown or missing one."""
    if not kinds or not set(kinds) <= set(CLIP_KINDS):
        raise ValueError(f"question kinds {list(kinds)} about clips: expected some of {', '.join(CLIP_KINDS)}")
    return tuple(kinds)


def clip_scene(world: ClipWorld | str, seed: int, *, canvas_px: int | None = None) -> ClipScene:
    """The clip of this world and seed, always the same."""
    chosen = clip_world_of(world)
    return ClipScene(chosen, seed, canvas_px or chosen.look.canvas_px)


def clip_scene_of(sample: Sample) -> ClipScene:
    """The clip behind a sample of this module. Raises `ValueError` for any other sample."""
    if sample.video is None or not isinstance(sample.video.source, ClipScene):
        raise ValueError(f"sample {sample.id}: source {sample.source!r} is no synthetic clip")
    return sample.video.source


def video_expert_calls(sample: Sample, numbered: bool = False) -> tuple[Call, ...]:
    """The calls of an agent that looks where it must: the frames between the last bright and the first dark frame that it sees.

    Then it answers with ``sample.answer``. ``numbered`` names the two frames themselves, by number, for tools that leave the ends
    of an interval out (FrameThinker, arXiv 2509.24304). Raises `ValueError` for a sample that is no synthetic clip.
    """
    scene = clip_scene_of(sample)
    hidden = scene.hidden
    if numbered:
        ends: dict[str, float] = {"start_frame": hidden[0] - 1, "end_frame": hidden[-1] + 1}
    else:
        ends = {"start_s": _whole(scene.second(hidden[0])), "end_s": _whole(scene.second(hidden[-1]))}
    return (Call("select_frames", {**ends, "count": len(hidden)}),)


def _whole(value: float) -> float:
    return int(value) if value.is_integer() else value


@functools.lru_cache(4096)
def _script(world: ClipWorld, seed: int) -> _Script:
    """Draws what happens; every moment at which the event fits between two shown frames is as likely as any other."""
    rng = np.random.default_rng([zlib.crc32(world.name.encode()), seed])
    look = world.look
    starts = [
        start
        for before, after in zip(world.shown, world.shown[1:], strict=False)
        for start in range(before + 1, after - world.event_frames + 1)
    ]
    if not starts:
        raise ValueError(
            f"clip world {world.name}: an event of {world.event_frames} frames does not fit between two of the {world.num_shown} "
            f"shown frames of {world.num_frames}; show fewer, or make it shorter"
        )
    start = starts[rng.integers(len(starts))]

    def shape(side_px: float, margin_frac: float) -> SceneObject:
        names = (
            list(COLOURS)[rng.integers(len(COLOURS))],
            SHAPES[rng.integers(len(SHAPES))],
            LETTERS[rng.integers(len(LETTERS))],
        )
        x, y = (float(value) for value in rng.uniform(margin_frac, 1 - margin_frac, 2))
        return SceneObject(*names, x, y, side_px / look.canvas_px, 0, 0)

    drifting = []
    for _ in range(look.num_objects):
        side_px = float(rng.uniform(*look.object_px))
        speed = rng.uniform(*world.speed_px, 2) * rng.choice((-1, 1), 2) / look.canvas_px
        drifting.append((shape(side_px, side_px / look.canvas_px / 2), float(speed[0]), float(speed[1])))
    side_px = float(rng.uniform(*world.ringed_px))
    ringed = shape(side_px, (_RING_FRAC * side_px + _RING_PX) / look.canvas_px)
    return _Script(tuple(drifting), ringed, start, int(rng.integers(222, 246)))


def _bounced(value_frac: float, item: SceneObject) -> float:
    """A coordinate that runs on, folded back into the canvas so that the shape bounces off its sides."""
    low, room = item.side_frac / 2, 1 - item.side_frac
    place = (value_frac - low) % (2 * room)
    return low + (place if place <= room else 2 * room - place)
