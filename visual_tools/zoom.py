"""Zoom: cut a region out of the full-resolution picture. The renderer enlarges it to what the model can see."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ..vlm.images import Picture, PictureError
from ..vlm.records import Box
from .boxes import Coords, Size, clip, grow, round_out, to_px

GREY = (127, 127, 127)


@dataclass(frozen=True, kw_only=True)
class ZoomSettings:
    """``coords``: how the model writes boxes (see `boxes`). A region narrower than ``min_side_px`` of the full-resolution
    picture, or longer than ``max_aspect`` times its width, is widened around its centre. ``grey``: show a grey picture of the
    same size instead, an ablation that tells whether the model uses what it sees.
    """

    coords: Coords = "norm1000"
    min_side_px: int = 16
    max_aspect: float = 100.0
    grey: bool = False


def zoom(picture: Picture, box: Box, settings: ZoomSettings, seen_px: Size | None = None) -> Picture | str:
    """The region of ``box``, or a sentence that says why there is none. Never raises.

    ``seen_px``: width and height of ``picture`` as the model saw it (needed for coordinates in the resized picture).
    """
    if settings.coords == "abs_resized" and seen_px is None:
        seen_px = picture.size_px
    box_px = clip(to_px(box, settings.coords, picture.size_px, seen_px), picture.size_px)
    if box_px is None:
        width, height = _extent(settings.coords, picture.size_px, seen_px)
        written = ", ".join(f"{value:g}" for value in box)
        return f"the box [{written}] lies outside the picture: x goes from 0 to {width:g}, y from 0 to {height:g}"
    region = round_out(grow(box_px, picture.size_px, settings.min_side_px, settings.max_aspect), picture.size_px)
    if settings.grey:
        return Picture.of(Image.new("RGB", (region[2] - region[0], region[3] - region[1]), GREY))
    try:
        return Picture.of(picture.rgb().crop(region))
    except (PictureError, OSError) as error:
        return f"the picture can no longer be read ({error})"


def _extent(coords: Coords, size_px: Size, seen_px: Size | None) -> tuple[float, float]:
    if coords in ("norm1", "norm1000"):
        unit = 1.0 if coords == "norm1" else 1000.0
        return unit, unit
    width, height = seen_px if coords == "abs_resized" and seen_px is not None else size_px
    return float(width), float(height)
