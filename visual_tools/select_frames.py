"""Select frames of a video, by seconds or by frame numbers, and tell which frame number is at a second."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import pydantic

from ..vlm.messages import Clip
from ..vlm.records import Shown
from .base import Arguments, Done, Scene, Seconds, Tool, ToolError, Whole, listed
from .boxes import Coords
from .frames import check_times, first_clip, frames_at, last_s
from .pixels import decoded, fitted


class VideoArguments(Arguments):
    """Base of what tools for videos are told: without ``image`` they take the first video."""

    def source(self, shown: Shown) -> int:
        clip = first_clip(shown) if self.image is None else None
        return super().source(shown) if clip is None else clip


class SelectFramesArguments(VideoArguments):
    """What `SelectFrames` is told: seconds, or an interval of seconds or of frame numbers."""

    times_s: Annotated[list[Seconds], pydantic.BeforeValidator(listed), pydantic.Field(min_length=1, max_length=1000)] | None = (
        None
    )
    """The seconds to look at, one frame for each."""
    start_s: Seconds | None = None
    """First second of an interval; frames are spread evenly over it."""
    end_s: Seconds | None = None
    """Last second of the interval."""
    start_frame: Whole | None = None
    """First frame number of an interval, counted from 0."""
    end_frame: Whole | None = None
    """Last frame number of the interval."""
    count: Annotated[Whole, pydantic.Field(ge=1)] | None = None
    """How many frames of the interval."""
    frames: Annotated[list[Whole], pydantic.BeforeValidator(listed), pydantic.Field(min_length=1, max_length=1000)] | None = None
    """Which of the frames that the video showed, counted from 0."""

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> SelectFramesArguments:
        seconds, numbers = (self.start_s, self.end_s), (self.start_frame, self.end_frame)
        ways = [self.times_s is not None, seconds != (None, None), numbers != (None, None), self.frames is not None]
        if sum(ways) != 1 or (ways[1] and None in seconds) or (ways[2] and None in numbers):
            raise ValueError("either times_s, or start_s and end_s, or start_frame and end_frame is needed")
        return self


class SelectFrames(Tool):
    """Frames at full resolution (see `ToolSettings.max_pixels`), each after a line with its time."""

    name: ClassVar[str] = "select_frames"
    description: ClassVar[str] = "Show frames of the video at given times, or spread evenly over an interval."
    arguments: ClassVar[type[Arguments]] = SelectFramesArguments

    hidden: tuple[str, ...] = ("frames",)
    max_frames: int = pydantic.Field(default=8, ge=1)
    """Most frames of one call, and how many an interval gives when a call does not say."""
    exclude_ends: bool = False
    """The frames of an interval lie inside it, its ends (which the model has seen) left out."""

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return {"start_s": 0, "end_s": 4, "count": 4}, {"start_frame": 0, "end_frame": 4}, {"frames": [0, 1]}

    def run(self, arguments: SelectFramesArguments, scene: Scene) -> Done:
        clip, rate_fps = scene.clip(), scene.settings.frame_rate_fps
        times_s = self._times(arguments, clip, rate_fps)
        parts: list[str | Any] = []
        found = frames_at(clip, times_s)
        if not found:
            raise ToolError("the video has no frames there")
        for frame, time_s in found:
            numbered = arguments.start_frame is not None
            parts.append(f"Frame {round(time_s * rate_fps)} ({time_s:.1f} s): " if numbered else f"{time_s:.1f} s: ")
            parts.append(fitted(decoded(frame), scene.settings.max_pixels))
        return Done(tuple(parts), times_s=tuple(time_s for _, time_s in found))

    def _times(self, arguments: SelectFramesArguments, clip: Clip, rate_fps: float) -> list[float]:
        count = arguments.count or self.max_frames
        chosen = arguments.times_s or arguments.frames
        asked = count if chosen is None else len(chosen)
        if asked > self.max_frames:
            raise ToolError(f"{asked} frames are too many: at most {self.max_frames} in a call")
        if arguments.times_s is not None:
            check_times(clip, arguments.times_s)
            return list(arguments.times_s)
        if arguments.frames is not None:
            shown = len(clip.frames)
            if not all(0 <= number < shown for number in arguments.frames):
                raise ToolError(f"the video showed {shown} frames")
            return [clip.times_s[number] for number in arguments.frames]
        if arguments.start_frame is not None and arguments.end_frame is not None:
            last = math.floor(last_s(clip) * rate_fps)
            numbers = _spread(arguments.start_frame, arguments.end_frame, last, count, self.exclude_ends, "frame", 1.0)
            return [min(number / rate_fps, last_s(clip)) for number in dict.fromkeys(round(number) for number in numbers)]
        assert arguments.start_s is not None
        assert arguments.end_s is not None
        inset_s = (arguments.end_s - arguments.start_s) / (count + 1)
        return _spread(arguments.start_s, arguments.end_s, last_s(clip), count, self.exclude_ends, "second", inset_s)


def _spread(low: float, high: float, last: float, count: int, exclude_ends: bool, unit: str, inset: float) -> list[float]:
    """``count`` values from ``low`` to ``high``, evenly; one value is the middle. Raises `ToolError`."""
    if not (0 <= low < high and low <= last):
        raise ToolError(f"there is nothing from {unit} {low:g} to {high:g}: the start comes first, and the last is {last:g}")
    high = min(high, last)
    if exclude_ends and high - low > 2 * inset:
        low, high = low + inset, high - inset
    return [(low + high) / 2] if count == 1 else [float(value) for value in np.linspace(low, high, count)]


class FrameAtArguments(VideoArguments):
    """What `FrameAt` is told."""

    time_s: Seconds
    """The second."""


class FrameAt(Tool):
    """Says a frame's number, counted at `ToolSettings.frame_rate_fps`."""

    name: ClassVar[str] = "frame_at"
    description: ClassVar[str] = "Tell the number of the frame at a time of the video."
    arguments: ClassVar[type[Arguments]] = FrameAtArguments

    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        return ({"time_s": 4},)

    def run(self, arguments: FrameAtArguments, scene: Scene) -> Done:
        check_times(scene.clip(), (arguments.time_s,))
        number = round(arguments.time_s * scene.settings.frame_rate_fps)
        return Done((f"The frame at {arguments.time_s:g} s is frame {number}.",), times_s=(arguments.time_s,))
