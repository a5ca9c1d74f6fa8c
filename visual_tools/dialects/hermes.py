"""Hermes, the dialect of Qwen's chat templates: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

The reply is a user turn, ``<tool_response>`` picture or text ``</tool_response>``. Parsing reads model text as data: it takes
linear time, executes nothing and never raises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...vlm.images import Picture
from ...vlm.messages import Message

CALL, END_CALL = "<tool_call>", "</tool_call>"
RESPONSE, END_RESPONSE = "<tool_response>", "</tool_response>"
ZOOM = "image_zoom_in_tool"

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
class Call:
    """A tool call as the model wrote it: the arguments are parsed JSON, not yet checked."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class BadCall:
    """Something that was meant as a call and is none; ``reason`` is a sentence for the model."""

    reason: str


def find_call(text: str) -> Call | BadCall | None:
    """The first tool call in an action, or None when it holds none.

    >>> find_call('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>')
    Call(name='f', arguments={'x': 1})
    """
    start = text.find(CALL)
    if start < 0:
        return None
    start += len(CALL)
    end = text.find(END_CALL, start)
    if end < 0:
        return BadCall(f"the call is not closed with {END_CALL}")
    try:
        call = json.loads(text[start:end])
    except (ValueError, RecursionError) as error:
        return BadCall(f"the call is not valid JSON ({str(error)[:80]})")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return BadCall('the call must be a JSON object with "name" and "arguments"')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return BadCall('"arguments" must be a JSON object')
    return Call(call["name"], arguments)


def box_argument(arguments: Mapping[str, Any]) -> object:
    """The box of a call; models write ``bbox_2d`` or ``bbox``."""
    return arguments.get("bbox_2d", arguments.get("bbox"))


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as a model writes it, for demonstrations and scripted rollouts."""
    return f"{CALL}\n{json.dumps({'name': name, 'arguments': dict(arguments)}, ensure_ascii=False)}\n{END_CALL}"


def system_prompt(*schemas: Mapping[str, Any]) -> str:
    """The system message that offers tools, as Qwen's own templates write it."""
    lines = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{lines}\n</tools>\n\n"
        f"For each function call, return a json object with function name and arguments within {CALL}{END_CALL} XML tags:\n"
        f'{CALL}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{END_CALL}'
    )


def observation(*parts: str | Picture) -> Message:
    """The tool's reply as the next user turn."""
    return Message.user(RESPONSE, *parts, END_RESPONSE)
