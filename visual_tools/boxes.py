"""The one place that converts boxes and points. Everywhere else they are in pixels of the full-resolution picture, a box as
``(x1, y1, x2, y2)``.

How models write coordinates (never guessed: it is a setting, or follows from the model's family):

- norm1: 0 to 1 of each side;
- norm1000: 0 to 1000 of each side (Qwen2-VL, Qwen3-VL, Qwen3.5);
- abs_resized: pixels of the picture as it was resized for the model (Qwen2.5-VL);
- abs_original: pixels of the full-resolution picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Literal

from ..vlm.records import Box

Coords = Literal["norm1", "norm1000", "abs_resized", "abs_original"]
Size = tuple[int, int]
"""Width and height in pixels."""
Point = tuple[float, float]
"""``(x, y)``."""

LARGEST = 1e9
"""A number further from 0 is no coordinate, no time and no angle."""


def to_px(box: Box, coords: Coords, size_px: Size, seen_px: Size | None = None) -> Box:
    """A model's box in pixels of a picture of ``size_px``; ``seen_px`` is the size that the model saw (for abs_resized).

    >>> to_px((0, 500, 1000, 1000), "norm1000", (200, 100))
    (0.0, 50.0, 200.0, 100.0)
    """
    x, y = _scale(coords, size_px, seen_px)
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def from_px(box_px: Box, coords: Coords, size_px: Size, seen_px: Size | None = None) -> Box:
    """Inverse of `to_px`, not rounded."""
    x, y = _scale(coords, size_px, seen_px)
    return box_px[0] / x, box_px[1] / y, box_px[2] / x, box_px[3] / y


def point_to_px(point: Point, coords: Coords, size_px: Size, seen_px: Size | None = None) -> Point:
    """A model's point in pixels of a picture of ``size_px``; see `to_px`."""
    x, y = _scale(coords, size_px, seen_px)
    return point[0] * x, point[1] * y


def point_from_px(point_px: Point, coords: Coords, size_px: Size, seen_px: Size | None = None) -> Point:
    """Inverse of `point_to_px`, not rounded."""
    x, y = _scale(coords, size_px, seen_px)
    return point_px[0] / x, point_px[1] / y


def extent(coords: Coords, size_px: Size, seen_px: Size | None = None) -> Point:
    """The largest x and y that a model may write for a picture of ``size_px``."""
    return point_from_px((float(size_px[0]), float(size_px[1])), coords, size_px, seen_px)


def extent_text(coords: Coords, size_px: Size, seen_px: Size | None = None) -> str:
    """`extent` as part of a sentence for the model."""
    x, y = extent(coords, size_px, seen_px)
    return f"x goes from 0 to {x:g}, y from 0 to {y:g}"


def example(permille: Sequence[int], coords: Coords) -> list[float]:
    """Coordinates for an example call, given in thousandths, as a model writes them for a picture of 1000 x 1000 px."""
    return [value / 1000 for value in permille] if coords == "norm1" else list(permille)


def _scale(coords: Coords, size_px: Size, seen_px: Size | None) -> tuple[float, float]:
    """Pixels per unit, for x and y."""
    if coords == "abs_original":
        return 1.0, 1.0
    if coords == "abs_resized":
        if seen_px is None:
            raise ValueError("coords abs_resized: the size that the model saw is needed")
        return size_px[0] / seen_px[0], size_px[1] / seen_px[1]
    if coords not in ("norm1", "norm1000"):
        raise ValueError(f"coords {coords!r} is unknown; expected norm1, norm1000, abs_resized or abs_original")
    unit = 1.0 if coords == "norm1" else 1000.0
    return size_px[0] / unit, size_px[1] / unit


def read_number(value: object) -> float | None:
    """A finite number from parsed JSON, also one written as text; None for anything else."""
    if isinstance(value, str) and len(value) <= 40:
        try:
            value = float(value)
        except ValueError:
            return None
    # bool is an int to Python; an int too large for a float is no coordinate either
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST or math.isnan(value):
        return None
    return float(value)


def _read_numbers(value: object, count: int) -> list[float] | None:
    """So many finite numbers; ``[[1, 2]]`` and ``"[1, 2]"`` are read as ``[1, 2]``. None: this is not what it is."""
    if isinstance(value, str) and len(value) <= 200:
        try:
            value = json.loads(value if value.lstrip().startswith("[") else f"[{value}]")
        except (ValueError, RecursionError):
            return None
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], Sequence) and not isinstance(value[0], str):
        value = value[0]
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        return None
    numbers = [number for number in map(read_number, value) if number is not None]
    return numbers if len(numbers) == count else None


def read_point(value: object) -> Point | str:
    """Two finite numbers from parsed JSON, or a sentence that says what is wrong with it."""
    numbers = _read_numbers(value, 2)
    return "a point is a list of two finite numbers [x, y]" if numbers is None else (numbers[0], numbers[1])


def read_box(value: object) -> Box | str:
    """Four finite numbers from parsed JSON, or a sentence that says what is wrong with it."""
    numbers = _read_numbers(value, 4)
    if numbers is None:
        return "a box is a list of four finite numbers [x1, y1, x2, y2]"
    x1, y1, x2, y2 = numbers
    if x2 <= x1 or y2 <= y1:
        return f"the box [{x1:g}, {y1:g}, {x2:g}, {y2:g}] is empty: x1 < x2 and y1 < y2 are needed"
    return x1, y1, x2, y2


def area(box: Box) -> float:
    """Area; 0 for an inverted box."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(one: Box, two: Box) -> Box:
    """The common part; inverted (area 0) when there is none."""
    return max(one[0], two[0]), max(one[1], two[1]), min(one[2], two[2]), min(one[3], two[3])


def iou(one: Box, two: Box) -> float:
    """Intersection over union, 0 to 1."""
    common = area(intersection(one, two))
    union = area(one) + area(two) - common
    return common / union if union > 0 else 0.0


def clip(box_px: Box, size_px: Size) -> Box | None:
    """The part of a box inside the picture, or None when nothing of it is."""
    inside = intersection(box_px, (0.0, 0.0, float(size_px[0]), float(size_px[1])))
    return inside if inside[0] < inside[2] and inside[1] < inside[3] else None


def expand(box: Box, frac: float) -> Box:
    """A box larger by ``frac`` of its width and height on each side, not clipped."""
    dx, dy = (box[2] - box[0]) * frac, (box[3] - box[1]) * frac
    return box[0] - dx, box[1] - dy, box[2] + dx, box[3] + dy


def grow(box_px: Box, size_px: Size, min_side_px: float, max_aspect: float) -> Box:
    """A box inside the picture, widened around its centre until no side is shorter than ``min_side_px`` or than the other side
    divided by ``max_aspect``, and moved back into the picture; a picture that is itself too narrow limits it.
    """
    width, height = box_px[2] - box_px[0], box_px[3] - box_px[1]
    least = max(min_side_px, max(width, height) / max_aspect)
    x1, x2 = _stretch(box_px[0], box_px[2], least, size_px[0])
    y1, y2 = _stretch(box_px[1], box_px[3], least, size_px[1])
    return x1, y1, x2, y2


def _stretch(low: float, high: float, least: float, limit: float) -> tuple[float, float]:
    if high - low >= least:
        return low, high
    least = min(least, limit)
    low = min(max((low + high - least) / 2, 0.0), limit - least)
    return low, low + least


def round_out(box_px: Box, size_px: Size) -> tuple[int, int, int, int]:
    """Whole pixels that cover the box, inside the picture."""
    x1, y1 = max(0, math.floor(box_px[0])), max(0, math.floor(box_px[1]))
    return x1, y1, min(size_px[0], math.ceil(box_px[2])), min(size_px[1], math.ceil(box_px[3]))


def elsewhere(box_px: Box, size_px: Size) -> Box:
    """The box moved into the corner of the picture that is furthest from where it was; two large boxes overlap all the same."""
    width, height = box_px[2] - box_px[0], box_px[3] - box_px[1]
    left, top = size_px[0] - width, size_px[1] - height
    corners = [(x, y) for y in (0.0, float(top)) for x in (0.0, float(left))]
    x, y = max(corners, key=lambda corner: math.dist(corner, box_px[:2]))
    return x, y, x + width, y + height
