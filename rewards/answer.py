"""Reading an answer out of a model's text, and comparing it with the reference.

Two outcomes are kept apart everywhere: a wrong answer, and no answer that can be read (``unparsed``). Nothing is ever guessed:
not the first letter, not A, not a random option. Model text is only ever read, never executed.

The order of evidence: ``<answer>`` tags (the last complete pair), ``\\boxed{}`` (the last), a phrase ("Answer: B", "the answer is
B"), and without any of these, what the text itself says unambiguously: one option's letter standing alone, the text of exactly
one option, or a reply so short that it can only be the answer. Whatever stands inside ``<think>`` is not an answer.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["auto", "exact", "choice", "number", "text"]
How = Literal["tag", "boxed", "phrase", "letter", "option", "whole", "none"]

_THINK = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(
    r"\b(?:answer|option|choice)(?:\s*[:=]|\s+(?:is|would\s+be|must\s+be|should\s+be)\b\s*[:=]?)\s*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=\w\w\w)\.\s+(?=[A-Z])")
_DENIED = re.compile(r"(?:\bnot|n['’]t|\bneither|\bnor|\bexcept|\bwithout)\s+(?:option\s+)?[(\[]?[A-Z]\b(?!\s+\w)", re.IGNORECASE)
_OPTION_LINE = re.compile(r"(?:^|\n)\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*([^\n]+)")
_INLINE_OPTION = re.compile(r"\(([A-Z])\)\s*(.+?)(?=\s*[,;]?\s*\([A-Z]\)|$|\n)")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
_NO_PUNCTUATION = str.maketrans(string.punctuation, " " * len(string.punctuation))
_SHORT_WORDS = 3
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Parsed:
    """What was read: ``text`` (None: unparsed) and by which evidence."""

    text: str | None
    how: How = "none"


UNPARSED = Parsed(None)


def extract(text: str, options: Sequence[str] = (), letters: int | None = None) -> Parsed:
    """The answer in ``text``. With ``options`` (or a number of ``letters``) it is a letter "A", "B", ...; else free text.

    >>> extract("A red car is visible, so B.", ["red", "blue"]).text
    'B'
    >>> extract("<think>A or C?</think><answer>B</answer>", letters=4)
    Parsed(text='B', how='tag')
    >>> extract("It is hard to say.", letters=4).text is None
    True
    """
    spoken = _spoken(text)
    count = len(options) or letters or 0
    marked = _marked(spoken)
    if marked is not None:
        content, how = marked
        if not count:
            return Parsed(content, how) if content else UNPARSED
        letter = _choice(content, options, count, marked=how != "phrase") if content else None
        return Parsed(letter, how) if letter else UNPARSED
    if count:
        return _unmarked_choice(spoken, options, count)
    words = spoken.split()
    return Parsed(spoken.strip(), "whole") if 0 < len(words) <= _SHORT_WORDS else UNPARSED


def _spoken(text: str) -> str:
    """The text without its thoughts. A thought that never ends hides all that follows it."""
    spoken = _THINK.sub(" ", text)
    opened = spoken.lower().find("<think>")
    if opened >= 0:
        spoken = spoken[:opened]
    # Chat templates open the thought inside the prompt: then the reply has only the end of it.
    closed = spoken.lower().rfind("</think>")
    return spoken[closed + len("</think>") :] if closed >= 0 else spoken


def _marked(spoken: str) -> tuple[str, How] | None:
    tags = _TAG.findall(spoken)
    if tags:
        content = tags[-1].strip()
        return (_boxed(content) or content), "tag"
    if "<answer>" in spoken.lower():
        return "", "tag"  # cut off inside the answer: the rest of it is not known
    boxed = _boxed(spoken)
    if boxed is not None:
        return boxed, "boxed"
    phrases = list(_PHRASE.finditer(spoken))
    if not phrases:
        return None
    rest = spoken[phrases[-1].end() :].strip()
    line = _SENTENCE_END.split(rest.split("\n", 1)[0], maxsplit=1)[0].strip().strip("*_`\"' ")
    return (line.rstrip(".") if line else ""), "phrase"


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, first = 1, start + len("\\boxed{")
    for place in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            inner = text[first:place].strip()
            wrapped = re.fullmatch(r"\\(?:text|mathrm|mathbf|textbf)\{(.*)\}", inner, re.DOTALL)
            return wrapped.group(1).strip() if wrapped else inner
    return None


def _choice(content: str, options: Sequence[str], count: int, marked: bool) -> str | None:
    """The letter that a marked answer names: alone, at its head, by the text of one option, or standing alone within."""
    plain = content.strip().strip("*_`\"' $")
    last = chr(ord("A") + count - 1)
    alone = re.fullmatch(rf"(?:option|choice|answer)?\s*[:(\[]?\s*([A-{last}])\s*[)\].:]?", plain, re.IGNORECASE)
    if alone and (marked or alone.group(1).isupper() or "(" in plain):
        return alone.group(1).upper()
    head = re.match(rf"(?:\(([A-{last}])\)|([A-{last}])[.):](?!\w))", plain)
    if head and set(_letters(_DENIED.sub(" ", plain), count)) <= {head.group(1) or head.group(2)}:
        return head.group(1) or head.group(2)
    if _DENIED.search(plain):
        return None
    rivals = set(_letters(plain, count))
    by_text = _by_option_text(plain, options)
    # "A red car" under "the answer is": a letter that the option's own text confirms.
    led = re.match(rf"([A-{last}])\s+(.+)", plain, re.DOTALL)
    if led and options and _normal(options[ord(led.group(1)) - ord("A")]) == _normal(led.group(2)):
        return led.group(1)
    if len(rivals) == 1:
        letter = next(iter(rivals))
        return letter if by_text in (None, letter) else None
    return by_text if not rivals else None


def _unmarked_choice(spoken: str, options: Sequence[str], count: int) -> Parsed:
    if not spoken.strip() or _DENIED.search(spoken):
        return UNPARSED
    named = set(_letters(spoken, count))
    if len(named) == 1:
        return Parsed(next(iter(named)), "letter")
    if len(named) > 1:
        return UNPARSED
    by_text = _by_option_text(spoken, options)
    return Parsed(by_text, "option") if by_text else UNPARSED


def _letters(text: str, count: int) -> list[str]:
    """Option letters that stand alone: in brackets, or as a capital followed by the end, punctuation or a line's end.

    A capital followed by a word is an article or a pronoun ("A red car", "I see"), but for "A or B".
    """
    last = chr(ord("A") + count - 1)
    pattern = (
        rf"[(\[]([A-{last}])[)\]]"
        rf"|(?<![\w'’\-.])([A-{last}])(?=\s*(?:[.,;:!?)*]|$|\n)|\s+(?:or|and|nor)\s+\(?[A-{last}]\b)(?!['’\-]|\.\w)"
    )
    return [found.group(1) or found.group(2) for found in re.finditer(pattern, text)]


def _by_option_text(text: str, options: Sequence[str]) -> str | None:
    """The letter of the only option whose text is said. An option inside a longer one that is said too does not count."""
    said = f" {_normal(text)} "
    found = [
        (index, f" {_normal(option)} ")
        for index, option in enumerate(options)
        if _normal(option) and f" {_normal(option)} " in said
    ]
    hits = []
    for index, option in found:
        rest = said
        for other_index, other in found:
            if other_index != index and option in other:
                rest = rest.replace(other, "  ")
        if option in rest:
            hits.append(index)
    return chr(ord("A") + hits[0]) if len(hits) == 1 else None


def options_in(question: str) -> tuple[str, ...]:
    """The options that a question lists in its text, "A. red" or "(A) red", lettered from A without a gap; else none.

    >>> options_in("Which colour?\\nA. red\\nB. blue")
    ('red', 'blue')
    """
    for pattern in (_OPTION_LINE, _INLINE_OPTION):
        texts: list[str] = []
        for found in pattern.finditer(question):
            letter, body = (found.group(1) or found.group(2), found.group(3)) if pattern is _OPTION_LINE else found.groups()
            if letter == chr(ord("A") + len(texts)):
                texts.append(body.strip().rstrip(",;"))
        if len(texts) >= 2:
            return tuple(texts)
    return ()


def letter_of(answer: str, options: Sequence[str]) -> str | None:
    """The letter of a reference answer that is a letter ("B", "(B)", "B. blue") or an option's text."""
    same = [index for index, option in enumerate(options) if _normal(option) == _normal(answer)]
    if len(same) == 1:
        return chr(ord("A") + same[0])
    found = re.match(r"\s*\(?([A-Z])(?:[).:]|\s*$)", answer)
    if found and (not options or ord(found.group(1)) - ord("A") < len(options)):
        return found.group(1)
    return None


def number_in(text: str) -> float | None:
    """The only number in the text ("1,200 m" is 1200, "45%" is 45), or None."""
    found = [match.group() for match in _NUMBER.finditer(text) if any(char.isdigit() for char in match.group())]
    values = {float(match.replace(",", "")) for match in found}
    return values.pop() if len(values) == 1 else None


def _normal(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    bare = text.casefold().translate(_NO_PUNCTUATION)
    words = bare.split()
    kept = [word for word in words if word not in _ARTICLES]
    return " ".join(kept or words)


def same_text(said: str, reference: str) -> bool:
    """Equal up to case, punctuation and articles; a reference "yes" or "no" equals a sentence that starts with it."""
    a, b = _normal(said), _normal(reference)
    if b in ("yes", "no"):
        words = a.split()
        return bool(words) and words[0] == b and ({"yes", "no"} - {b}).isdisjoint(words)
    if not b:
        return said.strip() == reference.strip()  # an answer of punctuation alone
    return a == b


def same_number(said: str, reference: str, tolerance: float = 1e-6) -> bool:
    """Equal numbers, up to a relative tolerance."""
    a, b = number_in(said), number_in(reference)
    return a is not None and b is not None and abs(a - b) <= tolerance * max(1.0, abs(b))


def is_number(text: str) -> bool:
    """True when the text is a number and nothing else but a percent sign."""
    found = _NUMBER.fullmatch(text.strip().rstrip("%").strip())
    return found is not None and any(char.isdigit() for char in text)
