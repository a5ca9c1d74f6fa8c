"""Pictures as data files hold them: a path, base64, a data URI, bytes, ``{"bytes", "path"}``, or a PIL image."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..vlm.images import Picture, PictureError

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_LONGEST_PATH = 1024
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


def open_picture(ref: Any, file: str, image_dir: str | None = None) -> Picture:
    """The picture behind a reference in ``file``. `PictureError` says what was tried."""
    found = _resolve(ref, file, image_dir)
    if isinstance(found, Path):
        return Picture.open(found)
    if isinstance(found, bytes):
        return Picture.from_bytes(found, "a picture in the row")
    return Picture.of(found)


def header_size(ref: Any, file: str, image_dir: str | None = None) -> tuple[int, int]:
    """``(width, height)`` in pixels from the header alone, as a viewer turns it. `PictureError`."""
    found = _resolve(ref, file, image_dir)
    if isinstance(found, Image.Image):
        return found.size
    name = str(found) if isinstance(found, Path) else "a picture in the row"
    try:
        with Image.open(found if isinstance(found, Path) else io.BytesIO(found)) as image:
            width, height = image.size
            if image.format == "PNG" and "exif" not in image.info:
                return width, height  # asking a PNG for EXIF that is not at its head decodes all of it
            return (height, width) if image.getexif().get(_ORIENTATION) in _TURNED else (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name}: not a readable picture ({error}); replace the file or remove its row") from error


def _resolve(ref: Any, file: str, image_dir: str | None) -> Path | bytes | Image.Image:
    if isinstance(ref, Image.Image | bytes):
        return ref
    if isinstance(ref, Mapping):
        inside = ref.get("bytes")
        if inside is not None:
            return inside if isinstance(inside, bytes) else _decoded(str(inside))
        ref = ref.get("path") or ref.get("image") or ref.get("url")
    if not isinstance(ref, str) or not ref:
        raise PictureError(
            f"a picture given as {type(ref).__name__} {str(ref)[:60]!r}; expected a path, base64, a data URI or bytes"
        )
    if ref.startswith("data:"):
        return _decoded(ref.partition(",")[2])
    if ref.startswith(("http://", "https://")):
        raise PictureError(f"{ref[:120]}: pictures are not fetched from the net; download them first and write their paths")
    path = _on_disk(ref.removeprefix("file://"), file, image_dir)
    if path is not None:
        return path
    # A JPEG in base64 starts with "/9j/" and looks like an absolute path: length and alphabet tell them apart.
    if len(ref) > 64 and _BASE64.fullmatch(ref) and (len(ref) > _LONGEST_PATH or not Path(ref).suffix):
        return _decoded(ref)
    raise PictureError(_not_found(ref, file, image_dir))


def _on_disk(name: str, file: str, image_dir: str | None) -> Path | None:
    if len(name) > _LONGEST_PATH or "\0" in name:
        return None
    base = Path(image_dir).expanduser() if image_dir else Path(file).expanduser().parent
    path = base / Path(name).expanduser()  # an absolute name stays as it is
    try:
        return path if path.is_file() else None
    except OSError:  # a part of base64 text longer than a file name may be
        return None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise PictureError(f"base64 text of {len(text)} characters cannot be decoded ({error}); write it anew") from error


def _not_found(name: str, file: str, image_dir: str | None) -> str:
    base = Path(image_dir).expanduser() if image_dir else Path(file).expanduser().parent
    folder = (base / name).parent
    archives = [archive for place in dict.fromkeys((folder, base)) if place.is_dir() for archive in sorted(place.glob("*.tar*"))]
    if archives:
        first = archives[0]
        stem = first.name.partition(".tar")[0]
        return (
            f"{base / name}: no such picture, but {first} is there; extract it first: "
            f"cat {first.parent}/{stem}.tar* | tar -xzf - -C {first.parent} (leave out z for .tar), "
            "then set data.image_dir to where the paths start"
        )
    return f"{base / name}: no such picture; set data.image_dir to the folder that the paths in {file} start from"
