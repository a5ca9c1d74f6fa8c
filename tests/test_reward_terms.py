"""Reward terms by hand: formats, boxes, tools, length, FrameThinker's check, consistency."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
from helpers import picture
from reward_helpers import CHOICE, DONE, VIEW, acted, boxed_sample, case, rollout, sample, spec

from foveate.rewards.base import Case, Query, ScoreContext
from foveate.rewards.combine import score_text
from foveate.rewards.terms import format as formats
from foveate.rewards.terms.boxes import BoxCount, BoxEdges, BoxIoU, BoxMatch, PointInBox, boxes_in, points_in
from foveate.rewards.terms.consistency import Consistency, orders
from foveate.rewards.terms.frame_thinker import FrameThinkerTerm
from foveate.rewards.terms.length import CutOff, Length, Repetition, Words
from foveate.rewards.terms.tools import RepeatedCalls, ToolUse
from foveate.vlm.messages import Clip, Message
from foveate.vlm.records import Privileged, Rollout, StopReason, ToolCall, Turn, View

# --- formats -----------------------------------------------------------------------------------------------------------------


THINK = "<think>t</think>"
CHOICE_OF_FRAMES = "<action>choose frames between 1 and 30</action>"


@pytest.mark.parametrize(
    ("style", "turns", "value"),
    [
        ("answer_tags", ["So <answer>x</answer> \n"], 1),
        ("answer_tags", ["<answer> </answer>"], 0),
        ("answer_tags", ["<answer>x</answer>."], 0),
        ("answer_tags", ["<answer>a</answer><answer>b</answer>"], 0),
        ("answer_tags", ["<answer>a<answer>b</answer>"], 0),
        ("answer_tags", ["x"], 0),
        ("think_answer", [THINK + "<answer>x</answer>"], 1),
        ("think_answer", ["<think></think><answer>x</answer>"], 0),
        ("think_answer", ["<answer>x</answer>"], 0),
        ("boxed", [r"\boxed{3}"], 1),
        ("boxed", [r"\boxed{ }"], 0),
        ("boxed", [r"\boxed{3}\boxed{4}"], 0),
        ("think_boxed", [THINK + r" so \boxed{3}"], 1),
        ("think_boxed", [r"\boxed{3}"], 0),
        ("ton", ["<think>\n\n</think><answer>x</answer>"], 1),
        ("ton", ["<answer>x</answer>"], 0),
        ("deepeyes", [THINK + "<tool_call>{}</tool_call>", THINK + "<answer>x</answer>"], 0),
        ("deepeyes", ["t</think><answer>x</answer>"], 0),  # the prompt opened the thought
        ("deepeyes", ["<think>t<answer>x</answer>"], -1),
        ("deepeyes", [THINK + "<answer>x"], -1),
        ("deepeyes", [THINK + "<answer>" + "x" * 1000 + "</answer>"], -1),
        ("deepeyes", [THINK + "<answer>" + "x" * 999 + "</answer>"], 0),
        ("openthinkimg", ['{"thought": "t", "actions": []}', "no JSON", "[1]", '{"a": NaN'], 0.25),
        ("openthinkimg", ['{"a":' * 100_000], 0),
        ("vilasr", [THINK + " Action: Object Mapper\n```json\n[]\n```", THINK + " Action: Answer\n<answer>x</answer>"], 1),
        ("vilasr", [THINK + " Action: Answer\n<answer>x</answer>"], 1),
        ("vilasr", [THINK + " Action: Object Mapper\n```json\n[]\n```"], 0),
        ("vilasr", ["Action: Answer\n<answer>x</answer>"], 0),
        ("grit_answer", ["<answer>x"], 1),
        ("grit_answer", ["<answer>x</answer><answer>y"], 0.5),
        ("grit_answer", ["x"], 0),
        ("grit_tags", ["<think>t</think><rethink>r</rethink>"], 1),
        ("grit_tags", ["<think> </think><rethink>r</rethink>"], 0.8),
        ("grit_tags", ["<think>t</think>"], 0.6),
        ("grit_tags", ["</think><think>t"], 0.2),  # the end tag is not behind the start
        ("grit_boxes", ["[12, 3, 45, 60] <rethink>"], 1),
        ("grit_boxes", ["[12, 3, 45, 60]"], 0),
        ("grit_boxes", ["<rethink> 12, 3, 45, 60"], 0),
        ("frame_thinker", [THINK + CHOICE_OF_FRAMES, THINK + "<action>output answer: A</action>"], 1),
        ("frame_thinker", [THINK + CHOICE_OF_FRAMES], 0),
        ("frame_thinker", [THINK + THINK + "<action>output answer: A</action>"], 0),
        ("deepsport", [THINK + "<tool_call>{}</tool_call>", THINK + "<answer>x</answer>"], 1),
        ("deepsport", [THINK + "<tool_call>{}</tool_call>"], 0),
        ("rlcr", [THINK + "<answer>x</answer><analysis>y</analysis><confidence>0.5</confidence>"], 1),
        ("rlcr", [THINK + "<answer>x</answer><confidence>0.5</confidence><analysis>y</analysis>"], 0),
        ("rlcr", [THINK + "<answer>x</answer><analysis></analysis><confidence>0.5</confidence>"], 0),
        ("answer_line", ["It is red.\nAnswer: K"], 1),
        ("answer_line", ["Answer: K or Answer: L"], 0),
        ("answer_line", ["K"], 0),
    ],
)  # fmt: skip
def test_formats(style: str, turns: list[str], value: float) -> None:
    assert formats.FORMATS[style](turns) == pytest.approx(value)


def test_every_format_can_be_named_in_a_recipe_and_reads_long_texts_quickly() -> None:
    names = formats.Format.model_json_schema()["properties"]["style"]["enum"]
    assert set(names) == set(formats.FORMATS)
    start = time.perf_counter()
    for rule in formats.FORMATS.values():
        for unit in ("<think>", "</think>", "<answer>", "1, 2, 3 ", "\\boxed{", "<action>", "{"):
            assert -1 <= rule([unit * (1_000_000 // len(unit))]) <= 1
    assert time.perf_counter() - start < 10


def test_a_cut_off_text_gains_nothing_by_its_form() -> None:
    one = spec({"answer": 1.0, "format": 1.0})
    assert dict(score_text(sample("12"), "<answer>12</answer>", one, truncated=True).terms) == {"answer": 1.0, "format": 0.0}
    bad = spec({"terms": {"f": {"term": "format", "style": "deepeyes"}}})
    assert score_text(sample(), "<think>", bad, truncated=True).total == -1.0


# --- boxes -------------------------------------------------------------------------------------------------------------------


LABEL = boxed_sample((20, 10, 60, 50))
"""In thousandths of the 200 x 100 px picture: 100, 100, 300, 500."""


def test_boxes_in_text() -> None:
    text = '{"bbox_2d": [1, 2, 30, 40.5]} <box>5,6,7,8</box> <|box_start|>(1,2),(3,4)<|box_end|> [9, 9, 1, 1] [1, 2, 3]'
    assert boxes_in(text) == [(1, 2, 30, 40.5), (5, 6, 7, 8), (1, 2, 3, 4)]
    assert points_in('{"point_2d": [3, 4]} <point>5, 6</point> (x=7, y=8) [1, 2, 3, 4]') == [(3, 4), (5, 6), (7, 8)]
    assert boxes_in("[nan, 1, 2, 3] [1e9, 2, 3, 4] [99999999999, 1, 2, 3]") == []
    start = time.perf_counter()
    for unit in ("[", "[1,", "[1, 2, 3, ", "1, ", " ", "[1, 2, 3, 4]", "(1,2),"):
        text = unit * (1_000_000 // len(unit))
        boxes_in(text)
        points_in(text)
    assert time.perf_counter() - start < 20


def test_box_iou_by_hand() -> None:
    def value(text: str, **settings: Any) -> float:
        return BoxIoU(**settings).value(case(text, LABEL))

    assert value("[100, 100, 300, 500]") == pytest.approx(1.0)
    # 20..40 x 10..50 px of 20..60 x 10..50: 800 of 1600
    assert value("[100, 100, 200, 500]") == pytest.approx(0.5)
    assert value("[20, 10, 60, 50]", coords="abs_original") == 1.0
    assert value("[0.1, 0.1, 0.3, 0.5]", coords="norm1") == pytest.approx(1.0)
    assert value("[10, 5, 30, 25]", coords="abs_resized", seen_px=(100, 50)) == pytest.approx(1.0)
    assert value("[500, 500, 600, 600]") == 0.0
    assert value("none") == 0.0
    assert value("[1, 1, 2, 2], [100, 100, 300, 500]") < 0.01  # the first counts
    assert value("<think>[100, 100, 300, 500]</think>", where="reply") == 0.0
    assert value("<think>[100, 100, 300, 500]</think>", where="thought") == pytest.approx(1.0)
    assert value("[100, 100, 300, 500] " * 3, max_boxes=2) == 0.0


def test_boxes_need_labels_a_picture_and_a_size() -> None:
    with pytest.raises(ValueError, match=r"sample s: .*evidence boxes.*by_source"):
        BoxIoU().value(case("[1, 2, 3, 4]", boxed_sample()))
    with pytest.raises(ValueError, match="sample s: boxes are scored in picture 0, and it has 0"):
        BoxIoU().value(case("[1, 2, 3, 4]", sample(privileged=Privileged(boxes_px_xyxy=((1, 2, 3, 4),)))))
    with pytest.raises(ValueError, match="seen_px"):
        BoxIoU(coords="abs_resized")


def test_box_matching_by_hand() -> None:
    two = boxed_sample((0, 0, 20, 100), (100, 0, 200, 100))  # 0,0,100,1000 and 500,0,1000,1000 in thousandths

    def values(text: str) -> list[float]:
        return [BoxMatch(measure=measure).value(case(text, two)) for measure in ("precision", "recall", "f1", "iou")]

    right = "[0, 0, 100, 1000] [500, 0, 1000, 1000]"
    assert values(right) == pytest.approx([1, 1, 1, 1])
    assert values("[500, 0, 1000, 1000] [0, 0, 100, 1000]") == pytest.approx([1, 1, 1, 1])
    assert values("[0, 0, 100, 1000]") == pytest.approx([1, 0.5, 2 / 3, 0.5])
    assert values(right + " [0, 0, 100, 1000]") == pytest.approx([2 / 3, 1, 0.8, 2 / 3])  # each label is used once
    # IoU .4 with the second: no match at .5, yet it counts in iou
    assert values("[800, 0, 1000, 1000]") == pytest.approx([0, 0, 0, 0.2])
    assert values("nothing") == [0, 0, 0, 0]
    # the greedy choice (first box to the second label) is not the best one
    crossing = boxed_sample((0, 0, 100, 100), (80, 0, 180, 100))
    said = "[200, 0, 700, 1000] [400, 0, 900, 1000]"
    assert BoxMatch(measure="iou").value(case(said, crossing)) == pytest.approx((60 / 140 + 1.0) / 2)


def test_box_edges_by_hand() -> None:
    assert BoxEdges().value(case("[100, 100, 300, 500]", LABEL)) == pytest.approx(1.0)
    # x1 is .5 of the width off, y2 .5 of the height: 4 / (2 + 1 + 1 + 2)
    assert BoxEdges().value(case("[600, 100, 800, 1000]", boxed_sample((20, 10, 160, 50)))) == pytest.approx(4 / 6)
    assert BoxEdges(coords="abs_original").value(case("[20, 10, 60, 5000]", LABEL)) == 0.0  # an edge is a picture off
    assert BoxEdges().value(case("none", LABEL)) == 0.0


def test_points_by_hand() -> None:
    assert PointInBox().value(case("click (200, 300)", LABEL)) == 1.0
    assert PointInBox().value(case("click (100, 100)", LABEL)) == 1.0  # the edge
    assert PointInBox().value(case("click (99, 300)", LABEL)) == 0.0
    assert PointInBox().value(case("[0, 0, 400, 600]", LABEL)) == 1.0  # the centre is 200, 300
    assert PointInBox(point="point").value(case("[0, 0, 400, 600]", LABEL)) == 0.0
    assert PointInBox(point="centre").value(case("(200, 300) [0, 0, 1000, 1000]", LABEL)) == 0.0
    assert PointInBox().value(case("nowhere", LABEL)) == 0.0


def test_counting_boxes() -> None:
    said = "[1, 1, 2, 2] [3, 3, 4, 4]"
    assert BoxCount().value(case(said, sample("2"))) == 1.0
    assert BoxCount().value(case(said, sample("3"))) == 0.0
    assert BoxCount(of="boxes").value(case(said, boxed_sample((1, 1, 2, 2), (3, 3, 4, 4)))) == 1.0
    with pytest.raises(ValueError, match="sample s: box_count needs an answer that is a number"):
        BoxCount().value(case(said, sample("many")))


# --- tools, length, words ----------------------------------------------------------------------------------------------------

ZOOM = ToolCall(name="zoom", arguments='{"box": [1, 2, 3, 4]}', image=0)
BAD = ToolCall(name="zoom", error="the box is empty")
SEEN = Message.user(picture(2))


def test_tool_use_counts_valid_calls_that_came_back_with_a_picture() -> None:
    def value(*turns: Turn, **settings: Any) -> float:
        return ToolUse(**settings).value(Case(sample(), rollout(*turns, "end")))

    good, bad = acted("c", ZOOM, observation=SEEN), acted("c", BAD, observation=Message.user("Error: empty."))
    assert (value(), value(good), value(bad)) == (0.0, 1.0, 0.0)
    assert value(acted("c", ZOOM)) == 0.0  # the limit came first: nobody saw the picture
    assert value(acted("c", ZOOM, observation=Message.user("the text is K"))) == 0.0
    assert value(acted("c", ZOOM, observation=Message.user("the text is K")), picture=False) == 1.0
    assert value(acted("c", ZOOM, BAD, observation=SEEN), measure="count") == 1.0
    assert value(good, good, good, measure="count", most=2) == 2.0
    assert value(good, bad, measure="valid_frac") == 0.5
    assert value(measure="valid_frac") == 0.0
    assert value(good, tools=("rotate",)) == 0.0
    assert (value(good, least=2), value(good, good, least=2)) == (0.0, 1.0)
    assert value(acted("c", ZOOM, observation=Message.user(Clip((picture(3),), (0.0,))))) == 1.0


def test_repeated_calls() -> None:
    def value(*calls: ToolCall) -> float:
        return RepeatedCalls().value(Case(sample(), rollout(*(acted("c", call) for call in calls))))

    other = ToolCall(name="zoom", arguments=ZOOM.arguments, image=1)
    assert (value(ZOOM, other), value(ZOOM, BAD), value(ZOOM, other, ZOOM), value()) == (0.0, 0.0, 1.0, 0.0)


def test_length_by_hand() -> None:
    def value(tokens: int, **settings: Any) -> float:
        one = Rollout("s", "g", 0, View("student", ()), (Turn((1,) * tokens, (0.0,) * tokens, "x", DONE),), DONE)
        return Length(max_tokens=100, **settings).value(Case(sample(), one))

    assert [value(tokens) for tokens in (10, 50, 100, 500)] == pytest.approx([0.1, 0.5, 1, 1])
    assert [value(tokens, free_tokens=60) for tokens in (10, 60, 80, 100)] == pytest.approx([0, 0, 0.5, 1])
    assert [value(tokens, shape="cosine") for tokens in (50, 100)] == pytest.approx([0.5, 1])
    assert value(25, shape="cosine") == pytest.approx((1 - math.sqrt(0.5)) / 2)
    with pytest.raises(ValueError, match="sample s: length counts tokens"):
        score_text(sample("x"), "x", spec({"terms": {"length": {"term": "length", "max_tokens": 10}}}))
    with pytest.raises(ValueError, match="free_tokens"):
        Length(max_tokens=10, free_tokens=10)


def test_cut_off() -> None:
    stops = (StopReason.TURN_TOKENS, StopReason.TURNS, DONE)
    assert [CutOff().value(Case(sample(), rollout("x", stop=stop))) for stop in stops] == [1.0, 0.0, 0.0]


def test_repetition_by_hand() -> None:
    def value(*texts: str, n: int = 2) -> float:
        return Repetition(n=n).value(Case(sample(), rollout(*texts)))

    assert value("a b c d") == 0.0
    assert value("a b a b") == pytest.approx(1 / 3)  # ab, ba, ab
    assert value("a b", "A, b!") == pytest.approx(1 / 2)
    assert value("a") == 0.0
    assert value("红红红") == pytest.approx(1 / 2)
    assert value("x " * 200_000, n=8) > 0.99


def test_words() -> None:
    assert Words().value(case("Wait, wait. Await the waiter. WAIT!")) == 3.0
    assert Words(word="(").value(case("((")) == 2.0


# --- FrameThinker ------------------------------------------------------------------------------------------------------------


def choose(start: int, end: int, thought: str | None = None) -> Turn:
    text = f"<think>{thought or f'look at {start} to {end}'}</think><action>choose frames between {start} and {end}</action>"
    return acted(text, observation=Message.user("frame 1:", picture(4)))


def ask_time(clock: str, reply: str = "The frame at 65 s is frame 130.") -> Turn:
    return acted(
        f"<think>when {clock}?</think><action>get frame number at time {clock}</action>", observation=Message.user(reply)
    )


FINAL = "<think>now I know</think><action>output answer: A</action>"


@pytest.mark.parametrize(
    ("turns", "valid"),
    [
        ([FINAL], 1),
        ([choose(10, 90), FINAL], 1),
        ([choose(10, 90), choose(20, 60), FINAL], 1),
        ([ask_time("01:05"), choose(100, 200), FINAL], 1),
        ([choose(10, 90, "at 01:05 it starts, so 10 to 90"), FINAL], 1),  # clock times are not frame numbers
        ([choose(10, 90)], 0),  # no answer
        ([FINAL, FINAL], 0),  # an answer in the middle
        (["<think>a</think><think>b</think><action>output answer: A</action>"], 0),  # thoughts and actions do not pair up
        ([acted("<think>x</think><action>zoom</action>", observation=SEEN), FINAL], 0),  # unknown action
        ([choose(10, 90), choose(10, 90), FINAL], 0),  # again
        ([choose(10, 90), choose(11, 89), FINAL], 0),  # all but again
        ([choose(0, 299), FINAL], 0),  # the whole video
        ([choose(1, 298), FINAL], 0),  # all but the whole video
        ([choose(10, 18), FINAL], 0),  # no more frames than are shown
        ([choose(10, 19), FINAL], 1),
        ([choose(90, 10), FINAL], 0),
        ([choose(10, 90, "look at 10 to 80"), FINAL], 0),  # does what it does not think
        ([choose(10, 90, "look there"), FINAL], 0),
        ([ask_time("01:05"), choose(100, 200), ask_time("01:05"), choose(120, 150), FINAL], 0),  # the same time
        ([ask_time("01:05"), choose(10, 90), FINAL], 0),  # frame 130 is not in it
        ([ask_time("01:05"), FINAL], 0),  # asked and not used
        ([ask_time("01:05", "Error: there is no such time"), choose(100, 200), FINAL], 0),
    ],
)
def test_frame_thinker_validity(turns: list[str | Turn], valid: int) -> None:
    asked = sample("A", "What happens at 01:05?", tags={"num_frames": "300"})
    assert FrameThinkerTerm().value(Case(asked, rollout(*turns))) == valid


def test_frame_thinker_knows_the_whole_video_only_when_told() -> None:
    class Film:
        duration_s = 149.5

        def frames_at(self, times_s: Sequence[float]) -> Clip:
            raise NotImplementedError

    film = sample("A", video=Clip((picture(5),), (0.0,), Film()))
    whole = rollout(choose(0, 299), FINAL)
    assert FrameThinkerTerm().value(Case(film, whole)) == 1.0
    assert FrameThinkerTerm(frame_rate_fps=2).value(Case(film, whole)) == 0.0


def test_frame_thinker_bonuses() -> None:
    def values(question: str, *turns: str | Turn) -> list[float]:
        one = Case(sample("A", question), rollout(*turns))
        return [FrameThinkerTerm(part=part).value(one) for part in ("timed", "chose")]

    assert values("At 01:05?", ask_time("01:05"), choose(100, 200), FINAL) == [1, 1]
    assert values("When?", ask_time("01:05"), choose(100, 200), FINAL) == [0, 1]
    assert values("At 01:05?", choose(100, 200), FINAL) == [0, 1]
    assert values("At 01:05?", FINAL) == [0, 0]
    assert values("At 01:05?", ask_time("01:05"), choose(100, 200), choose(100, 200), FINAL) == [0, 0]  # not valid


# --- consistency -------------------------------------------------------------------------------------------------------------


def listed(query: Query) -> list[str]:
    return [line[3:] for line in query.messages[0].text.split("\n")[1:]]


def test_consistency_follows_the_option_and_not_the_letter() -> None:
    asked: list[Query] = []

    def says(option: str, queries: Sequence[Query]) -> list[str]:
        asked.extend(queries)
        return ["ABC"[listed(query).index(option)] + "</answer>" for query in queries]

    text = "<think>The car is blue, so (B).</think><answer>B</answer>"
    cases = [Case(CHOICE, rollout(text, view=VIEW), ScoreContext(ask=lambda queries: says("blue", queries)))]
    assert Consistency(permutations=3).values(cases) == [1.0]
    assert [query.prefix for query in asked] == ["<think>The car is blue, so (_).</think><answer>"] * 3
    assert all(sorted(listed(query)) == ["blue", "green", "red"] and listed(query) != ["red", "blue", "green"] for query in asked)
    wrong = ScoreContext(ask=lambda queries: says("red", queries))
    assert Consistency(permutations=3).values([Case(CHOICE, rollout(text, view=VIEW), wrong)]) == [0.0]
    same_letter = ScoreContext(ask=lambda queries: ["B"] * len(queries))
    drawn = [order[1] == 1 for order in orders(CHOICE, 3, 4)]  # B is blue again in these orders only
    assert Consistency(permutations=4).values([Case(CHOICE, rollout(text, view=VIEW), same_letter)]) == [sum(drawn) / 4]
    unsure = ScoreContext(ask=lambda queries: ["hm"] * len(queries))
    assert Consistency().values([Case(CHOICE, rollout(text, view=VIEW), unsure)]) == [0.0]


def test_consistency_says_what_it_lacks() -> None:
    text = "<answer>B</answer>"
    with pytest.raises(ValueError, match=r"sample s: the term consistency needs a model to ask"):
        score_text(CHOICE, text, spec({"consistency": 1.0}))
    context = ScoreContext(ask=lambda queries: ["B"] * len(queries))
    with pytest.raises(ValueError, match="found no list of 3 options"):
        Consistency().values([Case(CHOICE, rollout(text), context)])
    with pytest.raises(ValueError, match="sample s: the term consistency needs options"):
        Consistency().values([Case(sample("K"), rollout(text, view=VIEW), context)])
    assert Consistency().values([Case(CHOICE, rollout("unclear", view=VIEW), context)]) == [0.0]
