"""Rows of a TSV or CSV file by byte offset: a benchmark of 30 GB costs one pass over it, and then only what is asked for.

The rules are those of Python's csv module and of pandas: a field that starts with a quote may hold delimiters, line breaks and
doubled quotes. Fields are found with byte searches and not character by character, since one of them may be 50 MB of base64.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path

_QUOTE = b'"'


class Delimited:
    """A file of delimited rows with a header. `ValueError` when there is none, or a quoted field never ends.

    ``problems`` names rows of the wrong number of fields, which are left out.
    """

    def __init__(self, path: Path, delimiter: bytes) -> None:
        self.path = path
        self.problems: list[str] = []
        self._fd = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)
        self._spans, self._lines = array("q"), array("q")  # start and end of every field, row after row; first line of a row
        digest = hashlib.sha256()
        self.columns: tuple[str, ...] = ()
        for line, spans in _records(path, delimiter, digest):
            if not self.columns:
                pairs = zip(spans[::2], spans[1::2], strict=True)
                self.columns = tuple(self._read(start, end).decode().strip() for start, end in pairs)
            elif len(spans) != 2 * len(self.columns):
                self.problems.append(f"line {line}: {len(spans) // 2} fields, the header has {len(self.columns)}; row left out")
            else:
                self._spans.extend(spans)
                self._lines.append(line)
        if not self.columns:
            raise ValueError(f"{path}: the file is empty; expected a header and rows")
        self.sha256 = digest.hexdigest()
        self._places = {name: place for place, name in enumerate(self.columns)}

    def __len__(self) -> int:
        return len(self._lines)

    def place(self, index: int) -> str:
        return f"line {self._lines[index]}"

    def num_bytes(self, index: int, column: str) -> int:
        """Length of a field in the file, its quotes included. `KeyError` for an unknown column."""
        start, end = self._span(index, column)
        return end - start

    def starts(self, index: int, column: str, head: bytes) -> bool:
        """Whether a field starts with these bytes, its quotes taken off."""
        start, end = self._span(index, column)
        return os.pread(self._fd, min(end - start, 1 + len(head)), start).removeprefix(_QUOTE).startswith(head)

    def field(self, index: int, column: str) -> bytes:
        """A field, its quotes taken off. `KeyError` for an unknown column."""
        return self._read(*self._span(index, column))

    def _span(self, index: int, column: str) -> tuple[int, int]:
        place = 2 * (index * len(self.columns) + self._places[column])
        return self._spans[place], self._spans[place + 1]

    def _read(self, start: int, end: int) -> bytes:
        return unquoted(os.pread(self._fd, end - start, start))


def unquoted(field: bytes) -> bytes:
    """The value of a field as it stands in the file.

    >>> unquoted(b'"5"" wide"')
    b'5" wide'
    """
    if field[:1] != _QUOTE:
        return field
    end, _ = _closing(field, 1)
    inside = field[1:end]
    if _QUOTE in inside:
        inside = inside.replace(b'""', _QUOTE)
    return inside + field[end + 1 :] if end + 1 < len(field) else inside


def _closing(text: bytes, start: int) -> tuple[int, bool]:
    """Where the quoted field that ``start`` lies in ends: the place of its closing quote, and True; else the end, and False."""
    while True:
        place = text.find(_QUOTE, start)
        if place < 0:
            return len(text), False
        if text[place + 1 : place + 2] != _QUOTE:
            return place, True
        start = place + 2


def _records(path: Path, delimiter: bytes, digest: hashlib._Hash) -> Iterator[tuple[int, list[int]]]:
    """``(first line, [start, end, start, end, ...])`` of every row, in bytes of the file; blank lines are skipped."""
    spans: list[int] = []
    offset, first_line, field_start, quoted = 0, 1, 0, False
    with path.open("rb", buffering=1 << 20) as stream:
        for number, line in enumerate(stream, 1):
            digest.update(line)
            place = 0
            if not quoted:
                spans, first_line, field_start = [], number, offset + (3 if number == 1 and line[:3] == b"\xef\xbb\xbf" else 0)
                place = field_start - offset
                if not line.strip(b"\r\n"):
                    offset += len(line)
                    continue
                quoted = line[place : place + 1] == _QUOTE
                place += quoted
            while True:
                if quoted:
                    place, closed = _closing(line, place)
                    if not closed:
                        break
                    quoted = False
                end = line.find(delimiter, place)
                if end < 0:
                    spans += field_start, offset + len(line.rstrip(b"\r\n"))
                    yield first_line, spans
                    break
                spans += field_start, offset + end
                field_start, place = offset + end + 1, end + 1
                quoted = line[place : place + 1] == _QUOTE
                place += quoted
            offset += len(line)
    if quoted:
        raise ValueError(f"{path}, line {first_line}: a quoted field never ends; the file is cut short or a quote is not doubled")
