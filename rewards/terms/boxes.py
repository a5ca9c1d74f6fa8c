"""Boxes and points that a model writes, against the sample's evidence boxes. Compared in pixels of the full picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pydantic

from ...visual_tools.boxes import Coords, iou, read_box, to_px
from ...vlm.images import Picture
from ...vlm.records import Box
from ..base import Case, Term
from ..compare import number_in

_N = r"\s{0,4}(-?\d{1,9}(?:\.\d{1,9})?)\s{0,4}"
_BOX = re.compile(rf"[\[(<|]{_N},{_N}[\])]?\s{{0,4}},\s{{0,4}}[\[(]?{_N},{_N}[\])>|]")
_POINT = re.compile(rf"[\[(]{_N},{_N}[\])]|<point>{_N},{_N}</point>|\bx\s{{0,2}}={_N},\s{{0,2}}y\s{{0,2}}={_N}")
_BARE_BOX = re.compile(rf"<box>{_N},{_N},{_N},{_N}</box>")


def boxes_in(text: str) -> list[Box]:
    """The boxes in a text, as written: four numbers in brackets, also as two points. What is no box (x1 >= x2) is left out.

    >>> boxes_in('{"bbox_2d": [1, 2, 30, 40]} and (5,6),(7,8)')
    [(1.0, 2.0, 30.0, 40.0), (5.0, 6.0, 7.0, 8.0)]
    """
    found = sorted([*_BOX.finditer(text), *_BARE_BOX.finditer(text)], key=lambda match: match.start())
    boxes = (read_box([float(number) for number in match.groups()]) for match in found)
    return [box for box in boxes if not isinstance(box, str)]


def points_in(text: str) -> list[tuple[float, float]]:
    """The points in a text, as written: two numbers in brackets, in point tags, or as x=..., y=..."""
    found = ([float(number) for number in match.groups() if number] for match in _POINT.finditer(_BOX.sub(" ", text)))
    return [(x, y) for x, y in found]


class BoxSettings(Term):
    """Where boxes are read, and in which convention they are written."""

    coords: Coords = "norm1000"
    """How the model writes coordinates; see `visual_tools.boxes`."""
    seen_px: tuple[int, int] | None = None
    """Width and height at which the model saw the picture; needed for abs_resized, where it must be the same for all samples."""
    where: Literal["all", "thought", "reply"] = "all"
    """Which part of the last turn: all of it, up to the end of the thought, or behind it."""
    max_boxes: int = pydantic.Field(default=100, ge=1)
    """A text with more boxes than this has none (against covering the picture with boxes)."""

    @pydantic.model_validator(mode="after")
    def _needs_size(self) -> BoxSettings:
        if self.coords == "abs_resized" and self.seen_px is None:
            raise ValueError(
                "boxes in coords abs_resized need seen_px: [width, height] at which the model saw every picture; with pictures "
                "of several sizes let the model write norm1000"
            )
        return self

    def part(self, case: Case) -> str:
        """The text that is read."""
        text = case.rollout.text
        thought, end, reply = text.rpartition("</think>")
        if self.where == "all":
            return text
        return (thought if end else "") if self.where == "thought" else reply

    def picture(self, case: Case) -> Picture:
        """The picture of the evidence boxes."""
        images, index = case.sample.images, case.sample.privileged.box_image
        if index >= len(images):
            raise ValueError(f"sample {case.sample.id}: boxes are scored in picture {index}, and it has {len(images)} pictures")
        return images[index]

    def labels_px(self, case: Case) -> tuple[Box, ...]:
        """The evidence boxes. `ValueError` without any."""
        boxes_px = case.sample.privileged.boxes_px_xyxy
        if not boxes_px:
            raise ValueError(
                f"sample {case.sample.id}: a box term needs evidence boxes (privileged.boxes_px_xyxy) and it has none; "
                "give samples without boxes a reward of their own with by_source"
            )
        return boxes_px

    def said_px(self, case: Case) -> list[Box]:
        """The model's boxes in pixels of that picture."""
        boxes = boxes_in(self.part(case))
        size_px = self.picture(case).size_px
        return [] if len(boxes) > self.max_boxes else [to_px(box, self.coords, size_px, self.seen_px) for box in boxes]


class BoxIoU(BoxSettings):
    """Intersection over union of the first box written with the evidence box it fits best; 0 without a box."""

    term: Literal["box_iou"] = "box_iou"

    def value(self, case: Case) -> float:
        labels_px, said_px = self.labels_px(case), self.said_px(case)
        return max(iou(said_px[0], label_px) for label_px in labels_px) if said_px else 0.0


class BoxMatch(BoxSettings):
    """All boxes written against all evidence boxes, each used once, by the assignment with the largest sum of IoU."""

    term: Literal["box_match"] = "box_match"
    measure: Literal["f1", "precision", "recall", "iou"] = "f1"
    """iou: sum of the matched IoUs over the larger of the two numbers. The others count matches of at least `threshold`."""
    threshold: float = pydantic.Field(default=0.5, gt=0, le=1)

    def value(self, case: Case) -> float:
        labels_px, said_px = self.labels_px(case), self.said_px(case)
        if not said_px:
            return 0.0
        matched = match(said_px, labels_px)
        if self.measure == "iou":
            return sum(matched) / max(len(said_px), len(labels_px))
        hits = sum(one >= self.threshold for one in matched)
        whole = {"precision": len(said_px), "recall": len(labels_px), "f1": (len(said_px) + len(labels_px)) / 2}
        return hits / whole[self.measure]


def match(said_px: Sequence[Box], labels_px: Sequence[Box]) -> list[float]:
    """The IoUs of the pairs of the best one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment

    ious = np.array([[iou(box_px, label_px) for label_px in labels_px] for box_px in said_px])
    rows, columns = linear_sum_assignment(ious, maximize=True)
    return [float(value) for value in ious[rows, columns]]


class BoxEdges(BoxSettings):
    """Harmonic mean of how near each edge of the first box is to the evidence: 4 / sum of 1 / (1 - distance / side of the
    picture).

    GUI-G1 (2505.15810). The best evidence box counts. 0 when an edge is a whole picture off or more, where the formula has a
    pole.
    """

    term: Literal["box_edges"] = "box_edges"

    def value(self, case: Case) -> float:
        labels_px, said_px = self.labels_px(case), self.said_px(case)
        width_px, height_px = self.picture(case).size_px
        return max(_edges(said_px[0], label_px, (width_px, height_px)) for label_px in labels_px) if said_px else 0.0


def _edges(box_px: Box, label_px: Box, size_px: tuple[int, int]) -> float:
    near = [1 - abs(one - other) / side for one, other, side in zip(box_px, label_px, size_px * 2, strict=True)]
    return 4 / sum(1 / one for one in near) if min(near) > 0 else 0.0


class PointInBox(BoxSettings):
    """1 when the first point written, or the centre of the first box, lies in an evidence box (edges included)."""

    term: Literal["point_in_box"] = "point_in_box"
    point: Literal["auto", "centre", "point"] = "auto"
    """centre: of the first box; point: a point as such; auto: a point where there is one, else the centre."""

    def value(self, case: Case) -> float:
        labels_px, points = self.labels_px(case), points_in(self.part(case)) if self.point != "centre" else []
        boxes_px = [to_px((x, y, x, y), self.coords, self.picture(case).size_px, self.seen_px) for x, y in points[:1]]
        if not boxes_px and self.point != "point":
            boxes_px = self.said_px(case)[:1]
        if not boxes_px:
            return 0.0
        x, y = (boxes_px[0][0] + boxes_px[0][2]) / 2, (boxes_px[0][1] + boxes_px[0][3]) / 2
        return float(any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in labels_px))


class BoxCount(Term):
    """1 when as many boxes are written as there should be: the number that is the answer (GRIT on TallyQA), or the evidence
    boxes."""

    term: Literal["box_count"] = "box_count"
    of: Literal["answer", "boxes"] = "answer"

    def value(self, case: Case) -> float:
        count = len(boxes_in(case.rollout.text))
        if self.of == "boxes":
            return float(count == len(case.sample.privileged.boxes_px_xyxy))
        wanted = number_in(case.sample.answer or "")
        if wanted is None:
            raise ValueError(
                f"sample {case.sample.id}: box_count needs an answer that is a number, and it is {case.sample.answer!r}; "
                "count against the evidence with of: boxes"
            )
        return float(count == wanted)
