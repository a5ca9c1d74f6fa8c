"""``foveate data check``: what is in a data file, what is wrong with it, and what a few of its rows look like."""

from __future__ import annotations

import base64
import html
import io
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..vlm.images import Picture
from ..vlm.records import Sample
from .crops import OverlaySpec, draw_boxes
from .read import LazySamples, Problem, ReadError, ReadResult, read
from .spec import DataSpec

_THREADS, _AT_ONCE = 4, 64
_THUMB_PX = 480
_FRAMES_SHOWN = 4


@dataclass
class CheckReport:
    """The findings. `text` is the whole report for a terminal; ``ok`` is False when a row had to be left out."""

    file: str
    format: str
    num_rows: int
    num_samples: int = 0
    problems: list[Problem] = field(default_factory=list)
    unused_columns: tuple[str, ...] = ()
    num_pictures: int = 0
    num_distinct_pictures: int = 0
    num_repeated_rows: int = 0
    """Rows with the pictures and the question of an earlier row."""
    num_with_boxes: int = 0
    num_with_crops: int = 0
    box_area_frac: list[float] = field(default_factory=list)
    """Area of every evidence box as a share of its picture."""
    sizes_px: list[tuple[int, int]] = field(default_factory=list)
    """``(width, height)`` of every student picture."""
    video_frames: list[int] = field(default_factory=list)
    video_s: list[float] = field(default_factory=list)
    """Kept frames of every video, and the second of its last one."""
    answers: Counter[str] = field(default_factory=Counter)
    sheet: str | None = None
    format_named: bool = False
    """The format was named by the user, not seen from the columns."""

    @property
    def ok(self) -> bool:
        return not any(problem.left_out for problem in self.problems)

    def text(self, max_problems: int = 20) -> str:
        """The report in lines."""
        left_out = sum(problem.left_out for problem in self.problems)
        lines = [
            f"file       {self.file}",
            f"format     {self.format} ({'as named' if self.format_named else 'from the columns; data.format overrides'})",
            f"rows       {self.num_rows}: {self.num_samples} good, {left_out} left out, {len(self.problems) - left_out} remarks",
            f"pictures   {self.num_pictures}, {self.num_distinct_pictures} distinct",
            f"repeated   {self.num_repeated_rows} rows",
        ]
        if self.video_s:
            kept, length_s = _spread(self.video_frames), _spread(self.video_s, 1)
            lines.append(f"videos     {len(self.video_s)}, least / median / most: {kept} frames kept, {length_s} s")
        if self.sizes_px:
            widths, heights = zip(*self.sizes_px, strict=True)
            lines.append(
                f"sizes      least / median / most: width {_spread(widths)} px, height {_spread(heights)} px"
                f", {_spread([width * height / 1e6 for width, height in self.sizes_px], 2)} megapixels"
            )
        lines.append(f"evidence   {self.num_with_boxes} rows with boxes, {self.num_with_crops} with crops")
        if self.box_area_frac:
            percent = [100 * area for area in self.box_area_frac]
            lines.append(f"boxes      {len(percent)}, least / median / most area {_spread(percent, 2)} % of the picture")
        lines.append("answers    " + ", ".join(f"{count} {kind}" for kind, count in self.answers.most_common()))
        if self.unused_columns:
            lines.append(f"not read   columns {', '.join(self.unused_columns)}")
        lines += [f"{'LEFT OUT' if problem.left_out else 'remark  '}   {problem}" for problem in self.problems[:max_problems]]
        if len(self.problems) > max_problems:
            lines.append(f"           ... and {len(self.problems) - max_problems} more")
        if self.sheet:
            lines.append(f"samples    {self.sheet}")
        return "\n".join(lines)


def _spread(values: Sequence[float], digits: int = 0) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:.{digits}f} / {middle:.{digits}f} / {high:.{digits}f}"


def check(spec: DataSpec | dict[str, Any] | str, *, sheet: Path | None = None, num_shown: int = 10) -> CheckReport:
    """Read every row, decode every picture, count what is there. With ``sheet``, an HTML page of the first rows is written.

    `ValueError` when the file cannot be read at all; bad rows are problems in the report.
    """
    if isinstance(spec, str):
        spec = DataSpec(path=spec)
    elif isinstance(spec, dict):
        spec = DataSpec.model_validate(spec)
    # The pictures are decoded once, below; a strict or split reading would hide rows.
    result = read(spec.model_copy(update={"verify": "header", "strict": False, "holdout_frac": 0.0, "split": "all"}))
    report = CheckReport(
        result.file, result.format, result.num_rows, problems=list(result.problems), unused_columns=result.unused
    )
    report.format_named = spec.format is not None
    pictures: set[str] = set()
    seen: dict[tuple[Any, ...], str] = {}
    shown: list[Sample] = []
    for place, found in _built(result.samples):
        if isinstance(found, ReadError):
            what, _, mend = str(found).removeprefix(f"{result.file}, {place}: ").rpartition("; ")
            report.problems.append(Problem(result.file, place, what, mend))
            continue
        _count(report, found, place, result, seen)
        pictures.update(picture.key for picture in found.images)
        if len(shown) < num_shown:
            shown.append(found)
    report.num_distinct_pictures = len(pictures)
    if sheet is not None:
        write_sheet(shown, sheet, report)
        report.sheet = str(sheet)
    return report


def _built(samples: LazySamples) -> Iterator[tuple[str, Sample | ReadError]]:
    def build(row: int) -> Sample | ReadError:
        try:
            return samples.build(row)[0]
        except ReadError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(samples), _AT_ONCE):  # in pieces: a row of encoded pictures holds its pixels while it waits
            rows = list(samples.kept[start : start + _AT_ONCE])
            yield from zip((samples.rows.place(row) for row in rows), pool.map(build, rows), strict=True)


def _count(report: CheckReport, sample: Sample, place: str, result: ReadResult, seen: dict[tuple[Any, ...], str]) -> None:
    report.num_samples += 1
    report.num_pictures += len(sample.images)
    report.sizes_px += [picture.size_px for picture in sample.images]
    report.answers[answer_kind(sample)] += 1
    secret = sample.privileged
    report.num_with_boxes += bool(secret.boxes_px_xyxy)
    report.num_with_crops += bool(secret.crops)
    if sample.video is not None:
        report.video_frames.append(len(sample.video.frames))
        report.video_s.append(sample.video.times_s[-1])
    if secret.boxes_px_xyxy and sample.images:
        picture = sample.images[secret.box_image]
        area = picture.width_px * picture.height_px
        report.box_area_frac += [(x2 - x1) * (y2 - y1) / area for x1, y1, x2, y2 in secret.boxes_px_xyxy]
    frames = sample.video.frames if sample.video is not None else ()
    content = (sample.question, *sorted(picture.key for picture in (*sample.images, *frames)))
    if content in seen:
        report.num_repeated_rows += 1
        remark = Problem(
            result.file, place, f"the same pictures and question as {seen[content]}", "remove one of the rows", left_out=False
        )
        report.problems.append(remark)
    else:
        seen[content] = place


def answer_kind(sample: Sample) -> str:
    """no answer, option letter, yes/no, number, short (up to three words) or long."""
    answer = (sample.answer or "").strip()
    if not answer:
        return "no answer"
    if len(answer.strip("().")) == 1 and answer.strip("().").isupper() and answer.strip("().").isalpha():
        return "option letter" if sample.options or "A." in sample.question or "(A)" in sample.question else "single letter"
    if answer.casefold() in ("yes", "no"):
        return "yes/no"
    if answer.replace(",", "").replace(".", "", 1).lstrip("+-").rstrip("%").isdigit():
        return "number"
    return "short text" if len(answer.split()) <= 3 else "long text"


def write_sheet(samples: Sequence[Sample], target: Path, report: CheckReport) -> None:
    """One self-contained HTML page: pictures with their evidence boxes, crops, question and answer."""
    cards = "\n".join(_card(sample) for sample in samples)
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(Path(report.file).name)}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;color:#222;background:#fff}}
article{{border-top:1px solid #ccc;padding:1rem 0}}img{{max-width:100%;margin:0 .5rem .5rem 0;vertical-align:top}}
pre{{white-space:pre-wrap;background:#f5f5f5;padding:1rem}}p{{white-space:pre-wrap;margin:.3rem 0}}.id{{color:#666}}</style>
<h1>{html.escape(Path(report.file).name)}</h1><pre>{html.escape(report.text())}</pre>
{cards}</html>"""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.part")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(target)


def _card(sample: Sample) -> str:
    secret = sample.privileged
    pictures = list(sample.images)
    if secret.boxes_px_xyxy and pictures:
        boxed = pictures[secret.box_image]
        line = max(2, round(max(boxed.size_px) / _THUMB_PX * 2))  # two pixels wide once shrunk
        pictures[secret.box_image] = draw_boxes(boxed, secret.boxes_px_xyxy, OverlaySpec(expand_frac=0.0, line_px=line))
    if sample.video is not None:
        frames = sample.video.frames
        pictures += frames[:: max(1, -(-len(frames) // _FRAMES_SHOWN))]
    shown = "".join(_thumb(picture, "picture") for picture in pictures) + "".join(
        _thumb(crop, "evidence crop") for crop in secret.crops
    )
    options = "".join(f"<br>{chr(65 + index)}. {html.escape(option)}" for index, option in enumerate(sample.options))
    return (
        f'<article><p class="id">{html.escape(sample.id)} {html.escape(sample.kind)}</p>{shown}'
        f"<p>{html.escape(sample.question)}{options}</p>"
        f"<p><b>{html.escape(sample.answer if sample.answer is not None else '(no answer)')}</b></p></article>"
    )


def _thumb(picture: Picture, title: str) -> str:
    image = picture.rgb().copy()
    image.thumbnail((_THUMB_PX, _THUMB_PX))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{title}" title="{title}, {picture.width_px} x {picture.height_px} px" src="data:image/jpeg;base64,{data}">'


def check_command(
    path: str,
    *,
    format: str | None = None,
    image_dir: str | None = None,
    box_format: str | None = None,
    hub_split: str = "train",
    sheet: Path | None = None,
    num_shown: int = 10,
) -> CheckReport:
    """What ``foveate data check FILE`` calls; the page of samples goes to ``<name>-check.html`` unless told otherwise."""
    fields = {"path": path, "format": format, "image_dir": image_dir, "box_format": box_format, "hub_split": hub_split}
    return check(
        DataSpec.model_validate(fields), sheet=sheet or Path(f"{Path(path).stem or 'data'}-check.html"), num_shown=num_shown
    )
