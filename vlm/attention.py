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
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import PrefixLayout, blocks_of, plan_of

NAME = "foveate"
Backend = Literal["batch", "varlen", "xformers"]


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
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in every layer: query ``[B, H, Q, D]``, key and value ``[B, J, K, D]`` -> ``[B, Q, H, D]``."""
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
    plan = plan_of(layout, query_HTD.device)
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
            q = q.reshape(bucket.rows, kv_heads, fold * bucket.queries, width)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.added(fold, q.dtype), scale=scaling)
            out = out.view(bucket.rows, heads, bucket.queries, width)
        outs.append(out.transpose(1, 2).reshape(bucket.rows * bucket.queries, heads * width))
    whole = outs[0] if len(outs) == 1 else torch.cat(outs)
    return whole.index_select(0, plan.back_T).view(num_tokens, heads, width)


# ---------------------------------------------------------------- packed rows on CUDA
# Written from the documentation of PyTorch 2.13 and xformers 0.0.35 and compared with `batch` by tests marked `gpu`; they have
# not been run where this was written.


def _packed_varlen(query_HTD: Tensor, key_JTD: Tensor, value_JTD: Tensor, layout: PrefixLayout, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    blocks = blocks_of(layout, query_HTD.device)
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

    blocks = blocks_of(layout, query_HTD.device)
    fold = query_HTD.shape[0] // key_JTD.shape[0]
    query = query_HTD.transpose(0, 1)
    key, value = (x.transpose(0, 1).index_select(0, blocks.gather).repeat_interleave(fold, 1) for x in (key_JTD, value_JTD))
    bias = BlockDiagonalCausalFromBottomRightMask.from_seqlens(q_seqlen=blocks.query_lengths, kv_seqlen=blocks.key_lengths)
    out: Tensor = xops.memory_efficient_attention(query[None].contiguous(), key[None], value[None], attn_bias=bias, scale=scaling)
    return out[0]


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
