"""ViLaSR (2506.09965): drawing. A turn is a thought, ``Action: Object Mapper`` or ``Action: Path Tracer``, and a fence of JSON:
a list of ``{"bbox_2d", "label"}`` or of ``{"start_point_2d", "end_point_2d", "label"}``; the last is ``Action: Answer``.

Where there are several pictures each entry has an ``index``, from 1. Coordinates are the model family's (the original: pixels of
the resized picture, Qwen2.5-VL's). Boxes that are drawn again under their label replace the old ones; this is the tool's work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...vlm.messages import Message, Part
from ...vlm.records import Shown
from ..boxes import Coords
from .base import BadCall, Call, Reading, Result, ToolSpec
from .hermes import END_FENCE, FENCE
from .scan import Malformed, blocks, decode, encode, plain
from .wire import COORDINATES, Pictures, cannot_write, check_coords, offered, parts_of, renamed, tagged_answer

ANSWER, MAPPER, TRACER = "Action: Answer", "Action: Object Mapper", "Action: Path Tracer"
_BOX = {"bbox_2d": "box"}
_LINE = {"start_point_2d": "start", "end_point_2d": "end"}
_PICTURES = Pictures(first=1)
_OFFERS = {
    "draw_box": f'- {MAPPER}, which marks things: {FENCE}\n[{{"bbox_2d": [x1, y1, x2, y2], "label": "..."}}]\n{END_FENCE}',
    "draw_line": f"- {TRACER}, which draws ways from point to point: {FENCE}\n"
    f'[{{"start_point_2d": [x1, y1], "end_point_2d": [x2, y2], "label": "..."}}]\n{END_FENCE}',
}


@dataclass(frozen=True)
class ViLaSR:
    """Lists of boxes and lines in JSON fences."""

    name: str = "vilasr"
    coords: Coords | None = None

    def read(self, text: str) -> Reading:
        """See `base.Dialect`. An action that answers has no calls."""
        _, said, rest = text.rpartition(ANSWER)
        answer = next(blocks(rest, "<answer>", "</answer>"), None) if said else None
        if answer is not None:
            return Reading(answer=plain(answer.strip()))
        calls: list[Call | BadCall] = []
        for block in blocks(text, FENCE, END_FENCE):
            try:
                calls += _calls(block)
            except Malformed as error:
                calls.append(BadCall(str(error)))
        if not calls and (MAPPER in text or TRACER in text):
            return Reading((BadCall(f"an action must be followed by what it draws, a list in {FENCE} ... {END_FENCE}"),))
        return Reading(tuple(calls))

    def write(self, calls: Sequence[Call], thought: str = "") -> str:
        """See `base.Dialect`."""
        written = []
        for call in calls:
            check_coords(self.name, call, self.coords)
            action, items = self._items(call)
            written.append(f"{action}\n{FENCE}\n{encode(items)}\n{END_FENCE}")
        return f"<think>{thought}</think> " + "\n".join(written)

    def write_answer(self, answer: str, thought: str = "") -> str:
        """See `base.Dialect`."""
        return f"<think>{thought}</think> {ANSWER}\n{tagged_answer(answer)}"

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """See `base.Dialect`. Raises `ValueError` for a tool other than draw_box and draw_line."""
        offers = "\n".join(offered(self.name, tools, _OFFERS))
        return (
            "Solve the question about space step by step, and draw to check what you think. You can draw with:\n"
            f'{offers}\n\n{COORDINATES[self.coords or coords]} With several pictures, give each entry its "index", from 1.\n'
            f"A step is <think> what you think </think>, then one action and its list; you then see the drawing. The last step "
            f"is <think> what you think </think> {ANSWER}\n<answer> the final answer </answer>"
        )

    def observation(self, results: Sequence[Result], shown: Shown) -> Message:
        """See `base.Dialect`."""
        parts: list[Part] = []
        for result in results:
            for part in parts_of(result):
                parts += [part, "\n"]
        return Message.user(
            *parts, "Go on from here. Check what was drawn against what you meant, and correct it where it is off:"
        )

    def _items(self, call: Call) -> tuple[str, list[Any]]:
        given = dict(call.arguments)
        index = {"index": _PICTURES.write(call, self.name)} if given.pop("image", None) is not None else {}
        if call.name == "draw_box" and ("boxes" in given or "box" in given):
            items = given.pop("boxes", None) or [{key: given.pop(key) for key in ("box", "label") if key in given}]
            action, names = MAPPER, {"box": "bbox_2d"}
        elif call.name == "draw_line" and "lines" in given:
            action, names, items = TRACER, {"start": "start_point_2d", "end": "end_point_2d"}, given.pop("lines")
        else:
            raise cannot_write(self.name, call, "it has draw_box with boxes, and draw_line with lines")
        if given:
            raise cannot_write(self.name, call, f"it has no argument {', '.join(sorted(given))}")
        return action, [{**index, **renamed(item, names)} for item in items]


def _calls(block: str | None) -> list[Call]:
    """The entries of a fence, gathered by what is drawn and on which picture."""
    if block is None:
        raise Malformed(f"the list is not closed with {END_FENCE}")
    items = decode(block, "the list")
    found: dict[tuple[str, str], list[Any]] = {}
    images: dict[str, Any] = {}
    for item in items if isinstance(items, list) else [items]:
        if not isinstance(item, Mapping) or not (item.keys() >= _BOX.keys() or item.keys() >= _LINE.keys()):
            raise Malformed('each entry must be an object with "bbox_2d", or with "start_point_2d" and "end_point_2d"')
        kind, names = ("boxes", _BOX) if "bbox_2d" in item else ("lines", _LINE)
        index = encode(item.get("index"))
        images[index] = {} if item.get("index") is None else {"image": _PICTURES.read(item["index"])}
        given = renamed(item, names)
        given.pop("index", None)
        found.setdefault((kind, index), []).append(given)
    if not found:
        raise Malformed("the list is empty")
    tools = {"boxes": "draw_box", "lines": "draw_line"}
    return [Call(tools[kind], {kind: entries, **images[index]}) for (kind, index), entries in found.items()]


VILASR = ViLaSR()
