"""What the run viewer shows: a run folder that may still be growing, its rollouts in an index that can be filtered."""

from __future__ import annotations

import hashlib
import math
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .train.pages import flat
from .train.recorder import leaves
from .train.report import cost, method, model_name, stage_table, view_changes
from .train.run_files import RolloutFile, RunFiles, read_rows

_SNIPPET_CHARS = 160
_QUIET_S = 180.0
"""A run without a summary whose files were not written for so long is called stopped."""

Row = Mapping[str, Any]
SORTS = ("newest", "oldest", "divergence", "reward", "-reward", "tokens")


@dataclass(frozen=True)
class Filter:
    """Which rollouts are wanted; None and "" do not ask. Steps count over all stages; texts are compared without case."""

    step_from: int | None = None
    step_to: int | None = None
    sample: str = ""
    stream: str = ""
    stage: str = ""
    stop: str = ""
    outcome: str = ""
    reward_from: float | None = None
    reward_to: float | None = None
    text: str = ""

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Filter:
        """From the words of an address. Raises `ValueError` for a number that is none."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            given = query.get(field.name, "").strip()
            if not given:
                continue
            kind = {"step_from": int, "step_to": int, "reward_from": float, "reward_to": float}.get(field.name, str)
            try:
                values[field.name] = kind(given)
            except ValueError:
                raise ValueError(f"{field.name.replace('_', ' ')}: {given!r} is not a number") from None
        return cls(**values)

    def fits(self, entry: Entry) -> bool:
        """True for a rollout that is wanted. One without a reward fits no range of rewards."""
        row = entry.row
        if not (self.step_from or 0) <= row["step"] <= (row["step"] if self.step_to is None else self.step_to):
            return False
        for name in ("stream", "stage", "stop", "outcome"):
            wanted = self.__dict__[name]
            if wanted and row[name] != wanted:
                return False
        if self.reward_from is not None or self.reward_to is not None:
            reward = row["reward"]
            if reward is None or reward < (reward if self.reward_from is None else self.reward_from):
                return False
            if reward > (reward if self.reward_to is None else self.reward_to):
                return False
        return self.sample.lower() in row["sample"].lower() and self.text.lower() in entry.text


@dataclass(frozen=True)
class Entry:
    """A rollout in the index: ``row`` is what a list shows, ``text`` all its words in small letters, ``place`` its line."""

    row: dict[str, Any]
    text: str
    file: RolloutFile
    place: int


class RunView:
    """A run folder as the viewer reads it, by several threads: `refresh` reads again what has changed, `index` looks through the
    rollouts, which may take seconds the first time.

    Raises `RunFolderError` when ``folder`` holds no run.
    """

    def __init__(self, folder: Path, key: str = "a") -> None:
        self.folder, self.key = Path(folder), key
        self._lock, self._indexing = threading.Lock(), threading.Lock()
        self._parts: dict[Path, tuple[tuple[int, int, int], list[Entry], list[str]]] = {}
        self.run = RunFiles(self.folder)
        self._version = self.version()
        self._indexed = ""
        self.entries: dict[str, Entry] = {}
        self.problems: list[str] = []
        """What could not be read of the rollouts."""

    def version(self) -> str:
        """Changes whenever a file of the run does. Only looks at names, sizes and times."""
        digest = hashlib.sha256()
        for path in self.run.files():
            try:
                stat = path.stat()
            except OSError:
                continue
            digest.update(f"{path}:{stat.st_mtime_ns}:{stat.st_size}\n".encode())
        stages = self.folder / "stages"
        digest.update(str(sorted(path.name for path in stages.glob("*"))).encode() if stages.is_dir() else b"")
        return digest.hexdigest()[:16]

    def refresh(self) -> str:
        """Read again if anything has changed; the version that is now held."""
        with self._lock:
            version = self.version()
            if version != self._version:
                self.run, self._version = RunFiles(self.folder), version
            return version

    def index(self, within_s: float = math.inf) -> int:
        """Look through the rollouts that are new since the last time, newest first, for about ``within_s``; how many files are
        left for the next time."""
        version = self.refresh()
        with self._indexing:
            left = 0 if version == self._indexed else self._index(self.run, within_s)
            if not left:
                self._indexed = version
            return left

    def overview(self) -> dict[str, Any]:
        """What the head of the page says of the run."""
        run = self.run
        times = [row["time/step_s"] for row in run.metrics if isinstance(row.get("time/step_s"), int | float)]
        left_s = (run.steps - run.step) * statistics.median(times[-50:]) if run.steps and times else None
        return {
            "key": self.key,
            "name": run.name,
            "folder": self.folder.resolve().name,
            "model": model_name(run),
            "method": method(run),
            "status": self._status(),
            "step": run.step,
            "steps": run.steps,
            "left_s": left_s,
            "facts": cost(run),
            "stages": stage_table(run),
            "problems": run.problems,
            "config_yaml": run.config_yaml,
            "accuracy": accuracy(run),
            "gains": [
                {"name": one["name"], "points": one["points"], "verdict": one["verdict"], "ci95": one["gain_ci95"]}
                for one in view_changes(run)
            ],
        }

    def _status(self) -> str:
        if self.run.summary:
            return "complete"
        newest = max((path.stat().st_mtime for path in self.run.files() if path.exists()), default=0.0)
        return "training" if time.time() - newest < _QUIET_S else "stopped"

    def search(self, wanted: Filter, sort: str = "newest", limit: int = 100, within_s: float = math.inf) -> dict[str, Any]:
        """Rollouts that fit, with what can be asked for: ``{"rows", "matched", "total", "options", "problems", "unread"}``.

        ``unread`` is the number of files that there was no time for: ask again. Raises `ValueError` for an unknown order.
        """
        if sort not in SORTS:
            raise ValueError(f"sort {sort!r} is unknown; use one of {', '.join(SORTS)}")
        left = self.index(within_s)
        entries = list(self.entries.values())
        found = [entry.row for entry in entries if wanted.fits(entry)]
        if sort == "newest":
            found = sorted(found, key=lambda row: -row["step"])
        elif sort != "oldest":
            name, sign = sort.removeprefix("-"), 1 if sort.startswith("-") else -1
            found = sorted(found, key=lambda row: (row[name] is None, sign * (row[name] or 0)))
        options = {
            name: sorted({str(entry.row[name]) for entry in entries} - {"", "None"}) for name in ("stream", "stop", "outcome")
        }
        options["stage"] = [stage.name for stage in self.run.stages]
        known = {"options": options, "problems": self.problems, "unread": left}
        return {"rows": found[:limit], "matched": len(found), "total": len(entries), **known}

    def row(self, name: str) -> tuple[Entry, dict[str, Any]]:
        """A rollout of the index and its whole row. Raises `KeyError` when there is none of that name any more."""
        if name not in self.entries:
            self.index()
        entry = self.entries[name]
        rows, _ = read_rows(entry.file.path, "turns")
        if entry.place >= len(rows):
            raise KeyError(name)
        return entry, rows[entry.place]

    def _index(self, run: RunFiles, within_s: float) -> int:
        """Read new files, newest first, for about ``within_s``; how many are left."""
        parts: dict[Path, tuple[tuple[int, int, int], list[Entry], list[str]]] = {}
        left, start = 0, time.monotonic()
        for file in reversed(run.rollout_files):
            try:
                stat = file.path.stat()
            except OSError:  # a rewound run has just removed it
                continue
            known = self._parts.get(file.path)
            stamp = (stat.st_mtime_ns, stat.st_size, file.step)
            if known is None or known[0] != stamp:
                if parts and time.monotonic() - start > within_s:
                    left += 1
                    continue
                known = (stamp, *_read(file))
            parts[file.path] = known
        there = [parts[file.path] for file in run.rollout_files if file.path in parts]
        self.entries = {entry.row["id"]: entry for _, found, _ in there for entry in found}
        self.problems = [text for _, _, torn in there for text in torn]
        self._parts = parts
        return left


def _read(file: RolloutFile) -> tuple[list[Entry], list[str]]:
    rows, torn = read_rows(file.path, "turns")
    found: list[Entry] = []
    for place, row in enumerate(rows):
        try:
            found.append(_entry(row, file, place))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            torn = [*torn, f"{file.path.name}, rollout {place + 1}: not a rollout ({error!r}); left out"]
    return found, [f"{file.stage}: {text}" if file.stage else text for text in torn]


def _entry(row: Row, file: RolloutFile, place: int) -> Entry:
    divergences = flat(row, "divergence")
    reward = row.get("reward") or {}
    said = [str(turn.get("text", "")) for turn in row["turns"]]
    total = reward.get("total")
    shown = {
        "id": f"{file.stage or '-'}.{file.step}.{place}",
        "step": file.step,
        "stage": file.stage,
        "sample": str(row.get("sample", "")),
        "group": str(row.get("group", "")),
        "index": row.get("index", 0),
        "stream": str(row.get("stream", "")),
        "stop": str(row.get("stop", "")),
        "outcome": str(reward.get("outcome") or ""),
        "reward": None if total is None else float(total),
        "turns": len(row["turns"]),
        "calls": sum(len(turn.get("calls") or ()) for turn in row["turns"]),
        "tokens": sum(len(turn.get("ids") or ()) for turn in row["turns"]),
        "divergence": sum(divergences) / len(divergences) if divergences else None,
        "question": _question(row)[:_SNIPPET_CHARS],
        "said": said[-1][:_SNIPPET_CHARS] if said else "",
    }
    words = [shown["sample"], *_texts(row.get("student") or ()), *_texts(row.get("teacher") or ())]
    for turn, text in zip(row["turns"], said, strict=True):
        words += [text, *(_texts([turn["observation"]]) if turn.get("observation") else ())]
    return Entry(shown, "\n".join(words).lower(), file, place)


def _texts(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for message in messages:
        yield from (part["text"] for part in message["content"] if part["type"] == "text")


def _question(row: Row) -> str:
    users = [message for message in row.get("student") or () if message["role"] == "user"]
    return " ".join(_texts(users[-1:])).strip()


def accuracy(run: RunFiles) -> dict[str, dict[str, Any]]:
    """The last whole evaluation of each view, in per cent with its interval; before a run has one, the last of any."""
    found: dict[str, dict[str, Any]] = {}
    for one in (*(part for part in run.evaluations if not part.get("whole", True)), *run.whole):
        for name, view in one["views"].items():
            low, high = view["ci95"]
            found[name] = {"value": 100 * view["accuracy"], "ci95": [100 * low, 100 * high], "step": one["step"]}
    return found


def recipe_differences(first: RunFiles, second: RunFiles) -> list[tuple[str, str, str]]:
    """Values in which two recipes differ: dotted name, the first one's, the second one's."""
    old, new = leaves(first.config), leaves(second.config)
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return [(name, str(old.get(name, "absent")), str(new.get(name, "absent"))) for name in names]
