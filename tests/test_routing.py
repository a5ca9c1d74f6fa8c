"""Spans of text to tokens: where they are, which tokens they are, how many may be taken."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import picture, view_of
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.train.config import DistillSignal
from foveate.train.signals.base import Context
from foveate.train.signals.distill import Distill
from foveate.train.signals.routing import answer_spans, box_spans, call_spans, evidence_spans, hits_evidence, tokens_of, within
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Group, Privileged, Reward, Rollout, Sample, Signal, StopReason, ToolCall, Turn

EVIDENCE = (10.0, 10.0, 50.0, 40.0)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen3_vl", seed=1)


def config(**changes: Any) -> DistillSignal:
    return DistillSignal.model_validate({"kind": "distill", "teacher": "crop", **changes})


def context(vlm: VLM) -> Context:
    return Context(lambda pairs: [], token_bytes=vlm.renderer.token_bytes)


def sample() -> Sample:
    return Sample(
        id="s", question="q", answer="K", images=(picture(1, 100, 80),), privileged=Privileged(boxes_px_xyxy=(EVIDENCE,))
    )


def test_tokens_of_spans_when_a_character_is_cut_in_two() -> None:
    # a ö b: ö is two bytes in two tokens; the third token holds the end of ö and b
    tokens = [b"a\xc3", b"\xb6b", b"<end>"]
    assert tokens_of("aöb", tokens, [(0, 1), (1, 2), (2, 3), (0, 3), (1, 1)]) == [
        (True, False, False),
        (True, True, False),
        (False, True, False),
        (True, True, False),
        (False, False, False),
    ]
    # 😀 is four bytes; a token of its own for each of the middle two
    assert tokens_of("x😀y", [b"x\xf0", b"\x9f", b"\x98", b"\x80y"], [(1, 2), (2, 3)]) == [
        (True, True, True, True),
        (False, False, False, True),
    ]
    # bytes that are no text are one U+FFFD for each piece that could have begun a character
    assert tokens_of("a\ufffd\ufffdb", [b"a", b"\xe6\xbc", b"\xff", b"b"], [(1, 2), (2, 3), (3, 4)]) == [
        (False, True, False, False),
        (False, False, True, False),
        (False, False, False, True),
    ]
    assert tokens_of("ab", [b"", b"ab"], [(0, 1)]) == [(False, True)], "a token without bytes is in no span"
    with pytest.raises(ValueError, match="spans cannot be placed"):
        tokens_of("ac", [b"a", b"b"], [(0, 1)])


@given(text=st.text(max_size=40), data=st.data())
@settings(max_examples=100, deadline=None)
def test_tokens_of_spans_agree_with_prefixes(text: str, data: st.DataObject) -> None:
    raw = text.encode("utf-8", "replace")
    text = raw.decode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    tokens = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    (mask,) = tokens_of(text, tokens, [(start, stop)])
    inside = range(len(text[:start].encode()), len(text[:stop].encode()))
    place = 0
    for token, chosen in zip(tokens, mask, strict=True):
        assert chosen == any(byte in inside for byte in range(place, place + len(token)))
        place += len(token)


def test_token_bytes_are_what_the_tokenizer_decodes(vlm: VLM) -> None:
    renderer = vlm.renderer
    for text in ("ö 漢字 😀 [12, 3]", "<answer>K</answer>", "a\nb\t\\boxed{7}", "<tool_call>\n{}\n</tool_call>"):
        ids = [*renderer.encode(text), renderer.stop_ids[0]]
        assert b"".join(renderer.token_bytes(ids)[:-1]).decode() == text == renderer.decode(ids)
    for seed in range(200):  # any ids at all, broken characters included
        ids = [(seed * 7919 + k * k * 31 + k) % 440 for k in range(12)]
        tokens_of(renderer.decode(ids), renderer.token_bytes(ids), [])


def test_a_span_that_would_cover_too_much_is_left_out_whole() -> None:
    first, second, third = (True, True, False, False), (False, True, True, True), (False, False, False, True)
    # 8 tokens, .5 allows 4: the first span takes 2, the second would take 2 new ones and may, the next turn's finds nothing left
    assert within([[first, second], [third]], [4, 4], 0.5) == ((True,) * 4, (False,) * 4)
    assert within([[first, second], [third]], [4, 4], 0.4) == (first, third), "3 allowed: the second would make 4, the third fits"
    assert within([[first], []], [4, 4], 0.2) == ((False,) * 4, (False,) * 4)


def words(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[start:stop] for start, stop in spans]


def test_where_spans_are() -> None:
    text = 'think [1, 20, 3.5, 40] <tool_call>{"bbox_2d": [0,1,2,3]}</tool_call> then <tool_call>{"a'
    assert words(text, box_spans(text)) == ["1", "20", "3.5", "40", "0", "1", "2", "3"]
    assert words(text, call_spans(text)) == ['<tool_call>{"bbox_2d": [0,1,2,3]}</tool_call>', '<tool_call>{"a']
    text = 'x ```json\n[{"bbox_2d": 1}]\n``` y'
    assert words(text, call_spans(text)) == ['```json\n[{"bbox_2d": 1}]\n```']
    text = "(5,6),(7,8) and [1, 2, 3] and [1,2,3,4,5]"
    assert words(text, box_spans(text)) == ["5", "6", "7", "8"]
    for text, wanted in (
        ("<answer>A</answer> no: <answer> B c </answer>", ["B c"]),
        (r"so \boxed{\frac{1}{2}} it is", [r"\frac{1}{2}"]),
        ("<answer></answer>", []),
        ("<answer>open", []),
        (r"\boxed{open", []),
        ("nothing", []),
    ):
        assert words(text, answer_spans(text)) == wanted


def trajectory(vlm: VLM, outcome: str, calls: tuple[ToolCall, ...], answer: str = "<answer>K</answer>") -> tuple[Sample, Rollout]:
    made = sample()
    turns = []
    for n, call in enumerate(calls):
        text = f"look [{n}1, 12, 13, 14] ö" if call.name == "zoom" else "look there"
        ids = (*vlm.renderer.encode(text), vlm.renderer.stop_ids[0])
        seen = Message.user(picture(7 + n))
        turns.append(Turn(ids, (-0.1,) * len(ids), text, StopReason.TOOL_CALL, seen, calls=(call,)))
    ids = (*vlm.renderer.encode(answer), vlm.renderer.stop_ids[0])
    turns.append(Turn(ids, (-0.1,) * len(ids), answer, StopReason.ANSWERED))
    view = view_of(*made.images, "q")
    return made, Rollout("s", "g", 0, view, tuple(turns), StopReason.ANSWERED, reward=Reward(0.0, outcome=outcome))  # type: ignore[arg-type]


HIT = ToolCall(name="zoom", image=0, box_px_xyxy=(10, 10, 30, 40))  # half of the evidence
MISS = ToolCall(name="zoom", image=0, box_px_xyxy=(10, 10, 29, 40))  # a little less
FAILED = ToolCall(name="zoom", error="the box is empty")
MUTE = ToolCall(name="look", error="there is no such tool")
OTHER = ToolCall(name="zoom", image=1, box_px_xyxy=(0, 0, 1, 1))  # a picture that a tool showed


@pytest.mark.parametrize(
    ("outcome", "calls", "wanted"),
    [
        ("right", (HIT,), [["01", "12", "13", "14"], ["K"]]),
        ("right", (MISS, HIT), [[], ["11", "12", "13", "14"], ["K"]]),
        ("wrong", (HIT, MISS, MISS), [[], ["11", "12", "13", "14"], [], []]),
        ("wrong", (FAILED, HIT), [["01", "12", "13", "14"], [], []]),
        ("unparsed", (HIT, MUTE), [[], ["look there"], []]),
        ("wrong", (HIT, OTHER), [[], [], ["K"]]),
        ("unscored", (MISS,), [[], []]),
        ("wrong", (), [["K"]]),
    ],
)
def test_the_rule_that_finds_what_was_decisive(
    vlm: VLM, outcome: str, calls: tuple[ToolCall, ...], wanted: list[list[str]]
) -> None:
    made, rollout = trajectory(vlm, outcome, calls)
    found = evidence_spans(made, rollout)
    assert [words(turn.text, spans) for turn, spans in zip(rollout.turns, found, strict=True)] == wanted


def test_a_call_is_judged_on_the_picture_of_the_evidence_only() -> None:
    first, second, small = picture(1, 100, 80), picture(2, 100, 80), picture(3, 50, 40)
    made = Sample(id="s", question="q", images=(first, second), privileged=Privileged(boxes_px_xyxy=(EVIDENCE,), box_image=1))

    def judged(seen: tuple[Picture, ...], image: int) -> bool | None:
        call = ToolCall(name="zoom", image=image, box_px_xyxy=(0, 0, 100, 80))
        return hits_evidence(call, made, Rollout("s", "g", 0, view_of(*seen, "q"), (), StopReason.ANSWERED))

    assert judged((first, second), 1) is True
    assert judged((first, second), 0) is None, "another picture of the prompt"
    assert judged((first, second), 2) is None, "a picture that a tool showed"
    assert judged((first, small), 1) is None, "the view made it smaller: other pixels"
    assert (
        hits_evidence(ToolCall(name="rotate", image=1), made, Rollout("s", "g", 0, view_of(first), (), StopReason.TURNS)) is None
    )


def weighed(vlm: VLM, signal: Signal) -> list[str]:
    """The text of every turn's weighed tokens."""
    return [
        vlm.renderer.decode([token for token, weight in zip(turn.action_ids_K, weights, strict=True) if weight])
        for turn, weights in zip(signal.rollout.turns, signal.kd_weights_NK or (), strict=True)
    ]


def test_annotated_spans_become_weights_by_turn_and_token(vlm: VLM) -> None:
    made, rollout = trajectory(vlm, "right", (HIT,))
    build = Distill(config(tokens="spans", spans={"kind": "annotated", "coverage_max_frac": 0.9})).build
    (signal,) = build([Group(made, (rollout,))], context(vlm))
    assert weighed(vlm, signal) == ["01121314", "K"]
    mine = Distill(config(tokens="spans", spans={"kind": "annotated"}), annotator=lambda *_: [[(0, 4)], []])
    (signal,) = mine.build([Group(made, (rollout,))], context(vlm))
    assert weighed(vlm, signal) == ["look", ""]


@pytest.mark.parametrize(
    ("spans", "turns", "wanted"),
    [
        ({"kind": "boxes"}, "all", ["01121314", ""]),
        ({"kind": "boxes"}, "last", None),
        ({"kind": "answer"}, "all", ["", "K"]),
        ({"kind": "regex", "pattern": r"look \[(\d+)"}, "all", ["01", ""]),
        ({"kind": "regex", "pattern": "ö"}, "calls", ["ö", ""]),
    ],
)
def test_other_spans(vlm: VLM, spans: dict[str, Any], turns: str, wanted: list[str] | None) -> None:
    made, rollout = trajectory(vlm, "right", (HIT,))
    distill = Distill(config(tokens="spans", turns=turns, spans={**spans, "coverage_max_frac": 0.9}))
    signals = distill.build([Group(made, (rollout,))], context(vlm))
    assert [weighed(vlm, one) for one in signals] == ([wanted] if wanted else [])


def test_spans_that_are_all_too_long_are_told(vlm: VLM) -> None:
    made, rollout = trajectory(vlm, "right", (HIT,))
    distill = Distill(config(tokens="spans", spans={"kind": "regex", "pattern": ".+", "coverage_max_frac": 0.1}))
    with pytest.warns(UserWarning, match="more than 10% of its rollout"):
        assert distill.build([Group(made, (rollout,))], context(vlm)) == []
