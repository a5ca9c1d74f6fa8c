"""Video files to clips: which frames are kept, and when they were taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from .images import Picture
from .messages import Clip

Reader = Literal["av", "decord"]
_MIN_FRAMES = 4


class VideoError(ValueError):
    """A video that cannot be read. Names the file and how to mend it."""


def read_clip(path: str | os.PathLike[str], fps: float = 2.0, max_frames: int = 768, reader: Reader = "av") -> Clip:
    """The frames of a video file at about ``fps`` frames per second, at most ``max_frames``, evenly spread from first to last.

    ``reader`` "av" (PyAV) reads all common codecs; "decord" is faster on long H.264 files but knows no AV1. Raises `VideoError`.
    """
    if fps <= 0 or max_frames < 1:
        raise VideoError(f"{path}: fps and max_frames must be positive, got {fps} and {max_frames}")
    file = Path(path)
    if not file.is_file():
        raise VideoError(f"{file}: no such file; check the path and the video folder")
    if reader == "decord":
        return _read_decord(file, fps, max_frames)
    if reader == "av":
        return _read_av(file, fps, max_frames)
    raise VideoError(f"video reader {reader!r}: expected av or decord")


def frame_indices(total: int, source_fps: float, fps: float, max_frames: int) -> list[int]:
    """Which of ``total`` frames are kept: evenly spaced, first and last included, at least 4 where there are so many.

    >>> frame_indices(9, 8.0, 4.0, 100)
    [0, 3, 5, 8]
    """
    count = min(max(int(total / source_fps * fps), _MIN_FRAMES), max_frames, total)
    return [int(index) for index in np.linspace(0, total - 1, count).round()]


def _clip(file: Path, frames_HWC: Sequence[np.ndarray], times_s: Sequence[float]) -> Clip:
    if not frames_HWC:
        raise VideoError(f"{file}: no frame could be decoded; convert the file to H.264")
    return Clip(tuple(Picture.of(frame) for frame in frames_HWC), tuple(times_s))


def _read_av(file: Path, fps: float, max_frames: int) -> Clip:
    try:
        import av
    except ImportError as error:
        raise VideoError(f"{file}: reading videos needs PyAV; run: pip install av") from error
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise VideoError(f"{file}: holds no video stream")
            stream = container.streams.video[0]
            # the header's frame count may be missing or wrong: packets are counted without decoding
            total = sum(1 for packet in container.demux(stream) if packet.pts is not None)
            source_fps = float(stream.average_rate or stream.guessed_rate or 0)
        if not total or not source_fps:
            raise VideoError(f"{file}: an empty video, or one without a frame rate; convert it to H.264 in MP4")
        wanted = frame_indices(total, source_fps, fps, max_frames)
        frames: list[np.ndarray] = []
        kept: list[int] = []
        chosen = set(wanted)
        with av.open(str(file)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for index, frame in enumerate(container.decode(video=0)):
                if index in chosen:
                    frames.append(frame.to_ndarray(format="rgb24"))
                    kept.append(index)
                if index >= wanted[-1]:
                    break
    except av.FFmpegError as error:
        raise VideoError(f"{file}: not a readable video ({error}); convert it to H.264 in MP4") from error
    return _clip(file, frames, [index / source_fps for index in kept])


def _read_decord(file: Path, fps: float, max_frames: int) -> Clip:
    try:
        import decord
    except ImportError as error:
        raise VideoError(f"{file}: the decord reader needs decord; run: pip install decord, or use reader='av'") from error
    try:
        video = decord.VideoReader(str(file))
        source_fps = float(video.get_avg_fps())
        indices = frame_indices(len(video), source_fps, fps, max_frames)
        frames = video.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"{file}: decord cannot read it; use reader='av', which knows more codecs") from error
    return _clip(file, list(frames), [index / source_fps for index in indices])
