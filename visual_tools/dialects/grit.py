"""GRIT (2505.15879): boxes in the chain of thought, as JSON with the key ``bbox_2d``. They are boxes, not calls.

Nothing comes back: a turn is ``<think>`` with boxes ``</think><rethink> ... </rethink><answer> ... </answer>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...vlm.messages import Message
from ...vlm.records import Shown
from ..boxes import Coords
from .base import Call, Reading, Result, TextBox, ToolSpec
from .scan import encode, four_numbers, leading_object, plain, short
from .wire import COORDINATES, cannot_write, offered, parts_of, tagged_answer

_KEY = re.compile(r"""bbox_2d["']?\s{0,9}:\s{0,9}\[""")
_LIST = re.compile(r"[\s,]*\[([^\[\]]*)\]")
_NEAR = 300
"""How far the object that a box belongs to may reach before and behind its key; characters."""


@dataclass(frozen=True)
class Grit:
    """Boxes as JSON inside the text."""

    name: str = "grit"
    coords: Coords | None = None

    def read(self, text: str) -> Reading:
        """See `base.Dialect`. A key may hold one box or a list of boxes; what is not four numbers is left out."""
        return Reading(boxes=tuple(_boxes(text, self.coords)))

    def write_box(self, box: TextBox) -> str:
        """A box as it stands in a thought."""
        return encode({"bbox_2d": short(box.box)} | ({"label": box.label} if box.label else {}))

    def write(self, calls: Sequence[Call], thought: str = "") -> str:
        """Always a `ValueError`, unless there is no call."""
        if calls:
            raise cannot_write(self.name, calls[0], "it has boxes in the text, and no calls")
        return f"<think>{thought}</think>"

    def write_answer(self, answer: str, thought: str = "") -> str:
        """See `base.Dialect`. With a thought the second one is left empty; without, there is the answer alone."""
        before = f"<think>{thought}</think><rethink></rethink>" if thought else ""
        return f"{before}{tagged_answer(answer)}"

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """See `base.Dialect`. Raises `ValueError` when there are tools to offer."""
        offered(self.name, tools, {})
        return (
            "Think in <think> and </think>; wherever a place in the picture matters, write its box there as JSON, "
            f'{{"bbox_2d": [x1, y1, x2, y2]}}. {COORDINATES[self.coords or coords]} Then think again in <rethink> and </rethink> '
            "with these boxes in mind, and give the final answer in <answer> and </answer>."
        )

    def observation(self, results: Sequence[Result], shown: Shown) -> Message:
        """See `base.Dialect`; there is nothing to answer in this dialect."""
        return Message.user(*(part for result in results for part in parts_of(result)))


def _boxes(text: str, coords: Coords | None) -> Iterator[TextBox]:
    for key in _KEY.finditer(text):
        numbers = []
        end = key.end()
        single = _LIST.match(text, end - 1)
        if single:
            numbers, end = [single[1]], single.end()
        else:
            while inner := _LIST.match(text, end):
                numbers.append(inner[1])
                end = inner.end()
        label = _label(text, key.start())
        for entry in numbers:
            box = four_numbers(entry)
            if box is not None:
                yield TextBox(box, label, coords)


def _label(text: str, start: int) -> str:
    """The label in the object that has its key ``bbox_2d`` at ``start``."""
    opening = text.rfind("{", max(0, start - _NEAR), start)
    found, length = leading_object(text[opening : start + _NEAR]) if opening >= 0 else ({}, 0)
    label = found.get("label") if opening + length > start else None
    return plain(label) if isinstance(label, str) else ""


GRIT = Grit()
