"""Whose weights the teacher has: frozen, EMA, synced every N steps, trust region, or the student's own.

The teacher is one model of the student's shape (its weights in fp32: an EMA with small steps vanishes in bf16), scored under
``no_grad``. Its weights are part of a checkpoint unless they never change, and so is what it has put off.
Sources of the variants: Vision-OPD (2605.18740), teacher regularisation ablation; TT-OPD (2605.02943): EMA every few steps, hard
copies now and then, and its advice to follow the student only when validation improves.

Of a student with adapters it holds the adapters alone, and nothing at all where it is the base itself: see `vlm.lora.Beside`.
With ``offload: host`` its weights lie in the host's memory, once a machine, and it moves there: see `teacher_host`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..vlm.load import VLM, load
from ..vlm.lora import Beside
from .ranks import ALONE, Ranks
from .teacher_host import Streamed
from .teacher_settings import TeacherPart

_COUNTS = ("ema_due", "copy_due", "moved_at")
_COUNT = "teacher:"


class Teacher:
    """The teacher of a run.

    ``vlm`` is what scores; ``mix`` is the share of the student's logits in the teacher's (trust region), else 0. ``moved_at`` is
    the step after which its weights changed last (0: never): the version of what it samples. ``copy_at`` are steps after which it
    is made a copy of the student whatever else is set, because a coefficient is switched on next. ``ranks`` and ``narrow`` (the
    type of the arithmetic where it is narrower than the weights) are for a teacher in the host's memory: see `Streamed`.
    """

    def __init__(
        self,
        student: VLM,
        config: TeacherPart,
        copy_at: frozenset[int] = frozenset(),
        ranks: Ranks = ALONE,
        narrow: torch.dtype | None = None,
    ) -> None:
        self.config, self.copy_at = config, copy_at
        self.mix = config.rate if config.weights == "trust_region" else 0.0
        self.ema_due = self.copy_due = self.moved_at = 0
        if config.weights == "current":
            self.vlm = student
            return
        hosted = config.offload == "host"
        if config.path is not None:
            self.vlm = load(config.path, dtype="float32", device="cpu" if hosted else str(student.device), merged=True)
            if self.vlm.tokenizer.get_vocab() != student.tokenizer.get_vocab():
                raise ValueError(
                    f"teacher.path {config.path}: its tokenizer differs from the student's; the teacher re-scores the "
                    "student's token ids, so they must agree"
                )
        elif student.adapter:
            same = student.adapter == "new" and not config.follows and not copy_at
            beside: Any = Beside.base(student) if same else Beside.now(student)
            self.vlm = dataclasses.replace(student, model=beside)
            return
        else:
            self.vlm = dataclasses.replace(student, model=student.model if hosted else copy.deepcopy(student.model))
        if hosted:
            made: Any = Streamed(self.vlm.model, student.device, moves=config.follows, narrow=narrow, ranks=ranks)
            self.vlm = dataclasses.replace(self.vlm, model=made)
        else:
            self.vlm.model.requires_grad_(False).eval()

    @property
    def changes(self) -> bool:
        """True when the weights must be saved with a checkpoint."""
        return self.config.follows

    def follow(self, student: VLM, step: int) -> None:
        """Move towards the student after optimizer step number ``step`` (counted from 1), if something is due then."""
        if not self.changes:
            return
        config = self.config
        due = step % config.steps_between == 0
        if step in self.copy_at:
            self.copy_due = 1
        elif config.weights == "sync":
            self.copy_due |= due
        elif config.reset_every is not None and step % config.reset_every == 0:
            self.copy_due = 1
        else:
            self.ema_due += due
        if step in self.copy_at or not config.only_if_better:
            self._move(student, step)

    def judged(self, student: VLM, step: int, best: bool) -> None:
        """The student after step ``step`` was evaluated; ``best``: better than ever before. With ``only_if_better`` the teacher
        moves here or not at all."""
        if not self.config.only_if_better:
            return
        if best:
            self._move(student, step)
        self.ema_due = self.copy_due = 0

    @torch.no_grad()
    def _move(self, student: VLM, step: int) -> None:
        if not self.copy_due and not self.ema_due:
            return
        model: Any = self.vlm.model
        if isinstance(model, Streamed):
            model.change(list(student.model.parameters()), self._approach)
        else:
            followed = model.followed if isinstance(model, Beside) else student.model.parameters()
            for mine, theirs in zip(model.parameters(), followed, strict=True):
                self._approach(mine, theirs)
        self.moved_at = step
        self.ema_due = self.copy_due = 0

    def _approach(self, mine: Tensor, theirs: Tensor) -> None:
        if self.copy_due:
            mine.copy_(theirs)
            return
        for _ in range(self.ema_due):
            mine.lerp_(theirs.to(mine.dtype), self.config.rate)

    def metrics(self, step: int) -> dict[str, float]:
        """Steps since the weights changed last, where they do."""
        return {"teacher/age_steps": float(step - self.moved_at)} if self.changes else {}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, and what is due."""
        counts = {_COUNT + name: torch.tensor(int(self.__dict__[name])) for name in _COUNTS}
        return {**self.vlm.model.state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in _COUNTS:
            self.__dict__[name] = int(state[_COUNT + name])
        self.vlm.model.load_state_dict({name: value for name, value in state.items() if not name.startswith(_COUNT)})
