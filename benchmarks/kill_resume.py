"""Kill a run with SIGKILL at random moments, resume it each time, and compare its metrics with those of an undisturbed run.

    python benchmarks/kill_resume.py --kills 20 --steps 40

Every number that a run logs must be the same to the last digit, but for the ``time/`` ones (law 9).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OVERRIDES = (
    "prompts=6",
    "threads=1",
    "checkpoint.every=4",
    "log_rollouts_every=5",
    "eval.every=10",
    "eval.data.n=24",
    "eval.during=12",
    "eval.extra.zoom.n=8",
    "anchors.0.prompts=2",
    "anchors.1.prompts=2",
    "anchors.1.pool=8",
    "teacher.weights=ema",
)


def command(folder: Path, steps: int, recipe: str) -> list[str]:
    return [sys.executable, "-m", "foveate", "train", recipe, "--run", str(folder), f"steps={steps}", *OVERRIDES]


def logged(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def run_with_kills(folder: Path, steps: int, recipe: str, kills: int, seed: int) -> tuple[int, int]:
    """Start, kill after a random while, start again ... and let the last start finish. Returns (kills that hit, starts)."""
    rng = random.Random(seed)
    hits = starts = 0
    while True:
        starts += 1
        process = subprocess.Popen(command(folder, steps, recipe), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if hits < kills:
            # Half of the kills are aimed at the run itself, half also hit start-up, where a run is just as mortal.
            begin, wait_s = time.monotonic(), rng.uniform(1.0, 14.0)
            while process.poll() is None and time.monotonic() - begin < wait_s:
                time.sleep(0.05)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                hits += 1
                continue
        errors = process.communicate()[1].decode()
        if process.returncode:
            raise SystemExit(f"the resumed run failed:\n{errors}")
        return hits, starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default="tiny/vision_opd")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed, disturbed = Path(scratch) / "undisturbed", Path(scratch) / "disturbed"
        subprocess.run(command(undisturbed, arguments.steps, arguments.recipe), check=True, stdout=subprocess.DEVNULL)
        hits, starts = run_with_kills(disturbed, arguments.steps, arguments.recipe, arguments.kills, arguments.seed)
        want, have = logged(undisturbed), logged(disturbed)
        different = [
            (a["step"], key)
            for a, b in zip(want, have, strict=False)
            for key in sorted(a.keys() | b.keys())
            if a.get(key) != b.get(key)
        ]
        print(f"{hits} kills in {starts} starts; {len(want)} rows logged undisturbed, {len(have)} disturbed")
        print(f"{len(different)} numbers differ")
        for step, key in different[:10]:
            print(f"  step {step}: {key}")
        raise SystemExit(bool(different) or len(want) != len(have))


if __name__ == "__main__":
    main()
