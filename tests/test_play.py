"""`foveate rollout` and `foveate sample`: a model looks at somebody's own picture; its own trajectories become data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from video_files import greys, write_video

from foveate.datasets.scenes import samples
from foveate.datasets.trajectories import read_trajectories
from foveate.train.loop import train
from foveate.train.recipes import load_recipe
from foveate.vlm.load import save, tiny_random

Run = Callable[..., tuple[int, str, str]]


def test_a_rollout_on_a_picture_prints_its_turns_and_saves_what_was_seen(foveate: Run, tmp_path: Path) -> None:
    (sample,) = samples("place", "test", 1, seed=3)
    sample.images[0].rgb().save(tmp_path / "scene.png")
    status, said, _ = foveate("rollout", "tiny", str(tmp_path / "scene.png"), sample.question, "--to", str(tmp_path / "out"))
    assert status == 0
    assert "turn 2" in said
    assert f"<answer>{sample.answer}</answer>" in said
    assert "norm1000" in said, "the coordinate convention is shown"
    story = json.loads((tmp_path / "out" / "rollout.json").read_text())
    (call,) = story["turns"][0]["calls"]
    assert call["name"] == "zoom"
    x1, y1, x2, y2 = call["box_px_xyxy"]
    with Image.open(tmp_path / "out" / "1-tool.png") as crop:
        assert crop.size == (x2 - x1, y2 - y1)
    with Image.open(tmp_path / "out" / "0-prompt.png") as prompt:
        assert prompt.size == sample.images[0].size_px
        assert prompt.getpixel((int(x1), int(y1))) == (255, 0, 90), "the region is drawn on the picture it was cut from"
    assert story["turns"][0]["observation"]["content"][1]["image"] == "1-tool.png"


def test_a_video_is_shown_as_frames(foveate: Run, tmp_path: Path) -> None:
    save(tiny_random("qwen2_5_vl", seed=1), tmp_path / "model")
    write_video(tmp_path / "clip.mp4", greys(20))
    status, said, _ = foveate(
        "rollout", str(tmp_path / "model"), str(tmp_path / "clip.mp4"), "What moves?", "--tool", "select_frames",
        "--frames", "4", "--max-new-tokens", "8", "--turns", "2", "--to", str(tmp_path / "out"),
    )  # fmt: skip
    assert status == 0, said
    assert len(list((tmp_path / "out").glob("*-prompt.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tiny", "What is it?"), "give a picture or a video, then the question"),
        (("tiny", "nowhere.png", "What is it?"), "nowhere.png: cannot be read"),
        (("tiny", "{picture}", "What?", "--tool", "zom"), "did you mean zoom"),
        (("tiny", "{picture}", "What?", "--dialect", "hermess"), "did you mean"),
        (("tiny", "{text}", "What?"), "not a readable picture"),
    ],
)
def test_mistakes_are_said_in_one_paragraph(foveate: Run, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("not a picture")
    given = [one.format(picture=tmp_path / "a.png", text=tmp_path / "text.png") for one in arguments]
    status, _, shown = foveate("rollout", *given, "--to", str(tmp_path / "out"))
    assert status == 2
    assert said in " ".join(shown.split())


def test_kept_trajectories_are_data_for_a_cold_start(foveate: Run, tmp_path: Path) -> None:
    target = tmp_path / "own.jsonl"
    command = (
        "sample", "deepeyes", str(target), "rollouts=2", "threads=1", "--limit", "12", "--filters",
        '{"min_turns": 2, "max_per_sample": 1}',
    )  # fmt: skip
    status, said, _ = foveate(*command)
    assert status == 0
    read = read_trajectories(str(target))
    assert not read.problems
    assert 0 < len(read.trajectories) <= 12
    assert f"12 samples, {len(read.trajectories)} kept" in " ".join(said.split())
    before = target.read_bytes()
    assert foveate(*command)[0] == 0
    assert target.read_bytes() == before, "run again, it has nothing left to do"
    small = ["steps=1", "prompts=2", "eval=null", "checkpoint.best_view=null", "loggers=[]", "threads=1"]
    learn = ["signals=[{kind: sft, source: trajectories}]", f"data={{path: {target}}}", "rollouts=1"]
    train(load_recipe("deepeyes", [*small, *learn]), tmp_path / "run")
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["optim/grad_norm"] > 0
    assert row["loss/sft/nll"] < 1, "its own words are likely"


def test_filters_that_are_not_json_are_said(foveate: Run, tmp_path: Path) -> None:
    status, _, shown = foveate("sample", "deepeyes", str(tmp_path / "own.jsonl"), "--filters", "min_turns=2")
    assert status == 2
    assert "--filters is not JSON" in shown
