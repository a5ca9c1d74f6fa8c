"""The corruptions of Hallucination-as-Cue (2604.03179): what is left of an accuracy when the picture, or the text, says nothing?

The paper's three: a blank picture of the same size (BI), another random picture of the data set (RI), and the text without the
conditions that it states, the question kept (TR, by rules). A fourth permutes the options. Each changes one thing: the text is
the same under the first two, the pictures under the others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args, overload

from ..datasets.crops import blank
from ..rewards.choices import option_spans
from ..vlm.images import Picture
from ..vlm.messages import Clip
from ..vlm.records import Privileged, Sample
from .records import Item
from .scoring import circular

Corruption = Literal["blank_image", "random_image", "no_conditions", "permuted_options"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
_DRAWS = 16


def corrupted(items: Sequence[Item], how: Corruption, seed: int = 0) -> Sequence[Item]:
    """The items, each corrupted when it is asked for; ids stay, so that results pair with those of the clean ones.

    A random picture is never one of the item's own, whatever file it is in. What an item does not have cannot be corrupted: one
    without pictures, conditions or options stays as it is (`num_questions_differ` of a comparison counts changed texts).
    Depends on ``seed`` and the item's id alone; random pictures on the items too. Raises `ValueError` for an unknown ``how``,
    and for an item when there is no other picture in all items.
    """
    if how not in CORRUPTIONS:
        raise ValueError(f"there is no corruption {how!r}; there are {', '.join(CORRUPTIONS)}")
    return _Corrupted(items, how, seed)


@dataclass(frozen=True)
class _Corrupted(Sequence[Item]):
    items: Sequence[Item]
    how: Corruption
    seed: int

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        item = self.items[index]
        rng = random.Random(f"{self.seed}/{self.how}/{item.id}")
        match self.how:
            case "blank_image":
                return replace(item, sample=_blank(item.sample))
            case "random_image":
                return replace(item, sample=_other_pictures(item.sample, self.items, rng))
            case "no_conditions":
                return replace(item, sample=replace(item.sample, question=question_only(item.sample.question)))
        turned = circular(item)[1:]
        return rng.choice(turned)[0] if turned else item


# --- pictures ------------------------------------------------------------------------------------------------------------------


def _blank(sample: Sample) -> Sample:
    """Grey pictures of the same sizes, those of the evidence too; boxes stay where they are."""
    given = replace(sample.privileged, crops=_greys(sample.privileged.crops))
    video = None if sample.video is None else Clip(_greys(sample.video.frames), sample.video.times_s)
    return replace(sample, images=_greys(sample.images), video=video, privileged=given)


def _greys(pictures: Sequence[Picture]) -> tuple[Picture, ...]:
    return tuple(blank(*picture.size_px) for picture in pictures)


def _other_pictures(sample: Sample, items: Sequence[Item], rng: random.Random) -> Sample:
    """As many pictures as before, from other items; evidence boxes and crops, which belong to the old ones, are gone."""
    if not sample.images and sample.video is None:
        return sample
    own = {picture.key for picture in _seen(sample)}
    given = Privileged(rationale=sample.privileged.rationale, prompt=sample.privileged.prompt)
    found: list[Picture] = []
    for place in _places(len(items), rng):
        donor = items[place].sample
        if any(picture.key in own for picture in _seen(donor)):
            continue  # another question about the same picture
        if sample.video is not None and donor.video is not None:
            return replace(sample, video=donor.video, images=_first(donor.images, sample.images), privileged=given)
        if sample.video is None:
            found += donor.images
            if len(found) >= len(sample.images):
                return replace(sample, images=tuple(found[: len(sample.images)]), privileged=given)
    kind = "picture" if sample.video is None else "video"
    raise ValueError(
        f"item {sample.id}: there is no other {kind} among the {len(items)} items to show in place of its own; "
        "use more of the data set, or blank_image"
    )


def _first(donated: Sequence[Picture], wanted: Sequence[Picture]) -> tuple[Picture, ...]:
    """Beside a donated video: its own pictures, grey ones for those that are missing."""
    return (*donated[: len(wanted)], *_greys(wanted[len(donated) :]))


def _seen(sample: Sample) -> tuple[Picture, ...]:
    return (*sample.images, *(sample.video.frames if sample.video is not None else ()))


def _places(count: int, rng: random.Random) -> list[int]:
    """A few random places, then all from a random one on: each is met, and few are looked at where pictures differ."""
    start = rng.randrange(count)
    return [*(rng.randrange(count) for _ in range(_DRAWS)), *range(start, count), *range(start)]


# --- text ----------------------------------------------------------------------------------------------------------------------

_ABBREVIATIONS = ("Fig", "fig", "vs", "No", "Mr", "Mrs", "Dr", "St", "e.g", "i.e", "approx", "etc")
_SENTENCE_END = re.compile(
    r"(?<=[?？。！])\s*|(?<=[.!])(?<!\.[A-Z]\.)"
    + "".join(rf"(?<!\b{re.escape(short)}\.)" for short in _ABBREVIATIONS)
    + r"\s+|\n+"
)
_ASKING = (
    r"(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|will|would|should|has|have|"
    r"find|calculate|determine|compute|evaluate|solve|identify|name|list|describe|count|choose|select|estimate|prove|show|tell|"
    r"in\s+which|at\s+which|to\s+which|from\s+which|on\s+which|for\s+which|by\s+how|at\s+what|in\s+what|to\s+what)\b"
)
_ASKS = re.compile(rf"\s*(?:please\s+)?{_ASKING}", re.IGNORECASE)
_ASKING_CLAUSE = re.compile(rf"[,;:]\s*(?:then\s+|so\s+|and\s+|please\s+)*(?={_ASKING})", re.IGNORECASE)
_NOT_A_CONDITION = ("tell", "see", "determine", "know", "check", "say", "ask", "as", "even", "sure", "only")
_TRAILING = re.compile(
    r"(?:,\s*|" + "".join(rf"(?<!\b{word})" for word in _NOT_A_CONDITION) + r"\s+)"
    r"(?:if|given\s+that|provided\s+that|assuming(?:\s+that)?|suppose)\s[^?]*(?=[?.]?\s*$)|,\s*given\s[^?]*(?=[?.]?\s*$)",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"<image>\s*")
_LIST_HEAD = re.compile(r"(?:answer\s+)?(?:options|choices)\s*[:：]?", re.IGNORECASE)


def question_only(text: str) -> str:
    """The text without the conditions that it states: the sentence that asks, by rule, with placeholders and options kept.

    The last question, or the last request, is kept; a text without one keeps its last sentence. Of the sentence that asks,
    a clause of conditions before ("If x = 3, ...") or behind it ("... if x = 3?") goes too.

    >>> question_only("In triangle ABC, AB = 3. The angle at B is 90 degrees. If BC = 4, what is AC?")
    'What is AC?'
    """
    spans = option_spans(text)
    end = 0 if not spans else _line_start(text, spans[0][0])
    body, listed = (text[:end], text[end:]) if spans else (text, "")
    slots = "".join(found.group() for found in _PLACEHOLDER.finditer(body))
    parts = [part.strip() for part in _SENTENCE_END.split(_PLACEHOLDER.sub("", body))]
    sentences = [part for part in parts if part and not _LIST_HEAD.fullmatch(part)]
    if not sentences:
        return text
    asking = [part for part in sentences if part.endswith(("?", "？"))] or [part for part in sentences if _ASKS.match(part)]
    kept = _without_conditions((asking or sentences)[-1])
    return slots + kept + ("\n" if listed and not listed.startswith("\n") else "") + listed


def _line_start(text: str, place: int) -> int:
    """Where the list of options begins: at the mark of the first one."""
    found = [match.start() for match in re.finditer(r"\s*\(?[A-Z][).:]\s*", text[:place])]
    return found[-1] if found else place


def _without_conditions(sentence: str) -> str:
    if not _ASKS.match(sentence):
        # conditions and a question in one sentence: "AB is 3, what is AC?"
        clause = _ASKING_CLAUSE.search(sentence)
        sentence = sentence[clause.end() :] if clause else sentence
    sentence = _TRAILING.sub("", sentence).rstrip() or sentence
    return sentence[:1].upper() + sentence[1:]
