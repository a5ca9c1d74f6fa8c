"""Packing: groups of a prompt and its suffixes become one row without padding.

``[prompt][suffix 1]...[suffix n][prompt'][suffix' 1]...``. Positions restart after the prompt for every suffix, pictures are
listed once, and the loss side is flat: one entry per suffix token.

Legend: T packed tokens, 3 the M-RoPE axes, R suffix tokens, S suffixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import LongTensor, Tensor

from .attention import PrefixLayout
from .images import Picture
from .segments import Segment, VisualItem, VisualSpan


@dataclass(frozen=True)
class Packed:
    """One packed row, on the CPU.

    ``spans`` are in row order, their ``start`` counted in the packed row. Entry r of the loss side is suffix token r, suffix by
    suffix in order: ``predictors_R[r]`` is the packed row whose hidden state predicts it (for the first token of every suffix
    that is the prompt's last row), ``targets_R[r]`` its id, ``sequence_R[r]`` its suffix. Suffix s owns ``[suffix_starts[s],
    suffix_starts[s + 1])``.
    """

    ids_T: LongTensor
    positions_3T: LongTensor
    layout: PrefixLayout
    spans: tuple[VisualSpan, ...]
    items: tuple[VisualItem, ...]
    predictors_R: LongTensor
    targets_R: LongTensor
    sequence_R: LongTensor
    suffix_starts: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.ids_T)


def pack(groups: Sequence[tuple[Segment, Sequence[Segment]]]) -> Packed:
    """Pack ``[(prompt, [suffix, ...]), ...]``.

    Raises `ValueError` when a prompt is empty, or when a picture's tokens are not exactly as many as its features; the message
    names the picture. Nothing is dropped, padded or truncated.
    """
    ids, positions, predictors, targets, sequence = [], [], [], [], []
    spans: list[VisualSpan] = []
    layout, starts, at, suffix_count = [], [0], 0, 0

    def add(segment: Segment, position: int, where: str) -> None:
        nonlocal at
        check_spans(segment, where)
        ids.append(segment.ids_T)
        positions.append(segment.positions_3T + position)
        spans.extend(VisualSpan(span.start + at, span.length, span.item, span.offset) for span in segment.visuals)
        at += len(segment)

    for g, (prompt, suffixes) in enumerate(groups):
        if not len(prompt):
            raise ValueError(f"packing: group {g} has an empty prompt; its last token predicts the first token of every suffix")
        add(prompt, 0, f"group {g}, prompt")
        last = at - 1
        for i, suffix in enumerate(suffixes):
            start, length = at, len(suffix)
            add(suffix, prompt.next_position, f"group {g}, suffix {i}")
            if length:
                predictors.append(np.concatenate([[last], np.arange(start, start + length - 1)]))
                targets.append(suffix.ids_T)
                sequence.append(np.full(length, suffix_count))
            suffix_count += 1
            starts.append(starts[-1] + length)
        layout.append((len(prompt), tuple(len(suffix) for suffix in suffixes)))
    items = {span.item.key: span.item for span in spans}
    return Packed(
        _long(ids), _long(positions, axis=1), PrefixLayout(tuple(layout)), tuple(spans), tuple(items.values()),
        _long(predictors), _long(targets), _long(sequence), tuple(starts),
    )  # fmt: skip


def _long(arrays: Sequence[np.ndarray], axis: int = 0) -> LongTensor:
    if not arrays:
        return torch.zeros((3, 0) if axis else 0, dtype=torch.long)  # type: ignore[return-value]
    tensor: Tensor = torch.from_numpy(np.concatenate(arrays, axis=axis).astype(np.int64))
    return tensor  # type: ignore[return-value]


def check_spans(segment: Segment, where: str) -> None:
    """Every picture of a segment has all of its tokens, in order, and one id throughout; else `ValueError`."""
    done: int = 0
    item: VisualItem | None = None
    for span in segment.visuals:
        if item is not None and done == item.num_tokens:
            item = None
        if item is None:
            item, done = span.item, 0
        if span.item.key != item.key or span.offset != done:
            raise ValueError(
                f"{where}: {describe(item)} has {item.num_tokens} features but only {done} image tokens before the next"
            )
        inside = segment.ids_T[span.start : span.start + span.length]
        if (
            len(inside) != span.length
            or span.offset + span.length > item.num_tokens
            or (len(inside) and (inside != inside[0]).any())
        ):
            raise ValueError(
                f"{where}: {describe(item)} has {item.num_tokens} features, but tokens {span.start} to "
                f"{span.start + span.length - 1} of {len(segment)} are not its image tokens; render text and picture together"
            )
        done += span.length
    if item is not None and done != item.num_tokens:
        raise ValueError(
            f"{where}: {describe(item)} has {item.num_tokens} features but {done} image tokens; cut nothing inside a picture"
        )


def describe(item: VisualItem) -> str:
    """A picture or clip in words, for errors."""
    if isinstance(item.source, Picture):
        return f"picture {item.source.path or item.source.key[:12]} ({item.width_px} x {item.height_px} px)"
    first = item.source.frames[0]
    name = first.path or first.key[:12]
    return f"clip of {len(item.source.frames)} frames starting with {name} ({item.width_px} x {item.height_px} px)"
