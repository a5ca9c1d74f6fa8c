"""Every method on the embedded model at the same number of rollouts, with its control; one table.

    python benchmarks/methods.py --out runs/methods [--only vision_opd,control] [--jobs 2]

Each line is one `foveate train` with one thread; a finished run is not run again. Accuracies are greedy, on held-out scenes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SAME_VIEW = "signals.0.teacher=tiny.full"
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "vision_opd/seed1": ("tiny/vision_opd", ("seed=1", "data.seed=1")),
    "vision_opd/seed2": ("tiny/vision_opd", ("seed=2", "data.seed=2")),
    "vision_opd/seed3": ("tiny/vision_opd", ("seed=3", "data.seed=3")),
    "control_same_view": ("tiny/vision_opd", (SAME_VIEW,)),
    "vision_opd_without_anchors": ("tiny/vision_opd", ("anchors=[]",)),
    "opsd": ("tiny/opsd", ()),
    "sft": ("tiny/sft", ()),
    "grpo": ("tiny/grpo", ()),
    "grpo_muon": ("tiny/grpo", ("optimizer.name=muon", "optimizer.lr=4e-4")),
    "imagine_opd": ("tiny/imagine_opd", ()),
    "imagine_control_answer_only": ("tiny/imagine_opd", ("signals.0.teacher=tiny.imagine_teacher_answer_only",)),
    "imagine_control_same_view": ("tiny/imagine_opd", ("signals.0.teacher=tiny.imagine",)),
}


def command(name: str, out: Path, extra: list[str]) -> list[str]:
    recipe, overrides = RUNS[name]
    return ["foveate", "train", recipe, *overrides, "threads=1", *extra, "--run", str(out / name)]


def run(name: str, out: Path, extra: list[str]) -> None:
    if (out / name / "summary.json").is_file():
        return
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    with (out / f"{name.replace('/', '_')}.log").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "foveate", *command(name, out, extra)[1:]], stdout=log, stderr=subprocess.STDOUT, check=False
        )
    print(f"{name}: {'done' if done.returncode == 0 else f'failed, see {log.name}'}", flush=True)


def table(out: Path, extra: list[str]) -> str:
    views = ("full", "crop", "imagine", "zoom")
    rows = [
        "| run | " + " | ".join(f"{view} before -> after (change, 95 %)" for view in views) + " | rollouts | training s |",
        "|---" * (len(views) + 3) + "|",
    ]
    commands = []
    for name in RUNS:
        path = out / name / "summary.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        cells = []
        for view in views:
            if f"{view}_after" not in found:
                cells.append("")
                continue
            low, high = found["gain_ci95"][f"{view}_gain"]
            before, after = found[f"{view}_before"], found[f"{view}_after"]
            cells.append(f"{before:.3f} -> {after:.3f} ({100 * (after - before):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])")
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {found['rollouts']:,} | {found['seconds']:.0f} |")
        commands.append(f"    {shlex.join(command(name, Path('runs/methods'), extra))}")
    return "\n".join([*rows, "", "Commands:", "", *commands])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", default="", help="names, or their beginnings, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("overrides", nargs="*", help="key=value for all runs")
    arguments = parser.parse_args()
    wanted = [name for name in RUNS if not arguments.only or any(name.startswith(one) for one in arguments.only.split(","))]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for _ in pool.map(lambda name: run(name, arguments.out, arguments.overrides), wanted):
            pass
    print(table(arguments.out, arguments.overrides))


if __name__ == "__main__":
    main()
