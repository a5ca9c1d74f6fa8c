"""Rows of parquet files, without loading them: small columns are held, large ones (pictures) are streamed a few rows at once."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

_LARGE_BYTES = 2048
_BATCH_ROWS = 4
_KEPT_BYTES = 64 << 20


class Parquet:
    """The rows of one parquet file or of several with the same columns. `ValueError` names the file that cannot be read.

    A column is large when it takes more than 2 kB a row. Its values come from a reader that moves forward through a row group, so
    that reading in order costs one pass, and going back costs the row group once more.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        try:
            # Without pre_buffer, and with a buffer, a column is read page by page and not a row group at a time.
            self._files = [pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) for path in paths]
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{', '.join(map(str, paths))}: not a readable parquet file ({error})") from error
        self.columns = tuple(dict.fromkeys(name for file in self._files for name in file.schema_arrow.names))
        self._groups = [
            (which, group, file.metadata.row_group(group).num_rows)
            for which, file in enumerate(self._files)
            for group in range(file.metadata.num_row_groups)
        ]
        self._starts = [0]
        for _, _, num_rows in self._groups:
            self._starts.append(self._starts[-1] + num_rows)
        self._file_starts = {
            which: start for (which, group, _), start in zip(self._groups, self._starts, strict=False) if group == 0
        }
        self.large = frozenset(name for name in self.columns if self._row_bytes(name) > _LARGE_BYTES)
        self._small = [
            file.read([name for name in file.schema_arrow.names if name not in self.large], use_threads=False)
            for file in self._files
        ]
        self._streams = {name: _Stream(self, name) for name in self.large}

    def __len__(self) -> int:
        return self._starts[-1]

    def place(self, index: int) -> str:
        which, row = self._file_of(index)
        return (
            f"row {row} (from 0)"
            if len(self.paths) == 1
            else f"{self.paths[which].parent.name}/{self.paths[which].name}, row {row} (from 0)"
        )

    def cell(self, index: int, column: str) -> Any:
        """A value as Python objects; None where the row's file lacks the column. `KeyError` when all do."""
        if column in self.large:
            return self._streams[column].value(index)
        if column not in self.columns:
            raise KeyError(column)
        which, row = self._file_of(index)
        table = self._small[which]
        return table.column(column)[row].as_py() if column in table.column_names else None

    def surely_one(self, index: int, column: str) -> bool:
        """True when the value is one large thing (bytes, text, or a picture's record) and certainly there: no need to read it."""
        which, group, _ = self._groups[self._group_of(index)]
        file = self._files[which]
        if column not in self.large or column not in file.schema_arrow.names or self._is_list(which, column):
            return False
        chunks = [chunk for chunk in self._chunks(which, group, column) if not chunk.path_in_schema.endswith(".path")]
        return all(chunk.statistics is not None and chunk.statistics.null_count == 0 for chunk in chunks)

    def _is_list(self, which: int, column: str) -> bool:
        kind = self._files[which].schema_arrow.field(column).type
        return bool(pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind))

    def _chunks(self, which: int, group: int, column: str) -> list[Any]:
        meta = self._files[which].metadata.row_group(group)
        chunks = [meta.column(place) for place in range(meta.num_columns)]
        return [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column]

    def _row_bytes(self, column: str) -> float:
        chunks = [chunk for which, group, _ in self._groups for chunk in self._chunks(which, group, column)]
        return float(sum(chunk.total_uncompressed_size for chunk in chunks)) / max(1, len(self))

    def _group_of(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1

    def _file_of(self, index: int) -> tuple[int, int]:
        group = self._group_of(index)
        which = self._groups[group][0]
        return which, index - self._file_starts[which]

    def batches(self, group: int, column: str) -> Iterator[Any]:
        """The values of a column of one row group, a few at a time, as Arrow arrays."""
        which, own, num_rows = self._groups[group]
        if column not in self._files[which].schema_arrow.names:
            return iter([pyarrow.nulls(num_rows)])
        reader = pyarrow.parquet.ParquetFile(self.paths[which], buffer_size=1 << 20, pre_buffer=False)
        batches = reader.iter_batches(_BATCH_ROWS, row_groups=[own], columns=[column], use_threads=False)
        return (batch.column(0) for batch in batches)

    def start_of(self, index: int) -> tuple[int, int]:
        """The row group of a row, and the first row of that group."""
        group = self._group_of(index)
        return group, self._starts[group]


class _Stream:
    """One large column, read forwards; the last values are kept for workers that ask out of order."""

    def __init__(self, rows: Parquet, column: str) -> None:
        self._rows, self._column = rows, column
        self._kept: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._kept_bytes = 0
        self._group, self._next = -1, 0
        self._batches: Iterator[Any] = iter(())
        self._lock = threading.Lock()

    def value(self, index: int) -> Any:
        with self._lock:
            if index not in self._kept:
                group, start = self._rows.start_of(index)
                if group != self._group or index < self._next:
                    self._group, self._next, self._batches = group, start, self._rows.batches(group, self._column)
                while index not in self._kept:
                    self._keep(next(self._batches))
            return self._kept[index][0].as_py()

    def _keep(self, batch: Any) -> None:
        size = batch.nbytes // max(1, len(batch))
        for place in range(len(batch)):
            self._kept_bytes -= self._kept.pop(self._next + place, (None, 0))[1]
            self._kept[self._next + place] = (batch[place], size)
            self._kept_bytes += size
        self._next += len(batch)
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > len(batch):
            _, (_, gone) = self._kept.popitem(last=False)
            self._kept_bytes -= gone
