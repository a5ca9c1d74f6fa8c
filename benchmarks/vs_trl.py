"""Whole training steps of foveate against TRL: the same model, prompts, pictures, group size and lengths, in one run.

    python benchmarks/vs_trl.py [--quick] [--json results.json]

GRPO: sample, reward, train (`GRPOTrainer`). Distillation: sample, teacher, JSD 0.5 over the whole vocabulary, train
(`DistillationTrainer`). Ours is the loop's own step (`train.loop.step`) from a recipe. On both sides decoding and
preprocessing of the pictures, the reward function and the optimizer are inside the time, the picture of every step is new,
completions have exactly the given number of tokens, everything is fp32 on one thread without gradient checkpointing.

Each side runs in a process of its own; the sides take turns, so that a slow minute of the machine hits both. A step's time is its
wall clock and the median over all steps but each process's first (the ratio of CPU times beside it tells what
other work on the machine may have done to it); memory is the growth of the process's high-water mark over its
resident size before the first step.

What the ratios rest on: TRL reads prompt and picture once per rollout, in sampling and in training; foveate once per prompt. So
they grow with prompt over completion length. The last cases, text prompts with long completions, are where sharing helps least.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import foveate  # noqa: F401 - lets torchvision load beside a CPU torch

QUESTION = "What letter is on the red triangle at the top left of the picture, and what is to the right of it?"
WORDS = "Somewhere in this long description of a room there is a red triangle next to a blue circle. "


@dataclass(frozen=True)
class Case:
    """One comparison. ``picture_px`` 0: text only, with a prompt of ``text_words`` sentences. ``goal``: the ratio aimed at."""

    name: str
    method: Literal["grpo", "distill"]
    size: Literal["0.5M", "5M"]
    picture_px: int = 448
    new_tokens: int = 32
    text_words: int = 0
    prompts: int = 4
    rollouts: int = 8
    goal: float = 0.0
    quick: bool = False


CASES = (
    Case("grpo, picture", "grpo", "0.5M", goal=5, quick=True),
    Case("grpo, picture", "grpo", "5M", goal=5),
    Case("distill, picture", "distill", "0.5M", goal=3, quick=True),
    Case("distill, picture", "distill", "5M", goal=3),
    Case("grpo, short text, long answers", "grpo", "5M", picture_px=0, new_tokens=256),
    Case("grpo, long text", "grpo", "5M", picture_px=0, text_words=10),
)
SIZES: dict[str, dict[str, int]] = {
    "0.5M": {"hidden": 64, "layers": 2, "vision_hidden": 64, "vision_layers": 2, "vocab_size": 1024},
    "5M": {"hidden": 256, "layers": 5, "vision_hidden": 160, "vision_layers": 4, "vocab_size": 1024},
}


# ---------------------------------------------------------------- what both sides get


def prepare(folder: Path, case: Case, steps: int) -> None:
    """Model folder and data, the same files for both sides."""
    import numpy as np
    from PIL import Image

    from foveate.vlm.load import save, tiny_random

    side = 448 if case.picture_px == 0 else case.picture_px
    vlm = tiny_random("qwen2_5_vl", seed=0, max_pixels=side * side, initializer_range=0.02, **SIZES[case.size])
    save(vlm, folder / "model")
    rng, rows = np.random.default_rng(0), []
    for index in range(steps * case.prompts):
        row: dict[str, Any] = {
            "id": str(index),
            "question": QUESTION + WORDS * case.text_words + f" ({index:04d})",
            "answer": "K",
        }
        if case.picture_px:
            coarse = rng.integers(0, 256, (28, 28, 3), np.uint8)
            Image.fromarray(coarse).resize((side, side)).save(folder / f"{index}.png")
            row["images"] = [f"{index}.png"]
        rows.append(row)
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def reward_of(text: str) -> float:
    """The share of the letter e: anything that differs between rollouts."""
    return text.count("e") / (1 + len(text))


class Meter:
    """Time of each step and memory growth since the first began."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.cpu_s: list[float] = []

    def begin(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        self.rss_kb = self._status("VmRSS")
        self.last, self.last_cpu = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        self.times_s.append(now - self.last)
        self.cpu_s.append(cpu - self.last_cpu)
        self.last, self.last_cpu = now, cpu

    def result(self, **more: float) -> dict[str, Any]:
        peak_mb = (self._status("VmHWM") - self.rss_kb) / 1024
        return {"times_s": self.times_s[1:], "cpu_s": self.cpu_s[1:], "peak_mb": peak_mb, **more}

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


# ---------------------------------------------------------------- foveate


def run_foveate(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    from foveate.train import experience, loop
    from foveate.train.config import RunConfig
    from foveate.train.run import Run
    from foveate.vlm.records import Group, Reward, Rollout

    def score_groups(groups: Sequence[Group], spec: object, ask: object) -> list[Group]:
        def scored(group: Group) -> tuple[Rollout, ...]:
            return tuple(dataclasses.replace(one, reward=Reward(reward_of(one.text))) for one in group.rollouts)

        return [Group(group.sample, scored(group)) for group in groups]

    experience.score_groups = score_groups  # type: ignore[assignment] # the reward function of both sides
    signals: dict[str, dict[str, Any]] = {
        "grpo": {"kind": "grpo"},
        "distill": {"kind": "distill", "teacher": "full", "divergence": "jsd", "beta": 0.5, "support": "full"},
    }
    config = RunConfig.model_validate(
        {
            "name": "benchmark",
            "model": {"name": str(folder / "model"), "device": "cpu"},
            "steps": steps,
            "threads": 1,
            "data": {"path": str(folder / "data.jsonl"), "image_dir": str(folder)},
            "student": "full",
            "prompts": case.prompts,
            "rollouts": case.rollouts,
            "sampling": {"max_new_tokens": case.new_tokens},
            "signals": [signals[case.method]],
            "optimizer": {"lr": 1e-6},
            "loggers": [],
            "leak_check": False,
        }
    )
    run = Run(config, Path(tempfile.mkdtemp(dir=folder)))
    renderer = run.vlm.renderer
    renderer.banned_ids = (*renderer.banned_ids, *renderer.stop_ids)  # completions of one length
    renderer.stop_ids = ()
    meter = Meter()
    meter.begin()
    for _ in range(steps):
        loop.step(run)
        meter.lap()
    tokens = run.progress.action_tokens / steps / case.prompts / case.rollouts
    assert tokens == case.new_tokens, f"{tokens} tokens per completion"
    _, view = run.main.draw(0)[0]
    parameters = sum(parameter.numel() for parameter in run.vlm.model.parameters())
    return meter.result(prompt_tokens=len(renderer.prompt(view.messages)), parameters=parameters)


# ---------------------------------------------------------------- TRL


def run_trl(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    import torch
    import transformers
    from datasets import Dataset, Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    # one completion per row in DistillationTrainer: each prompt stands there as often as it has rollouts
    repeats = case.rollouts if case.method == "distill" else 1
    columns: dict[str, list[Any]] = {
        "prompt": [[{"role": "user", "content": row["question"]}] for row in rows for _ in range(repeats)]
    }
    if case.picture_px:
        columns["image"] = [str(folder / row["images"][0]) for row in rows for _ in range(repeats)]
    dataset = Dataset.from_dict(columns)
    if case.picture_px:
        dataset = dataset.cast_column("image", Image())
    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": case.prompts * case.rollouts,
        "max_steps": steps,
        "max_completion_length": case.new_tokens,
        "generation_kwargs": {"min_new_tokens": case.new_tokens},
        "temperature": 1.0,
        "top_k": 0,
        "learning_rate": 1e-6,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "shuffle_dataset": False,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder / "model", padding_side="left")
    meter = Meter()

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            meter.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            meter.lap()

    shared: dict[str, Any] = {"train_dataset": dataset, "processing_class": processor, "callbacks": [Clock()]}
    if case.method == "grpo":

        def reward(completions: list[Any], **kwargs: Any) -> list[float]:
            return [reward_of(one[0]["content"]) for one in completions]

        settings = GRPOConfig(num_generations=case.rollouts, beta=0.0, num_iterations=1, max_grad_norm=1.0, **common)
        trainer = GRPOTrainer(model, reward_funcs=reward, args=settings, **shared)
    else:
        teacher = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
        distillation = DistillationConfig(beta=0.5, max_grad_norm=1.0, **common)
        trainer = DistillationTrainer(model, teacher, args=distillation, **shared)
    trainer.train()
    return meter.result()


# ---------------------------------------------------------------- both


def worker(side: str, case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """One side in a process of its own."""
    job = json.dumps({"side": side, "case": dataclasses.asdict(case), "folder": str(folder), "steps": steps})
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, __file__, "--job", job], env=env, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{side}, {case.name}, {case.size}: failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def compare(case: Case, steps: int, rounds: int) -> dict[str, Any]:
    """Both sides of a case in turns."""
    times, cpu, peaks = ({"foveate": [], "trl": []} for _ in range(3))
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, case, steps)
        for _ in range(rounds):
            for side in times:
                result = worker(side, case, folder, steps)
                times[side] += result["times_s"]
                cpu[side] += result["cpu_s"]
                peaks[side].append(result["peak_mb"])
                facts |= {key: result[key] for key in ("prompt_tokens", "parameters") if key in result}
    ours, theirs = (statistics.median(times[side]) for side in ("foveate", "trl"))
    cpu_ours, cpu_theirs = (statistics.median(cpu[side]) for side in ("foveate", "trl"))
    return {
        **dataclasses.asdict(case),
        **facts,
        "foveate_s": ours,
        "trl_s": theirs,
        "ratio": theirs / ours,
        "foveate_cpu_s": cpu_ours,
        "trl_cpu_s": cpu_theirs,
        "cpu_ratio": cpu_theirs / cpu_ours,
        "foveate_peak_mb": max(peaks["foveate"]),
        "trl_peak_mb": max(peaks["trl"]),
        "times_s": times,
        "cpu_s": cpu,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    titles = ("params", "prompt", "new", "TRL s", "ours s", "ratio", "of CPU", "goal", "TRL MB", "ours MB")
    lines = [f"{'case':<32}" + "".join(f"{title:>9}" for title in titles)]
    for one in results:
        cells = (
            f"{one['parameters'] / 1e6:.2f}M",
            one["prompt_tokens"],
            one["new_tokens"],
            f"{one['trl_s']:.3f}",
            f"{one['foveate_s']:.3f}",
            f"{one['ratio']:.2f}x",
            f"{one['cpu_ratio']:.2f}x",
            f"{one['goal']:.0f}x" if one["goal"] else "",
            f"{one['trl_peak_mb']:.0f}",
            f"{one['foveate_peak_mb']:.0f}",
        )
        lines.append(f"{one['name']:<32}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two smallest cases, two steps each")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--size", choices=tuple(SIZES), help="models of this size")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per process")
    parser.add_argument("--rounds", type=int, default=2, help="processes per side")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job = json.loads(arguments.job)
        run = {"foveate": run_foveate, "trl": run_trl}[job["side"]]
        print("RESULT " + json.dumps(run(Case(**job["case"]), Path(job["folder"]), job["steps"])))
        return
    steps, rounds = (2, 1) if arguments.quick else (arguments.steps, arguments.rounds)
    results = []
    for case in CASES:
        wanted = arguments.only in case.name and arguments.size in (None, case.size)
        if not wanted or (arguments.quick and not case.quick):
            continue
        results.append(compare(case, steps + 1, rounds))
        print(table(results[-1:]) if len(results) == 1 else table(results[-1:]).splitlines()[-1], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
