"""A stretch of the host's memory that the ranks of one machine hold together: one copy, however many processes.

The file behind it never has a name (``memfd_create``): the first rank of a machine makes it, the others open it through
``/proc``, and it is gone with the last of them, however they end. It needs no room in ``/dev/shm``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .ranks import ALONE, Ranks

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MARK = 16


@dataclass(frozen=True)
class Mates:
    """Those who hold the same memory: this process is number ``place`` of ``count``."""

    ranks: Ranks = ALONE
    place: int = 0
    count: int = 1

    def mine(self, items: int) -> range:
        """Which of so many items this process writes."""
        return range(self.place, items, self.count)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody reads while somebody writes. All ranks must come here, those of other machines too."""
        self.ranks.wait()
        yield
        self.ranks.wait()


def node_memory(size: int, ranks: Ranks) -> tuple[mmap.mmap, Mates]:
    """``size`` bytes, and those that this process holds them with. All ranks must call it.

    Where memory cannot be shared (no Linux, ranks in containers of their own) every rank has its own, with a warning.
    """
    if ranks.size == 1:
        return mmap.mmap(-1, size), Mates()
    machines = ranks.gather(_BOOT.read_text() if _BOOT.is_file() else f"rank {ranks.rank}")
    mates = [rank for rank, machine in enumerate(machines) if machine == machines[ranks.rank]]
    memory, file = (None, -1) if ranks.rank != mates[0] else _made(size)
    offers = ranks.gather((os.getpid(), file, b"" if memory is None else memory[:_MARK]))
    if memory is None:
        memory = _opened(*offers[mates[0]], size)
    reached = ranks.gather(memory is not None)
    if file >= 0:
        os.close(file)
    if memory is not None and all(reached[mate] for mate in mates):
        return memory, Mates(ranks, mates.index(ranks.rank), len(mates))
    if ranks.rank == mates[0]:
        warnings.warn(
            f"teacher.offload: the {len(mates)} ranks of this machine cannot open each other's memory, so each holds a copy of "
            "the teacher; run them in one container, under one user",
            stacklevel=2,
        )
    return mmap.mmap(-1, size), Mates(ranks)


def _made(size: int) -> tuple[mmap.mmap | None, int]:
    if sys.platform != "linux":
        return None, -1
    file = os.memfd_create("foveate-teacher")
    os.ftruncate(file, size)
    memory = mmap.mmap(file, size)
    memory[:_MARK] = secrets.token_bytes(_MARK)
    return memory, file


def _opened(process: int, file: int, mark: bytes, size: int) -> mmap.mmap | None:
    """The memory that another process has made; None where it cannot be reached, or where that number is another process here."""
    if file < 0:
        return None
    try:
        handle = os.open(f"/proc/{process}/fd/{file}", os.O_RDWR)
    except OSError:
        return None
    try:
        memory = mmap.mmap(handle, size)
    except (OSError, ValueError):
        return None
    finally:
        os.close(handle)
    return memory if memory[:_MARK] == mark else None
