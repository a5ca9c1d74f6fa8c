"""vLLM servers: token ids and lossless pictures go out, token ids and log-probs come back.

A server is vLLM's own (``vllm serve``), started by `serve_vllm` with the settings that this client relies on. It is asked through
``/inference/v1/generate``: ids with one image token a picture, and the picture as PNG in the size that the model sees, so that
the server's processor has nothing to resize; it tells the ids that it widened this to, and they must be ours.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image
from torch import Tensor

from .engines import CopyEngine, EngineError
from .generate import Completion, Sampling
from .images import Picture
from .pixels import frame_CHW
from .segments import Segment, VisualItem
from .weight_files import write_weights

if TYPE_CHECKING:
    from .load import VLM

_START = "start it with: python -m foveate.vlm.serve_vllm MODEL --port PORT"
_CACHED_PNGS = 1024
_Done = TypeVar("_Done")


@dataclass(frozen=True)
class _Held:
    """Which server has a completion's keys and values in its prefix cache."""

    server: int


class ServerEngine(CopyEngine):
    """Spreads contexts over servers that hold the same weights; a rollout's later turns go where its first one went.

    New weights are written into ``folder``, which trainer and servers see under the same name, and removed once all servers have
    read them. ``seconds`` bounds one completion, ``sync_seconds`` the reading of weights and the wait for a server to come up,
    ``requests`` how many are on their way to a server at a time.

    Of several processes that use the same servers (this one is ``client`` of ``clients``, counted from 0) one calls `sync`, while
    nobody generates, and the others `adopt` what it gave.
    """

    def __init__(
        self,
        vlm: VLM,
        urls: Sequence[str],
        folder: Path,
        *,
        seconds: float = 600.0,
        sync_seconds: float = 600.0,
        requests: int = 64,
        client: int = 0,
        clients: int = 1,
    ) -> None:
        super().__init__(vlm.renderer, int(vlm.model.config.image_token_id))
        self.urls = tuple(url.rstrip("/") for url in urls)
        self.folder, self.seconds, self.sync_seconds = folder, seconds, sync_seconds
        requests = max(1, requests // clients)
        self._limits = [threading.Semaphore(requests) for _ in self.urls]
        self._pool = ThreadPoolExecutor(requests * len(self.urls), "vllm-server")
        self._turns = itertools.count(client, clients)  # the servers take turns as if one process asked for all
        self._version = ""
        self._met = False
        self._png = functools.lru_cache(_CACHED_PNGS)(_png)

    def __str__(self) -> str:
        return f"vLLM servers {', '.join(self.urls)}"

    # ---- sampling -------------------------------------------------------------------------------------------------------

    def generate(
        self,
        contexts: Sequence[Segment],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keep: bool = False,
        after: Sequence[Completion | None] | None = None,
    ) -> list[list[Completion]]:
        """See `CopyEngine.generate`. The first request that fails ends the call with an error that names its server."""
        self._check(contexts, seeds)
        self._everywhere(self._same_weights)
        before = after or [None] * len(contexts)
        servers = [one.held.server if one is not None and isinstance(one.held, _Held) else self._turn() for one in before]
        bodies = [self._body(context) for context in contexts]
        stop = threading.Event()
        asked = [
            [self._pool.submit(self._complete, server, context, body, sampling, seed, stop) for seed in own]
            for server, context, body, own in zip(servers, contexts, bodies, seeds, strict=True)
        ]
        try:
            return [[future.result() for future in own] for own in asked]
        finally:
            stop.set()
            for future in itertools.chain.from_iterable(asked):
                future.cancel()

    def _turn(self) -> int:
        return next(self._turns) % len(self.urls)

    def _body(self, context: Segment) -> dict[str, Any]:
        ids, start, pieces = context.ids_T.tolist(), 0, []
        for span in context.visuals:
            pieces += ids[start : span.start + 1]  # one image token; the server widens it again
            start = span.start + span.length
        body: dict[str, Any] = {"token_ids": pieces + ids[start:], "return_token_ids": True}
        if context.visuals:
            body["content_parts"] = [
                {"type": "image_url", "url": self._png(span.item), "uuid": span.item.key} for span in context.visuals
            ]
        return body

    def _complete(
        self, server: int, context: Segment, body: dict[str, Any], sampling: Sampling, seed: int, stop: threading.Event
    ) -> Completion:
        with self._limits[server]:
            if stop.is_set():
                raise EngineError(f"{self}: given up after another request had failed")
            reply = self._ask(
                server, "/inference/v1/generate", body | {"sampling_params": self._fields(sampling, seed)}, self.seconds
            )
        if reply["prompt_token_ids"] != context.ids_T.tolist():
            raise EngineError(
                f"{self.urls[server]}: reads {len(reply['prompt_token_ids'])} tokens where the trainer has {len(context)}: it "
                f"gives {len(context.visuals)} pictures another number of image tokens. Its processor must have the trainer's "
                f"pixel budget ({self.renderer.budget.min_pixels} to {self.renderer.budget.max_pixels} px): serve a checkpoint "
                "of this run"
            )
        (choice,) = reply["choices"]
        logprobs = [one["logprob"] for one in choice["logprobs"]["content"]]
        return self._completion(choice["token_ids"], logprobs, choice["finish_reason"], _Held(server))

    # ---- weights --------------------------------------------------------------------------------------------------------

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `CopyEngine.sync`. All servers read the folder at the same time; requests of other clients are aborted.

        The first one waits until the servers are up, and sees that they were started as this client needs them.
        """
        self._unusable = f"the sync to version {version} failed half-way"
        if not self._met:
            self._everywhere(self._meet)
            self._met = True
        folder = self.folder / f"weights-{version:06d}"
        write_weights(weights, folder)
        self._version = f"{folder.name}-{time.time_ns()}"
        try:
            self._everywhere(lambda server: self._load(server, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._unusable = ""

    @property
    def weights(self) -> str:
        """The name under which the servers have the weights of the last `sync`."""
        return self._version

    def adopt(self, weights: str) -> None:
        """Sample with the `weights` that another client has given the servers."""
        self._version, self._unusable = weights, ""

    def _load(self, server: int, folder: Path) -> None:
        def ask(path: str, body: dict[str, Any] | None = None) -> Any:
            return self._ask(server, path, body or {}, self.sync_seconds)

        ask("/pause?mode=abort")
        taken = ask("/collective_rpc", {"method": "take_weights", "kwargs": {"weights_path": str(folder.resolve())}})
        self._all_came(taken["results"], self.urls[server])
        if not ask("/reset_prefix_cache").get("success"):
            raise EngineError(f"{self.urls[server]}: its prefix cache could not be reset; restart it")
        ask("/reset_mm_cache")
        ask("/reset_encoder_cache")
        ask("/update_weight_version", {"new_version": self._version})
        ask("/resume")

    def _same_weights(self, server: int) -> None:
        found = self._ask(server, "/weight_info", None, self.sync_seconds).get("weight_version")
        if found != self._version:
            raise EngineError(
                f"{self.urls[server]}: has weights {found!r}, not {self._version!r}: it was restarted, or another run has "
                "given it weights; let one run use it, and start this run again"
            )

    # ---- the wire -------------------------------------------------------------------------------------------------------

    def _meet(self, server: int) -> None:
        """Wait until the server is up, and see that it was started as this client needs it."""
        deadline = time.monotonic() + self.sync_seconds
        while True:
            try:
                self._ask(server, "/health", None, 10.0)
                break
            except EngineError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)
        (facts, *_) = self._ask(server, "/collective_rpc", {"method": "report_logprobs_before_cut"}, self.sync_seconds)["results"]
        if facts["logprobs_mode"] != "processed_logprobs":
            raise EngineError(
                f"{self.urls[server]}: its log-probs are {facts['logprobs_mode']}, which leave out temperature and banned "
                f"tokens; {_START}"
            )

    def _everywhere(self, act: Callable[[int], _Done]) -> list[_Done]:
        """``act`` on all servers at the same time; the first error, once all have ended."""
        with ThreadPoolExecutor(len(self.urls)) as pool:
            futures = [pool.submit(act, server) for server in range(len(self.urls))]
        return [future.result() for future in futures]

    def _ask(self, server: int, path: str, body: dict[str, Any] | None, seconds: float) -> Any:
        """The server's reply to a POST, or a GET without a body; `EngineError` within ``seconds`` of silence."""
        url = self.urls[server]
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
        try:
            try:
                with urllib.request.urlopen(request, timeout=seconds) as response:
                    text = response.read()
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:500]  # which may take too long as well
                raise EngineError(f"{url}{path}: {error.code} {error.reason}: {said}; {_mend(error.code)}") from error
        except TimeoutError as error:
            raise EngineError(f"{url}{path}: no reply within {seconds:g} s; look at its log, or raise the time limit") from error
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                raise EngineError(f"{url}{path}: cannot be reached within {seconds:g} s; check host and port") from error
            raise EngineError(f"{url}{path}: the server is not there ({reason}); look at its log, and {_START}") from error
        return json.loads(text) if text else {}

    def close(self) -> None:
        """Forget the servers; they go on running."""
        self._unusable = "it was closed"
        self._pool.shutdown(wait=False, cancel_futures=True)


def _mend(code: int) -> str:
    if code == 404:
        return f"the server lacks this address; {_START}"
    return (
        "look at the server's log" if code >= 500 else "the request cannot be served as the server was started; see its settings"
    )


def _png(item: VisualItem) -> str:
    """The picture as the model sees it, as a data URL: PNG loses nothing, and its size needs no resizing."""
    assert isinstance(item.source, Picture)  # check_pictures has seen to it
    pixels = frame_CHW(item.source, item.width_px, item.height_px).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
