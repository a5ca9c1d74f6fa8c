"""`foveate data perception`: questions that models can answer from a caption and miss in the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from .asking import Answers, Model, Show
from .data_jobs import Report, outcome
from .data_source import Source
from .datasets.builders import perception
from .datasets.builders.journal import write_rows
from .datasets.builders.perception import BadReply, Written
from .datasets.crop_files import _row
from .datasets.read import ReadError
from .datasets.scenes import scene_of
from .datasets.views import ViewSpec
from .eval.records import Item, Mode
from .vlm.records import Sample

T = TypeVar("T")
SCENES = "scenes"
"""The writer of synthetic scenes: questions of the scene's own generator. It is no model."""


@dataclass(frozen=True, kw_only=True)
class Perception:
    """How questions are made and judged. ``judges`` is each of them asked, in turn; a question that one of them drops is not
    shown to the next.

    ``writer`` None: synthetic scenes, whose questions come from their own generator and whose captions are the scenes in words.
    ``open_ended``: questions are asked, and written down, without their options (the embedded model knows no options).
    ``orders`` of the options, 1 to 4: a judge has to answer right from the caption in all of them. ``image_unparsed``: see
    `perception.verdict`. ``sees_picture``: the writer is shown the picture beside the caption.
    """

    writer: Model | None
    judges: Sequence[Model]
    open_ended: bool = False
    orders: int = 1
    image_unparsed: Literal["drop", "missed"] = "drop"
    sees_picture: bool = False
    caption_template: str = perception.CAPTION_TEMPLATE
    judge_system: str | None = None
    """None: the prompt that goes with ``open_ended``; "none": none at all."""
    writer_tokens: int = 1024
    judge_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.judges:
            raise ValueError("perception: at least one judge; every judge has to miss the question in the picture")
        if not 1 <= self.orders <= perception.NUM_OPTIONS or (self.open_ended and self.orders > 1):
            raise ValueError(f"perception: {self.orders} orders; expected 1 to {perception.NUM_OPTIONS}, and 1 without options")
        if "{caption}" not in self.caption_template or "{question}" not in self.caption_template:
            raise ValueError(f"perception: the template {self.caption_template!r} lacks {{caption}} or {{question}}")

    @property
    def mode(self) -> Mode:
        """How a judge is asked, of the picture and of the caption alike."""
        own = perception.JUDGE_SYSTEM_OPEN if self.open_ended else perception.JUDGE_SYSTEM
        return Mode("judge", ViewSpec(name="judge", system=self.judge_system or own), max_new_tokens=self.judge_tokens)


@dataclass
class _Case:
    """A row on its way: ``dropped`` says why it goes no further."""

    place: int
    dropped: str | None = None
    caption: str = ""
    written: Written | None = None
    keys: tuple[str, ...] = ()


def perception_job(source: Source, plan: Perception, folder: Path, show: Show | None = None) -> Report:
    """Make perception questions of pictures with captions; the caption is the sample's ``question``.

    ``folder`` gets ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl`` (split by the pictures' content), ``images/``,
    ``answers.jsonl`` (every answer of every model) and ``report.json``. `ValueError`: the models cannot be asked.
    """
    cases = [_Case(place) for place in range(len(source.samples))]
    with Answers(folder / "answers.jsonl", show) as answers:
        _look(source, plan, cases)
        _write(source, plan, cases, answers)
        _drop_repeated(cases)
        judged = [_judge(source, plan, cases, number, answers) for number in range(len(plan.judges))]
    made = _files(source, cases, folder, plan)
    counts = Counter(case.dropped or "kept" for case in cases)
    counts["unreadable"] += source.num_left_out
    report = Report(str(folder), len(cases) + source.num_left_out, +counts, {"splits": made, **_tables(plan, judged)})
    report.write(folder / "report.json")
    return report


def _tables(plan: Perception, judged: Sequence[Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
    return {f"judge {number} ({plan.judges[number - 1].word})": table for number, table in enumerate(judged, 1)}


def _alive(cases: Sequence[_Case]) -> list[_Case]:
    return [case for case in cases if case.dropped is None]


def _look(source: Source, plan: Perception, cases: Sequence[_Case]) -> None:
    """The captions, and which rows have a picture to ask about."""
    for case in cases:
        try:
            sample = source.build(case.place)
        except ReadError:
            case.dropped = "unreadable"
            continue
        case.keys = tuple(picture.key for picture in sample.images)
        case.caption = sample.question.replace("<image>", "").strip()
        if plan.writer is None:
            case.caption = scene_of(sample).text()
        case.dropped = "no_picture" if not sample.images else "no_caption" if not case.caption else None


def _write(source: Source, plan: Perception, cases: Sequence[_Case], answers: Answers) -> None:
    alive = _alive(cases)
    if plan.writer is None:
        for case in alive:
            _read(case, perception.scene_question, source.build(case.place), plan)
        return
    mode = Mode("writer", ViewSpec(name="writer", system="none"), max_new_tokens=plan.writer_tokens)

    def items() -> Iterator[tuple[int, Item]]:
        for case in alive:
            images = source.build(case.place).images if plan.sees_picture else ()
            sample = Sample(id=str(case.place), question=perception.writer_prompt(case.caption), images=images)
            yield case.place, Item(sample)

    replies = answers.of(plan.writer, mode, items(), "writing", len(alive))
    plan.writer.forget()
    for case in alive:
        played = replies[case.place]
        if played.stop == "failed":
            case.dropped = "writer_failed"
        elif played.stop != "answered":
            case.dropped = "writer_cut_off"
        else:
            _read(case, perception.read_question, played.texts[-1], plan)


def _read(case: _Case, read: Callable[[T], Written], given: T, plan: Perception) -> None:
    try:
        case.written = perception.in_order(perception.checked(read(given), open_ended=plan.open_ended), plan.seed)
    except BadReply as error:
        case.dropped = f"writer_{error.reason}"


def _drop_repeated(cases: Sequence[_Case]) -> None:
    """One of several rows with the same pictures and the same question."""
    seen: set[tuple[tuple[str, ...], Written | None]] = set()
    for case in _alive(cases):
        if (case.keys, case.written) in seen:
            case.dropped = "duplicate"
        seen.add((case.keys, case.written))


def _judge(source: Source, plan: Perception, cases: Sequence[_Case], number: int, answers: Answers) -> dict[str, int]:
    """One judge's say about the questions that are left; the number of questions by what it answered from caption and picture."""
    judge, alive = plan.judges[number], _alive(cases)
    turns = range(plan.orders)
    told = f"judge {number + 1}"

    def asked(case: _Case, turn: int) -> Sample:
        assert case.written is not None
        written = perception.in_order(case.written, plan.seed, turn)
        return perception.asked(written, str(case.place), open_ended=plan.open_ended)

    def of_caption(case: _Case, turn: int) -> Sample:
        sample = asked(case, turn)
        text = plan.caption_template.replace("{question}", sample.question).replace("{caption}", case.caption)
        return replace(sample, question=text)

    def of_picture(case: _Case, turn: int) -> Sample:
        return replace(asked(case, turn), images=source.build(case.place).images)

    def outcomes(waiting: Sequence[_Case], make: Callable[[_Case, int], Sample], label: str) -> dict[int, list[str]]:
        numbered = ((case.place * plan.orders + turn, Item(make(case, turn))) for case in waiting for turn in turns)
        found = answers.of(judge, plan.mode, numbered, label, len(waiting) * plan.orders)
        return {
            case.place: [outcome(asked(case, turn), found[case.place * plan.orders + turn]) for turn in turns] for case in waiting
        }

    told_right = outcomes(alive, of_caption, f"{told}, captions")
    for case in alive:
        case.dropped = perception.verdict(told_right[case.place], [])
    left = _alive(cases)
    seen = outcomes(left, of_picture, f"{told}, pictures")
    judge.forget()
    for case in left:
        case.dropped = perception.verdict(told_right[case.place], seen[case.place], image_unparsed=plan.image_unparsed)
    missed = len(_alive(cases))
    return {"asked": len(alive), "right from the caption": len(left), "and missed in the picture": missed}


def _files(source: Source, cases: Sequence[_Case], folder: Path, plan: Perception) -> dict[str, int]:
    kept = _alive(cases)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "dev": [], "test": []}
    for case, split in zip(kept, perception.splits([case.keys for case in kept], plan.seed), strict=True):
        sample, written = source.build(case.place), case.written
        assert written is not None
        made = replace(
            perception.asked(written, sample.id, open_ended=plan.open_ended), images=sample.images, source=sample.source,
            kind=f"perception_{written.kind}", tags=sample.tags, privileged=replace(sample.privileged, rationale=case.caption),
        )  # fmt: skip
        rows[split].append(_row(made, made.images, (), folder, draw=False))
    for name, own in rows.items():
        write_rows(folder / f"{name}.jsonl", own)
    return {name: len(own) for name, own in rows.items()}
