"""Reading samples: `read` looks at every row, names every problem, and gives samples that are built when they are indexed.

A bad row is left out, counted and named (file, line, what, how to mend); it stops nothing unless ``strict``. Pictures are decoded
on access and not before, so that a file of 100,000 rows is read in seconds; ``verify: full`` decodes them all.
"""

from __future__ import annotations

import random
import warnings
from array import array
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ..visual_tools import boxes
from ..vlm.images import PictureError
from ..vlm.records import Box, Privileged, Sample
from ..vlm.video import VideoError, VideoFile, fingerprint, frame_size
from .crops import checked_box
from .importers import FORMATS, detect, import_row
from .pictures import header_size, open_picture
from .raw_rows import RawRow, Row, RowError
from .rows import Rows, open_rows
from .spec import BoxFormat, DataSpec
from .splits import in_test
from .videos import video_path, with_video

_BROKEN_IN_A_ROW = 32
_FAULTS = (RowError, PictureError, VideoError)
_COORDS: dict[BoxFormat, boxes.Coords] = {"px_xyxy": "abs_original", "k1000_xyxy": "norm1000", "frac_xyxy": "norm1"}


class ReadError(ValueError):
    """A row that cannot become a sample. The message names the file and the row, and how to mend it."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a row: ``left_out`` tells whether the row is gone or was only remarked upon."""

    file: str
    place: str
    what: str
    mend: str
    left_out: bool = True

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.what}; {self.mend}"


class LazySamples(Sequence[Sample]):
    """Samples of a file, built on access.

    A picture that turns out to be broken only then (a file cut short has a good header) stops nothing: it is warned of, kept in
    ``broken``, and the next good row takes its place, always the same one. With ``strict`` it is a `ReadError`.
    """

    def __init__(self, rows: Rows, spec: DataSpec, format_name: str, kept: Sequence[int], ids: Mapping[int, str]) -> None:
        self.rows, self.spec, self.format = rows, spec, format_name
        self.kept = array("q", kept)
        self._ids = ids
        self.broken: dict[int, str] = {}
        self.file = str(spec.path)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> LazySamples: ...
    def __getitem__(self, index: int | slice) -> Sample | LazySamples:
        if isinstance(index, slice):
            return self.chosen(self.kept[index])
        place = range(len(self.kept))[index]
        for _ in range(min(_BROKEN_IN_A_ROW, len(self.kept))):
            row = self.kept[place]
            if row not in self.broken:
                try:
                    return self.build(row)[0]
                except ReadError as error:
                    if self.spec.strict:
                        raise
                    self.broken[row] = str(error)
                    warnings.warn(f"{error} (the next good row takes its place; verify: full leaves such rows out)", stacklevel=2)
            place = (place + 1) % len(self.kept)
        raise ReadError(
            f"{self.file}: {_BROKEN_IN_A_ROW} rows in a row are broken, the last: {self.broken[self.kept[place - 1]]}"
        )

    def chosen(self, kept: Iterable[int]) -> LazySamples:
        """The same file with these rows only."""
        return LazySamples(self.rows, self.spec, self.format, list(kept), self._ids)

    def picture_keys(self, row: int) -> list[str]:
        """Content keys of the pictures and the video of a row of the file; of a row without, its question. `ReadError`."""
        try:
            raw = _import(self.rows, row, self.spec, self.format)[0]
            keys = [open_picture(ref, self.file, self.spec.image_dir).key for ref in raw.images]
            keys += [f"video:{fingerprint(video_path(ref, self.spec))}" for ref in raw.videos]
        except _FAULTS as error:
            raise ReadError(f"{self.file}, {self.rows.place(row)}: {error}") from error
        return keys or [f"text:{raw.question}"]

    def place(self, index: int) -> str:
        """Where sample ``index`` stands in the file, in words."""
        return self.rows.place(self.kept[index])

    def difficulty(self, index: int) -> float | None:
        """The difficulty of a sample. Decodes nothing, so that a whole data set can be asked. `ReadError`."""
        row = self.kept[index]
        try:
            return _import(self.rows, row, self.spec, self.format)[0].difficulty
        except _FAULTS as error:
            raise ReadError(f"{self.file}, {self.rows.place(row)}: {error}") from error

    def build(self, row: int) -> tuple[Sample, list[str]]:
        """The sample of a row of the file, and remarks about its boxes. Decodes its pictures and frames. `ReadError`."""
        try:
            raw = _import(self.rows, row, self.spec, self.format)[0]
            images = tuple(open_picture(ref, self.file, self.spec.image_dir) for ref in raw.images)
            shown = {picture.key for picture in images}
            crops = tuple(
                crop for crop in (open_picture(ref, self.file, self.spec.image_dir) for ref in raw.crops) if crop.key not in shown
            )
            video, images, question = with_video(raw, images, self.spec)
            sizes = [picture.size_px for picture in images]
            if video is not None and isinstance(video.source, VideoFile):
                sizes = sizes or [(video.source.width_px, video.source.height_px)]
            found, remarks = _boxes(raw, sizes)
        except _FAULTS as error:
            raise ReadError(f"{self.file}, {self.rows.place(row)}: {error}") from error
        privileged = Privileged(
            boxes_px_xyxy=found, box_image=raw.box_image, crops=crops, rationale=raw.rationale, prompt=raw.prompt,
            hints=raw.hints,
        )  # fmt: skip
        sample = Sample(
            id=self._ids[row], question=question, answer=raw.answer, images=images, video=video, options=raw.options,
            system=raw.system, privileged=privileged, source=raw.source or Path(self.file).stem, kind=raw.kind,
            difficulty=raw.difficulty, tags=raw.tags,
        )  # fmt: skip
        return sample, remarks


@dataclass(frozen=True)
class ReadResult:
    """What a file gave: samples, problems, and what was understood of it."""

    samples: LazySamples
    problems: list[Problem]
    file: str
    format: str
    num_rows: int
    columns: tuple[str, ...]
    unused: tuple[str, ...]
    """Columns that no row's import asked for: nothing reads them."""

    @property
    def num_left_out(self) -> int:
        return sum(problem.left_out for problem in self.problems)


def read(spec: DataSpec | dict[str, Any] | str) -> ReadResult:
    """Read a file, a saved data set or a hub data set.

    `ValueError` when it cannot be read at all or its format is unknown; with ``strict`` also for the first bad row.
    """
    if isinstance(spec, str):
        spec = DataSpec(path=spec)
    elif isinstance(spec, dict):
        spec = DataSpec.model_validate(spec)
    if spec.path is None:
        raise ValueError("data: read needs a path; synthetic data and mixtures come from load_data")
    rows = open_rows(spec.path, spec.hub_split, spec.hub_name)
    format_name, columns = _format(rows, spec)
    problems: list[Problem] = []
    kept: list[int] = []
    ids: dict[int, str] = {}
    used: set[str] = set()
    taken: set[str] = set()
    lazy = LazySamples(rows, spec, format_name, (), ids)
    for index in range(len(rows)):
        try:
            raw, asked = _import(rows, index, spec, format_name)
            used |= asked
            ids[index] = _unique_id(raw, spec.path, index, taken, problems, rows)
            remarks = _verify(raw, index, lazy)
        except (*_FAULTS, ReadError) as error:
            problems.append(_problem(spec.path, rows.place(index), error))
            if spec.strict:
                raise ReadError(str(problems[-1])) from error
            continue
        problems += [
            Problem(spec.path, rows.place(index), remark, "check the unit of the boxes", left_out=False) for remark in remarks
        ]
        kept.append(index)
    samples = _selected(lazy.chosen(kept), spec, problems)
    return ReadResult(
        samples, problems, spec.path, format_name, len(rows), columns, tuple(name for name in columns if name not in used)
    )


def _problem(file: str, place: str, error: RowError | ReadError | PictureError | VideoError) -> Problem:
    if isinstance(error, RowError):
        return Problem(file, place, error.what, error.mend)
    text = str(error).removeprefix(f"{file}, {place}: ")
    what, _, mend = text.rpartition("; ")
    return Problem(file, place, what or text, mend if what else "mend or remove the row")


def _format(rows: Rows, spec: DataSpec) -> tuple[str, tuple[str, ...]]:
    """The format and the columns of the first readable rows."""
    if spec.format is not None and spec.format not in FORMATS:
        raise ValueError(f"data.format {spec.format!r}; expected one of {', '.join(FORMATS)}")
    columns: dict[str, None] = {}
    for index in range(min(len(rows), 20)):
        try:
            columns.update(dict.fromkeys(_renamed(rows.row(index), spec)))
        except ValueError:
            continue  # named with its line when the rows are gone through
    if not columns:
        raise ValueError(
            f"{spec.path}: no readable row among the first {min(len(rows), 20)} of {len(rows)}; "
            "expected one JSON object a line, or columns"
        )
    try:
        return spec.format or detect(columns), tuple(columns)
    except ValueError as error:
        raise ValueError(f"{spec.path}: {error}") from error


def _renamed(row: Mapping[str, Any], spec: DataSpec) -> Mapping[str, Any]:
    if not spec.columns:
        return row
    theirs = set(spec.columns.values())
    return {
        **{name: value for name, value in row.items() if name not in theirs},
        **{ours: row[name] for ours, name in spec.columns.items() if name in row},
    }


def _import(rows: Rows, index: int, spec: DataSpec, format_name: str) -> tuple[RawRow, set[str]]:
    try:
        data = rows.row(index)
    except ValueError as error:
        raise RowError(f"not a readable row ({error})", "expected one JSON object with columns") from error
    row = Row(_renamed(data, spec))
    try:
        raw = import_row(row, format_name, spec.box_format)
    except KeyError as error:
        raise RowError(f"no column {error}", f"format {format_name} needs it; see data.format and data.columns") from error
    slots = raw.question.count("<image>")
    if slots and slots != len(raw.images):
        raise RowError(
            f"{slots} <image> in the question but {len(raw.images)} pictures", "make them equal, or leave all <image> out"
        )
    if raw.videos and raw.boxes and spec.video_plan != "uniform":
        raise RowError(f"boxes in a row whose video is shown as {spec.video_plan}", "use video_plan: uniform, or leave them out")
    return raw, row.asked


def _unique_id(raw: RawRow, file: str, index: int, taken: set[str], problems: list[Problem], rows: Rows) -> str:
    name = raw.id or f"{Path(file).stem}-{index}"
    if name in taken:
        # Rewards are keyed by id: two rows may not share one.
        problems.append(
            Problem(
                file,
                rows.place(index),
                f"id {name!r} was used before",
                f"{name}#{index} is used; give each row its own",
                left_out=False,
            )
        )
        name = f"{name}#{index}"
    taken.add(name)
    return name


def _verify(raw: RawRow, index: int, lazy: LazySamples) -> list[str]:
    spec = lazy.spec
    if spec.verify == "none":
        return []
    if spec.verify == "full":
        return lazy.build(index)[1]
    sizes = [header_size(ref, lazy.file, spec.image_dir) for ref in raw.images]
    for ref in raw.crops:
        header_size(ref, lazy.file, spec.image_dir)
    videos = [frame_size(video_path(ref, spec)) for ref in raw.videos]
    return _boxes(raw, sizes or videos)[1]


def _boxes(raw: RawRow, sizes: Sequence[tuple[int, int]]) -> tuple[tuple[Box, ...], list[str]]:
    if not raw.boxes:
        return (), []
    if not 0 <= raw.box_image < len(sizes):
        raise RowError(
            f"boxes of picture {raw.box_image} in a row with {len(sizes)} pictures", "give the picture, or another box_image"
        )
    width, height = sizes[raw.box_image]
    kept, remarks = [], []
    for given in raw.boxes:
        try:
            box = to_px(given, raw.box_format or "px_xyxy", width, height)
            inside = checked_box(box, width, height, "box")
        except (ValueError, TypeError) as error:
            what, _, mend = str(error).partition("; ")
            raise RowError(what, mend or "a box is four numbers") from error
        if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > 1.5:
            remarks.append(f"box {_rounded(box)} px reaches out of the picture ({width} x {height} px) and is clipped")
        kept.append(inside)
    return tuple(kept), remarks


def _rounded(box: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 1) for value in box)


def to_px(box: Sequence[float], unit: BoxFormat, width_px: int, height_px: int) -> Box:
    """A box of any unit in pixels ``(x1, y1, x2, y2)``, not clipped. `ValueError` unless it is four numbers."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise ValueError(f"box {box!r} is not four numbers; give x1, y1, x2, y2")
    a, b, c, d = (float(value) for value in box)
    if unit == "px_xywh":
        return a, b, a + c, b + d
    return boxes.to_px((a, b, c, d), _COORDS[unit], (width_px, height_px))


def _selected(samples: LazySamples, spec: DataSpec, problems: list[Problem]) -> LazySamples:
    kept = list(samples.kept)
    if spec.holdout_frac and spec.split != "all":
        keys: dict[int, list[str]] = {}
        with ThreadPoolExecutor(4) as pool:  # decoding is the cost here, and Pillow decodes outside the interpreter's lock
            for row, found in zip(kept, pool.map(lambda row: _picture_keys(samples, row), kept), strict=True):
                if isinstance(found, ReadError):
                    problems.append(_problem(samples.file, samples.rows.place(row), found))
                else:
                    keys[row] = found
        test = in_test(list(keys.values()), spec.holdout_frac, spec.seed)
        kept = [row for row, held in zip(keys, test, strict=True) if held == (spec.split == "test")]
    if spec.limit is not None and len(kept) > spec.limit:
        kept = sorted(random.Random(spec.seed).sample(kept, spec.limit))
    return samples.chosen(kept)


def _picture_keys(samples: LazySamples, row: int) -> list[str] | ReadError:
    try:
        return samples.picture_keys(row)
    except ReadError as error:
        return error
