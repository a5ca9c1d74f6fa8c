"""Which kernels attention over blocks runs on, and how each of them is called.

A row is cut into blocks of queries, each with keys of its own (`layout.Blocks`): prompts and suffixes of a packed row, windows
and pictures of a vision tower. On CUDA one call does all blocks of a layer:

    varlen      FlashAttention-2 as it comes with PyTorch (`torch.nn.attention.varlen`): half precision, grouped keys
    xformers    `memory_efficient_attention` with a block-diagonal bias: FlashAttention in half precision, CUTLASS in float32
    sdpa        everything else, and every CPU: PyTorch's SDPA over batches of blocks of like shape

A kernel is trusted once it has given the right values and gradients on this device, in this type and width; what is chosen is
logged in one line, with the reason where it is not the first choice. flash-attn is never needed.

The wheel of xformers 0.0.35 is built for CUDA 12. Beside a PyTorch for CUDA 13 its extension loads when ``libcudart.so.12`` is
there (``pip install nvidia-cuda-runtime-cu12``); without the extension xformers refuses all of its operators on CUDA.

Legend: T queries, S keys, H query heads, J key heads, D head width.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import Blocks

Backend = Literal["sdpa", "varlen", "xformers"]
HALF = (torch.float16, torch.bfloat16)
ORDER: dict[torch.dtype, tuple[Backend, ...]] = {
    torch.bfloat16: ("varlen", "xformers"),
    torch.float16: ("varlen", "xformers"),
    torch.float32: ("xformers",),
}
"""What is tried on CUDA, best first. In half precision both run the same kernels, and `varlen` need not repeat grouped keys."""
WIDEST = 256
_WIDTH_STEP = 8
"""Kernels take head widths that are multiples of this; others are filled up with zeros, which changes nothing."""
_LOG = logging.getLogger(__name__)
_FORCED: list[Backend] = []


@contextlib.contextmanager
def using(backend: Backend) -> Iterator[None]:
    """All attention over blocks runs on this in here, for comparisons. Raises `RuntimeError` where it cannot run."""
    _FORCED.append(backend)
    try:
        yield
    finally:
        _FORCED.pop()


def backend_for(query: Tensor) -> Backend:
    """What attention with queries like this one runs on; ``[..., D]``."""
    if _FORCED:
        backend = _FORCED[-1]
        why = why_not(backend, query.device, query.dtype, query.shape[-1])
        if why is not None:
            raise RuntimeError(f"attention on {backend}: {why}")
        return backend
    if not query.is_cuda:
        return "sdpa"
    return _chosen(query.device, query.dtype, query.shape[-1])


@functools.lru_cache(64)
def _chosen(device: torch.device, dtype: torch.dtype, width: int) -> Backend:
    refused: list[str] = []
    for backend in ORDER.get(dtype, ()):
        why = why_not(backend, device, dtype, width)
        if why is None:
            _say(device, dtype, backend, refused)
            return backend
        refused.append(f"{backend}: {why}")
    _say(device, dtype, "sdpa", refused)
    return "sdpa"


@functools.cache
def _say_once(level: int, line: str) -> None:
    _LOG.log(level, line)


def _say(device: torch.device, dtype: torch.dtype, backend: Backend, refused: list[str]) -> None:
    because = f", because {'; '.join(refused)}" if refused else ""
    name = str(dtype).removeprefix("torch.")
    _say_once(logging.WARNING if refused else logging.INFO, f"attention in {name} on {device} runs on {backend}{because}")


# ---------------------------------------------------------------- what runs here


@functools.lru_cache(256)
def why_not(backend: Backend, device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Why a back end cannot run such inputs here, in one sentence; None when it can, which is found out by running it."""
    if backend == "sdpa":
        return None
    if device.type != "cuda":
        return f"it has no kernels for {device.type}"
    if backend == "varlen" and dtype not in HALF:
        return "its kernels are for half precision"
    if dtype not in (*HALF, torch.float32):
        return f"it has no kernels for {dtype}"
    if width > WIDEST:
        return f"heads are {width} wide, its kernels take {WIDEST}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    try:
        if backend == "xformers":
            load_xformers()
        wrong = _wrong_by(backend, device, dtype, width)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except (ImportError, OSError, RuntimeError, ValueError, TypeError) as error:  # what foreign kernels and libraries raise
        return _in_one_line(error)
    limit = 0.05 if dtype in HALF else 1e-3
    return None if wrong <= limit else f"its results are wrong here, by {wrong:.1e} of the largest value"


def _in_one_line(error: BaseException) -> str:
    """An error of a library in one line; the reasons of xformers stand indented below its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = list(dict.fromkeys(line for line in lines[1:] if "not supported because" not in line and " : " not in line))
    return "; ".join([lines[0].rstrip(":"), *reasons])[:400] if lines else type(error).__name__


@torch.inference_mode(False)
def _wrong_by(backend: Backend, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Largest error of values and gradients as a share of the largest value: two prompts, two suffixes, grouped keys, windows."""
    from .layout import PrefixLayout, blocks_of, windows_of

    layout = PrefixLayout(((9, (5, 3)), (4, ())))
    worst = 0.0
    for blocks in (blocks_of(layout, device), windows_of((8, 8, 5), device)):
        heads, kv_heads = (4, 2) if blocks.causal else (2, 2)
        draw = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay as they are
        made = [
            torch.randn(21, count, width, generator=draw, device=device).to(dtype).requires_grad_()
            for count in (heads, kv_heads, kv_heads)
        ]
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            out = attend(made[0], made[1], made[2], blocks, width**-0.5, backend)
            exact = [x.detach().double().requires_grad_() for x in made]
            want = dense_attention(exact[0], exact[1], exact[2], blocks, width**-0.5)
            found = (out, *torch.autograd.grad(out.float().square().sum(), made))
        for one, other in zip(found, want, strict=True):
            gap = (one.detach().double() - other).abs().max() / other.abs().max()
            worst = max(worst, float(gap)) if bool(gap.isfinite()) else float("inf")
    return worst


def dense_attention(query_THD: Tensor, key_THD: Tensor, value_THD: Tensor, blocks: Blocks, scaling: float) -> tuple[Tensor, ...]:
    """Values and gradients by a dense mask, for comparisons."""
    leaves = (query_THD, key_THD, value_THD)
    fold = query_THD.shape[1] // key_THD.shape[1]
    key, value = (x.repeat_interleave(fold, 1) for x in leaves[1:])
    if blocks.gather is not None:
        key, value = key[blocks.gather], value[blocks.gather]
    q, k, v = (x.transpose(0, 1) for x in (query_THD, key, value))
    scores = (q @ k.transpose(1, 2) * scaling).masked_fill(~blocks.allowed(), float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(0, 1)
    return (out.detach(), *torch.autograd.grad(out.square().sum(), leaves))


@functools.cache
def load_xformers() -> str:
    """Import xformers, with the CUDA runtime that its extension needs; its version. Raises what the import raises."""
    if importlib.util.find_spec("xformers") is None:
        raise ModuleNotFoundError("xformers is not installed", name="xformers")
    log = logging.getLogger("xformers")
    level = log.level
    log.setLevel(logging.ERROR)  # what it has to say about its extension is said by `why_not`, once
    try:
        _load_cuda_12()
        import xformers
        import xformers.ops
    finally:
        log.setLevel(level)
    return str(xformers.__version__)


def _load_cuda_12() -> None:
    """Load ``libcudart.so.12`` where it is installed; quietly nothing where it is not."""
    name = "libcudart.so.12"
    nvidia = importlib.util.find_spec("nvidia")
    folders = [] if nvidia is None else [Path(one) for one in nvidia.submodule_search_locations or ()]
    for path in (name, *(str(folder / "cuda_runtime" / "lib" / name) for folder in folders)):
        with contextlib.suppress(OSError):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return


# ---------------------------------------------------------------- one call for all blocks


def attend(query_THD: Tensor, key_SJD: Tensor, value_SJD: Tensor, blocks: Blocks, scaling: float, backend: Backend) -> Tensor:
    """``[T, H, D]``: every block's queries over that block's keys, on `varlen` or `xformers`. Keys stand in row order."""
    if blocks.gather is not None:
        key_SJD, value_SJD = repeated(key_SJD, blocks.gather), repeated(value_SJD, blocks.gather)
    width = query_THD.shape[-1]
    fill = -width % _WIDTH_STEP
    if fill:
        query_THD, key_SJD, value_SJD = (F.pad(x, (0, fill)) for x in (query_THD, key_SJD, value_SJD))
    run: Callable[[Tensor, Tensor, Tensor, Blocks, float], Tensor] = _varlen if backend == "varlen" else _xformers
    out = run(query_THD.contiguous(), key_SJD.contiguous(), value_SJD.contiguous(), blocks, scaling)
    return out[..., :width] if fill else out


def _varlen(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    more: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if _takes(varlen_attn, "enable_gqa"):
            more["enable_gqa"] = True
        else:  # PyTorch 2.11 does not promise grouped keys
            key, value = _ungrouped(query, key), _ungrouped(query, value)
    out: Any = varlen_attn(
        query, key, value, blocks.cu_queries, blocks.cu_keys, max(blocks.query_lengths), max(blocks.key_lengths),
        scale=scaling, window_size=(-1, 0) if blocks.causal else (-1, -1), **more,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


@functools.cache
def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


def _xformers(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float) -> Tensor:
    import xformers.ops as xops

    # grouped keys have no backward in xformers
    key, value = _ungrouped(query, key), _ungrouped(query, value)
    if "xformers" not in blocks.kept:
        blocks.kept["xformers"] = xformers_bias(blocks)
    out: Tensor = xops.memory_efficient_attention(
        query[None], key[None], value[None], attn_bias=blocks.kept["xformers"], scale=scaling
    )
    return out[0]


@torch.inference_mode(False)
def xformers_bias(blocks: Blocks) -> Any:
    """The blocks as a bias of xformers; causal blocks are aligned at their ends, as a suffix behind its prompt must be."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask, BlockDiagonalMask

    kind = BlockDiagonalCausalFromBottomRightMask if blocks.causal else BlockDiagonalMask
    return kind.from_seqlens(q_seqlen=blocks.query_lengths, kv_seqlen=blocks.key_lengths, device=blocks.cu_queries.device)


def _ungrouped(query: Tensor, x: Tensor) -> Tensor:
    fold = query.shape[1] // x.shape[1]
    return x if fold == 1 else x.repeat_interleave(fold, 1)


def repeated(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]`` where rows stand many times; their gradients are added up in float32 or wider, whatever the type of ``x``."""
    rows: Tensor = _Repeated.apply(x, index)
    return rows


class _Repeated(torch.autograd.Function):
    """A prompt's keys are read by each of its rollouts; on CUDA a long sum in bfloat16 loses what the last of them add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        (grad,) = grads
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(ctx.num, *grad.shape[1:], dtype=wide, device=grad.device)
        return total.index_add_(0, index, grad.to(wide)).to(grad.dtype), None
