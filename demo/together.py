"""One model, many visitors: whoever gets the model plays the waiting turns of all others along with his own, in one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ..vlm.generate import Completion, HFEngine, Sampling
from ..vlm.load import VLM
from ..vlm.segments import Segment

OnToken = Callable[[int], None]


@dataclass
class _Turn:
    """A call of `Engine.generate` by one visitor, with the ear that is told of its tokens."""

    contexts: Sequence[Segment]
    seeds: Sequence[Sequence[int]]
    sampling: Sampling
    keep: bool
    after: Sequence[Completion | None] | None
    on_token: OnToken | None
    done: list[list[Completion]] | None = None
    error: ValueError | RuntimeError | None = None
    over: threading.Event = field(default_factory=threading.Event)


class Together:
    """Turns of any number of threads, ``at_once`` in a batch; one batch is played at a time.

    A completion depends on its context and seed alone, so nobody's answer changes by who else is there. A turn that comes while
    a batch is played waits for the next. ``biggest`` is the largest batch so far.
    """

    def __init__(self, vlm: VLM, at_once: int = 16) -> None:
        self.engine, self.at_once, self.biggest = HFEngine(vlm), at_once, 0
        self._waiting: list[_Turn] = []
        self._listing, self._playing = threading.Lock(), threading.Lock()

    def ear(self, on_token: OnToken, check: Callable[[], None] = lambda: None) -> Ear:
        """An engine for one visitor, who hears of his own tokens alone; ``check`` may raise before each of his turns."""
        return Ear(self, on_token, check)

    def turn(self, turn: _Turn) -> list[list[Completion]]:
        """The completions of a turn; raises what went wrong with it."""
        with self._listing:
            self._waiting.append(turn)
        with self._playing:
            if not turn.over.is_set():
                self._play(self._take(turn))
        if turn.error is not None:
            raise turn.error
        assert turn.done is not None
        return turn.done

    def _take(self, first: _Turn) -> list[_Turn]:
        """This turn and those that wait and are drawn in the same way, the longest waiting first."""
        with self._listing:
            others = [one for one in self._waiting if one is not first and one.sampling == first.sampling]
            batch = [first, *others[: self.at_once - 1]]
            self._waiting = [one for one in self._waiting if all(one is not taken for taken in batch)]
        self.biggest = max(self.biggest, len(batch))
        return batch

    def _play(self, batch: Sequence[_Turn]) -> None:
        try:
            found = self._generate(batch)
        except (ValueError, RuntimeError) as error:  # torch's errors, no room on the device among them, are RuntimeErrors
            if len(batch) == 1:
                batch[0].error = error
                batch[0].over.set()
                return
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            for one in batch:  # one visitor's picture must not fail another's
                self._play([one])
            return
        start = 0
        for one in batch:
            one.done = found[start : start + len(one.contexts)]
            start += len(one.contexts)
            one.over.set()

    def _generate(self, batch: Sequence[_Turn]) -> list[list[Completion]]:
        owners = [one for one in batch for _ in one.contexts]

        def heard(context: int, number: int, token: int) -> None:
            ear = owners[context].on_token
            if ear is not None:
                ear(token)

        after: list[Completion | None] = []
        for one in batch:
            after += one.after if one.after is not None else [None] * len(one.contexts)
        return self.engine.generate(
            [context for one in batch for context in one.contexts],
            [own for one in batch for own in one.seeds],
            batch[0].sampling,
            keep=any(one.keep for one in batch),
            after=after,
            on_token=heard,
        )


class Ear:
    """One visitor's way to the model: an `Engine` that hears of his tokens."""

    def __init__(self, together: Together, on_token: OnToken, check: Callable[[], None]) -> None:
        self.together, self.on_token, self.check = together, on_token, check

    def generate(
        self,
        contexts: Sequence[Segment],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keep: bool = False,
        after: Sequence[Completion | None] | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        self.check()
        return self.together.turn(_Turn(contexts, seeds, sampling, keep, after, self.on_token))
