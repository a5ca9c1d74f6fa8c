"""Rendered text: token ids with their positions and the pictures behind the image tokens.

Legend: T tokens of a segment, 3 the M-RoPE axes (time, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .images import Picture
from .messages import Clip


@dataclass(frozen=True)
class VisualItem:
    """What the vision tower encodes once: one picture or clip at one size.

    ``key`` is content and size together: two spans with the same key share one encoding. ``grid_thw`` counts patches before
    merging; ``num_tokens`` counts tokens after merging.
    """

    key: str
    kind: Literal["image", "video"]
    source: Picture | Clip
    width_px: int
    height_px: int
    grid_thw: tuple[int, int, int]
    num_tokens: int
    seconds_per_grid: float = 1.0


@dataclass(frozen=True)
class VisualSpan:
    """``length`` consecutive image tokens from ``start``: features ``[offset, offset + length)`` of the item."""

    start: int
    length: int
    item: VisualItem
    offset: int = 0


@dataclass(frozen=True)
class Segment:
    """A run of tokens whose positions are counted from 0, ready to be put behind anything.

    ``next_position`` is where the following segment starts (M-RoPE compresses pictures, so it is not the number of tokens).
    """

    ids_T: np.ndarray
    positions_3T: np.ndarray
    next_position: int
    visuals: tuple[VisualSpan, ...] = ()

    def __post_init__(self) -> None:
        if self.positions_3T.shape != (3, len(self.ids_T)):
            raise ValueError(f"segment: positions {self.positions_3T.shape} for {len(self.ids_T)} ids")

    def __len__(self) -> int:
        return len(self.ids_T)


EMPTY = Segment(np.zeros(0, np.int64), np.zeros((3, 0), np.int64), 0)


def join(segments: Sequence[Segment]) -> Segment:
    """One segment after the other, positions and spans shifted."""
    ids, positions, visuals, start, position = [], [], [], 0, 0
    for segment in segments:
        ids.append(segment.ids_T)
        positions.append(segment.positions_3T + position)
        visuals += [VisualSpan(span.start + start, span.length, span.item, span.offset) for span in segment.visuals]
        start += len(segment)
        position += segment.next_position
    if not ids:
        return EMPTY
    return Segment(np.concatenate(ids), np.concatenate(positions, axis=1), position, tuple(visuals))


@dataclass(frozen=True)
class Rendered:
    """A view and the turns played in it: the shared ``prompt``, and the ``suffix`` of actions and observations.

    ``action_spans[n]`` are the places of turn n's action ids within ``suffix.ids_T``; everything else in the suffix was written
    by the world. Two views of a rollout have the same suffix ids and the same spans.
    """

    prompt: Segment
    suffix: Segment
    action_spans: tuple[range, ...]

    @property
    def whole(self) -> Segment:
        return join((self.prompt, self.suffix))
