r"""Pixel-Reasoner: Hermes with tools of its own, pictures and frames counted from 1, and answers in ``\boxed{}``.

``crop_image_normalized`` and ``zoom_in`` take a box from 0 to 1; a box with a value above 1 is in pixels of the full-resolution
picture. (The original takes exactly 1 for a pixel too, which makes a box that ends at the edge of the picture one pixel wide.)
A region is shown with a margin of ``PADDING_FRAC``. ``select_frames`` numbers the frames of the video that was shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..boxes import Coords
from .base import Call, ToolSpec
from .hermes import Hermes
from .wire import Pictures, Vocabulary, Wire, cannot_write, check_coords, thinking

PADDING_FRAC = 0.1
_IMAGE = {"target_image": "image"}
_BOX = {"bbox_2d": "box", "bbox": "box", **_IMAGE}
WIRES: Mapping[str, Wire] = {
    "crop_image_normalized": Wire("zoom", _BOX),
    "crop_image": Wire("zoom", _BOX),
    "zoom_in": Wire("zoom", _BOX),
    "select_frames": Wire("select_frames", {"target_frames": "frames", **_IMAGE}),
}


class PixelReasoner(Hermes):
    """Hermes, with boxes in one of two conventions and the margin that every zoom has."""

    def write_answer(self, answer: str, thought: str = "") -> str:
        r"""See `base.Dialect`: ``\boxed{}``, as its rewards look for it."""
        return f"{thinking(thought)}\\boxed{{{answer}}}"

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """See `base.Dialect`."""
        return super().system_prompt([_counted_from_1(spec) for spec in tools], coords)

    def _canonical(self, name: str, arguments: Mapping[str, Any]) -> Call:
        call = super()._canonical(name, arguments)
        if call.name == "zoom":
            coords = "abs_original" if _in_pixels(call.arguments.get("box")) else self.coords
            return replace(call, arguments={**call.arguments, "padding_frac": PADDING_FRAC}, coords=coords)
        if "frames" in call.arguments:
            return replace(call, arguments={**call.arguments, "frames": _shifted(call.arguments["frames"], -1)})
        return call

    def _wire(self, call: Call) -> tuple[str, dict[str, Any]]:
        arguments = dict(call.arguments)
        if call.name == "zoom":
            check_coords(self.name, call, "norm1", "abs_original")
            if _in_pixels(arguments.get("box")) != (call.coords == "abs_original"):
                raise cannot_write(self.name, call, "a box has a value above 1 if and only if it is in pixels (abs_original)")
            if arguments.pop("padding_frac", PADDING_FRAC) != PADDING_FRAC:
                raise cannot_write(self.name, call, f"its padding_frac is always {PADDING_FRAC}")
        if "frames" in arguments:
            arguments["frames"] = _shifted(arguments["frames"], 1)
        return self.vocabulary.write(replace(call, arguments=arguments), self.name)


def _counted_from_1(spec: ToolSpec) -> ToolSpec:
    properties = dict(spec.parameters.get("properties", {}))
    if "frames" in properties:
        properties["frames"] = {
            **properties["frames"],
            "description": "Which of the frames that the video showed, counted from 1.",
        }
    return replace(spec, parameters={**spec.parameters, "properties": properties})


def _in_pixels(box: object) -> bool:
    return isinstance(box, list | tuple) and any(isinstance(value, int | float) and value > 1 for value in box)


def _shifted(frames: Any, by: int) -> Any:
    if not isinstance(frames, list | tuple):
        return frames
    return [frame + by if isinstance(frame, int) and not isinstance(frame, bool) else frame for frame in frames]


PIXEL_REASONER = PixelReasoner(
    "pixel_reasoner",
    "norm1",
    Vocabulary(WIRES, Pictures(first=1)),
    ending="When you have seen enough, give the final answer in \\boxed{}, once.",
)
