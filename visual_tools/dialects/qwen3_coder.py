"""The XML calls of Qwen3-Coder, which Qwen3.5 writes: the names of `hermes`, each parameter in a tag of its own.

    <tool_call>
    <function=image_zoom_in_tool>
    <parameter=bbox_2d>
    [100, 200, 300, 400]
    </parameter>
    </function>
    </tool_call>

Values have no types on the wire: text is taken as it stands where our tools want text, everything else is read as JSON where it
is JSON. One line break after and before a tag belongs to the tag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .base import Call
from .hermes import CALL, END_CALL, Hermes
from .scan import Malformed, decode, encode, plain

FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
_TEXT = ("label", "text", "direction")
"""Parameters that are text, whatever it looks like."""


class Qwen3Coder(Hermes):
    """XML calls in tags; all but the form of a call is Hermes."""

    def _read_block(self, block: str) -> Call:
        block = block.strip()
        if not block.startswith(FUNCTION):
            raise Malformed(f"the call must be {FUNCTION}NAME>, its parameters, and {END_FUNCTION}")
        name, closed, rest = block[len(FUNCTION) :].partition(">")
        name = plain(name.strip())
        end = rest.rfind(END_FUNCTION)
        if not closed or end < 0:
            raise Malformed(f"the function is not closed with {END_FUNCTION}")
        return self._canonical(name, _parameters(rest[:end], name))

    def _write_block(self, name: str, arguments: Mapping[str, Any]) -> str:
        lines = [f"{PARAMETER}{key}>\n{_written(name, key, value)}\n{END_PARAMETER}" for key, value in arguments.items()]
        return "\n".join([CALL, f"{FUNCTION}{name}>", *lines, END_FUNCTION, END_CALL])

    def _offer(self, schemas: Sequence[Mapping[str, Any]]) -> str:
        lines = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
        return (
            f"# Tools\n\nThese functions can be called:\n<tools>\n{lines}\n</tools>\n\n"
            "Write a call like this, one parameter after the other, lists and numbers as JSON:\n"
            f"{CALL}\n{FUNCTION}name>\n{PARAMETER}first>\nvalue\n{END_PARAMETER}\n{END_FUNCTION}\n{END_CALL}"
        )


def _parameters(text: str, function: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    end = 0
    while (start := text.find(PARAMETER, end)) >= 0:
        name_end = text.find(">", start)
        end = text.find(END_PARAMETER, name_end)
        if name_end < 0 or end < 0:
            raise Malformed(f"a parameter is not closed with {END_PARAMETER}", function)
        name = plain(text[start + len(PARAMETER) : name_end].strip())
        found[name] = _value(name, text[name_end + 1 : end].removeprefix("\n").removesuffix("\n"))
        end += len(END_PARAMETER)
    return found


def _value(name: str, text: str) -> Any:
    if name in _TEXT:
        return plain(text)
    try:
        return decode(text)
    except Malformed:
        return plain(text)


def _written(function: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        return encode(value)
    text = value if name in _TEXT or _value(name, value) == value else encode(value)
    if any(tag in text for tag in (END_PARAMETER, END_FUNCTION, END_CALL)):
        raise ValueError(f"qwen3_coder: the {name} of {function} has a closing tag in it: {value[:80]!r}")
    return text


QWEN3_CODER = Qwen3Coder("qwen3_coder", break_lines=True)
