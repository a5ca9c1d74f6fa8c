"""Length, being cut off, repetition and favourite words. All are measures from 0 up; the combiner says what they cost."""

from __future__ import annotations

import math
import re
from typing import Literal

import pydantic

from ..base import Case, Term
from ..compare import CJK

_TOKEN = re.compile(rf"[{CJK}]|[^\W{CJK}]+")


class Length(Term):
    """Length of all actions as a share of ``max_tokens``, 0 to 1 (longer stays 1).

    linear: 0 up to ``free_tokens``, then straight up (the negative is DAPO's soft overlong punishment, 2503.14476, eq. 13).
    cosine: (1 - cos(pi * share)) / 2, which goes from one value to another along half a wave (TT-OPD, 2605.02943).
    """

    term: Literal["length"] = "length"
    max_tokens: int = pydantic.Field(ge=1)
    free_tokens: int = pydantic.Field(default=0, ge=0)
    shape: Literal["linear", "cosine"] = "linear"

    @pydantic.model_validator(mode="after")
    def _order(self) -> Length:
        if self.free_tokens >= self.max_tokens:
            raise ValueError(f"length: free_tokens ({self.free_tokens}) must be below max_tokens ({self.max_tokens})")
        return self

    def value(self, case: Case) -> float:
        tokens = case.rollout.num_actions
        if tokens == 0 and any(case.texts):
            raise ValueError(f"sample {case.sample.id}: length counts tokens, and a bare text has none; score a rollout")
        share = min(1.0, max(0.0, (tokens - self.free_tokens) / (self.max_tokens - self.free_tokens)))
        return share if self.shape == "linear" else (1 - math.cos(math.pi * share)) / 2


class CutOff(Term):
    """1 when a limit on tokens or time ended the text before the model did."""

    term: Literal["cut_off"] = "cut_off"

    def value(self, case: Case) -> float:
        return float(case.rollout.stop.truncated)


class Repetition(Term):
    """Share of the n-grams (of words; of characters in Chinese and Japanese) of all actions that came before, 0 to below 1."""

    term: Literal["repetition"] = "repetition"
    n: int = pydantic.Field(default=8, ge=1)

    def value(self, case: Case) -> float:
        seen: set[tuple[str, ...]] = set()
        total = 0
        for text in case.texts:
            tokens = _TOKEN.findall(text.casefold())
            grams = [tuple(tokens[at : at + self.n]) for at in range(len(tokens) - self.n + 1)]
            total += len(grams)
            seen.update(grams)
        return 1 - len(seen) / total if total else 0.0


class Words(Term):
    """How often a word is said in the last turn, as a word and in any case (VL-Rethinker counts "wait", 2504.08837)."""

    term: Literal["words"] = "words"
    word: str = pydantic.Field(default="wait", min_length=1)

    def value(self, case: Case) -> float:
        return float(len(re.findall(rf"(?<!\w){re.escape(self.word)}(?!\w)", case.rollout.text, re.IGNORECASE)))
