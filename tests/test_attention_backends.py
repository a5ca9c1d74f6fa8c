"""Variable-length kernels: which blocks they are given, how they are called, which is chosen; and towers with one call a layer.

The kernels themselves need a GPU (`foveate gpu`); here a slow stand-in with the same arguments takes their place.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import LAYOUTS, UNEVEN, allowed, dense, inputs
from torch import Tensor

from foveate.vlm import attention, attention_backends
from foveate.vlm.attention import lengths_between, one_call_per_layer
from foveate.vlm.attention_backends import Backend, attend, backend_for, repeated, using, why_not
from foveate.vlm.backbone import encode
from foveate.vlm.images import Picture
from foveate.vlm.layout import Blocks, PrefixLayout, blocks_of, by_length, windows_of
from foveate.vlm.load import VLM, tiny_random

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False, aligned: str = "bottom right",
) -> Tensor:  # fmt: skip
    """What the documentation of `torch.nn.attention.varlen.varlen_attn` says, block by block."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.shape[-1] % 8 == 0
    assert query.is_contiguous()
    assert key.is_contiguous()
    assert (query.shape[1] == key.shape[1]) or enable_gqa
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    fold, outs = query.shape[1] // key.shape[1], []
    for (q0, q1), (k0, k1) in zip(cu_seq_q.unfold(0, 2, 1).tolist(), cu_seq_k.unfold(0, 2, 1).tolist(), strict=True):
        q, k, v = (x.transpose(0, 1) for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
        scores = q @ k.repeat_interleave(fold, 0).transpose(1, 2) * scale
        if window_size == (-1, 0):
            shift = (k1 - k0) - (q1 - q0) if aligned == "bottom right" else 0
            scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(shift + 1), float("-inf"))
        outs.append((scores.softmax(-1) @ v.repeat_interleave(fold, 0)).transpose(0, 1))
    return torch.cat(outs)


def varlen_of_2_11(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """PyTorch 2.11 has no ``enable_gqa``."""
    return varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    import torch.nn.attention.varlen as public

    def install(function: Callable[..., Tensor]) -> None:
        monkeypatch.setattr(public, "varlen_attn", function)

    return install


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What was found out with stand-ins is not kept."""
    caches = (why_not, attention_backends._chosen, attention_backends._say_once, attention_backends._takes)
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


# ---------------------------------------------------------------- blocks


@settings(max_examples=60, deadline=None)
@given(LAYOUTS.map(lambda groups: PrefixLayout(tuple(groups))))
def test_blocks_allow_what_a_packed_row_allows(layout: PrefixLayout) -> None:
    """Every pair of query and key that the layout allows is in the blocks exactly once, and no other."""
    blocks = blocks_of(layout, CPU)
    keys = torch.arange(layout.num_tokens) if blocks.gather is None else blocks.gather
    count = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.long)
    count.index_add_(1, keys, blocks.allowed().long())
    assert torch.equal(count, allowed(layout).long())
    copies = sum(prompt * max(0, sum(1 for one in suffixes if one) - 1) for prompt, suffixes in layout.groups)
    assert len(keys) == layout.num_tokens + copies


def test_blocks_by_hand() -> None:
    blocks = blocks_of(PrefixLayout(((2, (1, 0, 2)), (3, ()))), CPU)
    assert (blocks.query_lengths, blocks.key_lengths) == ([3, 2, 3], [3, 4, 3])
    assert blocks.gather is not None
    assert blocks.gather.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7]
    assert blocks.cu_queries.tolist() == [0, 3, 5, 8]
    assert blocks.cu_keys.tolist() == [0, 3, 7, 10]
    one_rollout_each = blocks_of(PrefixLayout(((2, (1,)), (3, (4,)))), CPU)
    assert one_rollout_each.gather is None
    assert one_rollout_each.query_lengths == one_rollout_each.key_lengths == [3, 7]


@pytest.mark.parametrize("blocks", [blocks_of(UNEVEN, CPU), windows_of((4, 4, 2, 9), CPU)], ids=["packed", "windows"])
def test_blocks_are_those_of_xformers(blocks: Blocks) -> None:
    pytest.importorskip("xformers.ops")
    bias = attention_backends.xformers_bias(blocks).materialize(tuple(blocks.allowed().shape))
    assert torch.equal(bias == 0, blocks.allowed())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_runs_of_one_length_are_put_together(lengths: list[int]) -> None:
    kinds, order, back = by_length(tuple(lengths), CPU)
    assert sorted(length for count, length in kinds for _ in range(count)) == sorted(one for one in lengths if one)
    assert len({length for _, length in kinds}) == len(kinds)
    if order is not None and back is not None:
        assert torch.equal(order[back], torch.arange(sum(lengths)))


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize("function", [varlen, varlen_of_2_11])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 8), (6, 1, 8), (2, 2, 10)])
def test_varlen_is_called_so_that_it_equals_a_dense_block_mask(
    function: Callable[..., Tensor], heads: int, kv_heads: int, width: int, fake: Callable[..., None]
) -> None:
    fake(function)
    qkv = inputs(UNEVEN.num_tokens, heads, kv_heads, width)
    rows = [x.transpose(0, 1) for x in qkv]
    weights = torch.randn(UNEVEN.num_tokens, heads, width, dtype=torch.float64)
    out = [attend(*rows, blocks_of(UNEVEN, CPU), 0.3, "varlen"), dense(*qkv, UNEVEN, 0.3)]
    grads = [torch.autograd.grad((one * weights).sum(), qkv) for one in out]
    torch.testing.assert_close(out[0], out[1], atol=1e-10, rtol=0)
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, atol=1e-9, rtol=0)


def test_the_gradients_of_a_repeated_row_add_up() -> None:
    y = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([2, 0, 2])
    assert torch.autograd.gradcheck(lambda y: repeated(y, index).square(), (y,))


# ---------------------------------------------------------------- choice


def answers(monkeypatch: pytest.MonkeyPatch, **reasons: str) -> None:
    monkeypatch.setattr(attention_backends, "why_not", lambda backend, *_: reasons.get(backend))


def test_the_first_that_runs_is_chosen_and_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    answers(monkeypatch, varlen="it is too old")
    for width in (64, 64, 72):
        assert attention_backends._chosen(CUDA, torch.bfloat16, width) == "xformers"
    assert [record.getMessage() for record in caplog.records] == [
        "attention in bfloat16 on cuda:0 runs on xformers, because varlen: it is too old"
    ]
    assert caplog.records[0].levelno == logging.WARNING
    assert attention_backends._chosen(CUDA, torch.float32, 64) == "xformers"
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    assert attention_backends._chosen(CUDA, torch.float64, 64) == "sdpa"


def test_without_any_kernel_sdpa_runs_and_every_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers(monkeypatch, varlen="it is too old", xformers="xformers is not installed")
    assert attention_backends._chosen(CUDA, torch.float16, 64) == "sdpa"
    assert [record.getMessage() for record in caplog.records] == [
        "attention in float16 on cuda:0 runs on sdpa, because varlen: it is too old; xformers: xformers is not installed"
    ]
    assert backend_for(torch.zeros(1)) == "sdpa"


def reason(
    monkeypatch: pytest.MonkeyPatch,
    found: float | BaseException,
    backend: Backend = "xformers",
    dtype: torch.dtype = torch.bfloat16,
) -> str | None:
    def wrong_by(*_: object) -> float:
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(attention_backends, "_wrong_by", wrong_by)
    monkeypatch.setattr(attention_backends, "load_xformers", lambda: "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    why_not.cache_clear()
    return why_not(backend, CUDA, dtype, 64)


REFUSED = """No operator found for `memory_efficient_attention_forward` with inputs:
     query       : shape=(1, 21, 4, 64) (torch.bfloat16)
     p           : 0.0
`fa2F@2.5.7-pt` is not supported because:
    xFormers wasn't build with CUDA support
`cutlassF-pt` is not supported because:
    xFormers wasn't build with CUDA support"""


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(monkeypatch, 0.004) is None
    assert reason(monkeypatch, 0.2) == "its results are wrong here, by 2.0e-01 of the largest value"
    assert reason(monkeypatch, 0.004, dtype=torch.float32) is not None
    assert reason(monkeypatch, float("inf")) is not None
    said = reason(monkeypatch, NotImplementedError(REFUSED))
    assert said == (
        "No operator found for `memory_efficient_attention_forward` with inputs; xFormers wasn't build with CUDA support"
    )
    assert reason(monkeypatch, ModuleNotFoundError("No module named 'xformers'", name="xformers")) == "xformers is not installed"
    assert reason(monkeypatch, 0.0, "varlen", torch.float32) == "its kernels are for half precision"
    assert reason(monkeypatch, 0.0, "varlen", torch.float64) is not None
    assert why_not("varlen", CUDA, torch.bfloat16, 512) == "heads are 512 wide, its kernels take 256"
    assert why_not("sdpa", CPU, torch.float64, 512) is None
    assert why_not("varlen", CPU, torch.bfloat16, 64) == "it has no kernels for cpu"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    why_not.cache_clear()
    assert why_not("varlen", CUDA, torch.bfloat16, 64) == "it needs a GPU of compute capability 8.0 or newer"


def test_a_kernel_is_tried_on_what_it_must_get_right(fake: Callable[..., None]) -> None:
    fake(varlen)
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        assert attention_backends._wrong_by("varlen", CPU, dtype, 72) < limit

    def top_left(*args: Any, **more: Any) -> Tensor:
        return varlen(*args, **more, aligned="top left")

    attention_backends._takes.cache_clear()
    fake(lambda *args, enable_gqa=False, **more: top_left(*args, enable_gqa=enable_gqa, **more))
    assert attention_backends._wrong_by("varlen", CPU, torch.float32, 64) > 0.05
    fake(lambda *args, enable_gqa=False, **more: varlen(*args, enable_gqa=enable_gqa, **more) * torch.nan)
    assert attention_backends._wrong_by("varlen", CPU, torch.float32, 64) == float("inf")


def test_a_back_end_can_be_asked_for(fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    with using("varlen"), pytest.raises(RuntimeError, match="attention on varlen: it has no kernels for cpu"):
        backend_for(torch.zeros(1, 4))
    fake(varlen)
    answers(monkeypatch)
    qkv = inputs(UNEVEN.num_tokens, 4, 2)
    with using("varlen"):
        assert backend_for(qkv[0]) == "varlen"
        torch.testing.assert_close(attention.packed_attention(*qkv, UNEVEN, 0.3), dense(*qkv, UNEVEN, 0.3), atol=1e-10, rtol=0)
    assert backend_for(qkv[0]) == "sdpa"


def test_xformers_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    attention_backends.load_xformers.cache_clear()
    monkeypatch.setattr(attention_backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="xformers"):
        attention_backends.load_xformers()


# ---------------------------------------------------------------- towers

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


def items(vlm: VLM) -> list[Any]:
    """Three pictures: Qwen2.5-VL's windows of 8 x 8 patches have several sizes at their edges."""
    made = []
    for seed, (width, height) in enumerate(((300, 230), (140, 60), (90, 410))):
        noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        made.append(vlm.renderer.item(Picture.of(noise.numpy())))
    return made


def features(vlm: VLM) -> tuple[Tensor, list[Tensor]]:
    rows = encode(vlm, items(vlm)).rows_FD
    parameters = [one for one in vlm.model.model.visual.parameters() if one.requires_grad]
    grads = torch.autograd.grad(rows.square().sum(), parameters, allow_unused=True)
    return rows.detach(), [one for one in grads if one is not None]


def same(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=1e-5)
    assert len(one[1]) == len(other[1]) > 10
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, float(b.abs().max())), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_calls_its_attention_once_per_layer_and_gives_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_random(family, vision_layers=3)
    calls: list[tuple[int, ...]] = []
    pieces = attention.pieces_attention

    def counted(*args: Any) -> Tensor:
        calls.append(args[3])
        return pieces(*args)

    monkeypatch.setattr(attention, "pieces_attention", counted)
    found = features(vlm)
    assert len(calls) == 3  # layers
    grids = [item.grid_thw for item in items(vlm)]
    whole = tuple(height * width for _, height, width in grids)
    if family == "qwen2_5_vl":
        assert calls[2] == whole
        assert calls[0] == calls[1]
        assert sum(calls[0]) == sum(whole)
        assert set(calls[0]) > {64}
    else:
        assert calls == [whole] * 3
    same(found, features(tiny_random(family, vision_layers=3, attention="sdpa")))  # the tower's own cutting
    assert len(calls) == 3


def test_the_hook_survives_copies_checkpointing_and_being_put_on_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_random("qwen2_5_vl")
    want = features(vlm)
    one_call_per_layer(vlm.model)
    same(features(vlm), want)
    calls = []
    pieces = attention.pieces_attention
    monkeypatch.setattr(attention, "pieces_attention", lambda *args: calls.append(1) or pieces(*args))
    vlm.model = copy.deepcopy(vlm.model)
    same(features(vlm), want)
    assert len(calls) == 2
    vlm.model.gradient_checkpointing_enable()
    vlm.model.train()
    same(features(vlm), want)
    assert len(calls) == 6  # each layer once more in backward
    vlm.model.set_attn_implementation("sdpa")
    same(features(vlm), want)
    assert len(calls) == 6


def test_a_tower_on_a_kernel_equals_the_tower_on_sdpa(fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_random("qwen2_5_vl", vision_hidden=40)  # heads 20 wide, filled up to 24
    want = features(vlm)
    seen = []

    def kernel(query: Tensor, *args: Any, scale: float | None = None, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
        seen.append((query.shape[-1], window_size))
        return varlen(query, *args, scale=scale, window_size=window_size)

    fake(kernel)
    answers(monkeypatch)
    with using("varlen"):
        same(features(vlm), want)
    assert seen == [(24, (-1, -1))] * 2


def test_borders_are_read_from_the_device_once() -> None:
    borders = torch.tensor([0, 3, 7])
    assert lengths_between(borders) == (3, 4)
    assert lengths_between(borders) is lengths_between(borders)
    assert lengths_between(torch.tensor([0, 3, 8])) == (3, 5)
