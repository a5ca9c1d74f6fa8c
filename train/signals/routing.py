"""Which tokens of which rollouts are distilled: by outcome, by turn, by how much a token matters, or by spans of its text.

Spans are characters of a turn's text; tokens are found through their bytes, so that a character that is cut in two by tokens
belongs to both, and a token belongs to a span when it holds a byte of it.

Legend: N turns of a rollout, K action tokens of a turn; ``chosen_NK[n][k]`` is about ``turns[n].action_ids_K[k]``.
Sources: KDRL (2506.02208: wrong rollouts), TRACE (2605.10194: annotated spans of at most a quarter of the tokens).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from ...visual_tools import boxes
from ...vlm.messages import Clip
from ...vlm.records import Rollout, Sample, StopReason, ToolCall, Turn
from .base import TokenBytes
from .distill_settings import DistillSignal, SpanSpec

ChosenNK = tuple[tuple[bool, ...], ...]
ValuesNK = Sequence[Sequence[float]]
Span = tuple[int, int]
"""First character and the one after the last, in a turn's text."""
Annotator = Callable[[Sample, Rollout], Sequence[Sequence[Span]]]
"""Spans of every turn of a rollout whose outcome is known: what was decisive, or what went wrong."""

EVIDENCE_HIT_FRAC = 0.5
"""A call that shows less of every evidence box than this has missed the evidence."""

_CALL = re.compile(r"<(tool_call|grounding|action|code)>.*?(?:</\1>|\Z)|```(?:json|python)?\s.*?(?:```|\Z)", re.DOTALL)
_NUMBER = r"(-?\d{1,9}(?:\.\d{1,9})?)"
_BOX = re.compile(rf"[\[(]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)?\s*,\s*\(?\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[\])]")


def outcome_fits(rollout: Rollout, wanted: str) -> bool:
    """Whether a rollout's outcome is among those wanted ("all", "right", "wrong", "unparsed+wrong")."""
    return wanted == "all" or _outcome(rollout) in wanted.split("+")


def _outcome(rollout: Rollout) -> str:
    if rollout.reward is None:
        raise ValueError(
            f"sample {rollout.sample_id}: distillation chooses by outcome and rollout {rollout.index} has no reward; "
            "add grpo to the signals, or give the distill signal a reward"
        )
    return rollout.reward.outcome


def turn_fits(turns: Sequence[Turn], n: int, wanted: str) -> bool:
    """Whether turn ``n`` is among those wanted ("all", "first", "last", "calls")."""
    match wanted:
        case "first":
            return n == 0
        case "last":
            return n == len(turns) - 1
        case "calls":
            return bool(turns[n].calls) or turns[n].stop is StopReason.TOOL_CALL
    return True


def in_turns(rollout: Rollout, wanted: str) -> ChosenNK:
    """All tokens of the turns wanted."""
    return tuple((turn_fits(rollout.turns, n, wanted),) * len(turn.action_ids_K) for n, turn in enumerate(rollout.turns))


def highest(values_NK: ValuesNK, among_NK: ChosenNK, frac: float) -> ChosenNK:
    """Of the tokens ``among`` a rollout's the share ``frac`` with the highest values, rounded up; of equals the earlier one.

    >>> highest([[1.0, 3.0], [2.0, 9.0]], ((True, True), (True, False)), 0.5)
    ((False, True), (True, False))
    """
    places = [(n, k) for n, row in enumerate(among_NK) for k, chosen in enumerate(row) if chosen]
    num = math.ceil(frac * len(places) - 1e-9)
    kept = set(sorted(places, key=lambda place: -values_NK[place[0]][place[1]])[:num])
    return tuple(tuple((n, k) in kept for k in range(len(row))) for n, row in enumerate(among_NK))


# ---- spans of characters to tokens --------------------------------------------------------------------------------------


def tokens_of(text: str, token_bytes_K: Sequence[bytes], spans: Sequence[Span]) -> list[tuple[bool, ...]]:
    """Which tokens hold a byte of each span. ``text`` is what the bytes decode to, less what ended the turn.

    Raises ValueError when it is not: then no place in it can be trusted.
    """
    decoded, ends = _decoded(b"".join(token_bytes_K))
    if not decoded.startswith(text):
        raise ValueError(f"the tokens say {decoded[:80]!r} and the turn says {text[:80]!r}; spans cannot be placed")
    places = [0, *ends]
    edges = list(accumulate((len(one) for one in token_bytes_K), initial=0))
    masks = []
    for start, stop in spans:
        first, last = places[start], places[stop]
        masks.append(tuple(left < right and max(left, first) < min(right, last) for left, right in pairwise(edges)))
    return masks


def _decoded(data: bytes) -> tuple[str, list[int]]:
    """The text, with U+FFFD for bytes that are none, and the place after each character's last byte."""
    text, ends, place = "", [], 0
    while place < len(data):
        broken = 0
        try:
            piece = data[place:].decode()
        except UnicodeDecodeError as error:
            piece, broken = data[place : place + error.start].decode(), error.end - error.start
        for character in piece:
            place += len(character.encode())
            ends.append(place)
        text += piece
        if broken:
            text += "\ufffd"
            place += broken
            ends.append(place)
    return text, ends


def within(spans_NSK: Sequence[Sequence[Sequence[bool]]], lengths_N: Sequence[int], max_frac: float) -> ChosenNK:
    """The tokens of the spans in reading order, of each turn S; a span that would make them more than ``max_frac`` of all tokens
    of the rollout is left out whole."""
    chosen = [[False] * length for length in lengths_N]
    left = math.floor(max_frac * sum(lengths_N) + 1e-9)
    for row, spans in zip(chosen, spans_NSK, strict=True):
        for span in spans:
            new = [k for k, inside in enumerate(span) if inside and not row[k]]
            if len(new) <= left:
                left -= len(new)
                for k in new:
                    row[k] = True
    return tuple(map(tuple, chosen))


# ---- where spans come from ----------------------------------------------------------------------------------------------


def find_spans(spec: SpanSpec, sample: Sample, rollout: Rollout, annotator: Annotator) -> Sequence[Sequence[Span]]:
    """The spans of every turn, in reading order."""
    turns = rollout.turns
    match spec.kind:
        case "annotated":
            return annotator(sample, rollout)
        case "answer":
            return [answer_spans(turn.text) if n == len(turns) - 1 else [] for n, turn in enumerate(turns)]
        case "calls":
            return [call_spans(turn.text) for turn in turns]
        case "boxes":
            return [box_spans(turn.text) for turn in turns]
        case "regex":
            pattern = re.compile(spec.pattern)
            return [[found.span(min(1, pattern.groups)) for found in pattern.finditer(turn.text)] for turn in turns]


def call_spans(text: str) -> list[Span]:
    """Tool calls between tags or code fences, tags included; an unclosed one reaches to the end. Other dialects: kind regex."""
    return [found.span() for found in _CALL.finditer(text)]


def box_spans(text: str) -> list[Span]:
    """The numbers of every box in the text, each a span of its own.

    >>> box_spans("see [1, 20, 3, 4] or (5,6),(7,8)")[1]
    (8, 10)
    """
    return [found.span(part) for found in _BOX.finditer(text) for part in range(1, 5)]


def answer_spans(text: str) -> list[Span]:
    r"""The text of the last answer, in ``<answer>`` tags or else in ``\boxed{}``; nothing where there is none.

    >>> answer_spans("so <answer> K </answer>")
    [(12, 13)]
    """
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    if start >= 0 and end >= 0:
        return _stripped(text, start + len("<answer>"), end)
    start = text.rfind("\\boxed{")
    if start < 0:
        return []
    start += len("\\boxed{")
    depth = accumulate((1 if c == "{" else -1 if c == "}" else 0 for c in text[start:]), initial=1)
    end = next((start + place - 1 for place, open_braces in enumerate(depth) if open_braces == 0), -1)
    return _stripped(text, start, end) if end >= 0 else []


def _stripped(text: str, start: int, end: int) -> list[Span]:
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    end = start + len(inside.strip())
    return [(start, end)] if end > start else []


def evidence_spans(sample: Sample, rollout: Rollout) -> list[list[Span]]:
    """A rule in place of TRACE's annotator, for tool trajectories on samples with evidence boxes.

    Of a right rollout: the box numbers of the calls that hit the evidence, and the answer. Of a wrong or unparsed one: the box
    numbers (or, where none can be read, the whole text) of the first turn with a call that failed or missed the evidence, else
    the answer. Calls that cannot be judged (no box, no evidence, another picture than that of the evidence) are neither.
    """
    found: list[list[Span]] = [[] for _ in rollout.turns]
    if not rollout.turns or _outcome(rollout) == "unscored":
        return found
    right = _outcome(rollout) == "right"
    for n, turn in enumerate(rollout.turns):
        judged = [hits_evidence(call, sample, rollout) for call in turn.calls]
        if right and True in judged and False not in judged:
            found[n] += box_spans(turn.text)
        if not right and False in judged:
            found[n] += box_spans(turn.text) or [(0, len(turn.text))]
            return found
    found[-1] = sorted({*found[-1], *answer_spans(rollout.text)})
    return found


def hits_evidence(call: ToolCall, sample: Sample, rollout: Rollout) -> bool | None:
    """Whether a call showed at least `EVIDENCE_HIT_FRAC` of an evidence box; a failed one did not. None: it cannot be judged."""
    if call.error is not None:
        return False
    evidence, seen = sample.privileged.boxes_px_xyxy, rollout.view.visuals
    if call.box_px_xyxy is None or call.image is None or not evidence or not 0 <= call.image < len(seen):
        return None
    source, place = seen[call.image], sum(not isinstance(one, Clip) for one in seen[: call.image])
    if isinstance(source, Clip) or place != sample.privileged.box_image:
        return None
    if source.size_px != sample.images[place].size_px:
        return None  # a view that changed the picture: its pixels are not those of the evidence
    region = call.box_px_xyxy
    return any(boxes.area(boxes.intersection(region, box)) >= EVIDENCE_HIT_FRAC * boxes.area(box) for box in evidence)


def spans_chosen(
    config: DistillSignal, samples: Sequence[Sample], rollouts: Sequence[Rollout], annotator: Annotator, token_bytes: TokenBytes
) -> list[ChosenNK]:
    """The tokens in spans of each rollout's chosen turns, within the coverage that is allowed."""
    spec = config.spans
    assert spec is not None
    chosen, any_span = [], False
    for sample, rollout in zip(samples, rollouts, strict=True):
        spans_N = find_spans(spec, sample, rollout, annotator)
        masks = [
            tokens_of(turn.text, token_bytes(turn.action_ids_K), spans) if turn_fits(rollout.turns, n, config.turns) else []
            for n, (turn, spans) in enumerate(zip(rollout.turns, spans_N, strict=True))
        ]
        any_span = any_span or any(map(any, (span for spans in masks for span in spans)))
        chosen.append(within(masks, [len(turn.action_ids_K) for turn in rollout.turns], spec.coverage_max_frac))
    if any_span and not any(any(row) for mask in chosen for row in mask):
        warnings.warn(
            f"distill: every span of the step covers more than {spec.coverage_max_frac:.0%} of its rollout, so that nothing is "
            "distilled; raise spans.coverage_max_frac",
            stacklevel=2,
        )
    return chosen
