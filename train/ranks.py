"""The processes of a run. One that was not started by torchrun, deepspeed or accelerate is alone, and this costs it nothing.

Ranks run the same program on the same records: what one of them has played, scored or decided is gathered, so that samplers,
filters, replay and metrics see the whole step on every rank and need to know nothing of ranks. Pictures are gathered by name, and
their pixels go where they are read (`post`).
"""

from __future__ import annotations

import atexit
import datetime
import functools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .post import Post, open_post

T = TypeVar("T")
S = TypeVar("S")
_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_FAULTS = (ValueError, OSError, RuntimeError, LookupError)


class OtherRankError(RuntimeError):
    """Another rank could not do what all were waiting for; it says why."""


@dataclass(frozen=True)
class Ranks:
    """Which process this is, and how many there are. All ranks must call the same methods in the same order."""

    rank: int = 0
    size: int = 1
    post: Post | None = field(default=None, repr=False, compare=False)
    """What carries records between ranks; a process that is alone has none."""

    @property
    def is_first(self) -> bool:
        """Rank 0 writes the run folder and talks to the terminal."""
        return self.rank == 0

    def gather(self, mine: T) -> list[T]:
        """What each rank has, in the order of ranks; of this one it is the very same."""
        if self.size == 1:
            return [mine]
        assert self.post is not None
        found = _gathered(self.post.dumps(mine), self.size)
        shares = [mine if rank == self.rank else self.post.loads(data) for rank, data in enumerate(found)]
        self.post.met()
        return shares

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank."""
        return any(self.gather(flag))

    def wait(self) -> None:
        """Go on when all ranks are here."""
        self.gather(None)

    def first(self, work: Callable[[], T]) -> T:
        """``work()`` done by rank 0 alone, its result on every rank. Where it fails, the others raise `OtherRankError`."""
        if self.size == 1:
            return work()
        assert self.post is not None
        told: list[Any] = [b"", ""]
        if self.is_first:
            try:
                done = work()
            except _FAULTS as error:
                dist.broadcast_object_list([b"", f"{type(error).__name__}: {error}"])
                raise
            dist.broadcast_object_list([self.post.dumps(done), ""])
            return done
        dist.broadcast_object_list(told)
        if told[1]:
            raise OtherRankError(f"rank 0 has stopped ({told[1]})")
        result: T = self.post.loads(told[0])
        return result

    def agreed(self, work: Callable[[], T]) -> T:
        """``work()`` on every rank, in which ranks do not wait for each other. Where it fails on one, the others raise
        `OtherRankError` once they are done."""
        if self.size == 1:
            return work()
        try:
            done = work()
        except _FAULTS as error:
            self.gather(f"{type(error).__name__}: {error}")
            raise
        for rank, reason in enumerate(self.gather("")):
            if reason:
                raise OtherRankError(f"rank {rank} has stopped ({reason})")
        return done

    def each(self, items: Sequence[T], work: Callable[[list[T]], Sequence[S]]) -> list[S]:
        """``work``'s result for each of ``items``, which are dealt to the ranks in turn; every rank has all results."""
        if self.size == 1:
            return list(work(list(items)))
        shares = self.gather(self.agreed(lambda: list(work(list(items[self.rank :: self.size])))))
        return [shares[place % self.size][place // self.size] for place in range(len(items))]

    def each_group(self, items: Sequence[T], key: Callable[[T], Hashable], work: Callable[[list[T]], Sequence[S]]) -> list[S]:
        """`each` where items of one key go to one rank."""
        if self.size == 1:
            return list(work(list(items)))
        groups: dict[Hashable, list[int]] = {}
        for place, item in enumerate(items):
            groups.setdefault(key(item), []).append(place)
        mine = [place for group in list(groups.values())[self.rank :: self.size] for place in group]
        done = self.agreed(lambda: work([items[place] for place in mine]))
        shares = self.gather(dict(zip(mine, done, strict=True)))
        found = {place: value for share in shares for place, value in share.items()}
        return [found[place] for place in range(len(items))]

    def summed(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over ranks, name by name."""
        total: dict[str, float] = {}
        for share in self.gather(dict(values)):
            for name, value in share.items():
                total[name] = total.get(name, 0.0) + value
        return total


ALONE = Ranks()


def _gathered(mine: Any, size: int) -> list[Any]:
    found: list[Any] = [None] * size
    dist.all_gather_object(found, mine)
    return found


def _end_group() -> None:
    """Else gloo's threads now and then abort a process that ends after a gather."""
    if dist.is_initialized():
        dist.destroy_process_group()


@functools.cache
def joined(minutes: float = 60.0) -> Ranks:
    """The ranks of this process; the first call joins the others. Raises `ValueError` where a launcher's variables lack."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {size} but {', '.join(missing)} is not set; start with torchrun, deepspeed or accelerate launch, "
            "or unset WORLD_SIZE to train in one process"
        )
    if not dist.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=minutes))
        if backend == "gloo":
            atexit.register(_end_group)
    rank, size = dist.get_rank(), dist.get_world_size()
    master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return Ranks(rank, size, open_post(rank, lambda mine: _gathered(mine, size), master, 60 * minutes))
