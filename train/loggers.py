"""Where metrics go besides ``metrics.jsonl``: TensorBoard, and Weights & Biases or trackio when installed and asked for."""

from __future__ import annotations

import importlib
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import yaml


class MetricLogger(Protocol):
    """Takes the numbers of a step. ``resume`` comes before the first ``log`` when a run goes on after ``step``."""

    def resume(self, step: int) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardLogger:
    """Event files in ``<run>/tensorboard``; what a killed run logged after its last checkpoint is purged on resume."""

    def __init__(self, folder: Path, config_yaml: str) -> None:
        _module("tensorboard", "tensorboard")
        self._folder, self._config_yaml = folder / "tensorboard", config_yaml
        self._purge_step: int | None = None
        self._writer: Any = None

    def resume(self, step: int) -> None:
        self._purge_step = step + 1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
            self._writer.add_text("recipe", f"```yaml\n{self._config_yaml}\n```", global_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """One Weights & Biases run per run folder: a resumed run goes on in the same one, on its own step axis."""

    def __init__(self, folder: Path, config_yaml: str) -> None:
        self._wandb = _module("wandb", "wandb")
        self._folder, self._config = folder, yaml.safe_load(config_yaml)
        self._run: Any = None

    def resume(self, step: int) -> None:
        """Nothing to do: points are plotted over our own ``step``, so a repeated step lies on its first copy."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._run is None:
            self._run = self._wandb.init(
                project="foveate",
                name=self._folder.name,
                dir=str(self._folder),
                id=_run_id(self._folder),
                resume="allow",
                config=self._config,
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        self._run.log({"step": step, **values})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class TrackioLogger:
    """A local trackio project called foveate; ``trackio show`` opens it."""

    def __init__(self, folder: Path, config_yaml: str) -> None:
        self._trackio = _module("trackio", "trackio")
        self._folder, self._config = folder, yaml.safe_load(config_yaml)
        self._run: Any = None

    def resume(self, step: int) -> None:
        """Nothing to do: trackio keeps the step of each point."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._run is None:
            name = f"{self._folder.name}-{_run_id(self._folder)[:6]}"
            self._run = self._trackio.init(project="foveate", name=name, config=self._config, resume="allow")
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._trackio.finish()


LOGGERS: dict[str, type[TensorBoardLogger] | type[WandbLogger] | type[TrackioLogger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "trackio": TrackioLogger,
}


def open_loggers(names: Sequence[str], folder: Path, config_yaml: str) -> list[MetricLogger]:
    """The loggers of a recipe. Raises `ValueError` for a name that is not known or not installed."""
    unknown = [name for name in names if name not in LOGGERS]
    if unknown:
        raise ValueError(f"loggers: {unknown[0]!r} is not known; there are {', '.join(LOGGERS)}")
    return [LOGGERS[name](folder, config_yaml) for name in names]


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The values that a curve can show."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _module(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"loggers: {name} is not installed here; pip install {package}, or take it out of the recipe's loggers"
        ) from error


def _run_id(folder: Path) -> str:
    """A name for the run that survives a restart."""
    path = folder / "run_id"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
