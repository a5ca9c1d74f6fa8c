"""Code blocks of DeepEyesV2 and Thyme, ``<code>``, a fence of Python, ``</code>``: recognised, and never executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...vlm.messages import Message
from ...vlm.records import Shown
from ..boxes import Coords
from .base import BadCall, Call, Reading, Result, ToolSpec
from .scan import blocks
from .wire import ANSWER, cannot_write, offered, parts_of, tagged_answer

OPEN, CLOSE = "<code>", "</code>"
REASON = "code is not run here; look at the picture, reason in words and give the final answer in <answer> and </answer>"


@dataclass(frozen=True)
class Code:
    """Blocks of code, each answered by why it is not run."""

    name: str = "code"
    coords: Coords | None = None

    def read(self, text: str) -> Reading:
        """See `base.Dialect`. A block that is not closed is one too."""
        return Reading(tuple(BadCall(REASON, "code") for _ in blocks(text, OPEN, CLOSE)))

    def write(self, calls: Sequence[Call], thought: str = "") -> str:
        """Always a `ValueError`, unless there is no call."""
        if calls:
            raise cannot_write(self.name, calls[0], "it has blocks of code only, and none is run")
        return f"<think>{thought}</think>"

    def write_answer(self, answer: str, thought: str = "") -> str:
        """See `base.Dialect`."""
        return tagged_answer(answer, thought)

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """See `base.Dialect`. Raises `ValueError` when there are tools to offer."""
        offered(self.name, tools, {})
        return f"Think in <think> and </think>. Code is not run here. {ANSWER}"

    def observation(self, results: Sequence[Result], shown: Shown) -> Message:
        """See `base.Dialect`."""
        return Message.user(*(part for result in results for part in parts_of(result)))


CODE = Code()
