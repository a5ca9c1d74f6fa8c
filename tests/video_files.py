"""Small real video files for tests: frame ``n`` is of one grey, so that a mean tells which frame it is."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from foveate.vlm.images import Picture


def write_video(
    path: Path,
    frames_HWC: Sequence[np.ndarray],
    *,
    fps: int = 10,
    codec: str = "mpeg4",
    times_ms: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """The frames as a file; ``times_ms`` gives each its own time instead of an even rate."""
    import av

    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = frames_HWC[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames_HWC):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def greys(num_frames: int, step: int = 4, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frame n has grey ``step`` n."""
    return [np.full((height, width, 3), step * number, np.uint8) for number in range(num_frames)]


def numbers_of(frames: Sequence[Picture], step: int = 4) -> list[int]:
    """Which frames of `greys` these are."""
    return [round(float(np.asarray(frame.rgb(), np.float32).mean()) / step) for frame in frames]


def turned(path: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A copy of an MP4 whose track header asks players to turn it: ``matrix`` is its a, b, c, d."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target
