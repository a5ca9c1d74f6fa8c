"""One attention, registered with transformers as "foveate": shared prompts without padding or masks.

A packed row is ``[prompt][suffix 1]...[suffix n][prompt'][suffix' 1]...``. A prompt attends to itself, a suffix to its prompt
and itself, and nobody to anything else; no mask of the whole row exists. Which rows are what travels as a keyword of the model's
forward (``prefix_layout=``), because a keyword survives gradient checkpointing, adapters and data-parallel wrappers.

The type of the keyword says what to do:

- `PrefixLayout`: a packed row, for training and scoring;
- `Prefill`: the same, and every layer's keys and values are kept for sampling;
- `Decode`: one new token per row, prompt keys held once for all rollouts of a prompt (see `vlm.generate`);
- none: plain SDPA (vision tower, Hugging Face's ``generate``, padded batches).

Legend: T packed tokens, H query heads, J key heads, D head width, B rows of a bucket, Q queries of a row, K keys of a row, C
contexts, N rollouts per context, P prompt tokens.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "foveate"
Backend = Literal["batch", "varlen", "xformers"]

_SLACK_FRAC, _SLACK_CELLS = 0.25, 4096
"""A bucket may waste this share of its attention matrix, or this many cells, which cost less than another kernel call."""


@dataclass(frozen=True)
class PrefixLayout:
    """``groups`` holds ``(prompt length, suffix lengths)`` in packed order. Integers only, so it goes anywhere a keyword goes."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def num_tokens(self) -> int:
        return sum(prompt + sum(suffixes) for prompt, suffixes in self.groups)


@dataclass
class Prefill:
    """A packed row whose keys and values are kept: ``keys[layer]`` is ``[J, T, D]`` with rotary positions applied."""

    layout: PrefixLayout
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Decode:
    """One token for each of ``C * N`` rows; row ``c * N + i`` continues context c.

    ``prompt_keys[layer]`` is ``[C, J, P, D]``, shared by the N rollouts; ``own_keys[layer]`` is ``[C * N, J, steps, D]``, written
    in place at ``step``. ``prompt_mask_CP`` is False at the padding of shorter contexts, or None when all are of one length.
    """

    prompt_keys: list[Tensor]
    prompt_values: list[Tensor]
    own_keys: list[Tensor]
    own_values: list[Tensor]
    num_rollouts: int
    prompt_mask_CP: Tensor | None = None
    step: int = 0


@dataclass(frozen=True)
class _Piece:
    """A run of queries and the prompt it also attends to (``prompt_length`` 0: none)."""

    start: int
    length: int
    prompt_start: int
    prompt_length: int

    @property
    def cells(self) -> int:
        return self.length * (self.length + self.prompt_length)


@dataclass
class _Bucket:
    """Pieces of similar shape, run as one padded batch. ``mask`` is None when plain causal attention is right."""

    rows: int
    queries: int
    keys: int
    mask: Tensor | None


@dataclass
class _Plan:
    """Gather indices of one layout: all padded queries, all padded keys, and the way back."""

    queries: Tensor
    keys: Tensor
    back_T: Tensor
    buckets: list[_Bucket]


def foveate_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix_layout: PrefixLayout | Prefill | Decode | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in every layer: query ``[B, H, Q, D]``, key and value ``[B, J, K, D]`` -> ``[B, Q, H, D]``."""
    if prefix_layout is None or not module.is_causal:
        return _plain(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("sliding_window") is not None:
        raise NotImplementedError(
            "packed rows with sliding-window layers: load the model with attention='sdpa' and use_sliding_window=False"
        )
    layer = module.layer_idx
    assert isinstance(layer, int)
    if isinstance(prefix_layout, Decode):
        return _decode(query, key, value, scaling or query.shape[-1] ** -0.5, prefix_layout, layer), None
    if isinstance(prefix_layout, Prefill):
        prefix_layout.keys[layer], prefix_layout.values[layer] = key[0], value[0]
        prefix_layout = prefix_layout.layout
    if query.shape[0] != 1 or query.shape[2] != prefix_layout.num_tokens or key.shape[2] != query.shape[2]:
        raise ValueError(
            f"packed attention: the layout describes one row of {prefix_layout.num_tokens} tokens, "
            f"the model got {query.shape[0]} rows of {query.shape[2]} tokens with {key.shape[2]} keys; "
            "pass use_cache=False and no padding"
        )
    out_THD = _packed(query[0], key[0], value[0], prefix_layout, scaling)
    return out_THD[None], None


def _plain(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


def register() -> None:
    """Make ``attn_implementation="foveate"`` known to transformers. Called once when this file is imported."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, foveate_attention)
    # without a mask function of its own, padded batches would silently get no mask at all
    AttentionMaskInterface.register(NAME, sdpa_mask)


# ---------------------------------------------------------------- packed rows


def backend_for(query: Tensor) -> Backend:
    """`varlen` (FlashAttention of PyTorch) or `xformers` on CUDA in half precision where they load, else `batch`."""
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        if _importable("torch.nn.attention.varlen"):
            return "varlen"
        if _importable("xformers.ops"):
            return "xformers"
    return "batch"


@functools.cache
def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _packed(
    query_HTD: Tensor,
    key_JTD: Tensor,
    value_JTD: Tensor,
    layout: PrefixLayout,
    scaling: float | None,
    backend: Backend | None = None,
) -> Tensor:
    """``[T, H, D]``: attention over a packed row. All back ends give the same numbers."""
    run = {"batch": _packed_batch, "varlen": _packed_varlen, "xformers": _packed_xformers}[backend or backend_for(query_HTD)]
    return run(query_HTD, key_JTD, value_JTD, layout, scaling)


def _packed_batch(query_HTD: Tensor, key_JTD: Tensor, value_JTD: Tensor, layout: PrefixLayout, scaling: float | None) -> Tensor:
    """Public SDPA over padded buckets of similar prompts, and of similar suffixes behind their prompts."""
    plan = _plan(layout, query_HTD.device)
    heads, num_tokens, width = query_HTD.shape
    kv_heads = key_JTD.shape[0]
    fold = heads // kv_heads

    def gather(x: Tensor, index: Tensor) -> Tensor:
        return x.transpose(0, 1).reshape(num_tokens, -1).index_select(0, index)

    sizes_q = [bucket.rows * bucket.queries for bucket in plan.buckets]
    sizes_k = [bucket.rows * bucket.keys for bucket in plan.buckets]
    queries = gather(query_HTD, plan.queries).split(sizes_q)
    keys, values = gather(key_JTD, plan.keys).split(sizes_k), gather(value_JTD, plan.keys).split(sizes_k)
    outs = []
    for bucket, q, k, v in zip(plan.buckets, queries, keys, values, strict=True):
        k, v = (x.view(bucket.rows, bucket.keys, kv_heads, width).transpose(1, 2) for x in (k, v))
        q = q.view(bucket.rows, bucket.queries, heads, width).transpose(1, 2)
        if bucket.mask is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=fold > 1)
        else:
            # heads that share keys become further queries: the prompt's keys are not copied once more per head
            mask = bucket.mask.repeat(*(1,) * (bucket.mask.dim() - 2), fold, 1)
            q = q.reshape(bucket.rows, kv_heads, fold * bucket.queries, width)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
            out = out.view(bucket.rows, heads, bucket.queries, width)
        outs.append(out.transpose(1, 2).reshape(bucket.rows * bucket.queries, heads * width))
    whole = outs[0] if len(outs) == 1 else torch.cat(outs)
    return whole.index_select(0, plan.back_T).view(num_tokens, heads, width)


@functools.lru_cache(16)
def _plan(layout: PrefixLayout, device: torch.device) -> _Plan:
    pieces = list(_pieces(layout))
    buckets, queries, keys, back, at = [], [], [], torch.zeros(layout.num_tokens, dtype=torch.long), 0
    for members in _bucketed(pieces):
        num_q = max(piece.length for piece in members)
        num_p = max(piece.prompt_length for piece in members)
        index_q, index_k = (
            torch.zeros(len(members), num_q, dtype=torch.long),
            torch.zeros(len(members), num_p + num_q, dtype=torch.long),
        )
        for i, piece in enumerate(members):
            own = torch.arange(piece.start, piece.start + piece.length)
            index_q[i, : piece.length] = own
            index_k[i, : piece.prompt_length] = torch.arange(piece.prompt_start, piece.prompt_start + piece.prompt_length)
            index_k[i, num_p : num_p + piece.length] = own
            back[piece.start : piece.start + piece.length] = at + i * num_q + torch.arange(piece.length)
        at += len(members) * num_q
        buckets.append(_Bucket(len(members), num_q, num_p + num_q, _mask(members, num_q, num_p, device)))
        queries.append(index_q.flatten())
        keys.append(index_k.flatten())
    return _Plan(torch.cat(queries).to(device), torch.cat(keys).to(device), back.to(device), buckets)


def _pieces(layout: PrefixLayout) -> Iterator[_Piece]:
    at = 0
    for prompt, suffixes in layout.groups:
        yield _Piece(at, prompt, 0, 0)
        start = at + prompt
        for length in suffixes:
            if length:
                yield _Piece(start, length, at, prompt)
            start += length
        at = start


def _bucketed(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces put together while padding them to one shape costs less than another call would."""
    ordered = sorted(pieces, key=lambda piece: (piece.prompt_length, piece.length), reverse=True)
    members: list[_Piece] = []
    longest = real = 0
    for piece in ordered:
        if members and (piece.prompt_length == 0) == (members[0].prompt_length == 0):
            width = max(longest, piece.length)
            padded = (len(members) + 1) * width * (width + members[0].prompt_length)
            if padded - real - piece.cells <= max(_SLACK_CELLS, _SLACK_FRAC * (real + piece.cells)):
                members.append(piece)
                longest, real = width, real + piece.cells
                continue
        if members:
            yield members
        members, longest, real = [piece], piece.length, piece.cells
    if members:
        yield members


def _mask(members: Sequence[_Piece], num_q: int, num_p: int, device: torch.device) -> Tensor | None:
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


# ---------------------------------------------------------------- packed rows on CUDA
# Written from the documentation of PyTorch 2.13 and xformers 0.0.35 and compared with `batch` by tests marked `gpu`; they have
# not been run where this was written.


@dataclass
class _Blocks:
    """Keys gathered as ``[prompt][prompt, suffix 1][prompt, suffix 2]...``, so every block is causal from the bottom right."""

    gather: Tensor
    query_lengths: list[int]
    key_lengths: list[int]
    cu_queries: Tensor
    cu_keys: Tensor


@functools.lru_cache(16)
def _blocks(layout: PrefixLayout, device: torch.device) -> _Blocks:
    gather, query_lengths, key_lengths = [], [], []
    for piece in _pieces(layout):
        gather += [
            torch.arange(piece.prompt_start, piece.prompt_start + piece.prompt_length),
            torch.arange(piece.start, piece.start + piece.length),
        ]
        query_lengths.append(piece.length)
        key_lengths.append(piece.prompt_length + piece.length)
    cu_q, cu_k = (
        torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
        for lengths in (query_lengths, key_lengths)
    )
    return _Blocks(torch.cat(gather).to(device), query_lengths, key_lengths, cu_q, cu_k)


def _packed_varlen(query_HTD: Tensor, key_JTD: Tensor, value_JTD: Tensor, layout: PrefixLayout, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    blocks = _blocks(layout, query_HTD.device)
    query, key, value = (x.transpose(0, 1) for x in (query_HTD, key_JTD, value_JTD))
    key, value = key.index_select(0, blocks.gather), value.index_select(0, blocks.gather)
    out = varlen_attn(
        query.contiguous(), key, value, blocks.cu_queries, blocks.cu_keys, max(blocks.query_lengths), max(blocks.key_lengths),
        scale=scaling, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def _packed_xformers(
    query_HTD: Tensor, key_JTD: Tensor, value_JTD: Tensor, layout: PrefixLayout, scaling: float | None
) -> Tensor:
    import xformers.ops as xops
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask

    blocks = _blocks(layout, query_HTD.device)
    fold = query_HTD.shape[0] // key_JTD.shape[0]
    query = query_HTD.transpose(0, 1)
    key, value = (x.transpose(0, 1).index_select(0, blocks.gather).repeat_interleave(fold, 1) for x in (key_JTD, value_JTD))
    bias = BlockDiagonalCausalFromBottomRightMask.from_seqlens(q_seqlen=blocks.query_lengths, kv_seqlen=blocks.key_lengths)
    out: Tensor = xops.memory_efficient_attention(query[None].contiguous(), key[None], value[None], attn_bias=bias, scale=scaling)
    return out[0]


# ---------------------------------------------------------------- sampling


def _decode(query: Tensor, key: Tensor, value: Tensor, scaling: float, state: Decode, layer: int) -> Tensor:
    """``[C * N, 1, H, D]``: one new token per row against the shared prompt and the row's own tokens."""
    rows, heads, _, width = query.shape
    kv_heads, step, num = key.shape[1], state.step, state.num_rollouts
    fold, contexts = heads // kv_heads, rows // num
    state.own_keys[layer][:, :, step], state.own_values[layer][:, :, step] = key[:, :, 0], value[:, :, 0]
    own_keys, own_values = state.own_keys[layer][:, :, : step + 1], state.own_values[layer][:, :, : step + 1]
    prompt_keys, prompt_values = state.prompt_keys[layer], state.prompt_values[layer]
    length = prompt_keys.shape[2]

    own_query = query.view(rows, kv_heads, fold, width) * scaling
    shared_query = own_query
    if num > 1:  # the N rollouts of a context are N times as many queries against one copy of its keys
        shared_query = (
            own_query.view(contexts, num, kv_heads, fold, width).transpose(1, 2).reshape(contexts, kv_heads, num * fold, width)
        )
    shared = shared_query @ prompt_keys.transpose(2, 3)
    if state.prompt_mask_CP is not None:
        shared = shared.masked_fill_(~state.prompt_mask_CP[:, None, None, :], float("-inf"))
    if num > 1:
        shared = shared.view(contexts, kv_heads, num, fold, length).transpose(1, 2).reshape(rows, kv_heads, fold, length)
    own = own_query @ own_keys.transpose(2, 3)
    weights = torch.cat([shared, own], -1).softmax(-1)
    shared_weights = weights[..., :length]
    if num > 1:
        shared_weights = (
            shared_weights.view(contexts, num, kv_heads, fold, length)
            .transpose(1, 2)
            .reshape(contexts, kv_heads, num * fold, length)
        )
    out = shared_weights @ prompt_values
    if num > 1:
        out = out.view(contexts, kv_heads, num, fold, width).transpose(1, 2).reshape(rows, kv_heads, fold, width)
    return (out + weights[..., length:] @ own_values).reshape(rows, 1, heads, width)


register()
