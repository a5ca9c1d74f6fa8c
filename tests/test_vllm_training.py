"""GRPO with vLLM beside the trainer: it learns as with the Hugging Face engine, and not without its weights kept up."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
from wide_models import wide_random

from foveate.train.engine_settings import HFEnginePart, VLLMEnginePart
from foveate.train.loop import step
from foveate.train.recipes import load_recipe
from foveate.train.run import Run
from foveate.train.sync import build_engine
from foveate.vlm.load import save

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here; make test-vllm has an environment for it"
)
STEPS = 20
SETTINGS = [
    f"steps={STEPS}", "prompts=4", "rollouts=4", "threads=1", "loggers=[]", "anchors=[]", "eval=null",
    "checkpoint.best_view=null", "sampling.max_new_tokens=32", "optimizer.lr=0.002", "optimizer.warmup_steps=0",
    "signals=[{kind: grpo, reward: {terms: {length: {term: length, max_tokens: 32}}}, correction: truncate}]",
]  # fmt: skip


def train(kind: str, model: Path, folder: Path, synced: bool = True) -> list[dict[str, float]]:
    """Metrics of every step. The reward is the length; one token in sixteen ends a turn, so that lengths differ."""
    run = Run(load_recipe("tiny/grpo", [*SETTINGS, f"model.name={model}"]), folder)
    renderer = run.vlm.renderer
    renderer.stop_ids = (*renderer.stop_ids, *range(0, renderer.tokenizer.vocab_size, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a CPU cannot sleep
        part = HFEnginePart() if kind == "hf" else VLLMEnginePart(max_tokens=1024)
        run.engine = run.player = build_engine(part, run.vlm, None)  # type: ignore[assignment]
    if not synced:
        run.sync = dict  # type: ignore[method-assign]  # the loop's own sync after each update is left out
    for _ in range(STEPS):
        step(run)
    run.close()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_grpo_learns_as_with_the_hugging_face_engine(tmp_path: Path) -> None:
    save(wide_random("qwen2_5_vl"), tmp_path / "model")
    metrics = {kind: train(kind, tmp_path / "model", tmp_path / kind) for kind in ("hf", "vllm")}
    for kind, rows in metrics.items():
        assert len(rows) == STEPS, kind
        reward = [row["reward/total"] for row in rows]
        assert sum(reward[-5:]) / 5 > sum(reward[:5]) / 5 + 0.15, f"{kind}: {reward}"
        assert max(row["loss/grpo/mismatch_kl"] for row in rows) < 1e-8, kind
    stale = train("vllm", tmp_path / "model", tmp_path / "stale", synced=False)
    assert stale[0]["loss/grpo/mismatch_kl"] < 1e-8
    assert stale[-1]["loss/grpo/mismatch_kl"] > 1e-3
