"""Comparing an answer with its reference: numbers, words, edit distance. Pure functions of two strings.

Words are cut the same way on both sides: lower case, no punctuation, no articles, numbers whole ("3.5", "50%", "1,200" as 1200),
and every Chinese, Japanese or Korean character a word of its own.
"""

from __future__ import annotations

import math
import re
from collections import Counter

CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"(?<![\w.])-?\d+(?:[.,]\d+)*%?|\d+(?:[.,]\d+)*%?|\.\d+|[{CJK}]|[^\W\d_{CJK}]+(?:['’][^\W\d_]+)?|[.,;!?\n]+")
_NUMBER = re.compile(
    r"(?<!\d)[-+]?(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?(?:[eE][-+]?\d{1,4}+)?|[-+]?\.\d++(?:[eE][-+]?\d{1,4})?"
)
_FRACTION = re.compile(
    r"([-+]?)(?:\\[dt]?frac\s*\{\s*(\d{1,15})\s*\}\s*\{\s*(\d{1,15})\s*\}|(?<![\d/])(\d{1,15})\s*/\s*(\d{1,15})(?![\d/]))"
)
_REMARK = re.compile(r"(?<=\S)\s{0,4}\([^()]{0,200}\)")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}")
_CLOCK = re.compile(r"\d:\d")
_ARTICLES = {"a", "an", "the"}
_BREAKS = {"but", "because", "while", "whereas"}
_DENYING = "not no never neither nor without except cannot rather instead unlike 不 没 非"
NEGATIONS = set(_DENYING.split())
_COUNTED = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
_NUMBER_WORDS = {word: value for value, word in enumerate(_COUNTED.split())}
_LEAD = re.compile(
    r"(?:there\s+(?:is|are|were)|i\s+(?:can\s+)?(?:see|count)|it\s+is|it['’]s"
    r"|the\s+(?:number|count|total|value)\b[^.\n]{0,80}?\b(?:is|equals))\s+",
    re.IGNORECASE,
)
_HEDGE = re.compile(r"(?:(?:about|around|approximately|roughly|exactly|only|a\s+total\s+of)\s+)+", re.IGNORECASE)
_REFUSALS = {
    "unknown", "unclear", "n/a", "n a", "none", "not available", "not sure", "i not sure", "i am not sure", "i'm not sure",
    "i do not know", "i not know", "not tell", "cannot tell", "i not tell", "i cannot tell", "cannot determine",
    "i cannot determine", "cannot be determined", "unable to determine",
}  # fmt: skip


def words(text: str, clauses: list[int] | None = None) -> list[str]:
    """The words of a text; ``clauses``, if given, is filled with the number of each word's clause (ended by , . ; ! ? "but")."""
    found, clause = [], 0
    for match in _WORD.finditer(text.casefold()):
        word = match.group()
        if (word[0] in ".,;!?\n" and not word[-1].isdigit()) or word in _BREAKS:
            clause += 1
            if word not in _BREAKS:
                continue
        if word.endswith(("n't", "n’t")):
            word = "not"
        elif word.endswith(("'s", "’s")):
            word = word[:-2]
        elif "," in word:
            word = word.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?", word) else word
        if word in _ARTICLES:
            continue
        found.append(word)
        if clauses is not None:
            clauses.append(clause)
    return found


def normal(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces; a text of articles alone stays as it is."""
    return " ".join(words(text)) or text.casefold().strip(" .,;!?\n")


def is_refusal(text: str) -> bool:
    """True for a reply that says that there is no answer ("I don't know", "unknown")."""
    return normal(text) in _REFUSALS or text.strip().casefold() in _REFUSALS


def number_in(text: str) -> float | None:
    """The one number that a text states, or None: "1,200 m" is 1200, "45%" 45, "3/4" 0.75, "2 + 2 = 4" 4, "twelve" 12.

    Ranges, lists, clock times, denials, NaN and what no float can hold are None.
    """
    if len(text) > 100_000:
        return None
    plain = _WRAPPED.sub(r" \1", text).replace("−", "-").replace("\\,", "").replace("\\%", "%")
    said = _REMARK.sub(" ", plain)
    if not re.search(r"[,;]\s", said):
        said = re.split("[=≈]", said)[-1]
    if _CLOCK.search(said) or any(word in NEGATIONS for word in words(said)):
        return None
    fractions = _FRACTION.findall(said)
    rest = _FRACTION.sub(" ", said)
    values = {_quotient(sign, above or over, below or under) for sign, above, below, over, under in fractions}
    values |= {_float(match.group()) for match in _NUMBER.finditer(rest)}
    if len(values) == 1:
        return values.pop()
    return None if values else _spelled(said)


def _float(text: str) -> float | None:
    value = float(text.replace(",", "")) if len(text) < 400 else math.inf
    return value if math.isfinite(value) else None


def _quotient(sign: str, above: str, below: str) -> float | None:
    return (-1.0 if sign == "-" else 1.0) * int(above) / int(below) if int(below) else None


def _spelled(text: str) -> float | None:
    said = words(_HEDGE.sub("", _LEAD.sub("", text.strip(), count=1), count=1))
    values = [_NUMBER_WORDS[word] for word in said if word in _NUMBER_WORDS]
    return float(values[0]) if len(values) == 1 and said[0] in _NUMBER_WORDS else None


def stated_number(sentence: str) -> bool:
    """True when a reply without marks is a statement of one number: "3 cars", "There are 3 cars.", "2 + 2 = 4"."""
    plain = sentence.strip()
    if "\n" in plain or "?" in plain or len(plain) > 200 or number_in(plain) is None:
        return False
    rest = _HEDGE.sub("", _LEAD.sub("", plain, count=1), count=1)
    led = bool(_NUMBER.match(rest)) or rest.split()[0].casefold() in _NUMBER_WORDS
    return "=" in plain or len(plain.split()) <= 3 or (rest != plain and led)


def is_number(text: str) -> bool:
    """True when the text is a number and nothing else but a percent sign."""
    return bool(_NUMBER.fullmatch(text.strip().rstrip("%").strip()))


def same_number(said: str, reference: str, tolerance: float = 1e-6) -> bool:
    """Equal numbers, up to a tolerance relative to the reference (absolute below 1)."""
    a, b = number_in(said), number_in(reference)
    return a is not None and b is not None and abs(a - b) <= tolerance * max(1.0, abs(b))


def same_text(said: str, reference: str) -> bool:
    """Equal up to case, punctuation and articles; an answer of punctuation alone is compared as it stands."""
    a, b = words(said), words(reference)
    return a == b if b else said.strip().casefold() == reference.strip().casefold()


def yes_or_no(text: str) -> str | None:
    """Whether the text says "yes" or says "no", as an answer and not as in "no dog"; else None."""
    clauses: list[int] = []
    said = words(text, clauses)
    if text.strip()[:1] in ("不", "否", "没", "是", "对"):
        return "no" if text.strip()[0] in "不否没" else "yes"
    answers = set()
    for place, word in enumerate(said):
        ends = place + 1 == len(said) or clauses[place + 1] != clauses[place]
        if word == "yes" or (word == "no" and (ends or place == 0 or said[place + 1] in ("or", "and"))):
            denied = place > 0 and said[place - 1] == "not"
            answers.add("neither" if denied else word)
    return answers.pop() if len(answers) == 1 and "neither" not in answers else None


def relative_accuracy(said: str, reference: str) -> float:
    """Mean relative accuracy (ViLaSR): share of theta in .50, .55, ..., .95 at which |said - reference| / |reference| < 1 -
    theta.

    A reference of 0 asks for exactly 0.
    """
    a, b = number_in(said), number_in(reference)
    if a is None or b is None:
        return 0.0
    if b == 0:
        return float(a == 0)
    error = abs(a - b) / abs(b)
    # in steps of 5 %, rounded so that an error of exactly 0.05 is not below 0.05
    return sum(round(error, 9) < step / 20 for step in range(1, 11)) / 10


def edit_similarity(said: str, reference: str, threshold: float = 0.5) -> float:
    """1 - edit distance / longer length, case and outer spaces aside; below ``threshold`` 0 (ANLS, 1905.13648, with 0.5).

    Takes len(said) x len(reference) steps, and none where the lengths alone put it below the threshold.
    """
    a, b = said.strip().casefold(), reference.strip().casefold()
    longest = max(len(a), len(b))
    if longest == 0:
        return 1.0
    if min(len(a), len(b)) / longest < threshold or len(a) * len(b) > 25_000_000:
        return float(a == b)
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (char != other))
    similarity = 1 - row[-1] / longest
    return similarity if similarity >= threshold else 0.0


def bleu1(said: str, reference: str) -> float:
    """Share of the said words that the reference has (each as often as there), times the brevity penalty (BLEU with n = 1)."""
    a, b = words(said), words(reference)
    if not a or not b:
        return 0.0
    common = sum((Counter(a) & Counter(b)).values())
    return common / len(a) * (1.0 if len(a) >= len(b) else math.exp(1 - len(b) / len(a)))
