"""Draw points: discs on a copy of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import pydantic

from . import boxes
from .base import Arguments, Done, PointArgument, Scene, Text, Tool
from .boxes import Coords
from .drawing import Canvas, colour_of


def _several(value: Any) -> Any:
    """A lone point, written without the list of lists."""
    return value if isinstance(value, list) and any(isinstance(one, list | tuple) for one in value) else [value]


class DrawPointArguments(Arguments):
    """What `DrawPoint` is told."""

    points: Annotated[list[PointArgument], pydantic.BeforeValidator(_several), pydantic.Field(min_length=1, max_length=100)]
    """The points to mark, each as [x, y]."""
    label: Text | None = None
    """What is written beside the first of them."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _single(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "points" in raw or "point" not in raw:
            return raw
        return {"points" if key == "point" else key: value for key, value in raw.items()}


class DrawPoint(Tool):
    """Marks all points of a call in one colour."""

    name: ClassVar[str] = "draw_point"
    description: ClassVar[str] = "Mark points on a picture."
    arguments: ClassVar[type[Arguments]] = DrawPointArguments

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return ({"points": [boxes.example((250, 400), coords)]},)

    def run(self, arguments: DrawPointArguments, scene: Scene) -> Done:
        canvas, colour = Canvas(scene), colour_of(0)
        points_px = [scene.point_px(point, canvas.size_px) for point in arguments.points]
        for point_px in points_px:
            canvas.dot(point_px, colour)
        if arguments.label:
            canvas.label_point(points_px[0], arguments.label, colour, 3 * canvas.line_px + 2 * canvas.rim_px)
        return Done((canvas.picture(),), scene.picture())
