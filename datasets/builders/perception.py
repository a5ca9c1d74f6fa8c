"""Perception questions from captions: a writer turns a long caption into a question, and judges say whether it is worth asking.

"From Seeing to Thinking" (2605.20177, stage 1): keep a question iff every judge model answers it from the caption and misses it
in the picture ("solvable from the text, missed from the pixels"). Nothing here asks a model: this file writes the prompts, reads
the replies, and decides.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...vlm.records import Sample
from ..scenes import COLOURS, LETTERS, SHAPES, place_name, scene_of
from ..splits import in_test

NUM_OPTIONS = 4
Kind = Literal["spatial", "detail"]
Split = Literal["train", "dev", "test"]
SPLIT_FRACS: Mapping[Split, float] = {"train": 0.85, "dev": 0.05, "test": 0.10}

WRITER_PROMPT = """Below is a long description of a picture. Write one multiple-choice question about the picture that can be \
answered from the description and that a reader without the picture or the description could only guess.

Ask either where things are with respect to each other (kind "spatial") or about a small detail: a text, a number, a colour, a \
material, a part of something (kind "detail"). Name the thing you ask about so that there is only one such thing in the picture. \
Write of the picture alone: never mention a description, a caption or a text that was given.

Give four options of similar length and form, exactly one of them right according to the description; the three others should \
be plausible in such a picture.

Reply with one JSON object and nothing else:
{"kind": "spatial" or "detail", "question": "...", "options": ["...", "...", "...", "..."], "answer": "A", "B", "C" or "D"}

Description:
"""

JUDGE_SYSTEM = "Answer the question. End with the letter of the right option in <answer> and </answer>, once."
JUDGE_SYSTEM_OPEN = "Answer the question in a few words. End with the answer in <answer> and </answer>, once."
CAPTION_TEMPLATE = "Description of a picture:\n{caption}\n\n{question}"

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(r"\A\(?([A-D])(?:[.):]|\s-)\s+", re.IGNORECASE)
_GIVEN_AWAY = re.compile(
    r"\b(?:captions?|descriptions?|described|mentioned|the (?:text|passage) (?:says|states|mentions|describes))\b", re.IGNORECASE
)


class BadReply(ValueError):
    """A writer's reply that is no question. ``reason`` is what it is counted under."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(f"{reason}: {what}")
        self.reason = reason


@dataclass(frozen=True)
class Written:
    """A question as it was written. ``right`` is the place of the right one among the ``options``."""

    kind: Kind
    question: str
    options: tuple[str, ...]
    right: int


def writer_prompt(caption: str) -> str:
    """What the writer is asked."""
    return WRITER_PROMPT + caption.strip()


def read_question(reply: str) -> Written:
    """The question in a writer's reply: one JSON object, in a code fence or not, a thought before it aside.

    `BadReply`, with its reason: no_json, bad_json, text_around, fields, kind, no_question, gives_away (it speaks of the
    description), options (not four different ones), answer.
    """
    text = _THOUGHT.sub("", reply).strip()
    fenced = _FENCE.match(text)
    text = fenced[1].strip() if fenced else text
    data = _object(text)
    wanted = {"kind", "question", "options", "answer"}
    if set(data) != wanted:
        raise BadReply("fields", f"{', '.join(sorted(data)) or 'none'}; expected {', '.join(sorted(wanted))}")
    kind, question = data["kind"], data["question"]
    if kind not in ("spatial", "detail"):
        raise BadReply("kind", f"{kind!r}; expected spatial or detail")
    if not isinstance(question, str) or not question.strip():
        raise BadReply("no_question", f"{question!r}")
    if _GIVEN_AWAY.search(question):
        raise BadReply("gives_away", question)
    options = _options(data["options"])
    return Written(kind, " ".join(question.split()), options, _right(data["answer"], options))


def _object(text: str) -> dict[str, Any]:
    start = text.find("{")
    if start < 0:
        raise BadReply("no_json", text[:80])
    try:
        data, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise BadReply("bad_json", str(error)) from error
    if start or text[end:].strip():
        raise BadReply("text_around", (text[:start] + text[end:]).strip()[:80])
    return dict(data)


def _options(given: Any) -> tuple[str, ...]:
    if isinstance(given, Mapping) and set(given) == set("ABCD"):
        given = [given[letter] for letter in "ABCD"]
    if not isinstance(given, list) or len(given) != NUM_OPTIONS or not all(isinstance(one, str | int | float) for one in given):
        raise BadReply("options", f"{str(given)[:80]}; expected {NUM_OPTIONS} texts")
    options = [" ".join(str(one).split()) for one in given]
    labels = [_LABEL.match(option) for option in options]
    if [label and label[1].upper() for label in labels] == list("ABCD"):
        options = [option[label.end() :] for option, label in zip(options, labels, strict=True) if label]
    if not all(options) or len({option.casefold().rstrip(".") for option in options}) < NUM_OPTIONS:
        raise BadReply("options", f"{options}; expected {NUM_OPTIONS} different ones")
    return tuple(options)


def _right(given: Any, options: Sequence[str]) -> int:
    said = " ".join(str(given).split())
    same = [place for place, option in enumerate(options) if option.casefold() == said.casefold()]
    letter = re.fullmatch(r"\(?([A-D])[.):]?", said)
    if letter and not (same and ord(letter[1]) - ord("A") != same[0]):  # "C" may be a letter and another option's text
        return ord(letter[1]) - ord("A")
    if not letter and len(same) == 1:
        return same[0]
    raise BadReply("answer", f"{given!r}; expected one of A, B, C, D")


def scene_question(sample: Sample) -> Written:
    """The question of a synthetic scene's own sample as a choice of four. No model writes it: its scene's generator did.

    `BadReply` for a kind with fewer than four answers; `ValueError` for a sample that is of no scene.
    """
    scene, answer = scene_of(sample), sample.answer or ""
    seen = [item.letter for item in scene.objects]
    others: Mapping[str, Sequence[str]] = {
        **{kind: [*seen, *LETTERS] for kind in ("letter", "hop", "earlier")},
        "where": [place_name((column + 0.5) / 3, (row + 0.5) / 3) for row in range(3) for column in range(3)],
        "shape": SHAPES,
        "colour": [*(item.colour for item in scene.objects), *COLOURS],
        "count": [str(number) for number in range(NUM_OPTIONS + 1)],
    }
    wrong = [one for one in dict.fromkeys(others.get(sample.kind, ())) if one != answer]
    if sample.kind == "where":
        wrong.sort(key=lambda one: _draw(sample.id, one))
    if len(wrong) < NUM_OPTIONS - 1:
        raise BadReply("options", f"kind {sample.kind} has too few answers for a choice of {NUM_OPTIONS}")
    kind: Kind = "spatial" if sample.kind in ("where", "hop") else "detail"
    return Written(kind, sample.question, (answer, *wrong[: NUM_OPTIONS - 1]), 0)


def checked(written: Written, *, open_ended: bool) -> Written:
    """The question, unless an option's text is A, B, C or D: with options shown, "B" has two meanings then. `BadReply`."""
    letters = [chr(ord("A") + place) for place in range(NUM_OPTIONS)]
    if not open_ended and set(letters) & {option.strip("(). ").upper() for option in written.options}:
        raise BadReply("ambiguous", f"{list(written.options)}: an option that is a letter itself")
    return written


def in_order(written: Written, seed: int, turn: int = 0) -> Written:
    """The same with its options in an order drawn from the seed and its own words, turned on by ``turn`` places.

    A writer that likes to put the right one first, and a judge that likes a letter, then gain nothing by it.
    """
    order = sorted(range(NUM_OPTIONS), key=lambda place: _draw(str(seed), written.question, written.options[place]))
    order = order[turn:] + order[:turn]
    return Written(written.kind, written.question, tuple(written.options[place] for place in order), order.index(written.right))


def _draw(*parts: str) -> bytes:
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "backslashreplace")).digest()


def asked(written: Written, sample_id: str, *, open_ended: bool) -> Sample:
    """The question as a sample without pictures. ``open_ended``: without its options, to be answered in words."""
    if open_ended:
        return Sample(id=sample_id, question=written.question, answer=written.options[written.right])
    letter = chr(ord("A") + written.right)
    return Sample(id=sample_id, question=written.question, answer=letter, options=written.options)


def verdict(caption: Sequence[str], image: Sequence[str], *, image_unparsed: Literal["drop", "missed"] = "drop") -> str | None:
    """Why a question is dropped, or None: it is kept. The outcomes are of one judge, one for each order of the options.

    Every outcome from the caption has to be right (else caption_wrong, caption_unparsed). None from the picture may be (else
    image_right); an answer that cannot be read says nothing of what was seen (image_unparsed), unless it counts as missed (the
    rule of the paper, which compares letters). "truncated" is an answer that cannot be read; "failed" is none (failed).
    """
    if "failed" in (*caption, *image):
        return "failed"
    if "wrong" in caption:
        return "caption_wrong"
    if any(one != "right" for one in caption):
        return "caption_unparsed"
    if "right" in image:
        return "image_right"
    if image_unparsed == "drop" and any(one != "wrong" for one in image):
        return "image_unparsed"
    return None


def splits(keys: Sequence[Sequence[str]], seed: int = 0) -> list[Split]:
    """The split of each row by the content of its pictures, 85 / 5 / 10: rows that share a picture share a split."""
    held = SPLIT_FRACS["test"], SPLIT_FRACS["test"] + SPLIT_FRACS["dev"]
    test, either = (in_test(keys, frac, seed) for frac in held)  # one draw a picture: the smaller share lies in the larger
    return ["test" if first else "dev" if second else "train" for first, second in zip(test, either, strict=True)]
