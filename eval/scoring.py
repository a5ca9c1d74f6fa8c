"""How a reply is scored: read by rule, compared with the reference, and shown to a judge only where nothing could be read.

Nothing is guessed. A reply without a readable answer is "unparsed", one that a limit cut before its answer "truncated", none at
all "failed", and a reply of more than 10,000 characters behind its thought a "runaway": rates of their own, and all of them
count as wrong. The order of a question's options can be drawn with a seed (`shuffled`) or gone through (`circular`); several
draws of one question become one row by `vote` or `all_right`. The rules, and where other harnesses differ, are in
docs/scoring.md.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from ..rewards.answer import extract
from ..rewards.choices import letter_of, option_spans, options_in
from ..rewards.combine import RewardSpec, score_text
from ..rewards.compare import normal, number_in
from ..rewards.marks import marked, spoken
from ..rewards.terms.answer import Answer
from ..rewards.terms.judge import Judge
from ..vlm.records import Sample, StopReason
from .records import Item, Played, Row

RUNAWAY_CHARS = 10_000
_CLOSED = ("tag", "action", "boxed")
_THOUGHT_END = re.compile(r"</(?:think|thinking|thought|rethink|reasoning|analysis)\b[^<>]{0,80}>", re.IGNORECASE)
_LIST = re.compile(r"\s*[\[(][^\[\]()]*[\])]\s*[.]?\s*")
_NUMBER = re.compile(r"(?<![\d.])-?\d+(?:\.\d+)?")
_ABOVE = re.compile(
    r"\b(?:all|none|both|neither|either|any|some)\s+(?:of\s+)?(?:the\s+)?(?:above|these|those|them|others?|options|choices)\b"
    r"|\b(?:above|below|preceding|aforementioned)\b|以上|上述",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?<![A-Za-z0-9'’.°\-])([A-Z])(?![A-Za-z0-9'’\-]|\.\w)(\s+[a-z]+)?")
_AFTER_LETTER = {"is", "are", "and", "or", "was", "were", "only", "but", "to", "then", "nor", "has", "than", "with"}
_SUMS = ("tokens_in", "tokens_out", "tokens_image", "seconds", "calls")


def score(item: Item, played: Played, *, order: Sequence[int] | None = None, judge: Judge | None = None) -> dict[str, Any]:
    """How right a reply to ``item`` is; ``item`` is the question as it was shown (what `shuffled` returned).

    Keys: ``parsed`` (a letter as shown where there are options, else the answer's text; None: none), ``outcome``, ``score``
    (0..1), ``choice`` (the chosen option's place in the benchmark's own order; ``order[k]`` is the original place of the option
    shown at place k), ``runaway``, ``judged`` (the judge decided, not a rule). Only a closed mark (answer tags, a protocol's
    end, a box) counts in a text that a limit cut. Beside the kinds of `rewards.answer` an item's ``kind`` may be "list" (the
    same numbers in the same order) or "rounded" (equal when rounded to ``extra["precision"]`` decimals, halves up).
    Raises `EndpointError` when the judge cannot be reached.
    """
    result: dict[str, Any] = {
        "parsed": None, "outcome": "failed", "score": 0.0, "choice": None, "runaway": False, "judged": False,
    }  # fmt: skip
    if played.stop == "failed" or not played.texts:
        return result
    text = played.texts[-1]
    result["runaway"] = any(len(_THOUGHT_END.split(one)[-1]) > RUNAWAY_CHARS for one in played.texts)
    parsed, value = _by_rule(item, text)
    cut = StopReason(played.stop) is not StopReason.ANSWERED
    if cut and (parsed is None or not _closed(text)):
        return {**result, "outcome": "truncated"}
    if item.sample.answer is None:
        return {**result, "parsed": parsed, "outcome": "unscored", "choice": _choice(item.sample, parsed, order)}
    if parsed is None:
        result["outcome"] = "unparsed"
        return result if judge is None or result["runaway"] else {**result, **_judged(item.sample, text, judge)}
    value = 0.0 if result["runaway"] else value
    outcome = "right" if value >= 0.5 else "wrong"
    return {**result, "parsed": parsed, "outcome": outcome, "score": value, "choice": _choice(item.sample, parsed, order)}


def _closed(text: str) -> bool:
    """An answer inside a mark that was closed: the rest of the text could not have made another of it."""
    mark = marked(spoken(text))
    return mark is not None and mark.how in _CLOSED


def _by_rule(item: Item, text: str) -> tuple[str | None, float]:
    """What the text answers (None: nothing that can be read) and how right that is."""
    sample, reference = item.sample, item.sample.answer or ""
    if item.kind == "list":
        said = spoken(text)
        alone = marked(said) is None and _LIST.fullmatch(said) is not None
        parsed = said.strip() if alone else extract(text, kind="text").text
        numbers = _numbers(parsed or "")
        return (parsed, float(numbers == _numbers(reference))) if numbers else (None, 0.0)
    if item.kind == "rounded":
        parsed = extract(text, kind="number").text
        return parsed, float(parsed is not None and _same_rounded(parsed, reference, int(item.extra["precision"])))
    reward = score_text(_unambiguous(sample), text, _spec(item.kind))
    return reward.parsed, reward.total


@functools.lru_cache
def _spec(kind: str) -> RewardSpec:
    return RewardSpec(terms={"answer": Answer.model_validate({"kind": kind})})


def _unambiguous(sample: Sample) -> Sample:
    """With a reference that names its option whatever the options say: "A" may be the letter of one and the text of another."""
    letter = gold_letter(sample)
    if letter is None or letter_of(letter, _options(sample)) == letter:
        return sample
    return replace(sample, answer=_options(sample)[_index(letter)])


def _numbers(text: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(text.replace("−", "-"))]


def _same_rounded(said: str, reference: str, digits: int) -> bool:
    values = [number_in(text) for text in (said, reference)]
    step = Decimal(1).scaleb(-digits)
    # by way of the shortest decimal text, so that 0.55 is the half that it looks like
    rounded = [Decimal(repr(value)).quantize(step, ROUND_HALF_UP) for value in values if value is not None and abs(value) < 1e15]
    return len(rounded) == 2 and rounded[0] == rounded[1]


def _judged(sample: Sample, text: str, judge: Judge) -> dict[str, Any]:
    listed = "".join(f"\n{_letter(index)}. {option}" for index, option in enumerate(sample.options))
    asked = replace(_unambiguous(sample), question=sample.question + listed)
    reward = score_text(asked, text, RewardSpec(terms={"judge": judge}))
    if reward.parsed is None or len(reward.parsed) >= judge.max_chars:
        return {}  # nothing was said, or so much that the judge is not asked
    return {"parsed": reward.parsed, "outcome": reward.outcome, "score": float(reward.outcome == "right"), "judged": True}


# ---- the order of options ------------------------------------------------------------------------------------------------------


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _index(letter: str) -> int:
    return ord(letter) - ord("A")


def _options(sample: Sample) -> tuple[str, ...]:
    return sample.options or options_in(sample.question)


def gold_letter(sample: Sample) -> str | None:
    """The letter of the reference among the options, of the sample or written in its question; None without options."""
    options, answer = _options(sample), (sample.answer or "").strip().strip("().")
    if not options or sample.answer is None:
        return None
    if len(answer) == 1 and 0 <= _index(answer) < len(options):
        return answer
    return letter_of(sample.answer, options)


def _choice(sample: Sample, parsed: str | None, order: Sequence[int] | None) -> int | None:
    if parsed is None or len(parsed) != 1 or not 0 <= _index(parsed) < len(_options(sample)):
        return None
    return _index(parsed) if not order else order[_index(parsed)]


def shuffled(item: Item, seed: int) -> tuple[Item, tuple[int, ...]]:
    """The item with its options in an order drawn from ``seed`` and its id, the same on every machine, and that order.

    ``order[k]`` is the original place of the option that now stands at place k. Options that speak of letters ("A is closer",
    "both A and C", letters alone) stay as they are; a closing "all of the above" stays at the end.
    """
    count, movable = len(_options(item.sample)), _movable(_options(item.sample))
    keys = [hashlib.sha256(f"{seed}\n{item.id}\n{index}".encode("utf-8", "replace")).digest() for index in range(count)]
    order = (*sorted(range(movable), key=keys.__getitem__), *range(movable, count))
    return reordered(item, order), order


def circular(item: Item) -> list[tuple[Item, tuple[int, ...]]]:
    """The item once for every rotation of its options, so that each option stands at each letter once; see `shuffled`."""
    count, movable = len(_options(item.sample)), _movable(_options(item.sample))
    turns = [tuple((index + turn) % movable for index in range(movable)) for turn in range(movable)] or [()]
    orders = [(*turn, *range(movable, count)) for turn in turns]
    return [(reordered(item, order), order) for order in orders]


def reordered(item: Item, order: Sequence[int]) -> Item:
    """The item with its options in this order; the reference's letter follows. `ValueError` when it is no permutation."""
    sample, options = item.sample, _options(item.sample)
    if sorted(order) != list(range(len(options))):
        raise ValueError(f"item {item.id}: order {tuple(order)} is no permutation of its {len(options)} options")
    if list(order) == sorted(order):
        return item
    letter = gold_letter(sample)
    answer = sample.answer if letter is None else _letter(list(order).index(_index(letter)))
    if sample.options:
        return replace(item, sample=replace(sample, options=tuple(options[place] for place in order), answer=answer))
    question = sample.question
    for (start, end), place in reversed(list(zip(option_spans(sample.question), order, strict=True))):
        question = question[:start] + options[place] + question[end:]
    return replace(item, sample=replace(sample, question=question, answer=answer))


def _movable(options: Sequence[str]) -> int:
    """How many of the options, from the first on, may change places; the rest closes the list ("none of the above")."""
    last = len(options)
    while last and _ABOVE.search(options[last - 1]):
        last -= 1
    if any(_ABOVE.search(option) for option in options[:last]) or any(_names_letters(one, len(options)) for one in options):
        return 0
    return last


def _names_letters(option: str, count: int) -> bool:
    for found in _LETTER.finditer(option):
        following = (found.group(2) or "").strip()
        article = found.group(1) == "A" and following and following not in _AFTER_LETTER
        if _index(found.group(1)) < count and not article:
            return True
    return False


# ---- several draws of one question ---------------------------------------------------------------------------------------------


def vote(rows: Sequence[Row]) -> Row:
    """One row for several draws of an item: the answer that most of them give (of equally many, the one that came first).

    Draws without a readable answer, and runaways, have no vote. The row is that of the first draw with the winning answer, with
    the costs of all, ``draws`` and ``votes``.
    """
    _check_same(rows)
    voters: dict[tuple[str, Any], list[Row]] = {}
    for row in rows:
        if row["parsed"] is not None and not row.get("runaway"):
            voters.setdefault(_said(row), []).append(row)
    winners = max(voters.values(), key=len, default=[])
    spoken_first = ("wrong", "unparsed", "truncated", "failed")
    silent = sorted(rows, key=lambda row: spoken_first.index(row["outcome"]) if row["outcome"] in spoken_first else -1)
    return _with_costs((winners or silent)[0], rows) | {"votes": len(winners)}


def all_right(rows: Sequence[Row]) -> Row:
    """One row for an item that was asked in several orders of its options: right only if every one is right."""
    _check_same(rows)
    return _with_costs(min(rows, key=lambda row: float(row["score"])), rows) | {"votes": sum(row["score"] >= 0.5 for row in rows)}


def _said(row: Row) -> tuple[str, Any]:
    if row.get("choice") is not None:
        return "choice", row["choice"]
    value = number_in(row["parsed"])
    if value is not None and math.isfinite(value):
        return "number", round(value, 9)
    return "text", normal(row["parsed"])


def _check_same(rows: Sequence[Row]) -> None:
    asked = {(row.get("benchmark"), row.get("mode"), row.get("item")) for row in rows}
    if len(asked) != 1:
        raise ValueError(f"draws are put together item by item, got rows of {len(asked)} items: {sorted(map(str, asked))[:3]}")


def _with_costs(chosen: Row, rows: Sequence[Row]) -> Row:
    """A copy with the sums of all rows' costs; calls may be counts or lists."""
    sums = {name: chosen[name] for name in _SUMS if name in chosen}
    for row in rows:
        if row is not chosen:
            sums = {name: total + row[name] for name, total in sums.items()}
    return {**chosen, **sums, "draws": len(rows)}
