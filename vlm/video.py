"""Video files: which frames are kept, when they were taken, and more of them on demand.

A file is gone through once without decoding; that tells the time of every frame, whatever the header says, so that variable
frame rates and files without a frame count are no special cases. Frames are then decoded from the nearest key frame, by decord
where it is installed and able, else by PyAV; both give the same frames, since both number them by their time.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from .images import Picture
from .messages import Clip

if TYPE_CHECKING:
    import av

Reader = Literal["auto", "av", "decord"]
_READERS = ("auto", "av", "decord")
_MIN_FRAMES = 4
_INDEXED_FILES = 256
_PRESENT_FRAC = 0.9  # a file that holds less of what its header promises was cut short; headers are off by a few frames at most
_ENDS_BYTES = 1 << 20
_CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


class VideoError(ValueError):
    """A video that cannot be read. Names the file and how to mend it."""


@dataclass(frozen=True)
class VideoFile:
    """A video file that frames can be had from; a `VideoSource`. Make one with `open_video`.

    Known by its path, size and time of change; every call opens a decoder of its own, so that threads may share one. Times count
    from the first frame. ``fps`` is the mean rate, ``duration_s`` the second of the last frame, ``width_px`` and ``height_px``
    are those of a frame as it is shown (turned as the file says).
    """

    path: str
    size_bytes: int
    mtime_ns: int
    width_px: int
    height_px: int
    fps: float
    num_frames: int
    duration_s: float
    reader: Reader = "auto"

    def frames_at(self, times_s: Sequence[float]) -> Clip:
        """The frames nearest to these seconds, one for each, in this order, at full resolution. Raises `VideoError`."""
        if not times_s or not all(math.isfinite(time) for time in times_s):
            raise VideoError(f"{self.path}: frames are asked for by finite seconds, at least one; got {list(times_s)[:8]}")
        return self._clip(_nearest(self._index().times_s, times_s), None)

    def clip(self, fps: float = 2.0, max_frames: int = 768, max_pixels: int | None = None) -> Clip:
        """Frames evenly spread from first to last, as `read_clip` describes."""
        _check_rate(self.path, fps, max_frames)
        numbers = frame_indices(self.num_frames, self.fps, fps, max_frames)
        times_s = self._index().times_s
        if any(abs(time - number / self.fps) > 0.5 / self.fps for number, time in enumerate(times_s)):
            spread = np.linspace(0.0, self.duration_s, len(numbers))  # the rate varies: evenly in time, not in number
            numbers = sorted(set(_nearest(times_s, [float(time) for time in spread])))
        return self._clip(numbers, max_pixels)

    def _index(self) -> _Index:
        size_bytes, mtime_ns = _stat(Path(self.path))
        if (size_bytes, mtime_ns) != (self.size_bytes, self.mtime_ns):
            raise VideoError(f"{self.path}: changed since it was opened; open it again")
        return _index(self.path, size_bytes, mtime_ns)

    def _clip(self, numbers: Sequence[int], max_pixels: int | None) -> Clip:
        index = self._index()
        wanted = sorted(set(numbers))
        found = _decord_frames(self, index, wanted, max_pixels) if self.reader != "av" else None
        pictures = found or _av_frames(self.path, index, wanted, max_pixels)
        return Clip(tuple(pictures[n] for n in numbers), tuple(index.times_s[n] for n in numbers), self)


def open_video(path: str | os.PathLike[str], reader: Reader = "auto") -> VideoFile:
    """A video file, its frames found and timed and none decoded. Raises `VideoError`.

    ``reader`` "auto" takes decord where it is installed and can read the file (no AV1; turned videos are left to PyAV), else
    PyAV; "av" takes PyAV alone; "decord" asks for decord and is an error where it is missing or fails.
    """
    if reader not in _READERS:
        raise VideoError(f"video reader {reader!r}: expected av or decord, or auto for the first that can")
    file = Path(path)
    size_bytes, mtime_ns = _stat(file)
    index = _index(str(file), size_bytes, mtime_ns)
    count, duration_s = len(index.times_s), index.times_s[-1]
    return VideoFile(str(file), size_bytes, mtime_ns, *index.size_px, index.fps, count, duration_s, reader)


def read_clip(
    path: str | os.PathLike[str],
    fps: float = 2.0,
    max_frames: int = 768,
    reader: Reader = "auto",
    max_pixels: int | None = None,
) -> Clip:
    """The frames of a video file at about ``fps`` frames per second, at most ``max_frames``, evenly spread from first to last.

    ``max_pixels`` bounds the area of the frames that are kept (None: as they are); further frames, and these at full resolution,
    come from the clip's ``source``. Raises `VideoError`.
    """
    _check_rate(os.fspath(path), fps, max_frames)  # said before the file is gone through
    return open_video(path, reader).clip(fps, max_frames, max_pixels)


def frame_indices(total: int, source_fps: float, fps: float, max_frames: int) -> list[int]:
    """Which of ``total`` frames are kept: evenly spaced, first and last included, at least 4 where there are so many.

    >>> frame_indices(9, 8.0, 4.0, 100)
    [0, 3, 5, 8]
    """
    count = min(max(int(total / source_fps * fps), _MIN_FRAMES), max_frames, total)
    return [int(index) for index in np.linspace(0, total - 1, count).round()]


def frame_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """``(width, height)`` in px of a frame as it is shown, from the head of the file alone. Raises `VideoError`."""
    file = Path(path)
    return _first_frame(str(file), *_stat(file))[0]


def fingerprint(path: str | os.PathLike[str]) -> str:
    """What tells one video file from another wherever it lies: its length and its first and last MiB, as a SHA-256."""
    size_bytes, _ = _stat(Path(path))
    digest = hashlib.sha256(f"{size_bytes}:".encode())
    with Path(path).open("rb") as stream:
        digest.update(stream.read(_ENDS_BYTES))
        stream.seek(max(0, size_bytes - _ENDS_BYTES))
        digest.update(stream.read(_ENDS_BYTES))
    return digest.hexdigest()


# ---- what is in a file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    """The frames of a file in the order in which they are shown. ``pts`` is empty where the file has no times of its own;
    ``keys`` are the times of key frames with the time to seek to for each. ``turns`` are quarter turns counter-clockwise."""

    times_s: tuple[float, ...]
    pts: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]
    fps: float
    turns: int
    size_px: tuple[int, int]


def _check_rate(path: str, fps: float, max_frames: int) -> None:
    if not fps > 0 or max_frames < 1:
        raise VideoError(f"{path}: fps and max_frames must be positive, got {fps} and {max_frames}")


def _stat(file: Path) -> tuple[int, int]:
    if not file.is_file():
        raise VideoError(f"{file}: no such file; check the path and the video folder")
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(_INDEXED_FILES)
def _index(path: str, size_bytes: int, mtime_ns: int) -> _Index:
    import av

    size_px, turns = _first_frame(path, size_bytes, mtime_ns)
    try:
        with _opened(path) as container:
            stream = _stream(container, path)
            found = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
            base = stream.time_base or Fraction(1)
            promised_s, rate = _promised_s(container, stream), Fraction(stream.average_rate or stream.guessed_rate or 0)
            keys = sorted((p.pts, p.pts if p.dts is None else p.dts) for p in found if p.is_keyframe and p.pts is not None)
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error
    pts = sorted(packet.pts for packet in found if packet.pts is not None)
    if len(set(pts)) < len(found):  # a raw stream, or one whose times are broken: only the order counts
        pts = []
        rate = rate or Fraction(25)
    elif len(pts) > 1:
        rate = (len(pts) - 1) / ((pts[-1] - pts[0]) * base)
    times_s = [float((time - pts[0]) * base) for time in pts] or [float(n / rate) for n in range(len(found))]
    if promised_s and times_s[-1] + 1 / float(rate or 1) < _PRESENT_FRAC * promised_s:
        held = f"the header promises {promised_s:.1f} s and {times_s[-1]:.1f} s are there"
        raise VideoError(f"{path}: cut short ({held}); copy or download it again")
    return _Index(tuple(times_s), tuple(pts), tuple(keys), float(rate or 1), turns, size_px)


def _opened(path: str) -> av.container.InputContainer:
    import av

    return av.open(path, metadata_errors="replace")


def _stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
    if not container.streams.video:
        raise VideoError(f"{path}: holds no video stream; check that it is the right file")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _promised_s(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """How many seconds of this stream the header speaks of; 0: none that can be held against it."""
    if stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    told = _CLOCK.fullmatch(stream.metadata.get("DURATION", ""))  # Matroska says it of each stream
    if told:
        return 3600 * float(told[1]) + 60 * float(told[2]) + float(told[3])
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else 0.0


@functools.lru_cache(65536)
def _first_frame(path: str, size_bytes: int, mtime_ns: int) -> tuple[tuple[int, int], int]:
    """Size as shown, and quarter turns counter-clockwise that the file asks for."""
    import av

    try:
        with _opened(path) as container:
            frame = next(container.decode(_stream(container, path)), None)
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error
    if frame is None:
        raise VideoError(f"{path}: no frame could be decoded; convert the file to H.264 in MP4")
    turns = round(frame.rotation / 90) % 4
    return (frame.height, frame.width) if turns % 2 else (frame.width, frame.height), turns


def _unreadable(path: str, error: Exception) -> VideoError:
    return VideoError(f"{path}: not a readable video ({error}); copy it again, or convert it to H.264 in MP4")


def _nearest(times_s: Sequence[float], asked_s: Sequence[float]) -> list[int]:
    """The number of the frame nearest to each second; of two equally near, the earlier."""
    found = []
    for time in asked_s:
        after = min(bisect.bisect_left(times_s, time), len(times_s) - 1)
        before = max(0, after - 1)
        found.append(before if time - times_s[before] <= times_s[after] - time else after)
    return found


# ---- decoding --------------------------------------------------------------------------------------------------------------


def _av_frames(path: str, index: _Index, wanted: Sequence[int], max_pixels: int | None) -> dict[int, Picture]:
    import av

    def keep(frame: av.VideoFrame) -> Picture:
        return _kept(np.rot90(frame.to_ndarray(format="rgb24"), index.turns), max_pixels)

    found: dict[int, Picture] = {}
    try:
        with _opened(path) as container:
            whole = _by_time(container, _stream(container, path), index, wanted, keep, found)
        if not whole:
            with _opened(path) as container:
                _by_order(container, _stream(container, path), wanted, keep, found)
    except av.FFmpegError as error:
        raise _unreadable(path, error) from error
    if len(found) < len(wanted):
        raise VideoError(f"{path}: frame {wanted[-1]} cannot be decoded, the file is cut short or damaged; copy it again")
    return found


def _by_time(
    container: av.container.InputContainer, stream: av.VideoStream, index: _Index, wanted: Sequence[int],
    keep: Callable[[av.VideoFrame], Picture], found: dict[int, Picture],
) -> bool:  # fmt: skip
    """Decode the wanted frames from the key frame before each; False where the decoder's times are not those of the file."""
    if not index.pts:
        return False
    frames, following = container.decode(stream), 0
    for number in wanted:
        pts = index.pts[number]
        place = bisect.bisect_right(index.keys, (pts, math.inf)) - 1
        if place > 0 and index.keys[place][0] > index.pts[following]:
            container.seek(index.keys[place][1], stream=stream, backward=True)
            frames = container.decode(stream)
        frame = next((frame for frame in frames if frame.pts is None or frame.pts >= pts), None)
        if frame is None or frame.pts != pts:
            return False
        found[number], following = keep(frame), number + 1
    return True


def _by_order(
    container: av.container.InputContainer, stream: av.VideoStream, wanted: Sequence[int],
    keep: Callable[[av.VideoFrame], Picture], found: dict[int, Picture],
) -> None:  # fmt: skip
    """Decode from the start and count."""
    chosen = set(wanted)
    for number, frame in enumerate(container.decode(stream)):
        if number in chosen:
            found[number] = keep(frame)
        if number >= wanted[-1]:
            return


def _decord_frames(
    file: VideoFile, index: _Index, wanted: Sequence[int], max_pixels: int | None
) -> dict[int, Picture] | None:  # fmt: skip
    """The wanted frames by decord; None where it is missing or unable and PyAV may be taken."""
    must = file.reader == "decord"
    try:
        import decord
    except (ImportError, OSError) as error:
        if must:
            raise VideoError(f"{file.path}: decord is not installed; run: pip install decord, or use reader='av'") from error
        return None
    if index.turns or not index.pts:
        return None  # turned videos, and those that can only be counted, are PyAV's
    try:
        video: Any = decord.VideoReader(file.path)
        if len(video) != file.num_frames:
            raise RuntimeError(f"{len(video)} frames where {file.num_frames} are")
        return {number: _kept(video[number].asnumpy(), max_pixels) for number in wanted}
    except (decord.DECORDError, RuntimeError, AssertionError) as error:
        if must:
            raise VideoError(f"{file.path}: decord cannot read it ({error}); use reader='av', which knows more codecs") from error
        return None


def _kept(frame_HWC: np.ndarray, max_pixels: int | None) -> Picture:
    """A frame as a picture, made smaller at once where it is larger than is wanted: many full frames do not fit in memory."""
    frame_HWC = np.ascontiguousarray(frame_HWC)
    height, width = frame_HWC.shape[:2]
    if max_pixels is None or height * width <= max_pixels:
        return Picture.of(frame_HWC)
    scale = math.sqrt(max_pixels / (height * width))
    size = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
    return Picture.of(cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA))
