"""Zoom: cut a region out of the full-resolution picture. The renderer enlarges it to what the model can see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pydantic

from ..vlm.images import Picture
from ..vlm.records import Shown
from . import boxes
from .base import Arguments, BoxArgument, Done, Number, Scene, Seconds, Text, Tool, ToolError
from .boxes import Coords
from .frames import check_times, first_clip, frames_at
from .pixels import decoded, fitted_px


class ZoomArguments(Arguments):
    """What `Zoom` is told."""

    box: BoxArgument
    """The region as [x1, y1, x2, y2], (x1, y1) its top left and (x2, y2) its bottom right corner."""
    label: Text | None = None
    """The name of what is looked at."""
    time_s: Seconds | None = None
    """For a video: zoom into the frame nearest to this second."""
    padding_frac: Number | None = pydantic.Field(default=None, ge=0, le=10)
    """Context on each side, as a share of the region's width and height."""

    def source(self, shown: Shown) -> int:
        clip = first_clip(shown) if self.time_s is not None and self.image is None else None
        return super().source(shown) if clip is None else clip


class Zoom(Tool):
    """Cuts a region out, clipped to the picture and widened to `ToolSettings.min_side_px` and ``max_aspect``."""

    name: ClassVar[str] = "zoom"
    description: ClassVar[str] = "Zoom in on a region of a picture by cutting it out."
    arguments: ClassVar[type[Arguments]] = ZoomArguments

    hidden: tuple[str, ...] = ("time_s", "padding_frac")

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return ({"box": boxes.example((250, 400, 500, 600), coords)},)

    def run(self, arguments: ZoomArguments, scene: Scene) -> Done:
        settings = scene.settings
        picture, times_s = _frame(scene, arguments.time_s)
        inside_px = scene.box_px(arguments.box, picture.size_px, arguments.padding_frac or 0.0)
        grown_px = boxes.grow(inside_px, picture.size_px, settings.min_side_px, settings.max_aspect)
        region_px = boxes.round_out(grown_px, picture.size_px)
        decoded(picture)  # says so where it cannot be read
        left, top, right, bottom = region_px
        size_px = fitted_px((right - left, bottom - top), settings.max_pixels, settings.min_result_side_px)
        return Done((Picture.cut(picture, region_px, size_px),), picture, region_px, times_s, cut=True)


def _frame(scene: Scene, time_s: float | None) -> tuple[Picture, tuple[float, ...]]:
    """The picture to cut from and, when it is a frame, its second."""
    if time_s is None:
        return scene.picture(), ()
    clip = scene.clip()
    check_times(clip, (time_s,))
    found = frames_at(clip, (time_s,))
    if not found:
        raise ToolError(f"the video has no frame at second {time_s:g}")
    frame, at_s = found[0]
    return frame, (at_s,)
