"""A staged run: stage after stage in one folder, each a run of its own that starts from what an earlier one has left.

    config.yaml                 the resolved recipe, all stages
    stages/01_perception/       a run folder like any other, and stage.json: where its weights came from
    stages/02_text/ ...
    evaluations/stage_00.json   the report set before the first stage, and after each
    summary.json                written at the end

What is complete is not done again; what was killed goes on where its checkpoint is (law 9). Of several ranks, rank 0 alone
writes, measures `report`, and says what it finds in the folder, so that all go through the same stages. Source of the idea: "From
Seeing to Thinking" (2605.20177), whose release chains three runs by hand; gates and the choice of the best checkpoint are ours.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..vlm.load import load
from .checkpoint import folder_of
from .config import RunConfig
from .loop import train
from .ranks import joined
from .recipes import dump_recipe
from .recorder import write_atomically
from .report import write_report
from .run import Evaluator, Origin
from .staged import STAGE, Stage, StagedConfig, before_kept, folder_name, rehearsing

_OF_A_STAGE = ("steps", "seconds", "rollouts", "best_step", "best_value", "ended")

EvaluatorOf = Callable[[RunConfig, Path], Evaluator | None]
Finish = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


class GateMissed(RuntimeError):
    """A stage did not reach what its gate asks for. The message says which number, where, and what to change."""


@dataclass(frozen=True)
class Left:
    """What a complete stage has left."""

    folder: Path
    summary: Mapping[str, Any]

    def checkpoint(self, which: str) -> str:
        """The folder of its ``best`` or ``last`` checkpoint. The best is the first one with the best accuracy."""
        return str(folder_of(self.folder, int(self.summary["best_step" if which == "best" else "steps"])))


def train_stages(config: StagedConfig, folder: Path, evaluator_of: EvaluatorOf, finish: Finish) -> dict[str, Any]:
    """Train all stages, or go on; return the summary that is written to ``summary.json``.

    ``evaluator_of(recipe, run folder)`` makes the evaluator of a recipe's ``eval``; ``finish`` is that of `loop.train`.
    Raises `GateMissed`, and whatever `loop.train` raises.
    """
    ranks = joined(config.stages[0].run.distributed.minutes)
    ranks.first(partial(_begin, config, folder))
    left: dict[str, Left] = {}
    model = config.stages[0].run.model.name

    def report(number: int, weights: str) -> dict[str, Any]:
        return ranks.first(lambda: _report(config, folder, number, weights, evaluator_of))

    reports = [report(0, _path(config.source_of(0), model, left))]
    for place, stage in enumerate(rehearsing(config.stages)):
        own = folder / "stages" / folder_name(place, stage)
        if not ranks.first((own / "summary.json").is_file):
            origin = _origin(config, place, left)
            note = {"name": stage.name, "kind": stage.kind, "start": config.source_of(place), "model": origin.model}
            ranks.first(partial(write_atomically, own / "stage.json", json.dumps(note, indent=1) + "\n"))
            train(stage.run, own, evaluator_of(stage.run, own), finish, origin)
            _forget()
            ranks.first(partial(write_report, own))
        left[stage.name] = Left(own, ranks.first(partial(_read, own / "summary.json")))
        check_gate(stage, place, left[stage.name])
        reports.append(report(place + 1, left[stage.name].checkpoint(before_kept(stage))))
    return ranks.first(lambda: _end(config, folder, left, reports, finish))


def _begin(config: StagedConfig, folder: Path) -> None:
    (folder / "summary.json").unlink(missing_ok=True)
    write_atomically(folder / "config.yaml", dump_recipe(config))


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _forget() -> None:
    """Free a model whose run is over: a run's parts hold each other, and the next model needs the room."""
    gc.collect()
    torch.cuda.empty_cache()


def check_gate(stage: Stage, place: int, left: Left) -> None:
    """Raise `GateMissed` when the best accuracy of a stage is below what its gate asks for, unless it says to go on."""
    gate = stage.run.gate
    if gate is None or gate.least is None or gate.on_miss == "go_on":
        return
    best, step = float(left.summary["best_value"]), int(left.summary["best_step"])
    if best >= gate.least:
        return
    raise GateMissed(
        f"stage {stage.name} missed its gate: the best accuracy in view {gate.view} was {best:.4f}, at step {step} of "
        f"{left.summary['steps']}, and gate.least is {gate.least:g} (every evaluation: {left.folder / 'evaluations'}). "
        f"To take it as it is: stages.{place}.gate.on_miss=go_on, or a lower stages.{place}.gate.least; the same command then "
        f"goes on with the next stage. To train it anew with other settings (stages.{place}.steps is {stage.run.steps}): change "
        f"them and add --redo {stage.name}; the stages before it stay."
    )


def _origin(config: StagedConfig, place: int, left: Mapping[str, Left]) -> Origin:
    stage = config.stages[place]
    teacher = stage.run.teacher.path
    if teacher is not None and teacher.startswith(STAGE):
        taught_by = config.named(teacher.removeprefix(STAGE))
        teacher = left[taught_by.name].checkpoint(before_kept(taught_by))
    return Origin(_path(config.source_of(place), stage.run.model.name, left), teacher)


def _path(source: str, model: str, left: Mapping[str, Left]) -> str:
    if source.startswith(STAGE):
        name, _, which = source.removeprefix(STAGE).rpartition("/")
        return left[name].checkpoint(which)
    return model if source == "model" else source


def _report(config: StagedConfig, folder: Path, number: int, weights: str, evaluator_of: EvaluatorOf) -> dict[str, Any]:
    """The report set with some weights, measured once; {} where the recipe reports nothing."""
    if config.report is None:
        return {}
    path = folder / "evaluations" / f"stage_{number:02d}.json"
    if not path.is_file():
        last = config.stages[max(0, number - 1)].run
        evaluator = evaluator_of(last.model_copy(update={"eval": config.report, "gate": None}), folder)
        assert evaluator is not None
        part = last.model
        vlm = load(weights, dtype=part.dtype, device=part.device, min_pixels=part.min_pixels, max_pixels=part.max_pixels)
        write_atomically(path, json.dumps({"weights": weights, **evaluator(vlm, number, True)}, indent=1))
        del vlm
        _forget()
    return _read(path)


def _end(
    config: StagedConfig, folder: Path, left: Mapping[str, Left], reports: list[dict[str, Any]], finish: Finish
) -> dict[str, Any]:
    summary = _summary(config, left, reports, finish)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def _summary(
    config: StagedConfig, left: Mapping[str, Left], reports: list[dict[str, Any]], finish: Finish
) -> dict[str, Any]:
    """What a person asks for first: the report before and after, every stage in a line, cost in all."""
    summaries = [one.summary for one in left.values()]
    result: dict[str, Any] = {"name": config.name, "model": config.stages[0].run.model.name, "seed": config.stages[0].run.seed}
    for label, found in (("before", reports[0]), ("after", reports[-1])):
        for view, numbers in found.get("views", {}).items():
            result[f"{view}_{label}"] = numbers["accuracy"]
            result.setdefault("ci95", {})[f"{view}_{label}"] = numbers["ci95"]
            result.setdefault("n", {})[view] = numbers["n"]
    for name in ("steps", "seconds", "rollouts", "action_tokens"):
        result[name] = round(sum(one[name] for one in summaries), 1)
    result["stages"] = [
        {
            "name": stage.name,
            "kind": stage.kind,
            "start": config.source_of(place),
            **{key: left[stage.name].summary.get(key) for key in _OF_A_STAGE},
            "report": {view: numbers["accuracy"] for view, numbers in reports[place + 1].get("views", {}).items()},
        }
        for place, stage in enumerate(config.stages)
    ]
    last = config.stages[-1]
    folder = left[last.name].folder
    result["checkpoint"] = str(Path(left[last.name].checkpoint(before_kept(last))).relative_to(folder.parent.parent))
    return result | (finish(reports[0], reports[-1]) if config.report else {})
