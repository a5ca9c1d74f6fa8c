"""How a packed row is cut for attention: into padded buckets for SDPA, or into blocks for variable-length kernels.

A packed row is ``[prompt][suffix 1]...[suffix n][prompt'][suffix' 1]...``. Both ways turn it into pieces, each a run of queries
and the prompt it also attends to, and into indices made once per layout, not once per layer.

Legend: T packed tokens, B pieces of a bucket, Q queries of a piece, K keys of a piece.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SLACK_FRAC, _SLACK_CELLS = 0.25, 4096
"""A bucket may waste this share of its attention matrix, or this many cells, which cost less than another kernel call."""


@dataclass(frozen=True)
class PrefixLayout:
    """``groups`` holds ``(prompt length, suffix lengths)`` in packed order. Integers only, so it goes anywhere a keyword goes."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def num_tokens(self) -> int:
        """Length of the packed row."""
        return sum(prompt + sum(suffixes) for prompt, suffixes in self.groups)


@dataclass(frozen=True)
class Piece:
    """A run of queries and the prompt it also attends to (``prompt_length`` 0: none)."""

    start: int
    length: int
    prompt_start: int
    prompt_length: int

    @property
    def cells(self) -> int:
        """Size of the attention matrix."""
        return self.length * (self.length + self.prompt_length)


@dataclass
class Bucket:
    """Pieces of similar shape, run as one padded batch. ``mask`` is None when plain causal attention is right."""

    rows: int
    queries: int
    keys: int
    mask: Tensor | None
    scores: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    @torch.inference_mode(False)
    def added(self, fold: int, dtype: torch.dtype) -> Tensor:
        """The mask as it is added to the scores of ``fold`` heads at once; made once: no layer keeps a copy for backward."""
        if (fold, dtype) not in self.scores:
            assert self.mask is not None
            zeros = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device).masked_fill_(~self.mask, float("-inf"))
            self.scores[fold, dtype] = zeros.repeat(*(1,) * (zeros.dim() - 2), fold, 1)
        return self.scores[fold, dtype]


@dataclass
class Plan:
    """Gather indices of one layout: all padded queries, all padded keys, and the way back."""

    queries: Tensor
    keys: Tensor
    back_T: Tensor
    buckets: list[Bucket]


@functools.lru_cache(4)
@torch.inference_mode(False)  # what is kept must also serve a backward pass
def plan_of(layout: PrefixLayout, device: torch.device) -> Plan:
    """The plan of a layout; the last few are kept."""
    buckets, queries, keys, back_T, at = [], [], [], np.zeros(layout.num_tokens, np.int64), 0
    for members in bucketed(list(pieces_of(layout))):
        num_q = max(piece.length for piece in members)
        num_p = max(piece.prompt_length for piece in members)
        # padding points at row 0: any row will do, it is masked or dropped
        index_BQ, index_BK = np.zeros((len(members), num_q), np.int64), np.zeros((len(members), num_p + num_q), np.int64)
        for i, piece in enumerate(members):
            own = np.arange(piece.start, piece.start + piece.length)
            index_BQ[i, : piece.length] = own
            index_BK[i, : piece.prompt_length] = np.arange(piece.prompt_start, piece.prompt_start + piece.prompt_length)
            index_BK[i, num_p : num_p + piece.length] = own
            back_T[own] = np.arange(at, at + piece.length)
            at += num_q
        buckets.append(Bucket(len(members), num_q, num_p + num_q, _mask(members, num_q, num_p, device)))
        queries.append(index_BQ.ravel())
        keys.append(index_BK.ravel())
    flat_q, flat_k, back = (torch.from_numpy(x).to(device) for x in (np.concatenate(queries), np.concatenate(keys), back_T))
    return Plan(flat_q, flat_k, back, buckets)


def pieces_of(layout: PrefixLayout) -> Iterator[Piece]:
    """Prompts and suffixes in row order; empty suffixes are left out."""
    at = 0
    for prompt, suffixes in layout.groups:
        yield Piece(at, prompt, 0, 0)
        start = at + prompt
        for length in suffixes:
            if length:
                yield Piece(start, length, at, prompt)
            start += length
        at = start


def bucketed(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces put together while padding them to one shape costs less than another call would."""
    members: list[Piece] = []
    longest = prompt = real = 0
    for piece in sorted(pieces, key=lambda piece: (_prompt_class(piece), piece.length), reverse=True):
        if members and _prompt_class(piece) == _prompt_class(members[0]):
            width, depth, cells = max(longest, piece.length), max(prompt, piece.prompt_length), real + piece.cells
            if (len(members) + 1) * width * (width + depth) - cells <= max(_SLACK_CELLS, _SLACK_FRAC * cells):
                members.append(piece)
                longest, prompt, real = width, depth, cells
                continue
        if members:
            yield members
        members, longest, prompt, real = [piece], piece.length, piece.prompt_length, piece.cells
    if members:
        yield members


def _prompt_class(piece: Piece) -> int:
    """Prompts of one class differ in length by less than a sixth; prompts themselves (nothing before them) are class 0."""
    return 1 + int(math.log(piece.prompt_length, 7 / 6)) if piece.prompt_length else 0


def _mask(members: Sequence[Piece], num_q: int, num_p: int, device: torch.device) -> Tensor | None:
    """Bool ``[Q, K]``, or ``[B, 1, Q, K]`` where prompts differ in length; None for prompts: causality hides the padding."""
    if num_p == 0:
        return None
    row = torch.arange(num_q, device=device)[:, None]
    causal_QK = torch.arange(num_p + num_q, device=device)[None, :] <= row + num_p
    if all(piece.prompt_length == num_p for piece in members):
        return causal_QK
    real_B = torch.tensor([piece.prompt_length for piece in members], device=device)
    at_K = torch.arange(num_p + num_q, device=device)
    real_BK = (at_K < real_B[:, None]) | (at_K >= num_p)
    return causal_QK & real_BK[:, None, None, :]


@dataclass
class Blocks:
    """A row cut for variable-length kernels: queries as they stand, keys in the order ``gather`` (None: as they stand).

    Block b has ``query_lengths[b]`` queries and ``key_lengths[b]`` keys; ``cu_*`` are the borders, int32. ``causal``: the last
    query of a block reads all of its keys, each earlier one a key less. ``kept`` is for what a back end makes of them.
    """

    gather: Tensor | None
    query_lengths: list[int]
    key_lengths: list[int]
    cu_queries: Tensor
    cu_keys: Tensor
    causal: bool
    kept: dict[str, Any] = field(default_factory=dict)

    def allowed(self) -> Tensor:
        """Bool ``[T, S]``: which query reads which of the gathered keys. For comparisons."""
        shape = (sum(self.query_lengths), sum(self.key_lengths))
        mask = torch.zeros(shape, dtype=torch.bool, device=self.cu_queries.device)
        at_q = at_k = 0
        for queries, keys in zip(self.query_lengths, self.key_lengths, strict=True):
            block = torch.ones(queries, keys, dtype=torch.bool, device=mask.device)
            mask[at_q : at_q + queries, at_k : at_k + keys] = block.tril(keys - queries) if self.causal else block
            at_q, at_k = at_q + queries, at_k + keys
        return mask


@functools.lru_cache(4)
@torch.inference_mode(False)
def blocks_of(layout: PrefixLayout, device: torch.device) -> Blocks:
    """The blocks of a packed row; the last few are kept.

    A prompt and the first suffix behind it are one causal block. Each further suffix is a block with the prompt's keys before its
    own, so a group of n suffixes copies its prompt's keys n - 1 times.
    """
    gather, query_lengths, key_lengths, copied = [], [], [], False
    at = 0
    for prompt, suffixes in layout.groups:
        start, alone = at + prompt, True
        for length in (one for one in suffixes if one):
            if alone:
                gather.append(np.arange(at, start + length))
                query_lengths.append(prompt + length)
            else:
                gather += [np.arange(at, at + prompt), np.arange(start, start + length)]
                query_lengths.append(length)
                copied = True
            key_lengths.append(prompt + length)
            start, alone = start + length, False
        if alone:
            gather.append(np.arange(at, start))
            query_lengths.append(prompt)
            key_lengths.append(prompt)
        at = start
    index = torch.from_numpy(np.concatenate(gather)).to(device) if copied else None
    return Blocks(index, query_lengths, key_lengths, _borders(query_lengths, device), _borders(key_lengths, device), True)


@functools.lru_cache(8)
@torch.inference_mode(False)
def windows_of(lengths: tuple[int, ...], device: torch.device) -> Blocks:
    """Runs of these lengths, one behind the other, each reading itself and nothing else; the last few are kept."""
    borders = _borders(lengths, device)
    return Blocks(None, list(lengths), list(lengths), borders, borders, False)


def _borders(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


@functools.lru_cache(8)
@torch.inference_mode(False)
def by_length(lengths: tuple[int, ...], device: torch.device) -> tuple[list[tuple[int, int]], Tensor | None, Tensor | None]:
    """Runs put together by length: ``(number, length)`` of each kind, the order of rows that brings like to like, the way back.

    Both orders are None when there is nothing to move.
    """
    starts = np.cumsum([0, *lengths[:-1]])
    kinds = sorted({length for length in lengths if length})
    members = [[start for start, length in zip(starts.tolist(), lengths, strict=True) if length == kind] for kind in kinds]
    counts = [(len(own), kind) for own, kind in zip(members, kinds, strict=True)]
    if len(kinds) <= 1:
        return counts, None, None
    rows = [np.add.outer(own, np.arange(kind)).ravel() for own, kind in zip(members, kinds, strict=True)]
    order = np.concatenate(rows)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return counts, torch.from_numpy(order).to(device), torch.from_numpy(back).to(device)
