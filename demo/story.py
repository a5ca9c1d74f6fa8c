"""What is shown of an answer while it is written: turns with their text, calls and pictures; safe to read from another thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..vlm.images import Picture
from ..vlm.messages import Clip, Message, visuals_of
from ..vlm.records import Reply, ToolCall

State = Literal["waiting", "playing", "done", "failed"]
STOPS = {
    "answered": "answered",
    "turn_tokens": "stopped at the limit on tokens of one turn",
    "total_tokens": "stopped at the limit on tokens",
    "turns": "stopped at the limit on turns, with another tool call",
    "images": "stopped at the limit on pictures",
    "pixels": "stopped at the limit on pixels",
    "seconds": "stopped at the time limit",
    "repeated_call": "stopped: the same call too often",
    "errors": "stopped: too many calls that were wrong",
    "failed": "failed",
}
"""Stop reasons in plain words."""


class Abandoned(RuntimeError):
    """The visitor has gone away or has stopped the answer."""


@dataclass(frozen=True)
class ShownTurn:
    """One action: its text so far, its calls, the pictures that they gave, and whether the model was shown these."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    visuals: tuple[Picture | Clip, ...] = ()
    read: bool = True


@dataclass(frozen=True)
class Story:
    """An answer so far. ``prompt`` are the pictures and clips that the model was shown with the question.

    ``tokens`` counts what the model wrote, ``seconds`` from the start of the answer, a wait for other visitors included.
    """

    state: State = "waiting"
    prompt: tuple[Picture | Clip, ...] = ()
    turns: tuple[ShownTurn, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    stop: str = ""
    error: str = ""

    @property
    def calls(self) -> int:
        return sum(len(turn.calls) for turn in self.turns)

    @property
    def text(self) -> str:
        """What the model said last: its answer, once it is done."""
        return self.turns[-1].text if self.turns else ""

    @property
    def visuals(self) -> tuple[Picture | Clip, ...]:
        """All that was shown, in the order in which calls count it."""
        return self.prompt + tuple(one for turn in self.turns for one in turn.visuals)


class Writer:
    """The story being written by a player's thread and read by the page's. ``decode`` turns a turn's token ids into text."""

    def __init__(self, decode: Callable[[list[int]], str] = lambda ids: "") -> None:
        self._decode = decode
        self._changed = threading.Condition()
        self._story = Story()
        self._ids: list[int] = []
        self._start = time.monotonic()
        self.abandoned = False

    def begin(self, prompt: tuple[Picture | Clip, ...]) -> None:
        self._set(state="playing", prompt=prompt)

    def token(self, token: int) -> None:
        """One more token of the turn that is being written."""
        with self._changed:
            self._ids.append(token)
            self._story = replace(self._story, tokens=self._story.tokens + 1)
            self._changed.notify_all()

    def text(self, text: str, tokens: int = 0) -> None:
        """The text of the turn so far, from a server that sends text; ``tokens`` more were written, where that is known."""
        with self._changed:
            *before, last = self._story.turns or (ShownTurn(),)
            self._story = replace(self._story, turns=(*before, replace(last, text=text)), tokens=self._story.tokens + tokens)
            self._changed.notify_all()

    def called(self, reply: Reply) -> None:
        """The turn has ended with calls, which were carried out; the next one begins."""
        with self._changed:
            *before, last = self._now().turns or (ShownTurn(),)
            ended = replace(last, calls=reply.calls, visuals=visuals_of((reply.message,)))
            self._ids = []
            self._story = replace(self._story, turns=(*before, ended, ShownTurn()))
            self._changed.notify_all()

    def done(self, turns: tuple[ShownTurn, ...], tokens: int, stop: str) -> None:
        """The whole answer, as it was recorded."""
        with self._changed:
            self._ids = []
            self._set(state="done", turns=turns, tokens=tokens, stop=stop)

    def failed(self, error: str) -> None:
        with self._changed:
            self._story, self._ids = self._now(), []
            self._set(state="failed", error=error)

    def close(self) -> None:
        """Nothing more will come: a story that has not ended by now was broken off by a fault, and nobody must wait for it."""
        if self._story.state not in ("done", "failed"):
            self.failed("The answer broke off by a fault of the demo; what it was is in the terminal of whoever serves it.")

    def check(self) -> None:
        """Raises `Abandoned` when nobody reads on."""
        if self.abandoned:
            raise Abandoned

    def _set(self, **changes: object) -> None:
        with self._changed:
            seconds = time.monotonic() - self._start
            self._story = replace(self._story, seconds=seconds, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()

    def _now(self) -> Story:
        """The story with the tokens that have come since its turn began."""
        story = self._story
        if self._ids:
            *before, last = story.turns or (ShownTurn(),)
            story = replace(story, turns=(*before, replace(last, text=self._decode(list(self._ids)))))
        return story

    def stories(self, every_s: float = 0.12) -> Iterator[Story]:
        """The story again and again while it grows, at most once in ``every_s``; the last one is done or failed."""
        last: Story | None = None
        while True:
            with self._changed:
                story = self._now()
                if story == last:
                    self._changed.wait(1.0)
                    story = self._now()
            over = story.state in ("done", "failed")
            if not over:
                story = replace(story, seconds=time.monotonic() - self._start)
            yield story
            if over:
                return
            last = replace(story, seconds=self._story.seconds)
            time.sleep(every_s)


def shown_turn(text: str, calls: tuple[ToolCall, ...], observation: Message | None) -> ShownTurn:
    """A recorded turn. Without an ``observation`` the model was not shown what its calls gave."""
    return ShownTurn(text, calls, () if observation is None else visuals_of((observation,)), observation is not None or not calls)
