"""Is a model's expression equal to the reference as mathematics? By math-verify, in a process of its own that has a time limit.

A process, because an expression such as ``9^(9^(9^9))`` cannot be stopped from within, and because rewards may be computed in
threads, where math-verify's own limit (an alarm signal) does not work.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

LIMIT_S = 2.0
_MAX_CHARS = 2000
_WORKER = Path(__file__).with_name("maths_worker.py")


class _Worker:
    """One process, used by all threads in turn and started again when it ended."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked process: the worker belongs to the parent."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def same(self, said: str, reference: str, limit_s: float) -> bool:
        with self._lock:
            try:
                reply = self._reply(said, reference, limit_s)
            except BrokenPipeError:  # somebody ended the process since the last question
                self.stop()
                reply = self._reply(said, reference, limit_s)
            if not reply:  # it ran out of time or memory
                self.stop()
            return reply == "1\n"

    def _reply(self, said: str, reference: str, limit_s: float) -> str:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([said, reference, limit_s]) + "\n")
        process.stdin.flush()
        return process.stdout.readline()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C asks the run to save and stop; a reply must not be lost to it
            )
            assert self._process.stdout is not None
            if self._process.stdout.readline() != "ready\n":
                self.stop()
                raise RuntimeError(
                    "the process that compares mathematics did not start; try: python -c 'import math_verify' "
                    "(pip install 'math-verify[antlr4_13_2]')"
                )
        return self._process

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


_worker = _Worker()
atexit.register(_worker.stop)
os.register_at_fork(after_in_child=_worker.forget)


def same_maths(said: str, reference: str, limit_s: float = LIMIT_S) -> bool:
    """Equal as mathematics (``1/2`` and ``0.5``, ``2x+1`` and ``1+2x``). Too long to decide counts as different.

    Works in any thread. `RuntimeError` when math-verify cannot be loaded.
    """
    a, b = (text.strip().strip("$").strip().replace("\n", " ") for text in (said, reference))
    if a == b and a:
        return True
    if not a or not b or len(a) > _MAX_CHARS or len(b) > _MAX_CHARS:
        return False
    return _worker.same(a, b, limit_s)
