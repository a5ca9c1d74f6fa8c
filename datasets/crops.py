"""Evidence views from boxes: crops cut from full resolution, and boxes drawn into a copy of the picture.

The defaults of the `vision_opd` presets follow the public pipeline behind that data (Zooming-without-Zooming, its
``create_vqa.py``): crop resized x 2 with Lanczos, drawn box expanded by 5 % of its width and height on each side and clipped to
the picture, red, 5 px wide. Vision-OPD's figure shows the frame inside the crop, the pipeline crops the clean picture: see
`CropSpec.frame`.

Boxes here are ``(x1, y1, x2, y2)`` in pixels of the full-resolution picture. Legend: H height, W width, C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import pydantic

from ..vlm.images import Picture
from ..vlm.records import Box, Sample

RED = (255, 0, 0)


class Part(pydantic.BaseModel):
    """Base of the data parts of a recipe: immutable, unknown keys are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OverlaySpec(Part):
    """How a box is drawn into the picture."""

    expand_frac: float = pydantic.Field(default=0.05, ge=0)
    """The drawn box is larger than the evidence by this share of its width and height, on each side."""
    line_px: int = pydantic.Field(default=5, ge=1)
    """Width of the line, drawn inwards from the edge of the box."""
    colour: tuple[int, int, int] = RED
    """RGB, 0 to 255."""


class CropSpec(Part):
    """How evidence is cut out."""

    source: Literal["auto", "given", "boxes"] = "auto"
    """auto: crops that came with the data if there are any, else cut from the boxes; given, boxes: that one only."""
    padding_frac: float = pydantic.Field(default=0.0, ge=0)
    """Context on each side as a share of the box's width and height; 0.25 cuts a region 1.5 times as wide and high."""
    scale: float = pydantic.Field(default=1.0, gt=0)
    """The cut region is resized by this factor."""
    min_side_px: int = pydantic.Field(default=1, ge=1)
    """A region with a shorter side is widened around its centre, before scaling, as far as the picture reaches."""
    union: bool = False
    """One crop around all boxes instead of one crop a box."""
    max_crops: int | None = pydantic.Field(default=None, ge=1)
    """Only the first so many boxes; None: all."""
    frame: bool = False
    """Draw the box (see `OverlaySpec`) before cutting, so that the frame is seen in the crop."""


def checked_box(box: Sequence[Any], width_px: int, height_px: int, where: str) -> Box:
    """The box clipped to the picture. `ValueError` when it has no pixel inside or its corners are in the wrong order."""
    if len(box) != 4 or not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        raise ValueError(f"{where}: a box is four finite numbers x1, y1, x2, y2, got {box!r}")
    x1, y1, x2, y2 = (float(value) for value in box)
    if x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"{where}: box {_short(box)} has no area; expected x1 < x2 and y1 < y2 (is it x, y, width, height? then say so)"
        )
    inside = max(0.0, x1), max(0.0, y1), min(float(width_px), x2), min(float(height_px), y2)
    if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
        raise ValueError(
            f"{where}: box {_short(box)} has less than a pixel inside the picture of {width_px} x {height_px} px; "
            "check the picture and the format of the boxes (pixels, 0-1000 or 0-1)"
        )
    return inside


def _short(box: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def union_box(boxes: Sequence[Box]) -> Box:
    """The smallest box around all boxes."""
    return min(box[0] for box in boxes), min(box[1] for box in boxes), max(box[2] for box in boxes), max(box[3] for box in boxes)


def expanded(box: Box, frac: float, width_px: int, height_px: int, min_side_px: int = 1) -> tuple[int, int, int, int]:
    """Whole pixels around the box: larger by ``frac`` of its sides on each side, at least ``min_side_px``, inside the picture.

    >>> expanded((10, 10, 30, 20), 0.25, 100, 100)
    (5, 7, 35, 23)
    """
    (left, right), (top, bottom) = (
        _span(box[0], box[2], frac, width_px, min_side_px),
        _span(box[1], box[3], frac, height_px, min_side_px),
    )
    return left, top, right, bottom


def _span(low: float, high: float, frac: float, limit_px: int, min_px: int) -> tuple[int, int]:
    pad = (high - low) * frac
    first, last = max(0, math.floor(low - pad + 1e-6)), min(limit_px, math.ceil(high + pad - 1e-6))
    want = min(max(min_px, 1), limit_px)
    if last - first < want:
        first = min(max(0, math.floor((first + last - want) / 2)), limit_px - want)
        last = first + want
    return first, last


@functools.lru_cache(512)
def cut(picture: Picture, box: Box, spec: CropSpec, overlay: OverlaySpec) -> Picture:
    """The crop of one box (``[H, W]`` of the padded box times ``scale``), from the full-resolution picture."""
    region = expanded(box, spec.padding_frac, picture.width_px, picture.height_px, spec.min_side_px)
    source = draw_boxes(picture, (box,), overlay) if spec.frame else picture
    crop_HWC = np.asarray(source.rgb().crop(region))
    if spec.scale != 1.0:
        height, width = crop_HWC.shape[:2]
        size = max(1, round(width * spec.scale)), max(1, round(height * spec.scale))
        crop_HWC = cv2.resize(crop_HWC, size, interpolation=cv2.INTER_LANCZOS4 if spec.scale > 1 else cv2.INTER_AREA)
    return Picture.of(crop_HWC)


@functools.lru_cache(8)  # full-size pictures: few
def draw_boxes(picture: Picture, boxes: tuple[Box, ...], overlay: OverlaySpec) -> Picture:
    """A copy of the picture with the boxes drawn in, lines inwards."""
    image_HWC = np.array(picture.rgb())
    for box in boxes:
        x1, y1, x2, y2 = expanded(box, overlay.expand_frac, picture.width_px, picture.height_px)
        # cv2.rectangle centres a thick line on the edge; nested 1 px frames keep every line inside the drawn box.
        for inset in range(min(overlay.line_px, (x2 - x1 + 1) // 2, (y2 - y1 + 1) // 2)):
            cv2.rectangle(image_HWC, (x1 + inset, y1 + inset), (x2 - 1 - inset, y2 - 1 - inset), overlay.colour, 1)
    return Picture.of(image_HWC)


@functools.lru_cache(8)
def degrade(picture: Picture, factor: float) -> Picture:
    """The picture with both sides divided by ``factor`` (area averaging)."""
    size = max(1, round(picture.width_px / factor)), max(1, round(picture.height_px / factor))
    return Picture.of(cv2.resize(np.asarray(picture.rgb()), size, interpolation=cv2.INTER_AREA))


@functools.lru_cache(8)
def blank(width_px: int, height_px: int) -> Picture:
    """A grey picture of that size."""
    return Picture.of(np.full((height_px, width_px, 3), 127, np.uint8))


def spotlight(picture: Picture, boxes: tuple[Box, ...], padding_frac: float) -> Picture:
    """The picture with everything but the boxes (and some context) in its median colour: coordinates stay as they are."""
    pixels = np.asarray(picture.rgb())
    lit = np.empty_like(pixels)
    lit[:] = np.median(pixels[:: max(1, len(pixels) // 256)].reshape(-1, 3), axis=0).astype(np.uint8)
    for box in boxes:
        x1, y1, x2, y2 = expanded(box, padding_frac, picture.width_px, picture.height_px)
        lit[y1:y2, x1:x2] = pixels[y1:y2, x1:x2]
    return Picture.of(lit)


def boxed_picture(sample: Sample) -> Picture:
    """The picture that the evidence boxes belong to. `ValueError` names the sample."""
    index = sample.privileged.box_image
    if not 0 <= index < len(sample.images):
        raise ValueError(
            f"sample {sample.id}: the evidence boxes belong to picture {index}, but it has {len(sample.images)} pictures"
        )
    return sample.images[index]


def evidence_boxes(sample: Sample, spec: CropSpec) -> tuple[Box, ...]:
    """The boxes to cut or draw, checked against their picture. `ValueError` names the sample and the way out."""
    boxes = sample.privileged.boxes_px_xyxy
    if not boxes:
        raise ValueError(
            f"sample {sample.id}: this view needs evidence boxes and the sample has none; "
            "add boxes_px_xyxy to the data, or choose another view"
        )
    picture = boxed_picture(sample)
    checked = tuple(
        checked_box(box, picture.width_px, picture.height_px, f"sample {sample.id}") for box in boxes[: spec.max_crops]
    )
    return (union_box(checked),) if spec.union else checked


def evidence_crops(sample: Sample, spec: CropSpec, overlay: OverlaySpec) -> tuple[Picture, ...]:
    """The evidence pictures of a sample: those that came with it, or cut from its boxes (see `CropSpec.source`)."""
    given = sample.privileged.crops
    if given and spec.source != "boxes":
        return given[: spec.max_crops]
    if spec.source == "given" or not sample.privileged.boxes_px_xyxy:
        raise ValueError(
            f"sample {sample.id}: this view needs evidence crops and the sample has "
            f"{'none' if spec.source == 'given' else 'neither crops nor boxes'}; "
            "add teacher_images or boxes_px_xyxy to the data, or choose another view"
        )
    picture = boxed_picture(sample)
    return tuple(cut(picture, box, spec, overlay) for box in evidence_boxes(sample, spec))
