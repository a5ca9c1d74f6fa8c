"""V* Bench (2312.14135): attributes of small objects, and where two of them lie; 191 photographs of about 2K.

It is found in four forms: the authors' folders (a picture and a .json of the same name; its first option is always the right
one), their ``test_questions.jsonl``, a parquet file with the same columns, and VLMEvalKit's TSV. Evidence boxes are in the
folders' .json files alone, and are added to the questions of the .jsonl that lies beside them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...datasets.raw_rows import RowError
from ...vlm.records import Box, Sample
from ..lazy_pictures import LazyPicture
from ..readers import Row, checksum
from ..records import Item, Source
from ..row_tables import JsonTable
from .base import LETTER_ONLY, LETTERS, TableBenchmark, plain_item, replaced, with_evidence

_PARTS = ("direct_attributes", "relative_position")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class VStar(TableBenchmark):
    """V* Bench; ``read`` also takes the authors' folders."""

    def read(self, path: str) -> tuple[Sequence[Item], Source]:
        """The items of a local copy. `ValueError` names the file."""
        folder = Path(path).expanduser()
        tree = [folder / part for part in _PARTS if (folder / part).is_dir()]
        if not tree or any((folder / name).is_file() for name in self.files):
            return _unbiased(*super().read(path))
        notes = sorted(note for part in tree for note in part.glob("*.json"))
        items = [_from_tree(note) for note in notes]
        if not items:
            raise ValueError(f"{path}: no .json in {' or '.join(_PARTS)}; expected one beside each picture")
        files = [file for part in tree for file in part.iterdir() if file.is_file()]
        without = [file for file in files if file.suffix.lower() in _PICTURES and not file.with_suffix(".json").is_file()]
        problems = tuple(f"{file.relative_to(folder)}: a picture without a .json; left out" for file in sorted(without))
        return items, Source(path, checksum(folder, files), len(items), problems)


def _from_tree(note: Path) -> Item:
    """One question of the authors' folders."""
    said = _note(note)
    picture = next((note.with_suffix(end) for end in _PICTURES if note.with_suffix(end).is_file()), None)
    options = tuple(str(option).strip() for option in said.get("options") or ())
    if picture is None or not options or not said.get("question"):
        lacks = "picture of that name" if picture is None else "question" if options else "options"
        raise RowError(f"{note}: no {lacks}", f"expected question, options and a picture in {', '.join(_PICTURES)}")
    sample = Sample(
        id=f"{note.parent.name}/{note.stem}", question=str(said["question"]).strip(), options=options, answer="A",
        images=(_picture(picture),), source="vstar",
    )  # fmt: skip
    return _moved(with_evidence(Item(sample, {"category": note.parent.name}, kind="choice"), _boxes(said, note)))


def _moved(item: Item) -> Item:
    """The item with its options in an order that is drawn by its id alone: ``extra["order"]`` are their places in the file."""
    options = item.sample.options
    order = list(range(len(options)))
    random.Random(hashlib.sha256(item.id.encode()).hexdigest()).shuffle(order)
    answer = LETTERS[order.index(LETTERS.index(item.sample.answer or "A"))]
    moved = replaced(item, options=tuple(options[place] for place in order), answer=answer)
    return replace(moved, extra={**item.extra, "order": order})


def _unbiased(items: Sequence[Item], source: Source) -> tuple[Sequence[Item], Source]:
    """Options moved where the right one is always the first: a file made from the folders without a draw."""
    if {item.sample.answer for item in items} != {"A"}:
        return items, source
    said = "the right option is always A in this file: options are shown in an order drawn by the question's id"
    return [_moved(item) for item in items], replace(source, problems=(*source.problems, said))


def _picture(path: Path) -> LazyPicture:
    return LazyPicture(lambda: path, str(path), f"{path.absolute()} {path.stat().st_mtime_ns}")


def _note(note: Path) -> Mapping[str, Any]:
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RowError(f"{note}: not JSON ({error})", "get the file anew") from error
    if not isinstance(said, Mapping):
        raise RowError(f"{note}: a {type(said).__name__}", "expected an object with question, options and bbox")
    return said


def _boxes(said: Mapping[str, Any], note: Path) -> tuple[Box, ...]:
    """The authors' boxes are x, y, width, height in pixels."""
    found = []
    for box in said.get("bbox") or ():
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise RowError(f"{note}: bbox {box!r}", "expected x, y, width, height in pixels")
        x, y, width, height = (float(value) for value in box)
        found.append((x, y, x + width, y + height))
    return tuple(found)


def _item(row: Row, of: TableBenchmark) -> Item:
    """A row of the .jsonl, the parquet file or the TSV, with the boxes of the .json that lies beside its picture."""
    item = plain_item(row, of)
    named = row.get("image") if isinstance(row.rows.table, JsonTable) else None
    note = (row.rows.folder / named).with_suffix(".json") if isinstance(named, str) and len(named) < 256 else None
    if item.extra.get("tail", "").strip() == LETTER_ONLY.strip():
        item = replace(item, extra={})
    return with_evidence(item, _boxes(_note(note), note)) if note is not None and note.is_file() else item


VSTAR = VStar(
    name="vstar",
    title="V* Bench",
    source_note="hub: craigwu/vstar_bench (folders), lmms-lab/vstar-bench (parquet), or VLMEvalKit's VStarBench.tsv",
    files=("test_questions.jsonl", "VStarBench.tsv"),
    columns={"index": ("question_id", "id")},
    tail=LETTER_ONLY,
    make=_item,
)
