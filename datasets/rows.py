"""Rows of a file by number, without holding them: JSON lines by byte offset, Arrow tables memory-mapped."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

SUFFIXES = (".jsonl", ".json", ".parquet")


class Rows(Protocol):
    """Rows by number. ``row`` raises `ValueError` for a row that is not a mapping of columns."""

    def __len__(self) -> int: ...
    def row(self, index: int) -> Mapping[str, Any]: ...
    def place(self, index: int) -> str: ...


class JsonLines:
    """A .jsonl file: one pass finds where the lines start; a line is parsed when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._lines = array("q"), array("q")
        with path.open("rb") as stream:
            start = 0
            for number, line in enumerate(stream, 1):
                if line.strip():
                    self._starts.append(start)
                    self._lines.append(number)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Mapping[str, Any]:
        with self.path.open("rb") as stream:
            stream.seek(self._starts[index])
            return _mapping(json.loads(stream.readline().decode("utf-8-sig")))

    def place(self, index: int) -> str:
        return f"line {self._lines[index]}"


class JsonList:
    """A .json file: a list of rows, or a mapping with one list in it ("data", "annotations" ...)."""

    def __init__(self, path: Path) -> None:
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error}); a file with one object a line is called .jsonl") from error
        if isinstance(data, Mapping):
            lists = [value for value in data.values() if isinstance(value, list)]
            data = lists[0] if len(lists) == 1 else [data]
        self._rows: list[Any] = data if isinstance(data, list) else [data]

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        return _mapping(self._rows[index])

    def place(self, index: int) -> str:
        return f"row {index} (from 0)"


class ArrowRows:
    """A parquet file, a saved Hugging Face data set or one of the hub. Pictures stay encoded (``{"bytes", "path"}``)."""

    def __init__(self, table: Any) -> None:
        self._table = table.with_format("arrow")

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> Mapping[str, Any]:
        return _mapping(self._table[index : index + 1].to_pylist()[0])

    def place(self, index: int) -> str:
        return f"row {index} (from 0)"


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object with columns, got {type(value).__name__}")
    return value


def open_rows(path: str, hub_split: str = "train", hub_name: str | None = None) -> Rows:
    """The rows of a file, of a folder that Hugging Face datasets saved, or of a hub data set (through its local cache).

    `ValueError` says what was expected and what there is.
    """
    place = Path(path).expanduser()
    if place.is_file():
        if place.suffix == ".jsonl":
            return JsonLines(place)
        if place.suffix == ".json":
            return JsonList(place)
        if place.suffix == ".parquet":
            return ArrowRows(_parquet(place))
        raise ValueError(f"{path}: cannot be read as data; expected a file in {', '.join(SUFFIXES)}")
    if place.is_dir():
        return ArrowRows(_saved(place, hub_split))
    if place.suffix in SUFFIXES or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f"{path}: no such file; check data.path (a relative path starts from the current folder, {Path.cwd()})")
    return ArrowRows(_hub(path, hub_split, hub_name))


def _parquet(path: Path) -> Any:
    import pyarrow
    from datasets import Dataset

    try:
        return Dataset.from_parquet(str(path))
    except (pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error


def _saved(folder: Path, split: str) -> Any:
    if not any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        inside = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
        hint = f"name one of its files: {', '.join(inside[:8])}" if inside else "it holds no .jsonl, .json or .parquet file"
        raise ValueError(f"{folder}: a folder that Hugging Face datasets did not save (save_to_disk); {hint}")
    from datasets import DatasetDict, load_from_disk

    return _one_split(load_from_disk(str(folder)), split, str(folder), DatasetDict)


def _hub(name: str, split: str, config: str | None) -> Any:
    from datasets import DatasetDict, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return _one_split(load_dataset(name, config), split, name, DatasetDict)
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        raise ValueError(
            f"{name}: neither a file here nor a hub data set that can be reached ({error}); check data.path"
        ) from error


def _one_split(loaded: Any, split: str, name: str, dict_type: type) -> Any:
    if not isinstance(loaded, dict_type):
        return loaded
    splits = dict(loaded)  # type: ignore[call-overload]
    if split not in splits:
        raise ValueError(f"{name}: no split {split!r}; data.hub_split is one of {', '.join(splits)}")
    return splits[split]
