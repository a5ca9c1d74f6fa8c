"""Asking models many questions, each once: whoever answers, what was answered is kept on disk by what was asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .datasets.builders.journal import Journal
from .eval.chat import ServerError
from .eval.engines import Engine, InProcess, Task, _mark
from .eval.modes import describe
from .eval.records import Item, Mode, Played
from .eval.server import Server
from .vlm.folder import resolve
from .vlm.load import VLM, load
from .vlm.messages import to_json
from .vlm.render import Renderer

Show = Callable[[str, int, int], None]
"""Told what is being done, how much of it, out of how much."""
_KEPT = ("texts", "stop", "tokens_in", "tokens_out")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How servers are asked; see `eval.server.Server`."""

    workers: int = 16
    per_minute: float | None = None
    key_env: str = "OPENAI_API_KEY"
    retries: int = 8
    timeout_s: float = 300.0
    pause_s: float = 0.5
    family: str | None = None
    """How a served model counts coordinates; see `eval.server.Server`."""


@dataclass
class Model:
    """Who answers: ``tiny``, a folder, a hub id, or ``URL=NAME`` of a server. A model in this process is loaded when it is asked.

    >>> Model("http://localhost:8000/v1=Qwen2.5-VL-7B-Instruct").server.model
    'Qwen2.5-VL-7B-Instruct'
    """

    word: str
    serving: Serving = field(default_factory=Serving)
    max_pixels: int | None = None
    device: str = "auto"
    at_once: int = 32
    """Questions that a model in this process reads at once."""
    server: Server | None = field(init=False, default=None)
    _engine: InProcess | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if "://" not in self.word:
            return
        url, _, name = self.word.rpartition("=")
        if not url or not name:
            raise ValueError(f"model {self.word}: a server is written URL=NAME, such as http://localhost:8000/v1=gpt-oss-20b")
        own = self.serving
        self.server = Server(
            url=url, model=name, workers=own.workers, per_minute=own.per_minute, key_env=own.key_env, retries=own.retries,
            timeout_s=own.timeout_s, pause_s=own.pause_s, family=own.family,
            max_pixels=self.max_pixels,
        )  # fmt: skip

    @property
    def is_tiny(self) -> bool:
        """The embedded model, which knows few words."""
        return self.word == "tiny"

    @property
    def about(self) -> dict[str, Any]:
        """What decides the answers."""
        if self.server is not None:
            return self.server.about
        return {"engine": "in-process", "weights": _mark(resolve(self.word)), "max_pixels": self.max_pixels}

    @property
    def vlm(self) -> VLM:
        """The model in this process."""
        return self._loaded().vlm

    @property
    def renderer(self) -> Renderer | None:
        """Of a model in this process; None for a served one."""
        return None if self.server is not None else self.vlm.renderer

    def engine(self) -> Engine:
        """Loads the model where it is needed."""
        return self.server or self._loaded()

    def forget(self) -> None:
        """Give the memory back."""
        self._engine = None

    def _loaded(self) -> InProcess:
        if self._engine is None:
            vlm = load(self.word, max_pixels=self.max_pixels, device=self.device)
            self._engine = InProcess(vlm, at_once=self.at_once)
        return self._engine


class Answers:
    """The answers of all models of a job, in ``NAME.jsonl``. Use it in a ``with`` statement.

    An answer is kept under the SHA-256 of what was sent and to whom: the messages, pictures by content, the sampling. So another
    setting asks anew and mixes nothing, and a question that was answered is never asked again, however often the job is killed.
    What failed (a server that refuses, or cannot be reached) is not kept: the next start asks it again.
    """

    def __init__(self, path: Path, show: Show | None = None) -> None:
        self._journal = Journal(path)
        self._show = show or (lambda *_: None)
        try:
            self._kept = {str(row["key"]): _played(row) for row in self._journal.rows}
        except (KeyError, TypeError) as error:
            self._journal.__exit__(None, None, None)
            raise ValueError(f"{path}: not a file of answers ({error}); move it away, or give another folder") from error
        self.asked = self.known = 0
        """Answers that were asked for just now, and those that were there."""

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *error: Any) -> None:
        self._journal.__exit__(*error)

    def of(self, model: Model, mode: Mode, items: Iterable[tuple[int, Item]], label: str, total: int) -> dict[int, Played]:
        """The answer to every item, by its number. ``items`` are taken one by one, as there is room for them.

        One that cannot be shown or answered has ``stop`` "failed" and an ``error``. `ValueError` when the model cannot be asked.
        """
        found: dict[int, Played] = {}
        waiting: dict[str, list[int]] = {}
        about = model.about

        def tasks() -> Iterator[Task]:
            for number, item in items:
                task = Task(item, mode, 0, "")
                try:
                    key = _key(about, mode, task)
                except (ValueError, OSError) as error:
                    found[number] = task.failed(error)
                    continue
                if key in self._kept:
                    self.known += 1
                    found[number] = self._kept[key]
                    self._show(label, len(found), total)
                elif key in waiting:
                    waiting[key].append(number)
                else:
                    waiting[key] = [number]
                    yield Task(item, mode, 0, key)

        def done(task: Task, played: Played) -> None:
            self.asked += 1
            if played.stop != "failed":
                self._kept[task.key] = played
                self._journal.add({"key": task.key, "model": model.word, **{name: played.__dict__[name] for name in _KEPT}})
            for number in waiting.pop(task.key):
                found[number] = played
            self._show(label, len(found), total)

        stream = tasks()
        first = next(stream, None)
        if first is not None:  # a model all of whose answers are kept need not even be loaded
            try:
                model.engine().play(_chained(first, stream), done)
            except ServerError as error:
                raise ValueError(f"{error} What was answered is kept: run the same command again.") from error
        return found


def _chained(first: Task, rest: Iterator[Task]) -> Iterator[Task]:
    yield first
    yield from rest


def _key(about: dict[str, Any], mode: Mode, task: Task) -> str:
    sent = {
        "about": about,
        "messages": to_json(task.view().messages, lambda picture: picture.key),
        "sampling": {name: value for name, value in describe(mode).items() if name not in ("name", "view", "official_tail")},
    }
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()


def _played(row: dict[str, Any]) -> Played:
    given = {name: row[name] for name in _KEPT}
    return Played(**{**given, "texts": tuple(row["texts"])})
