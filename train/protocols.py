"""Which tools a sample is played with, and how they are offered to the model."""

from __future__ import annotations

from collections.abc import Mapping

from ..visual_tools.boxes import Coords
from ..visual_tools.spec import ToolsSpec, build_toolbox
from ..visual_tools.toolbox import Toolbox
from ..vlm.records import Sample
from ..vlm.rollout import Limits, Rules

TAG = "protocol"
"""The tag of a sample that names its protocol; a sample without it has the run's tools."""
NO_TOOLS = "none"


class Protocols:
    """The protocols of a run for a model of one family; ``coords`` is how that family writes coordinates."""

    def __init__(self, tools: ToolsSpec, others: Mapping[str, ToolsSpec], limits: Limits, coords: Coords) -> None:
        self.limits = limits
        self._default = build_toolbox(tools, coords)
        self._others = {name: build_toolbox(spec, coords) for name, spec in others.items()}

    def toolbox(self, sample: Sample) -> Toolbox | None:
        """The sample's tools; None when it is played without. `ValueError` for a protocol that the recipe does not have."""
        name = sample.tags.get(TAG)
        if self.limits.turns == 1 or name == NO_TOOLS:
            return None
        if name is None:
            return self._default
        if name not in self._others:
            known = ", ".join(sorted(self._others)) or "none at all"
            raise ValueError(
                f"sample {sample.id}: protocol {name!r} is not in the recipe's protocols ({known}); add it there, or "
                f"change the sample's tag ({NO_TOOLS}: no tools)"
            )
        return self._others[name]

    def rules(self, sample: Sample) -> Rules:
        """How the sample is played."""
        return Rules(self.toolbox(sample), self.limits)

    def prompt(self, sample: Sample) -> str | None:
        """The system prompt that offers the sample's tools."""
        toolbox = self.toolbox(sample)
        return None if toolbox is None else toolbox.system_prompt
