"""A run folder full of made-up numbers, written by the real recorder: for tests of the report and the viewer.

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
from foveate.train.recorder import Recorder, write_atomically
from foveate.train.showing import Look
from foveate.vlm.images import Picture
from foveate.vlm.messages import Message, to_json
from foveate.vlm.records import Reward, Rollout, Sample, Signal, StopReason, ToolCall, Turn

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
TOOLS_CONFIG = """name: deepeyes
model: {name: tiny}
seed: 0
steps: 10
prompts: 1
rollouts: 4
signals: [{kind: grpo}]
"""
TEXTS = {1: "<answer>", 2: "K", 3: "</answer>", 4: "<|im_end|>", 5: "Z", 6: "<b>", 7: "zoom", 8: "(0.25)"}


def signal(sample: Sample, place: int, *, reward: bool = False) -> Signal:
    """One answer of four tokens whose second token the teacher would have said otherwise."""
    student = make_view(sample, resolve_view("tiny.full"), "student")
    turn = Turn((1, 2, 3, 4), (-0.01, -1.4, -0.02, -0.01), "<answer>K</answer>", StopReason.ANSWERED)
    judged = Reward(1.0, {"right": 1.0}, "right", "K") if reward else None
    rollout = Rollout(sample.id, f"main/{place}", 0, student, (turn,), StopReason.ANSWERED, reward=judged)
    teacher = make_view(sample, resolve_view("tiny.crop"), "teacher")
    return Signal(rollout, kd_weights_NK=((1.0, 1.0, 1.0, 1.0),), teacher_view=teacher, stream="distill")


def tool_signal(sample: Sample, place: int, index: int = 0, right: bool = True) -> Signal:
    """A zoom into a quarter of the picture, then an answer: grpo, rewarded, read by nobody else."""
    view = make_view(sample, resolve_view("tiny.full"), "student")
    side = view.pictures[0].width_px
    crop = Picture.of(view.pictures[0].rgb().crop((0, 0, side // 2, side // 2)))
    call = ToolCall(name="zoom", arguments='{"box": [0, 0, 500, 500]}', image=0, box_px_xyxy=(0.0, 0.0, side / 2, side / 2))
    shown = Message("tool", ("<tool_response>", crop, "</tool_response>"))
    turns = (
        Turn((7, 8, 4), (-0.1, -0.2, -0.01), "zoom(0.25)", StopReason.TOOL_CALL, shown, calls=(call,)),
        Turn((1, 2 if right else 5, 3, 4), (-0.01, -0.7, -0.02, -0.01), "<answer>K</answer>", StopReason.ANSWERED),
    )
    terms = {"answer": float(right), "format": 0.2 if right else 0.1}
    reward = Reward(sum(terms.values()), terms, "right" if right else "wrong", "K" if right else "Z")
    rollout = Rollout(sample.id, f"main/{place}", index, view, turns, StopReason.ANSWERED, reward=reward)
    worth = 0.8 if right else -0.8
    return Signal(rollout, advantages_NK=((worth,) * 3, (worth,) * 4), stream="grpo")


def look_of(signal: Signal, second: float = 0.3) -> Look:
    """Made-up candidates; with a teacher's view ``second`` nats at the second token and a thousandth elsewhere."""
    turns = [turn.action_ids_K for turn in signal.rollout.turns]
    student = [[((token, 0.75), (6, 0.2), (5, 0.05)) for token in ids] for ids in turns]
    if signal.teacher_view is None:
        return Look(student)
    teacher = [[((5, 0.9), (token, 0.1)) if k == 1 else ((token, 1.0),) for k, token in enumerate(ids)] for ids in turns]
    nats = [[second if k == 1 else 0.001 for k in range(len(ids))] for ids in turns]
    return Look(student, teacher, nats, {"divergence": "jsd", "beta": 0.5, "view": "teacher"})


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
            recorder.rollouts(step, signals, [look_of(one, 0.6 * left + 0.02) for one in signals])
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


def write_tools(folder: Path, steps: tuple[int, ...] = (1, 5, 10), config: str = TOOLS_CONFIG) -> Recorder:
    """A run with tools and rewards that is still going: two right and two wrong rollouts of one sample at each of ``steps``."""
    recorder = Recorder(folder, config, (), token_text=TEXTS.__getitem__, seen_px=lambda picture: (28, 28))
    recorder.rewind(0)
    sample = next(iter(samples("detail", "train", 1)))
    for step in range(1, steps[-1] + 1):
        values = {"loss/total": 1 / step, "reward/total": 0.1 * step, "reward/answer": 0.05 * step, "reward/format": 0.05 * step}
        recorder.metrics(step, {**values, "rollout/turns": 2.0, "rollout/calls": 1.0 + 0.1 * step, "stop/answered": 1.0})
        if step in steps:
            signals = [tool_signal(sample, step, index, index % 2 == 0) for index in range(4)]
            recorder.rollouts(step, signals, [look_of(one) for one in signals])
    recorder.close()
    return recorder


def write_staged(folder: Path, complete: bool = True) -> None:
    """A run of two stages, 5 steps of distillation and 10 with tools, as their folders lie in the staged run's."""
    folder.mkdir(parents=True)
    text = "name: staged\nstages:\n- {name: look, steps: 5}\n- {name: tools, steps: 10}\n- {name: polish, steps: 20}\n"
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    write(folder / "stages" / "01_look", steps=5)
    write_tools(folder / "stages" / "02_tools")
    if complete:
        report = evaluation(Recorder(folder, text, ()), list(samples("detail", "test", 3)), 0, {"full": 0.5})
        for number, value in enumerate((0.5, 0.625, 0.75)):
            found = {**report, "step": number, "views": {"full": {**report["views"]["full"], "accuracy": value}}}
            write_atomically(folder / "evaluations" / f"stage_{number:02d}.json", json.dumps(found))
        (folder / "summary.json").write_text('{"name": "staged", "steps": 15}', encoding="utf-8")


if __name__ == "__main__":
    from foveate.train.report import write_report

    folder = Path(sys.argv[1])
    write(folder)
    sys.stdout.write(json.dumps({"report": str(write_report(folder))}) + "\n")
