"""One attention, registered with transformers as "foveate": shared prompts without padding or masks.

A packed row is ``[prompt][suffix 1]...[suffix n][prompt'][suffix' 1]...``. A prompt attends to itself, a suffix to its prompt
and itself, and nobody to anything else; no mask of the whole row exists. Which rows are what travels as a keyword of the model's
forward (``prefix_layout=``), because a keyword survives gradient checkpointing, adapters and data-parallel wrappers.

The type of the keyword says what to do:

- `PrefixLayout`: a packed row, for training and scoring;
- `Prefill`: the same, and every layer's keys and values are kept for sampling;
- `Decode`: one new token per row, prompt keys held once for all rollouts of a prompt (see `vlm.generate`);
- none: plain SDPA (Hugging Face's ``generate``, padded batches).

A vision tower says with ``borders=`` where its pictures and windows begin (see `one_call_per_layer`). Packed rows and towers run
on the kernels that `attention_backends` finds.

Legend: T packed tokens, H query heads, J key heads, D head width, B rows of a bucket, Q queries of a row, K keys of a row, C
contexts, N rollouts per context, P prompt tokens.
"""

from __future__ import annotations

import inspect
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_backends import HALF, attend, backend_for, repeated
from .layout import PrefixLayout, blocks_of, by_length, plan_of, windows_of

NAME = "foveate"


@dataclass
class Prefill:
    """A packed row whose keys and values are kept: ``keys[layer]`` is ``[J, T, D]`` with rotary positions applied."""

    layout: PrefixLayout
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Decode:
    """New tokens, the same number Q for each of ``C * N`` rows; row ``c * N + i`` continues context c.

    ``prompt_keys[layer]`` is ``[C, J, P, D]``, shared by the N rollouts; ``own_keys[layer]`` is ``[C * N, J, K, D]``: what each
    row has read behind its prompt. New tokens are written in place from ``column`` on. ``prompt_mask_CP`` is False at the padding
    of shorter contexts, ``own_mask_BK`` at columns that hold nothing of a row; None when there is no such place.
    """

    prompt_keys: list[Tensor]
    prompt_values: list[Tensor]
    own_keys: list[Tensor]
    own_values: list[Tensor]
    num_rollouts: int
    prompt_mask_CP: Tensor | None = None
    own_mask_BK: Tensor | None = None
    column: int = 0


def foveate_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix_layout: PrefixLayout | Prefill | Decode | None = None,
    borders: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in every layer: query ``[B, H, Q, D]``, key and value ``[B, J, K, D]`` -> ``[B, Q, H, D]``."""
    if borders is not None:
        query, key = query.to(value.dtype), key.to(value.dtype)
        return pieces_attention(query[0], key[0], value[0], lengths_between(borders), scaling)[None], None
    if prefix_layout is None or not module.is_causal:
        return _plain(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("sliding_window") is not None:
        raise NotImplementedError(
            "packed rows with sliding-window layers: load the model with attention='sdpa' and use_sliding_window=False"
        )
    # under autocast the rotary embedding leaves queries and keys in fp32 and values in the type that was asked for
    query, key = query.to(value.dtype), key.to(value.dtype)
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
    out_THD = packed_attention(query[0], key[0], value[0], prefix_layout, scaling)
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


def packed_attention(
    query_HTD: Tensor, key_JTD: Tensor, value_JTD: Tensor, layout: PrefixLayout, scaling: float | None
) -> Tensor:
    """``[T, H, D]``: attention over a packed row. All back ends give the same numbers."""
    scale = query_HTD.shape[-1] ** -0.5 if scaling is None else scaling
    backend = backend_for(query_HTD)
    if backend == "sdpa":
        return _packed_batch(query_HTD, key_JTD, value_JTD, layout, scale)
    query, key, value = (x.transpose(0, 1) for x in (query_HTD, key_JTD, value_JTD))
    return attend(query, key, value, blocks_of(layout, query.device), scale, backend)


def _packed_batch(query_HTD: Tensor, key_JTD: Tensor, value_JTD: Tensor, layout: PrefixLayout, scaling: float) -> Tensor:
    """Public SDPA over padded buckets of similar prompts, and of similar suffixes behind their prompts."""
    plan = plan_of(layout, query_HTD.device)
    heads, num_tokens, width = query_HTD.shape
    kv_heads = key_JTD.shape[0]
    fold = heads // kv_heads

    def flat(x: Tensor) -> Tensor:
        return x.transpose(0, 1).reshape(num_tokens, -1)

    sizes_q = [bucket.rows * bucket.queries for bucket in plan.buckets]
    sizes_k = [bucket.rows * bucket.keys for bucket in plan.buckets]
    queries = flat(query_HTD).index_select(0, plan.queries).split(sizes_q)
    keys, values = (repeated(flat(x), plan.keys).split(sizes_k) for x in (key_JTD, value_JTD))
    outs = []
    for bucket, q, k, v in zip(plan.buckets, queries, keys, values, strict=True):
        k, v = (x.view(bucket.rows, bucket.keys, kv_heads, width).transpose(1, 2) for x in (k, v))
        q = q.view(bucket.rows, bucket.queries, heads, width).transpose(1, 2)
        if bucket.mask is None:
            if fold > 1 and q.is_cuda and q.dtype not in HALF:
                # no kernel for float32 on CUDA knows grouped keys; without a kernel the whole matrix of scores is made
                k, v = (x.repeat_interleave(fold, 1) for x in (k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=heads > k.shape[1])
        else:
            # heads that share keys become further queries: the prompt's keys are not copied once more per head
            q = q.reshape(bucket.rows, kv_heads, fold * bucket.queries, width)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.added(fold, q.dtype), scale=scaling)
            out = out.view(bucket.rows, heads, bucket.queries, width)
        outs.append(out.transpose(1, 2).reshape(bucket.rows * bucket.queries, heads * width))
    whole = outs[0] if len(outs) == 1 else torch.cat(outs)
    return whole.index_select(0, plan.back_T).view(num_tokens, heads, width)


# ---------------------------------------------------------------- vision towers


def one_call_per_layer(model: torch.nn.Module) -> None:
    """Let a vision tower call its attention once per layer, for all windows and pictures together. Harmless when done twice.

    The towers of transformers cut a row at ``cu_seqlens`` themselves and call the attention once per piece, unless the name of
    the implementation holds "flash", which loading refuses for a name that is no flash-attn. A hook before each attention module
    therefore hands it the row as one piece and the borders as a keyword, which it passes on. This rests on two public things:
    hooks, and that keywords of an attention module reach the attention function.
    """
    for module in model.modules():
        cuts = "is_causal" in vars(module) and "cu_seqlens" in inspect.signature(type(module).forward).parameters
        if cuts:
            module.register_forward_pre_hook(_whole_row, with_kwargs=True)


def _whole_row(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    config: Any = module.config
    if config._attn_implementation != NAME or "cu_seqlens" not in kwargs or "borders" in kwargs:
        return args, kwargs  # another attention knows nothing of borders: there the tower goes on cutting
    hidden = args[0] if args else kwargs["hidden_states"]
    return args, {**kwargs, "cu_seqlens": torch.tensor([0, len(hidden)]), "borders": kwargs["cu_seqlens"]}


_SEEN: deque[tuple[Tensor, tuple[int, ...]]] = deque(maxlen=4)
"""Borders that were read from the device; all layers of a pass get the same tensors, and reading one waits for the device."""


def lengths_between(borders: Tensor) -> tuple[int, ...]:
    """Lengths of the pieces between ``borders`` (0, ..., T)."""
    for known, lengths in _SEEN:
        if known is borders:
            return lengths
    lengths = tuple(borders.diff().tolist())
    _SEEN.append((borders, lengths))
    return lengths


def pieces_attention(
    query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, lengths: tuple[int, ...], scaling: float | None
) -> Tensor:
    """``[T, H, D]``: each piece of a row attends to itself alone."""
    scale = query_HTD.shape[-1] ** -0.5 if scaling is None else scaling
    backend = backend_for(query_HTD)
    if backend == "sdpa":
        return _pieces_batch(query_HTD, key_HTD, value_HTD, lengths, scale)
    query, key, value = (x.transpose(0, 1) for x in (query_HTD, key_HTD, value_HTD))
    return attend(query, key, value, windows_of(lengths, query.device), scale, backend)


def _pieces_batch(query_HTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, lengths: tuple[int, ...], scaling: float) -> Tensor:
    """Public SDPA, pieces of one length as one batch: as many calls as there are lengths."""
    heads, _, width = query_HTD.shape
    kinds, order, back = by_length(lengths, query_HTD.device)
    rows = [x.transpose(0, 1) for x in (query_HTD, key_HTD, value_HTD)]
    if order is not None:
        rows = [x.index_select(0, order) for x in rows]
    outs, at = [], 0
    for count, length in kinds:
        q, k, v = (x[at : at + count * length].reshape(count, length, heads, width).transpose(1, 2) for x in rows)
        out = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        outs.append(out.transpose(1, 2).reshape(count * length, heads, width))
        at += count * length
    whole = outs[0] if len(outs) == 1 else torch.cat(outs)
    return whole if back is None else whole.index_select(0, back)


# ---------------------------------------------------------------- sampling


def _decode(query: Tensor, key: Tensor, value: Tensor, scaling: float, state: Decode, layer: int) -> Tensor:
    """``[C * N, Q, H, D]``: each row's new tokens against the shared prompt, what the row has read since, and themselves."""
    rows, heads, count, width = query.shape
    kv_heads, num = key.shape[1], state.num_rollouts
    fold, contexts, end = heads // kv_heads, rows // num, state.column + count
    state.own_keys[layer][:, :, state.column : end], state.own_values[layer][:, :, state.column : end] = key, value
    own_keys, own_values = state.own_keys[layer][:, :, :end], state.own_values[layer][:, :, :end]
    prompt_keys, prompt_values = state.prompt_keys[layer], state.prompt_values[layer]
    length, each = prompt_keys.shape[2], fold * count  # heads that share keys are further queries

    def together(x: Tensor) -> Tensor:
        """The N rollouts of a context are N times as many queries against one copy of its keys."""
        return x.view(contexts, num, kv_heads, each, -1).transpose(1, 2).reshape(contexts, kv_heads, num * each, -1)

    def apart(x: Tensor) -> Tensor:
        return x.view(contexts, kv_heads, num, each, -1).transpose(1, 2).reshape(rows, kv_heads, each, -1)

    own_query = query.reshape(rows, kv_heads, each, width) * scaling
    shared = (together(own_query) if num > 1 else own_query) @ prompt_keys.transpose(2, 3)
    if state.prompt_mask_CP is not None:
        shared = shared.masked_fill_(~state.prompt_mask_CP[:, None, None, :], float("-inf"))
    own = own_query @ own_keys.transpose(2, 3)
    if state.own_mask_BK is not None:
        own = own.masked_fill_(~state.own_mask_BK[:, None, None, :end], float("-inf"))
    if count > 1:
        later = torch.ones(count, count, dtype=torch.bool, device=own.device).triu(1)
        own.view(rows, kv_heads, fold, count, end)[..., state.column :].masked_fill_(later, float("-inf"))
    weights = torch.cat([apart(shared) if num > 1 else shared, own], -1).softmax(-1)
    shared_weights = weights[..., :length]
    out = (together(shared_weights) if num > 1 else shared_weights) @ prompt_values
    out = (apart(out) if num > 1 else out) + weights[..., length:] @ own_values
    return out.reshape(rows, heads, count, width).transpose(1, 2)


register()
