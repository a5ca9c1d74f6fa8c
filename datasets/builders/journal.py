"""A file of JSON lines that a long job grows: killed anywhere and opened again, it holds every whole line, and no half one.

With settings, a file beside it (``NAME.meta.json``) says what the lines are: other settings are refused, since two halves of
different jobs are no job.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

_SYNC_SECONDS = 1.0


class JournalError(ValueError):
    """A journal that cannot be gone on with. Says what is there and what to do."""


class Journal:
    """The open file of one job, for one process at a time. Use it in a ``with`` statement.

    ``rows`` are the lines that were there. New ones are handed to the system as they come, where they outlive this process, and
    forced to disk every second. `JournalError`: other ``settings`` (JSON), another process, or a broken line before the last.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None) -> None:
        if path.suffix != ".jsonl":
            raise JournalError(f"{path}: written as JSON lines; give a name that ends in .jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.meta = path, path.with_suffix(".meta.json")
        self._file = path.open("ab", buffering=0)
        self._synced_s = time.monotonic()
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the system, however the process ends
            except BlockingIOError as error:
                raise JournalError(f"{path}: another process writes to it; wait for it, or give another name") from error
            self.rows, self._ends = read_whole_lines(path)
            if settings is not None:
                self._agree(json.loads(json.dumps(settings)))
            os.truncate(path, self._ends[-1] if self._ends else 0)
        except ValueError:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file.closed:
            return
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Lines at the end, in one piece. `OSError` when the disk is full; what was half written is cut off next time."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data = text.encode("utf-8", "backslashreplace")
        written = self._file.write(data)
        if written != len(data):
            raise OSError(f"{self.path}: {written} of {len(data)} bytes could be written; is the disk full?")
        if time.monotonic() - self._synced_s > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced_s = time.monotonic()

    def cut(self, count: int) -> None:
        """Keep the first ``count`` of the lines that were there; before anything is added."""
        del self.rows[count:], self._ends[count:]
        os.truncate(self.path, self._ends[-1] if self._ends else 0)

    def remove(self) -> None:
        """Close and delete the journal: its job is done, and what it made stands elsewhere."""
        self._file.close()
        self.path.unlink(missing_ok=True)
        self.meta.unlink(missing_ok=True)

    def _agree(self, settings: dict[str, Any]) -> None:
        if not self.meta.exists():
            if self.rows:
                raise JournalError(
                    f"{self.path}: there are rows, and no {self.meta.name} that says what they are; move the file away, or give "
                    "another name"
                )
            replace_text(self.meta, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            before = json.loads(self.meta.read_text(encoding="utf-8"))
        except ValueError as error:
            raise JournalError(f"{self.meta}: cannot be read ({error}); move it and {self.path.name} away") from error
        wrong = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if wrong:
            told = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(settings.get(name))}" for name in wrong)
            raise JournalError(f"{self.path} was begun with other settings ({told}); go on with the same, or give another name")


def read_whole_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of a file of JSON lines, and the byte at which each ends. A last line that was cut off is left out.

    `JournalError` names a broken line that is not the last.
    """
    data = path.read_bytes() if path.exists() else b""
    rows: list[dict[str, Any]] = []
    ends: list[int] = []
    start = 0
    while (stop := data.find(b"\n", start) + 1) > 0:
        try:
            row = json.loads(data[start:stop])
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, got {type(row).__name__}")
        except ValueError as error:
            if data.find(b"\n", stop) >= 0:
                raise JournalError(f"{path}, line {len(rows) + 1}: not a row ({error}); mend or remove the line") from error
            break
        rows.append(row)
        ends.append(stop)
        start = stop
    return rows, ends


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is the old one or the new one at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:160]} ..."
