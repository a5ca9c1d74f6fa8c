"""What a reward term is: settings in a recipe, and a number for a case (a sample with one rollout of it).

A term sees the whole rollout: the texts of all turns, every tool call with its error and its region, and how it ended. It does
not add up anything: that is the combiner's work (`combine`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pydantic

from ..vlm.messages import Message
from ..vlm.records import Rollout, Sample


@dataclass(frozen=True)
class Query:
    """Something that a term wants a model to go on with: a chat, and the beginning of the reply."""

    messages: tuple[Message, ...]
    prefix: str = ""
    max_new_tokens: int = 8


Ask = Callable[[Sequence[Query]], Sequence[str]]
"""Continues every query greedily and returns the new text of each, in order."""


@dataclass(frozen=True)
class ScoreContext:
    """What a term may use beside the rollout: a model to ask (None: there is none), and the sibling rollouts of the group."""

    ask: Ask | None = None
    group: tuple[Rollout, ...] = ()


@dataclass(frozen=True)
class Case:
    """One rollout to be scored against its sample."""

    sample: Sample
    rollout: Rollout
    context: ScoreContext = field(default_factory=ScoreContext)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of all turns."""
        return tuple(turn.text for turn in self.rollout.turns)


class Term(pydantic.BaseModel):
    """Base of all terms: immutable settings, unknown keys are errors. A term defines `value`, or `values` where it works in
    bulk."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def value(self, case: Case) -> float:
        """The term of one case; finite. `ValueError` when the sample lacks what the term is measured against."""
        raise NotImplementedError

    def values(self, cases: Sequence[Case]) -> list[float]:
        """The term of several cases, in order."""
        return [self.value(case) for case in cases]


@dataclass(frozen=True)
class Verdict:
    """What was answered (None: unparsed), and how right it is, 0 to 1 (None: there is no reference)."""

    parsed: str | None
    value: float | None


class DecidingTerm(Term):
    """A term that compares the answer with the reference, so that it also decides the outcome: right, wrong or unparsed."""

    right_at: float = pydantic.Field(default=0.5, gt=0, le=1)
    """The least value that counts as right in the outcome."""

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        """What each case answers, and how right that is."""
        raise NotImplementedError

    def values(self, cases: Sequence[Case]) -> list[float]:
        return [verdict.value or 0.0 for verdict in self.verdicts(cases)]

    def value(self, case: Case) -> float:
        return self.values([case])[0]
