"""Photographs are real input: a folder of photos, a JSONL with boxes, two steps of Vision-OPD."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from foveate.runs import run_recipe
from foveate.train.checkpoint import folder_of
from foveate.train.recipes import load_recipe
from foveate.vlm.load import load, save, tiny_random


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs 2,000 pixels wide as JPEG, and a JSONL with four questions and their evidence boxes in pixels."""
    folder = tmp_path_factory.mktemp("photographs")
    names = []
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        image = Image.fromarray(pixels)
        image.resize((2000, round(image.height * 2000 / image.width)), Image.Resampling.LANCZOS).save(
            folder / f"{name}.jpg", quality=92
        )
        names.append(f"{name}.jpg")
    rows = [
        {
            "id": "roof",
            "image": names[0],
            "question": "What is at the tip of the roof?",
            "answer": "a spire",
            "boxes_px_xyxy": [[900, 120, 1150, 420]],
        },
        {
            "id": "wall",
            "image": names[0],
            "question": "What colour is the wall?",
            "answer": "red",
            "boxes_px_xyxy": [[300, 700, 620, 980]],
        },
        {
            "id": "petal",
            "image": names[1],
            "question": "How many petals are seen?",
            "answer": "12",
            "boxes_px_xyxy": [[700, 350, 1400, 1000]],
        },
        {
            "id": "leaf",
            "image": names[1],
            "question": "What is behind?",
            "answer": "leaves",
            "boxes_px_xyxy": [[0, 0, 500, 400], [1500, 900, 2000, 1334]],
        },
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
def test_vision_opd_trains_on_photographs(family: str, photographs: Path, tmp_path: Path) -> None:
    save(tiny_random(family, seed=3), tmp_path / "model")
    config = load_recipe(
        "paper/vision_opd",
        [
            f"model.name={tmp_path / 'model'}",
            "model.min_pixels=3136",
            "model.max_pixels=100352",
            f"data.path={photographs / 'train.jsonl'}",
            "data.format=null",
            "data.holdout_frac=0",
            "signals.0.teacher=vision_opd.teacher",
            "steps=2",
            "prompts=2",
            "rollouts=2",
            "sampling.max_new_tokens=6",
            "eval=null",
            "checkpoint.best_view=null",
            "checkpoint.every=1",
            "optimizer.lr=1e-3",
            "optimizer.warmup_steps=0",
            "log_rollouts_every=1",
            "loggers=[]",
            "threads=1",
        ],
    )
    run_recipe(config, tmp_path / "run", "test")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss/distill/divergence"] > 0 for row in rows)
    before, after = load(str(tmp_path / "model")).model.state_dict(), load(str(folder_of(tmp_path / "run", 2))).model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any("visual" in name for name in changed)
    assert any("language_model" in name for name in changed)
    shown = json.loads((tmp_path / "run" / "rollouts" / "step_000001.jsonl").read_text().splitlines()[0])
    sides = [
        [part["size_px"] for message in shown[role] for part in message["content"] if part["type"] == "image"]
        for role in ("student", "teacher")
    ]
    assert sides[0][0][0] == 2000, "the student sees the whole photograph, red box drawn in"
    assert sides[1] != sides[0], "the teacher sees crops of it"
    (seen_px,) = (part["seen_px"] for message in shown["student"] for part in message["content"] if part["type"] == "image")
    assert 3136 <= seen_px[0] * seen_px[1] <= 100352, "and what the model really saw is on record"
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
