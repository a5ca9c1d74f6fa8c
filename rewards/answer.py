"""Reading an answer out of a model's text.

Two outcomes are kept apart everywhere: a wrong answer, and no answer that can be read (``unparsed``). Nothing is ever guessed:
not the first letter, not A, not a random option, not what is left after elimination.

The order of evidence: ``<answer>`` tags (the last complete pair), a protocol's own way to end, ``\\boxed{}`` (the last), a
phrase ("Answer: B", also in other languages), and without any of these, what the text itself says unambiguously: one option's
letter where an answer can stand, the words of exactly one option, one number, yes or no, or a reply so short that it can only
be the answer. Whatever stands in a thought is not an answer, a denied option is not one, and an answer that was cut off is not
one either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .choices import read_choice, read_unmarked
from .compare import is_refusal, number_in, stated_number, yes_or_no
from .marks import How, marked, spoken

Kind = Literal["auto", "exact", "choice", "number", "yes_no", "text", "maths", "anls", "mra", "bleu"]
"""How an answer is read and compared; see `terms.answer.Answer`."""

_SHORT_WORDS = 3


@dataclass(frozen=True)
class Parsed:
    """What was read: ``text`` (None: unparsed) and by which evidence."""

    text: str | None
    how: How = "none"


UNPARSED = Parsed(None)


def extract(text: str, options: Sequence[str] = (), letters: int | None = None, kind: Kind = "auto") -> Parsed:
    """The answer in ``text``. With ``options`` (or a number of ``letters``) it is a letter "A", "B", ...; else as it was written.

    ``kind`` number or mra asks for a text with exactly one number in it, yes_no for "yes" or "no".

    >>> extract("A red car is visible, so B.", ["red", "blue"]).text
    'B'
    >>> extract("<think>A or C?</think><answer>B</answer>", letters=4)
    Parsed(text='B', how='tag')
    >>> extract("It is hard to say.", letters=4).text is None
    True
    """
    said = spoken(text)
    count = len(options) or letters or 0
    mark = marked(said)
    if mark is not None and not mark.content:
        return UNPARSED
    if count:
        if mark is not None:
            choice = read_choice(mark.content, options, count, strict_case=mark.how == "phrase")
            return Parsed(choice.letter, mark.how) if choice else UNPARSED
        choice = read_unmarked(said, options, count)
        return Parsed(choice.letter, choice.by) if choice else UNPARSED
    content, how = (mark.content, mark.how) if mark is not None else (said.strip(), "whole")
    if kind == "yes_no":
        word = yes_or_no(content)
        return Parsed(word, how) if word else UNPARSED
    if kind in ("number", "mra"):
        readable = number_in(content) is not None if mark is not None else stated_number(content)
        return Parsed(content, how) if readable else UNPARSED
    if is_refusal(content) or (mark is None and not 0 < len(content.split()) <= _SHORT_WORDS):
        return UNPARSED
    return Parsed(content, how)
