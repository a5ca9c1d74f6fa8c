"""Time and memory on a device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import torch

GIB = 2**30


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_ms(run: Callable[[], object], device: torch.device, repeats: int, warm: int = 2) -> float:
    """Median time of a call, in ms of the wall clock, the device's work included."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def fresh(device: torch.device) -> int:
    """Give back what nothing holds and begin a new peak; bytes that are held now. 0 on a CPU, where nothing counts them."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_gib(device: torch.device, before: int = 0) -> float | None:
    """Most that was held since `fresh`, above ``before``, in GiB; None on a CPU."""
    if device.type != "cuda":
        return None
    return float((torch.cuda.max_memory_allocated(device) - before) / GIB)


def cells(**values: float | str | None) -> dict[str, float | str]:
    """Without those that were not measured."""
    return {name: value for name, value in values.items() if value is not None}
