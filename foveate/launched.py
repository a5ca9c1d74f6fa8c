"""Commands that torchrun, deepspeed or accelerate start once per rank: rank 0 prepares and talks, the others follow."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console

T = TypeVar("T")


def in_company() -> bool:
    """Whether a launcher started several ranks."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_first() -> bool:
    """Whether this process writes and talks: rank 0 of a launcher, or one that no launcher started."""
    return not in_company() or os.environ.get("RANK", "0") == "0"


def as_ranks(prepare: Callable[[], T], out: Console) -> T:
    """``prepare()`` done once for all ranks; the others' ``out`` is silent. A process on its own does not load torch here."""
    if not in_company():
        return prepare()
    from .train.ranks import joined

    ranks = joined()
    out.quiet = not ranks.is_first
    return ranks.first(prepare)
