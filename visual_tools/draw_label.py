"""Draw a label: text on a plate, at a point of a copy of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import pydantic

from . import boxes
from .base import Arguments, Done, PointArgument, Scene, Text, Tool
from .boxes import Coords
from .drawing import Canvas, colour_of


class DrawLabelArguments(Arguments):
    """What `DrawLabel` is told."""

    point: PointArgument
    """Where the text begins, as [x, y]."""
    text: Annotated[Text, pydantic.Field(min_length=1)]
    """What to write, a few words."""


class DrawLabel(Tool):
    """Writes one line of text."""

    name: ClassVar[str] = "draw_label"
    description: ClassVar[str] = "Write a short text on a picture."
    arguments: ClassVar[type[Arguments]] = DrawLabelArguments

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return ({"point": boxes.example((250, 400), coords), "text": "door"},)

    def run(self, arguments: DrawLabelArguments, scene: Scene) -> Done:
        canvas = Canvas(scene)
        canvas.label_point(scene.point_px(arguments.point, canvas.size_px), arguments.text, colour_of(0))
        return Done((canvas.picture(),), scene.picture())
