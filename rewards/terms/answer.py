"""Is the answer right? By rule, in the ways in which data sets mean it. Also: can it be read at all, and how sure was the
model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import pydantic

from .. import answer as answers
from .. import compare
from ..base import Case, DecidingTerm, Term, Verdict
from ..choices import letter_of, options_in
from ..marks import marked, spoken
from ..maths import same_maths

_CHOICE_FIRST = ("auto", "choice", "maths", "mra")
_CONFIDENCE = re.compile(r"<confidence>\s{0,20}([0-9.]{1,12})\s{0,4}(%?)\s{0,20}</confidence>", re.IGNORECASE)


class AnswerSettings(Term):
    """How an answer is read and compared with the reference."""

    kind: answers.Kind = "auto"
    """auto: choice where there are options, number where the reference is one, yes_no where it is yes or no, else text. exact:
    the same characters. text: the same words. maths: the same words, or equal as mathematics. mra: ViLaSR's mean relative
    accuracy where the reference is a number. anls, bleu: edit similarity (0 below one half) and BLEU-1, for free text. maths
    and mra compare letters where there are options."""
    tolerance: float = pydantic.Field(default=1e-6, ge=0)
    """Of numbers, relative to the reference."""
    max_chars: int | None = pydantic.Field(default=None, ge=1)
    """An answer of so many characters or more is wrong, whatever it says (DeepEyes: 1000); None: no limit."""

    def verdict(self, case: Case) -> Verdict:
        """The answer of the last turn against the sample's reference."""
        sample, text = case.sample, case.rollout.text
        options = sample.options or options_in(sample.question)
        letter = letter_of(sample.answer, options) if sample.answer is not None else None
        kind = self._kind(sample.answer)
        parsed: answers.Parsed | None = None
        if self.kind == "choice" and not options:
            # the letters are in the picture or elsewhere: any of the first eight may be meant
            parsed = answers.extract(text, letters=8 if letter is None else max(8, ord(letter) - ord("A") + 1))
        elif options and self.kind in _CHOICE_FIRST and (letter is not None or sample.answer is None):
            parsed = answers.extract(text, options)
        is_choice = parsed is not None
        parsed = parsed or answers.extract(text, kind=kind)
        if sample.answer is None:
            return Verdict(parsed.text, None)
        if parsed.text is None or self._too_long(text):
            return Verdict(parsed.text, 0.0)
        if is_choice:
            return Verdict(parsed.text, float(parsed.text == letter))
        return Verdict(parsed.text, self._compare(parsed.text, sample.answer, kind))

    def _kind(self, reference: str | None) -> answers.Kind:
        if reference is None or self.kind not in ("auto", "mra"):
            return self.kind
        if compare.is_number(reference):
            return "number" if self.kind == "auto" else "mra"
        return "yes_no" if compare.normal(reference) in ("yes", "no") else "text"

    def _too_long(self, text: str) -> bool:
        if self.max_chars is None:
            return False
        said = spoken(text)
        mark = marked(said)
        return len(said.strip() if mark is None else mark.content) >= self.max_chars

    def _compare(self, said: str, reference: str, kind: answers.Kind) -> float:
        match kind:
            case "exact":
                return float(said.strip() == reference.strip())
            case "number":
                return float(compare.same_number(said, reference, self.tolerance))
            case "yes_no":
                return float(said == compare.yes_or_no(reference))
            case "maths":
                return float(compare.same_text(said, reference) or same_maths(said, reference))
            case "mra":
                return compare.relative_accuracy(said, reference)
            case "anls":
                return compare.edit_similarity(said, reference)
            case "bleu":
                return compare.bleu1(said, reference)
        return float(compare.same_text(said, reference))


class Answer(AnswerSettings, DecidingTerm):
    """1 for a right answer, 0 for a wrong one and for none; mra, anls and bleu give values between."""

    term: Literal["answer"] = "answer"

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        return [self.verdict(case) for case in cases]


class Readable(AnswerSettings):
    """1 when an answer can be read, right or wrong; 0 for "unparsed"."""

    term: Literal["parsed"] = "parsed"

    def value(self, case: Case) -> float:
        return float(self.verdict(case).parsed is not None)


class Brier(AnswerSettings):
    """1 - (c - q)^2: c is 1 for a right answer and 0 for any other, q what the model writes in ``<confidence>`` (RLCR,
    2507.16806).

    0, the worst value, when the confidence is missing or not a number from 0 to 1 (90% counts as 0.9).
    """

    term: Literal["brier"] = "brier"

    def value(self, case: Case) -> float:
        stated = confidence(case.rollout.text)
        right = self.verdict(case).value or 0.0
        return 0.0 if stated is None else 1 - (float(right >= 0.5) - stated) ** 2


def confidence(text: str) -> float | None:
    """What the one pair of confidence tags holds, 0 to 1, or None.

    >>> confidence("<confidence>85%</confidence>")
    0.85
    """
    found = _CONFIDENCE.findall(text)
    if len(found) != 1 or text.lower().count("<confidence>") != 1:
        return None
    try:
        value = float(found[0][0]) / (100 if found[0][1] else 1)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
