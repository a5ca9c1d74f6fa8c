"""The words of evaluation: what is asked, how it is asked, what came back, and how it was judged.

    Item --Mode--> messages --engine--> Played --score--> Row --aggregate--> Table

A `Row` is one line of ``rows.jsonl``: plain JSON, complete, so that tables, reports and comparisons need nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..datasets.views import ViewSpec
from ..visual_tools.spec import ToolsSpec
from ..vlm.records import Sample

Outcome = Literal["right", "wrong", "unparsed", "truncated", "failed", "unscored"]
"""truncated: a limit ended the text before an answer; failed: the engine gave nothing after all retries. All but right count as
wrong."""


@dataclass(frozen=True)
class Item:
    """One question of a benchmark. ``sample.question`` is the benchmark's own text without its prompt tail.

    ``categories`` are the levels by which accuracy is reported ({"category": "direct_attributes"}); ``group`` ties items that are
    scored together (MMVP's pairs, HR-Bench's cycles, WeMath's steps). ``kind`` is how answers are compared (see
    `rewards.compare`). Options are in ``sample.options``, the reference is ``sample.answer`` (a letter where there are options).
    """

    sample: Sample
    categories: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    kind: str = "auto"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.sample.id


@dataclass(frozen=True)
class Source:
    """Where items came from: the file or folder, its SHA-256 (of a folder: of its files' names and sizes) and its rows."""

    path: str
    sha256: str
    num_rows: int
    problems: tuple[str, ...] = ()


class Benchmark(Protocol):
    """One benchmark: reads local copies, says its official prompt, and adds up its rows the official way."""

    name: str
    title: str
    source_note: str
    """Where people get it (a hub id, a file name); nothing is ever downloaded."""

    def read(self, path: str) -> tuple[Sequence[Item], Source]:
        """The items of a local copy, built when they are indexed. `ValueError` names file and row."""
        ...

    def prompt_tail(self, item: Item) -> str:
        """The official sentence behind question and options in mode direct."""
        ...

    def aggregate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Named numbers of 0 to 1 out of scored rows (one per item); "overall" is the official headline."""
        ...


@dataclass(frozen=True)
class Mode:
    """How items are asked. ``n`` answers are drawn and voted on (self-consistency) when above 1."""

    name: str
    view: ViewSpec
    tools: ToolsSpec | None = None
    max_turns: int = 1
    max_new_tokens: int = 1024
    temperature: float = 0.0
    n: int = 1
    official_tail: bool = False
    """Put the benchmark's own sentence behind the question (mode direct and crop)."""


@dataclass(frozen=True)
class Played:
    """What an engine gave for one item: the texts of the model's turns, why it ended, and what it cost."""

    texts: tuple[str, ...]
    stop: str
    """A `StopReason` value, or "failed"."""
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_image: int = 0
    calls: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    error: str = ""
    story: tuple[Mapping[str, Any], ...] = ()
    """The chat as JSON (`vlm.messages.to_json` form) with pictures by file name, for the gallery; may be empty."""


Row = dict[str, Any]
"""Keys: benchmark, mode, item, index, draw (0..n-1), categories, group, question, options, gold, texts, parsed, choice, outcome,
score (0..1), runaway, judged, stop, tokens_in, tokens_out, tokens_image, calls, seconds, error, order (of the options as shown),
boxes_px_xyxy, box_image, extra, story; those of circular runs also draws and votes."""
