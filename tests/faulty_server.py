"""An OpenAI-compatible chat server that answers by what it is sent, and is faulty on purpose.

It looks at the picture: the answer is the letter of the option that names its colour. A question with "hard" in it is answered
wrongly; one whose system message offers tools is answered with a zoom first, then by the colour of what the zoom has shown.

Faults are drawn from the content of a request, not from chance: the k-th time that a request comes, its k-th fault happens, and
after its last one it is answered. So an evaluation that asks often enough gets one certain result, whatever it lives through.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from foveate.eval.records import Item
from foveate.vlm.images import Picture
from foveate.vlm.records import Privileged, Sample

FAULTS = ("500", "503", "429", "429 date", "late", "closed", "half", "empty", "blank", "garbage", "no json", "error")
"""Faults of any reply; "half" of a stream is a stream without its end."""
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "grey": (128, 128, 128)}
_OPTION = re.compile(r"^([A-Z])\. (\w+)$", re.MULTILINE)


def colour_of(image: Image.Image) -> str:
    """The name of the colour in the middle of a picture."""
    middle = np.asarray(image.convert("RGB"), int)[image.height // 2, image.width // 2]
    return min(COLOURS, key=lambda name: int(np.abs(middle - COLOURS[name]).sum()))


def colour_items(count: int) -> list[Item]:
    """Questions about the colour in the middle of a noisy picture. Every fourth is hard, 5 is refused, 9 never answered."""
    items = []
    for number in range(count):
        names = sorted(COLOURS, key=lambda name: hashlib.sha256(f"{number} {name}".encode()).digest())
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        pixels[12:36, 12:36] = COLOURS[names[0]]
        special = {5: " refused", 9: " never"}.get(number, " hard" if number % 4 == 0 else "")
        sample = Sample(
            id=f"item-{number}",
            question=f"Question {number}{special}: which colour is in the middle?",
            answer="ABCD"[names.index(names[0])],
            images=(Picture.of(pixels),),
            options=tuple(names),
            privileged=Privileged(boxes_px_xyxy=((12, 12, 36, 36),)),
        )
        items.append(Item(sample, {"category": "hard" if number % 4 == 0 else "easy"}))
    return items


def faults_of(body: bytes, kinds: tuple[str, ...], most: int) -> list[str]:
    """The faults of a request, 0 to ``most`` of them."""
    digest = hashlib.sha256(body).digest()
    return [kinds[digest[place + 1] % len(kinds)] for place in range(digest[0] % (most + 1))] if kinds else []


def answer_to(chat: dict[str, Any]) -> str:
    """What the model behind this server says."""
    texts, pictures = [], []
    for message in chat["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                head, data = part["image_url"]["url"].split(",", 1)
                assert head.startswith("data:image/")
                pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
    said = "\n".join(texts)
    if chat["messages"][0]["role"] == "system" and "tool" in said and len(pictures) == 1:
        call = {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [250, 250, 750, 750]}}
        return f"<think>Look closer.</think><tool_call>\n{json.dumps(call)}\n</tool_call>"
    right = {name: letter for letter, name in _OPTION.findall(said)}
    letter = right[colour_of(pictures[-1])]
    if "hard" in said:
        letter = next(other for other in sorted(right.values()) if other != letter)
    return f"<answer>{letter}</answer>"


class FaultyServer:
    """Serves at ``url`` in threads of this process. Use it in a ``with`` statement.

    ``faults`` are the kinds that happen, at most ``most`` of them to a request; with a ``plan`` every request meets just these.
    A question with "never" in it fails always, one with "refused" is refused with HTTP 400. ``late_s`` is how late a late answer
    comes, ``after`` what Retry-After says. ``seen`` counts requests by their content, ``answered`` answers, ``happened`` faults;
    ``busiest`` is how many were in hand at once, ``times_s`` when each came; ``last`` is the last request, ``key`` what it was
    authorized by.
    """

    def __init__(
        self,
        faults: tuple[str, ...] = FAULTS,
        most: int = 3,
        late_s: float = 1.3,
        plan: tuple[str, ...] | None = None,
        after: str = "0.02",
    ) -> None:
        self.faults, self.most, self.late_s, self.plan, self.after = faults, most, late_s, plan, after
        self.last: dict[str, Any] = {}
        self.key: str | None = None
        self.seen: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.busy = self.busiest = 0
        self.times_s: list[float] = []
        self.lock = threading.Lock()
        self.server = _Http(("127.0.0.1", 0), _handler(self))
        host, port = self.server.server_address[:2]
        self.url = f"http://{host!s}:{port}/v1"

    def __enter__(self) -> FaultyServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self, body: bytes) -> str | None:
        """What goes wrong this time."""
        key = hashlib.sha256(body).hexdigest()
        with self.lock:
            self.times_s.append(time.monotonic())
            number = self.seen[key]
            self.seen[key] += 1
            planned = faults_of(body, self.faults, self.most) if self.plan is None else self.plan
            fault = "500" if b"never" in body else "400" if b"refused" in body else None
            fault = fault or (planned[number] if number < len(planned) else None)
            if fault is None:
                self.answered[key] += 1
            else:
                self.happened[fault] += 1
        return fault


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is what this server is for."""


def _handler(owner: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with owner.lock:
                owner.busy += 1
                owner.busiest = max(owner.busiest, owner.busy)
            try:
                self._answer(body, owner.fault(body))
            finally:
                with owner.lock:
                    owner.busy -= 1

        def _answer(self, body: bytes, fault: str | None) -> None:
            if self.path != "/v1/chat/completions":
                self._send(404, b'{"error": "no such path"}')
                return
            chat = owner.last = json.loads(body)
            owner.key = self.headers.get("Authorization")
            if fault == "late":
                time.sleep(owner.late_s)
            if fault in ("400", "401", "404", "500", "503"):
                self._send(int(fault), json.dumps({"error": {"message": f"on purpose: {fault}"}}).encode())
            elif fault == "429":
                self._send(429, b'{"error": "slow down"}', {"Retry-After": owner.after})
            elif fault == "429 date":
                self._send(429, b"slow down", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
            elif fault == "closed":
                self.close_connection = True
            elif fault == "garbage":
                self._send(200, b"<html>\xff\xfe\x00 gateway</html>")
            elif fault == "no json":
                self._send(200, b'{"choices": [{"message": {"content": "<answer>A')
            elif fault == "error":
                self._send(200, b'{"error": {"message": "the engine died"}}')
            elif fault == "blank":
                self._send(200, b"")
            else:
                self._speak(chat, "" if fault == "empty" else answer_to(chat), fault == "half")

        def _speak(self, chat: dict[str, Any], text: str, half: bool) -> None:
            pictures = json.dumps(chat["messages"]).count('"image_url":')
            written = sum(len(str(one["content"]).split()) for one in chat["messages"] if one["role"] == "assistant")
            usage = {"prompt_tokens": 100 * pictures + 7 + written, "completion_tokens": len(text.split())}
            if chat.get("stream"):
                made = self._stream(text, usage)
            else:
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                made = json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()
            if half:
                self.close_connection = True
            self._send(200, made, cut=half)

        def _stream(self, text: str, usage: dict[str, int]) -> bytes:
            events: list[Any] = [{"choices": [{"delta": {"role": "assistant"}}]}]
            events += [{"choices": [{"delta": {"content": character}}]} for character in text]
            events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
            return "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)
            except OSError:
                self.close_connection = True

    return Handler
