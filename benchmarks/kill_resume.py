"""Kill a run with SIGKILL at random moments, resume it each time, and compare its metrics with those of an undisturbed run.

    python benchmarks/kill_resume.py --kills 20 --steps 40
    python benchmarks/kill_resume.py --recipe see_then_think --kills 12 --steps 16      # so many steps in each of its stages

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

from foveate.train.recipes import load_any
from foveate.train.staged import StagedConfig

PLAIN = (
    "prompts=6",
    "threads=1",
    "checkpoint.every=2",
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


STAGED = ("prompts=4", "rollouts=4", "threads=1", "checkpoint.every=3", "eval.every=5", "eval.data.n=16", "report.data.n=16")


def command(folder: Path, steps: int, recipe: str) -> list[str]:
    config = load_any(recipe)
    changes = [f"steps={steps}", *PLAIN]
    if isinstance(config, StagedConfig):
        changes = [*STAGED, *(f"eval.extra.{name}.n=16" for name in ("text", "visual"))]
        changes += [f"report.extra.{name}.n=16" for name in ("text", "visual")]
        changes += [
            f"stages.{place}.{change}" for place in range(len(config.stages)) for change in (f"steps={steps}", "gate.least=null")
        ]
    return [sys.executable, "-m", "foveate", "train", recipe, "--run", str(folder), *changes]


def metric_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "metrics.jsonl", *sorted(folder.glob("stages/*/metrics.jsonl"))) if path.exists()]


def logged(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for path in metric_files(folder) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def steps_logged(folder: Path) -> int:
    return sum(path.read_text().count("loss/total") for path in metric_files(folder))


def where(folder: Path) -> str:
    """The stage that was being trained, or the run."""
    files = metric_files(folder)
    return (
        "before the first step"
        if not files
        else files[-1].parent.name
        if len(files) > 1 or "stages" in files[-1].parts
        else "run"
    )


def kill_somewhere(process: subprocess.Popen[bytes], folder: Path, rng: random.Random) -> bool:
    """Kill the run while it starts (one time in four) or a few steps and a moment later; False when it ended before."""
    begin, first = time.monotonic(), steps_logged(folder)
    startup_s = rng.uniform(0.2, 8.0) if rng.random() < 0.25 else None
    steps, moment_s = rng.randint(1, 3), rng.uniform(0.0, 0.4)
    while process.poll() is None:
        if startup_s is not None and time.monotonic() - begin > startup_s:
            break
        if startup_s is None and steps_logged(folder) >= first + steps:
            time.sleep(moment_s)
            break
        time.sleep(0.01)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def run_with_kills(folder: Path, steps: int, recipe: str, kills: int, seed: int) -> tuple[int, int]:
    """Start, kill, start again ... and let the last start finish. Returns (kills, starts)."""
    rng = random.Random(seed)
    done = starts = 0
    while True:
        starts += 1
        process = subprocess.Popen(command(folder, steps, recipe), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done < kills and kill_somewhere(process, folder, rng):
            done += 1
            print(f"killed in {where(folder)}, after {steps_logged(folder)} logged steps", flush=True)
            continue
        errors = process.communicate()[1].decode()
        if process.returncode:
            raise SystemExit(f"the resumed run failed:\n{errors}")
        return done, starts


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
