"""What `test_stages_ranks` starts on two ranks: ``stages_worker.py FOLDER``, told more in ``FOLDER/told.json``.

Commands run as they do on the command line; what each rank said, and its exit status, is left in ``FOLDER/NAME.RANK.json``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import io
import json
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate import cli, launched
from foveate.launched import leave
from foveate.train import checkpoint, loop, stages, sync
from foveate.train.config import RunConfig
from foveate.train.loop import train
from foveate.train.ranks import OtherRankError, joined
from foveate.train.recipes import load_recipe
from foveate.train.run import Run
from foveate.vlm.engines import CopyEngine
from foveate.vlm.generate import HFEngine
from foveate.vlm.load import VLM, load

PLAYED = [
    "steps=3", "prompts=4", "rollouts=3", "threads=1", "eval=null", "checkpoint.best_view=null", "checkpoint.every=9",
    "data={synth: detail, n: 64, seed: 5, as_text: true, kinds: [earlier]}", "loggers=[]", "anchors=[]",
    "optimizer.warmup_steps=0", "optimizer.lr=0.001", "sampling.max_new_tokens=8",
]  # fmt: skip
SHARDED = ["distributed.zero=3", "distributed.settings={stage3_param_persistence_threshold: 0}"]


def played(*changes: str) -> RunConfig:
    """GRPO on questions about scenes in words."""
    return load_recipe("tiny/grpo", [*PLAYED, *changes])


class Copied(CopyEngine):
    """Stands for vLLM beside the trainer: a copy of the model that knows what `sync` brought, and nothing while it sleeps."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__(vlm.renderer, 0)
        self.copy = dataclasses.replace(vlm, model=copy.deepcopy(vlm.model))
        for parameter in self.copy.model.parameters():
            parameter.data.zero_()

    def generate(self, contexts: Any, seeds: Any, sampling: Any, **more: Any) -> Any:
        self._check((), ())
        return HFEngine(self.copy).generate(contexts, seeds, sampling, **more)

    @torch.no_grad()
    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        own = dict(self.copy.model.named_parameters(remove_duplicate=False))
        for name, value in weights:
            own.pop(name).copy_(value)
        self._all_came([list(own)], "the copy")
        self._unusable = ""

    def sleep(self) -> None:
        for parameter in self.copy.model.parameters():
            parameter.data.zero_()
        self._unusable = "it sleeps"

    def close(self) -> None:
        self._unusable = "it was closed"


class Alive:
    """How many models of earlier runs and reports live when the next is made."""

    def __init__(self) -> None:
        self.models: list[weakref.ref[Any]] = []
        self.counts: list[int] = []

    def count(self) -> None:
        gc.disable()  # it is the run that must let go, not the collector that happens to come by
        self.counts.append(sum(one() is not None for one in self.models))

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        owner, load_before = self, load

        class Watched(Run):
            def __init__(self, *given: Any) -> None:
                owner.count()
                super().__init__(*given)
                owner.models += [weakref.ref(self.vlm.model)]

        def loaded(*given: Any, **more: Any) -> VLM:
            owner.count()
            vlm = load_before(*given, **more)
            owner.models += [weakref.ref(vlm.model)]
            return vlm

        patch.setattr(loop, "Run", Watched)
        patch.setattr(stages, "load", loaded)


def command(folder: Path, name: str, *arguments: str, stop_after: tuple[str, int] | None = None) -> None:
    """``foveate ARGUMENTS`` on this rank; rank 1 gets SIGTERM in a stage after a step."""
    ranks, said = joined(), io.StringIO()
    alive, before = Alive(), loop.step

    def step(run: Run) -> None:
        before(run)
        if stop_after == (run.config.name, run.progress.step) and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    status: Any = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", ["foveate", *arguments])
        patch.setattr(loop, "step", step)
        patch.setattr(launched, "_SECONDS_TO_SAY_WHY", 0.0)
        alive.watch(patch)
        try:
            cli.run_command()
        except SystemExit as stop:
            status = stop.code
        finally:
            gc.enable()
    note = {"status": status, "said": said.getvalue(), "alive": alive.counts}
    (folder / f"{name}.{ranks.rank}.json").write_text(json.dumps(note))
    ranks.wait()


def late(restore: Callable[..., Any]) -> Callable[..., Any]:
    """Rank 1 looks for a checkpoint when rank 0 has had the time to write the first one."""

    def restored(folder: Path, *given: Any) -> Any:
        deadline = time.monotonic() + 1.5 * joined().rank
        while time.monotonic() < deadline and not checkpoint.steps_saved(folder):
            time.sleep(0.05)
        return restore(folder, *given)

    return restored


def main(folder: Path) -> None:
    """All that two ranks do, one after the other."""
    ranks = joined()
    told = json.loads((folder / "told.json").read_text())

    def staged(name: str, run: str, *more: str, stop_after: tuple[str, int] | None = None) -> None:
        command(folder, name, "train", str(folder / "recipe.yaml"), "--run", str(folder / run), *more, stop_after=stop_after)

    staged("missed", "zero", "stages.0.gate.least=1.0")
    staged("stopped", "zero", "stages.0.gate.least=1.0", "stages.0.gate.on_miss=go_on", stop_after=("think", 1))
    if told["deepspeed"]:
        staged("three", "three", *SHARDED)
        staged("two", "two", "distributed.zero=2")  # begun by one process
        staged("redone", "three", "distributed.zero=1", "--redo", "think")
    shards = SHARDED if told["deepspeed"] else []
    train(played(*shards, told["engine"]), folder / "served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync, "_colocated", lambda part, vlm: Copied(vlm))
        train(played(*shards, "engine.kind=vllm"), folder / "beside")
        patch.setattr(checkpoint, "restore", late(checkpoint.restore))
        train(played("steps=1"), folder / "late")
    command(folder, "broken", "train", "tiny/grpo", *PLAYED, told["broken"], "--run", str(folder / "broken"))

    def work() -> int:
        if ranks.rank == 1:
            raise ValueError("no luck")
        return ranks.rank

    try:
        said = str(ranks.agreed(work))
    except (OtherRankError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
    (folder / f"agreed.{ranks.rank}.json").write_text(json.dumps({"said": said}))
    ranks.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
