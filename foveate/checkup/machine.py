"""Cores, memory, GPUs and disk of this machine."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .findings import Finding, gib


@dataclass(frozen=True)
class Gpu:
    """One CUDA device; ``free_bytes`` is what other processes leave."""

    name: str
    total_bytes: int
    free_bytes: int
    bf16: bool = True


@dataclass(frozen=True)
class Machine:
    """What a plan must fit into. ``free_disk`` gives the free bytes of the file system that holds a folder."""

    cores: int
    ram_bytes: int
    ram_free_bytes: int
    gpus: tuple[Gpu, ...]
    free_disk: Callable[[Path], int]


def look() -> Machine:
    """This machine, as this process may use it (its cores, its container's memory)."""
    on_linux = platform.system() == "Linux"
    cores = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = _available_bytes() or total
    limit = _cgroup_bytes()
    if limit is not None:
        total, free = min(total, limit), min(free, limit)
    gpus = []
    for index in range(torch.cuda.device_count()):
        free_gpu, total_gpu = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            gpus.append(Gpu(torch.cuda.get_device_name(index), total_gpu, free_gpu, torch.cuda.is_bf16_supported()))
    return Machine(cores, total, free, tuple(gpus), free_disk)


def _available_bytes() -> int | None:
    """What the kernel would give without swapping; None where it does not say."""
    path = Path("/proc/meminfo")
    for line in path.read_text(encoding="ascii").splitlines() if path.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_bytes() -> int | None:
    path = Path("/sys/fs/cgroup/memory.max")
    text = path.read_text(encoding="ascii").strip() if path.is_file() else "max"
    return int(text) if text.isdigit() else None


def free_disk(folder: Path) -> int:
    """Free bytes where ``folder`` is, or will be made."""
    here = folder.absolute()
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free


def devices(machine: Machine | None = None) -> Iterator[Finding]:
    """One line for cores and memory, one for each GPU."""
    machine = machine or look()
    ram = f"{gib(machine.ram_free_bytes)} of {gib(machine.ram_bytes)} memory free"
    yield Finding("CPU", f"{machine.cores} cores, torch uses {torch.get_num_threads()} threads, {ram}")
    if not machine.gpus:
        yield Finding("GPU", "none that torch can use")
    for index, gpu in enumerate(machine.gpus):
        taken = gpu.total_bytes - gpu.free_bytes
        text = f"{gpu.name}, {gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free, {'bfloat16' if gpu.bf16 else 'no bfloat16'}"
        busy = taken > 0.1 * gpu.total_bytes
        yield Finding(
            f"GPU {index}", text, "yellow" if busy else "green",
            "a GPU of one's own" if busy else "", "end the other process (nvidia-smi names it), or wait" if busy else "",
        )  # fmt: skip
