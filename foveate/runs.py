"""Where training meets evaluation: a recipe's held-out split becomes the evaluator that the loop calls."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .datasets.spec import load_data
from .eval.holdout import HeldOut, HoldoutEvaluator
from .eval.intervals import paired_gain_interval
from .launched import is_first
from .train.config import RunConfig
from .train.loop import train
from .train.recorder import IMAGES
from .train.report import write_report
from .train.staged import StagedConfig
from .train.stages import train_stages
from .vlm.images import Picture


def holdout_evaluator(config: RunConfig, images: Path | None = None) -> HoldoutEvaluator | None:
    """The evaluator of a recipe's ``eval`` part, or None when it has none. Pictures of its cases are kept in ``images``."""
    part = config.eval
    if part is None:
        return None
    own = {name: load_data(spec) for name, spec in part.extra.items()}
    common = load_data(part.data)
    views = {
        name: HeldOut(own.get(name, common), view, part.tools[name] or config.tools, part.max_turns)
        if name in part.tools
        else HeldOut(own.get(name, common), view)
        for name, view in part.views.items()
    }
    store = None if images is None else functools.partial(Picture.save_png, folder=images)
    return HoldoutEvaluator(views, part.max_new_tokens, part.during, store=store)


def run_recipe(config: RunConfig | StagedConfig, folder: Path, command: str) -> dict[str, Any]:
    """Train a recipe in ``folder`` (or go on), write the report, return the summary."""

    def finish(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        gains = {
            f"{view}_gain": list(paired_gain_interval(before["views"][view]["right"], found["right"]))
            for view, found in after.get("views", {}).items()
            if before
        }
        return {"gain_ci95": gains, "command": command}

    if isinstance(config, StagedConfig):
        summary = train_stages(config, folder, lambda recipe, own: holdout_evaluator(recipe, own / IMAGES), finish)
    else:
        summary = train(config, folder, holdout_evaluator(config, folder / IMAGES), finish)
    if is_first():
        write_report(folder)
    return summary
