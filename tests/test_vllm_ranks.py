"""Real vLLM under two trainer ranks: an engine for each of them through two stages, and servers as the launch script has them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_vllm_servers import free_port
from wide_models import wide_random

from foveate.vlm.load import save

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here; make test-vllm has an environment for it"
)
ROOT = Path(__file__).resolve().parent.parent
TOKENS = 160
COMMON = {
    "data": {"synth": "detail", "n": 64},
    "student": "tiny.full", "prompts": 4, "rollouts": 4, "threads": 1, "loggers": [],
    "sampling": {"max_new_tokens": TOKENS},
    "signals": [
        {"kind": "grpo", "reward": {"terms": {"length": {"term": "length", "max_tokens": TOKENS}}}, "correction": "truncate"}
    ],
    "optimizer": {"name": "adamw", "lr": 0.002, "warmup_steps": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(wide_random("qwen2_5_vl"), folder)
    return folder


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "VLLM_CPU_OMP_THREADS_BIND": "nobind", **more}


def run(command: list[str], **more: str) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "Traceback" not in done.stderr, done.stderr[-6000:]


def metrics(folder: Path, steps: int) -> list[dict[str, float]]:
    """Of a run that learned something in which sampling and training agreed at every step, those after an update too."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert max(row["loss/grpo/mismatch_kl"] for row in rows) < 1e-7
    assert min(row["optim/grad_norm"] for row in rows) > 0
    return rows


def test_an_engine_for_each_rank_through_two_stages(model: Path, tmp_path: Path) -> None:
    engine = {"kind": "vllm", "dtype": "float32", "max_tokens": 1024}
    stage = {**COMMON, "model": {"name": str(model)}, "engine": engine, "steps": 2}
    stages = [{"name": name, "kind": "rl", **stage, "seed": seed} for seed, name in enumerate(("first", "second"))]
    (tmp_path / "two.yaml").write_text(json.dumps({"name": "two", "stages": stages}))  # JSON is YAML
    train = ["foveate", "train", str(tmp_path / "two.yaml"), "--run", str(tmp_path / "run")]
    run(["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "--", *train])
    for name in ("01_first", "02_second"):
        metrics(tmp_path / "run/stages" / name, 2)


def test_two_trainers_and_two_servers_as_they_are_launched(model: Path, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(json.dumps({**COMMON, "name": "one", "model": {"name": str(model)}, "steps": 3}))
    options = "--dtype float32 --max-model-len 1024 --enforce-eager --kv-cache-memory-bytes 268435456"
    command = ["bash", "launch/trainer_and_servers.sh", str(tmp_path / "one.yaml"), "--run", str(tmp_path / "run")]
    port = free_port()
    run(
        command, TRAINER_GPUS="0,1", SERVER_GPUS="2,3", SERVER_OPTIONS=options, PORT=str(port), WEIGHTS=str(tmp_path / "weights"),
        SKIP_DOCTOR="1",
    )  # fmt: skip
    metrics(tmp_path / "run", 3)
    left = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True).stdout
    assert f"--port {port}" not in left, "the servers end with the training"
