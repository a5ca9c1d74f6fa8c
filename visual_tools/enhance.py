"""Enhance: brightness, contrast and sharpness of a picture by factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import pydantic

from ..vlm.images import Picture
from .base import Arguments, Done, Number, Scene, Tool
from .boxes import Coords
from .pixels import array_HWC

_MIDDLE = 127.5

Factor = Annotated[Number, pydantic.Field(ge=0, le=10)]


class EnhanceArguments(Arguments):
    """What `Enhance` is told."""

    contrast: Factor | None = None
    """Contrast is multiplied by this: above 1 makes it stronger."""
    brightness: Factor | None = None
    """Brightness is multiplied by this: above 1 makes the picture lighter."""
    sharpen: Factor | None = None
    """How much sharper: 0 changes nothing, 1 is plain to see."""

    @pydantic.model_validator(mode="after")
    def _one_is_given(self) -> EnhanceArguments:
        if self.contrast is None and self.brightness is None and self.sharpen is None:
            raise ValueError("one of contrast, brightness and sharpen is needed")
        return self


class Enhance(Tool):
    """Brightness first, then contrast around the middle of the scale, then an unsharp mask."""

    name: ClassVar[str] = "enhance"
    description: ClassVar[str] = "Change contrast, brightness or sharpness of a picture."
    arguments: ClassVar[type[Arguments]] = EnhanceArguments

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return ({"contrast": 1.5},)

    def run(self, arguments: EnhanceArguments, scene: Scene) -> Done:
        picture = scene.picture()
        image_HWC = array_HWC(picture)
        if arguments.contrast is not None or arguments.brightness is not None:
            levels = np.arange(256) * (1.0 if arguments.brightness is None else arguments.brightness)
            levels = (levels - _MIDDLE) * (1.0 if arguments.contrast is None else arguments.contrast) + _MIDDLE
            image_HWC = cv2.LUT(image_HWC, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
        if arguments.sharpen:
            # detail of the size that is still seen when a large picture has been scaled down
            sigma_px = max(1.0, max(picture.size_px) / 1000)
            blurred_HWC = cv2.GaussianBlur(image_HWC, (0, 0), sigma_px)
            image_HWC = cv2.addWeighted(image_HWC, 1 + arguments.sharpen, blurred_HWC, -arguments.sharpen, 0)
        return Done((Picture.of(image_HWC),), picture)
