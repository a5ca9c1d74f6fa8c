"""A question as it is put to a model: in which way, with which view, tools and budgets. The prompts are those of `eval.modes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..datasets.crops import checked_box
from ..eval.modes import mode, view_of
from ..eval.records import Item, Mode
from ..vlm.messages import Clip
from ..vlm.records import Box, Privileged, Sample, View
from .limits import DemoError
from .sources import Source

WAYS: Mapping[str, tuple[str, str]] = {
    "direct": ("Direct", "answer from the whole picture"),
    "imagine": ("Imagine", "describe a closer look in words, then answer; nothing is really zoomed"),
    "tools": ("Tools", "zoom in with a tool, look at what it shows, then answer"),
    "evidence": ("Evidence box", "see only the part of the picture that you mark with a box"),
}
"""How a model can be asked: a name and what it means."""
VIDEO_TOOLS = ("select_frames", "zoom")
SAMPLE_ID = "own"  # as in `play.play`: a rollout's random numbers come from it


@dataclass(frozen=True)
class Ask:
    """One question. ``box_px_xyxy`` (pixels of the picture) is what the way "evidence" shows. ``frames`` of a video are shown."""

    source: Source
    question: str
    way: str
    box_px_xyxy: Box | None = None
    frames: int = 8
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise DemoError(f"There is no way {self.way[:40]!r} to ask; there are {', '.join(WAYS)}.")
        if self.way == "evidence":
            if self.source.is_video:
                raise DemoError("A box can be drawn on a picture only; choose another way to ask about a video.")
            if self.box_px_xyxy is None:
                raise DemoError("Mark the evidence first: click two opposite corners of a box on the picture.")

    def mode(self, tiny: bool) -> Mode:
        """The evaluation mode behind it; ``tiny``: in the few words that the embedded model knows."""
        changes: dict[str, Any] = {"temperature": self.temperature, "official_tail": False}
        if self.way == "tools" and self.source.is_video:
            changes["tools"] = {"tools": list(VIDEO_TOOLS)}
        return mode("crop" if self.way == "evidence" else self.way, tiny, **changes)

    def sample(self) -> Sample:
        """What is asked about, with the marked box as its evidence. `DemoError` for a box outside the picture."""
        visual = self.source.visual(self.frames)
        if isinstance(visual, Clip):
            return Sample(id=SAMPLE_ID, question=self.question, video=visual)
        boxes: tuple[Box, ...] = ()
        if self.way == "evidence":
            assert self.box_px_xyxy is not None
            try:
                boxes = (checked_box(self.box_px_xyxy, *visual.size_px, "evidence"),)
            except ValueError as error:
                raise DemoError(f"The box does not fit the picture: {error}.") from error
        return Sample(id=SAMPLE_ID, question=self.question, images=(visual,), privileged=Privileged(boxes_px_xyxy=boxes))

    def view(self, sample: Sample, asked: Mode, offered: str | None) -> View:
        """What the model is shown; ``offered`` is the system prompt that offers the tools."""
        return view_of(Item(sample), asked, tools_prompt=offered)


def read_box(text: str) -> Box | None:
    """``x1, y1, x2, y2`` in pixels, as written in the box's own field; None when it is empty. Raises `DemoError`.

    >>> read_box("40, 10, 20, 30")
    (20.0, 10.0, 40.0, 30.0)
    """
    pieces = text.replace(";", ",").split(",") if text.strip() else []
    if not pieces:
        return None
    try:
        x1, y1, x2, y2 = (float(piece) for piece in pieces)
    except ValueError:
        raise DemoError(f"A box is four numbers, x1, y1, x2, y2 in pixels, such as 10, 20, 110, 90; got {text[:60]!r}.") from None
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def box_text(corners: tuple[tuple[float, float], ...], size_px: tuple[int, int]) -> str:
    """The box between two clicked corners in pixels, as `read_box` reads it.

    >>> box_text(((40.0, 10.0), (20.4, 30.0)), (100, 100))
    '20, 10, 40, 30'
    """
    xs, ys = zip(*corners, strict=True)
    box = (max(0, min(xs)), max(0, min(ys)), min(size_px[0], max(xs)), min(size_px[1], max(ys)))
    return ", ".join(str(round(value)) for value in box)
