"""Format terms: does the text end the way it was asked to? 1.0 or 0.0, nothing between."""

from __future__ import annotations

import re
from collections.abc import Callable

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK_FIRST = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


def answer_tags(text: str) -> float:
    """Exactly one pair of answer tags, with something between them, and nothing behind."""
    found = _ANSWER.findall(text)
    one = len(found) == 1 and text.count("<answer>") == 1 and text.count("</answer>") == 1
    return float(one and bool(found[0].strip()) and text.rstrip().endswith("</answer>"))


def think_answer(text: str) -> float:
    """One thought first, then `answer_tags`."""
    found = _THINK_FIRST.fullmatch(text)
    if found is None or text.count("<think>") != 1 or text.count("</think>") != 1:
        return 0.0
    return float(bool(found.group(1).strip())) * answer_tags(found.group(2))


def boxed(text: str) -> float:
    """Exactly one ``\\boxed{`` with something in it."""
    return float(text.count("\\boxed{") == 1 and re.search(r"\\boxed\{\s*[^\s}]", text) is not None)


def think_boxed(text: str) -> float:
    """One thought first, then `boxed`."""
    found = _THINK_FIRST.fullmatch(text)
    if found is None or text.count("<think>") != 1 or text.count("</think>") != 1:
        return 0.0
    return boxed(found.group(2))


FORMATS: dict[str, Callable[[str], float]] = {
    "answer_tags": answer_tags,
    "think_answer": think_answer,
    "boxed": boxed,
    "think_boxed": think_boxed,
}
"""Every format term by its name in a recipe."""
