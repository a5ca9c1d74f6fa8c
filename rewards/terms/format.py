"""Format: did the model write as its protocol asks? One function per protocol, from the texts of all turns to a number."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ..base import Case, Term

_MAX_ANSWER_CHARS = 1000
_FOUR_NUMBERS = re.compile(r"\b\d++, ?\d++, ?\d++, ?\d++\b")


def _between(text: str, *tags: str) -> list[str] | None:
    """What stands in these tags, when the text is exactly these elements in this order, each once; else None."""
    found, rest = [], text.strip()
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1 or not rest.startswith(opening):
            return None
        inner, end, rest = rest.removeprefix(opening).partition(closing)
        if not end:
            return None
        found.append(inner.strip())
        rest = rest.lstrip()
    return None if rest else found


def answer_tags(turns: Sequence[str]) -> float:
    """The last turn has exactly one pair of answer tags, with something between them, and nothing behind."""
    text = turns[-1]
    if text.count("<answer>") != 1 or text.count("</answer>") != 1 or not text.rstrip().endswith("</answer>"):
        return 0.0
    return float(bool(text.partition("<answer>")[2].partition("</answer>")[0].strip()))


def think_answer(turns: Sequence[str]) -> float:
    """The last turn is one thought, then `answer_tags`."""
    rest = _behind_thought(turns[-1])
    return 0.0 if rest is None else answer_tags([rest])


def boxed(turns: Sequence[str]) -> float:
    """The last turn has exactly one ``\\boxed{`` with something in it."""
    text = turns[-1]
    return float(text.count("\\boxed{") == 1 and text.partition("\\boxed{")[2].lstrip()[:1] not in ("", "}"))


def think_boxed(turns: Sequence[str]) -> float:
    """The last turn is one thought, then `boxed`."""
    rest = _behind_thought(turns[-1])
    return 0.0 if rest is None else boxed([rest])


def _behind_thought(text: str) -> str | None:
    thought, end, rest = text.strip().partition("</think>")
    one = text.count("<think>") == 1 and text.count("</think>") == 1 and bool(end)
    return rest if one and thought.startswith("<think>") and thought.removeprefix("<think>").strip() else None


def ton(turns: Sequence[str]) -> float:
    """A thought, which may be empty, then an answer, and nothing else (Think Or Not, 2505.16854)."""
    return float(_between(turns[-1], "think", "answer") is not None)


def deepeyes(turns: Sequence[str]) -> float:
    """0, or -1 when the tags of thoughts over all turns, or those of the answer behind the last thought, do not pair up.

    An answer of 1000 characters or more is an error too (against hacking the judge). The prompt may have opened the thoughts.
    """
    text = "".join(turns)
    opened_by_prompt = sum("</think>" in turn and "<think>" not in turn.partition("</think>")[0] for turn in turns)
    last = text.rpartition("</think>")[2]
    answer = text.rpartition("<answer>")[2].partition("</answer>")[0] if "<answer>" in text else ""
    wrong = (
        text.count("<think>") + opened_by_prompt != text.count("</think>")
        or last.count("<answer>") != last.count("</answer>")
        or len(answer.strip()) >= _MAX_ANSWER_CHARS
    )
    return -1.0 if wrong else 0.0


def openthinkimg(turns: Sequence[str]) -> float:
    """Share of the turns that are a JSON object (OpenThinkIMG, 2505.08617)."""
    return sum(_is_json_object(text) for text in turns) / len(turns)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.strip()), dict)
    except (ValueError, RecursionError):
        return False


def vilasr(turns: Sequence[str]) -> float:
    """Every turn is a thought and an action: drawings with their list, and an answer in tags in the last turn alone."""
    for number, text in enumerate(turns):
        rest = _behind_thought(text)
        if rest is None:
            return 0.0
        action = rest.strip()
        if number + 1 == len(turns):
            if not action.startswith("Action: Answer") or answer_tags([action]) == 0:
                return 0.0
        elif not action.startswith(("Action: Object Mapper", "Action: Path Tracer")) or action.count("```") != 2:
            return 0.0
    return 1.0


def grit_answer(turns: Sequence[str]) -> float:
    """Half for ``<answer>`` being there, half for its being there once (GRIT, 2505.15879)."""
    count = turns[-1].count("<answer>")
    return ((count > 0) + (count == 1)) / 2


def grit_tags(turns: Sequence[str]) -> float:
    """A fifth for each of the four think and rethink tags in order, and a fifth for a thought that is not blank (GRIT)."""
    text, at, inside = turns[-1], 0, {}
    for tag in ("<think>", "</think>", "<rethink>", "</rethink>"):
        found = text.find(tag, at)
        if found >= 0:
            inside[tag], at = found, found + len(tag)
    thought = text[inside["<think>"] + len("<think>") : inside["</think>"]] if {"<think>", "</think>"} <= inside.keys() else ""
    return (len(inside) + bool(thought.strip())) / 5


def grit_boxes(turns: Sequence[str]) -> float:
    """1 when four whole numbers with commas between stand before ``<rethink>`` (GRIT): syntax, not truth."""
    before, tag, _ = turns[-1].partition("<rethink>")
    return float(bool(tag) and _FOUR_NUMBERS.search(before) is not None)


def frame_thinker(turns: Sequence[str]) -> float:
    """Every turn is one thought and one action, and the last action, and no other, answers (FrameThinker, 2509.24304)."""
    for number, text in enumerate(turns):
        found = _between(text, "think", "action")
        if found is None or found[1].startswith("output answer:") != (number + 1 == len(turns)):
            return 0.0
    return 1.0


def deepsport(turns: Sequence[str]) -> float:
    """Every turn is a thought and one tool call, but for the last, which is a thought and an answer (DeepSport, 2511.12908)."""
    for number, text in enumerate(turns):
        last = number + 1 == len(turns)
        found = _between(text, "think", "answer" if last else "tool_call")
        if found is None or not found[1]:
            return 0.0
    return 1.0


def rlcr(turns: Sequence[str]) -> float:
    """Thought, answer, analysis and confidence, in this order, none of them blank (RLCR, 2507.16806)."""
    found = _between(turns[-1], "think", "answer", "analysis", "confidence")
    return float(found is not None and all(found))


def answer_line(turns: Sequence[str]) -> float:
    """The last turn says ``Answer:`` exactly once (DyME, 2506.23061)."""
    return float(turns[-1].count("Answer:") == 1)


FORMATS: Mapping[str, Callable[[Sequence[str]], float]] = {
    rule.__name__: rule
    for rule in (
        answer_tags, think_answer, boxed, think_boxed, ton, deepeyes, openthinkimg, vilasr, grit_answer, grit_tags, grit_boxes,
        frame_thinker, deepsport, rlcr, answer_line,
    )
}  # fmt: skip
"""Every format by its name in a recipe."""


class Format(Term):
    """1 when the text has the form, 0 when it has not; some protocols give values between, or -1. A cut-off rollout never
    gains."""

    term: Literal["format"] = "format"
    style: Literal[
        "answer_tags", "think_answer", "boxed", "think_boxed", "ton", "deepeyes", "openthinkimg", "vilasr", "grit_answer",
        "grit_tags", "grit_boxes", "frame_thinker", "deepsport", "rlcr", "answer_line",
    ] = "answer_tags"  # fmt: skip
    """Whose form; the functions of `terms.format` say what each asks."""

    def value(self, case: Case) -> float:
        value = FORMATS[self.style](case.texts or ("",))
        return min(value, 0.0) if case.rollout.stop.truncated else value
