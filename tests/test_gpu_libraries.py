"""The GPU checks of DeepSpeed and vLLM with small sizes on the CPU; that of vLLM with an engine of ours where it is missing."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.gpu_checks import libraries
from foveate.gpu_checks.spec import Notes, Settings
from foveate.gpu_checks.table import CHECKS
from foveate.train.distributed import Spread
from foveate.vlm.engines import CopyEngine
from foveate.vlm.generate import Completion, HFEngine, Sampling
from foveate.vlm.load import VLM

QUICK = Settings("cpu", quick=True)
BY_NAME = {check.name: check for check in CHECKS}
HAVE_VLLM = importlib.util.find_spec("vllm") is not None


def notes_of(name: str, tmp_path: Path) -> Notes:
    check = BY_NAME[name]
    return Notes(tmp_path / "notes.json", check.rows, check.columns)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed (DS_BUILD_OPS=0 pip install deepspeed)")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def test_zero_gives_the_gradient_of_a_plain_step(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    notes = notes_of("zero", tmp_path)
    libraries.zero(QUICK, notes)
    assert notes.problems == []
    assert set(notes.values) == set(BY_NAME["zero"].rows)
    assert notes.values["plain"]["norm_share"] == 0
    assert all(0 < float(notes.values[row]["norm_share"]) < 1e-4 for row in ("zero2", "zero3")), "by another way"
    assert (os.environ["RANK"], "WORLD_SIZE" in os.environ) == ("7", False), "it leaves no trace"
    assert not torch.distributed.is_initialized()


def test_a_wrong_gradient_under_zero_is_noticed(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed starts once in a process; here its engine is stood in for."""

    class Wrong(Spread):
        def norm(self) -> float:
            gradients = [one.grad for one in self.vlm.model.parameters() if one.grad is not None]
            return 1.5 * float(torch.stack([one.square().sum() for one in gradients]).sum().sqrt())

    right = libraries.spread_of
    monkeypatch.setattr(libraries, "STAGES", {"plain": 0, "zero2": 2})
    monkeypatch.setattr(
        libraries,
        "spread_of",
        lambda vlm, stage, ranks: Wrong(ranks, vlm, right(vlm, 0, ranks).optimizer) if stage else right(vlm, 0, ranks),
    )
    notes = notes_of("zero", tmp_path)
    libraries.zero(QUICK, notes)
    assert notes.problems == ["zero2: the gradient differs from that of the plain step by 50%"]


class Copied(CopyEngine):
    """A copy of the model that samples; ``deaf``: it takes no new weights; ``off``: it reports other log-probs."""

    deaf, off = False, 0.0

    def __init__(self, vlm: VLM) -> None:
        super().__init__(vlm.renderer, int(vlm.model.config.image_token_id))
        self.own = dataclasses.replace(vlm, model=copy.deepcopy(vlm.model))
        self.closed = False

    def generate(self, contexts: Any, seeds: Sequence[Sequence[int]], sampling: Sampling, **_: Any) -> list[list[Completion]]:
        done = HFEngine(self.own).generate(contexts, seeds, sampling)
        if not self.off:
            return done
        return [
            [dataclasses.replace(one, logprobs=tuple(value + self.off for value in one.logprobs)) for one in own] for own in done
        ]

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        if not self.deaf:
            self.own.model.load_state_dict(dict(weights))

    def close(self) -> None:
        self.closed = True


def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **faults: Any) -> Notes:
    made: list[Copied] = []

    def build(part: Any, vlm: VLM, autocast: Any) -> Copied:
        made.append(Copied(vlm))
        vars(made[0]).update(faults)
        return made[0]

    monkeypatch.setattr(libraries, "build_engine", build)
    if not HAVE_VLLM:
        monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    notes = notes_of("vllm", tmp_path)
    libraries.vllm(QUICK, notes)
    assert made[0].closed
    assert set(notes.values) == set(BY_NAME["vllm"].rows)
    return notes


def test_an_engine_that_takes_the_weights_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = checked(tmp_path, monkeypatch)
    assert notes.problems == []
    assert float(notes.values["stale"]["mean_nats"]) > 0.1
    assert notes.values["synced"]["greedy"] == 1.0
    rates = [float(notes.values[row]["tokens_per_s"]) for row in ("vllm", "hf", "ratio")]
    assert rates[2] == pytest.approx(rates[0] / rates[1])


def test_an_engine_that_stays_as_it_was_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = checked(tmp_path, monkeypatch, deaf=True).problems
    assert any(one.startswith("synced: the log-probs differ by") for one in problems)
    assert any(one.startswith("synced: only") and "greedy" in one for one in problems)
    assert any("the sync proves nothing" in one for one in problems)
    assert not any(one.startswith("fresh") for one in problems)


def test_wrong_log_probs_fail_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = checked(tmp_path, monkeypatch, off=0.01).problems
    assert problems[0] == "fresh: the log-probs differ by 1.0e-02 nats at most and 1.0e-02 on average"


def test_what_follows_a_different_token_is_not_compared() -> None:
    assert libraries.same_beginning((1, 2, 3, 4), (1, 2, 9, 4)) == 0.5
    assert libraries.same_beginning((1, 2), (1, 2)) == 1.0
    assert libraries.same_beginning((1, 2), (1, 2, 3, 4)) == 0.5


@pytest.mark.skipif(not HAVE_VLLM, reason="vLLM is not installed here; make test-vllm has an environment for it")
def test_vllm_itself(tmp_path: Path) -> None:
    notes = notes_of("vllm", tmp_path)
    libraries.vllm(QUICK, notes)
    assert notes.problems == []
