"""The command line: mistakes are said in one paragraph with status 2, runs are never mixed or lost, the doctor measures."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pytest
import torch
from PIL import Image

from foveate.run_folder import default_folder, prepare, set_aside
from foveate.train.recipes import dump_recipe, load_recipe
from foveate.train.recorder import RunFolderError
from foveate.vlm.generate import Completion, HFEngine
from foveate.vlm.load import tiny_random

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "tiny/vision_op"), "did you mean tiny/vision_opd"),
        (("train", "tiny/vision_opd", "stepz=3"), "did you mean steps"),
        (("train", "tiny/vision_opd", "steps"), "expected key.sub=value"),
        (("train", "tiny/vision_opd", "teacher.weights=current"), "teacher.accept_collapse: true"),
        (("train", "tiny/vision_opd", "--resume", "--fresh"), "exclude each other"),
        (("train", "tiny/vision_opd", "--run", "nowhere", "--resume"), "nothing to resume"),
        (("data", "check", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("report", "nowhere"), "not a run folder"),
        (("recipes", "show", "grop"), "did you mean"),
    ],
)
def test_mistakes_are_said_in_one_paragraph(foveate: Run, arguments: tuple[str, ...], said: str) -> None:
    status, _, shown = foveate(*arguments)
    assert status == 2
    assert said in shown
    assert shown.startswith("Error:")
    assert "Traceback" not in shown


def test_debug_shows_where_an_error_came_from(foveate: Run) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        foveate("report", "nowhere", "--debug")


def test_the_version_is_told(foveate: Run) -> None:
    assert foveate("--version")[:2] == (0, f"foveate {importlib.metadata.version('foveate')}\n")


def test_recipes_are_listed_shown_and_described(foveate: Run) -> None:
    status, listed, _ = foveate("recipes")
    assert status == 0
    assert "tiny/vision_opd        Vision-OPD (2605.18740) on the embedded model" in listed
    starts = {len(line) - len(line.split(maxsplit=1)[1]) for line in listed.splitlines()}
    assert len(starts) == 1, "what they say about themselves stands in one column"
    _, shown, _ = foveate("recipes", "show", "tiny/vision_opd", "steps=7")
    assert "steps: 7\n" in shown
    _, schema, _ = foveate("recipes", "schema")
    assert [one["additionalProperties"] for one in json.loads(schema)["anyOf"]] == [False, False]


def test_a_run_folder_is_prepared_before_anything_heavy(tmp_path: Path) -> None:
    config = load_recipe("tiny/vision_opd", ["steps=5"])
    folder = tmp_path / "run"
    assert prepare(folder, config).state == "new"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="holds no run"):
        prepare(folder, config, fresh=True)
    (folder / "config.yaml").write_text(dump_recipe(config), encoding="utf-8")
    assert prepare(folder, config).state == "unfinished"
    assert prepare(folder, config, resume=True).state == "unfinished"
    with pytest.raises(RunFolderError, match="steps: 5 there, 6 now"):
        prepare(folder, load_recipe("tiny/vision_opd", ["steps=6"]))
    (folder / "summary.json").write_text("{}", encoding="utf-8")
    assert prepare(folder, config).state == "complete"
    assert prepare(folder, config, fresh=True).state == "new"
    assert (tmp_path / "run.before-1" / "notes.txt").read_text(encoding="utf-8") == "mine", "nothing is deleted"
    folder.mkdir()
    assert set_aside(folder) == tmp_path / "run.before-2"


def test_default_folders() -> None:
    assert default_folder("tiny/vision_opd") == Path("runs/tiny-vision_opd")
    assert default_folder(str(Path(__file__).parent.parent / "recipes/tiny/sft.yaml")) == Path("runs/sft")


def test_a_complete_run_is_shown_and_not_trained_again(foveate: Run, tmp_path: Path) -> None:
    config = load_recipe("tiny/vision_opd")
    summary = {
        "steps": 360, "n": {"full": 1024}, "full_before": 0.68, "full_after": 0.815, "seconds": 130.0, "rollouts": 17280,
        "ci95": {"full_before": [0.65, 0.71], "full_after": [0.79, 0.84]}, "gain_ci95": {"full_gain": [0.112, 0.158]},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(dump_recipe(config), encoding="utf-8")
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    status, shown, _ = foveate("train", "tiny/vision_opd", "--run", str(tmp_path))
    assert status == 0
    assert "complete; --fresh trains again" in shown
    assert "68.0 [65.0, 71.0]  81.5 [79.0, 84.0]  +13.5 [+11.2, +15.8]" in shown
    assert "2 min 10 s of training, 17,280 rollouts" in shown
    assert not (tmp_path / "metrics.jsonl").exists()


def test_data_check_and_crops(foveate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save("a.png")
    good = {"image": "a.png", "question": "What?", "answer": "this", "boxes_px_xyxy": [[10, 10, 40, 40]]}
    Path("good.jsonl").write_text(json.dumps(good) + "\n", encoding="utf-8")
    Path("bad.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, "image": "gone.png"}) + "\n", encoding="utf-8")
    assert foveate("data", "check", "good.jsonl")[0] == 0
    status, shown, _ = foveate("data", "check", "bad.jsonl")
    assert status == 1
    assert "gone.png" in shown
    assert foveate("data", "crops", "good.jsonl", "out/crops.jsonl", "--scale", "2")[0] == 0
    row = json.loads(Path("out/crops.jsonl").read_text(encoding="utf-8"))
    with Image.open(Path("out") / row["crops"][0]) as crop:
        assert crop.size == (60, 60)
    status, _, said = foveate("data", "crops", "good.jsonl", "out/crops.csv")
    assert status == 2
    assert "ends in .jsonl" in said


def test_report_writes_the_page(foveate: Run, tmp_path: Path) -> None:
    fake_run.write(tmp_path / "run", steps=2)
    status, shown, _ = foveate("report", str(tmp_path / "run"))
    assert status == 0
    assert shown.strip() == str(tmp_path / "run" / "report.html")


class Shifted(HFEngine):
    """An engine whose log-probs are those of the token before: the mistake that the doctor is for."""

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
        return [
            [Completion(one.ids, (one.logprobs[-1], *one.logprobs[:-1]), one.stop) for one in own]
            for own in super().generate(*args, **kwargs)
        ]


def test_the_doctor_measures_law_7_and_sees_a_shift() -> None:
    from foveate.doctor import TOLERANCE, logprob_difference

    vlm = tiny_random("qwen2_5_vl")
    largest, mean, tokens = logprob_difference(vlm, num_prompts=2, n=2, max_new_tokens=6)
    assert tokens > 8
    assert mean <= largest <= TOLERANCE[torch.float32]
    assert logprob_difference(vlm, Shifted(vlm), num_prompts=2, n=2, max_new_tokens=6)[0] > 0.01


def test_the_doctor_names_what_is_here(foveate: Run) -> None:
    from foveate import doctor

    lines = {finding.topic: finding for finding in (*doctor.versions(), doctor.torchvision(), *doctor.devices())}
    assert lines["torch"].ok
    assert lines["transformers"].ok
    assert lines["datasets"].ok
    assert lines["torchvision"].ok
    assert "threads" in lines["CPU"].text
