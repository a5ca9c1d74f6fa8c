"""Hermes, the dialect of Qwen's chat templates: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

Also DeepEyes' (2505.14362), whose models write the box as ``bbox_2d`` or, as its schema has it, ``bbox``, may call several tools
in a turn, and in its versions 3 and 4 write ``{"function": "zoom_in", "bbox_2d": ...}``, in the tags or in a fence of JSON;
and DeepSport's (2511.12908) ``frame_extraction_tool``. Coordinates are the model family's. The reply is a user turn,
``<tool_response>`` picture or text ``</tool_response>``, one such block a call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...vlm.messages import Message, Part
from ...vlm.records import Shown
from ..boxes import Coords
from .base import Call, Reading, Result, ToolSpec
from .scan import Malformed, blocks, calls_in, decode, encode
from .wire import ANSWER, COORDINATES, Vocabulary, Wire, check_coords, parts_of, tagged_answer, thinking

CALL, END_CALL = "<tool_call>", "</tool_call>"
RESPONSE, END_RESPONSE = "<tool_response>", "</tool_response>"
FENCE, END_FENCE = "```json", "```"
ZOOM = "image_zoom_in_tool"

_IMAGE = {"img_idx": "image"}
_BOX = {"bbox_2d": "box", "bbox": "box", **_IMAGE}
WIRES: Mapping[str, Wire] = {
    ZOOM: Wire("zoom", _BOX),
    "zoom_in": Wire("zoom", _BOX),
    "image_rotate_tool": Wire("rotate", _IMAGE),
    "image_flip_tool": Wire("flip", _IMAGE),
    "image_draw_box_tool": Wire("draw_box", _BOX),
    "image_draw_line_tool": Wire("draw_line", _IMAGE),
    "image_draw_point_tool": Wire("draw_point", _IMAGE),
    "image_draw_label_tool": Wire("draw_label", _IMAGE),
    "image_enhance_tool": Wire("enhance", _IMAGE),
    "select_frames": Wire("select_frames", _IMAGE),
    "frame_extraction_tool": Wire("select_frames", {"idx_start": "start_frame", "idx_end": "end_frame", **_IMAGE}),
    "frame_at": Wire("frame_at", _IMAGE),
}
"""The names of Qwen and DeepEyes where they have one, and names made like theirs."""
VOCABULARY = Vocabulary(WIRES)

ZOOM_SCHEMA: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": ZOOM,
        "description": "Zoom in on a region of a picture by cutting it out.",
        "parameters": {
            "type": "object",
            "properties": {
                "bbox_2d": {
                    "type": "array",
                    "items": {"type": "number"},
                    "minItems": 4,
                    "maxItems": 4,
                    "description": "The region as [x1, y1, x2, y2], (x1, y1) its top left and (x2, y2) its bottom right corner.",
                },
                "label": {"type": "string", "description": "The name of what is looked at."},
                "img_idx": {"type": "integer", "description": "Which picture, counted from 0; 0 when left out."},
            },
            "required": ["bbox_2d"],
        },
    },
}


@dataclass(frozen=True)
class Hermes:
    """JSON calls in tags. ``break_lines``: a reply has its tags on lines of their own, as Qwen's templates write them.

    ``ending`` is what the system prompt says about answers.
    """

    name: str = "hermes"
    coords: Coords | None = None
    vocabulary: Vocabulary = VOCABULARY
    break_lines: bool = False
    ending: str = ANSWER

    def read(self, text: str) -> Reading:
        """See `base.Dialect`. JSON in a fence counts as a call only when it names a ``function`` and no tag is there."""
        if CALL in text:
            return Reading(calls_in(blocks(text, CALL, END_CALL), END_CALL, self._read_block))
        fenced = [block for block in blocks(text, FENCE, END_FENCE) if block and '"function"' in block]
        return Reading(calls_in(fenced, END_FENCE, self._read_block))

    def write(self, calls: Sequence[Call], thought: str = "") -> str:
        """See `base.Dialect`."""
        return thinking(thought) + "\n".join(self._write_block(*self._wire(call)) for call in calls)

    def write_answer(self, answer: str, thought: str = "") -> str:
        """See `base.Dialect`."""
        return tagged_answer(answer, thought)

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """See `base.Dialect`."""
        schemas = [self.vocabulary.schema(spec, self.name) for spec in tools]
        return f"{self._offer(schemas)}\n\n{COORDINATES[self.coords or coords]} {self.ending}"

    def observation(self, results: Sequence[Result], shown: Shown) -> Message:
        """See `base.Dialect`."""
        line = "\n" if self.break_lines else ""
        replies: list[Part] = []
        for result in results:
            before = f"{line}{RESPONSE}{line}" if replies else f"{RESPONSE}{line}"
            replies += [before, *parts_of(result), f"{line}{END_RESPONSE}"]
        return Message.user(*replies)

    def _read_block(self, block: str) -> Call:
        return self._canonical(*_name_and_arguments(block))

    def _write_block(self, name: str, arguments: Mapping[str, Any]) -> str:
        return write_call(name, arguments)

    def _offer(self, schemas: Sequence[Mapping[str, Any]]) -> str:
        return system_prompt(*schemas)

    def _canonical(self, name: str, arguments: Mapping[str, Any]) -> Call:
        return self.vocabulary.read(name, arguments, self.coords)

    def _wire(self, call: Call) -> tuple[str, dict[str, Any]]:
        check_coords(self.name, call, self.coords)
        return self.vocabulary.write(call, self.name)


def _name_and_arguments(block: str) -> tuple[str, Mapping[str, Any]]:
    call = decode(block)
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, str):
        return function, {name: value for name, value in call.items() if name != "function"}
    call = function if isinstance(function, dict) else call
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise Malformed('the call must be a JSON object with "name" and "arguments"')
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        arguments = decode(arguments, '"arguments"')
    if not isinstance(arguments, dict):
        raise Malformed('"arguments" must be a JSON object', call["name"])
    return call["name"], arguments


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call in tags, under the names it is given."""
    return f"{CALL}\n{encode({'name': name, 'arguments': dict(arguments)})}\n{END_CALL}"


def system_prompt(*schemas: Mapping[str, Any]) -> str:
    """The part of a system message that offers tools, as Qwen's own templates write it."""
    lines = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{lines}\n</tools>\n\n"
        f"For each function call, return a json object with function name and arguments within {CALL}{END_CALL} XML tags:\n"
        f'{CALL}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{END_CALL}'
    )


HERMES = Hermes()
