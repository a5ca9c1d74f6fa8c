"""Frames of a video at given seconds, from the whole video where it is at hand, else among the frames that were kept."""

from __future__ import annotations

from collections.abc import Sequence

from ..vlm.images import Picture
from ..vlm.messages import Clip
from ..vlm.records import Shown
from .base import ToolError


def first_clip(shown: Shown) -> int | None:
    """Index of the first video, or None."""
    return next((index for index, visual in enumerate(shown.visuals) if isinstance(visual, Clip)), None)


def last_s(clip: Clip) -> float:
    """Second of the last frame that can be had."""
    return clip.times_s[-1] if clip.source is None else clip.source.duration_s


def check_times(clip: Clip, times_s: Sequence[float]) -> None:
    """Raises `ToolError` for a second that the video does not have."""
    for time_s in times_s:
        if not 0 <= time_s <= last_s(clip):
            raise ToolError(f"second {time_s:g} is not in the video, which goes from 0 to {last_s(clip):g} seconds")


def frames_at(clip: Clip, times_s: Sequence[float]) -> list[tuple[Picture, float]]:
    """The frames nearest to these seconds, each once, with their own times. Raises `ToolError` when they cannot be read."""
    if clip.source is None:
        found = [min(zip(clip.frames, clip.times_s, strict=True), key=lambda own: abs(own[1] - time_s)) for time_s in times_s]
    else:
        try:
            frames = clip.source.frames_at(times_s)
        except (ValueError, OSError) as error:
            raise ToolError("these frames of the video cannot be read", str(error)) from error
        found = list(zip(frames.frames, frames.times_s, strict=True))
    return list({time_s: (frame, time_s) for frame, time_s in found}.values())
