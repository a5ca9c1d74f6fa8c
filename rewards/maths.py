"""The maths term: is the model's expression equal to the reference? With a limit on time, by math-verify."""

from __future__ import annotations

import threading

LIMIT_S = 2


def same_maths(said: str, reference: str, limit_s: int = LIMIT_S) -> bool:
    """Equal as mathematics (``1/2`` and ``0.5``, ``2x+1`` and ``1+2x``). Too long to decide counts as different.

    math-verify limits time with an alarm signal, which exists in the main thread alone: `RuntimeError` elsewhere, since an
    expression from a model must not be able to stop a run.
    """
    from math_verify import parse, verify

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("the maths term limits its time with a signal and works in the main thread only; score there")
    gold = parse(f"${reference.strip().strip('$')}$", parsing_timeout=limit_s)
    answer = parse(f"${said.strip().strip('$')}$", parsing_timeout=limit_s)
    return bool(gold and answer and verify(gold, answer, timeout_seconds=limit_s))
