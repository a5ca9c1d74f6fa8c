"""Whose weights the teacher has: the settings, and the rules that keep a student from being pulled to a teacher left behind.

Three rules, all from runs that were lost (TT-OPD, 2605.02943, post-mortems v29 to v31; Vision-OPD, 2605.18740, ablation):

1. A coefficient that was 0 does not rise onto a stale teacher: the teacher is brought up to the student first, or the recipe is
   refused. Stages make their teacher anew from the weights they start from, unless ``teacher.path`` names older ones.
2. A teacher that is the student itself (``current``) needs another brake.
3. ``only_if_better`` keeps a corrupted student out of the teacher's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import pydantic

from ..datasets.crops import Part
from .signals.distill_settings import DistillSignal
from .signals.schedule import Schedule, rises, share

if TYPE_CHECKING:
    from .config import RunConfig


class TeacherPart(Part):
    """Whose weights the teacher has."""

    weights: Literal["frozen", "ema", "sync", "trust_region", "current"] = "frozen"
    rate: float = pydantic.Field(0.05, gt=0, le=1)
    """ema: share of the student taken over each time. trust_region: share of the student's logits in the teacher's."""
    every: int | None = pydantic.Field(None, ge=1)
    """Steps between two times. ema: 1 when not given (TT-OPD: 5); sync: 50 when not given (TRACE: 10)."""
    reset_every: int | None = pydantic.Field(None, ge=1)
    """ema: steps between two hard copies of the student (TT-OPD: 30); None: none."""
    only_if_better: bool = False
    """ema, sync: what falls due waits for the next evaluation during training, and is done with the weights that were evaluated
    if they are the best so far; else it is left out."""
    path: str | None = None
    """Other weights to start from (same tokenizer); None: the student's own initial weights."""
    offload: Literal["none", "host"] = "none"
    """Where its weights lie. none: with the student's. host: in the host's memory, once for all ranks of a machine; a layer comes
    to the device for its forward pass and goes again."""
    accept_collapse: bool = False
    """`current` has no brake of its own: the published ablation fell to .59. Say true to run it all the same."""

    @pydantic.model_validator(mode="after")
    def _sense(self) -> TeacherPart:
        if self.weights == "current" and self.path is not None:
            raise ValueError("teacher.path makes no sense with weights: current; remove one")
        if self.every is not None and not self.follows:
            raise ValueError(f"teacher.every belongs to weights: ema and sync; with {self.weights} remove it")
        if self.only_if_better and not self.follows:
            raise ValueError(f"teacher.only_if_better belongs to weights: ema and sync; with {self.weights} remove it")
        if self.reset_every is not None and self.weights != "ema":
            raise ValueError("teacher.reset_every belongs to weights: ema; sync copies at every of its times")
        return self

    @property
    def follows(self) -> bool:
        """True where the weights move towards the student's."""
        return self.weights in ("ema", "sync")

    @property
    def steps_between(self) -> int:
        """`every` with its default."""
        return self.every or (50 if self.weights == "sync" else 1)


def copy_steps(run: RunConfig) -> frozenset[int]:
    """Steps (from 0) before which the teacher is made a copy of the student, because a coefficient is switched on there."""
    return frozenset(step for one in _distills(run) for step in rises(one.weight, run.steps))


def check_teacher(run: RunConfig) -> None:
    """Raise `ValueError` for a recipe whose teacher cannot do what it is asked for."""
    part = run.teacher
    if part.weights == "current":
        _check_current(run)
    if copy_steps(run) and part.weights != "current" and not part.follows:
        raise ValueError(
            "signals: distill.weight is switched on after off_steps, and a coefficient that was 0 may not rise onto a teacher "
            f"that was left behind: it is made a copy of the student first, which teacher.weights: {part.weights} forbids; use "
            "ema or sync, or weight the signal from the first step on, or make it a stage of its own"
        )
    if part.weights == "ema" and run.model.dtype == "bfloat16" and part.path is None and run.model.lora is None:
        raise ValueError(
            "teacher.weights: ema with model.dtype: bfloat16: the teacher would be kept in bfloat16 too, where an average's "
            "small steps vanish; use model.dtype: float32 (model.compute: bfloat16 computes in it), or teacher.weights: sync"
        )
    if part.only_if_better and (run.best_view is None or run.eval is None or not run.eval.every):
        raise ValueError(
            "teacher.only_if_better: the teacher follows the best evaluation during training; set eval.every, and "
            "checkpoint.best_view or a gate"
        )
    if run.sampling.player == "teacher":
        _check_player(run)
    if part.offload == "host":
        _check_offload(run)


def _check_current(run: RunConfig) -> None:
    part = run.teacher
    if not part.accept_collapse and brake(run) is None:
        raise ValueError(
            "teacher.weights: current lets student and teacher drift together and collapses (Vision-OPD's ablation: 0.59 against "
            "0.79); use frozen, ema or trust_region; or give it a brake: a KL to frozen initial weights (grpo with kl: k3 and a "
            "kl_weight) or a distill.weight that reaches 0 before the last step; or set teacher.accept_collapse: true to see it"
        )
    if run.anchors and not part.accept_collapse:
        raise ValueError(
            "anchors: they hold the student to the teacher's weights, which with teacher.weights: current are its own; remove "
            "the anchors, or use another teacher"
        )


def brake(run: RunConfig) -> str | None:
    """What holds a student back whose teacher is the student itself; None: nothing does."""
    if run.grpo is not None and run.grpo.kl != "none":
        return f"grpo.kl: {run.grpo.kl}"  # with `current` its reference is a frozen copy of the initial weights, see `Run`
    weights = [one.weight for one in _distills(run)]
    if weights and all(isinstance(one, Schedule) and share(one, run.steps - 1) == 0 for one in weights):
        return "distill.weight ends at 0"
    return None


def _check_player(run: RunConfig) -> None:
    distills = _distills(run)
    if run.grpo is not None:
        raise ValueError(
            "sampling.player: teacher: grpo learns from the student's own tokens, and these are the teacher's; remove grpo (a "
            "stage of its own can have it), or player: student"
        )
    if not distills:
        raise ValueError("sampling.player: teacher needs a distill signal: sft samples nothing")
    if any(one.support == "sampled" for one in distills):
        raise ValueError(
            "sampling.player: teacher: support: sampled estimates a mean over the student's own tokens, and these are the "
            "teacher's; use divergence: forward_kl with support: full or top"
        )
    if run.teacher.weights == "current":
        raise ValueError("sampling.player: teacher: with teacher.weights: current that is the student; use player: student")


def _check_offload(run: RunConfig) -> None:
    part = run.teacher
    if run.sampling.player == "teacher":
        raise ValueError(
            "teacher.offload: host: with sampling.player: teacher all its weights would travel to the device for every token; "
            "use offload: none, or player: student"
        )
    if run.model.lora is not None and part.path is None and part.weights != "current":
        raise ValueError(
            "teacher.offload: host: with model.lora the teacher is the student's own base (and a small copy of the adapters at "
            "most), so there is nothing to move; remove teacher.offload, or give other weights in teacher.path"
        )
    if part.weights == "current" and (run.grpo is None or run.grpo.kl == "none" or run.model.lora is not None):
        raise ValueError(
            "teacher.offload: host: with teacher.weights: current the teacher is the student, which is trained on the device; "
            "remove teacher.offload"
        )


def _distills(run: RunConfig) -> list[DistillSignal]:
    return [one for one in run.signals if isinstance(one, DistillSignal)]


def check_stages(names: Sequence[str], starts: Sequence[str], runs: Sequence[RunConfig]) -> None:
    """Raise `ValueError` for a stage whose teacher is an older state of its own student that was left behind.

    ``starts[i]`` says where stage ``i`` starts: "model", a path, or ``stage:NAME`` (a part behind a slash, best or last, does not
    count). A teacher from elsewhere (another model, or a stage that the student does not come from) is nobody's past.
    """
    begins = [start.split("/")[0] if start.startswith("stage:") else start for start in starts]
    for place, run in enumerate(runs):
        teacher = _teacher_of(run, begins[place])
        if not _distills(run) or teacher == begins[place]:
            continue
        past = place
        between: list[int] = []
        while begins[past].removeprefix("stage:") in names[:past]:
            past = names.index(begins[past].removeprefix("stage:"))
            between.append(past)
            if begins[past] == teacher:
                break
        else:
            continue
        left = [names[one] for one in between if not _held_to(runs[one], begins[one], teacher)]
        if left:
            raise ValueError(
                f"stage {names[place]}: teacher.path: {run.teacher.path} are older weights of its own student, which stage "
                f"{', '.join(left)} has moved away from them without distilling; a coefficient that was 0 may not rise onto "
                "such a teacher: remove teacher.path (the teacher is then made from the weights that the stage starts from)"
            )


def _teacher_of(run: RunConfig, begin: str) -> str:
    path = run.teacher.path
    if path is None:
        return begin
    return "model" if path == run.model.name else path.split("/")[0] if path.startswith("stage:") else path


def _held_to(run: RunConfig, begin: str, teacher: str) -> bool:
    """Did a stage distil, at its last step, from this teacher as it was?"""
    on = any(share(one.weight, run.steps - 1) > 0 for one in _distills(run))
    return on and run.teacher.weights in ("frozen", "trust_region") and _teacher_of(run, begin) == teacher
