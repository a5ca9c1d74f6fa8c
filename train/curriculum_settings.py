"""What a curriculum asks of the rest of a run. Its settings are in `datasets.curriculum_spec`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..datasets.curriculum_spec import CurriculumSpec, DuetCurriculum

if TYPE_CHECKING:
    from .config import RunConfig


def check_curriculum(run: RunConfig) -> None:
    """Raise `ValueError` for a curriculum that this run could not follow."""
    spec, grpo = run.curriculum, run.grpo
    if run.signals[0].kind == "sft" and spec != CurriculumSpec():
        raise ValueError("curriculum: sft goes through its data in a seeded order and samples nothing; remove curriculum")
    if spec.needs_outcomes and grpo is None:
        raise ValueError(
            "curriculum: it depends on which rollouts are right, and only grpo rewards them; add grpo to signals, or use kind: "
            "sorted or shuffled, without expansion and hints"
        )
    if spec.expansion is not None and grpo is not None and grpo.extra_rounds:
        raise ValueError(
            "curriculum.expansion plays more prompts beforehand, grpo.extra_rounds afterwards, so that the first would be judged "
            "by prompts that the second has chosen; remove one of them"
        )
    if isinstance(spec, DuetCurriculum) and grpo is not None and (grpo.extra_rounds or grpo.shuffle):
        raise ValueError(
            "curriculum: duet shares out the rollouts of prompts known beforehand, in groups of different sizes; remove "
            "grpo.extra_rounds and grpo.shuffle"
        )
    if spec.hints is not None and not run.student.hints:
        raise ValueError(
            "curriculum.hints: the student's view shows none; use student: hinted (tiny.hinted for the tiny model), or give the "
            "view a template hints and reveals: [hints]"
        )
