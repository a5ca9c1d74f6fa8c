"""Pictures by content, and the one place that decides how many pixels and tokens a picture gets.

Legend: H height, W width, C colour channels (3), P patches, D values of one patch.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

_DECODED_BYTES = 512 << 20
"""Memory for decoded pictures that can be decoded again; the least recently used ones go first."""


class PictureError(ValueError):
    """A picture that cannot be read or used. The message names the picture and how to mend it."""


@dataclass(frozen=True)
class Cut:
    """What a picture was cut out of: with the source at hand, `cut_out` makes the same pixels again.

    ``source`` is the key of the other picture, ``path`` its file (None: it has none), ``box_px`` the region as left, top, right
    and bottom in its pixels. The size of the result is that of the picture that was cut.
    """

    source: str
    path: str | None
    box_px: tuple[int, int, int, int]


@dataclass(frozen=True)
class Picture:
    """A picture, held once and known by its content.

    ``key`` is the SHA-256 of width, height and RGB bytes, so that the same pixels from two files, or from a tool, are the
    same picture: they are encoded once in a batch and stored once in a run folder.

    Make one with `Picture.open` (a file, kept on disk and decoded when needed), `Picture.of` (pixels in memory) or `Picture.cut`
    (pixels in memory that know where they came from).

    >>> Picture.of(np.zeros((2, 3, 3), np.uint8)).width_px
    3
    """

    key: str
    width_px: int = field(compare=False)
    height_px: int = field(compare=False)
    path: str | None = field(default=None, compare=False)
    _pixels: Image.Image | None = field(default=None, repr=False, compare=False)
    origin: Cut | None = field(default=None, repr=False, compare=False)
    _stamp: tuple[int, int] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Picture:
        """The picture in a file. Raises `PictureError` when it is missing or broken."""
        name = os.fspath(path)
        try:
            stat = os.stat(name)
        except OSError as error:
            raise PictureError(f"{name}: cannot be read ({error.strerror}); check the path and the image folder") from error
        return _opened(name, stat.st_mtime_ns, stat.st_size)

    @classmethod
    def of(cls, pixels: Image.Image | np.ndarray) -> Picture:
        """The picture with these pixels: a PIL image (any mode) or ``[H, W, 3]`` uint8."""
        image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
        image = to_rgb(image)
        made = cls(content_key(image), image.width, image.height, None, image)
        return _in_memory.setdefault(made.key, made)  # the crop that many rollouts ask for is held once

    @classmethod
    def cut(cls, source: Picture, box_px: tuple[int, int, int, int], size_px: tuple[int, int]) -> Picture:
        """A region (left, top, right, bottom) of another picture, at the given width and height; see `cut_out`."""
        image = cut_out(source.rgb(), box_px, size_px)
        made = cls(content_key(image), image.width, image.height, None, image, Cut(source.key, source.path, box_px))
        return _in_memory.setdefault(made.key, made)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "<bytes>") -> Picture:
        """The picture encoded in ``data`` (PNG, JPEG, WebP ...). ``name`` is used in the error."""
        return cls.of(_decode(io.BytesIO(data), name))

    @property
    def size_px(self) -> tuple[int, int]:
        """``(width, height)``."""
        return self.width_px, self.height_px

    def rgb(self) -> Image.Image:
        """The decoded picture in RGB. Do not change it: it may be shared; copy it first. Raises `PictureError` where its file
        holds other pixels by now."""
        if self._pixels is not None:
            return self._pixels
        assert self.path is not None
        stat = os.stat(self.path)
        now = stat.st_mtime_ns, stat.st_size
        if now != self._stamp and _opened(self.path, *now).key != self.key:
            raise PictureError(f"{self.path}: the file was changed while its picture was in use; bring it back as it was")
        return _decoded(self.path, *now)

    def save_png(self, folder: Path) -> str:
        """Write the picture as ``<key>.png`` into ``folder`` unless it is there; return the file's name."""
        name = f"{self.key[:24]}.png"
        target = folder / name
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(f".{name}.{os.getpid()}")
            self.rgb().save(unfinished, format="PNG")
            os.replace(unfinished, target)
        return name


_in_memory: weakref.WeakValueDictionary[str, Picture] = weakref.WeakValueDictionary()
_in_files: weakref.WeakValueDictionary[str, Picture] = weakref.WeakValueDictionary()


def held(key: str) -> Picture | None:
    """The picture with this content that somebody in this process holds, in memory or by its file; None: nobody does."""
    return _in_memory.get(key) or _in_files.get(key)


def cut_out(image: Image.Image, box_px: tuple[int, int, int, int], size_px: tuple[int, int]) -> Image.Image:
    """A region at another size: averaged where it shrinks, bicubic where it grows, untouched where it does neither."""
    region = image.crop(box_px)
    if region.size == size_px:
        return region
    shrinks = size_px[0] * size_px[1] < region.width * region.height
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return Image.fromarray(cv2.resize(np.asarray(region), size_px, interpolation=how))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB pixels the way a viewer shows them: EXIF rotation applied, transparency over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image.convert("RGB")


def content_key(image: Image.Image) -> str:
    """See `Picture.key`; of an RGB image."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _decode(source: str | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(source) as image:
            image.load()
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name}: not a readable picture ({error}); replace the file or remove its row") from error


_decoded_images: OrderedDict[Hashable, Image.Image] = OrderedDict()
_decoding = threading.Lock()


def kept_decoded(name: Hashable, make: Callable[[], Image.Image]) -> Image.Image:
    """``make()``, kept for the next time under ``name`` together with decoded files, the newest 512 MiB of them all."""
    with _decoding:
        if name in _decoded_images:
            _decoded_images.move_to_end(name)
            return _decoded_images[name]
    image = make()
    with _decoding:
        _decoded_images[name] = image
        bytes_kept = sum(3 * one.width * one.height for one in _decoded_images.values())
        while bytes_kept > _DECODED_BYTES and len(_decoded_images) > 1:
            _, dropped = _decoded_images.popitem(last=False)
            bytes_kept -= 3 * dropped.width * dropped.height
    return image


def _decoded(path: str, mtime_ns: int, size: int) -> Image.Image:
    return kept_decoded((path, mtime_ns, size), lambda: _decode(path, path))


@functools.lru_cache(65536)
def _opened(path: str, mtime_ns: int, size: int) -> Picture:
    image = _decoded(path, mtime_ns, size)
    made = Picture(content_key(image), image.width, image.height, path, _stamp=(mtime_ns, size))
    _in_files[made.key] = made
    return made


@dataclass(frozen=True)
class PixelBudget:
    """How many pixels a picture may have once resized for the model.

    A picture is resized so that both sides are multiples of the family's factor (patch size times merge size), its area lies
    between the two bounds, and its aspect ratio is kept as well as possible.
    """

    min_pixels: int
    max_pixels: int

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"pixel budget: 0 < min_pixels <= max_pixels expected, got {self.min_pixels} and {self.max_pixels}")

    def resized(
        self, width_px: int, height_px: int, factor: int, num_frames: int = 1, frame_multiple: int = 1
    ) -> tuple[int, int]:
        """``(width, height)`` that the model sees. Raises `PictureError` beyond an aspect ratio of 200.

        The rule is that of the Hugging Face image processor of Qwen2-VL and later (tests compare the two), so that an inference
        engine with that processor sees the same grid. With ``num_frames`` the two bounds hold for all frames together, counted
        to the nearest multiple of ``frame_multiple``.
        """
        if max(width_px, height_px) > 200 * min(width_px, height_px):
            raise PictureError(f"{width_px} x {height_px} px: the sides differ by more than a factor of 200; crop it before use")
        height, width = round(height_px / factor) * factor, round(width_px / factor) * factor
        area = num_frames * width_px * height_px
        total = round(num_frames / frame_multiple) * frame_multiple * height * width
        if total > self.max_pixels:
            shrink = math.sqrt(area / self.max_pixels)
            height = max(factor, math.floor(height_px / shrink / factor) * factor)
            width = max(factor, math.floor(width_px / shrink / factor) * factor)
        elif total < self.min_pixels:
            grow = math.sqrt(self.min_pixels / area)
            height = math.ceil(height_px * grow / factor) * factor
            width = math.ceil(width_px * grow / factor) * factor
        return width, height


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How a video is read and resized.

    ``fps`` and ``max_frames`` say which frames are kept (frames per second; an upper bound). ``budget`` bounds one frame for
    Qwen2-VL and Qwen2.5-VL, and all frames together for Qwen3-VL and Qwen3.5, as their own processors mean it.
    ``tokens_per_second`` scales the time axis of Qwen2.5-VL's positions; the other families ignore it.
    """

    budget: PixelBudget
    fps: float = 2.0
    max_frames: int = 768
    tokens_per_second: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How pixels become patches: what the files of a model's processor say.

    A patch is ``temporal_patch_size`` frames of ``patch_size`` x ``patch_size`` px; ``merge_size`` x ``merge_size`` patches
    make one token. ``mean`` and ``std`` are per colour channel, of values from 0 to 1.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    budget: PixelBudget
    video: VideoSettings

    @property
    def factor(self) -> int:
        """Side of one token in px: both sides of a resized picture are multiples of it."""
        return self.patch_size * self.merge_size
