"""The tools by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from .base import Tool
from .draw_box import DrawBox
from .draw_label import DrawLabel
from .draw_line import DrawLine
from .draw_point import DrawPoint
from .enhance import Enhance
from .flip import Flip
from .rotate import Rotate
from .select_frames import FrameAt, SelectFrames
from .zoom import Zoom

TOOLS: Mapping[str, type[Tool]] = {
    tool.name: tool for tool in (Zoom, Rotate, Flip, DrawBox, DrawLine, DrawPoint, DrawLabel, Enhance, SelectFrames, FrameAt)
}


def tool_class(name: str) -> type[Tool]:
    """The tool of this name. `ValueError` with a did-you-mean when there is none."""
    if name not in TOOLS:
        raise ValueError(f"no tool named {name!r}; {near_or_all(name, TOOLS)}")
    return TOOLS[name]


def near_or_all(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: what was meant, or what there is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 2, 0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
