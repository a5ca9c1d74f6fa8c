"""Clips that stay in their file until their frames are asked for, and where a benchmark's videos lie on disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from ..datasets.raw_rows import RowError
from ..vlm.images import Picture
from ..vlm.messages import Clip, VideoSource
from ..vlm.video import read_clip
from .readers import Row

SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
_BELOW = ("", "data", "video", "videos")
_How = tuple[Path, float, int, int | None]
_HELD_BYTES = 1 << 30
_held: OrderedDict[_How, Clip] = OrderedDict()
_holding = threading.Lock()


class LazyClip(Clip):
    """A `Clip` that is decoded when its frames or times are asked for, as `vlm.video.read_clip` does it.

    Known by its file and how it is read. Frames are kept in a cache of 1 GB for all clips, the least recently used ones go first.
    Raises `VideoError` when they are asked for, not before.
    """

    def __init__(self, path: Path, fps: float, max_frames: int, max_pixels: int | None) -> None:
        self.__dict__["_how"] = (path, fps, max_frames, max_pixels)

    @property
    def _read(self) -> Clip:
        how = self.__dict__["_how"]
        with _holding:
            if how in _held:
                _held.move_to_end(how)
                return _held[how]
        path, fps, max_frames, max_pixels = how
        clip = read_clip(path, fps, max_frames, max_pixels=max_pixels)
        with _holding:
            _held[how] = clip
            size = sum(_num_bytes(one) for one in _held.values())
            while size > _HELD_BYTES and len(_held) > 1:
                size -= _num_bytes(_held.popitem(last=False)[1])
        return clip

    @property
    def frames(self) -> tuple[Picture, ...]:
        return self._read.frames

    @property
    def times_s(self) -> tuple[float, ...]:
        return self._read.times_s

    @property
    def source(self) -> VideoSource | None:
        return self._read.source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyClip) and bool(self.__dict__["_how"] == other.__dict__["_how"])

    def __hash__(self) -> int:
        return hash(self.__dict__["_how"])

    def __repr__(self) -> str:
        return f"LazyClip({self.__dict__['_how'][0]})"


def _num_bytes(clip: Clip) -> int:
    return sum(3 * frame.width_px * frame.height_px for frame in clip.frames)


def video_file(row: Row, name: str) -> Path:
    """The file of a video that a row names, with or without its suffix: beside the rows' file or one folder up, there or in
    ``data/``, ``video/`` or ``videos/``. `RowError` names what is missing."""
    own = Path(name.removeprefix("./"))
    names = [own] if own.suffix in SUFFIXES else [own.with_name(own.name + suffix) for suffix in SUFFIXES]
    folder = row.rows.folder
    for base in (folder, folder.parent):
        for below in _BELOW:
            found = next((base / below / one for one in names if (base / below / one).is_file()), None)
            if found is not None:
                return found
    raise RowError(
        f"{row.place}: no video {names[0]}",
        f"extract the archives of videos into {folder / 'videos'} (looked there, in data and video, and one folder up)",
    )
