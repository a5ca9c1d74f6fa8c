"""Runs checks one after the other, each in its own process with its own time limit, and keeps what they found in one JSON file.

A check that crashes, hangs or runs out of memory costs itself alone. The file is complete after every check.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from .spec import Check, Settings
from .worker import SKIPPED

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARIES = (
    "torch", "torchvision", "triton", "transformers", "numpy", "pydantic", "accelerate", "peft", "xformers",
    "nvidia-cuda-runtime-cu12", "flash-attn", "deepspeed", "vllm", "bitsandbytes",
)  # fmt: skip
LEAST_S = 5.0
"""A check is not begun with less time than this."""


def run_all(
    checks: Sequence[Check], file: Path, settings: Settings, total_s: float, command: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run them within ``total_s`` altogether; the result is also in ``file``. ``say`` is told a line per check."""
    start = time.monotonic()
    found: dict[str, Any] = {
        "foveate": __version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        **asdict(settings),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in LIBRARIES},
        "seconds": 0.0,
        "checks": [],
    }
    for check in checks:
        left = total_s - (time.monotonic() - start)
        if left < LEAST_S:
            result = _result(check, "skip", f"no time left of {total_s:.0f} s", 0.0, {})
        else:
            result = run_one(check, settings, min(check.limit_s, left))
        found["checks"].append(result)
        found["seconds"] = round(time.monotonic() - start, 1)
        _write(file, found)
        reason = f": {result['reason']}" if result["reason"] else ""
        say(f"{result['status']:<5} {check.name:<20} {result['seconds']:6.1f} s{reason}")
    return found


def run_one(check: Check, settings: Settings, limit_s: float) -> dict[str, Any]:
    """One check in a process of its own, ended with all that it has started when its time is up."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="foveate-gpu-") as folder:
        file, log = Path(folder, "notes.json"), Path(folder, "log")
        words = [
            check.run,
            str(file),
            json.dumps(asdict(settings)),
            json.dumps(dict(check.rows)),
            json.dumps(dict(check.columns)),
        ]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "foveate.gpu_checks.worker", *words],
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
        seconds = time.monotonic() - start
        notes = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"values": {}, "problems": []}
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if status is None:
        return _result(
            check, "fail", f"not done after {limit_s:.0f} s; its numbers are those until then", seconds, notes["values"]
        )
    if status == SKIPPED:
        return _result(check, "skip", lines[-1], seconds, notes["values"])
    if status:
        why = f"ended by signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return _result(check, "fail", f"{why}: {' | '.join(lines[-3:])[-600:]}", seconds, notes["values"])
    return _result(check, "fail" if notes["problems"] else "pass", "; ".join(notes["problems"]), seconds, notes["values"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _result(check: Check, status: str, reason: str, seconds: float, values: dict[str, Any]) -> dict[str, Any]:
    return {"name": check.name, "status": status, "reason": reason, "seconds": round(seconds, 1), "values": values}


def _write(file: Path, found: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".part")
    unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, file)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
