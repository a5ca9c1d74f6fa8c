"""Rotate: turn a picture by any angle; nothing of it is cut off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np

from ..vlm.images import Picture
from .base import MAX_PIXELS, Arguments, Done, Number, Scene, Tool
from .boxes import Coords
from .pixels import array_HWC

_FILL = (127, 127, 127)


class RotateArguments(Arguments):
    """What `Rotate` is told."""

    angle: Number
    """Degrees, counter-clockwise."""


class Rotate(Tool):
    """Multiples of 90 degrees are exact; at other angles the canvas grows and its corners are grey."""

    name: ClassVar[str] = "rotate"
    description: ClassVar[str] = "Rotate a picture counter-clockwise."
    arguments: ClassVar[type[Arguments]] = RotateArguments

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return ({"angle": 90},)

    def run(self, arguments: RotateArguments, scene: Scene) -> Done:
        picture = scene.picture()
        return Done((Picture.of(rotated_HWC(array_HWC(picture), arguments.angle)),), picture)


def rotated_HWC(image_HWC: np.ndarray, angle: float) -> np.ndarray:
    """The picture turned by ``angle`` degrees, whole; scaled down where the turned one would exceed `MAX_PIXELS`."""
    quarters, rest = divmod(angle % 360.0, 90.0)
    if rest == 0.0:
        return np.ascontiguousarray(np.rot90(image_HWC, int(quarters)))
    height, width = image_HWC.shape[:2]
    sine, cosine = abs(math.sin(math.radians(angle % 360.0))), abs(math.cos(math.radians(angle % 360.0)))
    new_width, new_height = width * cosine + height * sine, width * sine + height * cosine
    scale = min(1.0, math.sqrt(MAX_PIXELS / (new_width * new_height)))
    if scale < 1.0:
        # first the source, by averaging: warping would pick single pixels out of it
        small_px = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
        return rotated_HWC(cv2.resize(image_HWC, small_px, interpolation=cv2.INTER_AREA), angle)
    canvas_px = math.ceil(new_width), math.ceil(new_height)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle % 360.0, 1.0)
    matrix[:, 2] += (canvas_px[0] - width) / 2, (canvas_px[1] - height) / 2
    return np.asarray(
        cv2.warpAffine(image_HWC, matrix, canvas_px, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=_FILL)
    )
