"""Sizes of results: scaled down to a pixel budget, scaled up to a least side, refused where no model could see them.

Legend: H height, W width, C colour channels (RGB).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from ..vlm.images import Picture, PictureError, cut_out
from .base import MAX_PIXELS, ToolError
from .boxes import Size

_MAX_ASPECT = 200
"""Beyond it the image processors of Qwen's families refuse a picture."""


def decoded(picture: Picture) -> Image.Image:
    """The pixels of a picture. Raises `ToolError`, which keeps the file's name from the model."""
    try:
        return picture.rgb()
    except (PictureError, OSError) as error:
        raise ToolError("the picture cannot be read", str(error)) from error


def array_HWC(picture: Picture) -> np.ndarray:
    """A copy of the whole picture to work on. Raises `ToolError` where there are too many pixels for that."""
    if picture.width_px * picture.height_px > MAX_PIXELS:
        raise ToolError("the picture is too large to work on as a whole; zoom into a part of it first")
    return np.array(decoded(picture))


def fitted_px(size_px: Size, max_pixels: int | None, min_side_px: int | None = None) -> Size:
    """Size within the budget, which comes before the least side; the aspect ratio is kept as well as whole pixels can.

    >>> fitted_px((400, 100), max_pixels=10_000)
    (200, 50)
    >>> fitted_px((40, 10), max_pixels=None, min_side_px=28)
    (112, 28)
    """
    width_px, height_px = size_px
    budget = min(max_pixels or MAX_PIXELS, MAX_PIXELS)
    most = math.sqrt(budget / (width_px * height_px))
    scale = min(most, 1.0)
    if min_side_px is not None and min(size_px) < min_side_px:
        scale = min(most, min_side_px / min(size_px))
    if scale == 1.0:
        return size_px
    if scale < 1.0 or scale == most:
        return max(1, math.floor(width_px * scale)), max(1, math.floor(height_px * scale))
    return round(width_px * scale), round(height_px * scale)


def fitted(image: Image.Image, max_pixels: int | None, min_side_px: int | None = None) -> Picture:
    """The picture at `fitted_px`."""
    return resized(image, fitted_px(image.size, max_pixels, min_side_px))


def resized(image: Image.Image, size_px: Size) -> Picture:
    """The picture at another size; see `vlm.images.cut_out`."""
    return Picture.of(cut_out(image, (0, 0, *image.size), size_px))


def refuse_slivers(picture: Picture) -> None:
    """Raises `ToolError` for a result so long and narrow that no model could be shown it."""
    if max(picture.size_px) > _MAX_ASPECT * min(picture.size_px):
        raise ToolError(
            f"the result would be {picture.width_px} x {picture.height_px} pixels, longer than {_MAX_ASPECT} times its width"
        )
