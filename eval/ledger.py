"""What an evaluation has finished, on disk, so that it can be killed anywhere and run again: nothing is lost, nothing done twice.

``rows.jsonl`` grows by one whole line for each finished task. ``run.json`` holds the settings that decide what the rows say:
other settings are refused there, since two halves of different evaluations are no evaluation.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .records import Row

Key = tuple[str, int, int]
"""Mode, index of the item in its file, draw."""
_SYNC_SECONDS = 1.0


class LedgerError(ValueError):
    """A folder that cannot take these rows. Says what is there and what to do."""


def key_of(row: Row) -> Key:
    return str(row["mode"]), int(row["index"]), int(row["draw"])


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the evaluation in a folder. `LedgerError` when there is none."""
    path = folder / "run.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path}: cannot be read ({error}); is this the folder of an evaluation?") from error
    return settings


def read_lines(path: Path) -> tuple[list[Row], int]:
    """The whole rows of a file, and the bytes they take: what comes after was cut off while it was written.

    `LedgerError` names a broken line that is not the last.
    """
    data = path.read_bytes() if path.exists() else b""
    rows: list[Row] = []
    end = 0
    while (stop := data.find(b"\n", end) + 1) > 0:
        try:
            row = json.loads(data[end:stop])
            key_of(row)
        except (ValueError, KeyError, TypeError) as error:
            if data.find(b"\n", stop) >= 0:
                raise LedgerError(f"{path}, line {len(rows) + 1}: not a row ({error}); mend or remove the line") from error
            break
        rows.append(row)
        end = stop
    return rows, end


class Ledger:
    """The open books of one evaluation, for one process at a time. Use it in a ``with`` statement.

    ``settings`` are JSON; those under "modes" are looked at mode by mode, so that a folder may be given further modes.
    ``retry_failed`` strikes rows out whose engine gave nothing. Rows are handed to the system one by one, where they outlive
    this process, and forced to disk every second. `LedgerError`: other settings, another process, or a broken file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, retry_failed: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._path = folder, folder / "rows.jsonl"
        self._door = (folder / ".lock").open("ab")
        try:
            self._lock()
            self._agree(json.loads(json.dumps(settings)))
            self.rows = self._recovered(retry_failed)
        except LedgerError:
            self._door.close()
            raise
        self.done = {key_of(row) for row in self.rows}
        self._file = self._path.open("ab", buffering=0)
        self._synced_s = time.monotonic()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        self._door.close()

    def add(self, row: Row) -> None:
        """Write a row. `OSError` when the disk is full; what was half written is cut off by the next run."""
        key = key_of(row)
        if key in self.done:
            raise LedgerError(f"{self._path}: {key} is done already")
        line = (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
        written = self._file.write(line)
        if written != len(line):
            raise OSError(f"{self._path}: {written} of {len(line)} bytes could be written; is the disk full?")
        self.done.add(key)
        self.rows.append(json.loads(line))
        if time.monotonic() - self._synced_s > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced_s = time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._door, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the system, however the process ends
        except BlockingIOError as error:
            raise LedgerError(f"{self.folder}: another process evaluates into it; wait for it, or take another folder") from error

    def _recovered(self, retry_failed: bool) -> list[Row]:
        rows, end = read_lines(self._path)
        kept = [row for row in rows if not retry_failed or row["outcome"] != "failed"]
        if len(kept) < len(rows):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            _replace(self._path, lines.encode("utf-8", "replace"))
        elif self._path.exists():
            os.truncate(self._path, end)
        return kept

    def _agree(self, settings: dict[str, Any]) -> None:
        """Refuse settings that differ from those of the rows that are here; write down what is new."""
        path = self.folder / "run.json"
        if path.exists():
            before = read_settings(self.folder)
            old, new = before.get("modes", {}), settings.get("modes", {})
            then = {**before, "modes": None, **{name: old[name] for name in old if name in new}}
            now = {**settings, "modes": None, **{name: new[name] for name in new if name in old}}
            wrong = sorted(name for name in {**then, **now} if then.get(name) != now.get(name))
            if wrong:
                told = "; ".join(f"{name} was {then.get(name)}, is {now.get(name)}"[:300] for name in wrong)
                raise LedgerError(f"{self.folder} holds another evaluation ({told}); take another folder")
            settings = {**settings, "modes": {**old, **new}}
        elif self._path.exists() and self._path.stat().st_size:
            raise LedgerError(f"{self.folder}: rows.jsonl without the run.json that says what they are; take another folder")
        text = json.dumps({"fingerprint": fingerprint(settings), "settings": settings}, indent=1, ensure_ascii=False)
        _replace(path, (text + "\n").encode("utf-8", "replace"))


def fingerprint(settings: Mapping[str, Any]) -> str:
    """One word for settings: SHA-256 of their JSON with sorted names, 16 digits of it."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that it is the old one or the new one at any moment."""
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
