"""Pictures that stay in their file until their pixels are asked for: an item of a benchmark weighs a few hundred bytes."""

from __future__ import annotations

import binascii
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ..datasets.pictures import header_size
from ..vlm.images import Picture, PictureError

Encoded = bytes | Path | Image.Image
_HELD_BYTES = 256 << 20
_held: OrderedDict[str, Picture] = OrderedDict()
_holding = threading.Lock()


class LazyPicture(Picture):
    """A `Picture` whose size is read from its header and whose pixels and key are made when they are asked for.

    ``load`` gives the encoded file (bytes) or its path, each time anew. ``name`` says where it is, in words ("HR.tsv, line 3,
    image"). Pixels are kept in a cache of 256 MB under ``held_as``, which no other picture may have.
    """

    def __init__(self, load: Callable[[], Encoded], name: str, held_as: str) -> None:
        self.__dict__.update(_load=load, _name=name, _held_as=held_as)

    @property
    def name(self) -> str:
        """Where the picture is, in words."""
        return str(self.__dict__["_name"])

    def encoded(self) -> bytes | None:
        """The file's own bytes (JPEG, PNG ...), to send or copy it as it is; None when there are only pixels."""
        found = self._loaded()
        return found.read_bytes() if isinstance(found, Path) else found if isinstance(found, bytes) else None

    def _loaded(self) -> Encoded:
        try:
            found: Encoded = self.__dict__["_load"]()
        except PictureError as error:
            raise PictureError(f"{self.name}: {error}") from error
        return found

    @functools.cached_property
    def key(self) -> str:
        return self._opened().key

    @functools.cached_property
    def _header_px(self) -> tuple[int, int]:
        found = self._loaded()
        try:
            if isinstance(found, Path):
                return header_size(found.name, str(found))
            return found.size if isinstance(found, Image.Image) else header_size(found, self.name)
        except PictureError as error:
            raise PictureError(f"{self.name}: {error}") from error

    @property
    def width_px(self) -> int:
        return self._header_px[0]

    @property
    def height_px(self) -> int:
        return self._header_px[1]

    def rgb(self) -> Image.Image:
        return self._opened().rgb()

    def _opened(self) -> Picture:
        held_as = self.__dict__["_held_as"]
        with _holding:
            if held_as in _held:
                _held.move_to_end(held_as)
                return _held[held_as]
        found = self._loaded()
        if isinstance(found, Path):
            return Picture.open(found)  # which keeps decoded files itself
        picture = Picture.of(found) if isinstance(found, Image.Image) else Picture.from_bytes(found, self.name)
        with _holding:
            _held[held_as] = picture
            size = sum(3 * one.width_px * one.height_px for one in _held.values())
            while size > _HELD_BYTES and len(_held) > 1:
                _, dropped = _held.popitem(last=False)
                size -= 3 * dropped.width_px * dropped.height_px
        return picture

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.key == other.key

    def __hash__(self) -> int:
        return hash((self.key,))

    def __repr__(self) -> str:
        return f"LazyPicture({self.name})"


def decoded_base64(text: bytes) -> bytes:
    """Bytes of base64 text, with or without a ``data:`` head, line breaks aside. `PictureError`."""
    body = text.partition(b",")[2] if text[:5] == b"data:" else text
    try:
        return binascii.a2b_base64(body)
    except binascii.Error as error:
        raise PictureError(f"base64 text of {len(body)} characters cannot be decoded ({error}); get the file anew") from error
