"""Staged runs, rollout servers and engines under two ranks: the numbers are those of one process, and all end alike."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stages_worker import Alive, played
from test_distributed import finish, rows
from test_engines import FakeServer
from test_stages import recipe

from foveate.runs import run_recipe
from foveate.train import checkpoint, ranks
from foveate.train.loop import train
from foveate.train.ranks import Ranks
from foveate.train.recipes import load_any
from foveate.vlm.generate import HFEngine, Sampling
from foveate.vlm.load import load
from foveate.vlm.segments import Segment

HAVE_ZERO = importlib.util.find_spec("deepspeed") is not None
WORKER = Path(__file__).with_name("stages_worker.py")
needs_deepspeed = pytest.mark.skipif(not HAVE_ZERO, reason="deepspeed is not installed")
STEPS = 3


class SamplingServer(FakeServer):
    """Samples from the weights that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.vlm, self.lock = load("tiny", dtype="float32"), threading.Lock()
        self.syncs = 0
        self.last_sync = 99
        """A sync after this one fails."""

    def reply(self, path: str, body: Any) -> Any:
        with self.lock:
            if path == "/inference/v1/generate":
                return self.sampled(body)
            found = super().reply(path, body)
            if path == "/collective_rpc" and body["method"] == "take_weights":
                self.vlm.model.load_state_dict(self.weights, strict=False)
                self.syncs += 1
                return {"results": [["lm_head.weight"] if self.syncs > self.last_sync else []]}
            return found

    def sampled(self, body: Any) -> Any:
        ids, asked = np.asarray(body["token_ids"], np.int64), body["sampling_params"]
        context = Segment(ids, np.tile(np.arange(len(ids)), (3, 1)), len(ids))
        sampling = Sampling(asked["temperature"], asked["top_p"], asked["top_k"], asked["max_tokens"])
        ((done,),) = HFEngine(self.vlm).generate([context], [[asked["seed"]]], sampling)
        content = [{"logprob": one} for one in done.logprobs]
        choice = {"token_ids": list(done.ids), "finish_reason": "stop", "logprobs": {"content": content}}
        return {"prompt_token_ids": ids.tolist(), "choices": [choice]}

    @property
    def work(self) -> Counter[str]:
        """What it was asked to sample."""
        return Counter(f"{body['sampling_params']['seed']} {body['token_ids']}" for body in self.asked("/inference/v1/generate"))


def engine_line(servers: Sequence[SamplingServer], folder: Path) -> str:
    return f"engine={{kind: vllm-server, urls: [{', '.join(one.url for one in servers)}], folder: {folder / 'weights'}}}"


def as_killed(source: Path, target: Path) -> None:
    """A staged run as it was when it was killed in its second stage, after the checkpoint of step 2."""
    shutil.copytree(source, target)
    own = target / "stages" / "02_think"
    for gone in (target / "summary.json", target / "report.html", target / "evaluations" / "stage_02.json", own / "summary.json"):
        gone.unlink()
    for step in checkpoint.steps_saved(own):
        if step > 2:
            shutil.rmtree(checkpoint.folder_of(own, step))


class Told:
    """Folders of one process and of two ranks, and the servers of each."""

    def __init__(self, one: Path, two: Path) -> None:
        self.one, self.two = one, two
        self.config, self.alive = load_any(two / "recipe.yaml"), Alive()
        self.alone, self.shared, self.broken = ([SamplingServer() for _ in range(number)] for number in (2, 2, 1))
        self.broken[0].last_sync = 2

    def said(self, name: str) -> list[dict[str, Any]]:
        """Of each rank: exit status, text, models alive."""
        return [json.loads((self.two / f"{name}.{rank}.json").read_text()) for rank in range(2)]


def two_ranks(*command: str) -> subprocess.Popen[str]:
    """Started by DeepSpeed's launcher where it is installed: what it puts into the environment is enough."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    deepspeed = ["deepspeed.launcher.runner", "--num_gpus", "2", "--no_local_rank", "--master_port", port]
    env = {**os.environ, "PYTHONPATH": str(WORKER.parent.parent), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", *(deepspeed if HAVE_ZERO else torchrun), *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
    )  # fmt: skip


def small() -> dict[str, Any]:
    """Perception, then RL that rehearses it: questions about pictures, of which the embedded model answers some."""
    hard = {"synth": "detail", "n": 8, "kinds": ["earlier"]}
    made = recipe(prompts=3, rollouts=3, optimizer={"name": "adamw", "lr": 3e-4, "warmup_steps": 0})
    made["stages"][0]["steps"] = 2
    made["stages"][1] |= {"rehearse": 0.5, "steps": 3, "data": {"synth": "detail", "n": 64, "seed": 6}}
    made["eval"]["data"], made["report"]["data"] = {**hard, "split": "dev"}, {**hard, "split": "test"}
    return made


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    (two / "recipe.yaml").write_text(yaml.safe_dump(small()))
    told = Told(one, two)
    with pytest.MonkeyPatch.context() as patch:
        told.alive.watch(patch)
        run_recipe(told.config, one / "staged", "")
    as_killed(one / "staged", two / "two")
    lines = {"engine": engine_line(told.shared, two), "broken": engine_line(told.broken, two), "deepspeed": HAVE_ZERO}
    (two / "told.json").write_text(json.dumps(lines))
    process = two_ranks(str(WORKER), str(two))
    train(played(engine_line(told.alone, one)), one / "served")
    finish(process, 600)
    yield told
    for server in (*told.alone, *told.shared, *told.broken):
        server.http.shutdown()


def same(mine: Path, theirs: Path) -> None:
    """What two runs measured, to four digits: AdamW makes whole steps of gradients that are nothing but rounding."""
    have, want = rows(mine), rows(theirs)
    assert [set(row) for row in have] == [set(row) for row in want]
    for own, other in zip(have, want, strict=True):
        numbers = {name: value for name, value in other.items() if not isinstance(value, str)}
        assert {name: own[name] for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-4)


def same_stages(mine: Path, theirs: Path) -> None:
    """Metrics of each stage, the report after each, and what the summary says of them."""
    for name in ("01_look", "02_think"):
        same(mine / "stages" / name, theirs / "stages" / name)
    assert sum(row.get("optim/grad_norm", 0) > 0.01 for row in rows(theirs / "stages" / "02_think")) >= 2, "it must learn"
    for number in range(3):
        name = f"evaluations/stage_{number:02d}.json"
        views = [json.loads((folder / name).read_text())["views"] for folder in (mine, theirs)]
        assert views[0] == views[1]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (mine, theirs)]
    for summary in summaries:
        for one in (summary, *summary["stages"]):
            one.pop("seconds")
        del summary["command"]
    assert summaries[0] == summaries[1]


# ---- stages ---------------------------------------------------------------------------------------------------------------


@needs_deepspeed
def test_two_ranks_train_stages_as_one_process_does(told: Told) -> None:
    """Two ranks from the first step (ZeRO-3), then the second stage again (ZeRO-1), and on from one process's run (ZeRO-2)."""
    assert [one["status"] for name in ("three", "two", "redone") for one in told.said(name)] == [0] * 6
    assert "going on after 1 of 2 stages" in told.said("two")[0]["said"]
    for run in ("three", "two"):
        same_stages(told.two / run, told.one / "staged")
        assert (told.two / run / "report.html").is_file()
    first, again = (told.two / "three" / name / "stages" / "02_think" for name in ("set_aside/1", ""))
    same(first, again)
    starts = told.two / "three" / "stages" / "01_look" / "starts.jsonl"
    assert len(starts.read_text().splitlines()) == 1  # by rank 0 alone, and not again for the stage after it
    assert ["of training" in one["said"] for one in told.said("three")] == [True, False]


@needs_deepspeed
def test_one_process_goes_on_where_ranks_were_killed(told: Told, tmp_path: Path) -> None:
    as_killed(told.two / "three", tmp_path / "run")
    run_recipe(told.config, tmp_path / "run", "")
    same_stages(tmp_path / "run", told.one / "staged")


def test_a_missed_gate_ends_all_ranks_alike(told: Told) -> None:
    first, second = told.said("missed")
    assert (first["status"], second["status"]) == (1, 1)
    assert first["said"].count("stage look missed its gate") == 1
    assert "missed" not in second["said"]


def test_all_go_on_after_a_gate_that_may_be_missed_and_sigterm_to_one_stops_all(told: Told, tmp_path: Path) -> None:
    first, second = told.said("stopped")
    assert (first["status"], second["status"]) == (130, 130)
    assert "going on after 1 of 2 stages" in first["said"]
    assert first["said"].count("stopped after step 1 of 3; run the same command again") == 1
    assert "stopped" not in second["said"]
    shutil.copytree(told.two / "zero", tmp_path / "run")
    run_recipe(told.config, tmp_path / "run", "")
    same_stages(tmp_path / "run", told.one / "staged")


def test_ranks_wait_for_each_other_as_long_as_the_recipe_says(
    foveate: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command line joins them, before anything else does: the first call decides."""

    def joined(minutes: float) -> Ranks:
        raise ValueError(f"waits for {minutes} minutes")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "joined", joined)
    status, _, said = foveate("train", "tiny/grpo", "distributed.minutes=7", "--run", str(tmp_path))
    assert (status, "waits for 7.0 minutes" in said) == (2, True)


def test_models_of_former_stages_are_let_go(told: Told) -> None:
    """Rank 0 makes five models (a report, a stage, a report, a stage, a report), the others one a stage."""
    assert told.alive.counts == [0] * 5
    for name, models in {"missed": 2, "stopped": 2, **({"three": 5, "two": 2, "redone": 2} if HAVE_ZERO else {})}.items():
        first, second = told.said(name)
        assert first["alive"] == [0] * models, name
        assert not any(second["alive"]), name
    assert not HAVE_ZERO or len(told.said("three")[1]["alive"]) == 2


# ---- engines --------------------------------------------------------------------------------------------------------------


def test_servers_are_driven_by_two_ranks_as_by_one_process(told: Told) -> None:
    same(told.two / "served", told.one / "served")
    for mine, theirs in zip(told.shared, told.alone, strict=True):
        assert mine.work == theirs.work  # whoever asks, a prompt goes to the same server
        assert mine.work.total() == STEPS * 4 * 3 // 2


def test_weights_go_once_to_each_server_and_caches_are_reset(told: Told) -> None:
    for server in told.shared:
        changes = [path for path, _ in server.seen if path not in ("/inference/v1/generate", "/weight_info")]
        reset = ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/update_weight_version", "/resume"]
        assert changes == ["/health", "/collective_rpc", *(["/pause?mode=abort", "/collective_rpc", *reset] * (1 + STEPS))]
        names = [body["new_version"].rpartition("-")[0] for body in server.asked("/update_weight_version")]
        assert names == [f"weights-{version:06d}" for version in range(1 + STEPS)]
    assert not list((told.two / "weights").iterdir())


def test_a_server_that_fails_while_it_takes_weights_stops_all_ranks(told: Told) -> None:
    first, second = told.said("broken")
    url = told.broken[0].url
    assert (first["status"], second["status"]) == (2, 2)
    assert f"Error: {url}: no weights came for 1 of its parameters" in first["said"]
    assert f"Error: rank 0 has stopped (EngineError: {url}" in second["said"]
    assert not any("Traceback" in one["said"] for one in (first, second))
    assert [row["step"] for row in rows(told.two / "broken")] == [1]


def test_a_late_rank_does_not_take_the_first_checkpoint_for_one_to_go_on_from(told: Told) -> None:
    assert [row["step"] for row in rows(told.two / "late")] == [1]
    assert rows(told.two / "late")[0]["loss/total"] == pytest.approx(rows(told.one / "served")[0]["loss/total"], abs=1e-4)


def test_every_rank_keeps_its_own_engine_up(told: Told) -> None:
    same(told.two / "beside", told.one / "served")


def test_what_fails_on_one_rank_is_told_to_the_others(told: Told) -> None:
    assert [one["said"] for one in told.said("agreed")] == [
        "OtherRankError: rank 1 has stopped (ValueError: no luck)", "ValueError: no luck",
    ]  # fmt: skip
