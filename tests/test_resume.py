"""Law 9: killed at any moment and resumed, a run logs the same numbers as one that was never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.train import checkpoint
from foveate.train.config import RunConfig
from foveate.train.loop import Interrupted, train
from foveate.train.ranks import Ranks
from foveate.train.recipes import load_recipe
from foveate.vlm.load import VLM, load

SMALL = [
    "steps=6",
    "prompts=3",
    "threads=1",
    "checkpoint.every=2",
    "eval.every=1",
    "loggers=[]",
    "anchors.0.prompts=1",
    "anchors.1.prompts=1",
    "anchors.1.pool=2",
    "anchors.1.max_new_tokens=12",
]
CASES = {
    "tiny/vision_opd": ["teacher.weights=ema", "teacher.rate=0.3"],
    "tiny/grpo": ["prompts=2", "updates_per_step=2", "teacher.weights=sync", "teacher.every=2"],
    "tiny/sft": ["optimizer.name=adamw"],
}


class Killed(BaseException):
    """Stands for a kill that leaves no time for anything."""


def evaluator(die_at: tuple[int, ...] = ()):
    waiting = list(die_at)

    def evaluate(vlm: VLM, step: int, whole: bool) -> dict[str, Any]:
        if step in waiting:
            waiting.remove(step)
            raise Killed
        total = float(sum(one.detach().double().sum() for one in vlm.model.parameters()))
        return {
            "step": step,
            "whole": whole,
            "views": {name: {"accuracy": total, "right": [1], "ci95": [0, 1], "n": 1} for name in ("full", "crop", "zoom")},
        }

    return evaluate


def logged(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.mark.parametrize("recipe", CASES)
def test_a_killed_and_resumed_run_logs_the_same_numbers(recipe: str, tmp_path: Path) -> None:
    config = load_recipe(recipe, [*SMALL, *CASES[recipe]])
    train(config, tmp_path / "whole", evaluator())
    deaths = (1, 3, 5)
    evaluate = evaluator(deaths)
    for _ in deaths:
        with pytest.raises(Killed):
            train(config, tmp_path / "killed", evaluate)
    train(config, tmp_path / "killed", evaluate)
    want, have = logged(tmp_path / "whole"), logged(tmp_path / "killed")
    assert have == want
    assert len({row["loss/total"] for row in want if "loss/total" in row}) == 6, "the run must learn something at every step"


def test_a_run_resumed_from_another_state_is_seen(tmp_path: Path) -> None:
    config = load_recipe("tiny/vision_opd", [*SMALL, *CASES["tiny/vision_opd"]])
    train(config, tmp_path / "whole", evaluator())
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", evaluator((3,)))
    path = checkpoint.folder_of(tmp_path / "killed", 2) / "trainer" / "teacher.pt"
    state = torch.load(path)
    torch.save({name: value + 0.01 if value.is_floating_point() else value for name, value in state.items()}, path)
    train(config, tmp_path / "killed", evaluator())
    assert logged(tmp_path / "killed")[-1] != logged(tmp_path / "whole")[-1]


def small_config() -> RunConfig:
    return load_recipe("tiny/sft", [*SMALL, "eval=null", "checkpoint.best_view=null", "anchors=[]"])


def test_sigterm_saves_and_a_second_start_goes_on(tmp_path: Path) -> None:
    config = small_config().model_copy(update={"steps": 400})
    run = tmp_path / "run"
    code = (
        "from pathlib import Path\nfrom foveate.train.recipes import parse_recipe\nfrom foveate.train.loop import train\n"
        f"train(parse_recipe({config.model_dump(mode='json')!r}), Path({str(run)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1].decode()
    assert "run the same command again to go on" in errors
    stopped = checkpoint.steps_saved(run)[-1]
    assert stopped == logged(run)[-1]["step"]
    assert 1 <= stopped < 400


def test_one_who_asks_while_ranks_agree_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[bool] = []

    def slow(ranks: Ranks, flag: bool) -> bool:
        if not flag and False not in met:
            signal.raise_signal(signal.SIGTERM)
        met.append(flag)
        return flag

    monkeypatch.setattr(Ranks, "any", slow)
    with pytest.raises(Interrupted):
        train(small_config(), tmp_path)
    assert checkpoint.steps_saved(tmp_path)[-1] == 2, "asked for behind step 1, when it was too late for that"


def test_checkpoints_load_as_they_are_and_old_ones_go(tmp_path: Path) -> None:
    train(small_config(), tmp_path)
    assert checkpoint.steps_saved(tmp_path) == [4, 6]
    folder = checkpoint.folder_of(tmp_path, 6)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    AutoProcessor.from_pretrained(folder)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
    ours = load(str(folder)).model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert any(
        not torch.equal(value, before)
        for (_, value), before in zip(
            sorted(ours.items()), (one for _, one in sorted(load("tiny").model.state_dict().items())), strict=True
        )
    )


def test_a_broken_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    train(small_config(), tmp_path)
    (checkpoint.folder_of(tmp_path, 6) / "trainer" / "state.json").write_text("{")
    with pytest.raises(checkpoint.CheckpointError, match=r"step_000006: not a checkpoint of this run .* remove the folder"):
        train(small_config(), tmp_path)


def test_the_interruption_is_an_error_of_its_own() -> None:
    assert issubclass(Interrupted, RuntimeError)
