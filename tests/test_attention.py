"""The packed attention against one dense block mask, which nothing else computes; and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.vlm.attention import NAME, Decode, PrefixLayout, _decode, foveate_attention, packed_attention
from foveate.vlm.backbone import encode, forward_packed, hidden_rows
from foveate.vlm.layout import bucketed, pieces_of, plan_of
from foveate.vlm.load import tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.packing import pack
from foveate.vlm.segments import Segment

UNEVEN = PrefixLayout(((7, (3, 1, 5)), (2, ()), (11, (4, 4)), (7, (9,)), (40, (2, 30, 1)), (1, (1,))))


def allowed(layout: PrefixLayout) -> Tensor:
    """``[T, T]``: token i reads j when j is not later and is of i's own run or of its group's prompt."""
    group, run = [], []
    for g, (prompt, suffixes) in enumerate(layout.groups):
        for s, length in enumerate((prompt, *suffixes)):
            group += [g] * length
            run += [s] * length
    group_T, run_T, at = torch.tensor(group), torch.tensor(run), torch.arange(len(group))
    same = (group_T[:, None] == group_T) & ((run_T[:, None] == run_T) | (run_T == 0))
    return same & (at[:, None] >= at)


def inputs(tokens: int, heads: int, kv_heads: int, width: int = 8, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(tokens)
    return [torch.randn(n, tokens, width, dtype=dtype, requires_grad=True) for n in (heads, kv_heads, kv_heads)]


def dense(q: Tensor, k: Tensor, v: Tensor, layout: PrefixLayout, scale: float) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed(layout).to(q.device), scale=scale).transpose(0, 1)


def compare(layout: PrefixLayout, heads: int, kv_heads: int) -> None:
    qkv = inputs(layout.num_tokens, heads, kv_heads)
    weights = torch.randn(layout.num_tokens, heads, qkv[0].shape[-1], dtype=torch.float64)
    out = [packed_attention(*qkv, layout, 0.3), dense(*qkv, layout, 0.3)]
    grads = [torch.autograd.grad((one * weights).sum(), qkv) for one in out]
    torch.testing.assert_close(out[0], out[1], atol=1e-10, rtol=0)
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, atol=1e-9, rtol=0)


LAYOUTS = st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(0, 12), max_size=4).map(tuple)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(LAYOUTS.map(lambda groups: PrefixLayout(tuple(groups))), st.sampled_from([(2, 2), (4, 2), (6, 1)]))
def test_batch_equals_a_dense_block_mask(layout: PrefixLayout, heads: tuple[int, int]) -> None:
    compare(layout, *heads)


def test_the_comparison_can_fail() -> None:
    qkv = inputs(UNEVEN.num_tokens, 2, 2)
    other = PrefixLayout(((7, (3, 1, 5)), (2, ()), (11, (4, 4)), (7, (9,)), (40, (2, 30, 1, 2))))
    assert other.num_tokens == UNEVEN.num_tokens
    assert (packed_attention(*qkv, UNEVEN, 0.3) - dense(*qkv, other, 0.3)).abs().max() > 0.01


def test_buckets_hold_every_piece_once_and_waste_little() -> None:
    layout = PrefixLayout(tuple((300 + 3 * g, tuple(range(4, 132, 16))) for g in range(12)))
    pieces = list(pieces_of(layout))
    buckets = list(bucketed(pieces))
    assert sorted(itertools.chain(*buckets), key=lambda piece: piece.start) == pieces
    real = sum(piece.cells for piece in pieces)
    padded = 0
    for members in buckets:
        longest = max(piece.length for piece in members)
        padded += len(members) * longest * (longest + max(piece.prompt_length for piece in members))
    assert padded < 1.3 * real
    assert len(buckets) < len(pieces) / 5
    plan = plan_of(layout, torch.device("cpu"))
    assert torch.equal(plan.queries[plan.back_T], torch.arange(layout.num_tokens))


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_decoding_equals_attention_over_the_whole_row(num: int, masked: bool) -> None:
    torch.manual_seed(0)
    contexts, heads, kv_heads, width, steps = 2, 4, 2, 8, 3
    lengths = [5, 3] if masked else [5, 5]
    prompt_k, prompt_v = torch.randn(2, contexts, kv_heads, 5, width)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    own = [torch.zeros(contexts * num, kv_heads, steps, width) for _ in range(2)]
    state = Decode([prompt_k], [prompt_v], [own[0]], [own[1]], num, mask if masked else None)
    keys, values, query = (torch.randn(contexts * num, n, steps, width) for n in (kv_heads, kv_heads, heads))
    for step in range(steps):
        state.column = step
        one = slice(step, step + 1)
        out = _decode(query[:, :, one], keys[:, :, one], values[:, :, one], 0.3, state, 0)
        for row in range(contexts * num):
            c = row // num
            k = torch.cat([prompt_k[c, :, : lengths[c]], keys[row, :, : step + 1]], 1).repeat_interleave(2, 0)
            v = torch.cat([prompt_v[c, :, : lengths[c]], values[row, :, : step + 1]], 1).repeat_interleave(2, 0)
            want = F.scaled_dot_product_attention(query[row, :, one], k, v, scale=0.3)
            torch.testing.assert_close(out[row, 0], want[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("num", [1, 3])
def test_several_new_tokens_behind_a_gap_equal_attention_over_the_whole_row(num: int) -> None:
    """What a continued rollout does: a ragged history, then new tokens, with columns that hold nothing of some rows."""
    torch.manual_seed(1)
    contexts, heads, kv_heads, width, count = 2, 4, 2, 8, 3
    rows = contexts * num
    prompt_k, prompt_v = torch.randn(2, contexts, kv_heads, 5, width)
    history = [1 + row % 4 for row in range(rows)]
    own_k, own_v = torch.randn(2, rows, kv_heads, 4 + count, width)
    mask = torch.arange(4 + count) < torch.tensor(history)[:, None]
    mask[:, 4:] = True
    state = Decode([prompt_k], [prompt_v], [own_k.clone()], [own_v.clone()], num, None, mask, column=4)
    keys, values, query = (torch.randn(rows, n, count, width) for n in (kv_heads, kv_heads, heads))
    out = _decode(query, keys, values, 0.3, state, 0)
    for row in range(rows):
        for q in range(count):
            k, v = (
                torch.cat([prompt[row // num], own[row, :, : history[row]], new[row, :, : q + 1]], 1).repeat_interleave(2, 0)
                for prompt, own, new in ((prompt_k, own_k, keys), (prompt_v, own_v, values))
            )
            want = F.scaled_dot_product_attention(query[row, :, q : q + 1], k, v, scale=0.3)
            torch.testing.assert_close(out[row, q], want[:, 0], atol=1e-5, rtol=0)


def words(*ids: int) -> Segment:
    return Segment(np.array(ids), np.tile(np.arange(len(ids)), (3, 1)), len(ids))


def test_a_layout_for_other_rows_is_refused() -> None:
    vlm = tiny_random("qwen2_5_vl")
    packed = pack([(words(1, 2, 3), [words(4)])])
    features = encode(vlm, packed.items)
    with pytest.raises(ValueError, match="one row of 3 tokens, the model got 1 rows of 4 tokens"):
        forward_packed(vlm, packed, features, PrefixLayout(((2, (1,)),)))
    with pytest.raises(ValueError, match="the pack holds no tokens"):
        hidden_rows(vlm, pack([]))
    module = vlm.model.model.language_model.layers[0].self_attn
    with pytest.raises(NotImplementedError, match="sliding-window"):
        foveate_attention(
            module, *(torch.zeros(1, 4, 4, 16) for _ in range(3)), None, prefix_layout=packed.layout, sliding_window=2
        )


def test_a_model_with_another_attention_is_refused() -> None:
    vlm = tiny_random("qwen2_5_vl", attention="sdpa")
    with pytest.raises(ValueError, match=f"'sdpa', which would mix the rollouts.*attention='{NAME}'"):
        hidden_rows(vlm, pack([(words(1, 2), [words(3)])]))


def test_gradient_checkpointing_changes_nothing() -> None:
    vlm = tiny_random("qwen3_vl")
    prompt = vlm.renderer.prompt([Message.user("Which letter?")])
    packed = pack([(prompt, [words(5, 6, 7), words(8, 9)])])
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            vlm.model.gradient_checkpointing_enable()
        vlm.model.train()
        vlm.model.zero_grad()
        hidden_rows(vlm, packed).square().sum().backward()
        grads.append([p.grad.clone() for p in vlm.model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 10
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))
