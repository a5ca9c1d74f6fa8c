"""Settings of distillation: what the teacher sees, which divergence, on which tokens."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from ...datasets.views import ViewSpec, resolve_view
from .settings import Weighted


class DistillSignal(Weighted):
    """On-policy self-distillation: the teacher re-scores the student's own tokens under a privileged view."""

    kind: Literal["distill"]
    teacher: ViewSpec
    """What the teacher is shown (a preset's name or a view)."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "jsd"
    beta: float = pydantic.Field(0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture of jsd."""
    support: Literal["full", "top", "sampled"] = "full"
    """full vocabulary; top: the student's top_c candidates and one bucket for the rest; sampled: the sampled token alone."""
    top_c: int = pydantic.Field(100, ge=1)
    temperature: float = pydantic.Field(1.0, gt=0)
    """Divides the logits of both before they are compared."""

    @pydantic.field_validator("teacher", mode="before")
    @classmethod
    def _teacher(cls, value: Any) -> Any:
        return resolve_view(value)

    @pydantic.model_validator(mode="after")
    def _sampled_is_reverse(self) -> DistillSignal:
        if self.support == "sampled" and self.divergence != "reverse_kl":
            raise ValueError(
                "support: sampled estimates the reverse KL and nothing else; set divergence: reverse_kl, or support: full or top"
            )
        return self
