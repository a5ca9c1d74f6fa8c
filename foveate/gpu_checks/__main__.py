"""``python -m foveate.gpu_checks``: the checks of the GPU, with nothing but Python needed to start them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .harness import run_all
from .page import page
from .spec import Settings, named
from .table import CHECKS

MINUTES = 8.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="foveate gpu", description="Run every check and benchmark that needs a GPU.")
    made.add_argument("checks", nargs="*", help=f"default: all of {', '.join(check.name for check in CHECKS)}")
    made.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the results go")
    made.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    made.add_argument("--quick", action="store_true", help="sizes that only show that it works")
    made.add_argument("--minutes", type=float, default=MINUTES, help="time for everything")
    made.add_argument(
        "--render", type=Path, help="run nothing: make the page of this JSON (a file that is not there: an empty page)"
    )
    made.add_argument("--page", type=Path, default=Path("docs/gpu.md"), help="where --render writes")
    return made


def main(arguments: Sequence[str]) -> int:
    """Exit status 0: nothing has failed; 1: something has; 2: a mistake in what was asked."""
    asked = parser().parse_args(arguments)
    if asked.render is not None:
        found = json.loads(asked.render.read_text(encoding="utf-8")) if asked.render.is_file() else None
        asked.page.parent.mkdir(parents=True, exist_ok=True)
        asked.page.write_text(page(found, CHECKS), encoding="utf-8")
        say(f"{asked.page}")
        return 0
    try:
        checks = named(CHECKS, asked.checks)
    except ValueError as error:
        say(str(error))
        return 2
    command = shlex.join(["python", "-m", "foveate", "gpu", *arguments])
    found = run_all(checks, asked.json, Settings(asked.device, asked.quick), 60 * asked.minutes, command, say)
    failed = sum(one["status"] == "fail" for one in found["checks"])
    say(f"{len(checks)} checks, {failed} failed, {found['seconds']:.0f} s: {asked.json}")
    return 1 if failed else 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
