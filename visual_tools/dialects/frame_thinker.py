"""FrameThinker (2509.24304): video. ``<think>..</think><action>..</action>`` with one of three actions: ``choose frames between
S and E`` (numbers of frames, 8 of them are shown), ``get frame number at time MM:SS``, ``output answer: X``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...vlm.messages import Message, Part
from ...vlm.records import Shown
from ..boxes import Coords
from .base import Call, Reading, Result, ToolSpec
from .scan import Malformed, blocks, calls_in, plain
from .wire import cannot_write, offered, parts_of

OPEN, CLOSE = "<action>", "</action>"
_ANSWER = "output answer:"
_CHOOSE = re.compile(r"choose frames between\s+([0-9]{1,9})\s+and\s+([0-9]{1,9})\.?")
_TIME = re.compile(r"get frame number at time\s+(?:([0-9]{1,3}):)?([0-9]{1,3}):([0-9]{2})\.?")
_OFFERS = {
    "select_frames": "`choose frames between START and END`: see {count} frames between two frame numbers.",
    "frame_at": "`get frame number at time MM:SS`: the number of the frame at a time; for an hour and a half write 90:00.",
}


@dataclass(frozen=True)
class FrameThinker:
    """Actions in words. ``count``: frames that one choice shows (the original: 8; 12 for videos of more than 300 s)."""

    name: str = "frame_thinker"
    coords: Coords | None = None
    count: int = 8

    def read(self, text: str) -> Reading:
        """See `base.Dialect`. An action that answers has no calls."""
        for block in blocks(text, OPEN, CLOSE):
            if block is not None and block.strip().startswith(_ANSWER):
                return Reading(answer=plain(block.strip().removeprefix(_ANSWER).strip()))
        return Reading(calls_in(blocks(text, OPEN, CLOSE), CLOSE, self._read_block))

    def write(self, calls: Sequence[Call], thought: str = "") -> str:
        """See `base.Dialect`. One call a turn."""
        if len(calls) != 1:
            raise ValueError(f"the dialect {self.name} writes one call a turn, got {len(calls)}")
        return f"<think>{thought}</think>{OPEN}{self._words(calls[0])}{CLOSE}"

    def write_answer(self, answer: str, thought: str = "") -> str:
        """See `base.Dialect`."""
        return f"<think>{thought}</think>{OPEN}{_ANSWER} {answer}{CLOSE}"

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """See `base.Dialect`. Raises `ValueError` for a tool other than select_frames and frame_at."""
        offers = [offer.format(count=self.count) for offer in offered(self.name, tools, _OFFERS)]
        lines = "\n".join(f"- {offer}" for offer in [*offers, f"`{_ANSWER} X`: the final answer."])
        return (
            "Answer the question about the video in steps. Each step is one thought in <think> and </think>, then one action in "
            f"{OPEN} and {CLOSE}:\n{lines}"
        )

    def observation(self, results: Sequence[Result], shown: Shown) -> Message:
        """See `base.Dialect`: what the tools gave, a line each."""
        parts: list[Part] = []
        for result in results:
            for part in parts_of(result):
                parts += [part, "\n"]
        return Message.user(*parts[:-1])

    def _read_block(self, block: str) -> Call:
        words = block.strip()
        if found := _CHOOSE.fullmatch(words):
            start, end = int(found[1]), int(found[2])
            return Call("select_frames", {"start_frame": start, "end_frame": end, "count": self.count})
        if found := _TIME.fullmatch(words):
            return Call("frame_at", {"time_s": 3600 * int(found[1] or 0) + 60 * int(found[2]) + int(found[3])})
        raise Malformed(
            'an action is "choose frames between START and END", "get frame number at time MM:SS" or "output answer: X"'
        )

    def _words(self, call: Call) -> str:
        given: dict[str, Any] = {"count": self.count, **call.arguments}
        if call.name == "select_frames" and given.keys() == {"start_frame", "end_frame", "count"}:
            if given["count"] != self.count:
                raise cannot_write(self.name, call, f"its count is always {self.count}")
            return f"choose frames between {given['start_frame']} and {given['end_frame']}"
        if call.name == "frame_at" and call.arguments.keys() == {"time_s"} and call.arguments["time_s"] == int(given["time_s"]):
            minutes, seconds = divmod(int(given["time_s"]), 60)
            return f"get frame number at time {minutes:02}:{seconds:02}"
        raise cannot_write(
            self.name, call, "it has select_frames with start_frame and end_frame, and frame_at with a time_s in whole seconds"
        )


FRAME_THINKER = FrameThinker()
