"""Rewards: named terms, an expression that makes a total of them, and the breakdown that is kept with every rollout.

Three ways to write one in a recipe:

- short, a weighted sum of terms with their defaults: ``{answer: 0.9, format: 0.1}``;
- long: ``{terms: {acc: {term: answer}, tool: {term: tool_use}}, total: "acc + 1.2*(tool if acc > 0.5 else 0)"}``;
- a published one: ``{preset: deepeyes}``, whose parts other keys override.

``by_source`` gives other rewards to samples of some sources or kinds. Rewards are keyed by sample: scoring a rollout against
another sample is an error, not a number.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import pydantic

from ..vlm.records import Group, Reward, Rollout, Sample, StopReason, Turn, View
from . import expression
from .base import Ask, Case, DecidingTerm, ScoreContext, Verdict
from .presets import PRESETS
from .terms.answer import Answer, Brier, Readable
from .terms.boxes import BoxCount, BoxEdges, BoxIoU, BoxMatch, PointInBox
from .terms.consistency import Consistency
from .terms.format import Format
from .terms.frame_thinker import FrameThinkerTerm
from .terms.judge import Judge
from .terms.length import CutOff, Length, Repetition, Words
from .terms.tools import RepeatedCalls, ToolUse

AnyTerm = Annotated[
    Answer | Readable | Brier | Judge | Format | ToolUse | RepeatedCalls | BoxIoU | BoxMatch | BoxEdges | PointInBox | BoxCount
    | Length | CutOff | Repetition | Words | Consistency | FrameThinkerTerm,
    pydantic.Field(discriminator="term"),
]  # fmt: skip
_TERMS = tuple(str(kind.model_fields["term"].default) for kind in get_args(get_args(AnyTerm)[0]))
"""The names of all terms."""
_SHORTHAND: Mapping[str, Mapping[str, Any]] = {"maths": {"term": "answer", "kind": "maths"}}
_FIELDS = ("terms", "total", "by_source", "preset")
_DEFAULT = Answer()


class RewardSpec(pydantic.BaseModel):
    """Which terms, and how they make a total. `presets` lists the published ones."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    terms: dict[str, AnyTerm] = {"answer": _DEFAULT}
    """Names, which stand in the total, in the breakdown and in the metrics, and the settings of each term (its kind is
    ``term``)."""
    total: str = ""
    """An expression over the names; see `expression`. A single term needs none."""
    by_source: dict[str, RewardSpec] = {}
    """Rewards for samples whose ``source`` or ``kind`` has this name; all others have the reward around it."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _forms(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        value = dict(value)
        if value and not set(value) & set(_FIELDS):
            return _weighted(value, {})
        if "preset" in value:
            value = _merged(_preset(value.pop("preset")), value)
        terms = value.get("terms")
        if isinstance(terms, Mapping) and terms and all(isinstance(one, int | float) for one in terms.values()):
            return _weighted(terms, value)
        names = list(terms) if isinstance(terms, Mapping) else ["answer"]
        total = value.get("total") or (names[0] if len(names) == 1 else "")
        return {**value, "total": " ".join(total.split()) if isinstance(total, str) else total}

    @pydantic.model_validator(mode="after")
    def _sense(self) -> RewardSpec:
        if not self.terms:
            raise ValueError("reward: no terms; try {answer: 0.9, format: 0.1}")
        for name in self.terms:
            if not name.isidentifier() or name in ("min", "max", "abs", "clip", "if", "else", "and", "or", "not"):
                raise ValueError(f"reward: a term cannot be named {name!r}: names stand in the total; use letters, digits and _")
        if not self.total:
            raise ValueError(
                f"reward: several terms ({', '.join(self.terms)}) and no total; for a weighted sum write "
                f'total: "{" + ".join(f"0.5*{name}" for name in self.terms)}"'
            )
        expression.check(self.total, self.terms)
        return self

    def of(self, sample: Sample) -> RewardSpec:
        """The reward of a sample: by its source, else by its kind, else this one."""
        return self.by_source.get(sample.source) or self.by_source.get(sample.kind) or self

    @property
    def deciding(self) -> DecidingTerm:
        """The term that decides the outcome: the first that compares answers, else the rule with its defaults."""
        return next((term for term in self.terms.values() if isinstance(term, DecidingTerm)), _DEFAULT)


def _weighted(weights: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The long form of ``{answer: 0.9, format: 0.1}``."""
    terms: dict[str, Any] = {}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(
                f"reward: the weight of {name} must be a number, got {weight!r}; settings of a term go into "
                f"terms: {{{name}: {{term: ..., ...}}}} with a total"
            )
        if name not in _TERMS and name not in _SHORTHAND:
            raise ValueError(f"reward: there is no term {name!r}; {_near(name, [*_TERMS, *_SHORTHAND])}")
        terms[name] = dict(_SHORTHAND.get(name, {"term": name}))
    if other.get("total"):
        raise ValueError("reward: either weights of terms or a total, not both")
    if not any(weights.values()):
        raise ValueError("reward: no term has a weight; try {answer: 0.9, format: 0.1}")
    total = " + ".join(f"{weight!r}*{name}" for name, weight in weights.items())
    return {**other, "terms": terms, "total": total}


def _preset(name: Any) -> Mapping[str, Any]:
    if name not in PRESETS:
        raise ValueError(f"reward: there is no preset {name!r}; {_near(str(name), list(PRESETS))}")
    return PRESETS[name]


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 3, 0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"


def _merged(preset: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The preset with changes; those to its terms reach the rewards by source too. A term that names its ``term`` is replaced
    whole."""
    merged = dict(preset)
    for key, change in changes.items():
        if isinstance(change, Mapping) and isinstance(merged.get(key), Mapping) and "term" not in change:
            merged[key] = _merged(merged[key], change)
        else:
            merged[key] = change
    terms = changes.get("terms")
    if isinstance(terms, Mapping) and isinstance(preset.get("by_source"), Mapping):
        own = changes.get("by_source") or {}
        merged["by_source"] = {
            **merged["by_source"],
            **{name: _merged(spec, {"terms": terms}) for name, spec in preset["by_source"].items() if name not in own},
        }
    return merged


def score(sample: Sample, rollout: Rollout, spec: RewardSpec | None = None, context: ScoreContext | None = None) -> Reward:
    """The reward of one rollout. `ValueError` when the rollout belongs to another sample, or a total has no value."""
    return _scored([_case(sample, rollout, context or ScoreContext())], spec or RewardSpec())[0]


def score_group(group: Group, spec: RewardSpec | None = None, context: ScoreContext | None = None) -> Group:
    """The group with a reward on every rollout."""
    return score_groups([group], spec, context.ask if context else None)[0]


def score_groups(groups: Sequence[Group], spec: RewardSpec | None = None, ask: Ask | None = None) -> list[Group]:
    """The groups with a reward on every rollout; judges and models to ask get the questions of all groups at once."""
    spec = spec or RewardSpec()
    cases = [_case(group.sample, one, ScoreContext(ask, group.rollouts)) for group in groups for one in group.rollouts]
    rewards = iter(_scored(cases, spec))
    return [
        dataclasses.replace(group, rollouts=tuple(dataclasses.replace(one, reward=next(rewards)) for one in group.rollouts))
        for group in groups
    ]


def score_text(
    sample: Sample,
    text: str,
    spec: RewardSpec | None = None,
    *,
    truncated: bool = False,
    context: ScoreContext | None = None,
) -> Reward:
    """The reward of a text as if it were all that a rollout said; terms that need tokens or calls find none."""
    stop = StopReason.TURN_TOKENS if truncated else StopReason.ANSWERED
    rollout = Rollout(sample.id, "text", 0, View("student", ()), (Turn((), (), text, stop),), stop)
    return score(sample, rollout, spec, context)


def _case(sample: Sample, rollout: Rollout, context: ScoreContext) -> Case:
    if rollout.sample_id != sample.id:
        raise ValueError(
            f"rollout {rollout.group_id}/{rollout.index} is of sample {rollout.sample_id}, not of {sample.id}; join them by id"
        )
    return Case(sample, rollout, context)


def _scored(cases: Sequence[Case], spec: RewardSpec) -> list[Reward]:
    """Rewards in the order of the cases, computed for all cases of one specification together."""
    specs = [spec.of(case.sample) for case in cases]
    rewards: dict[int, Reward] = {}
    for own in {id(one): one for one in specs}.values():
        places = [place for place, one in enumerate(specs) if one is own]
        rewards |= dict(zip(places, _by_one_spec([cases[place] for place in places], own), strict=True))
    return [rewards[place] for place in range(len(cases))]


def _by_one_spec(cases: Sequence[Case], spec: RewardSpec) -> list[Reward]:
    deciding = spec.deciding
    verdicts = deciding.verdicts(cases)
    columns = {
        name: [verdict.value or 0.0 for verdict in verdicts] if term is deciding else term.values(cases)
        for name, term in spec.terms.items()
    }
    rewards = []
    for place, (case, verdict) in enumerate(zip(cases, verdicts, strict=True)):
        terms = {name: column[place] for name, column in columns.items()}
        rewards.append(Reward(_total(case, spec, terms), terms, _outcome(verdict, deciding), verdict.parsed))
    return rewards


def _total(case: Case, spec: RewardSpec, terms: Mapping[str, float]) -> float:
    where = f"sample {case.sample.id}, rollout {case.rollout.group_id}/{case.rollout.index}"
    for name, value in terms.items():
        if not math.isfinite(value):
            raise ValueError(f"{where}: the reward term {name} is {value}; a term must be finite")
    try:
        return expression.evaluate(spec.total, terms)
    except expression.ExpressionError as error:
        values = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        raise ValueError(f"{where}: the reward's total has no value: {error}; with {values}") from error


def _outcome(verdict: Verdict, term: DecidingTerm) -> Literal["right", "wrong", "unparsed", "unscored"]:
    if verdict.value is None:
        return "unscored"
    if verdict.parsed is None:
        return "unparsed"
    return "right" if verdict.value >= term.right_at else "wrong"
