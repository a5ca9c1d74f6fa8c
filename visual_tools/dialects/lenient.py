"""Every dialect is read, Hermes is written: for models whose habits are not known, and for scoring the output of others."""

from __future__ import annotations

from .base import Call, Dialect, Reading
from .code import CODE
from .frame_thinker import FRAME_THINKER
from .grit import GRIT
from .hermes import HERMES, Hermes
from .mini_o3 import MINI_O3
from .openthinkimg import OPENTHINKIMG
from .pixel_reasoner import PIXEL_REASONER
from .qwen3_coder import QWEN3_CODER
from .treevgr import TREEVGR
from .vilasr import VILASR

_READERS: tuple[tuple[Dialect, tuple[str, ...]], ...] = (
    (PIXEL_REASONER, ('"crop_image_normalized"', '"target_image"', '"target_frames"')),
    (QWEN3_CODER, ("<function=",)),
    (HERMES, ("<tool_call>", '"function"')),
    (MINI_O3, ("<grounding>",)),
    (FRAME_THINKER, ("<action>",)),
    (OPENTHINKIMG, ('"actions"',)),
    (VILASR, ("Action: ",)),
    (CODE, ("<code>",)),
)
"""Dialects and what tells them: none is tried where none of its marks is."""


class Lenient(Hermes):
    """The first dialect that finds a call or an answer in an action has read it; a bad call counts when there is no good one."""

    def read(self, text: str) -> Reading:
        """See `base.Dialect`. Boxes in the text are read where there is nothing else."""
        bad: Reading | None = None
        for dialect, marks in _READERS:
            if any(mark in text for mark in marks):
                found = dialect.read(text)
                if found.answer is not None or any(isinstance(call, Call) for call in found.calls):
                    return found
                if found.calls and bad is None:
                    bad = found
        return bad or Reading(boxes=GRIT.read(text).boxes + TREEVGR.read(text).boxes)


ANY = Lenient("any")
