"""OpenThinkIMG (2505.08617): one JSON object a turn, ``{"thought": ..., "actions": [{"name": ..., "arguments": {...}}]}``.

Pictures are ``img_1``, ``img_2`` over all that was shown; what an action is about stands in ``param``: a box in pixels of the
full-resolution picture as text (``Crop``), or ``x="21.5" y="28.5"`` in percent of its sides (``Point``, the lines). Percent is
norm1 here, divided by 100. ``Terminate`` answers. Its tools that find things by a description need models of their own: they are
recognised, and answered with what can be used instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...vlm.messages import Message, Part
from ...vlm.records import Shown
from ..boxes import Coords, read_number
from .base import BadCall, Call, Reading, Result, ToolSpec
from .scan import Malformed, decode, encode, four_numbers
from .wire import Pictures, cannot_write, check_coords, offered, parts_of

PICTURES = Pictures("img")
UNAVAILABLE = ("OCR", "GroundingDINO", "SAM", "SegmentRegionAroundPoint")
_OFFERS = {
    "zoom": '- Cut out a region: {"name": "Crop", "arguments": {"image": "img_1", "param": "[x1, y1, x2, y2]"}}',
    "draw_point": '- Mark a point: {"name": "Point", "arguments": {"image": "img_1", "param": "x=\\"21.5\\" y=\\"28.5\\""}}',
    "draw_line": '- Draw a line across: {"name": "DrawHorizontalLineByY", "arguments": {"image": "img_1", "param": "y=28.5"}}\n'
    '- Draw a line down: {"name": "DrawVerticalLineByX", "arguments": {"image": "img_1", "param": "x=21.5"}}',
}
_END = '- Give the final answer and end: {"name": "Terminate", "arguments": {"ans": "..."}}'
_VALUE = re.compile(r"""([xy])[0-9]{0,3}\s{0,3}=\s{0,3}["']?(-?[0-9]{1,9}(?:\.[0-9]{1,12})?)""")


@dataclass(frozen=True)
class OpenThinkIMG:
    """Actions in one JSON object; a call's coordinates are pixels for zoom, norm1 for what is drawn."""

    name: str = "openthinkimg"
    coords: Coords | None = "abs_original"

    def read(self, text: str) -> Reading:
        """See `base.Dialect`. Text around the object (a fence, a thought) is passed over; an action that answers has no calls."""
        if '"actions"' not in text:
            return Reading()
        try:
            action = decode(text[text.find("{") : text.rfind("}") + 1], "the action")
        except Malformed as error:
            return Reading((BadCall(str(error)),))
        actions = action.get("actions") if isinstance(action, dict) else None
        if not isinstance(actions, list):
            return Reading((BadCall('the action must be a JSON object with "thought" and a list of "actions"'),))
        calls: list[Call | BadCall] = []
        for item in actions:
            try:
                name, arguments = _checked(item)
                if name == "Terminate":
                    return Reading(answer=_answer(arguments))
                calls.append(_call(name, arguments))
            except Malformed as error:
                calls.append(BadCall(str(error), error.name))
        return Reading(tuple(calls))

    def write(self, calls: Sequence[Call], thought: str = "") -> str:
        """See `base.Dialect`."""
        return encode({"thought": thought, "actions": [self._written(call) for call in calls]})

    def write_answer(self, answer: str, thought: str = "") -> str:
        """See `base.Dialect`."""
        return encode({"thought": thought, "actions": [{"name": "Terminate", "arguments": {"ans": answer}}]})

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """See `base.Dialect`. Raises `ValueError` for a tool that the dialect does not have."""
        lines = "\n".join([*offered(self.name, tools, _OFFERS), _END])
        return (
            f"Answer the question about the picture, with the help of tools where they help:\n{lines}\n\n"
            'Pictures are called "img_1", "img_2" and so on, in the order in which you see them. Crop takes pixels of the '
            "picture at its full resolution; points and lines are in percent of its width and height, from 0 to 100.\n"
            'Write nothing but one JSON object each turn, with one action in it: {"thought": "...", "actions": [{"name": "...", '
            '"arguments": {...}}]}'
        )

    def observation(self, results: Sequence[Result], shown: Shown) -> Message:
        """See `base.Dialect`. A picture that comes back is told its name."""
        number = len(shown.visuals)
        parts: list[Part] = ["OBSERVATION:\n"]
        for result in results:
            parts.append(f"{_wire_name(result.call)} model outputs: ")
            for part in parts_of(result):
                if isinstance(part, str):
                    parts.append(f"{part}\n")
                    continue
                number += 1
                parts += [f"img_{number}\n", part, "\n"]
        return Message.user(*parts, "Use this, and go on with the question.")

    def _written(self, call: Call) -> dict[str, Any]:
        arguments = call.arguments
        if call.name == "zoom" and "box" in arguments:
            check_coords(self.name, call, "abs_original")
            param = encode(list(arguments["box"]))
        elif call.name in ("draw_line", "draw_point"):
            check_coords(self.name, call, "norm1")
            if call.coords is None:
                raise cannot_write(self.name, call, "it is drawn in percent; give the call coords='norm1'")
            param = _param(call, self.name)
        else:
            raise cannot_write(self.name, call, "it has zoom, draw_line and draw_point")
        extra = set(arguments) - {"box", "x", "y", "points", "image"}
        if extra:
            raise cannot_write(self.name, call, f"it has no argument {', '.join(sorted(extra))}")
        return {"name": _wire_name(call), "arguments": {"image": PICTURES.write(call, self.name), "param": param}}


def _checked(item: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise Malformed('each of the "actions" must be an object with "name" and "arguments"')
    arguments = item.get("arguments", {})
    if not isinstance(arguments, dict):
        raise Malformed('"arguments" must be a JSON object', item["name"])
    return item["name"], arguments


def _answer(arguments: Mapping[str, Any]) -> str:
    if "ans" not in arguments:
        raise Malformed('Terminate needs the argument "ans"', "Terminate")
    answer = arguments["ans"]
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def _call(name: str, arguments: Mapping[str, Any]) -> Call:
    if name in UNAVAILABLE:
        raise Malformed(f"the tool {name} is not available here", name)
    image = {} if arguments.get("image") is None else {"image": PICTURES.read(arguments["image"])}
    param = arguments.get("param")
    if name in ("Crop", "ZoomInSubfigure"):
        box = param if isinstance(param, list) else four_numbers(str(param).strip().removeprefix("[").removesuffix("]"))
        if box is None:
            raise Malformed(f'the param of {name} must be a box "[x1, y1, x2, y2]": nothing is found by its title here', name)
        return Call("zoom", {"box": list(box), **image}, "abs_original")
    if name == "Point":
        x, y = _values(param, "x"), _values(param, "y")
        if not x or len(x) != len(y):
            raise Malformed('the param of Point must be a place "x=... y=...": nothing is found by a description here', name)
        return Call("draw_point", {"points": [list(point) for point in zip(x, y, strict=True)], **image}, "norm1")
    if name in ("DrawHorizontalLineByY", "DrawVerticalLineByX"):
        axis = "y" if name == "DrawHorizontalLineByY" else "x"
        number = read_number(param)
        values = _values(param, axis) if number is None else [round(number / 100, 12)]
        if len(values) != 1:
            raise Malformed(f'the param of {name} must be one number "{axis}=..." in percent', name)
        return Call("draw_line", {axis: values[0], **image}, "norm1")
    return Call(name, dict(arguments))


def _values(param: Any, axis: str) -> list[float]:
    """The numbers of one axis, from percent; rounded, so that 28.5 percent is 0.285."""
    if not isinstance(param, str):
        return []
    return [round(float(found[2]) / 100, 12) for found in _VALUE.finditer(param) if found[1] == axis]


def _param(call: Call, dialect: str) -> str:
    points, given = call.arguments.get("points"), [axis for axis in ("x", "y") if axis in call.arguments]
    if call.name == "draw_line" and len(given) == 1:
        return f"{given[0]}={_percent(call.arguments[given[0]])}"
    if call.name == "draw_point" and points and not given:
        return " ".join(
            f'x{mark}="{_percent(x)}" y{mark}="{_percent(y)}"' for mark, (x, y) in zip(_marks(len(points)), points, strict=True)
        )
    raise cannot_write(dialect, call, "it draws a line at one y or one x, and points")


def _marks(count: int) -> list[str]:
    return [""] if count == 1 else [str(number) for number in range(1, count + 1)]


def _percent(value: float) -> str:
    return f"{round(value * 100, 10):.10f}".rstrip("0").rstrip(".")


def _wire_name(call: Call | BadCall) -> str:
    if isinstance(call, Call) and call.name == "draw_line":
        return "DrawHorizontalLineByY" if "y" in call.arguments else "DrawVerticalLineByX"
    return {"zoom": "Crop", "draw_point": "Point"}.get(call.name, call.name or "The action")


OPENTHINKIMG = OpenThinkIMG()
