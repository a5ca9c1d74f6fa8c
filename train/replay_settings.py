"""Settings of selective sample replay. The buffer is in `replay`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pydantic

from ..datasets.crops import Part

if TYPE_CHECKING:
    from .config import RunConfig


class ReplaySpec(Part):
    """Selective sample replay (VL-Rethinker, 2504.08837): rollouts with an advantage are learned from again where others have
    none."""

    kind: Literal["ssr"]
    form: Literal["fill", "redraw"] = "fill"
    """fill (the paper): rollouts without an advantage make room for earlier ones; the step keeps its size. redraw (the released
    code): the step learns from half as many rollouts as it played, drawn with repetition, its own before earlier ones."""
    alpha: float = pydantic.Field(1.0, ge=0)
    """A rollout is drawn in proportion to |advantage|^alpha."""
    size: int | None = pydantic.Field(None, ge=1)
    """Rollouts held at most, the newest; None: half as many as a step plays, as the released code has it."""
    max_age: int | None = pydantic.Field(None, ge=1)
    """Steps after which a rollout is forgotten; None: it goes when newer ones need its place."""


def check_replay(run: RunConfig) -> None:
    """Raise `ValueError` for a run whose rollouts cannot be replayed."""
    if run.replay is None:
        return
    if run.grpo is None:
        raise ValueError("replay: it replays what grpo learns from; add grpo to signals, or remove replay")
    if run.grpo.kl == "k1":
        raise ValueError("replay: kl: k1 changes the advantages, so that no rollout is without one; use k2 or k3")
    if run.grpo.kl != "none" and run.teacher.weights not in ("frozen", "current"):
        raise ValueError(
            f"replay: replayed rollouts keep the reference's log-probs, and with teacher.weights: {run.teacher.weights} the "
            "reference moves on; use frozen, or kl: none"
        )
