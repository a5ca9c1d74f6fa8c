"""The tools of a run behind one door: action text in, observation out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..vlm.images import Picture
from ..vlm.messages import Message
from .boxes import read_box
from .dialects import hermes
from .zoom import ZoomSettings, zoom


@dataclass(frozen=True)
class ZoomToolbox:
    """`image_zoom_in_tool` in the Hermes dialect. Holds no state, so that all rollouts share one.

    A wrong call is answered by a text that begins with "Error:" and says how to mend it; nothing here raises, and model text is
    only ever read as data.
    """

    settings: ZoomSettings = field(default_factory=ZoomSettings)

    @property
    def system_prompt(self) -> str:
        """The system message that offers the tool."""
        return hermes.system_prompt(hermes.ZOOM_SCHEMA)

    def act(self, text: str, pictures: Sequence[Picture], seen_px: Sequence[tuple[int, int]]) -> Message | None:
        """The reply to the first call in ``text``, or None when there is none. See `vlm.rollout.Toolbox`."""
        call = hermes.find_call(text)
        if call is None:
            return None
        result = call.reason if isinstance(call, hermes.BadCall) else self._run(call, pictures, seen_px)
        return hermes.observation(f"Error: {result}." if isinstance(result, str) else result)

    def _run(self, call: hermes.Call, pictures: Sequence[Picture], seen_px: Sequence[tuple[int, int]]) -> Picture | str:
        if call.name != hermes.ZOOM:
            return f"there is no tool {call.name[:40]!r}; the only one is {hermes.ZOOM}"
        box = read_box(hermes.box_argument(call.arguments))
        if isinstance(box, str):
            return box
        index = call.arguments.get("img_idx", 0)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(pictures):
            return (
                f"img_idx must be a whole number from 0 to {len(pictures) - 1}"
                if pictures
                else "there is no picture to zoom into"
            )
        return zoom(pictures[index], box, self.settings, seen_px[index])
