"""Tools as a recipe names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from .base import Budgets, Tool, ToolSettings
from .boxes import Coords
from .dialects.registry import dialect
from .registry import near_or_all, tool_class
from .toolbox import Ablation, Toolbox


class ToolsSpec(Budgets):
    """Which tools a model is offered, how they are called, and their budgets."""

    dialect: str = "hermes"
    """How calls are written."""
    tools: Mapping[str, Mapping[str, Any]] = {"zoom": {}}
    """Names of tools, or names with the options of each: ``{zoom: {}, draw_box: {merge_labels: true}}``. May be empty: dialects
    that write boxes as text, or code, have no tools."""
    coords: Literal["auto"] | Coords = "auto"
    """How coordinates are counted; auto: as the dialect fixes it, else as the model's family does."""
    max_calls: int = pydantic.Field(default=8, ge=1)
    """Calls carried out in one turn."""
    call_seconds: float | None = pydantic.Field(default=60.0, ge=0)
    """Time for the calls of one turn, looked at between them; None: no limit."""
    ablate: Ablation = "none"
    """Replace what tools show, to prove that it is used: a grey or a blank picture, or another region of the same picture."""

    @pydantic.field_validator("tools", mode="before")
    @classmethod
    def _with_options(cls, value: Any) -> Any:
        """Names alone become names with no options; null options too."""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list | tuple):
            if len(set(map(str, value))) != len(value):
                raise ValueError("a tool is named twice")
            return {str(name): {} for name in value}
        if isinstance(value, Mapping):
            return {name: {} if options is None else options for name, options in value.items()}
        return value

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> ToolsSpec:
        """What cannot be built is an error here, with its remedy."""
        fixed = dialect(self.dialect).coords
        if fixed is not None and self.coords not in ("auto", fixed):
            raise ValueError(
                f"the dialect {self.dialect} counts coordinates as {fixed}; leave coords out, or choose another dialect"
            )
        toolbox = build_toolbox(self)
        if self.ablate == "other" and "select_frames" in self.tools:
            raise ValueError("ablate 'other' knows no other frames for select_frames; use grey or blank")
        _ = toolbox.system_prompt  # the dialect must have words for every tool
        return self


def build_toolbox(spec: ToolsSpec, family_coords: Coords = "norm1000") -> Toolbox:
    """The toolbox of a recipe; ``family_coords`` is how the model's family writes coordinates."""
    spoken = dialect(spec.dialect)
    coords = (spoken.coords or family_coords) if spec.coords == "auto" else spec.coords
    return Toolbox(
        dialect=spoken,
        tools=tuple(_tool(name, options) for name, options in spec.tools.items()),
        settings=ToolSettings(coords=coords, **{name: value for name, value in spec if name in Budgets.model_fields}),
        max_calls=spec.max_calls,
        seconds=spec.call_seconds,
        ablate=spec.ablate,
    )


def _tool(name: str, options: Mapping[str, Any]) -> Tool:
    tool = tool_class(name)
    for option in options:
        if option not in tool.model_fields:
            raise ValueError(f"the tool {name} has no option {option!r}; {near_or_all(option, tool.model_fields)}")
    return tool.model_validate(dict(options))
