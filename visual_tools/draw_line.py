"""Draw lines: between two points, or across the whole picture at a height or a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import pydantic

from . import boxes
from .base import Arguments, Done, Number, PointArgument, Scene, Text, Tool, listed
from .boxes import Coords, Point
from .drawing import Canvas, colour_of


class Line(pydantic.BaseModel):
    """One line to draw."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    start: PointArgument
    """One end as [x, y]."""
    end: PointArgument
    """The other end as [x, y]."""
    label: Text | None = None
    """What is written at its middle."""


class DrawLineArguments(Arguments):
    """What `DrawLine` is told."""

    lines: Annotated[list[Line], pydantic.BeforeValidator(listed), pydantic.Field(max_length=100)] | None = None
    """Lines from point to point."""
    y: Number | None = None
    """Draw a horizontal line across the picture here."""
    x: Number | None = None
    """Draw a vertical line across the picture here."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _single(cls, raw: Any) -> Any:
        """A lone line, written without the list."""
        if not isinstance(raw, dict) or "lines" in raw or not ("start" in raw or "end" in raw):
            return raw
        line = {key: raw[key] for key in ("start", "end", "label") if key in raw}
        return {"lines": [line], **{key: value for key, value in raw.items() if key not in line}}

    @pydantic.model_validator(mode="after")
    def _one_is_given(self) -> DrawLineArguments:
        if not self.lines and self.x is None and self.y is None:
            raise ValueError("lines, x or y is needed")
        return self


class DrawLine(Tool):
    """Draws each line in a colour of its own."""

    name: ClassVar[str] = "draw_line"
    description: ClassVar[str] = "Draw lines on a picture: between points, or across it at a given y or x."
    arguments: ClassVar[type[Arguments]] = DrawLineArguments

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return {"lines": [{"start": boxes.example((250, 400), coords), "end": boxes.example((500, 600), coords)}]}, {
            "y": boxes.example((400,), coords)[0]
        }

    def run(self, arguments: DrawLineArguments, scene: Scene) -> Done:
        canvas = Canvas(scene)
        width, height = canvas.size_px
        drawn: list[tuple[Point, Point, str | None]] = [
            (scene.point_px(one.start, canvas.size_px), scene.point_px(one.end, canvas.size_px), one.label)
            for one in arguments.lines or ()
        ]
        if arguments.y is not None:
            _, y_px = scene.point_px((0.0, arguments.y), canvas.size_px)
            drawn.append(((0.0, y_px), (width - 1.0, y_px), None))
        if arguments.x is not None:
            x_px, _ = scene.point_px((arguments.x, 0.0), canvas.size_px)
            drawn.append(((x_px, 0.0), (x_px, height - 1.0), None))
        for number, (start_px, end_px, _) in enumerate(drawn):
            canvas.line(start_px, end_px, colour_of(number))
        for number, (start_px, end_px, label) in enumerate(drawn):
            if label:
                middle_px = (start_px[0] + end_px[0]) / 2, (start_px[1] + end_px[1]) / 2
                canvas.label_point(middle_px, label, colour_of(number), canvas.letter_px // 2)
        return Done((canvas.picture(),), scene.picture())
