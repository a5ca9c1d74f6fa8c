"""Selective sample replay (VL-Rethinker, 2504.08837): rollouts with an advantage are learned from again.

A group that is all right or all wrong teaches nothing, and training makes more and more of them. The buffer holds rollouts of the
rl stream whose advantage is not 0, with the advantage and the log-probs that they were played with: a replayed rollout is
off-policy, and its ratio says by how much. Rollout j is drawn with

    p(j) = |A_j|^alpha / sum over k of |A_k|^alpha,  |A_j| the mean over its action tokens

so that one without an advantage is never drawn, nor the right ones of an all-right group, which the released code lets in. What a
step draws depends on the run's seed, the step and the buffer alone, and the buffer is kept with every checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..vlm.records import Signal
from ..vlm.rollout import derive_seed
from .replay_files import Pictures, signal_from_json, signal_to_json
from .replay_settings import ReplaySpec

STREAM = "grpo"
"""The stream whose rollouts are replayed."""


@dataclasses.dataclass(frozen=True)
class Held:
    """A signal of step ``step`` (from 0)."""

    step: int
    signal: Signal


class Replay:
    """The buffer, ``held`` oldest first. Texts that are learned by cross-entropy are not replayed."""

    def __init__(self, config: ReplaySpec, seed: int) -> None:
        self.config, self.seed = config, seed
        self.held: list[Held] = []
        self._counts: dict[str, float] = {}

    def merge(self, signals: Sequence[Signal], step: int) -> list[Signal]:
        """The signals to learn from in step ``step`` (from 0): those of other streams as they are, and of the rl stream some of
        the step's own and some of earlier steps."""
        mine = [one for one in signals if one.stream == STREAM and one.ce_weights_NK is None]
        others = [one for one in signals if one.stream != STREAM or one.ce_weights_NK is not None]
        self.held = [one for one in self.held if self.config.max_age is None or step - one.step <= self.config.max_age]
        fresh = [one for one in mine if magnitude(one)]
        draw = random.Random(derive_seed(self.seed, "replay", step))
        half = len(mine) // 2
        if self.config.form == "fill":
            room = len(mine) - len(fresh)
            again = self._drawn_once(room, draw)
            idle = [one for one in mine if one.advantages_NK is not None and not magnitude(one)]
            taught = [*fresh, *(one.signal for one in again), *idle[: room - len(again)]]
            self._hold(fresh, step, half)
        else:
            self._hold(fresh, step, half)
            own = draw.sample(fresh, min(half, len(fresh)))
            own = draw.choices(own, list(map(self._share, own)), k=len(own)) if own else []
            weights = [self._share(one.signal) for one in self.held]
            again = draw.choices(self.held, weights, k=half - len(own)) if self.held else []
            taught = [*own, *(one.signal for one in again)]
        ages = [step - one.step for one in again if one.step < step]
        self._counts = {
            "replay/fresh": float(len(fresh)),
            "replay/replayed": float(len(ages)),
            "replay/age_mean": sum(ages) / max(1, len(ages)),
            "replay/held": float(len(self.held)),
        }
        return [*others, *_apart(taught)]

    def metrics(self) -> dict[str, float]:
        """Of the last `merge`: rollouts with an advantage that the step played, rollouts of earlier steps that it learns from and
        their mean age in steps, and rollouts held afterwards."""
        return self._counts

    def save(self, folder: Path) -> None:
        """See `checkpoint.Keeps`. Pictures are named by their file where they have one, else written, each once."""
        pictures = Pictures(folder)
        with (folder / "buffer.jsonl").open("w", encoding="utf-8") as file:
            for one in self.held:
                file.write(json.dumps({"step": one.step, "signal": signal_to_json(one.signal, pictures.store)}) + "\n")

    def load(self, folder: Path) -> None:
        """See `checkpoint.Keeps`. Raises `ValueError` where the file of a picture is no longer what it was."""
        pictures = Pictures(folder)
        rows = [json.loads(line) for line in (folder / "buffer.jsonl").read_text(encoding="utf-8").split("\n") if line]
        self.held = [Held(row["step"], signal_from_json(row["signal"], pictures.opened)) for row in rows]

    def _hold(self, fresh: Sequence[Signal], step: int, half: int) -> None:
        held = [*self.held, *(Held(step, one) for one in fresh)]
        self.held = held[max(0, len(held) - (half if self.config.size is None else self.config.size)) :]

    def _share(self, signal: Signal) -> float:
        return math.pow(magnitude(signal), self.config.alpha)

    def _drawn_once(self, count: int, draw: random.Random) -> list[Held]:
        """At most ``count`` of the buffer, one after the other by their shares, none of them twice (Efraimidis and Spirakis)."""
        keys = [math.log(1 - draw.random()) / self._share(one.signal) for one in self.held]
        order = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)
        return [self.held[place] for place in order[:count]]


def magnitude(signal: Signal) -> float:
    """|A| of a rollout: the mean over its action tokens; 0 without an advantage."""
    values = [abs(value) for row in signal.advantages_NK or () for value in row]
    return sum(values) / max(1, len(values))


def _apart(signals: Sequence[Signal]) -> list[Signal]:
    """The signals with a group of its own for every repetition of a rollout: a batch knows a rollout by its group and index."""
    met, apart = Counter[tuple[str, int]](), []
    for one in signals:
        rollout = one.rollout
        times = met[rollout.group_id, rollout.index]
        met[rollout.group_id, rollout.index] += 1
        if times:
            one = dataclasses.replace(one, rollout=dataclasses.replace(rollout, group_id=f"{rollout.group_id}#{times}"))
        apart.append(one)
    return apart
