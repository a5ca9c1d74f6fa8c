"""What is asked about: an uploaded photo or video, checked before it is decoded, or a synthetic scene drawn on the fly."""

from __future__ import annotations

import os
import random
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..datasets.scenes import scene, split_seeds
from ..play import VIDEOS, open_visual
from ..vlm.images import Picture
from ..vlm.messages import Clip
from .limits import DemoError, Limits

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Formats that Pillow hands to other programs (EPS) are not among them."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
WORLDS: Mapping[str, str] = {
    "place": "place: tiny letters, one has to zoom",
    "detail": "detail: letters that can partly be read",
    "place_crowd": "place_crowd: more shapes, never trained on",
    "place_dense": "place_dense: a finer raster, never trained on",
}
"""The worlds that the embedded model is shown, with what to expect."""


@dataclass(frozen=True)
class Source:
    """A picture or a video to ask about. ``path`` is an upload's file, ``scene`` a world and a seed; one of them is given.

    ``name`` is the file name as the visitor knows it. ``answers`` maps the questions that a scene can answer to their answers.
    """

    name: str
    size_px: tuple[int, int]
    path: str | None = None
    scene: tuple[str, int] | None = None
    duration_s: float | None = None
    answers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_video(self) -> bool:
        return self.duration_s is not None

    def visual(self, frames: int) -> Picture | Clip:
        """The picture, or a clip of ``frames`` frames. Raises `DemoError` when it is gone or cannot be read."""
        if self.scene is not None:
            return scene(*self.scene).picture()
        assert self.path is not None
        try:
            return open_visual(Path(self.path), frames)
        except (ValueError, OSError) as error:
            raise DemoError(_unreadable(self.name, self.path, error)) from error


def draw_scene(world: str, seed: int | None = None) -> Source:
    """A scene of the test split, on which no model was trained; a random one without a number (``seed``). Raises `DemoError`."""
    if world not in WORLDS:
        raise DemoError(f"There is no world {world[:40]!r}; there are {', '.join(WORLDS)}.")
    seeds = split_seeds("test")
    number = random.randrange(len(seeds)) if seed is None else seed
    if not 0 <= number < len(seeds):
        raise DemoError(f"Scenes are numbered from 0 to {len(seeds) - 1:,}, got {number}.")
    drawn = scene(world, seeds[number])
    side_px = drawn.world.canvas_px
    asked = [*drawn.samples(("letter",), 8), *drawn.samples(("where",), 8)]
    return Source(
        f"{world}-{number}.png", (side_px, side_px), scene=(world, drawn.seed),
        answers={one.question: one.answer for one in asked if one.answer is not None},
    )  # fmt: skip


def open_upload(path: str, limits: Limits, folder: Path) -> Source:
    """An uploaded file, checked: it lies in ``folder``, and its size, pixels and seconds are within the limits. `DemoError`."""
    file = Path(path).resolve()
    name = file.name[-80:]
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise DemoError(f"{name} was not uploaded here. Upload it first.")
    limits.check_bytes(file.stat().st_size, name)
    if file.suffix.lower() in VIDEOS:
        return _video(file, name, limits)
    return _picture(file, name, limits)


def _picture(file: Path, name: str, limits: Limits) -> Source:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower, or chosen by whoever serves
            with Image.open(file, formats=PICTURE_FORMATS) as image:
                limits.check_pixels(image.size, name)
    except Image.DecompressionBombError:
        limits.check_pixels(_png_size(file) or (1 << 20, 1 << 20), name)
        raise DemoError(f"{name} has more pixels than Pillow opens; make it smaller.") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DemoError):
            raise
        raise DemoError(
            f"{name} is not a picture that can be read here, whatever its name says. Upload PNG, JPEG, WebP, GIF, BMP or TIFF, "
            f"or a video ({', '.join(one.removeprefix('.') for one in VIDEOS)})."
        ) from error
    source = Source(name, (0, 0), path=str(file))
    found = source.visual(1)  # decoded once, so that a file that is cut short is refused now
    assert isinstance(found, Picture)
    return Source(name, found.size_px, path=str(file))


def _png_size(file: Path) -> tuple[int, int] | None:
    """Width and height in a PNG's header, for pictures that Pillow refuses to open at all."""
    with file.open("rb") as stream:
        head = stream.read(24)
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    width, height = struct.unpack(">II", head[16:24])
    return int(width), int(height)


def _video(file: Path, name: str, limits: Limits) -> Source:
    import av

    from ..vlm.video import open_video

    try:
        with av.open(str(file), metadata_errors="replace") as container:  # the header alone: nothing is decoded yet
            if not container.streams.video:
                raise DemoError(f"{name} holds no video. Upload another file, or a picture.")
            told = container.streams.video[0].codec_context
            limits.check_pixels((told.width, told.height), name, video=True)
            if container.duration:
                limits.check_seconds(container.duration / 1e6, name)
        video = open_video(file)
        limits.check_seconds(video.duration_s, name)
        limits.check_pixels((video.width_px, video.height_px), name, video=True)
    except (av.FFmpegError, ValueError, OSError) as error:
        if isinstance(error, DemoError):
            raise
        raise DemoError(_unreadable(name, str(file), error)) from error
    return Source(name, (video.width_px, video.height_px), path=str(file), duration_s=video.duration_s)


def _unreadable(name: str, path: str, error: Exception) -> str:
    """What is wrong with a file, without telling where it lies here."""
    said = str(error).replace(f"{path}: ", "").replace(path, name).replace(os.path.dirname(path), "")
    return f"{name} cannot be read: {said[:300]}."


def fetch(address: str, limits: Limits, folder: Path) -> Path:
    """Download a picture into ``folder``, from public addresses only. `DemoError` for anything else, or when it is too large."""
    import asyncio

    return asyncio.run(_fetch(address.strip(), limits, folder))


async def _fetch(address: str, limits: Limits, folder: Path) -> Path:
    import httpx
    from safehttpx import AsyncSecureTransport, async_validate_url

    name = Path(httpx.URL(address).path).name[-60:] if len(address) < 2000 else ""
    if not address.startswith(("http://", "https://")) or Path(name).suffix.lower() not in PICTURES:
        raise DemoError(
            f"Give the address of a picture, such as https://example.org/photo.jpg (ending in {', '.join(PICTURES)})."
        )
    host = httpx.URL(address).host
    target = folder / f"fetched-{random.randrange(1 << 60):x}" / name
    try:
        transport = AsyncSecureTransport(await async_validate_url(host))
        async with httpx.AsyncClient(transport=transport, timeout=20) as client, client.stream("GET", address) as reply:
            if reply.status_code != 200:
                raise DemoError(
                    f"{host} answers with HTTP {reply.status_code}; redirections are not followed. Give its final address."
                )
            target.parent.mkdir(parents=True)
            with target.open("wb") as file:
                async for piece in reply.aiter_bytes():
                    file.write(piece)
                    limits.check_bytes(file.tell(), name)
    except (httpx.HTTPError, ValueError, OSError) as error:
        target.unlink(missing_ok=True)
        if isinstance(error, DemoError):
            raise
        raise DemoError(f"{address} cannot be fetched ({type(error).__name__}). Only public addresses are asked.") from error
    return target
