"""Which prompts a run draws, and in which order: the settings. The samplers are in `curriculum`."""

from __future__ import annotations

from typing import Literal

from .crops import Part


class CurriculumSpec(Part):
    """How prompts are drawn."""

    kind: Literal["shuffled"] = "shuffled"
