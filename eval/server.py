"""Answers from any server that speaks the OpenAI chat protocol (vLLM serve and others): many at once, none given up lightly.

What is lost on the way (HTTP 429 and 5xx, time-outs, cut connections and streams, empty replies and garbage) is asked again after
a pause that doubles; a task fails when all tries have, and the others go on. What no pause mends (a wrong key, an unknown model)
stops the evaluation: a row written for it would be a lie about the model.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..visual_tools.boxes import Coords
from ..visual_tools.spec import build_toolbox
from ..visual_tools.toolbox import Toolbox
from ..vlm.families.registry import family_of
from ..vlm.images import ImageSettings, Picture
from ..vlm.messages import Clip, Message, visuals_of
from ..vlm.records import Reply, Shown, StopReason, View
from .chat import Answer, Line, Lost, Pacer, Refused, ServerError, TryAgain, data_url, read_answer
from .engines import Task, calls_of, story_of
from .records import Played

_AHEAD = 4
"""Tasks that wait for a worker, so that no worker waits for a task."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model behind an address such as http://localhost:8000/v1. An `engines.Engine`.

    ``family`` ("qwen2.5-vl") says how the model counts coordinates and into how many tokens a picture is cut; None: coordinates
    from 0 to 1000, and image tokens only where the server reports them. With ``max_pixels`` larger pictures are made smaller
    here, by the family's own rule. ``extra`` goes into every request (``{"top_p": 0.9}``, ``{"chat_template_kwargs": {...}}``).
    Frames of videos are sent as pictures with their seconds before them.

    ``retries`` further tries are made, with ``pause_s``, twice that ... up to ``max_pause_s`` between them, more or less by
    chance; a server's Retry-After holds for all workers. ``timeout_s`` is for one request. ``per_minute`` bounds the requests.
    ``give_up_after`` failed tasks without one success between them the server is taken for dead (`ServerError`).
    """

    url: str
    model: str
    workers: int = 16
    retries: int = 8
    timeout_s: float = 300.0
    pause_s: float = 0.5
    max_pause_s: float = 60.0
    per_minute: float | None = None
    key_env: str = "OPENAI_API_KEY"
    stream: bool = False
    family: str | None = None
    max_pixels: int | None = None
    image_format: Literal["png", "jpeg"] = "png"
    extra: Mapping[str, Any] = field(default_factory=dict)
    give_up_after: int = 64

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(f"a server's url is like http://localhost:8000/v1, got {self.url!r}")
        if not 1 <= self.workers <= 64:
            raise ValueError(f"server: 1 to 64 workers, got {self.workers}")
        if self.retries < 0 or self.timeout_s <= 0 or self.pause_s < 0 or (self.per_minute is not None and self.per_minute <= 0):
            raise ValueError("server: expected retries and pause_s >= 0, timeout_s and per_minute > 0")
        if self.max_pixels is not None and self.family is None:
            raise ValueError("server: max_pixels needs the family, by whose rule pictures are resized; set family to qwen2.5-vl")

    @property
    def about(self) -> dict[str, Any]:
        """What decides the answers. The address does not: a server may move between two starts."""
        return {
            "engine": "server", "model": self.model, "family": self.family, "max_pixels": self.max_pixels,
            "image_format": self.image_format, "extra": dict(self.extra),
        }  # fmt: skip

    @property
    def settings(self) -> ImageSettings | None:
        """How the family resizes pictures."""
        return None if self.family is None else family_of(self.family).settings(max_pixels=self.max_pixels or 0)

    def play(self, tasks: Iterable[Task], done: Callable[[Task, Played], None]) -> None:
        """See `Engine.play`. `ServerError` when going on makes no sense; what was answered is done."""
        todo: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        results: queue.SimpleQueue[_Result | None] = queue.SimpleQueue()
        pacer = Pacer(self.per_minute)
        for number in range(self.workers):
            # daemons: a request that hangs must not hold up a Ctrl-C
            threading.Thread(target=self._work, args=(todo, results, pacer), name=f"ask-{number}", daemon=True).start()
        lost = outstanding = 0

        def take() -> None:
            nonlocal lost, outstanding
            result = results.get()
            if result is None:
                raise RuntimeError("a worker of the server's client broke; its own error is printed above")
            outstanding -= 1
            if isinstance(result.played, ServerError):
                raise result.played
            done(result.task, result.played)
            lost = lost + 1 if result.lost else 0
            if lost >= self.give_up_after:
                raise ServerError(
                    f"{self.url}: no answer to the last {lost} questions ({result.played.error}); see what is wrong there, then "
                    "run again, with another try for what has failed"
                )

        try:
            for task in tasks:
                todo.put(task)
                outstanding += 1
                while outstanding >= self.workers + _AHEAD:
                    take()
            while outstanding:
                take()
        finally:
            pacer.stop()
            for _ in range(self.workers):
                todo.put(None)

    def _work(self, todo: queue.SimpleQueue[Task | None], results: queue.SimpleQueue[_Result | None], pacer: Pacer) -> None:
        line = Line(self.url, os.environ.get(self.key_env), self.timeout_s)
        try:
            while (task := todo.get()) is not None and not pacer.stopped:
                results.put(self._result(task, line, pacer))
        finally:
            line.close()
            results.put(None)  # read only if this came before the end

    # ---- one task -------------------------------------------------------------------------------------------------------

    def _result(self, task: Task, line: Line, pacer: Pacer) -> _Result:
        coords: Coords = "norm1000" if self.family is None else family_of(self.family).coords
        toolbox = None if task.mode.tools is None else build_toolbox(task.mode.tools, coords)
        try:
            view = task.view(None if toolbox is None else toolbox.system_prompt)
            return _Result(task, Chat(self, task, view, toolbox, self.settings).play(line, pacer))
        except (Refused, ValueError, OSError) as error:
            return _Result(task, task.failed(error), isinstance(error, Lost))
        except ServerError as error:
            return _Result(task, error)

    def ask(self, body: Mapping[str, Any], line: Line, pacer: Pacer, heard: Callable[[bytes], None] | None = None) -> Answer:
        """The answer to a request, however many tries it takes. `Refused` when there is none, `ServerError` when none can be.

        ``heard`` is told of the pieces of replies as they come, and of an empty one when a try begins.
        """
        problem = ""
        for attempt in range(self.retries + 1):
            pacer.wait()
            if heard is not None:
                heard(b"")
            try:
                return read_answer(*line.post(body, heard), self.stream)
            except TryAgain as error:
                problem = str(error)
                if error.after_s is not None:
                    pacer.hold(min(error.after_s, self.max_pause_s))
            if attempt < self.retries:
                pause_s = min(self.pause_s * 2**attempt, self.max_pause_s)
                pacer.sleep(pause_s * random.uniform(0.5, 1.5))  # apart, so that all workers do not come back at once
        raise Lost(f"no answer in {self.retries + 1} tries; the last: {problem}")


@dataclass(frozen=True)
class _Result:
    """What a worker has for the evaluation; ``lost``: every try went wrong."""

    task: Task
    played: Played | ServerError
    lost: bool = False


class Chat:
    """One task being asked, turn by turn. ``heard`` is for those who watch; see `Server.ask`."""

    def __init__(
        self, server: Server, task: Task, view: View, toolbox: Toolbox | None, settings: ImageSettings | None,
        heard: Callable[[bytes], None] | None = None,
    ) -> None:  # fmt: skip
        self.server, self.task, self.view, self.toolbox, self.settings = server, task, view, toolbox, settings
        self.heard = heard
        self.image_tokens = 0
        self.messages = [self._message(message) for message in view.messages]

    def play(self, line: Line, pacer: Pacer) -> Played:
        """Ask until the model answers or its turns are over."""
        task, visuals = self.task, visuals_of(self.view.messages)
        shown = Shown(visuals, tuple(map(self.seen_px, visuals)), len(visuals))
        answers: list[Answer] = []
        replies: list[Reply | None] = []
        while True:
            answers.append(self.server.ask(self._body(len(answers)), line, pacer, self.heard))
            last = answers[-1]
            reply = None if self.toolbox is None or last.cut else self.toolbox.act(last.content, shown)
            replies.append(reply)
            if reply is None or len(answers) == task.mode.max_turns:
                break
            self.messages += [{"role": "assistant", "content": last.content}, self._message(reply.message)]
            visuals = visuals_of((reply.message,))
            seen = tuple(map(self.seen_px, visuals))
            calls = shown.calls + reply.calls
            shown = Shown(shown.visuals + visuals, shown.seen_px + seen, shown.num_prompt, shown.turn + 1, calls)
        stop = StopReason.TURN_TOKENS if last.cut else StopReason.ANSWERED if reply is None else StopReason.TURNS
        read = [reply.message if reply is not None and turn + 1 < len(replies) else None for turn, reply in enumerate(replies)]
        return Played(
            texts=tuple(answer.text for answer in answers),
            stop=stop.value,
            # what earlier turns wrote is in the last prompt too, and was written, not read
            tokens_in=max(0, last.tokens_in - sum(answer.tokens_out for answer in answers[:-1])),
            tokens_out=sum(answer.tokens_out for answer in answers),
            tokens_image=last.tokens_image or self.image_tokens,
            calls=calls_of([() if reply is None else reply.calls for reply in replies]),
            seconds=sum(answer.seconds for answer in answers),
            story=story_of(self.view, [answer.text for answer in answers], read, task.store, self.seen_px),
        )

    def _body(self, turn: int) -> dict[str, Any]:
        mode = self.task.mode
        return {
            "model": self.server.model, "messages": self.messages, "temperature": mode.temperature,
            "max_tokens": mode.max_new_tokens, "seed": random.Random(f"{self.task.seed}/{self.task.key}/{turn}").getrandbits(31),
            **({"stream": True, "stream_options": {"include_usage": True}} if self.server.stream else {}), **self.server.extra,
        }  # fmt: skip

    def seen_px(self, visual: Picture | Clip) -> tuple[int, int]:
        """Width and height at which the model sees a picture, or the frames of a clip."""
        picture = visual if isinstance(visual, Picture) else visual.frames[0]
        if self.settings is None:
            return picture.size_px
        return self.settings.budget.resized(*picture.size_px, self.settings.factor)

    def _message(self, message: Message) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            elif isinstance(part, Picture):
                content.append(self._picture(part))
            else:
                for frame, time_s in zip(part.frames, part.times_s, strict=True):
                    content += [{"type": "text", "text": f"<{time_s:.1f} seconds>"}, self._picture(frame)]
        plain = all(part["type"] == "text" for part in content)
        return {"role": message.role, "content": message.text if plain else content}

    def _picture(self, picture: Picture) -> dict[str, Any]:
        seen = self.seen_px(picture)
        if self.settings is not None:
            self.image_tokens += seen[0] * seen[1] // self.settings.factor**2
        most = self.server.max_pixels
        size_px = seen if most is not None and picture.width_px * picture.height_px > most else picture.size_px
        return {"type": "image_url", "image_url": {"url": data_url(picture, size_px, self.server.image_format)}}
