"""What an importer hands to the reader: a row with its columns understood, and the small readings of cells that all share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .spec import BoxFormat


class RowError(ValueError):
    """A row that cannot be used: what is wrong, and how to mend it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}; {mend}")
        self.what, self.mend = what, mend


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """A row with its columns understood and nothing opened or converted yet."""

    question: str
    id: str | None = None
    answer: str | None = None
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    crops: tuple[Any, ...] = ()
    boxes: tuple[Any, ...] = ()
    box_format: BoxFormat | None = None
    box_image: int = 0
    options: tuple[str, ...] = ()
    system: str | None = None
    rationale: str | None = None
    prompt: str | None = None
    hints: tuple[str, ...] = ()
    source: str = ""
    kind: str = ""
    difficulty: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class Row(Mapping[str, Any]):
    """A row that remembers which of its columns were asked for, so that unused ones can be named."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def first(self, *names: str) -> Any:
        """The value of the first of these columns that is there and not None."""
        for name in names:
            if name in self.data and self[name] is not None:
                return self[name]
        return None


def as_list(value: Any) -> tuple[Any, ...]:
    """A list column as a tuple; a single value as one; None and empty text as none."""
    if value is None or value == "":
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def as_text(value: Any) -> str | None:
    """Text of a cell; whole numbers as text; a list of one as its only element; None and "" as None."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value)
    raise RowError(f"expected text, got {type(value).__name__} {str(value)[:60]!r}", "give one text or number")


def below(value: Any, *names: str) -> Any:
    """The first of these keys of a nested column (``reward_model.ground_truth``), or None."""
    if isinstance(value, Mapping):
        for name in names:
            if value.get(name) is not None:
                return value[name]
    return None
