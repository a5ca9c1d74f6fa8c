"""From a model's text to data and back: tagged blocks, JSON, numbers. Linear in the length of the text.

A ``read`` of a dialect is made of these, so that it cannot raise: what is wrong is a `Malformed`, which `calls_in` turns into the
`BadCall` that the model is told of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...vlm.records import Box
from ..boxes import LARGEST
from .base import BadCall, Call

_DECODER = json.JSONDecoder()
_MAX_DEPTH = 32
"""Deeper JSON is no call; whoever walks through arguments later needs no limit of his own."""


class Malformed(ValueError):
    """What a model wrote is no call: a sentence for the model, without its final full stop. Never leaves a ``read``."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.name = name


def blocks(text: str, opening: str, closing: str) -> Iterator[str | None]:
    """What stands between each ``opening`` and the next ``closing``; None for a last block that is not closed.

    >>> list(blocks("<a>1</a> <a>2</a> <a>", "<a>", "</a>"))
    ['1', '2', None]
    """
    end = 0
    while (start := text.find(opening, end)) >= 0:
        start += len(opening)
        end = text.find(closing, start)
        if end < 0:
            yield None
            return
        yield text[start:end]
        end += len(closing)


def calls_in(found: Iterable[str | None], closing: str, read: Callable[[str], Call]) -> tuple[Call | BadCall, ...]:
    """Every block of `blocks` as a call, in order. ``read`` may raise `Malformed` and nothing else."""
    calls: list[Call | BadCall] = []
    for block in found:
        if block is None:
            calls.append(BadCall(f"the call is not closed with {closing}"))
            continue
        try:
            calls.append(read(block))
        except Malformed as error:
            calls.append(BadCall(str(error), error.name))
    return tuple(calls)


def decode(text: str, what: str = "the call") -> Any:
    """Parsed JSON that is not nested deeply and whose strings can be written as UTF-8. Raises `Malformed`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not valid JSON ({str(error)[:80]})") from None
    return _plain(value, what, _MAX_DEPTH)


def _plain(value: Any, what: str, depth: int) -> Any:
    if isinstance(value, str):
        return plain(value)
    if not isinstance(value, list | dict):
        return value
    if not depth:
        raise Malformed(f"{what} is not valid JSON (nested more than {_MAX_DEPTH} deep)")
    if isinstance(value, list):
        return [_plain(entry, what, depth - 1) for entry in value]
    return {plain(key): _plain(entry, what, depth - 1) for key, entry in value.items()}


def leading_object(text: str) -> tuple[dict[str, Any], int]:
    """The JSON object with which a text begins, and its length; an empty one of length 0 when there is none."""
    try:
        value, length = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return {}, 0
    return (value, length) if isinstance(value, dict) else ({}, 0)


def plain(text: str) -> str:
    """The text with halves of surrogate pairs replaced: no file and no tokenizer takes them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def encode(value: Any) -> str:
    """JSON in one line, in which no closing tag can stand."""
    return json.dumps(value, ensure_ascii=False).replace("</", "<\\/")


def short(box: Box) -> list[float]:
    """A box for JSON, whole numbers without a decimal point."""
    return [int(value) if value == int(value) else value for value in box]


def four_numbers(text: str) -> Box | None:
    """A box from ``"x1, y1, x2, y2"``; None when these are not four finite numbers. An inverted box is given as written."""
    try:
        numbers = decode(f"[{text}]")
    except Malformed:
        return None
    # NaN fails the comparison; a bool is an int to Python
    if len(numbers) != 4 or not all(type(number) in (int, float) and abs(number) <= LARGEST for number in numbers):
        return None
    x1, y1, x2, y2 = map(float, numbers)
    return x1, y1, x2, y2
