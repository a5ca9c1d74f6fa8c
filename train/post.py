"""Records on their way between ranks: pictures travel as names, and their pixels go to a rank that asks for them.

What `Ranks` gathers is pickled with a name in place of every picture: its content, size and file, what it was cut out of, and the
rank that has it. So a rank holds all rollouts of a step and the pixels of its own; it gets those of another picture when they are
read, as for the groups that it learns from or, on rank 0, for those that are logged. In this order:

    held here      the same content is here already: a data set's picture, or a tool's
    its file       where it holds the same pixels here
    cut out        of another picture, as `visual_tools.zoom` did it, where that gives the same pixels
    asked for      from the rank that has it: 3 bytes a pixel, over a connection of their own

All four give the pixels that the name's SHA-256 tells; nothing else is let in. What was got is kept with decoded files
(`images.kept_decoded`), within their bound, and got again when it is wanted after that.

A rank answers from a thread of its own, also while it waits for others. It can answer for as long as anybody may ask: ranks run
the same program on the same records, and one is ahead of another by no more than what lies between two times that all of them
met (`Post.met`). So what a rank has lent it holds until they have met once more after its own records are gone.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import io
import ipaddress
import pickle
import secrets
import socket
import socketserver
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from ..vlm import images
from ..vlm.images import Cut, Picture, PictureError

_SECRET_BYTES = _KEY_BYTES = 32
_HEAD_BYTES, _FOUND = 9, 1
"""Of an answer: 1 or 0 for pixels or the reason why there are none, and the length of either."""

Name = tuple[bytes, int, int, str | None, Cut | None, tuple[int, ...]]
"""Of a picture: key, width, height, file, what it was cut out of, and the ranks that have lent it, the latest first."""


class FarPicture(Picture):
    """A picture of another rank: its name is here, and its pixels are got when they are asked for."""

    def __init__(self, name: Name, pixels: Callable[[FarPicture], Image.Image]) -> None:
        key, width_px, height_px, path, origin, holders = name
        self.__dict__.update(
            key=key.hex(), width_px=width_px, height_px=height_px, path=path, origin=origin, _holders=holders, _get=pixels
        )

    @property
    def name(self) -> Name:
        """See `Name`."""
        return bytes.fromhex(self.key), self.width_px, self.height_px, self.path, self.origin, self.__dict__["_holders"]

    def lent_by(self, ranks: tuple[int, ...]) -> None:
        """These have it too. One that lent it long ago may have forgotten it."""
        self.__dict__["_holders"] = tuple(dict.fromkeys((*ranks, *self.name[-1])))

    def rgb(self) -> Image.Image:
        """See `Picture.rgb`. Raises `PictureError` where the pixels cannot be got any more."""
        got: Image.Image = self.__dict__["_get"](self)
        return got

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.key == other.key

    def __hash__(self) -> int:
        return hash((self.key,))


class Post:
    """One rank's end. ``host`` is what it listens on (empty: everything), ``seconds`` how long an answer may take.

    It asks others once `know` has told it where they are and the secret without which nobody is answered.
    """

    def __init__(self, rank: int, host: str, seconds: float, family: int = socket.AF_INET) -> None:
        self.rank = rank
        self.pictures_got = self.bytes_got = 0
        """Pictures whose pixels came from other ranks since the start, and their bytes."""
        self._seconds = seconds
        self._secret = b""
        self._addresses: Sequence[tuple[str, int]] = ()
        self._lent: weakref.WeakValueDictionary[str, Picture] = weakref.WeakValueDictionary()
        self._held: list[Picture] = []
        self._far: weakref.WeakValueDictionary[str, FarPicture] = weakref.WeakValueDictionary()
        self._server = _Server(host, family, self._answer, seconds)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="pictures", daemon=True).start()

    def know(self, addresses: Sequence[tuple[str, int]], secret: bytes) -> None:
        """Host and port of every rank, and the secret that all of them share."""
        self._addresses, self._secret = addresses, secret

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()

    # ---- records --------------------------------------------------------------------------------------------------------

    def dumps(self, value: Any) -> bytes:
        """``value`` pickled, its pictures as names; this rank lends those that are its own."""
        sink = io.BytesIO()
        _Writer(sink, self).dump(value)
        return sink.getvalue()

    def loads(self, data: bytes) -> Any:
        """What another rank's `dumps` wrote. A picture whose content is here already is that one."""
        return _Reader(io.BytesIO(data), self).load()

    def met(self) -> None:
        """All ranks are where this one is: nobody asks for what was forgotten before they met the last time."""
        self._held.clear()
        self._held.extend(self._lent.values())

    def name_of(self, picture: Picture) -> Name:
        """A picture's name; this rank lends it, unless it is another's."""
        if isinstance(picture, FarPicture):
            return picture.name
        self._lent[picture.key] = picture
        self._held.append(picture)
        return bytes.fromhex(picture.key), *picture.size_px, picture.path, picture.origin, (self.rank,)

    def picture_of(self, name: Name) -> Picture:
        """The picture of a name, its pixels here or not."""
        key = name[0].hex()
        here, far = images.held(key), self._far.get(key)
        if here is not None:
            return here
        if far is None:
            far = self._far[key] = FarPicture(name, self.pixels)
        far.lent_by(name[-1])
        return far

    # ---- pixels ---------------------------------------------------------------------------------------------------------

    def pixels(self, far: FarPicture) -> Image.Image:
        """See the module. Raises `PictureError`."""
        for find in (images.held, lambda key: _in_file(key, far.path)):
            here = find(far.key)
            if here is not None:
                with contextlib.suppress(PictureError, OSError):  # its file may have been changed here alone
                    return here.rgb()
        return images.kept_decoded(far.key, lambda: self._cut(far) or self._asked(far))

    def _cut(self, far: FarPicture) -> Image.Image | None:
        origin = far.origin
        if origin is None:
            return None
        source = images.held(origin.source) or self._far.get(origin.source) or _in_file(origin.source, origin.path)
        if source is None:
            return None
        try:
            made = images.cut_out(source.rgb(), origin.box_px, far.size_px)
        except (PictureError, OSError):
            return None
        return made if images.content_key(made) == far.key else None  # another version of a library may round otherwise

    def _asked(self, far: FarPicture) -> Image.Image:
        who = f"picture {far.path or far.key[:12]} ({far.width_px} x {far.height_px} px)"
        reasons = []
        for holder in far.name[-1]:
            try:
                with socket.create_connection(self._addresses[holder], self._seconds) as line:
                    line.sendall(self._secret + far.name[0])
                    head = _received(line, _HEAD_BYTES)
                    body = _received(line, int.from_bytes(head[1:], "big"))
            except OSError as error:
                raise PictureError(
                    f"{who}: rank {holder} does not answer ({error}); look at what it says, and whether ranks may reach each "
                    "other's ports"
                ) from error
            if head[0] != _FOUND:
                reasons.append(f"rank {holder}: {body.decode(errors='replace')}")
                continue
            image = Image.frombytes("RGB", far.size_px, body) if len(body) == 3 * far.width_px * far.height_px else None
            if image is None or images.content_key(image) != far.key:
                raise PictureError(f"{who}: rank {holder} gave other pixels; look for damaged memory or network there")
            self.pictures_got += 1
            self.bytes_got += len(body)
            return image
        raise PictureError(f"{who}: its pixels are gone ({'; '.join(reasons)})")

    def _answer(self, asked: bytes) -> tuple[bool, bytes]:
        secret, key = asked[:_SECRET_BYTES], asked[_SECRET_BYTES:]
        if not hmac.compare_digest(secret, self._secret):
            return False, b"this is not a rank of the run"
        picture = self._lent.get(key.hex())
        if picture is None:
            return False, b"it has forgotten it; ranks must run the same program on the same records"
        try:
            return True, picture.rgb().tobytes()
        except (PictureError, OSError) as error:
            return False, str(error).encode()


def open_post(rank: int, gather: Callable[[Any], list[Any]], master: tuple[str, int], seconds: float) -> Post:
    """This rank's end, which knows the others. ``gather`` gives what each rank has; ``master`` is where they found each other."""
    machines = gather(f"{socket.gethostname()} {uuid.getnode()}")
    family, host, told = (socket.AF_INET, "127.0.0.1", "127.0.0.1") if len(set(machines)) == 1 else own_address(*master)
    post = Post(rank, host, seconds, family)
    ends = gather((told, post.port, secrets.token_bytes(_SECRET_BYTES)))
    post.know([(host, port) for host, port, _ in ends], ends[0][2])
    return post


def own_address(master: str, port: int) -> tuple[int, str, str]:
    """``(family, host to listen on, host to tell)`` of the interface from which this machine reaches ``master``.

    Where that is this machine itself, its own name for it is of no use to others: they know it as ``master``.
    """
    family, _, _, _, address = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # of a datagram: nothing is sent
        host: str = probe.getsockname()[0]
    if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return family, "", master
    return family, host, host


def _in_file(key: str, path: str | None) -> Picture | None:
    """The picture in a file, if it can be read here and is the one with this content."""
    if path is None:
        return None
    try:
        found = Picture.open(path)
    except PictureError:
        return None
    return found if found.key == key else None


def _received(line: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, at = memoryview(data), 0
    while at < count:
        got = line.recv_into(view[at:])
        if not got:
            raise ConnectionError("the connection was closed")
        at += got
    return bytes(data)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, family: int, answer: Callable[[bytes], tuple[bool, bytes]], seconds: float) -> None:
        self.address_family = family
        super().__init__((host, 0), functools.partial(_Handler, answer, seconds))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up, or speaks another language, is not ours to report: who waits for pixels says so itself."""


class _Handler(socketserver.BaseRequestHandler):
    def __init__(self, answer: Callable[[bytes], tuple[bool, bytes]], seconds: float, *given: Any) -> None:
        self._answer, self._seconds = answer, seconds
        super().__init__(*given)

    def handle(self) -> None:
        self.request.settimeout(self._seconds)
        found, body = self._answer(_received(self.request, _SECRET_BYTES + _KEY_BYTES))
        self.request.sendall(bytes([found]) + len(body).to_bytes(_HEAD_BYTES - 1, "big"))
        self.request.sendall(body)


class _Writer(pickle.Pickler):
    def __init__(self, sink: io.BytesIO, post: Post) -> None:
        super().__init__(sink, pickle.HIGHEST_PROTOCOL)
        self._post = post
        self._names: dict[str, Name] = {}

    def persistent_id(self, value: Any) -> Name | None:
        if not isinstance(value, Picture):
            return None
        if value.key not in self._names:  # pickle writes the same tuple once
            self._names[value.key] = self._post.name_of(value)
        return self._names[value.key]


class _Reader(pickle.Unpickler):
    def __init__(self, source: io.BytesIO, post: Post) -> None:
        super().__init__(source)
        self._post = post

    def persistent_load(self, name: Name) -> Picture:
        return self._post.picture_of(name)
