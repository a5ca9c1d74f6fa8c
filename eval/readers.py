"""Local copies of benchmarks as rows: what people already have on disk, in whichever form they have it.

| what | rows |
|---|---|
| a .tsv or .csv file (VLMEvalKit's layout) | base64, another row's index, a list of several, or paths |
| a .parquet file, or a folder with parquet files | Hugging Face's layout: pictures as ``{"bytes", "path"}``, bytes, base64 |
| a folder that ``save_to_disk`` wrote | the same, memory-mapped |
| a .json or .jsonl file beside a folder of pictures | paths relative to the file, or to ``images/`` or ``image/`` beside it |

Nothing is downloaded, nothing is refused for its checksum, and no text of a file is executed. Pictures are `LazyPicture`: they
are read when their pixels are asked for, so that going through the rows costs next to nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from PIL import Image

from ..datasets.raw_rows import RowError
from ..vlm.images import Picture, PictureError
from .lazy_pictures import Encoded, LazyPicture, decoded_base64
from .records import Source
from .row_tables import SPLITS, DelimitedTable, Table, open_folder, open_table

_REFERENCE_CHARS = 64
"""A picture's cell of at most so many characters is no picture but another row's index or a path (VLMEvalKit's rule)."""
_PATH_CHARS = 1024


class Row(Mapping[str, Any]):
    """One row, whose cells are read when they are asked for. Empty cells are None; a name's aliases are tried after it.

    ``row.place`` names file and row: ``raise RowError(f"{row.place}: what is wrong", "how to mend it")``.
    """

    def __init__(self, rows: Rows, index: int) -> None:
        self.rows, self.index = rows, index

    @property
    def place(self) -> str:
        """File and line, in words."""
        return f"{self.rows.path}, {self.rows.table.place(self.index)}"

    def __getitem__(self, name: str) -> Any:
        columns = self.columns(name)
        if not columns:
            raise KeyError(name)
        values = (self.rows.table.cell(self.index, column) for column in columns)
        return next((value for value in values if value is not None and value != ""), None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows.table.columns_of(self.index))

    def __len__(self) -> int:
        return len(self.rows.table.columns_of(self.index))

    def columns(self, name: str) -> list[str]:
        """The columns that a name may stand for and that are here: itself, then its aliases."""
        here = self.rows.table.columns_of(self.index)
        return [one for one in (name, *self.rows.aliases.get(name, ())) if one in here]

    def text(self, *names: str) -> str:
        """The first of these cells that holds something, as text without outer spaces. `RowError` when none does."""
        for name in names:
            value = self.get(name)
            if value is not None and str(value).strip():
                return str(value).strip()
        raise RowError(f"{self.place}: nothing in {' or '.join(names)}", f"the columns here are {', '.join(self)}")


class Rows(Sequence[Row]):
    """The rows of a local copy. ``source`` says what was read; a checksum that is not at hand is worked out then."""

    def __init__(self, path: Path, table: Table, aliases: Mapping[str, Sequence[str]], files: Sequence[Path]) -> None:
        self.path, self.table, self.aliases, self.files = path, table, aliases, tuple(files)
        changed_ns = max((file.stat().st_mtime_ns for file in self.files), default=0)
        self.stamp = f"{path.absolute()} {changed_ns}"
        """What tells these rows from all others, and from an older state of the same files."""

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [Row(self, place) for place in range(len(self))[index]]
        return Row(self, range(len(self))[index])

    @functools.cached_property
    def source(self) -> Source:
        sha256 = self.table.rows.sha256 if isinstance(self.table, DelimitedTable) else checksum(self.path, self.files)
        return Source(str(self.path), sha256, len(self), tuple(self.table.problems))

    @functools.cached_property
    def by_index(self) -> Mapping[str, int]:
        """Row numbers by the text of the column ``index``."""
        return {plain(row["index"]): row.index for row in self if "index" in row}

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self.path if self.path.is_dir() else self.path.parent


def plain(value: Any) -> str:
    """A number or text as the text that two columns can be joined by: 3, "3" and 3.0 are one."""
    return str(value).strip().removesuffix(".0")


def checksum(path: Path, files: Sequence[Path]) -> str:
    """SHA-256 of a file's bytes; of a folder, of the names and sizes of its files."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    listing = "".join(f"{file.relative_to(path).as_posix()}\t{file.stat().st_size}\n" for file in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()


def read_rows(
    path: str,
    *,
    aliases: Mapping[str, Sequence[str]] | None = None,
    names: Sequence[str] = (),
    splits: Sequence[str] = SPLITS,
) -> Rows:
    """The rows of a local copy. In a folder, a file (or folder) called one of ``names`` is looked for first.

    ``aliases`` gives other names that a column goes by: ``{"answer": ("label", "Correct Answer")}``. `ValueError` says what was
    expected and what there is.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        place = next((place / name for name in names if (place / name).exists()), place)
    if place.is_dir():
        read, table, files = open_folder(place, splits)
        return Rows(read, table, aliases or {}, files)
    if not place.is_file():
        like = f", for instance {names[0]}" if names else ""
        raise ValueError(f"{path}: no such file or folder; nothing is downloaded: give the place of the local copy{like}")
    return Rows(place, open_table(place), aliases or {}, (place,))


# --- pictures ---------------------------------------------------------------------------------------------------------------


def pictures_of(row: Mapping[str, Any], columns: Sequence[str] = ("image",)) -> tuple[Picture, ...]:
    """The pictures in these columns of a row of `read_rows`, in order, none of them read yet; an empty cell holds none.

    `RowError` names file and row where a path leads nowhere. A picture that turns out to be broken is a `PictureError` when its
    pixels are asked for, and names them too.
    """
    if not isinstance(row, Row):
        raise TypeError(f"pictures_of wants a row of read_rows, got {type(row).__name__}")
    found: list[Picture] = []
    for name in columns:
        for column in row.columns(name):
            here = _in_cell(row, column)
            if here:
                found += here
                break
    return tuple(found)


def picture_of(ref: Any, row: Row, what: str) -> Picture:
    """The picture behind a reference (a path, base64, bytes ...) that a caller took out of a row. `RowError`."""
    small = ref if not isinstance(ref, str) or len(ref) > _PATH_CHARS else _encoded(ref, row)
    return LazyPicture(lambda: _encoded(small, row), f"{row.place}, {what}", f"{row.rows.stamp} {row.index} {what}")


def _in_cell(row: Row, column: str, hops: int = 0) -> list[Picture]:
    rows, name, held_as = row.rows, f"{row.place}, {column}", f"{row.rows.stamp} {row.index} {column}"
    if rows.table.one_picture(row.index, column):
        return [LazyPicture(functools.partial(_reread, row, column, 0), name, held_as)]
    found: list[Picture] = []
    for number, ref in enumerate(_references(rows.table.cell(row.index, column), name)):
        if isinstance(ref, str) and len(ref) <= _REFERENCE_CHARS:
            other = rows.by_index.get(plain(ref))
            if other is not None and other != row.index and hops < len(rows):
                found += _in_cell(rows[other], column, hops + 1)
                continue
        if isinstance(ref, str) and len(ref) <= _PATH_CHARS:
            load = functools.partial(_same, _encoded(ref, row))
        else:
            load = functools.partial(_reread, row, column, number)
        found.append(LazyPicture(load, f"{name}[{number}]" if number else name, f"{held_as} {number}"))
    return found


def _same(found: Encoded) -> Encoded:
    return found


def _reread(row: Row, column: str, number: int) -> Encoded:
    table = row.rows.table
    if isinstance(table, DelimitedTable) and table.one_picture(row.index, column):
        return decoded_base64(table.rows.field(row.index, column))
    return _encoded(_references(table.cell(row.index, column), row.place)[number], row)


def _references(value: Any, where: str) -> Sequence[Any]:
    """The single references of a cell: a list, the text of a Python list, or one thing; empty ones aside."""
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise RowError(f"{where}: not a list of pictures ({type(error).__name__})", "expected ['...', '...']") from error
    if isinstance(value, list | tuple):
        return [ref for ref in value if ref is not None and ref != ""]
    if isinstance(value, Mapping) and value.get("bytes") is None and not value.get("path"):
        return ()
    return () if value is None or value == "" else (value,)


def _encoded(ref: Any, row: Row) -> Encoded:
    if isinstance(ref, Mapping):
        ref = ref["bytes"] if ref.get("bytes") is not None else ref.get("path") or ref.get("image") or ref.get("url")
    if isinstance(ref, bytes | Path | Image.Image):
        return ref
    if not isinstance(ref, str) or not ref:
        raise RowError(
            f"{row.place}: a picture given as {type(ref).__name__} {str(ref)[:60]!r}", "expected base64, bytes or a path"
        )
    if ref.startswith(("http://", "https://")):
        raise RowError(
            f"{row.place}: {ref[:120]}", "pictures are not fetched from the net; fetch them first and write their paths"
        )
    if len(ref) > _PATH_CHARS or ref.startswith("data:"):
        return decoded_base64(ref.encode())
    folder, stem = row.rows.folder, row.rows.path.stem.removesuffix("_local")
    for below in ("", "images", "image", f"images/{stem}"):
        path = folder / below / ref  # an absolute name stays as it is
        if path.is_file():
            return path
    if len(ref) > _REFERENCE_CHARS and not Path(ref).suffix:
        try:
            return decoded_base64(ref.encode())
        except PictureError:
            pass  # too short for a picture and no base64: a path that leads nowhere
    raise RowError(f"{row.place}: no picture {ref!r}", f"looked in {folder} and in images, image, images/{stem} below it")
