"""Videos as data files name them, and the frames of one as a sample holds them: a clip, or pictures behind their times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..vlm.frames import SlowFast, grid_tokens, slow_fast_parts, timed_parts
from ..vlm.images import Picture
from ..vlm.messages import Clip, Part
from ..vlm.video import VideoError, read_clip
from .raw_rows import RawRow, RowError
from .spec import DataSpec


def video_path(ref: Any, spec: DataSpec) -> Path:
    """The file behind a reference in a row: a path, or ``{"path": ...}``. `VideoError` says what was tried."""
    if isinstance(ref, Mapping):
        ref = ref.get("path") or ref.get("video")
    if not isinstance(ref, str) or not ref:
        raise VideoError(f"a video given as {type(ref).__name__} {str(ref)[:60]!r}; write it to a file and give its path")
    if ref.startswith(("http://", "https://")):
        raise VideoError(f"{ref[:120]}: videos are not fetched from the net; download them first and write their paths")
    base = Path(spec.video_dir).expanduser() if spec.video_dir else Path(str(spec.path)).expanduser().parent
    path = base / Path(ref.removeprefix("file://")).expanduser()
    if not path.is_file():
        raise VideoError(f"{path}: no such video; set data.video_dir to the folder that the paths in {spec.path} start from")
    return path


def with_video(raw: RawRow, images: tuple[Picture, ...], spec: DataSpec) -> tuple[Clip | None, tuple[Picture, ...], str]:
    """``(video, images, question)`` of a row under ``spec.video_plan``. Decodes the frames. `VideoError`, `RowError`."""
    if not raw.videos:
        return None, images, raw.question
    path = video_path(raw.videos[0], spec)
    clip = read_clip(path, spec.video_fps, spec.video_max_frames, max_pixels=spec.video_max_pixels)
    if spec.video_plan == "uniform":
        return clip, images, raw.question
    parts = timed_parts(clip, spec.video_timestamps) if spec.video_plan == "pictures" else _slow_fast(clip, spec)
    frames = tuple(part for part in parts if isinstance(part, Picture))
    written = "".join(part if isinstance(part, str) else "<image>" for part in parts)
    own = "" if "<image>" in raw.question else "<image>" * len(images)
    return None, (*frames, *images), f"{written}\n{own}{raw.question}"


def _slow_fast(clip: Clip, spec: DataSpec) -> tuple[Part, ...]:
    settings = SlowFast(budget_tokens=spec.video_budget_tokens)
    try:
        return slow_fast_parts(clip, grid_tokens(spec.video_token_px), settings, spec.video_timestamps)
    except ValueError as error:
        what, _, mend = str(error).partition("; ")
        raise RowError(what, f"{mend} (data.video_max_frames, data.video_budget_tokens)") from error
