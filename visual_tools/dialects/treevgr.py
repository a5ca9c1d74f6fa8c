"""TreeVGR: boxes in the chain of thought, ``<box>[x1,y1,x2,y2]</box>``. They are boxes, not calls: nothing comes back.

The label is what the text says before a box, which only a person can tell; it stays empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..boxes import Coords
from .base import Reading, TextBox, ToolSpec
from .grit import Grit
from .scan import blocks, four_numbers, short
from .wire import ANSWER, COORDINATES, offered, tagged_answer

OPEN, CLOSE = "<box>", "</box>"


class TreeVGR(Grit):
    """Boxes in tags of their own; all but their form is GRIT."""

    def read(self, text: str) -> Reading:
        """See `base.Dialect`. What is not four numbers in brackets is left out."""
        found = []
        for block in blocks(text, OPEN, CLOSE):
            inner = (block or "").strip()
            box = four_numbers(inner[1:-1]) if inner.startswith("[") and inner.endswith("]") else None
            if box is not None:
                found.append(TextBox(box, "", self.coords))
        return Reading(boxes=tuple(found))

    def write_box(self, box: TextBox) -> str:
        """A box as it stands in a thought."""
        return f"{OPEN}[{','.join(map(str, short(box.box)))}]{CLOSE}"

    def write_answer(self, answer: str, thought: str = "") -> str:
        """See `base.Dialect`."""
        return tagged_answer(answer, thought)

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """See `base.Dialect`. Raises `ValueError` when there are tools to offer."""
        offered(self.name, tools, {})
        return (
            "Think in <think> and </think> first; behind everything that you name there and that matters, write where it is: "
            f"{OPEN}[x1,y1,x2,y2]{CLOSE}. {COORDINATES[self.coords or coords]} {ANSWER}"
        )


TREEVGR = TreeVGR("treevgr")
