"""Which folder a run writes to, and what is done when something is there already."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .train.checkpoint import steps_saved
from .train.config import RunConfig
from .train.recipes import dump_recipe
from .train.recorder import RunFolderError, check_same_recipe


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


def prepare(folder: Path, config: RunConfig, resume: bool = False, fresh: bool = False) -> Prepared:
    """Look before anything heavy is loaded. ``fresh`` sets an earlier run aside, ``resume`` insists on one.

    Raises `RunFolderError` when the folder holds another recipe's run, something that is no run, or nothing to resume.
    """
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
    check_same_recipe(folder, dump_recipe(config))
    if (folder / "summary.json").is_file():
        return Prepared(folder, "complete", f"{folder} holds this run already, complete; --fresh trains again")
    steps = steps_saved(folder)
    return Prepared(
        folder,
        "unfinished",
        f"going on after step {steps[-1]} of {config.steps}" if steps else "starting again: no checkpoint yet",
    )


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
