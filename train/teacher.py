"""Whose weights the teacher has: frozen, EMA, synced every N steps, trust region, or the student's own.

The teacher is one model of the student's shape (its weights in fp32: an EMA with small steps vanishes in bf16), scored under
``no_grad``. Its weights are part of a checkpoint unless they never change.
Source of the variants: Vision-OPD (2605.18740), teacher regularisation ablation.
"""

from __future__ import annotations

import copy
import dataclasses

import torch

from ..vlm.load import VLM, load
from .config import TeacherPart


class Teacher:
    """The teacher of a run.

    ``vlm`` is what scores; ``mix`` is the share of the student's logits in the teacher's (trust region), else 0.
    """

    def __init__(self, student: VLM, config: TeacherPart) -> None:
        self.config = config
        self.mix = config.rate if config.weights == "trust_region" else 0.0
        if config.weights == "current":
            self.vlm = student
            return
        if config.path is not None:
            self.vlm = load(config.path, dtype="float32", device=str(student.device))
            if self.vlm.tokenizer.get_vocab() != student.tokenizer.get_vocab():
                raise ValueError(
                    f"teacher.path {config.path}: its tokenizer differs from the student's; the teacher re-scores the "
                    "student's token ids, so they must agree"
                )
        else:
            self.vlm = dataclasses.replace(student, model=copy.deepcopy(student.model))
        self.vlm.model.requires_grad_(False).eval()

    @property
    def changes(self) -> bool:
        """True when the weights must be saved with a checkpoint."""
        return self.config.weights in ("ema", "sync")

    @torch.no_grad()
    def follow(self, student: VLM, step: int) -> None:
        """Move towards the student after optimizer step number ``step`` (counted from 1)."""
        if self.config.weights == "ema":
            for mine, theirs in zip(self.vlm.model.parameters(), student.model.parameters(), strict=True):
                mine.lerp_(theirs.to(mine.dtype), self.config.rate)
        elif self.config.weights == "sync" and step % self.config.every == 0:
            for mine, theirs in zip(self.vlm.model.parameters(), student.model.parameters(), strict=True):
                mine.copy_(theirs)
