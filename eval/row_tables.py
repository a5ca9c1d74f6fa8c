"""The forms that rows have on disk, behind one small interface: a cell is read when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ..datasets.raw_rows import RowError
from ..datasets.rows import JsonLines, JsonList
from .delimited import Delimited
from .parquet import Parquet

SPLITS = ("test", "testmini", "val", "validation", "dev")
"""Which split is taken where a folder holds several, the first that is there."""
SUFFIXES = (".tsv", ".csv", ".parquet", ".jsonl", ".json")
_LARGE_BYTES = 1024


class Table(Protocol):
    """What all forms have in common. ``cell`` raises `KeyError` for a column that the row lacks."""

    @property
    def problems(self) -> Sequence[str]:
        """Rows that were left out, in words."""
        ...

    def __len__(self) -> int: ...
    def place(self, index: int) -> str: ...
    def columns_of(self, index: int) -> tuple[str, ...]: ...
    def cell(self, index: int, column: str) -> Any: ...
    def one_picture(self, index: int, column: str) -> bool:
        """True when the cell surely holds one picture, and is too large to be read just to know that."""
        ...


def open_table(path: Path) -> Table:
    """The rows of a file, by its suffix. `ValueError`."""
    suffix = path.suffix.lower()
    if suffix in (".tsv", ".csv"):
        return DelimitedTable(Delimited(path, b"\t" if suffix == ".tsv" else b","))
    if suffix == ".parquet":
        return ParquetTable(Parquet([path]))
    if suffix in (".jsonl", ".json"):
        return JsonTable(JsonLines(path) if suffix == ".jsonl" else JsonList(path), path)
    raise ValueError(f"{path}: cannot be read as a benchmark; expected a file in {', '.join(SUFFIXES)}")


def open_folder(folder: Path, splits: Sequence[str]) -> tuple[Path, Table, list[Path]]:
    """What was read (the folder, or its only file), its rows, and the files that they are in. `ValueError`."""
    if any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        return folder, _saved(folder, splits), [file for file in folder.rglob("*") if file.is_file()]
    parquet = sorted(folder.rglob("*.parquet"))
    if parquet:
        chosen = _of_one_split(folder, parquet, splits)
        return folder, ParquetTable(Parquet(chosen)), chosen
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(found) == 1:
        return found[0], open_table(found[0]), found
    names = ", ".join(file.name for file in found[:8]) or f"no file in {', '.join(SUFFIXES)}"
    raise ValueError(f"{folder}: one file is wanted and there is {names}; name the file itself")


def _of_one_split(folder: Path, files: Sequence[Path], splits: Sequence[str]) -> list[Path]:
    """The files whose names start with the first of the splits that is there; all where no name tells a split."""
    heads = {file: re.split(r"[-_.]", file.name)[0] for file in files}
    for split in splits:
        if split in heads.values():
            return [file for file in files if heads[file] == split]
    if len(set(heads.values())) == 1 or not set(heads.values()) & {"train", *SPLITS}:
        return list(files)
    raise ValueError(f"{folder}: parquet files of {', '.join(sorted(set(heads.values())))}; name the file itself")


def _saved(folder: Path, splits: Sequence[str]) -> Table:
    from datasets import DatasetDict, load_from_disk

    loaded: Any = load_from_disk(str(folder))
    if isinstance(loaded, DatasetDict):
        name = next((split for split in splits if split in loaded), next(iter(loaded)) if len(loaded) == 1 else None)
        if name is None:
            raise ValueError(
                f"{folder}: splits {', '.join(loaded)}, none of {', '.join(splits)}; save the one that is meant alone"
            )
        loaded = loaded[name]
    return ArrowTable(loaded)


class DelimitedTable:
    """A TSV or CSV file."""

    def __init__(self, rows: Delimited) -> None:
        self.rows, self.problems = rows, rows.problems

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        return self.rows.place(index)

    def columns_of(self, index: int) -> tuple[str, ...]:
        return self.rows.columns

    def cell(self, index: int, column: str) -> str:
        data = self.rows.field(index, column)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            where = f"{self.rows.path}, {self.place(index)}, {column}"
            raise RowError(f"{where}: not UTF-8 ({error})", "write the file anew in UTF-8") from error

    def one_picture(self, index: int, column: str) -> bool:
        return self.rows.num_bytes(index, column) > _LARGE_BYTES and not self.rows.starts(index, column, b"[")


class ParquetTable:
    """Parquet files."""

    problems: Sequence[str] = ()

    def __init__(self, rows: Parquet) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        return self.rows.place(index)

    def columns_of(self, index: int) -> tuple[str, ...]:
        return self.rows.columns

    def cell(self, index: int, column: str) -> Any:
        return self.rows.cell(index, column)

    def one_picture(self, index: int, column: str) -> bool:
        return self.rows.surely_one(index, column)


class ArrowTable:
    """A memory-mapped Hugging Face data set; ``saved`` is a `datasets.Dataset`."""

    problems: Sequence[str] = ()

    def __init__(self, saved: Any) -> None:
        self._rows = saved.with_format("arrow")
        self._columns = tuple(saved.column_names)

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> str:
        return f"row {index} (from 0)"

    def columns_of(self, index: int) -> tuple[str, ...]:
        return self._columns

    def cell(self, index: int, column: str) -> Any:
        return self._scalar(index, column).as_py()

    def one_picture(self, index: int, column: str) -> bool:
        scalar = self._scalar(index, column)
        kind = str(scalar.type)
        if kind.startswith("struct") and "bytes" in scalar:
            scalar = scalar["bytes"]
        return bool(scalar.is_valid) and str(scalar.type) in ("binary", "large_binary")

    def _scalar(self, index: int, column: str) -> Any:
        return self._rows[index : index + 1].column(column)[0]


class JsonTable:
    """A JSON or JSON-lines file."""

    problems: Sequence[str] = ()

    def __init__(self, rows: JsonLines | JsonList, path: Path) -> None:
        self.rows, self.path = rows, path
        self._row = lru_cache(4)(self._parsed)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        return self.rows.place(index)

    def columns_of(self, index: int) -> tuple[str, ...]:
        return tuple(self._row(index))

    def cell(self, index: int, column: str) -> Any:
        return self._row(index)[column]

    def one_picture(self, index: int, column: str) -> bool:
        return False

    def _parsed(self, index: int) -> Mapping[str, Any]:
        try:
            return self.rows.row(index)
        except ValueError as error:
            raise RowError(
                f"{self.path}, {self.place(index)}: not a readable row ({error})", "expected one JSON object"
            ) from error
