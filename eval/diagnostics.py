"""What an accuracy rests on: the picture, the evidence in it, the tools, the text; and whether the model knows when it is right.

- the regional-to-global gap (Vision-OPD, 2605.18740): full picture, evidence crop, full picture with the evidence box drawn;
- clean minus corrupted (Hallucination-as-Cue, 2604.03179), over the corruptions of `corrupt`;
- tools whose pictures are grey or of another region: a tool that helps as much then was not looked at;
- calibration of stated confidences (RLCR, 2507.16806): ECE, Brier, AUROC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from ..datasets.crops import CropSpec
from ..datasets.views import ImageOp, ViewSpec
from ..rewards.terms.answer import confidence
from ..visual_tools.spec import ToolsSpec
from .compare import paired
from .records import Mode, Row
from .tables import by_mode, percent, signed

CLEAN = "clean"
_AROUND_FRAC = 0.25


# --- the regional-to-global gap ------------------------------------------------------------------------------------------------


def gap_modes(base: Mode) -> tuple[Mode, Mode, Mode]:
    """``base`` in the modes "full", "crop" (the evidence crop in the picture's place) and "boxed" (the box drawn into the
    picture): prompt and limits are the same, only pixels differ. The items need evidence boxes."""
    ops: dict[str, ImageOp] = {"full": "keep", "crop": "replace_by_crop", "boxed": "overlay_box"}
    return tuple(replace(base, name=name, view=_shown(base.view, name, op)) for name, op in ops.items())  # type: ignore[return-value]


def _shown(view: ViewSpec, name: str, op: ImageOp) -> ViewSpec:
    around = CropSpec(padding_frac=_AROUND_FRAC)
    return ViewSpec.model_validate({**view.model_dump(), "name": name, "image": (op,), "crop": around.model_dump()})


def regional_gap(
    rows: Sequence[Row], full: str = "full", crop: str = "crop", boxed: str = "boxed", seed: int = 0
) -> dict[str, Any]:
    """How much better a model reads the evidence than the picture around it, out of rows of these three modes.

    ``{"n", "full", "crop", "boxed", "gap", "hint", "rest", "categories"}``: accuracies as in `resample.estimate`; ``gap`` = crop
    - full, ``hint`` = boxed - full (what knowing where is worth), ``rest`` = crop - boxed (what seeing it large is worth on
    top), each ``{"difference", "ci95", "p_value"}`` on the same items; ``categories`` the gap of each. "boxed", "hint" and "rest"
    are None without rows of that mode. `ValueError` when full or crop is missing.
    """
    modes = by_mode(rows)
    for name in (full, crop):
        if name not in modes:
            raise ValueError(f"no rows of the mode {name!r}; there are {', '.join(modes) or 'none'}; run the modes of gap_modes")
    gap = paired(modes[full], modes[crop], seed=seed)
    hint, rest = None, None
    if boxed in modes:
        hint, rest = paired(modes[full], modes[boxed], seed=seed), paired(modes[boxed], modes[crop], seed=seed)
    return {
        "n": gap["n"],
        "full": gap["a"],
        "crop": gap["b"],
        "boxed": None if hint is None else hint["b"],
        "gap": _step(gap),
        "hint": None if hint is None else _step(hint),
        "rest": None if rest is None else _step(rest),
        "categories": gap["categories"],
    }


def _step(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("difference", "ci95", "p_value")}


# --- clean minus corrupted -----------------------------------------------------------------------------------------------------


def clean_minus_corrupted(
    table: Mapping[str, Mapping[str, Sequence[Row]]], *, intersect: bool = False, seed: int = 0
) -> list[dict[str, Any]]:
    """All models and corruptions in one table. ``table[model][how]`` are rows; ``how`` is "clean" or a corruption's name.

    One entry for each model, corruption and mode: ``{"model", "how", "mode", "n", "clean", "corrupted", "difference", "ci95",
    "p_value", "num_questions_differ", "categories"}``. ``difference`` is clean minus corrupted in mean score, paired; near 0 the
    model did not need what was taken away. The paper's warning: look at categories that need the picture and those that do not
    apart. `ValueError` when a model has no clean rows, or lacks a mode among them.
    """
    found = []
    for model, columns in table.items():
        if CLEAN not in columns:
            raise ValueError(
                f"{model}: no rows under {CLEAN!r}; there are {', '.join(columns) or 'none'}; evaluate the items as they are too"
            )
        clean = by_mode(columns[CLEAN])
        for how, rows in columns.items():
            if how == CLEAN:
                continue
            for mode, worse in by_mode(rows).items():
                if mode not in clean:
                    raise ValueError(
                        f"{model}: the mode {mode} was evaluated under {how} and not under {CLEAN}; evaluate it there too"
                    )
                step = paired(worse, clean[mode], intersect=intersect, seed=seed)
                entry = {
                    "model": model,
                    "how": how,
                    "mode": mode,
                    "n": step["n"],
                    "clean": step["b"]["value"],
                    "corrupted": step["a"]["value"],
                }
                kept = ("difference", "ci95", "p_value", "num_questions_differ", "categories")
                found.append(entry | {name: step[name] for name in kept})
    return found


def render_clean_minus_corrupted(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table as rows of text, the header first."""
    rows = [["model", "corruption", "mode", "items", "clean %", "corrupted %", "clean − corrupted", "95 % interval"]]
    for one in found:
        ends = f"{signed(one['ci95'][0])} to {signed(one['ci95'][1])}"
        shares = [percent(one["clean"]), percent(one["corrupted"]), signed(one["difference"]), ends]
        rows.append([one["model"], one["how"].replace("_", " "), one["mode"], str(one["n"]), *shares])
    return rows


# --- tools that show nothing ---------------------------------------------------------------------------------------------------


def ablated(mode: Mode, how: Literal["grey", "blank", "other"] = "grey") -> Mode:
    """The mode with tools whose pictures are grey, white or of another region; its name ends in ``-grey`` and so on.

    `ValueError` for a mode without tools.
    """
    if mode.tools is None:
        raise ValueError(f"the mode {mode.name} has no tools to ablate; give one with tools")
    tools = ToolsSpec.model_validate({**mode.tools.model_dump(), "ablate": how})
    return replace(mode, name=f"{mode.name}-{how}", tools=tools)


def tool_use(rows: Sequence[Row], tools: str = "tools", without: str = "direct", seed: int = 0) -> dict[str, dict[str, Any]]:
    """What tools are worth, out of rows of the mode ``tools``, of its ablations (see `ablated`) and of ``without``.

    ``{"tools-grey": {"n", "a", "b", "difference", "ci95", "p_value"}, ..., "direct": {...}}``: the mode with tools (b) minus each
    of the others (a). Nothing lost to grey pictures: the model does not look at what it zooms into. `ValueError` when there is
    nothing to compare.
    """
    modes = by_mode(rows)
    others = [name for name in modes if name == without or name.startswith(f"{tools}-")]
    if tools not in modes or not others:
        raise ValueError(
            f"rows of the mode {tools!r} and of {tools}-grey, {tools}-other or {without} are needed; "
            f"there are {', '.join(modes) or 'none'}"
        )
    kept = ("n", "a", "b", "difference", "ci95", "p_value")
    steps = {name: paired(modes[name], modes[tools], seed=seed) for name in others}
    return {name: {key: step[key] for key in kept} for name, step in steps.items()}


# --- calibration ---------------------------------------------------------------------------------------------------------------


def stated(row: Row) -> float | None:
    """The confidence, 0 to 1, that the last turn states in confidence tags; None without one."""
    texts = row.get("texts") or ()
    return confidence(str(texts[-1])) if texts else None


def calibration(rows: Sequence[Row], num_bins: int = 10) -> dict[str, Any]:
    """How well stated confidences fit the outcomes, over answers that state one (RLCR, 2507.16806, and its evaluation).

    ``{"n", "stated_frac", "accuracy", "confidence", "ece", "brier", "auroc", "bins"}``. ``ece``: mean distance between confidence
    and accuracy over ``num_bins`` equal bins of confidence, weighted by their answers, 0 to 1; ``brier``: mean of (confidence -
    right)^2; ``auroc``: the chance that a right answer states more than a wrong one, ties half; None when all are right or
    all wrong. ``bins`` are ``{"low", "high", "n", "confidence", "accuracy"}`` of those that are not empty. Answers that state
    none are left out and counted by ``stated_frac``: a model that is silent where it is unsure looks better than it is. Without
    any, the numbers are None.
    """
    said = [
        (value, row["outcome"] == "right") for row in rows if row["outcome"] != "unscored" and (value := stated(row)) is not None
    ]
    result: dict[str, Any] = {"n": len(said), "stated_frac": len(said) / len(rows) if rows else 0.0, "bins": []}
    if not said:
        return result | dict.fromkeys(("accuracy", "confidence", "ece", "brier", "auroc"))
    sure, right = np.array([value for value, _ in said]), np.array([float(was) for _, was in said])
    # a bin holds its upper end, the first its lower one too: 1.0 is in the last
    places = np.clip(np.ceil(sure * num_bins - 1e-9).astype(int) - 1, 0, num_bins - 1)
    bins = [
        {
            "low": place / num_bins,
            "high": (place + 1) / num_bins,
            "n": int((places == place).sum()),
            "confidence": float(sure[places == place].mean()),
            "accuracy": float(right[places == place].mean()),
        }
        for place in np.unique(places)
    ]
    return result | {
        "accuracy": float(right.mean()),
        "confidence": float(sure.mean()),
        "ece": sum(one["n"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / len(said),
        "brier": float(((sure - right) ** 2).mean()),
        "auroc": _auroc(sure, right),
        "bins": bins,
    }


def _auroc(sure: np.ndarray, right: np.ndarray) -> float | None:
    """Mann-Whitney's statistic as a share of all pairs of a right and a wrong answer."""
    num_right = int(right.sum())
    num_wrong = len(right) - num_right
    if not num_right or not num_wrong:
        return None
    ranks = float(rankdata(sure)[right == 1].sum())
    return (ranks - num_right * (num_right + 1) / 2) / (num_right * num_wrong)
