"""Mini-o3: ``<grounding>{"bbox_2d": [x0, y0, x1, y1], "source": "original_image"}</grounding>``, coordinates of 0 to 1.

The only tool is the zoom; ``source`` may also be ``observation_1`` and so on, what earlier calls have shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...vlm.messages import Message, Part
from ...vlm.records import Shown
from ..boxes import Coords
from .base import Call, Reading, Result, ToolSpec
from .scan import Malformed, blocks, calls_in, decode, encode
from .wire import COORDINATES, Pictures, Vocabulary, Wire, check_coords, parts_of, tagged_answer, thinking

OPEN, CLOSE = "<grounding>", "</grounding>"
_TOOL = "grounding"
_VOCABULARY = Vocabulary({_TOOL: Wire("zoom", {"bbox_2d": "box", "bbox": "box", "source": "image"})}, Pictures("source"))
_GO_ON = (
    f"Go on thinking in <think> and </think>. You may zoom again with {OPEN} and {CLOSE}, in the original image or in any "
    "observation; when you are sure, give the final answer in <answer> and </answer>."
)


@dataclass(frozen=True)
class MiniO3:
    """Zooms as JSON in grounding tags, observations by number."""

    name: str = "mini_o3"
    coords: Coords | None = "norm1"

    def read(self, text: str) -> Reading:
        """See `base.Dialect`."""
        return Reading(calls_in(blocks(text, OPEN, CLOSE), CLOSE, self._read_block))

    def write(self, calls: Sequence[Call], thought: str = "") -> str:
        """See `base.Dialect`. A call that names no picture is written with the original image."""
        written = []
        for call in calls:
            check_coords(self.name, call, self.coords)
            _, arguments = _VOCABULARY.write(call, self.name)
            written.append(f"{OPEN}{encode({'source': 'original_image', **arguments})}{CLOSE}")
        return thinking(thought) + "\n".join(written)

    def write_answer(self, answer: str, thought: str = "") -> str:
        """See `base.Dialect`."""
        return tagged_answer(answer, thought)

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """See `base.Dialect`. Raises `ValueError` for a tool other than zoom."""
        for spec in tools:
            _VOCABULARY.schema(spec, self.name)
        return (
            "Answer the question from the picture. Think in <think> and </think> first. Where something is too small to be sure "
            f'of, zoom in: write {OPEN}{{"bbox_2d": [x0, y0, x1, y1], "source": "original_image"}}{CLOSE}, with the top left and '
            'the bottom right corner of the region. The source may also be "observation_1" and so on, what earlier zooms have '
            f"shown. {COORDINATES['norm1']} When you are sure, give the final answer in <answer> and </answer>."
        )

    def observation(self, results: Sequence[Result], shown: Shown) -> Message:
        """See `base.Dialect`. Actions count from 0, observations from 1, over the whole rollout."""
        number = len(shown.visuals) - shown.num_prompt
        parts: list[Part] = []
        for result in results:
            for part in parts_of(result):
                if isinstance(part, str):
                    parts.append(f"{part}\n")
                    continue
                number += 1
                parts += [f"Action {shown.turn} gave this picture (Observation {number}):\n", part, "\n"]
        return Message.user(*parts, _GO_ON)

    def _read_block(self, block: str) -> Call:
        call = decode(block)
        if not isinstance(call, dict):
            raise Malformed('the call must be a JSON object with "bbox_2d" and "source"')
        return _VOCABULARY.read(_TOOL, call, self.coords)


MINI_O3 = MiniO3()
