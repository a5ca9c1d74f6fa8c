"""A run folder full of made-up numbers, written by the real recorder: for tests of the report, and for looking at it.

``python tests/fake_run.py FOLDER`` writes one and its report.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from foveate.datasets.scenes import samples
from foveate.datasets.views import make_view, resolve_view
from foveate.train.recorder import Recorder
from foveate.vlm.messages import to_json
from foveate.vlm.records import Reward, Rollout, Sample, Signal, StopReason, Turn

CONFIG = """name: vision_opd
model: {name: tiny}
seed: 0
steps: 200
prompts: 48
rollouts: 1
teacher: {weights: frozen}
signals: [{kind: distill, divergence: jsd, support: full}]
anchors: [{name: crop, prompts: 12}, {name: zoom, prompts: 6}]
"""
TEXTS = {1: "<answer>", 2: "K", 3: "</answer>", 4: "<|im_end|>"}


def signal(sample: Sample, place: int, *, reward: bool = False) -> Signal:
    """One answer of four tokens whose second token the teacher would have said otherwise."""
    student = make_view(sample, resolve_view("tiny.full"), "student")
    turn = Turn((1, 2, 3, 4), (-0.01, -1.4, -0.02, -0.01), "<answer>K</answer>", StopReason.ANSWERED)
    judged = Reward(1.0, {"right": 1.0}, "right", "K") if reward else None
    rollout = Rollout(sample.id, f"main/{place}", 0, student, (turn,), StopReason.ANSWERED, reward=judged)
    teacher = make_view(sample, resolve_view("tiny.crop"), "teacher")
    return Signal(rollout, kd_weights_NK=((1.0, 1.0, 1.0, 1.0),), teacher_view=teacher, stream="distill")


def evaluation(
    recorder: Recorder, held_out: list[Sample], step: int, accuracy: dict[str, float], whole: bool = True
) -> dict[str, Any]:
    """What an evaluator returns: each view right on a share of the items."""
    views = {}
    for view, share in accuracy.items():
        num = 1024 if whole else 256
        draw = random.Random(7 if view == "crop" else 11)
        right = [int(draw.random() < share) for _ in range(num)]
        cases = []
        for place, sample in enumerate(held_out):
            text = f"<answer>{sample.answer if right[place] else 'Z'}</answer>"
            outcome = "right" if right[place] else "wrong"
            messages = to_json(make_view(sample, resolve_view(f"tiny.{view}"), "student").messages, recorder.store)
            cases.append(
                {
                    "id": sample.id,
                    "question": sample.question,
                    "answer": sample.answer,
                    "texts": [text],
                    "parsed": text[8:9],
                    "outcome": outcome,
                    "messages": messages,
                }
            )
        mean = sum(right) / num
        half = 1.96 * math.sqrt(max(mean * (1 - mean), 1e-4) / num)
        views[view] = {
            "accuracy": mean,
            "ci95": [mean - half, min(1.0, mean + half)],
            "n": num,
            "unparsed_frac": 0.004,
            "truncated_frac": 0.0,
            "tokens_mean": 4.0,
            "turns_mean": 1.0,
            "right": right,
            "ids": [f"item{place}" for place in range(num)],
            "cases": cases,
        }
    return {"step": step, "whole": whole, "seconds": 3.0, "views": views}


def write(folder: Path, *, steps: int = 200, loggers: tuple[str, ...] = (), complete: bool = True) -> Recorder:
    """A whole run: evaluations before, during and after, curves with a spike, rollouts of two steps."""
    noise = random.Random(0)
    recorder = Recorder(folder, CONFIG, loggers, token_text=TEXTS.__getitem__)
    recorder.rewind(0)
    held_out = list(samples("detail", "test", 24))
    train = list(samples("detail", "train", 6))
    recorder.evaluation(0, evaluation(recorder, held_out, 0, {"full": 0.68, "crop": 0.985, "tools": 0.94}))
    signals = [signal(sample, place, reward=place == 1) for place, sample in enumerate(train)]
    recorder.first_batch(signals)
    for step in range(1, steps + 1):
        left = math.exp(-step / 60)
        values = {
            "loss/total": 0.02 + 0.2 * left * noise.uniform(0.7, 1.3),
            "loss/distill/divergence": 0.01 + 0.18 * left * noise.uniform(0.7, 1.3),
            "loss/anchor:crop/divergence": 0.004 * noise.uniform(0.2, 2),
            "loss/anchor:zoom/divergence": 0.007 * noise.uniform(0.2, 2),
            "policy/entropy": 0.1 + 0.4 * left * noise.uniform(0.8, 1.2),
            "optim/grad_norm": 9.0 if step == 90 else noise.uniform(0.3, 0.9),
            "optim/lr": 4e-4 * min(1, step / 10),
            "rollout/tokens": 4.0 + noise.uniform(-0.1, 0.1),
            "rollout/turns": 1.0,
            "stop/answered": 0.98,
            "stop/turn_tokens": 0.02,
            "time/step_s": noise.uniform(0.4, 0.6),
            "time/sample_s": noise.uniform(0.1, 0.2),
        }
        recorder.metrics(step, values)
        if step in (1, steps):
            divergence = {(one.rollout.group_id, 0): [[0.001, 0.6 * left + 0.02, 0.002, 0.0005]] for one in signals}
            recorder.rollouts(step, signals, divergence)
        if step % 50 == 0 and step < steps:
            recorder.evaluation(
                step,
                evaluation(
                    recorder, held_out, step, {"full": 0.68 + 0.14 * (1 - left), "crop": 0.985, "tools": 0.935}, whole=False
                ),
            )
    if complete:
        recorder.evaluation(steps, evaluation(recorder, held_out, steps, {"full": 0.815, "crop": 0.984, "tools": 0.935}))
        gains = {"full_gain": [0.112, 0.158], "crop_gain": [-0.006, 0.004], "tools_gain": [-0.014, 0.005]}
        recorder.summary(
            {
                "name": "vision_opd",
                "model": "tiny",
                "seed": 0,
                "steps": steps,
                "seconds": 104.2,
                "rollouts": 9600,
                "action_tokens": 38400,
                "gain_ci95": gains,
            }
        )
    recorder.close()
    return recorder


if __name__ == "__main__":
    from foveate.train.report import write_report

    folder = Path(sys.argv[1])
    write(folder)
    sys.stdout.write(json.dumps({"report": str(write_report(folder))}) + "\n")
