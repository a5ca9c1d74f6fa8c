"""Whose weights the teacher has: frozen, EMA, synced every N steps, trust region, or the student's own.

The teacher is one model of the student's shape (its weights in fp32: an EMA with small steps vanishes in bf16), scored under
``no_grad``. Its weights are part of a checkpoint unless they never change.
Source of the variants: Vision-OPD (2605.18740), teacher regularisation ablation.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch

from ..vlm.backbone import hidden_rows
from ..vlm.load import VLM, load
from ..vlm.logprobs import token_logprobs
from ..vlm.packing import pack
from ..vlm.records import Rollout, View
from ..vlm.segments import Rendered
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

    @torch.no_grad()
    def score(
        self, pairs: Sequence[tuple[Rollout, View]], micro_tokens: int, temperature: float
    ) -> list[tuple[tuple[float, ...], ...]]:
        """Log-probs ``[N][K]`` of each rollout's sampled tokens, read under the view beside it; prompts are shared by view."""
        renderer = self.vlm.renderer
        by_view: dict[View, list[tuple[int, Rendered]]] = {}
        for index, (rollout, view) in enumerate(pairs):
            by_view.setdefault(view, []).append((index, renderer.render(view, rollout.turns, rollout.sample_id)))
        found: dict[int, tuple[tuple[float, ...], ...]] = {}
        for chunk in _chunks(list(by_view.values()), micro_tokens):
            packed = pack([(members[0][1].prompt, [one.suffix for _, one in members]) for members in chunk])
            hidden = hidden_rows(self.vlm, packed)
            values = token_logprobs(
                hidden,
                self.vlm.head_weight,
                packed.targets_R.to(hidden.device),
                temperature=temperature,
                banned_ids=renderer.banned_ids,
            ).tolist()
            offset = 0
            for index, one in (member for members in chunk for member in members):
                found[index] = tuple(tuple(values[offset + place] for place in span) for span in one.action_spans)
                offset += len(one.suffix)
        return [found[index] for index in range(len(pairs))]


_Members = list[tuple[int, Rendered]]


def _chunks(groups: list[_Members], micro_tokens: int) -> list[list[_Members]]:
    chunks: list[list[_Members]] = []
    size = 0
    for members in groups:
        tokens = len(members[0][1].prompt) + sum(len(one.suffix) for _, one in members)
        if not chunks or size + tokens > micro_tokens:
            chunks.append([])
            size = 0
        chunks[-1].append(members)
        size += tokens
    return chunks
