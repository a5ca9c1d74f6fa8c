"""Which folder a run writes to, and what is done when something is there already."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .train.checkpoint import steps_saved
from .train.config import RunConfig
from .train.recipes import dump_recipe
from .train.recorder import RunFolderError, check_same_recipe
from .train.staged import StagedConfig, folder_name, rehearsing


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready for a run: ``state`` says what `prepare` found in it, ``note`` says it to a person."""

    folder: Path
    state: Literal["new", "unfinished", "complete"]
    note: str = ""


def default_folder(recipe: str) -> Path:
    """``runs/`` and the name of the recipe: ``tiny/vision_opd`` gives ``runs/tiny-vision_opd``, a file its own name."""
    path = Path(recipe)
    name = path.stem if path.is_file() else recipe.removesuffix(".yaml").strip("/").replace("/", "-")
    return Path("runs") / name


def prepare(
    folder: Path, config: RunConfig | StagedConfig, resume: bool = False, fresh: bool = False, redo: str | None = None
) -> Prepared:
    """Look before anything heavy is loaded. ``fresh`` sets an earlier run aside, ``resume`` insists on one, ``redo`` sets a stage
    of a staged run aside, with those after it.

    Raises `RunFolderError` when the folder holds another recipe's run, something that is no run, or nothing to resume.
    """
    if redo is not None and not isinstance(config, StagedConfig):
        raise RunFolderError(f"--redo {redo}: this recipe has no stages; --fresh trains it anew")
    if resume and fresh:
        raise RunFolderError("--resume and --fresh exclude each other: go on, or start anew")
    taken = folder.exists() and any(folder.iterdir())
    if taken and not (folder / "config.yaml").is_file():
        raise RunFolderError(f"{folder} is not empty and holds no run (no config.yaml); give another folder with --run")
    if taken and fresh:
        return Prepared(folder, "new", f"the run that was there is now {set_aside(folder)}")
    if resume and not taken:
        raise RunFolderError(
            f"{folder}: nothing to resume there; leave --resume out to start, or give the run's folder with --run"
        )
    if not taken:
        return Prepared(folder, "new")
    if isinstance(config, StagedConfig):
        return _prepare_stages(folder, config, redo)
    check_same_recipe(folder, dump_recipe(config))
    if (folder / "summary.json").is_file():
        return Prepared(folder, "complete", f"{folder} holds this run already, complete; --fresh trains again")
    steps = steps_saved(folder)
    return Prepared(
        folder,
        "unfinished",
        f"going on after step {steps[-1]} of {config.steps}" if steps else "starting again: no checkpoint yet",
    )


def _prepare_stages(folder: Path, config: StagedConfig, redo: str | None) -> Prepared:
    names = [stage.name for stage in config.stages]
    note = ""
    if redo is not None:
        if redo not in names:
            raise RunFolderError(f"--redo {redo}: the recipe has the stages {', '.join(names)}")
        note = f"; what was there is now in {_redo(folder, names.index(redo))}"
    done = [place for place in range(len(names)) if _stage_state(folder, config, place) == "complete"]
    unchanged = (folder / "config.yaml").read_text(encoding="utf-8") == dump_recipe(config)
    if unchanged and (folder / "summary.json").is_file():
        return Prepared(folder, "complete", f"{folder} holds this run already, complete; --fresh trains again")
    return Prepared(folder, "unfinished", f"going on after {len(done)} of {len(names)} stages{note}")


def _stage_state(folder: Path, config: StagedConfig, place: int) -> Literal["new", "unfinished", "complete"]:
    stage = rehearsing(config.stages)[place]
    own = folder / "stages" / folder_name(place, stage)
    if not own.exists():
        return "new"
    try:
        check_same_recipe(own, dump_recipe(stage.run))
    except RunFolderError as error:
        raise RunFolderError(f"{error}; or --redo {stage.name} to set this stage and those after it aside") from error
    return "complete" if (own / "summary.json").is_file() else "unfinished"


def _redo(folder: Path, place: int) -> Path:
    """Move the stages from ``place`` (counted from 0) on, and what was measured after them, into ``set_aside/N``."""
    number = 1
    while (target := folder / "set_aside" / str(number)).exists():
        number += 1
    (target / "stages").mkdir(parents=True)
    (target / "evaluations").mkdir()
    for kind, first, pattern in (("stages", place + 1, r"(\d+)_.*"), ("evaluations", place + 1, r"stage_(\d+)\.json")):
        for path in sorted((folder / kind).glob("*")):
            match = re.fullmatch(pattern, path.name)
            if match and int(match[1]) >= first:
                path.rename(target / kind / path.name)
    (folder / "summary.json").unlink(missing_ok=True)
    return target


def set_aside(folder: Path) -> Path:
    """Rename a run folder to the first free ``<name>.before-N``: nothing is ever deleted."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    return folder.rename(target)


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a complete run."""
    path = folder / "summary.json"
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); the run is not complete, or the file was changed") from error
    return loaded
