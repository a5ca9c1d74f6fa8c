"""Tools: were they used, with success, and not in circles? From the calls that are recorded with the turns."""

from __future__ import annotations

from typing import Literal

import pydantic

from ..base import Case, Term


class ToolUse(Term):
    """Calls that were valid and, where a picture is asked for, came back with one. The gate on a right answer is the
    combiner's."""

    term: Literal["tool_use"] = "tool_use"
    tools: tuple[str, ...] = ()
    """Names of tools that count; none: all."""
    picture: bool = True
    """Only calls whose turn was answered with a picture or frames."""
    measure: Literal["used", "count", "valid_frac"] = "used"
    """used: 1 with `least` such calls; count: how many, at most `most`; valid_frac: their share of all calls, 0 without a call.
    """
    least: int = pydantic.Field(default=1, ge=1)
    most: int = pydantic.Field(default=10, ge=1)

    def value(self, case: Case) -> float:
        good = total = 0
        for turn in case.rollout.turns:
            calls = [call for call in turn.calls if not self.tools or call.name in self.tools]
            shown = turn.observation is not None and bool(turn.observation.pictures)
            total += len(calls)
            good += sum(call.error is None for call in calls) if shown or not self.picture else 0
        if self.measure == "used":
            return float(good >= self.least)
        return float(min(good, self.most)) if self.measure == "count" else good / max(1, total)


class RepeatedCalls(Term):
    """1 when some call was made twice: same tool, same arguments, same picture."""

    term: Literal["repeated_calls"] = "repeated_calls"

    def value(self, case: Case) -> float:
        made = [(call.name, call.arguments, call.image) for call in case.rollout.calls]
        return float(len(set(made)) < len(made))
