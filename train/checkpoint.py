"""Checkpoints: a folder in Hugging Face format with what a run needs to go on exactly as if it had never stopped.

    checkpoints/step_000050/            loads with AutoModelForImageTextToText and AutoProcessor as it stands
                                        (with model.lora: the adapter alone, as PEFT writes it)
    checkpoints/step_000050/trainer/    optimizer.pt, teacher.pt (when it changes), state.json, one folder for each of `Parts`

A checkpoint is written beside its final name and renamed when complete, so a killed run leaves whole checkpoints only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ..vlm.load import VLM, load, save
from ..vlm.lora import read_adapter
from .optim import GradGuard, Optimizer
from .teacher import Teacher

_NAME = re.compile(r"step_(\d{6})$")


@dataclass
class Progress:
    """What changes from step to step besides weights."""

    step: int = 0
    """Finished steps."""
    seconds: float = 0.0
    rollouts: int = 0
    action_tokens: int = 0
    best_value: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Evaluations since the best one."""
    ended: str = ""
    """Why the gate ended the run before its last step; empty: it did not."""
    before: dict[str, Any] = field(default_factory=dict)
    """The evaluation before training."""


class Keeps(Protocol):
    """A part of a run with a state of its own: a sampler, a replay buffer, a controller."""

    def save(self, folder: Path) -> None:
        """Write the state into an empty folder."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises `ValueError` or `OSError` where that is not possible."""
        ...


Parts = Mapping[str, Keeps]
"""The parts of a run by name."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not belong to this run."""


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:06d}"


def steps_saved(run: Path) -> list[int]:
    """Steps of all complete checkpoints, in order."""
    root = run / "checkpoints"
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def write(
    run: Path, vlm: VLM, optimizer: Optimizer, teacher: Teacher | None, guard: GradGuard, parts: Parts, progress: Progress
) -> Path:
    """Save a checkpoint atomically and return its folder."""
    target = folder_of(run, progress.step)
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    save(vlm, unfinished)
    trainer = unfinished / "trainer"
    trainer.mkdir()
    torch.save(
        {"optimizer": optimizer.state_dict(), "guard": guard.state_dict(), "torch_rng": torch.get_rng_state()},
        trainer / "optimizer.pt",
    )
    if teacher is not None and teacher.changes:
        torch.save(teacher.state_dict(), trainer / "teacher.pt")
    for name, part in parts.items():
        (trainer / name).mkdir()
        part.save(trainer / name)
    (trainer / "state.json").write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
    for path in (*unfinished.rglob("*"), unfinished):
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unfinished, target)
    _sync(target.parent)
    return target


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def restore(
    run: Path, vlm: VLM, optimizer: Optimizer, teacher: Teacher | None, guard: GradGuard, parts: Parts
) -> Progress | None:
    """Load the last checkpoint into the given objects; None when there is none yet."""
    steps = steps_saved(run)
    if not steps:
        return None
    folder = folder_of(run, steps[-1])
    try:
        progress = Progress(**json.loads((folder / "trainer" / "state.json").read_text(encoding="utf-8")))
        kept = torch.load(folder / "trainer" / "optimizer.pt", map_location="cpu", weights_only=True)
        teacher_state = (
            torch.load(folder / "trainer" / "teacher.pt", map_location="cpu", weights_only=True)
            if teacher is not None and teacher.changes
            else None
        )
        for name, part in parts.items():
            part.load(folder / "trainer" / name)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: not a checkpoint of this run ({error}); remove the folder to go on from the one before "
            "it, or start afresh with --fresh"
        ) from error
    if vlm.adapter:
        read_adapter(vlm, folder)
    else:
        dtype = "float32" if vlm.dtype == torch.float32 else "bfloat16"
        vlm.model.load_state_dict(load(str(folder), dtype=dtype, device=str(vlm.device)).model.state_dict())
    optimizer.load_state_dict(kept["optimizer"])
    guard.load_state_dict(kept["guard"])
    torch.set_rng_state(kept["torch_rng"])
    if teacher is not None and teacher_state is not None:
        teacher.load_state_dict(teacher_state)
    return progress


def prune(run: Path, keep_last: int, best_step: int | None) -> None:
    """Remove all but the last ``keep_last`` checkpoints and the best one."""
    steps = steps_saved(run)
    for step in steps[:-keep_last]:
        if step != best_step:
            shutil.rmtree(folder_of(run, step))
