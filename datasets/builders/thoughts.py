"""Thoughts written backwards: a model is shown the question and its answer, and writes the thought that leads from one to the
other ("reverse thinking", TON, 2505.16854, stage 1). Kept are thoughts that could stand before an answer nobody has given away.

Thought dropout itself is a setting of training (`signals.sft.thought_dropout`); `trajectories.drop_thoughts` does it.
"""

from __future__ import annotations

import re

from ...vlm.records import Sample
from ..trajectories import Trajectory
from ..views import ViewSpec

_ASK = """

The right answer is: {answer}

Write the reasoning that leads to it, step by step, in a few sentences: what to look for, what is seen there, what follows. \
Write as someone who does not know the answer yet and finds it; come to it at the end, and never say that it was known or \
given. Write the reasoning alone."""

THOUGHT_VIEW = ViewSpec(
    name="thoughts",
    system="You explain how a question about a picture is solved. You are told the answer, so that your explanation ends at it.",
    answer=_ASK,
    reveals=("answer",),
)
"""What a writer of thoughts is shown by default."""

_ANSWER = re.compile(r"<answer>.*?(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL | re.IGNORECASE)
_MARKUP = re.compile(r"</?[a-z_]+>|<\|[^|<>]*\|>|<image>|<video>", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+|(?<=[。！？])")
_UNSPACED = "[\u3040-\u9fff]"
"""Chinese and Japanese, which put no spaces between words: two signs are taken for one."""
_LETTER = r"[^\W\u3040-\u9fff]"
_LEAKS = re.compile(
    r"\b(?:ground[- ]truth|(?:given|provided|reference|known|stated) (?:right |correct )?(?:answer|solution)"
    r"|(?:answer|solution) (?:is|was|has been) (?:given|provided|known|told|stated)"
    r"|(?:i am|i was|i'm|we are|we were|we're|i've been|have been) (?:told|given)"
    r"|(?:since|because|as|given that) (?:we know |i know )?(?:the|that the) (?:right |correct )?answer (?:is|was)"
    r"|(?:according to|based on|to match|matches|consistent with) the (?:right |correct )?(?:answer|solution))\b",
    re.IGNORECASE,
)


def told_answer(sample: Sample) -> str:
    """The answer as the writer is told it: an option with its text, ``B. a red bus``."""
    text = option_text(sample)
    return sample.answer or "" if text is None else f"{sample.answer}. {text}"


def option_text(sample: Sample) -> str | None:
    """The text of the right option; None where there are no options, or the answer is no letter of theirs."""
    letters = [chr(ord("A") + place) for place in range(len(sample.options))]
    answer = (sample.answer or "").strip("(). ")
    return sample.options[letters.index(answer)] if answer in letters else None


def thought_in(reply: str) -> str:
    """The thought in a reply: what stands outside of its answer and of the writer's own thought, else what stands in that."""
    rest = _ANSWER.sub("", reply)
    outside = _THOUGHT.sub("", rest).strip()
    inside = [found.strip() for found in _THOUGHT.findall(rest)]
    return outside or (inside[-1] if inside else "")


def flaw(thought: str, sample: Sample, *, min_words: int = 5, max_words: int = 400) -> str | None:
    """Why a thought cannot be taught, or None.

    empty; markup (tags or control tokens, which would end the thought before its end); too_short; too_long; leak (it says that
    the answer was given); answer_first (its first sentence says the answer already).
    """
    if not thought:
        return "empty"
    if _MARKUP.search(thought):
        return "markup"
    words = len(re.findall(rf"{_LETTER}+", thought)) + len(re.findall(_UNSPACED, thought)) // 2
    if words < min_words:
        return "too_short"
    if words > max_words:
        return "too_long"
    if _LEAKS.search(thought):
        return "leak"
    return "answer_first" if _says(_SENTENCE_END.split(thought)[0], sample) else None


def _says(sentence: str, sample: Sample) -> bool:
    answer, text = (sample.answer or "").strip(), option_text(sample)
    if text is not None:  # a letter alone is a word like any other ("A bus ..."): it is the answer where it is called so
        letter = re.escape(answer.strip("(). "))
        named = rf"(?i:\b(?:answer|option|choice)\b\W+(?:is\W+|must be\W+)?){letter}(?!\w)|\({letter}\)"
        return re.search(named, sentence) is not None or _word(text, sentence)
    if answer in ("A", "I"):  # words of their own ("A bus ...", "I look ...")
        return re.search(rf"(?<!{_LETTER}){answer}(?!{_LETTER})(?!\s+[a-z])", sentence) is not None
    return _word(answer, sentence)


def _word(word: str, sentence: str) -> bool:
    return bool(word) and re.search(rf"(?<!{_LETTER}){re.escape(word)}(?!{_LETTER})", sentence, re.IGNORECASE) is not None


def with_thought(sample: Sample, thought: str) -> Trajectory:
    """What is taught: ``<think>thought</think><answer>answer</answer>``."""
    return Trajectory(sample, (f"<think>{thought}</think><answer>{sample.answer}</answer>",))
