"""Recipes with stages: what the file may say, and how every stage becomes a whole recipe of its own.

    name: see_then_think
    model: tiny                       # keys beside `stages` are common to all stages
    stages:
      - {name: perception, kind: rl, steps: 200, data: {...}, gate: {view: letter, least: 0.9}}
      - {name: text, kind: rl, steps: 150, data: {...}, model: {freeze: [vision]}, rehearse: 0.25}
    report: {data: {..., split: test}, views: {...}}

A stage's own keys win over the common ones. Of ``model``, ``sampling``, ``limits``, ``optimizer``, ``teacher``, ``eval``,
``checkpoint`` and ``gate`` the single entries do; of everything else (data, views, signals ...) the whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic

from ..datasets.crops import Part
from ..datasets.spec import DataSpec, MixPart
from .config import EvalPart, RunConfig
from .teacher_settings import check_stages

MERGED = ("model", "sampling", "limits", "optimizer", "teacher", "eval", "checkpoint", "gate")
OWN_KEYS = ("name", "kind", "start", "rehearse")
"""Keys of a stage that no plain recipe has (its name aside)."""
STAGE = "stage:"
Kind = Literal["sft", "rl", "opd", "rl+opd"]
_SIGNALS: dict[str, set[str]] = {"sft": {"sft"}, "rl": {"grpo"}, "opd": {"distill"}, "rl+opd": {"grpo", "distill"}}


class Stage(Part):
    """One stage: its place in the curriculum, and its whole recipe."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    kind: Kind
    """What it learns from: sft, rl (grpo), opd (distill), or both."""
    start: str = ""
    """Weights to start from: best or last of the stage before, model (the recipe's), stage:NAME (its best, or its last where it
    keeps no best), or a path. Default: model for the first stage, then best where the stage before keeps one, else last."""
    rehearse: float = pydantic.Field(0.0, ge=0, lt=1)
    """Share of the prompts that come from the data of the stages before, in equal parts."""
    run: RunConfig

    @pydantic.model_validator(mode="after")
    def _kind(self) -> Stage:
        found = {signal.kind for signal in self.run.signals}
        if found != _SIGNALS[self.kind]:
            raise ValueError(
                f"stage {self.name}: kind {self.kind} has the signals {' and '.join(sorted(_SIGNALS[self.kind]))}, "
                f"here are {' and '.join(sorted(found))}; change one of the two"
            )
        return self


class StagedConfig(Part):
    """A recipe with stages: one run folder, one command, one resume."""

    name: str
    stages: tuple[Stage, ...] = pydantic.Field(min_length=1)
    report: EvalPart | None = None
    """What is measured before the first stage and after each, and chooses nothing: the test set."""

    @pydantic.model_validator(mode="after")
    def _sense(self) -> StagedConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: each needs a name of its own, got {', '.join(names)}")
        for place, stage in enumerate(self.stages):
            self._start_sense(stage, names[:place])
            for source in (stage.start, stage.run.teacher.path or ""):
                if source.startswith(STAGE) and source.removeprefix(STAGE) not in names[:place]:
                    raise ValueError(
                        f"stage {stage.name}: {source} is not a stage before it ({', '.join(names[:place]) or 'there is none'})"
                    )
            self._report_sense(stage)
        sources = [self.source_of(place) for place in range(len(names))]
        check_stages(names, sources, [stage.run for stage in self.stages])
        return self

    def _start_sense(self, stage: Stage, before: Sequence[str]) -> None:
        if stage.start in ("best", "last") and not before:
            raise ValueError(f"stage {stage.name}: start: {stage.start} means the stage before, and it is the first; use model")
        if stage.start == "best" and self.stages[len(before) - 1].run.best_view is None:
            raise ValueError(
                f"stage {stage.name}: start: best, but stage {before[-1]} keeps no best; give it a gate or checkpoint.best_view, "
                "or use start: last"
            )

    def _report_sense(self, stage: Stage) -> None:
        chosen = stage.run.best_view
        if self.report is None or chosen is None or stage.run.eval is None:
            return
        mine = stage.run.eval.extra.get(chosen, stage.run.eval.data)
        reported = [self.report.data, *self.report.extra.values()]
        if any(_same_items(mine, other) for other in reported):
            raise ValueError(
                f"stage {stage.name}: view {chosen} chooses its checkpoint on data that `report` measures; a reported test set "
                "chooses nothing: give eval a split of its own (synthetic: split: dev)"
            )

    def source_of(self, place: int) -> str:
        """Where stage ``place`` starts: "model", a path, or ``stage:NAME/best`` or ``stage:NAME/last``."""
        stage = self.stages[place]
        if stage.start in ("", "best", "last") and place:
            before = self.stages[place - 1]
            return f"{STAGE}{before.name}/{stage.start or before_kept(before)}"
        if stage.start.startswith(STAGE):
            return f"{stage.start}/{before_kept(self.named(stage.start.removeprefix(STAGE)))}"
        return stage.start or "model"

    def named(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def before_kept(stage: Stage) -> str:
    """What a stage leaves to the next: "best" where it keeps one."""
    return "last" if stage.run.best_view is None else "best"


def _same_items(one: DataSpec, other: DataSpec) -> bool:
    return one.model_dump(exclude={"n", "limit"}) == other.model_dump(exclude={"n", "limit"})


def split_stages(data: Mapping[str, Any], where: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """``(own keys, recipe)`` of every stage of a staged recipe file. Raises `ValueError` where a stage cannot be read."""
    common = {key: value for key, value in data.items() if key not in ("name", "stages", "report")}
    stages = data["stages"]
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"{where}: stages is a list of mappings, one for each stage")
    misplaced = sorted(set(common) & set(OWN_KEYS))
    if misplaced:
        raise ValueError(f"{where}: {', '.join(misplaced)} belongs to a single stage; move it into stages")
    found = []
    for place, stage in enumerate(stages):
        own = {key: stage[key] for key in OWN_KEYS if key in stage}
        recipe = merged(common, {key: value for key, value in stage.items() if key not in OWN_KEYS[1:]})
        recipe.setdefault("name", f"stage_{place + 1}")
        own.setdefault("name", recipe["name"])
        found.append((own, recipe))
    return found


def merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's keys over the common ones; the parts in `MERGED` entry by entry. A stage takes a part away with null."""
    result = dict(common)
    for key, value in own.items():
        below = _as_mapping(key, result.get(key))
        value = _as_mapping(key, value)
        both = key in MERGED and isinstance(below, dict) and isinstance(value, dict)
        result[key] = {**below, **value} if both else value
    return result


def _as_mapping(key: str, value: Any) -> Any:
    return {"name": value} if key == "model" and isinstance(value, str) else value


def rehearsing(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with the data of the ones before mixed in. Raises `ValueError` where that cannot be."""
    done: list[Stage] = []
    for place, stage in enumerate(stages):
        if not stage.rehearse:
            done.append(stage)
            continue
        if not place:
            raise ValueError(f"stage {stage.name}: rehearse: there is no stage before it")
        for other in stages[:place]:
            if other.run.student != stage.run.student:
                raise ValueError(
                    f"stage {stage.name}: rehearse: stage {other.name} shows its samples in another view "
                    f"({other.run.student.name or 'its own'}, here {stage.run.student.name or 'its own'}), and a stage has one; "
                    "keep that skill with an anchor instead"
                )
        parts = _parts(stage.run.data, 1 - stage.rehearse)
        for other in stages[:place]:
            parts += _parts(other.run.data, stage.rehearse / place)
        data = DataSpec(mix=tuple(parts))
        done.append(stage.model_copy(update={"run": stage.run.model_copy(update={"data": data})}))
    return tuple(done)


def _parts(data: DataSpec, weight: float) -> list[MixPart]:
    """The data as ingredients that weigh ``weight`` together; a mixture keeps its shares."""
    if not data.mix:
        return [MixPart(data=data, weight=weight)]
    total = sum(part.weight for part in data.mix)
    return [one for part in data.mix for one in _parts(part.data, weight * part.weight / total)]


def folder_name(place: int, stage: Stage) -> str:
    """The folder of a stage below ``stages/``; ``place`` counts from 0."""
    return f"{place + 1:02d}_{re.sub(r'[^A-Za-z0-9_.-]', '-', stage.name)}"
