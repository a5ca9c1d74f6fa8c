"""Rewards: named terms, their weights, and the breakdown that is kept with every rollout.

A recipe writes ``reward: {answer: 0.9, format: 0.1}``, or the long form ``reward: {terms: {...}, format: think_answer}``.
Rewards are keyed by sample: scoring a rollout against another sample is an error, not a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from ..vlm.records import Group, Reward, Rollout, Sample
from . import answer as answers
from .format import FORMATS
from .maths import same_maths

Term = Literal["answer", "maths", "format"]


class RewardSpec(pydantic.BaseModel):
    """Which terms, with which weights. The total is the weighted sum."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    terms: dict[Term, float] = {"answer": 1.0}
    """answer: right or not; maths: the same by mathematical equality; format: see `format`."""
    kind: answers.Kind = "auto"
    """How answers are compared. auto: choice where there are options, number where the reference is one, else text."""
    format: Literal["answer_tags", "think_answer", "boxed", "think_boxed"] = "answer_tags"
    """What the format term asks for."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        fields = {"terms", "kind", "format"}
        if (
            isinstance(value, Mapping)
            and value
            and all(isinstance(weight, int | float) for weight in value.values())
            and (set(value) - fields or "format" in value)
        ):
            return {"terms": dict(value)}
        return value

    @pydantic.model_validator(mode="after")
    def _sense(self) -> RewardSpec:
        if not self.terms or all(weight == 0 for weight in self.terms.values()):
            raise ValueError("reward: no term has a weight; try {answer: 0.9, format: 0.1}")
        return self


def score(sample: Sample, rollout: Rollout, spec: RewardSpec | None = None) -> Reward:
    """The reward of one rollout: its last turn's text against the sample's answer.

    A rollout that a limit cut off has format 0. `ValueError` when the rollout belongs to another sample.
    """
    if rollout.sample_id != sample.id:
        raise ValueError(
            f"rollout {rollout.group_id}/{rollout.index} is of sample {rollout.sample_id}, not of {sample.id}; join them by id"
        )
    return score_text(sample, rollout.text, spec, truncated=rollout.stop.truncated)


def score_group(group: Group, spec: RewardSpec | None = None) -> Group:
    """The group with a reward on every rollout."""
    return Group(
        group.sample, tuple(dataclasses.replace(rollout, reward=score(group.sample, rollout, spec)) for rollout in group.rollouts)
    )


def score_text(sample: Sample, text: str, spec: RewardSpec | None = None, *, truncated: bool = False) -> Reward:
    """The reward of a text. Without a reference answer the outcome is "unscored" and the answer terms are 0."""
    spec = spec or RewardSpec()
    parsed, right = judge(sample, text, spec.kind, maths="maths" in spec.terms)
    terms: dict[str, float] = {}
    for name in spec.terms:
        if name == "format":
            terms[name] = 0.0 if truncated else FORMATS[spec.format](text)
        else:
            terms[name] = float(right is True)
    outcome: Literal["right", "wrong", "unparsed", "unscored"]
    if sample.answer is None:
        outcome = "unscored"
    elif parsed.text is None:
        outcome = "unparsed"
    else:
        outcome = "right" if right else "wrong"
    total = sum(weight * terms[name] for name, weight in spec.terms.items())
    return Reward(total=total, terms=terms, outcome=outcome, parsed=parsed.text)


def judge(sample: Sample, text: str, kind: answers.Kind = "auto", *, maths: bool = False) -> tuple[answers.Parsed, bool | None]:
    """What the text answers, and whether that is right (None: there is no reference)."""
    options = sample.options or answers.options_in(sample.question)
    letter = answers.letter_of(sample.answer, options) if sample.answer is not None else None
    if kind == "choice" and not options:
        # The letters are in the picture or elsewhere: any of the first eight may be meant.
        parsed = answers.extract(text, letters=8 if letter is None else max(8, ord(letter) - ord("A") + 1))
        return parsed, None if sample.answer is None else parsed.text is not None and parsed.text == letter
    if options and kind in ("auto", "choice") and (letter is not None or sample.answer is None):
        parsed = answers.extract(text, options)
        return parsed, None if sample.answer is None else parsed.text == letter
    parsed = answers.extract(text)
    if sample.answer is None:
        return parsed, None
    if parsed.text is None:
        return parsed, False
    if maths:
        return parsed, same_maths(parsed.text, sample.answer)
    return parsed, _equal(parsed.text, sample.answer, kind)


def _equal(said: str, reference: str, kind: answers.Kind) -> bool:
    if kind == "exact":
        return said.strip() == reference.strip()
    numeric = kind == "number" or (kind == "auto" and answers.is_number(reference))
    return answers.same_number(said, reference) if numeric else answers.same_text(said, reference)
