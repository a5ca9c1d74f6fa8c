"""What the benchmarks share: reading options and references out of rows, items that are built when indexed, and plain sums.

Most benchmarks are a `TableBenchmark`: aliases of columns, a prompt tail, categories, a function from a row to an `Item` and one
from scored rows to numbers. One that is more than that is a class of its own with the members of `records.Benchmark`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from ...datasets.raw_rows import RowError
from ...vlm.images import Picture
from ...vlm.records import Box, Privileged, Sample
from ..readers import Row, Rows, pictures_of, plain, read_rows
from ..records import Item, Source
from ..row_tables import SPLITS

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_ONLY = "\nAnswer with the option's letter from the given choices directly."
"""The sentence of LLaVA's evaluations, and so of many benchmarks."""

_LETTERED = re.compile(r"\s*(?:[(（]\s*([A-Z])\s*[)）]|([A-Z])\s*[.):：、．])\s*")
_OPTION_LINE = re.compile(r"[ \t]*(?:[(（]([A-Z])[)）]|([A-Z])[.):：])[ \t]*(\S.*)")
_LETTER = re.compile(r"[(（\[]?\s*([A-Za-z])\s*[)）\]]?\s*[.:。]?")
_CHOICES = re.compile(r"\n\s*\(A\)\s*.*\Z", re.DOTALL)


# --- rows to items ----------------------------------------------------------------------------------------------------------


def listed(value: Any) -> tuple[Any, ...]:
    """A list column, or the text of a Python or JSON list, as a tuple; anything else as a tuple of one; nothing as none."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "("):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):  # a text that happens to start so
            value = ast.literal_eval(value.strip())
    if isinstance(value, list | tuple):
        return tuple(value)
    return () if value is None or value == "" else (value,)


def lettered(options: Iterable[Any]) -> tuple[str, ...]:
    """Options without the letters they carry, if they carry A, B, C ... in order (views write letters themselves).

    >>> lettered(["(A) red", "(B) blue"])
    ('red', 'blue')
    """
    texts = [str(option).strip() for option in options]
    heads = [_LETTERED.match(text) for text in texts]
    if texts and [head and (head[1] or head[2]) for head in heads] == list(LETTERS[: len(texts)]):
        return tuple(text[head.end() :].strip() for text, head in zip(texts, heads, strict=True) if head)
    return tuple(texts)


def options_of(row: Row) -> tuple[str, ...]:
    """The options of a row, without letters: its columns A, B, C ..., or its list ``options``. None: an open question.

    `RowError` when the columns have a gap, for the letters would shift.
    """
    if "A" in row:
        texts = [row.get(letter) for letter in LETTERS]
        count = max((place + 1 for place, text in enumerate(texts) if text is not None), default=0)
        if None in texts[:count]:
            raise RowError(f"{row.place}: option {LETTERS[texts.index(None)]} is empty and later ones are not", "fill the gap")
        if count:
            return tuple(str(text).strip() for text in texts[:count])
    return lettered(listed(row.get("options")))


def letter_of(answer: Any, options: Sequence[str], place: str) -> str:
    """The letter that a reference answer means: "B", "(b)", "B. blue", an option's text. `RowError` when it means none."""
    text = str(answer).strip()
    allowed = LETTERS[: len(options)]
    whole = _LETTER.fullmatch(text)
    if whole and whole[1].upper() in allowed:
        return whole[1].upper()
    same = [letter for letter, option in zip(allowed, options, strict=True) if option.casefold() == text.casefold()]
    if len(same) == 1:
        return same[0]
    head = _LETTERED.match(text)
    if head and (head[1] or head[2]) in allowed:
        return str(head[1] or head[2])
    raise RowError(f"{place}: the answer {text[:80]!r} is none of {len(options)} options", f"expected a letter of {allowed}")


def names_option(answer: Any, options: Sequence[str]) -> bool:
    """Whether a reference answer is one of the options."""
    try:
        letter_of(answer, options, "")
    except RowError:
        return False
    return True


def without_choices(prompt: str) -> str:
    """An official prompt without its lines "(A) ...": the view writes the options, in the order in which they are shown."""
    return _CHOICES.sub("", prompt).rstrip()


def text_of(row: Row, *names: str) -> str:
    """A cell as text, or nothing. Of several, the first that holds something."""
    return next((str(row[name]).strip() for name in names if row.get(name) is not None), "")


def split_inline(text: str) -> tuple[str, tuple[str, ...], str]:
    """``(question, options, rest)`` of a question whose options stand in it, one ``A. text`` a line; else no options, no rest.

    >>> split_inline("What colour?\\nA. red\\nB. blue\\nAnswer with the letter.")
    ('What colour?', ('red', 'blue'), 'Answer with the letter.')
    """
    lines = text.strip().split("\n")
    heads = [_OPTION_LINE.fullmatch(line.rstrip()) for line in lines]
    for start, head in enumerate(heads):
        if head is None or (head[1] or head[2]) != "A":
            continue
        end = start
        while end < len(lines) and (found := heads[end]) and (found[1] or found[2]) == LETTERS[end - start]:
            end += 1
        if end - start >= 2:
            options = tuple(found[3].strip() for found in heads[start:end] if found)
            return "\n".join(lines[:start]).strip(), options, "\n".join(lines[end:]).strip()
    return text.strip(), (), ""


def boxes_of(row: Row, *columns: str) -> tuple[Box, ...]:
    """Boxes ``x1, y1, x2, y2`` in pixels out of the first of these columns that holds any: a list of boxes, or one.

    `RowError` for what is not four numbers with x1 < x2 and y1 < y2.
    """
    for name in columns:
        given = listed(row.get(name))
        if given:
            single = len(given) == 4 and all(isinstance(value, int | float) for value in given)
            return tuple(_box(box, f"{row.place}, {name}") for box in ((given,) if single else given))
    return ()


def _box(given: Any, where: str) -> Box:
    box = listed(given)
    if len(box) != 4 or not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        raise RowError(f"{where}: {str(given)[:80]!r} is no box", "expected x1, y1, x2, y2 in pixels")
    x1, y1, x2, y2 = (float(value) for value in box)
    if x1 >= x2 or y1 >= y2:
        raise RowError(f"{where}: box {list(box)} has no area", "expected x1 < x2 and y1 < y2")
    return x1, y1, x2, y2


def categories_of(row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    """``{level: value}`` of the columns that are there and not empty; ``columns`` gives each level's column."""
    found = {level: text_of(row, column) for level, column in columns.items()}
    return {level: value for level, value in found.items() if value}


def id_of(row: Row) -> str:
    """What the file calls the row: its ``index`` (or an alias of it); else its number."""
    return plain(row["index"]) if row.get("index") is not None else str(row.index)


def plain_item(row: Row, of: TableBenchmark) -> Item:
    """A picture, a question (with its ``hint``), options and a reference. `RowError` names file and row.

    Options that stand in the question, a line each, are taken out of it, and what follows them is ``extra["tail"]``.
    ``<image>`` placeholders are left out where they are not one per picture: pictures then come first.
    """
    question, options, tail = row.text("question"), options_of(row), ""
    answer = row.get("answer")
    inline = split_inline(question)
    if not options and inline[1] and answer is not None and names_option(answer, inline[1]):
        question, options, tail = inline
    hint = text_of(row, "hint")
    images = pictures_of(row, of.images)
    if "<image>" in question and question.count("<image>") != len(images):
        question = question.replace("<image>", "").strip()
    sample = Sample(
        id=id_of(row), question=f"Hint: {hint}\n{question}" if hint else question, options=options,
        answer=None if answer is None else letter_of(answer, options, row.place) if options else str(answer).strip(),
        images=images, source=of.name,
    )  # fmt: skip
    extra = {"tail": tail} if tail else {}
    return Item(sample, categories_of(row, of.categories), kind="choice" if options else "auto", extra=extra)


def with_evidence(item: Item, boxes: tuple[Box, ...] = (), crops: tuple[Picture, ...] = ()) -> Item:
    """The item with evidence that only privileged views show."""
    return replaced(item, privileged=Privileged(boxes_px_xyxy=boxes, crops=crops)) if boxes or crops else item


def replaced(item: Item, **changes: Any) -> Item:
    """The item with other fields of its sample."""
    return dataclasses.replace(item, sample=dataclasses.replace(item.sample, **changes))


class ItemsOf(Sequence[Item]):
    """Items built from rows when they are indexed; their ids are known at once.

    All rows are gone through when this is made (without their pictures), so that an unusable one is a `ValueError` then, naming
    file and row, and not in the middle of a run. Ids that occur twice get the row's number.
    """

    def __init__(self, rows: Rows, make: Callable[[Row], Item]) -> None:
        self.rows, self._make = rows, make
        names = [make(row).id for row in rows]
        seen = Counter(names)
        self.ids: tuple[str, ...] = tuple(name if seen[name] == 1 else f"{name}#{number}" for number, name in enumerate(names))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        item = self._make(self.rows[place])
        return item if item.id == self.ids[place] else replaced(item, id=self.ids[place])


# --- scored rows to numbers -------------------------------------------------------------------------------------------------

ScoredRow = Mapping[str, Any]


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def mean_by(rows: Sequence[ScoredRow], key: str | Callable[[ScoredRow], str]) -> dict[str, float]:
    """Mean score of the rows of each group, in the order in which the groups appear.

    ``key`` is a level of the rows' categories, or a function of a row; rows without one ("") are left out.
    """
    groups: dict[str, list[float]] = {}
    for row in rows:
        name = str(row["categories"].get(key, "")) if isinstance(key, str) else key(row)
        if name:
            groups.setdefault(name, []).append(float(row["score"]))
    return {name: mean(scores) for name, scores in groups.items()}


def accuracy(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """``overall`` is the mean over all rows; then the mean of every value of every category level."""
    totals = {"overall": mean(float(row["score"]) for row in rows)}
    levels = dict.fromkeys(level for row in rows for level in row["categories"])
    for level in levels:
        for name, value in mean_by(rows, level).items():
            totals[name if name not in totals else f"{level}: {name}"] = value
    return totals


def mean_of_parts(level: str) -> Callable[[Sequence[ScoredRow]], dict[str, float]]:
    """``overall`` is the mean of the means of one category level, whatever their sizes; without parts it is that of all rows."""

    def total(rows: Sequence[ScoredRow]) -> dict[str, float]:
        parts = mean_by(rows, level)
        return {"overall": mean(parts.values()), **parts} if parts else accuracy(rows)

    return total


# --- the common case --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class TableBenchmark:
    """A benchmark whose local copy is a table with one question a row."""

    name: str
    title: str
    source_note: str
    """Where people get it; nothing is ever downloaded."""
    files: tuple[str, ...] = ()
    """Names that its file goes by, looked for when a folder is given."""
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Other names of our columns (question, image, answer, options, index, hint ...)."""
    images: tuple[str, ...] = ("image",)
    """The columns that hold the pictures, in order."""
    splits: tuple[str, ...] = SPLITS
    tail: str = ""
    """The official sentence behind question and options."""
    categories: Mapping[str, str] = field(default_factory=lambda: {"category": "category"})
    """Levels of reporting, and the column of each."""
    make: Callable[[Row, TableBenchmark], Item] = plain_item
    total: Callable[[Sequence[ScoredRow]], dict[str, float]] = accuracy

    def read(self, path: str) -> tuple[Sequence[Item], Source]:
        """The items of a local copy. `ValueError` names file and row."""
        rows = read_rows(path, aliases={**_ALIASES, **self.columns}, names=self.files, splits=self.splits)
        if not len(rows):
            raise ValueError(f"{rows.path}: no rows; expected the questions of {self.title}")
        return ItemsOf(rows, lambda row: self.make(row, self)), rows.source

    def prompt_tail(self, item: Item) -> str:
        """The official sentence behind question and options in mode direct; the file's own where it has one."""
        own = item.extra.get("tail")
        return f"\n{own}" if own else self.tail

    def aggregate(self, rows: Sequence[ScoredRow]) -> dict[str, float]:
        """Named numbers of 0 to 1; "overall" is the headline."""
        return self.total(rows)


_ALIASES: Mapping[str, Sequence[str]] = {
    "index": ("id", "question_id", "idx", "doc_id"),
    "question": ("text", "Question", "problem", "query", "prompt"),
    "answer": ("label", "Answer", "solution", "response", "ground_truth"),
    "image": ("image_path", "images", "bytes"),
    "options": ("choices", "multi-choice options", "Options", "candidates"),
}
