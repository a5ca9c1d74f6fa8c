"""How two well-known harnesses read a multiple-choice reply, as rules in words of our own: oracles for tests, not for use.

State of 2026-08 (VLMEvalKit 2026-08-18, lmms-eval 2026-08-06). Each takes a reply and the texts of the options and returns a
letter, or None where the rule finds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Rule = Callable[[str, Sequence[str]], str | None]
_STOCK = (
    "The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is", "The correct option is",
    "Best answer:", "Best option:",
)  # fmt: skip
_SAYS_SO = ("answer is", "option is", "choice is", "i choose", "i select", "i pick")


def letters_of(options: Sequence[str]) -> str:
    return "ABCDEFGH"[: len(options)]


def vstar_rule(text: str, options: Sequence[str]) -> str | None:
    """lmms-eval, V*: in capitals, the first of: a letter that the text begins with (of a word, too); one behind ANSWER, CHOICE or
    OPTION; one in brackets; one before a full stop or a bracket (the end of a word, too); one between spaces; the only one."""
    shout = text.strip().upper()
    tries = (
        r"^([A-D])",
        r"(?:ANSWER|CHOICE|OPTION)(?: IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*[.)\]]",
        r"(?:^|\s)([A-D])(?:\s|$)",
    )
    for found in (re.search(one, shout) for one in tries):
        if found:
            return found.group(1)
    held = [char for char in shout if char in "ABCD"]
    return held[0] if len(held) == 1 else None


def first_capital_rule(text: str, options: Sequence[str]) -> str | None:
    """VLMEvalKit, MME-RealWorld and TreeBench (and lmms-eval, LongVideoBench): the first capital A to E anywhere, stock phrases
    aside; without one, the first option mark "(A)" ... that the text is a part of, as the empty text is of every one."""
    said = text.strip()
    for phrase in _STOCK:
        said = said.replace(phrase, "")
    capitals = [char for char in said if char in "ABCDE"]
    if capitals:
        return capitals[0]
    inside = [letter for letter in "ABCDE" if said.lower() in f"({letter.lower()})"]
    return inside[0] if inside and len(said.split()) <= 10 else None


def can_infer_rule(text: str, options: Sequence[str]) -> str | None:
    """VLMEvalKit, multiple choice: a letter that is a word by itself, if no other is and it is one of the last four words; else
    "answer is X"; else the one option whose text occurs (inside words, too), unless the reply is twice as long as all options."""
    split = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    standing = [letter for letter in letters_of(options) if letter in split]
    if len(standing) == 1 and split.index(standing[0]) > len(split) - 5:
        return standing[0]
    says = re.search(r"answer\s+is\s+\**([A-D])", text, re.IGNORECASE)
    if says and says.group(1).upper() in letters_of(options):
        return says.group(1).upper()
    if len(text) > 2 * sum(map(len, options)):
        return None
    named = [letter for letter, option in zip(letters_of(options), options, strict=True) if option.lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def ranked_rule(text: str, options: Sequence[str]) -> str | None:
    """lmms-eval, RealWorldQA and Video-MME: letters by where they stand, the best place first and the last letter of a place:
    alone at the head, alone at the end, anywhere behind a phrase, "(B)", "B.", "B:", "B)", before a space, anywhere."""
    said = text.strip().strip(",.!?;:'\"")
    if not said:
        return None
    padded, lower = f" {said} ", f" {said} ".lower()
    found: list[tuple[int, int, str]] = []
    for letter in letters_of(options):
        if said[0] == letter and not said[1:2].isalpha():
            found.append((10, 0, letter))
        if said[-1] == letter and not said[-2:-1].isalpha():
            found.append((9, len(padded), letter))
        for phrase in _SAYS_SO:
            start = lower.find(phrase)
            place = padded.find(letter, start + len(phrase)) if start >= 0 else -1
            found += [(7, place, letter)] if place >= 0 else []
        forms = (f"({letter})", f"{letter}.", f"{letter}:", f"{letter})", f"{letter} ", letter)
        for rank, form in zip((6, 5, 4, 3, 2, 0), forms, strict=True):
            found += [(rank, padded.rfind(form), letter)] if form in padded else []
    return max(found)[2] if found else None


def nearest_option_rule(text: str, options: Sequence[str]) -> str:
    """lmms-eval, MathVista, for what is no letter: the option at the least edit distance, of equally near ones the first."""
    return min(zip(letters_of(options), options, strict=True), key=lambda pair: _distance(text, pair[1]))[0]


def _distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def exact_word_rule(text: str) -> str | None:
    """lmms-eval, POPE: the reply is "yes" or "no" and nothing else."""
    said = text.lower().strip()
    return said if said in ("yes", "no") else None


def one_word_rule(text: str) -> str | None:
    """VLMEvalKit, yes and no: exactly one of the two words occurs."""
    held = {"yes", "no"} & set(re.sub(r"[^\w\s]", " ", text.lower()).split())
    return held.pop() if len(held) == 1 else None


RULES: dict[str, Rule] = {
    "first letter (lmms-eval, V*)": vstar_rule,
    "first capital (VLMEvalKit, MME-RealWorld, TreeBench)": first_capital_rule,
    "can_infer (VLMEvalKit, multiple choice)": can_infer_rule,
    "ranked forms (lmms-eval, RealWorldQA, Video-MME)": ranked_rule,
}
