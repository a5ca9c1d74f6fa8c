"""Commands that torchrun, deepspeed or accelerate start once per rank: rank 0 prepares and talks, the others follow."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import typer
from rich.console import Console
from rich.markup import escape

T = TypeVar("T")
_SECONDS_TO_SAY_WHY = 5.0


def in_company() -> bool:
    """Whether a launcher started several ranks."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_first() -> bool:
    """Whether this process writes and talks: rank 0 of a launcher, or one that no launcher started."""
    return not in_company() or os.environ.get("RANK", "0") == "0"


def as_ranks(prepare: Callable[[], T], out: Console, minutes: float = 60.0) -> T:
    """``prepare()`` done once for all ranks, which wait for each other so long at most; the others' ``out`` is silent.

    A process on its own does not load torch here.
    """
    if not in_company():
        return prepare()
    from .train.ranks import joined

    ranks = joined(minutes)
    out.quiet = not ranks.is_first
    return ranks.first(prepare)


def all_end(message: str, status: int, err: Console) -> typer.Exit:
    """What to raise where all ranks end for the same reason, which rank 0 tells."""
    if is_first():
        err.print(escape(message), soft_wrap=True)
    if in_company():
        from .train.ranks import joined

        joined().wait()  # a launcher ends the others when the first is gone, and it must have been told by then
    return typer.Exit(status)


def says_it_all(error: RuntimeError) -> bool:
    """Whether an error of a run needs no traceback: an engine's, or one that another rank tells (which gets the time to)."""
    if "torch" not in sys.modules:  # so neither can have been raised
        return False
    from .train.ranks import OtherRankError
    from .vlm.engines import EngineError

    if isinstance(error, OtherRankError):
        time.sleep(_SECONDS_TO_SAY_WHY)
    return isinstance(error, OtherRankError | EngineError)


def leave(status: int) -> None:
    """End one of several ranks at once; a process that is alone goes on.

    Python's own clean-up ends threads that ask for Python meanwhile, as those of gloo do to let go of the last message, and that
    aborts the process where such a thread is in the midst of C++ ("terminate called without an active exception").
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
