"""The wire to an OpenAI-compatible server: a connection that is kept, replies read with suspicion, pauses shared by threads."""

from __future__ import annotations

import base64
import email.utils
import http.client
import io
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..vlm.images import Picture
from .lazy_pictures import LazyPicture

_IDLE_SECONDS = 2.0
"""Servers close connections that rest (vLLM after 5 s): one that has rested so long is not used again."""
_CONFIGURATION = {401: "the key", 403: "the key", 404: "the address and the model's name"}
_SAID = 300
_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_ORIENTATION = 0x0112


class ServerError(RuntimeError):
    """A server with which no question can be answered; the message names its address and what to look at."""


class Refused(RuntimeError):
    """One question that the server does not answer, whatever the reason."""


class Lost(Refused):
    """One question to which no try has brought an answer."""


class TryAgain(RuntimeError):
    """A reply that was lost on the way. ``after_s``: the server's own wish when to be asked again."""

    def __init__(self, problem: str, after_s: float | None = None) -> None:
        super().__init__(problem)
        self.after_s = after_s


@dataclass(frozen=True)
class Answer:
    """One reply. ``content`` is what the model said, ``text`` that with its thought before it; ``cut``: at the token limit.

    ``tokens_image`` is 0 where the server does not count them.
    """

    content: str
    text: str
    cut: bool
    tokens_in: int
    tokens_out: int
    tokens_image: int
    seconds: float


class Pacer:
    """The pauses of all workers: a rate that they share, a time before which none may ask, and a way to wake them all."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap_s = 0.0 if per_minute is None else 60.0 / per_minute
        self._next_s = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()

    @property
    def stopped(self) -> bool:
        return self._over.is_set()

    def stop(self) -> None:
        """Wake everybody; from now on nobody waits, and `wait` raises `Refused`."""
        self._over.set()

    def wait(self) -> None:
        """Until it is this worker's turn to ask."""
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._next_s:
                    self._next_s = now + self._gap_s
                    break
                pause_s = self._next_s - now
            self.sleep(pause_s)
        self._check()

    def hold(self, seconds: float) -> None:
        """Nobody asks for so long."""
        with self._lock:
            self._next_s = max(self._next_s, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        self._over.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self.stopped:
            raise Refused("the evaluation was stopped")


class Line:
    """One worker's connection, kept from request to request."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        parts = urllib.parse.urlsplit(url.rstrip("/"))
        self._url, self._path, self._timeout_s = url, f"{parts.path}/chat/completions", timeout_s
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = make(parts.hostname or "", parts.port, timeout=timeout_s)
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._used_s = 0.0

    def close(self) -> None:
        self._connection.close()

    def post(self, body: Mapping[str, Any], heard: Callable[[bytes], None] | None = None) -> tuple[bytes, float]:
        """The body of the reply to a request and the seconds it took. `TryAgain`, `Refused` or `ServerError`.

        ``heard`` is told of the pieces of a good reply as they come.
        """
        if time.monotonic() - self._used_s > _IDLE_SECONDS:
            self.close()
        start = time.monotonic()
        sent = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        try:
            self._connection.request("POST", self._path, sent, self._headers)
            response = self._connection.getresponse()
            data = self._read(response, start, heard if response.status == 200 else None)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise TryAgain(f"{type(error).__name__}: {error}") from error
        self._used_s = time.monotonic()
        if response.status != 200:
            self._complain(response, data)
        return data, self._used_s - start

    def _read(self, response: http.client.HTTPResponse, start: float, heard: Callable[[bytes], None] | None) -> bytes:
        """All of a body. A server that sends it drop by drop meets the time limit too."""
        pieces: list[bytes] = []
        while piece := response.read1(1 << 16):
            pieces.append(piece)
            if heard is not None:
                heard(piece)
            if time.monotonic() - start > self._timeout_s:
                raise TimeoutError(f"no whole reply within {self._timeout_s:g} s")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()  # read to its end in pieces it does not count as read, and the connection could not be used again
        return b"".join(pieces)

    def _complain(self, response: http.client.HTTPResponse, data: bytes) -> None:
        said = data[:_SAID].decode("utf-8", "replace")
        told = f"HTTP {response.status}: {said}"
        if response.status in _CONFIGURATION:
            raise ServerError(f"{self._url} refuses with {told}; check {_CONFIGURATION[response.status]}")
        if response.status in (408, 409, 425, 429) or response.status >= 500:
            raise TryAgain(told, _seconds(response.headers.get("Retry-After")))
        raise Refused(told)


def read_answer(data: bytes, seconds: float, stream: bool) -> Answer:
    """The answer in the body of a reply. `TryAgain` for anything that is none: cut, empty, garbage, an error in disguise."""
    try:
        reply = _joined(data) if stream else json.loads(data)
        choice = reply["choices"][0]
        content, thought = choice["message"].get("content") or "", choice["message"].get("reasoning_content") or ""
        thought = thought or choice["message"].get("reasoning") or ""
        usage = reply.get("usage") or {}
        tokens_in, tokens_out = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        image = int((usage.get("prompt_tokens_details") or {}).get("image_tokens") or 0)
        cut = choice.get("finish_reason") == "length"
        if not isinstance(content, str) or not isinstance(thought, str):
            raise TypeError("the content is no text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = data[:_SAID].decode("utf-8", "replace")
        raise TryAgain(f"not a chat completion ({type(error).__name__}: {error}): {said!r}") from error
    if not content and not thought and not cut:
        raise TryAgain("an empty reply")
    text = content if not thought else f"<think>{thought}" + (f"</think>\n{content}" if content or not cut else "")
    return Answer(content, text, cut, tokens_in, tokens_out, image, seconds)


def _joined(data: bytes) -> dict[str, Any]:
    """The reply that a stream of events spells. `ValueError` when it ended before its end."""
    parts: dict[str, list[str]] = {"content": [], "reasoning_content": [], "reasoning": []}
    usage: Any = None
    finish: Any = None
    for line in data.decode("utf-8").split("\n"):
        said = line.removeprefix("data:").strip()
        if said == "[DONE]":
            message = {name: "".join(pieces) for name, pieces in parts.items()}
            return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}
        if not line.startswith("data:"):
            continue
        event = json.loads(said)
        usage = event.get("usage") or usage
        for choice in event["choices"][:1]:
            finish = choice.get("finish_reason") or finish
            for name, pieces in parts.items():
                pieces.append(choice["delta"].get(name) or "")
    raise ValueError("the stream was cut")


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header: seconds, or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
        except ValueError:
            return None


def data_url(picture: Picture, size_px: tuple[int, int], image_format: Literal["png", "jpeg"]) -> str:
    """The picture in a ``data:`` URL, resized to ``size_px``; as its own file's bytes where these show the same."""
    own = _own_bytes(picture) if size_px == picture.size_px else None
    if own is not None:
        return f"data:{own[0]};base64,{base64.b64encode(own[1]).decode()}"
    image = picture.rgb()
    if image.size != size_px:
        image = image.resize(size_px, Image.Resampling.BICUBIC)
    made = io.BytesIO()
    if image_format == "png":
        image.save(made, "PNG", compress_level=1)
    else:
        image.save(made, "JPEG", quality=95, subsampling=0)
    return f"data:image/{image_format};base64,{base64.b64encode(made.getvalue()).decode()}"


def _own_bytes(picture: Picture) -> tuple[str, bytes] | None:
    """A picture's file as it is, when every reader sees in it what we do: no rotation, no transparency, a common format."""
    if isinstance(picture, LazyPicture):
        data = picture.encoded()
    else:
        data = None if picture.path is None else Path(picture.path).read_bytes()
    if data is None:
        return None
    with Image.open(io.BytesIO(data)) as image:
        plain = image.mode == "RGB" and "transparency" not in image.info and image.getexif().get(_ORIENTATION, 1) == 1
        mime = _MIME.get(image.format or "")
    return (mime, data) if plain and mime else None
