"""What stands before Gradio: requests that are too large, come under another name, or would make the server fetch something."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_UPLOAD = "/gradio_api/upload"
_UNUSED = (
    "/gradio_api/proxy=", "/gradio_api/process_recording", "/gradio_api/vibe", "/gradio_api/stream", "/monitoring",
    "/gradio_api/component_server",
)  # fmt: skip
"""Doors of Gradio that the demo has no use for."""
_REMOTE = ("http:", "https:", "ftp:", "file:", "//")


class Gate:
    """An ASGI application in front of another.

    ``max_json_bytes`` bounds every request but uploads, which Gradio bounds itself. With ``hosts`` only requests for these names
    are let in, so that a page elsewhere cannot reach a server of this machine under a name of its own (DNS rebinding). A file
    that is named by an address is refused: Gradio would fetch it.
    """

    def __init__(self, app: Any, *, max_json_bytes: int, hosts: Sequence[str] = ()) -> None:
        self.app, self.max_json_bytes, self.hosts = app, max_json_bytes, tuple(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = str(scope["path"])
        if self.hosts and _name(headers.get("host", "")) not in self.hosts:
            await _say(send, 421, "This demo answers under the address at which it was started only.")
        elif path.startswith(_UNUSED) or path.startswith(tuple(f"/gradio_api/file={start}" for start in _REMOTE)):
            await _say(send, 404, "There is nothing here.")
        elif scope["method"] == "POST" and not path.startswith(_UPLOAD):
            body = await self._body(receive, headers)
            if body is None:
                most = self.max_json_bytes // 1024
                await _say(send, 413, f"The request is too large: at most {most} KB are taken. Is the question too long?")
            elif names_remote_file(body):
                await _say(send, 403, "No file is fetched from the network here. Upload it.")
            else:
                await self.app(scope, _again(body, receive), send)
        else:
            await self.app(scope, receive, send)

    async def _body(self, receive: Receive, headers: dict[str, str]) -> bytes | None:
        """The whole body; None when there is too much of it."""
        told = headers.get("content-length", "0")
        if told.isdigit() and int(told) > self.max_json_bytes:
            return None
        pieces, size = [], 0
        while True:
            message = await receive()
            piece = message.get("body", b"")
            size += len(piece)
            if size > self.max_json_bytes:
                return None
            pieces.append(piece)
            if message["type"] != "http.request" or not message.get("more_body", False):
                return b"".join(pieces)


def names_remote_file(body: bytes) -> bool:
    """Whether JSON holds a file (a mapping with a ``path``) that lies at an address rather than here."""
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):
        return False  # Gradio says what is wrong with it
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and path.strip().lower().startswith(_REMOTE):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host.rpartition(":")[0].strip("[]").lower() if host.rpartition(":")[2].isdigit() else host.strip("[]").lower()


def _again(body: bytes, receive: Receive) -> Receive:
    """A way to read the body once more."""
    given = False

    async def read() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


async def _say(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence, "error": sentence}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
