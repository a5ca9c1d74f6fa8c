"""Synthetic worlds: coloured shapes that carry a letter, drawn at any resolution, with questions of growing difficulty.

Four worlds, made for four questions about a vision-language model:

- ``detail``: the letter can be read in a crop and only partly in the full view (the gap that distillation closes);
- ``place``: in the full view the shape and its place can be seen and the letter cannot, so the model has to zoom;
- ``place_crowd``: the same with more shapes, closer together (room for reinforcement learning of the zoom);
- ``place_dense``: the same on a finer raster, which is harder still.

All geometry is in fractions of the canvas; `Scene.draw` renders it at any number of pixels. A scene is a function of
(world, seed) and of nothing else. Splits take their seeds from disjoint ranges, so a test scene is never a training scene.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ..vlm.images import Picture
from ..vlm.records import Box, Privileged, Sample

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 70, 60),
    "orange": (250, 155, 40),
    "yellow": (245, 228, 70),
    "green": (80, 200, 90),
    "cyan": (70, 215, 225),
    "blue": (95, 135, 250),
    "purple": (180, 110, 235),
    "pink": (250, 165, 205),
}
SHAPES = ("circle", "square", "triangle", "diamond")
LETTERS = "ACEHKLPTXZ"

_GLYPH_ROWS = {  # 5 x 7 bitmaps, one number a row, the leftmost pixel is the highest of five bits
    "A": (14, 17, 17, 31, 17, 17, 17),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "H": (17, 17, 17, 31, 17, 17, 17),
    "K": (17, 18, 20, 24, 20, 18, 17),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "X": (17, 17, 10, 4, 10, 17, 17),
    "Z": (31, 1, 2, 4, 8, 16, 31),
}
_GLYPHS = {
    letter: np.array([[(row >> (4 - column)) & 1 for column in range(5)] for row in rows], np.uint8) * 255
    for letter, rows in _GLYPH_ROWS.items()
}

_SUBPIXEL_BITS = 4
_NOISE_TILE_PX = 640  # half the side of the tile

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_SEEDS_PER_SPLIT = 10**12
_SEEDS_PER_STREAM = 10**6


@dataclass(frozen=True, kw_only=True)
class World:
    """How the scenes of a world look. Pixel sizes are those of the native canvas and scale with it."""

    name: str
    canvas_px: int
    """Native side length of the square canvas."""
    grid: int
    """The canvas has ``grid`` x ``grid`` cells; every cell holds at most one object."""
    num_objects: int
    object_px: tuple[float, float]
    """Smallest and largest side length of an object."""
    jitter_px: float
    """An object's centre leaves the centre of its cell by at most this much, per axis."""
    glyph_px: tuple[int, int] = (10, 14)
    """Width and height of the letter."""
    ink_max: int = 0
    """The letter's grey value is drawn from 0 to this."""
    noise_sd: float = 0.0
    """Standard deviation of gaussian noise on every pixel and channel (of 255)."""
    num_lines: int = 4
    line_px: int = 1
    zoom_window_k1000: int = 200
    """Side of the window that a zoom names, in thousandths of the canvas."""


WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World(name="detail", canvas_px=128, grid=3, num_objects=4, object_px=(30, 36), jitter_px=3, zoom_window_k1000=400),
        World(
            name="place", canvas_px=400, grid=5, num_objects=5, object_px=(38, 48), jitter_px=14,
            ink_max=60, noise_sd=16, line_px=4,
        ),
        World(
            name="place_crowd", canvas_px=400, grid=4, num_objects=8, object_px=(36, 46), jitter_px=25,
            ink_max=60, noise_sd=16, line_px=4,
        ),
        World(
            name="place_dense", canvas_px=400, grid=7, num_objects=8, object_px=(36, 46), jitter_px=5,
            ink_max=60, noise_sd=16, line_px=4,
        ),
    )
}  # fmt: skip


def world_of(world: World | str) -> World:
    """The world with this name. Raises `ValueError` naming the known ones."""
    if isinstance(world, World):
        return world
    if world not in WORLDS:
        raise ValueError(f"unknown world {world!r}; expected one of {', '.join(WORLDS)}")
    return WORLDS[world]


def place_name(x_frac: float, y_frac: float) -> str:
    """Where a point of the unit square lies, in thirds: "top left", "top", ..., "middle", ..., "bottom right"."""
    column = ("left", "", "right")[min(2, int(x_frac * 3))]
    row = ("top", "", "bottom")[min(2, int(y_frac * 3))]
    return f"{row} {column}".strip() or "middle"


@dataclass(frozen=True)
class SceneObject:
    """A coloured shape with a letter. ``x_frac y_frac`` is its centre, ``side_frac`` its side, as fractions of the canvas."""

    colour: str
    shape: str
    letter: str
    x_frac: float
    y_frac: float
    side_frac: float
    row: int
    column: int
    ink: int = 0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        return place_name(self.x_frac, self.y_frac)

    def box_px_xyxy(self, canvas_px: int) -> Box:
        """The shape's bounding box on a canvas of this many pixels, clipped to it."""
        half = self.side_frac / 2
        corners = (self.x_frac - half, self.y_frac - half, self.x_frac + half, self.y_frac + half)
        x1, y1, x2, y2 = (float(min(max(value, 0.0), 1.0) * canvas_px) for value in corners)
        return x1, y1, x2, y2

    def zoom_box_k1000(self, window: int) -> tuple[int, int, int, int]:
        """A window of ``window`` thousandths around the object, its corners at multiples of 100, inside the canvas.

        Only two digits of it carry information, so that a very small model can learn to name it.
        """

        def start(centre_frac: float) -> int:
            return int(min(max(round((centre_frac * 1000 - window / 2) / 100) * 100, 0), 1000 - window))

        x1, y1 = start(self.x_frac), start(self.y_frac)
        return x1, y1, x1 + window, y1 + window


@dataclass(frozen=True)
class Scene:
    """The objects of one scene, no two of a colour. Make one with `scene`."""

    world: World
    seed: int
    objects: tuple[SceneObject, ...]
    lines: tuple[tuple[float, float, float, float, int], ...]
    background: int

    def draw(self, canvas_px: int | None = None) -> np.ndarray:
        """The scene as ``[H, W, 3]`` uint8 RGB, ``H = W = canvas_px`` (default: the world's own)."""
        side = canvas_px or self.world.canvas_px
        scale = side / self.world.canvas_px
        canvas = np.full((side, side, 3), self.background, np.uint8)
        for x1, y1, x2, y2, grey in self.lines:
            ends = [(int(x * side), int(y * side)) for x, y in ((x1, y1), (x2, y2))]
            cv2.line(canvas, ends[0], ends[1], (grey, grey, grey), max(1, round(self.world.line_px * scale)), cv2.LINE_AA)
        for item in self.objects:
            _draw_shape(canvas, item, side)
            _draw_letter(canvas, item, side, self.world.glyph_px, scale)
        return cv2.add(canvas, _noise(side, self.seed, self.world.noise_sd), dtype=cv2.CV_8U) if self.world.noise_sd else canvas

    def picture(self, canvas_px: int | None = None) -> Picture:
        return Picture.of(self.draw(canvas_px))

    def text(self) -> str:
        """The scene in words: "Scene: red triangle at top left shows K; blue circle at bottom right shows C."."""
        return "Scene: " + "; ".join(f"{item.name} at {item.place} shows {item.letter}" for item in self.objects) + "."

    def samples(
        self, kinds: Sequence[str] = ("letter",), count: int = 1, *, canvas_px: int | None = None, as_text: bool = False,
        id_prefix: str | None = None,
    ) -> list[Sample]:  # fmt: skip
        """Up to ``count`` different questions about this scene, kinds in turn; fewer when the scene allows no more.

        Evidence boxes are in pixels of the drawn canvas. ``as_text`` gives no picture but the scene in words.
        """
        from .scene_questions import questions

        side = canvas_px or self.world.canvas_px
        prefix = id_prefix or f"{self.world.name}-{self.seed}"
        images = () if as_text else (self.picture(canvas_px),)
        return [
            Sample(
                id=f"{prefix}-{'text-' if as_text else ''}{question.kind}-{question.tag}",
                question=f"{self.text()} {question.text}" if as_text else question.text,
                answer=question.answer,
                images=images,
                privileged=Privileged(
                    boxes_px_xyxy=() if as_text else tuple(self.objects[index].box_px_xyxy(side) for index in question.targets),
                    rationale=question.rationale,
                    hints=question.hints,
                ),
                source=f"synth:{self.world.name}",
                kind=question.kind,
                difficulty=question.difficulty,
                tags={"world": self.world.name, "scene": str(self.seed), "target": ",".join(map(str, question.targets))},
            )
            for question in questions(self, kinds, count)
        ]


def scene(world: World | str, seed: int, *, num_objects: int | None = None) -> Scene:
    """The scene of this world and seed, always the same. ``num_objects`` overrides the world's (for curricula)."""
    chosen = world_of(world)
    rng = np.random.default_rng([zlib.crc32(chosen.name.encode()), seed])
    count = chosen.num_objects if num_objects is None else num_objects
    if not 1 <= count <= min(len(COLOURS), chosen.grid**2):
        raise ValueError(f"world {chosen.name}: {count} objects; 1 to {min(len(COLOURS), chosen.grid**2)} fit")
    cells = rng.permutation(chosen.grid**2)[:count]
    colours = rng.permutation(list(COLOURS))[:count]
    shape_ids, letter_ids = rng.integers(len(SHAPES), size=count), rng.integers(len(LETTERS), size=count)
    jitters = rng.uniform(-chosen.jitter_px, chosen.jitter_px, (count, 2)) / chosen.canvas_px
    sides = rng.uniform(*chosen.object_px, count) / chosen.canvas_px
    inks = rng.integers(chosen.ink_max + 1, size=count)
    objects = []
    for k in range(count):
        row, column = divmod(int(cells[k]), chosen.grid)
        half = float(sides[k]) / 2
        x, y = ((index + 0.5) / chosen.grid + float(shift) for index, shift in ((column, jitters[k, 0]), (row, jitters[k, 1])))
        x, y = (min(max(value, half), 1 - half) for value in (x, y))
        shape, letter = SHAPES[shape_ids[k]], LETTERS[letter_ids[k]]
        objects.append(SceneObject(str(colours[k]), shape, letter, x, y, float(sides[k]), row, column, int(inks[k])))
    ends, greys = rng.random((chosen.num_lines, 4)), rng.integers(140, 200, chosen.num_lines)
    lines = tuple((float(e[0]), float(e[1]), float(e[2]), float(e[3]), int(grey)) for e, grey in zip(ends, greys, strict=True))
    return Scene(chosen, seed, tuple(objects), lines, int(rng.integers(222, 246)))


def scene_of(sample: Sample) -> Scene:
    """The scene behind a sample that `samples` made. Raises `ValueError` for any other sample."""
    if not sample.source.startswith("synth:") or "scene" not in sample.tags:
        raise ValueError(f"sample {sample.id}: source {sample.source!r} is no synthetic world")
    return scene(sample.tags["world"], int(sample.tags["scene"]))


def split_seeds(split: str, seed: int = 0) -> range:
    """The scene seeds of one stream of a split. Streams (``seed`` 0 to 999,999) and splits never share a scene."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if not 0 <= seed < _SEEDS_PER_SPLIT // _SEEDS_PER_STREAM:
        raise ValueError(f"seed {seed}: expected 0 to {_SEEDS_PER_SPLIT // _SEEDS_PER_STREAM - 1}")
    start = SPLITS.index(split) * _SEEDS_PER_SPLIT + seed * _SEEDS_PER_STREAM
    return range(start, start + _SEEDS_PER_STREAM)


def iter_samples(
    world: World | str, split: str, *, seed: int = 0, kinds: Sequence[str] = ("letter",), questions_per_scene: int = 1,
    as_text: bool = False, canvas_px: int | None = None,
) -> Iterator[Sample]:  # fmt: skip
    """Samples of a stream of scenes, without end for practical purposes (a million scenes).

    With several ``kinds`` they take turns over the scenes; a scene that allows no question of a kind gives the next one.
    """
    from .scene_questions import check_kinds

    chosen, names = world_of(world), check_kinds(kinds)
    for index, scene_seed in enumerate(split_seeds(split, seed)):
        turn = index * questions_per_scene % len(names)
        yield from scene(chosen, scene_seed).samples(
            names[turn:] + names[:turn], questions_per_scene, canvas_px=canvas_px, as_text=as_text,
            id_prefix=f"{chosen.name}-{split}-{scene_seed}",
        )  # fmt: skip


def samples(
    world: World | str, split: str, n: int, *, seed: int = 0, kinds: Sequence[str] = ("letter",), questions_per_scene: int = 1,
    as_text: bool = False, canvas_px: int | None = None,
) -> list[Sample]:  # fmt: skip
    """The first ``n`` samples of `iter_samples`: the same n for the same arguments, and a prefix of any larger n."""
    stream = iter_samples(
        world, split, seed=seed, kinds=kinds, questions_per_scene=questions_per_scene, as_text=as_text, canvas_px=canvas_px
    )
    return [sample for sample, _ in zip(stream, range(n), strict=False)]


def _draw_shape(canvas: np.ndarray, item: SceneObject, side: int) -> None:
    unit = 1 << _SUBPIXEL_BITS
    x, y, half = item.x_frac * side, item.y_frac * side, item.side_frac * side / 2
    colour = COLOURS[item.colour]
    if item.shape == "circle":
        centre = (round(x * unit), round(y * unit))
        cv2.circle(canvas, centre, round(half * unit), colour, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
        return
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0, -1), (1, 0.9), (-1, 0.9)),
        "diamond": ((0, -1), (1, 0), (0, 1), (-1, 0)),
    }[item.shape]
    points = np.array([((x + dx * half) * unit, (y + dy * half) * unit) for dx, dy in corners]).round().astype(np.int32)
    cv2.fillPoly(canvas, [points], colour, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_letter(canvas: np.ndarray, item: SceneObject, side: int, glyph_px: tuple[int, int], scale: float) -> None:
    width, height = max(1, round(glyph_px[0] * scale)), max(1, round(glyph_px[1] * scale))
    shrinks = width < 5 or height < 7
    mask = cv2.resize(_GLYPHS[item.letter], (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    lower = 0.15 * item.side_frac * side if item.shape == "triangle" else 0.0  # a triangle is wide enough only below its middle
    left, top = round(item.x_frac * side - width / 2), round(item.y_frac * side - height / 2 + lower)
    patch = canvas[top : top + height, left : left + width]
    weight = mask[: patch.shape[0], : patch.shape[1], None].astype(np.float32) / 255
    patch[:] = (patch * (1 - weight) + item.ink * weight).round().astype(np.uint8)


@functools.lru_cache(8)
def _noise_tile(sd: float, side: int) -> np.ndarray:
    values = np.random.default_rng(20261120).standard_normal((side, side, 3), np.float32)
    return (values * np.float32(sd)).round().astype(np.int16)


def _noise(side: int, seed: int, sd: float) -> np.ndarray:
    """Gaussian noise ``[side, side, 3]`` int16: a window of one fixed tile, since drawing it anew costs more than the scene."""
    tile = _noise_tile(sd, max(2 * _NOISE_TILE_PX, side + 64))
    top, left = np.random.default_rng([7, seed]).integers(0, tile.shape[0] - side, 2)
    return np.ascontiguousarray(tile[top : top + side, left : left + side])
