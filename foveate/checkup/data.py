"""Whether a recipe's data can be read, shown and trusted: the first rows in full, the rest as far as reading looks at them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import get_args

from ..datasets.leaks import find_leaks
from ..datasets.read import Problem, read
from ..datasets.spec import BoxFormat, DataSpec, load_data
from ..datasets.trajectories import read_trajectories
from ..datasets.views import ViewSpec, make_view
from ..train.config import RunConfig
from ..train.protocols import Protocols
from ..train.signals.distill_settings import DistillSignal
from ..train.signals.settings import SftSignal
from ..vlm.families.base import Family
from ..vlm.records import Sample, View
from ..vlm.rollout import Limits
from .findings import Finding

_MANY_ROWS = 20_000
"""Files with more rows are not read again to find the unit of their boxes."""


@dataclass
class Rows:
    """What was found: samples, their student and teacher views, and lines of the report."""

    samples: list[Sample] = field(default_factory=list)
    students: list[View] = field(default_factory=list)
    teachers: list[View] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def look_at_data(config: RunConfig, family: Family, num: int) -> Rows:
    """Read the recipe's data and make the views of its first ``num`` samples. What is wrong becomes a finding."""
    found = Rows()
    try:
        samples = _samples(config, found)
    except (ValueError, OSError) as error:
        found.findings.append(
            Finding("data", str(error), "red", "a file of samples", "foveate data check FILE shows every row; see docs/data.md")
        )
        return found
    found.samples = list(islice(samples, num))
    if not found.samples:
        return found
    repeated = [name for name, times in Counter(one.id for one in found.samples).items() if times > 1]
    if repeated:
        found.findings.append(
            Finding(
                "sample ids",
                f"{len(repeated)} are used more than once, such as {repeated[0]!r}",
                "red",
                "an id of its own for each sample (rewards and pass rates are kept by it)",
                "rename them in the file",
            )
        )
    _boxes(found)
    _views(config, family, found)
    return found


def _samples(config: RunConfig, found: Rows) -> Sequence[Sample]:
    first = config.signals[0]
    if isinstance(first, SftSignal) and first.source == "trajectories":
        whole = read_trajectories(config.data)
        found.findings.append(_counts(str(config.data.path), len(whole.trajectories), whole.problems))
        return [one.sample for one in whole.trajectories]
    for spec in _files(config.data):
        result = read(spec)
        found.findings.append(_counts(result.file, len(result.samples), result.problems))
        found.findings += list(_units(spec, result.problems, result.num_rows))
        if not len(result.samples):
            return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rows left out: they are in the report
        samples = load_data(config.data)
    if not any(True for _ in _files(config.data)):
        found.findings.append(Finding("data", f"{len(samples):,} synthetic samples", "green"))
    return samples


def _files(spec: DataSpec) -> Iterator[DataSpec]:
    if spec.path is not None:
        yield spec
    for part in spec.mix:
        yield from _files(part.data)


def _counts(file: str, num: int, problems: Sequence[Problem]) -> Finding:
    left_out = [one for one in problems if one.left_out]
    text = f"{file}: {num:,} samples, {len(left_out)} rows left out, {len(problems) - len(left_out)} remarks"
    if not num:
        return Finding("data", f"{text}; {problems[0] if problems else 'no row at all'}", "red", "samples", "see docs/data.md")
    if problems:
        share = len(left_out) / (num + len(left_out))
        return Finding(
            "data", f"{text}; the first: {problems[0]}", "red" if share > 0.1 else "yellow", "no problems",
            f"foveate data check {file} names every row",
        )  # fmt: skip
    return Finding("data", text, "green")


# ---- boxes ----------------------------------------------------------------------------------------------------------------


def _units(spec: DataSpec, problems: Sequence[Problem], num_rows: int) -> Iterator[Finding]:
    """Boxes outside their pictures, and the unit under which they are inside."""
    outside = [one for one in problems if "box" in one.what]
    if not outside:
        return
    fits = ""
    for unit in get_args(BoxFormat) if num_rows <= _MANY_ROWS else ():
        again = read(spec.model_copy(update={"box_format": unit, "strict": False}))
        if unit != (spec.box_format or "px_xyxy") and not any("box" in one.what for one in again.problems):
            fits = unit
            break
    yield Finding(
        "boxes", f"{len(outside)} of {num_rows} rows have boxes that are not inside their pictures: {outside[0]}", "red",
        "boxes inside the picture",
        f"data.box_format={fits} (all boxes are inside then)" if fits else "set data.box_format to the unit of the boxes",
    )  # fmt: skip


def _boxes(found: Rows) -> None:
    """Boxes that are inside, but look like another unit than pixels."""
    pairs = [
        (box, one.images[one.privileged.box_image].size_px)
        for one in found.samples
        for box in one.privileged.boxes_px_xyxy
        if one.images
    ]
    if any(one.topic == "boxes" for one in found.findings) or not pairs:
        return
    # every box in the corner of 1000 x 1000 px of large pictures, and some at its far end: a scale of 0 to 1000 taken for pixels
    large = all(min(size) >= 1200 for _, size in pairs)
    most = max(max(box) for box, _ in pairs)
    if large and len(pairs) >= 8 and 800 <= most <= 1000:
        found.findings.append(
            Finding(
                "boxes",
                f"all {len(pairs)} boxes lie within the first 1000 px of larger pictures: they may be 0 to 1000 of each side",
                "yellow",
                "pixels",
                "look at foveate data check's page; data.box_format=k1000_xyxy if so",
            )
        )
        return
    found.findings.append(Finding("boxes", f"{len(pairs)} boxes of the rows looked at are inside their pictures", "green"))


# ---- views ----------------------------------------------------------------------------------------------------------------


def _views(config: RunConfig, family: Family, found: Rows) -> None:
    limits = Limits(turns=config.sampling.max_turns, **config.limits.model_dump())
    protocols = Protocols(config.tools, config.protocols, limits, family.coords)
    teachers = [one.teacher for one in config.signals if isinstance(one, DistillSignal)]
    leaks, failed = [], []
    for sample in found.samples:
        try:
            view = make_view(sample, config.student, "student", protocols.prompt(sample))
            leaks += [f"sample {sample.id}: {leak}" for leak in find_leaks(sample, view, config.student)]
            found.students.append(view)
        except (ValueError, OSError) as error:
            failed.append(str(error))
        found.teachers += _teacher_views(sample, teachers, protocols, failed)
    num = len(found.samples)
    if failed:
        found.findings.append(
            Finding(
                "views",
                f"{len(failed)} views of {num} samples cannot be made: {failed[0]}",
                "red",
                "a view of every sample",
                "choose views that the data can serve (student, signals.N.teacher), or remove the rows",
            )
        )
    else:
        found.findings.append(Finding("views", f"student{' and teacher' if teachers else ''} of {num} samples", "green"))
    if leaks:
        found.findings.append(
            Finding(
                "leaks",
                f"{len(leaks)} in {num} student views: {leaks[0]}",
                "red" if config.leak_check else "yellow",
                "nothing privileged in the student's view",
                "another student view, or reveals: [...] where the student is meant to see it",
            )
        )
    elif found.students:
        found.findings.append(Finding("leaks", f"none in {len(found.students)} student views", "green"))


def _teacher_views(sample: Sample, teachers: Sequence[ViewSpec], protocols: Protocols, failed: list[str]) -> Iterator[View]:
    for spec in teachers:
        try:
            yield make_view(sample, spec, "teacher", protocols.prompt(sample))
        except (ValueError, OSError) as error:
            failed.append(str(error))
