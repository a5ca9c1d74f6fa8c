"""Attention kernels: right values and gradients, speed, memory.

Legend: T tokens, H query heads, J key heads, D head width.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vlm.attention import packed_attention, pieces_attention
from ..vlm.attention_backends import Backend, dense_attention, load_xformers, using, why_not
from ..vlm.layout import Blocks, PrefixLayout, blocks_of, windows_of
from .measure import GIB, cells, fresh, peak_gib, timed_ms
from .spec import Notes, Settings, Skip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VARIANTS: tuple[tuple[Backend, str], ...] = (
    ("sdpa", "float32"), ("sdpa", "bfloat16"), ("varlen", "bfloat16"), ("xformers", "float32"), ("xformers", "bfloat16"),
)  # fmt: skip
LIMITS = {"float32": (1e-4, 5e-4), "bfloat16": (0.02, 0.05)}
"""Errors of values and of gradients that are arithmetic, as shares of the largest value."""


@dataclass(frozen=True)
class Case:
    """A layer's attention: a packed row (``layout``), or a tower's row in pieces (``lengths``)."""

    heads: int
    kv_heads: int
    width: int
    layout: PrefixLayout | None = None
    lengths: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(self.lengths) if self.layout is None else self.layout.num_tokens

    def blocks(self, device: torch.device) -> Blocks:
        return windows_of(self.lengths, device) if self.layout is None else blocks_of(self.layout, device)

    def inputs(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Queries, keys and values ``[H or J, T, D]``, as a model hands them over."""
        draw = torch.Generator(device).manual_seed(0)
        return [
            torch.randn(self.tokens, count, self.width, generator=draw, device=device).to(dtype).transpose(0, 1).requires_grad_()
            for count in (self.heads, self.kv_heads, self.kv_heads)
        ]

    def run(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[T, H, D]``, on the back end in force."""
        if self.layout is None:
            return pieces_attention(query, key, value, self.lengths, None)
        return packed_attention(query, key, value, self.layout, None)


def environment(settings: Settings, notes: Notes) -> None:
    """What this machine is."""
    notes.put("python", what=platform.python_version())
    notes.put("torch", what=f"{torch.__version__}, for CUDA {torch.version.cuda}")
    if settings.device != "cuda":
        raise Skip(f"asked for {settings.device}: nothing to say about a GPU")
    notes.expect(torch.cuda.is_available(), "torch finds no CUDA device")
    if not torch.cuda.is_available():
        return
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    notes.put("gpu", what=f"{properties.name}, compute capability {properties.major}.{properties.minor}")
    notes.put("count", what=torch.cuda.device_count())
    notes.put("memory", what=f"{total / GIB:.1f} GiB, {free / GIB:.1f} free")
    try:
        notes.put("xformers", what=f"{load_xformers()} imports")
    except (ImportError, OSError, RuntimeError) as error:
        notes.put("xformers", what=str(error).splitlines()[0])


def parity(settings: Settings, notes: Notes) -> None:
    """Every kernel that runs here against a dense mask in float64, forward and backward."""
    device = torch.device(settings.device)
    short = 4 if settings.quick else 1
    layout = PrefixLayout(((400 // short, (60, 33, 1, 90 // short)), (37, ()), (120 // short, (50,)), (8, (0, 9, 3))))
    windows = (64,) * (8 // short) + (32, 16, 64, 8, 40)
    places = {
        "language": [Case(16, 8, 128, layout), Case(16, 2, 128, layout), Case(4, 4, 64, layout)],
        "tower": [Case(16, 16, width, None, one) for width in (64, 72, 80) for one in (windows, (600 // short, 211 // short))],
    }
    ran = []
    for backend, name in VARIANTS:
        dtype = DTYPES[name]
        row = f"{backend}/{name}"
        why = why_not(backend, device, dtype, 64)
        if why is not None:
            notes.put(row, note=why)
            continue
        ran.append((backend, name))
        limits = LIMITS[name]
        for place, cases in places.items():
            worst = [max(pair) for pair in zip(*(errors(case, backend, device, dtype) for case in cases), strict=True)]
            notes.put(row, **{f"{place}_values": worst[0], f"{place}_gradients": worst[1]})
            for error, limit, what in zip(worst, limits, ("values", "gradients"), strict=True):
                notes.expect(error <= limit, f"{row}: {what} of the {place} are off by {error:.1e}, more than {limit:g}")
    if device.type == "cuda":
        half = any(backend != "sdpa" and name == "bfloat16" for backend, name in ran)
        notes.expect(half, "no kernel for blocks runs in bfloat16")


def errors(case: Case, backend: Backend, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Largest error of the values, and of the gradients, as shares of the largest value. The reference has the rounded inputs."""
    made = case.inputs(device, dtype)
    exact = [x.detach().double().transpose(0, 1).requires_grad_() for x in made]
    want, *wanted = dense_attention(exact[0], exact[1], exact[2], case.blocks(device), case.width**-0.5)
    with using(backend):
        out = case.run(*made)
    # the reference's loss is the sum of squares
    found = torch.autograd.grad(out, made, 2 * want.to(dtype))
    gradients = [share(one.transpose(0, 1), other) for one, other in zip(found, wanted, strict=True)]
    return share(out, want), max(gradients)


def share(found: Tensor, want: Tensor) -> float:
    """Largest difference over the largest value; infinite when something is not finite."""
    gap = float((found.detach().double() - want).abs().max() / want.abs().max())
    return float("inf") if math.isnan(gap) else gap


# ---------------------------------------------------------------- speed


def sizes(quick: bool) -> dict[str, Case]:
    """A batch of 8,000 tokens with a picture of 2,000 x 2,000 px: what its layers' attention is given."""
    if quick:
        return {
            "windows_2_5": Case(2, 2, 80, None, (64,) * 6 + (32,) * 2),
            "full_2_5": Case(2, 2, 80, None, (448,)),
            "full_3": Case(2, 2, 64, None, (250, 250)),
            "language_2_5": Case(4, 1, 128, PrefixLayout(((120, (20,) * 4),))),
            "language_3": Case(4, 2, 128, PrefixLayout(((120, (20,) * 4),))),
        }
    # 2,000 px are 1,988 in Qwen2.5-VL: 142 x 142 patches, in windows of 8 x 8 with smaller ones at two sides; 71 x 71 tokens
    side = 142
    cuts = [8] * (side // 8) + [side % 8]
    windows = tuple(high * wide for high in cuts for wide in cuts)
    # and 1,984 in Qwen3-VL: 124 x 124 patches, 62 x 62 tokens
    return {
        "windows_2_5": Case(16, 16, 80, None, windows),
        "full_2_5": Case(16, 16, 80, None, (side * side,)),
        "full_3": Case(16, 16, 64, None, (124 * 124,)),
        "language_2_5": Case(16, 2, 128, PrefixLayout(((71 * 71 + 60, (360,) * 8),))),
        "language_3": Case(16, 8, 128, PrefixLayout(((62 * 62 + 60, (512,) * 8),))),
    }


def apart(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What is done without any of this: a call of SDPA for each piece, or every rollout alone with a prompt of its own."""

    def pieces(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = [x[None].split(case.lengths, dim=2) for x in (query, key, value)]
        outs = [F.scaled_dot_product_attention(q, k, v) for q, k, v in zip(*parts, strict=True)]
        return torch.cat(outs, dim=2)[0].transpose(0, 1)

    def padded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert case.layout is not None
        ((prompt, suffixes),) = case.layout.groups
        (length,) = set(suffixes)

        def rows(x: Tensor) -> Tensor:
            own = x[:, prompt:].unflatten(1, (len(suffixes), length)).transpose(0, 1)
            return torch.cat([x[:, :prompt].expand(len(suffixes), -1, -1, -1), own], 2)

        out = F.scaled_dot_product_attention(
            rows(query), rows(key), rows(value), is_causal=True, enable_gqa=case.heads > case.kv_heads
        )
        return torch.cat([out[0, :, :prompt], out[:, :, prompt:].transpose(0, 1).flatten(1, 2)], 1).transpose(0, 1)

    return pieces if case.layout is None else padded


def speed(settings: Settings, notes: Notes) -> None:
    """Forward, forward and backward, and the peak of memory, for each kernel and each layer's shape."""
    device = torch.device(settings.device)
    repeats = 2 if settings.quick else 5
    for name, case in sizes(settings.quick).items():
        measure(notes, f"{name}/apart", apart(case), case.inputs(device, torch.bfloat16), device, repeats)
        for backend, kind in VARIANTS:
            row = f"{name}/{backend}-{kind}"
            why = why_not(backend, device, DTYPES[kind], case.width)
            if why is not None:
                notes.put(row, note=why)
                continue
            with using(backend):
                measure(notes, row, case.run, case.inputs(device, DTYPES[kind]), device, repeats)


def measure(
    notes: Notes,
    row: str,
    run: Callable[[Tensor, Tensor, Tensor], Tensor],
    made: list[Tensor],
    device: torch.device,
    repeats: int,
) -> None:
    query, key, value = made
    up = torch.ones_like(run(query, key, value).detach())

    def both() -> None:
        torch.autograd.grad(run(query, key, value), made, up)

    def forward() -> None:
        with torch.no_grad():
            run(query, key, value)

    try:
        forward_ms, both_ms = timed_ms(forward, device, repeats), timed_ms(both, device, repeats)
        before = fresh(device)
        both()
        notes.put(row, **cells(forward_ms=forward_ms, both_ms=both_ms, peak_gib=peak_gib(device, before)))
    except torch.OutOfMemoryError:
        notes.put(row, note="out of memory")
        fresh(device)
