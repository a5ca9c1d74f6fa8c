"""Flip: mirror a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import cv2
import pydantic

from ..vlm.images import Picture
from .base import Arguments, Done, Scene, Tool
from .boxes import Coords
from .pixels import array_HWC


def _direction(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) and len(value) <= 40 else value


class FlipArguments(Arguments):
    """What `Flip` is told."""

    direction: Annotated[Literal["horizontal", "vertical"], pydantic.BeforeValidator(_direction)]
    """horizontal: left and right change places; vertical: top and bottom do."""


class Flip(Tool):
    """Mirrors the whole picture."""

    name: ClassVar[str] = "flip"
    description: ClassVar[str] = "Mirror a picture."
    arguments: ClassVar[type[Arguments]] = FlipArguments

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return ({"direction": "horizontal"},)

    def run(self, arguments: FlipArguments, scene: Scene) -> Done:
        picture = scene.picture()
        return Done((Picture.of(cv2.flip(array_HWC(picture), 1 if arguments.direction == "horizontal" else 0)),), picture)
