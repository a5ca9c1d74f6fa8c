"""Draw boxes: frames with labels on a copy of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import pydantic

from ..vlm.records import Shown
from . import boxes
from .base import Arguments, BoxArgument, Done, Scene, Text, Tool, listed
from .boxes import Coords
from .drawing import Canvas, colour_of


class LabelledBox(pydantic.BaseModel):
    """One box to draw."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    box: BoxArgument
    """The box as [x1, y1, x2, y2], (x1, y1) its top left and (x2, y2) its bottom right corner."""
    label: Text | None = None
    """What is written beside it."""


def _several(value: Any) -> Any:
    """Lists of boxes in every form in which models write them."""
    numbers = isinstance(value, list | tuple) and len(value) == 4 and not any(isinstance(one, list | dict) for one in value)
    ones = [value] if numbers else listed(value)
    return [{"box": one} if isinstance(one, list | tuple | str) else one for one in ones] if isinstance(ones, list) else ones


class DrawBoxArguments(Arguments):
    """What `DrawBox` is told."""

    boxes: Annotated[list[LabelledBox], pydantic.BeforeValidator(_several), pydantic.Field(min_length=1, max_length=100)]
    """The boxes to draw."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _single(cls, raw: Any) -> Any:
        """A lone ``box`` with its ``label``, or one ``label`` for all boxes."""
        if not isinstance(raw, dict):
            return raw
        given = dict(raw)
        if "box" in given and "boxes" not in given:
            given["boxes"] = [{"box": given.pop("box"), "label": given.pop("label", None)}]
        elif "label" in given and "boxes" in given:
            label, several = given.pop("label"), _several(given["boxes"])
            if isinstance(several, list):
                several = [{"label": label, **one} if isinstance(one, dict) else one for one in several]
            given["boxes"] = several
        return given


class DrawBox(Tool):
    """Draws each box in a colour of its own, the frame outside of what it marks."""

    name: ClassVar[str] = "draw_box"
    description: ClassVar[str] = "Draw boxes with labels on a picture."
    arguments: ClassVar[type[Arguments]] = DrawBoxArguments

    merge_labels: bool = False
    """Boxes of earlier calls on the same picture are drawn again; one with the label of another takes its place (ViLaSR)."""

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return ({"boxes": [{"box": boxes.example((250, 400, 500, 600), coords), "label": "door"}]},)

    def run(self, arguments: DrawBoxArguments, scene: Scene) -> Done:
        canvas = Canvas(scene)
        new = [(one.label, scene.box_px(one.box, canvas.size_px)) for one in arguments.boxes]
        drawn = new
        if self.merge_labels:
            drawn = _merged([*_earlier(scene.shown, scene, canvas), *new])
        for number, (_, box_px) in enumerate(drawn):
            canvas.box(box_px, colour_of(number))
        for number, (label, box_px) in enumerate(drawn):  # after all frames, so that none runs through a label
            if label:
                canvas.label_box(box_px, label, colour_of(number))
        return Done((canvas.picture(),), scene.picture(), new[0][1] if len(new) == 1 else None)


_Labelled = tuple[str | None, tuple[float, float, float, float]]


def _earlier(shown: Shown, scene: Scene, canvas: Canvas) -> list[_Labelled]:
    """What this rollout has drawn on the same picture before; the records of its calls are all that remembers it."""
    found = []
    for call in shown.calls:
        if call.name == DrawBox.name and call.error is None and call.image == scene.index:
            for one in DrawBoxArguments.model_validate_json(call.arguments).boxes:
                coords = call.coords or scene.coords
                box_px = boxes.to_px(one.box, coords, canvas.size_px, scene.seen_px)  # type: ignore[arg-type]
                found.append((one.label, boxes.clip(box_px, canvas.size_px) or box_px))
    return found


def _merged(labelled: list[_Labelled]) -> list[_Labelled]:
    """The last box of each label, in the place of its first; boxes without a label all stay."""
    kept: dict[object, _Labelled] = {}
    for number, (label, box_px) in enumerate(labelled):
        kept[label or number] = label, box_px
    return list(kept.values())
