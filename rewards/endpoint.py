"""A client of any server that speaks the OpenAI chat protocol, with a cache on disk. It never downloads anything.

Replies are kept by the SHA-256 of what was sent, a file each, so that a question is asked once, whoever asks it: threads,
processes, or the next run.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pydantic


class EndpointError(RuntimeError):
    """A server that cannot be reached, refuses, or replies with something else. The message names its address."""


class Endpoint(pydantic.BaseModel):
    """Where a model is served, and how it is asked."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    url: str
    """Up to and with the version: http://localhost:8000/v1."""
    model: str
    """The name under which the server knows the model."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; an unset one means no key."""
    cache: str | None = None
    """Folder of kept replies; None: nothing is kept."""
    timeout_s: float = pydantic.Field(default=60.0, gt=0)
    retries: int = pydantic.Field(default=3, ge=0)
    """Further tries after an error of the network or the server, with 1, 2, 4 ... seconds between them."""
    wait_s: float = pydantic.Field(default=1.0, ge=0)
    """The first of these pauses."""

    @pydantic.field_validator("url")
    @classmethod
    def _web_address(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"an endpoint's url starts with http:// or https://, got {url!r}")
        return url.rstrip("/")

    def complete(self, prompt: str, max_tokens: int = 256) -> str:
        """The reply to one user message, greedily. Raises `EndpointError`."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        sent = json.dumps(body, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")
        kept = self._kept(sent)
        if kept is not None:
            reply = _read(kept)
            if reply is not None:
                return reply
        reply = self._text(self._asked(sent))
        if kept is not None:
            _keep(kept, body, reply)
        return reply

    def _kept(self, sent: bytes) -> Path | None:
        if self.cache is None:
            return None
        name = hashlib.sha256(self.url.encode() + b"\n" + sent).hexdigest()
        return Path(self.cache) / name[:2] / f"{name}.json"

    def _asked(self, sent: bytes) -> Any:
        request = urllib.request.Request(f"{self.url}/chat/completions", sent, {"Content-Type": "application/json"})
        key = os.environ.get(self.key_env)
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        for attempt in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                said = error.read(300).decode("utf-8", "replace")
                if error.code not in (408, 429) and error.code < 500:
                    hint = f"; is the key in the environment variable {self.key_env}?" if error.code in (401, 403) else ""
                    raise EndpointError(f"{self.url} refused with HTTP {error.code}{hint} It says: {said}") from error
                problem = f"HTTP {error.code}: {said}"
            except ValueError as error:
                raise EndpointError(f"{self.url} did not reply with JSON; is this the address of a chat server?") from error
            except (OSError, http.client.HTTPException) as error:
                problem = str(error)
            if attempt < self.retries:
                time.sleep(self.wait_s * 2**attempt)
        raise EndpointError(
            f"{self.url} cannot be reached after {self.retries + 1} tries ({problem}); start a server there "
            f"(vllm serve {self.model}), or take the judge out of the reward"
        )

    def _text(self, reply: Any) -> str:
        try:
            text = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise EndpointError(f"{self.url} replied with something else than a chat completion: {str(reply)[:300]}") from error
        return text if isinstance(text, str) else ""


def _read(path: Path) -> str | None:
    try:
        reply = json.loads(path.read_text(encoding="utf-8"))["reply"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None  # a file that was written halfway on a full disk: ask again
    return reply if isinstance(reply, str) else None


def _keep(path: Path, body: dict[str, Any], reply: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    partial.write_text(json.dumps({"request": body, "reply": reply}, ensure_ascii=False), encoding="utf-8", errors="replace")
    partial.replace(path)
