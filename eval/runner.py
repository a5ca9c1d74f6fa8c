"""An evaluation from items to rows: every item in every mode, shown, answered, scored and written down, once.

The order is fixed (mode, item, draw) and a task's random numbers depend on the task alone, so that shards, restarts and the
number of workers change nothing in the rows but their order and their seconds.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..rewards.terms.judge import Judge
from ..vlm.images import Picture
from .engines import Engine, Task
from .ledger import Ledger, key_of, read_lines, read_settings
from .modes import describe
from .records import Item, Mode, Played, Row
from .scoring import all_right, circular, score, shuffled

_GALLERY_PX = 1 << 20


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is. ``before`` of the ``done`` tasks were done when it was started; the others are counted."""

    mode: str
    done: int
    total: int
    before: int
    right: int
    failed: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Tasks finished in a second, those of earlier starts aside."""
        return (self.done - self.before) / max(self.seconds, 1e-9)


def evaluate(
    benchmark_name: str,
    items: Sequence[Item],
    modes: Sequence[Mode],
    engine: Engine,
    folder: Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    shuffle: bool | Literal["circular"] = True,
    tail: Callable[[Item], str] | None = None,
    judge: Judge | None = None,
    about: Mapping[str, Any] | None = None,
    gallery: int = 24,
    retry_failed: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> list[Row]:
    """Answer and score the items in all modes; a row for each mode, item and draw, in that order.

    They are in ``rows.jsonl`` of ``folder``: killed anywhere and called again, this goes on where it was, and what is done
    already is not even read. Of the first ``limit`` items, ``shard`` (number from 0, of how many) takes every so-many-th.
    ``shuffle``: options in an order drawn from ``seed``; "circular": each item once for every rotation of its options, put
    together into one row that is right if all are. ``tail`` is the benchmark's ``prompt_tail``. ``about`` says what else decides
    the rows (the engine's ``about``, the file's SHA-256): a folder with other values is refused with `LedgerError`. The first
    ``gallery`` items of each mode keep their story, with pictures in ``folder/images``. ``retry_failed`` has another try at what
    the engine failed at.
    """
    run = _Run(benchmark_name, items, tuple(modes), Path(folder), seed, shuffle, tail, judge, gallery)
    chosen = _chosen(len(items), limit, shard)
    settings = {
        **(about or {}), "benchmark": benchmark_name, "items": len(items), "seed": seed, "shard": list(shard), "shuffle": shuffle,
        "judge": None if judge is None else judge.model_dump(mode="json"), "modes": {mode.name: describe(mode) for mode in modes},
    }  # fmt: skip
    draws = {index: run.draws_of(index) for index in chosen} if shuffle == "circular" else {}
    plan = [(mode, index, draw) for mode in modes for index in chosen for draw in range(draws.get(index, mode.n))]
    wanted = {(mode.name, index, draw) for mode, index, draw in plan}
    with Ledger(Path(folder), settings, retry_failed=retry_failed) as ledger:
        waiting: dict[str, _Place] = {}
        start, before = time.monotonic(), len(wanted & ledger.done)
        count = {"done": before, "right": 0, "failed": 0}

        def say(mode: str) -> None:
            if progress is not None:
                progress(Progress(mode, total=len(plan), before=before, seconds=time.monotonic() - start, **count))

        def add(row: Row) -> None:
            ledger.add(row)
            for name, by in (("done", True), ("right", row["outcome"] == "right"), ("failed", row["outcome"] == "failed")):
                count[name] += by
            say(row["mode"])

        say(modes[0].name)
        left = [one for one in plan if (one[0].name, *one[1:]) not in ledger.done]
        engine.play(
            run.tasks(left, set(chosen[:gallery]), waiting, add),
            lambda task, played: add(run.row(task, played, waiting.pop(task.key))),
        )
        if waiting:
            raise RuntimeError(f"the engine left {len(waiting)} tasks without a word, such as {next(iter(waiting))}")
        rows = [row for row in ledger.rows if key_of(row) in wanted]
    return _ordered(rows, [mode.name for mode in modes], shuffle == "circular")


def load_rows(folder: Path) -> list[Row]:
    """The rows of an evaluation, finished or not, as `evaluate` gives them. `LedgerError` when the folder holds none."""
    settings = read_settings(folder)
    rows, _ = read_lines(folder / "rows.jsonl")
    return _ordered(rows, list(settings["modes"]), settings["shuffle"] == "circular")


def _ordered(rows: list[Row], modes: list[str], rotations: bool) -> list[Row]:
    rows = sorted(rows, key=lambda row: (modes.index(row["mode"]), row["index"], row["draw"]))
    if not rotations:
        return rows
    groups = itertools.groupby(rows, key=lambda row: (row["mode"], row["index"]))
    return [all_right(list(own)) for _, own in groups]


@dataclass(frozen=True)
class _Place:
    """Where a task comes from, and in which order its options are shown."""

    index: int
    order: tuple[int, ...]


@dataclass(frozen=True)
class _Run:
    benchmark: str
    items: Sequence[Item]
    modes: tuple[Mode, ...]
    folder: Path
    seed: int
    shuffle: bool | Literal["circular"]
    tail: Callable[[Item], str] | None
    judge: Judge | None
    gallery: int

    def __post_init__(self) -> None:
        names = [mode.name for mode in self.modes]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"modes {names}: at least one, and each needs a name of its own")
        several = [mode.name for mode in self.modes if mode.n > 1]
        if several and self.shuffle == "circular":
            raise ValueError(f"mode {several[0]} draws several answers, and circular asks several times; choose one of the two")

    def draws_of(self, index: int) -> int:
        """How many rotations an item has; an item that cannot be read is one."""
        try:
            return len(circular(self.items[index]))
        except (ValueError, OSError):
            return 1

    def tasks(
        self,
        left: Sequence[tuple[Mode, int, int]],
        told: set[int],
        waiting: dict[str, _Place],
        add: Callable[[Row], None],
    ) -> Iterator[Task]:
        """The tasks one by one, as they are asked for; an item that cannot be read is a failed row at once."""
        store = _Store(self.folder / "images")
        for mode, index, draw in left:
            try:
                item = self.items[index]
                shown, order = self._shown(item, draw)
                tail = self.tail(shown) if self.tail is not None and mode.official_tail else ""
            except (ValueError, OSError) as error:
                add(self._unread(mode, index, draw, error))
                continue
            key = f"{mode.name}/{index}/{item.id}/{draw}"
            waiting[key] = _Place(index, order)
            yield Task(shown, mode, draw, key, self.seed, tail, store if index in told and draw == 0 else None)

    def _shown(self, item: Item, draw: int) -> tuple[Item, tuple[int, ...]]:
        if self.shuffle == "circular":
            return circular(item)[draw]
        return shuffled(item, self.seed) if self.shuffle else (item, tuple(range(len(item.sample.options))))

    def row(self, task: Task, played: Played, place: _Place) -> Row:
        """A finished task, scored. `EndpointError` when the judge cannot be reached."""
        item, evidence = task.item, task.item.sample.privileged
        return {
            **self._head(task.mode, place.index, task.draw), "item": item.id, "categories": dict(item.categories),
            "group": item.group, "question": item.sample.question, "options": list(item.sample.options),
            "gold": item.sample.answer, "extra": dict(item.extra), "order": list(place.order),
            "boxes_px_xyxy": [list(box) for box in evidence.boxes_px_xyxy], "box_image": evidence.box_image,
            **score(item, played, order=place.order, judge=self.judge), **_told(played),
        }  # fmt: skip

    def _unread(self, mode: Mode, index: int, draw: int, error: Exception) -> Row:
        played = Played(texts=(), stop="failed", error=f"{type(error).__name__}: {error}")
        return {
            **self._head(mode, index, draw), "item": f"#{index}", "categories": {}, "group": "", "question": "", "options": [],
            "gold": None, "extra": {}, "order": [], "boxes_px_xyxy": [], "box_image": 0, "parsed": None, "outcome": "failed",
            "score": 0.0, "choice": None, "runaway": False, "judged": False, **_told(played),
        }  # fmt: skip

    def _head(self, mode: Mode, index: int, draw: int) -> Row:
        return {"benchmark": self.benchmark, "mode": mode.name, "index": index, "draw": draw}


def _told(played: Played) -> Row:
    listed = {"texts": list(played.texts), "calls": list(played.calls), "story": list(played.story)}
    return {**played.__dict__, **listed, "seconds": round(played.seconds, 4)}


def _chosen(count: int, limit: int | None, shard: tuple[int, int]) -> range:
    number, shards = shard
    if not 0 <= number < shards:
        raise ValueError(f"shard {number} of {shards}: expected 0 <= number < {shards}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: at least one item, got {limit}")
    return range(number, count if limit is None else min(limit, count), shards)


class _Store:
    """Keeps pictures for the gallery, at most a megapixel each, and gives the names of their files. For many threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, picture: Picture) -> str:
        name = f"{picture.key[:24]}.png"
        target = self.folder / name
        if not target.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            small = picture.rgb().copy()
            shrink = min(1.0, (_GALLERY_PX / (small.width * small.height)) ** 0.5)
            small.thumbnail((max(1, int(small.width * shrink)), max(1, int(small.height * shrink))))
            unfinished = target.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}")
            small.save(unfinished, format="PNG")
            os.replace(unfinished, target)
        return name
