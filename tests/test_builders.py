"""What makes data, without a model: replies read with suspicion, filters by hand, files that survive a kill."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import picture

from foveate.datasets.builders import evidence, perception, thoughts
from foveate.datasets.builders.journal import Journal, JournalError, read_whole_lines
from foveate.datasets.builders.perception import BadReply, Written, in_order, read_question, scene_question, verdict
from foveate.datasets.pass_rates import PassRateError, read_pass_rates, summarize
from foveate.datasets.scenes import samples, scene_of
from foveate.datasets.trajectories import Trajectory, drop_thoughts
from foveate.datasets.views import make_view, resolve_view
from foveate.vlm.messages import Message
from foveate.vlm.records import Sample

# --- the journal ----------------------------------------------------------------------------------------------------------------


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"n": n, "text": "ü\u2028\n" * n} for n in range(5)]
    with Journal(path, {"k": 1}) as journal:
        journal.add(*rows[:2])
        journal.add(*rows[2:])
    whole = path.read_bytes()
    ends = read_whole_lines(path)[1]
    assert len(ends) == 5
    for cut in (*ends, 0, *random.Random(0).sample(range(len(whole)), 20)):
        path.write_bytes(whole[:cut])
        with Journal(path, {"k": 1}) as journal:
            assert journal.rows == rows[: sum(end <= cut for end in ends)]
            journal.add(*rows[len(journal.rows) :])
        assert path.read_bytes() == whole


def test_a_journal_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Journal(path, {"k": 1, "model": "a"}) as journal:
        journal.add({"n": 0})
        with pytest.raises(JournalError, match="another process writes to it"):
            Journal(path, {"k": 1, "model": "a"})
    with pytest.raises(JournalError, match=r'begun with other settings \(model was "a", is "b"\)'):
        Journal(path, {"k": 1, "model": "b"})
    path.write_text('{"n": 0}\nbroken\n{"n": 2}\n', encoding="utf-8")
    with pytest.raises(JournalError, match=r"a\.jsonl, line 2: not a row"):
        Journal(path, {"k": 1, "model": "a"})
    (tmp_path / "b.jsonl").write_text('{"n": 0}\n', encoding="utf-8")
    with pytest.raises(JournalError, match=r"no b\.meta\.json"):
        Journal(tmp_path / "b.jsonl", {})
    with pytest.raises(JournalError, match=r"ends in \.jsonl"):
        Journal(tmp_path / "c.json")


def test_a_journal_is_cut_to_whole_chunks(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.jsonl") as journal:
        journal.add(*({"n": n} for n in range(5)))
    with Journal(tmp_path / "a.jsonl") as journal:
        journal.cut(3)
        journal.add({"n": 9})
    assert [row["n"] for row in read_whole_lines(tmp_path / "a.jsonl")[0]] == [0, 1, 2, 9]


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.jsonl") as journal:
        journal.add({"text": "\udc80"})
    assert read_whole_lines(tmp_path / "a.jsonl")[0] == [{"text": "\udc80"}]


# --- pass rates -----------------------------------------------------------------------------------------------------------------


def rate(index: int, right: int, k: int = 4, **changes: Any) -> dict[str, Any]:
    row = {"id": f"s{index}", "index": index, "k": k, "right": right, "pass_rate": right / k}
    return {**row, "unparsed": 0, "truncated": 0, "failed": 0, "tokens_mean": 10.0, **changes}


def rates(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows), "utf-8"
    )
    return path


def test_pass_rates_are_read_in_any_order(tmp_path: Path) -> None:
    read = read_pass_rates(rates(tmp_path / "r.jsonl", rate(1, 3), rate(0, 0, id="ü\u2028"), "", rate(2, 4)))
    assert (dict(read.by_index), read.k) == ({0: ("ü\u2028", 0.0), 1: ("s1", 0.75), 2: ("s2", 1.0)}, 4)
    assert list(read.by_index) == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "r.jsonl: no rows; run foveate data pass-rate to its end"),
        ([rate(0, 1), rate(2, 1)], "1 samples are missing (index 1); put the files of all shards together"),
        ([rate(0, 1), rate(0, 1, id="other")], "line 2: the index 0 stands in line 1 too"),
        ([rate(0, 1), rate(1, 1, id="s0")], "line 2: the id 's0' stands in line 1 too"),
        ([rate(0, 1), rate(1, 1, k=8)], "line 2: k is 8, and 4 before"),
        ([rate(0, 0, pass_rate=0.0) | {"k": 0}], "line 1: index 0, k 0, right 0; expected index >= 0, k >= 1"),
        ([rate(0, 5)], "right from 0 to k"),
        ([rate(-1, 1)], "index >= 0"),
        ([rate(0, 1, pass_rate=0.5)], "line 1: pass_rate 0.5 is not right / k = 1 / 4"),
        ([rate(0, 1, pass_rate=True)], "pass_rate True is not"),
        ([rate(0, 1, pass_rate=float("nan"))], "pass_rate nan is not"),
        ([rate(0, 1, id=7)], "expected a text id"),
        ([{**rate(0, 1), "index": 0.0}], "whole numbers index, k and right"),
        ([rate(0, 1), '{"id": "s1", "ind'], "line 2: not JSON"),
        (["[1]"], "line 1: expected an object, got list"),
    ],
)
def test_pass_rates_that_cannot_be_used(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(PassRateError) as error:
        read_pass_rates(rates(tmp_path / "r.jsonl", *rows))
    assert said in str(error.value)
    with pytest.raises(PassRateError, match="cannot be read"):
        read_pass_rates(tmp_path / "none.jsonl")


def test_pass_rates_add_up() -> None:
    rights = (0, 0, 1, 2, 3, 4, 4, 4)
    found = summarize([rate(n, right, unparsed=n % 2, failed=n // 7, tokens_mean=float(n)) for n, right in enumerate(rights)])
    assert found.bins == (("0", 2), ("up to 1/4", 1), ("up to 1/2", 1), ("up to 3/4", 1), ("below 1", 0), ("1", 3))
    assert (found.samples, found.mean, found.all_wrong_frac, found.all_right_frac) == (8, 18 / 32, 0.25, 0.375)
    assert (found.unparsed_frac, found.failed, found.tokens_mean) == (4 / 32, 1, 3.5)


# --- perception: the writer -----------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "kind": "detail",
    "question": "What is written\n on the sign?",
    "options": ["ОТКРЫТО", "geöffnet", "开放", "open"],
    "answer": "C",
}


def said(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes}, ensure_ascii=False)


@pytest.mark.parametrize(
    "reply",
    [
        said(),
        f"<think>{{not json}} or so</think>\n{said()}\n",
        f"```json\n{said()}\n```",
        f"```\n{json.dumps(GOOD, indent=2)}\n```",
        said(options=[f"{letter}. {text}" for letter, text in zip("ABCD", GOOD["options"], strict=True)]),
        said(options=dict(zip("ABCD", GOOD["options"], strict=True))),
        said(answer="(C)"),
        said(answer="开放"),
    ],
)
def test_questions_in_the_ways_in_which_writers_write_them(reply: str) -> None:
    assert read_question(reply) == Written("detail", "What is written on the sign?", tuple(GOOD["options"]), 2)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "no_json"),
        ("I cannot do that.", "no_json"),
        (f"[{said()}]", "text_around"),
        (f"Here it is: {said()}", "text_around"),
        (f"{said()} I hope this helps!", "text_around"),
        (f"{said()}\n{said()}", "text_around"),
        (said()[:-10], "bad_json"),
        ("{'kind': 'detail'}", "bad_json"),
        ('{"a":' * 100_000, "bad_json"),
        (said(why="because"), "fields"),
        ("{}", "fields"),
        (said(kind="counting"), "kind"),
        (said(kind=["detail"]), "kind"),
        (said(question="  "), "no_question"),
        (said(question=["What?"]), "no_question"),
        (said(question="According to the description, what is it?"), "gives_away"),
        (said(question="What does the Caption mention?"), "gives_away"),
        (said(options=["a1", "b1", "c1"]), "options"),
        (said(options=["a1", "b1", "c1", "d1", "e1"]), "options"),
        (said(options=["Red.", "red", "blue", "green"]), "options"),
        (said(options=["red", "", "blue", "green"]), "options"),
        (said(options="red, blue"), "options"),
        (said(options=["red", None, "blue", "green"]), "options"),
        (said(answer="E"), "answer"),
        (said(answer=2), "answer"),
        (said(answer="closed"), "answer"),
        (said(answer="B", options=["B", "x1", "y1", "z1"]), "answer"),
    ],
)
def test_replies_that_are_no_question_are_counted_by_reason(reply: str, reason: str) -> None:
    with pytest.raises(BadReply) as error:
        read_question(reply)
    assert error.value.reason == reason


def test_options_that_are_letters_themselves_have_two_meanings() -> None:
    written = Written("detail", "Which letter?", ("K", "b", "X", "T"), 0)
    assert perception.checked(written, open_ended=True) == written
    with pytest.raises(BadReply, match="ambiguous"):
        perception.checked(written, open_ended=False)
    other = Written("detail", "Which letter?", ("K", "E", "X", "T"), 0)
    assert perception.checked(other, open_ended=False) == other


def test_the_order_of_options_is_drawn_and_turned() -> None:
    written = read_question(said())
    orders = [in_order(written, 0, turn) for turn in range(4)]
    for order in orders:
        assert order.options[order.right] == "开放"
        assert sorted(order.options) == sorted(written.options)
    assert {order.right for order in orders} == {0, 1, 2, 3}, "in four turns the right one stands everywhere"
    assert in_order(orders[2], 0) == orders[0], "the order hangs on the words, not on the order before"
    places = Counter(in_order(Written("detail", f"What {n}?", ("r", "x", "y", "z"), 0), 5).right for n in range(400))
    assert all(70 < places[place] < 130 for place in range(4)), places


def test_a_judge_with_a_favourite_letter_keeps_nothing() -> None:
    """Always "B": right or wrong from the caption as it is from the picture, since both show one order."""
    for n in range(50):
        for turn in range(4):
            order = in_order(Written("detail", f"What {n}?", ("r", "x", "y", "z"), 0), 0, turn)
            outcome = "right" if order.right == 1 else "wrong"
            assert verdict([outcome], [outcome]) is not None


@pytest.mark.parametrize(
    ("caption", "image", "dropped", "missed"),
    [
        (["right"], ["wrong"], None, None),
        (["right"], ["right"], "image_right", "image_right"),
        (["wrong"], ["wrong"], "caption_wrong", "caption_wrong"),
        (["unparsed"], ["wrong"], "caption_unparsed", "caption_unparsed"),
        (["truncated"], ["wrong"], "caption_unparsed", "caption_unparsed"),
        (["right"], ["unparsed"], "image_unparsed", None),
        (["right"], ["truncated"], "image_unparsed", None),
        (["right", "right"], ["wrong", "right"], "image_right", "image_right"),
        (["right", "unparsed"], ["wrong", "wrong"], "caption_unparsed", "caption_unparsed"),
        (["right", "wrong"], ["unparsed", "wrong"], "caption_wrong", "caption_wrong"),
        (["right", "right"], ["wrong", "unparsed"], "image_unparsed", None),
        (["failed"], [], "failed", "failed"),
        (["right"], ["failed"], "failed", "failed"),
        (["right"], [], None, None),
    ],
)
def test_kept_iff_read_in_the_caption_and_missed_in_the_picture(
    caption: list[str], image: list[str], dropped: str | None, missed: str | None
) -> None:
    assert verdict(caption, image) == dropped
    assert verdict(caption, image, image_unparsed="missed") == missed


def test_scenes_have_questions_of_their_own() -> None:
    for kind in ("letter", "where", "shape", "colour", "count", "hop", "earlier"):
        for sample in samples("detail", "train", 5, kinds=(kind,)):
            written = scene_question(sample)
            assert written.options[written.right] == sample.answer
            assert len(set(written.options)) == 4
            assert written.question == sample.question
            if kind == "letter":  # those that can be confused are the other letters of the scene
                others = {item.letter for item in scene_of(sample).objects} - {sample.answer}
                assert others <= set(written.options)
    (pair,) = samples("detail", "train", 1, kinds=("compare",))
    with pytest.raises(BadReply, match="too few answers"):
        scene_question(pair)
    with pytest.raises(ValueError, match="no synthetic world"):
        scene_question(Sample(id="a", question="q"))


def test_splits_are_85_5_10_by_picture() -> None:
    keys = [[f"picture {n}"] for n in range(4000)]
    found = perception.splits(keys)
    counts = Counter(found)
    assert abs(counts["train"] - 3400) < 70
    assert abs(counts["dev"] - 200) < 45
    assert abs(counts["test"] - 400) < 60
    assert perception.splits(keys[::-1]) == found[::-1]
    linked = perception.splits([["a", "b"], ["b", "c"], ["c"]])
    assert len(set(linked)) == 1


# --- thoughts -------------------------------------------------------------------------------------------------------------------

OPEN = Sample(id="open", question="What letter is on the sign?", answer="K")
CHOICE = Sample(id="choice", question="Which?", answer="B", options=("a car", "a red bus", "a tram"))
WORDS = Sample(id="words", question="Who?", answer="the baker")


@pytest.mark.parametrize(
    ("reply", "thought"),
    [
        ("I look. It is K.", "I look. It is K."),
        ("I look. <answer>K</answer>", "I look."),
        ("I look. <answer>K", "I look."),
        ("<think>inner</think>I look. It is K.", "I look. It is K."),
        ("<think>\nI look. It is K.\n</think>\n<answer>K</answer>", "I look. It is K."),
        ("<answer>K</answer>", ""),
        ("", ""),
    ],
)
def test_the_thought_in_a_reply(reply: str, thought: str) -> None:
    assert thoughts.thought_in(reply) == thought


@pytest.mark.parametrize(
    ("thought", "sample", "flaw"),
    [
        ("I look at the sign. A bold letter, it is K.", OPEN, None),
        ("", OPEN, "empty"),
        ("It is K.", OPEN, "too_short"),
        ("word " * 401, OPEN, "too_long"),
        ("The sign shows K in bold letters.", OPEN, "answer_first"),
        ("A bus stands there, so it moves people. It is red.", CHOICE, None),
        ("The answer is B since I see it.", CHOICE, "answer_first"),
        ("Option (B) fits what is seen here.", CHOICE, "answer_first"),
        ("A sign hangs there over the door. It shows A.", replace(OPEN, answer="A"), None),
        ("On the sign is A, as it seems.", replace(OPEN, answer="A"), "answer_first"),
        ("There is a red bus in the street.", CHOICE, "answer_first"),
        ("There is something tall.\nIt is a red bus.", CHOICE, None),
        ("He wears a white cap and flour. So he is the Baker.", WORDS, None),
        ("The Baker stands at the oven, as usual.", WORDS, "answer_first"),
        ("I look closely. The given answer is K, which fits.", OPEN, "leak"),
        ("I look at it. Since the answer is K, the sign shows K.", OPEN, "leak"),
        ("I look at it closely. I was told it is K.", OPEN, "leak"),
        ("I look. This matches the ground truth K.", OPEN, "leak"),
        ("I look closely here. </think> It is K.", OPEN, "markup"),
        ("I look closely here. <|im_end|> It is K.", OPEN, "markup"),
        ("I compare 3 < 5 and look on. It is K.", OPEN, None),
        ("我先看招牌，然后放大那个区域。上面写着 K。", OPEN, None),
        ("招牌上写着 K 这个字母。", OPEN, "answer_first"),
    ],
)
def test_thoughts_that_can_be_taught(thought: str, sample: Sample, flaw: str | None) -> None:
    assert thoughts.flaw(thought, sample) == flaw


def test_a_writer_of_thoughts_is_told_the_answer() -> None:
    assert thoughts.told_answer(CHOICE) == "B. a red bus"
    assert thoughts.told_answer(WORDS) == "the baker"
    view = make_view(OPEN, thoughts.THOUGHT_VIEW, "teacher")
    assert "The right answer is: K\n" in view.messages[-1].text


def test_an_emptied_thought_is_tons() -> None:
    """TON (2505.16854): the thought is replaced by two line ends, and nothing else is changed."""
    whole = thoughts.with_thought(OPEN, "I look.\nIt is K.")
    assert whole.actions == ("<think>I look.\nIt is K.</think><answer>K</answer>",)
    assert drop_thoughts(whole, 1.0, 0).actions == ("<think>\n\n</think><answer>K</answer>",)
    assert drop_thoughts(whole, 0.0, 0) is whole


# --- hindsight ------------------------------------------------------------------------------------------------------------------


def test_the_evidence_of_a_trajectory() -> None:
    whole, crop = picture(1), picture(2)
    sample = Sample(id="a", question="<image>What?", answer="K", images=(whole,), system="Look.")
    seen = Trajectory(sample, ("zoom", "<answer>K</answer>"), (Message.user("<tool_response>", crop),))
    shown = evidence.evidence(seen)
    assert shown is not None
    assert (shown.images, shown.question, shown.system) == ((crop,), "What?", None)
    assert evidence.evidence(seen, "captions") is None
    view = make_view(shown, resolve_view("full"), "student")
    assert view.pictures == (crop,), "the question can be shown without its own picture"
    told = Trajectory(sample, ("<time>3-5</time><caption>\nA dog runs.</caption><think>K!</think><answer>K</answer>",))
    noted = evidence.evidence(told)
    assert noted is not None
    assert (noted.images, noted.question) == ((), "time: 3-5\ncaption: A dog runs.\nWhat?")
    assert evidence.evidence(told, "pictures") is None
    assert evidence.evidence(Trajectory(sample, ("<time>3-5</time><answer>K</answer>",))) is None, "a time alone says nothing"


def test_tries_are_those_of_a_sample_in_order() -> None:
    assert evidence.candidates(["a", "b", "a", "a", "b", "a"], 3) == [[0, 2, 3], [1, 4]]
    assert [evidence.reason(one) for one in ("right", "wrong", "truncated", "failed")] == [None, "wrong", "unparsed", "failed"]
