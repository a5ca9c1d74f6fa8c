"""``foveate view``: serves run folders as a page. Reads only; nothing outside the run folders is ever read."""

from __future__ import annotations

import base64
import functools
import http.server
import ipaddress
import json
import re
import secrets
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from .train.curves import curves
from .train.pages import environment, linked, prepared, reduced
from .train.recorder import RunFolderError
from .view_data import SORTS, Filter, RunView, recipe_differences

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLL_MS = 2000
_MAX_SIDE_PX, _MAX_BYTES = 1280, 2_000_000
"""Pictures beyond these are sent smaller; ``?full=1`` asks for the file itself."""
_MAX_LIMIT = 2000
_INDEX_S = 1.0
"""A list is sent after about so long, even if not all rollouts were looked through yet."""
_TEMPLATES = Path(__file__).resolve().parent / "templates"
# a rollout whose row is not as this version writes it
_ODD_ROW = (AttributeError, KeyError, TypeError, ValueError, jinja2.TemplateError)


class Missing(ValueError):
    """What was asked for is not there."""


class Site:
    """The pages of one run or two, whatever serves them: `answer` turns an address into a status, a media type and bytes."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Raises `RunFolderError` for a folder that holds no run, `ValueError` for more than two."""
        if not 1 <= len(folders) <= 2:
            raise ValueError(f"{len(folders)} run folders given; the page shows one, or compares two")
        self.views = {key: RunView(folder, key) for key, folder in zip("ab", folders, strict=False)}
        self.labels = ("",) if len(folders) == 1 else ("A", "B")
        self._routes = {
            "/api/state": self._state,
            "/api/overview": self._overview,
            "/api/rollouts": self._rollouts,
            "/api/rollout": self._rollout,
        }

    def page(self, nonce: str) -> bytes:
        """The page itself; the scripts in it carry ``nonce``."""
        template = environment(lambda name: {"uri": "", "small": False}, _TEMPLATES).get_template("view.html.j2")
        names = [(key, view.run.name, view.folder.resolve().name) for key, view in self.views.items()]
        return template.render(runs=names, nonce=nonce, poll_ms=POLL_MS, sorts=SORTS).encode()

    def answer(self, path: str, query: Mapping[str, str]) -> tuple[int, str, bytes]:
        """What `path` says, as JSON or a picture: ``(status, media type, bytes)``."""
        try:
            if match := re.fullmatch(r"/picture/([ab])/([^/]+)", path):
                return self._picture(match[1], match[2], "full" in query)
            if path not in self._routes:
                raise Missing(f"{path}: there is no such page")
            return 200, "application/json", _json(self._routes[path](query))
        except Missing as error:
            return 404, "application/json", _json({"error": str(error)})
        except (ValueError, OSError) as error:  # a run folder that was moved away, a filter that means nothing
            return 400, "application/json", _json({"error": str(error)})

    def _view(self, query: Mapping[str, str]) -> RunView:
        key = query.get("run", "a")
        if key not in self.views:
            raise Missing(f"run {key!r}: this page shows {' and '.join(self.views)}")
        return self.views[key]

    def _state(self, query: Mapping[str, str]) -> dict[str, Any]:
        return {"versions": {key: view.version() for key, view in self.views.items()}}

    def _overview(self, query: Mapping[str, str]) -> dict[str, Any]:
        versions = {key: view.refresh() for key, view in self.views.items()}
        runs = [view.run for view in self.views.values()]
        drawn = curves(runs, self.labels)
        return {
            "versions": versions,
            "runs": [view.overview() for view in self.views.values()],
            "charts": drawn.main,
            "other_charts": drawn.others,
            "note": drawn.note,
            "differences": recipe_differences(*runs) if len(runs) == 2 else [],
        }

    def _rollouts(self, query: Mapping[str, str]) -> dict[str, Any]:
        view = self._view(query)
        limit = query.get("limit", "100")
        if not limit.isdecimal():
            raise ValueError(f"limit: {limit!r} is not a number")
        return view.search(Filter.parse(query), query.get("sort", "newest"), min(int(limit), _MAX_LIMIT), _INDEX_S)

    def _rollout(self, query: Mapping[str, str]) -> dict[str, Any]:
        view, name = self._view(query), query.get("id", "")
        try:
            entry, row = view.row(name)
        except KeyError:
            raise Missing(f"rollout {name!r} is not in this run (any more)") from None
        shown = environment(lambda picture: linked(f"picture/{view.key}/{picture}", view.run.picture(picture)))
        try:
            html = shown.from_string(_FRAGMENT).render(row=prepared(row))
        except _ODD_ROW as error:
            raise ValueError(f"{entry.file.path.name}, rollout {entry.place + 1}: cannot be shown ({error!r})") from error
        return {"html": html, "entry": entry.row, "same": self._same(view.key, entry.row)}

    def _same(self, key: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Other logged rollouts of a sample, in both runs, nearest step first."""
        for other in self.views.values():
            other.index(_INDEX_S)
        found = [
            {"run": other.key, **{name: entry.row[name] for name in ("id", "step", "stream", "index", "outcome")}}
            for other in self.views.values()
            for entry in list(other.entries.values())
            if entry.row["sample"] == row["sample"] and (other.key, entry.row["id"]) != (key, row["id"])
        ]
        return sorted(found, key=lambda one: (abs(one["step"] - row["step"]), one["run"], one["id"]))[:12]

    def _picture(self, key: str, name: str, full: bool) -> tuple[int, str, bytes]:
        path = self.views[key].run.picture(name) if key in self.views else None
        if path is None:
            raise Missing(f"picture {name[:60]!r} is not in images/")
        try:
            if full:
                return 200, "image/png", path.read_bytes()
            data, kind = _reduced(str(path), path.stat().st_mtime_ns)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Missing(f"picture {name} cannot be read ({error})") from error
        return 200, kind, data


_FRAGMENT = '{% import "parts.html.j2" as parts %}{{ parts.rollout(row) }}'


@functools.lru_cache(256)
def _reduced(path: str, _mtime_ns: int) -> tuple[bytes, str]:
    return reduced(path, _MAX_SIDE_PX, _MAX_BYTES)[:2]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request. Answers GET and HEAD, and on a loopback address only under a name of this machine: a page elsewhere whose name
    was made to point here (DNS rebinding) gets nothing."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    server: Server

    def do_GET(self) -> None:
        if self.server.names and _host(self.headers.get("Host", "")) not in self.server.names:
            self._send(403, "application/json", _json({"error": "this page answers to 127.0.0.1 and localhost only"}))
            return
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        if path == "/":
            nonce = base64.b64encode(secrets.token_bytes(16)).decode()
            self._send(200, "text/html; charset=utf-8", self.server.site.page(nonce), nonce)
            return
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True, errors="replace"))
        self._send(*self.server.site.answer(path, query))

    do_HEAD = do_GET

    def _send(self, status: int, kind: str, body: bytes, nonce: str = "") -> None:
        picture = kind.startswith("image/") and status == 200
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "private, max-age=86400" if picture else "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        script = f"script-src 'nonce-{nonce}'; " if nonce else ""
        allowed = f"{script}style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
        self.send_header("Content-Security-Policy", f"default-src 'none'; {allowed}; base-uri 'none'")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the terminal belongs to whoever started the page."""


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    return (header[1:].partition("]")[0] if header.startswith("[") else header.rpartition(":")[0] or header).lower()


def is_local(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


class Server(http.server.ThreadingHTTPServer):
    """Serves a `Site`. ``names`` are those under which it answers; empty: any. `ValueError`: an address not to be had."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, site: Site, host: str = "127.0.0.1", port: int = 0) -> None:
        self.site, self.names = site, (*LOOPBACK, host) if is_local(host) else ()
        if ":" in host:
            import socket

            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"{host}:{port} cannot be served ({error}); choose another --port, or 0 for any free one") from error

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name, which can take seconds."""
        import socketserver

        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader who went away is no error of ours."""
        import sys

        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{port}/"


__all__ = ["RunFolderError", "Server", "Site"]
