"""The process behind `maths.same_maths`: a line of JSON in, "1" or "0" out. Run as a script; nothing of ours is imported.

Comparing two expressions may take forever inside the interpreter, where no exception reaches it. The alarm's default action is to
end the process, which always works; whoever waits for the line reads the end of the file instead.
"""

from __future__ import annotations

import json
import resource
import signal
import sys

_MAX_BYTES = 8 << 30


def _same(said: str, reference: str) -> bool:
    from math_verify import parse, verify

    gold = parse(f"${reference}$", parsing_timeout=None)
    answer = parse(f"${said}$", parsing_timeout=None)
    return bool(gold and answer and verify(gold, answer, timeout_seconds=None))


def _serve() -> None:
    _same("1", "1")  # loads everything
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        said, reference, limit_s = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        same = _same(said, reference)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(f"{int(same)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, resource.RLIM_INFINITY))
    _serve()
