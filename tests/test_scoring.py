"""Scoring: outcomes, orders of options, votes, the judge, and where other harnesses' rules read otherwise."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peer_rules
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reward_judge import Server

from foveate.eval import scoring
from foveate.eval.records import Item, Played, Row
from foveate.rewards.answer import extract
from foveate.rewards.compare import yes_or_no
from foveate.rewards.endpoint import Endpoint, EndpointError
from foveate.rewards.terms.judge import Judge
from foveate.vlm.records import Sample

OPTIONS = ("red", "blue", "green", "grey")
DOC = (Path(__file__).parent.parent / "docs" / "scoring.md").read_text(encoding="utf-8")


def item(answer: str | None = "B", options: tuple[str, ...] = OPTIONS, question: str = "Which?", **more: Any) -> Item:
    return Item(Sample(id=more.pop("id", "i1"), question=question, answer=answer, options=options), **more)


def said(*texts: str, stop: str = "answered") -> Played:
    return Played(texts, stop)


def scored(one: Item, text: str, stop: str = "answered", **more: Any) -> tuple[Any, str, float]:
    result = scoring.score(one, said(text, stop=stop), **more)
    return result["parsed"], result["outcome"], result["score"]


# ---- outcomes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("Answer: B", "answered", ("B", "right", 1.0)),
        ("The colour is blue.", "answered", ("B", "right", 1.0)),
        ("A red car is visible, so A.", "answered", ("A", "wrong", 0.0)),
        ("", "answered", (None, "unparsed", 0.0)),
        ("It is hard to say.", "answered", (None, "unparsed", 0.0)),
        ("It is A or B", "turn_tokens", (None, "truncated", 0.0)),
        ("The answer is B", "turn_tokens", (None, "truncated", 0.0)),  # it might have gone on: "B or C"
        ("<think>hm</think><answer>B</answer> because the", "turn_tokens", ("B", "right", 1.0)),
        (r"\boxed{C} since the", "seconds", ("C", "wrong", 0.0)),
        ("<answer>B", "total_tokens", (None, "truncated", 0.0)),
        ("<answer></answer>", "turn_tokens", (None, "truncated", 0.0)),
        ('<tool_call>{"name": "zoom", "arguments": {}}</tool_call>', "turns", (None, "truncated", 0.0)),
        ("<think>The answer is B", "turn_tokens", (None, "truncated", 0.0)),
        ("B", "failed", (None, "failed", 0.0)),
    ],
)
def test_outcomes_of_a_choice(text: str, stop: str, expected: tuple[Any, str, float]) -> None:
    assert scored(item(), text, stop) == expected


def test_nothing_at_all_is_failed_and_an_unknown_ending_an_error() -> None:
    assert scoring.score(item(), Played((), "answered"))["outcome"] == "failed"
    with pytest.raises(ValueError, match="length"):
        scored(item(), "B", stop="length")


def test_the_last_turn_answers() -> None:
    assert scoring.score(item(), said("Answer: A", "Answer: B"))["outcome"] == "right"


def test_without_a_reference_nothing_is_scored() -> None:
    assert scored(item(None), "Answer: C") == ("C", "unscored", 0.0)


@pytest.mark.parametrize(
    ("kind", "answer", "extra", "text", "expected"),
    [
        ("yes_no", "no", {}, "No, there is not.", "right"),
        ("yes_no", "no", {}, "Yes.", "wrong"),
        ("yes_no", "no", {}, "There is a dog.", "unparsed"),
        ("number", "13", {}, "There are 13 birds.", "right"),
        ("maths", "1/2", {}, r"So it is \boxed{0.5}", "right"),
        ("rounded", "3.14", {"precision": 2.0}, "Answer: 3.14159", "right"),
        ("rounded", "3.14", {"precision": 2.0}, "Answer: 3.145", "wrong"),  # 3.15
        ("rounded", "0.6", {"precision": 1}, "0.55", "right"),
        ("rounded", "1.45", {"precision": 2}, "Answer: $1.45", "right"),
        ("rounded", "0.6", {"precision": 1}, "I cannot read it.", "unparsed"),
        ("list", "[2007, 2008]", {}, "[2007,2008]", "right"),
        ("list", "[2007, 2008]", {}, "Answer: 2007 and 2008", "right"),
        ("list", "[1, 2, 3, 4]", {}, "[1, 2, 3, 4]", "right"),
        ("list", "[1, 2]", {}, "[2, 1]", "wrong"),
        ("list", "[1, 2]", {}, "Between the first and the second year of the line.", "unparsed"),
    ],
)
def test_other_kinds(kind: str, answer: str, extra: dict[str, Any], text: str, expected: str) -> None:
    assert scored(item(answer, (), kind=kind, extra=extra), text)[1] == expected


def test_graded_kinds_keep_their_value() -> None:
    # off by 10 %: below 1 - theta for theta .50 to .85, eight of ten
    assert scored(item("100", (), kind="mra"), "Answer: 110") == ("110", "right", 0.8)


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="kind"):
        scored(item("x", (), kind="guess"), "x")


def test_a_runaway_is_flagged_and_wrong_but_a_long_thought_is_none() -> None:
    filler = "word " * 2001  # 10,005 characters
    result = scoring.score(item(), said(f"{filler}\nAnswer: B"))
    assert (result["parsed"], result["outcome"], result["score"], result["runaway"]) == ("B", "wrong", 0.0, True)
    result = scoring.score(item(), said(f"<think>{filler}</think>Answer: B"))
    assert (result["outcome"], result["runaway"]) == ("right", False)
    result = scoring.score(item(), said(f"<think>{filler}", stop="turn_tokens"))
    assert (result["outcome"], result["runaway"]) == ("truncated", True)
    assert not scoring.score(item(), said("x" * 10_000))["runaway"]


def test_a_reference_letter_that_is_also_an_options_text() -> None:
    """Options B, C, A: the reference "A" is the first option, whose text is B."""
    one = item("A", ("B", "C", "A"))
    assert scoring.gold_letter(one.sample) == "A"
    assert scored(one, "(A)") == ("A", "right", 1.0)
    assert scored(one, "A. B") == ("A", "right", 1.0)
    assert scored(one, "A") == (None, "unparsed", 0.0)  # the letter A, or the text of option C


# ---- the order of options ------------------------------------------------------------------------------------------------------

MANY = [f"i{number}" for number in range(400)]


def test_shuffled_is_the_same_everywhere_and_even() -> None:
    one, order = scoring.shuffled(item("A"), 7)
    assert (order, one.sample.options, one.sample.answer) == GOLDEN
    places = Counter(scoring.shuffled(item("A", id=name), 0)[1].index(0) for name in MANY)
    assert min(places.values()) > 70  # 400 draws of 4 places: 100 each, standard deviation 8.7
    assert scoring.shuffled(item("A"), 8)[1] != order


GOLDEN = ((1, 0, 3, 2), ("blue", "red", "grey", "green"), "B")  # sha256 of "7\ni1\n0" ...: fixed for good


@given(st.integers(0, 2**31), st.integers(0, 3), st.sampled_from(["B", "blue", "the colour is green", "(D)"]))
def test_the_gold_option_stays_the_gold_option(seed: int, gold: int, text: str) -> None:
    before = item("ABCD"[gold], id=f"s{seed}")
    shown, order = scoring.shuffled(before, seed)
    assert sorted(order) == [0, 1, 2, 3]
    assert shown.sample.options["ABCD".index(str(shown.sample.answer))] == OPTIONS[gold]
    assert shown.sample.options == tuple(OPTIONS[place] for place in order)
    result = scoring.score(shown, said(text), order=order)
    assert OPTIONS[result["choice"]] == shown.sample.options["ABCD".index(result["parsed"])]
    assert (result["outcome"] == "right") == (result["choice"] == gold)


def test_options_written_in_the_question_change_places_there() -> None:
    one = item("A", (), "Which?\nA. red\nB. blue\nC. dark green\nOne letter.")
    shown = scoring.reordered(one, (2, 0, 1))
    assert shown.sample.question == "Which?\nA. dark green\nB. red\nC. blue\nOne letter."
    assert shown.sample.answer == "B"
    assert scoring.score(shown, said("B"), order=(2, 0, 1))["choice"] == 0
    assert len(scoring.circular(one)) == 3


@pytest.mark.parametrize(
    ("options", "movable"),
    [
        (("red", "blue"), 2),
        (("a man", "A dog runs", "A"), 0),
        (("A is closer", "B is closer"), 0),
        (("only A", "both A and C", "neither", "D"), 0),
        (("Point B", "Point C"), 0),
        (("A red car", "A blue car"), 2),
        (("Vitamin Z", "T-shirt", "5 °C"), 3),
        (("red", "blue", "none of the above"), 2),
        (("red", "all of the above", "blue"), 0),
        (("red", "blue", "All of these", "None of these"), 2),
        (("1", "2", "No correct answer"), 3),
        ((), 0),
    ],
)
def test_options_that_speak_of_others_stay(options: tuple[str, ...], movable: int) -> None:
    one = item("A" if options else "x", options)
    orders = [scoring.shuffled(one, seed)[1] for seed in range(30)]
    assert all(order[movable:] == tuple(range(movable, len(options))) for order in orders)
    assert len(set(orders)) == {0: 1, 2: 2, 3: 6}[movable]
    assert len(scoring.circular(one)) == max(1, movable)


def test_circular_puts_each_option_at_each_letter() -> None:
    shown = scoring.circular(item("C"))
    assert [one.sample.options for one, _ in shown] == [
        ("red", "blue", "green", "grey"),
        ("blue", "green", "grey", "red"),
        ("green", "grey", "red", "blue"),
        ("grey", "red", "blue", "green"),
    ]
    assert [one.sample.answer for one, _ in shown] == ["C", "B", "A", "D"]


def test_a_wrong_order_is_an_error() -> None:
    with pytest.raises(ValueError, match="no permutation of its 4 options"):
        scoring.reordered(item(), (0, 1, 1, 2))


# ---- several draws -------------------------------------------------------------------------------------------------------------


def rows(*texts: str, one: Item | None = None, stop: str = "answered") -> list[Row]:
    asked = one or item()
    return [
        {
            "benchmark": "x", "mode": "direct", "item": "i1", "draw": draw, "tokens_in": 10, "tokens_out": draw, "seconds": 0.5,
            "calls": [draw], **scoring.score(asked, said(text, stop=stop)),
        }
        for draw, text in enumerate(texts)
    ]  # fmt: skip


def test_most_draws_win_and_all_are_paid_for() -> None:
    row = scoring.vote(rows("A", "Answer: B", "no idea", "(B)"))
    assert (row["parsed"], row["outcome"], row["votes"], row["draws"], row["draw"]) == ("B", "right", 2, 4, 1)
    assert (row["tokens_in"], row["tokens_out"], row["seconds"], row["calls"]) == (40, 6, 2.0, [1, 0, 2, 3])


def test_equal_votes_go_to_the_first_and_no_vote_stays_unparsed() -> None:
    assert scoring.vote(rows("A", "B", "B", "A"))["parsed"] == "A"
    row = scoring.vote(rows("", "hm") + rows("hm", stop="turn_tokens"))
    assert (row["outcome"], row["votes"], row["draws"]) == ("unparsed", 0, 3)
    assert scoring.vote(rows("x", stop="failed") + rows("<answer>", stop="turn_tokens"))["outcome"] == "truncated"


def test_votes_count_meanings_not_spellings_and_options_not_letters() -> None:
    free = item("1000", (), kind="number")
    assert scoring.vote(rows("Answer: 900", "Answer: 1,000", "Answer: 1000 m", one=free))["votes"] == 2
    shown, order = scoring.reordered(item(), (1, 0, 2, 3)), (1, 0, 2, 3)
    draws = [{**rows("D")[0]}, {**rows("B")[0]}, {**rows("D")[0], **scoring.score(shown, said("A"), order=order)}]
    assert scoring.vote(draws)["votes"] == 2  # B as it stands, and A where B's option was shown first
    assert scoring.vote(draws)["outcome"] == "right"


def test_a_runaway_has_no_vote() -> None:
    long = "word " * 2001 + "\nAnswer: A"
    row = scoring.vote(rows(long, long, "Answer: B"))
    assert (row["outcome"], row["votes"], row["runaway"]) == ("right", 1, False)
    assert scoring.vote(rows(long, ""))["outcome"] == "wrong"


def test_circular_asks_for_all_right() -> None:
    assert scoring.all_right(rows("B", "B"))["score"] == 1.0
    row = scoring.all_right(rows("B", "A", "B"))
    assert (row["outcome"], row["votes"], row["draws"], row["tokens_in"]) == ("wrong", 2, 3, 30)


def test_rows_of_two_items_are_not_put_together() -> None:
    with pytest.raises(ValueError, match="rows of 2 items"):
        scoring.vote([rows("A")[0], {**rows("A")[0], "item": "i2"}])


# ---- the judge -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


def judge_of(server: Server, **more: Any) -> Judge:
    return Judge(endpoint=Endpoint(url=server.url, model="m", wait_s=0.0, retries=0, **more))


def test_the_judge_sees_only_what_no_rule_could_read(server: Server, tmp_path: Path) -> None:
    judge = judge_of(server, cache=str(tmp_path))
    for text, stop in (("Answer: A", "answered"), ("it", "turn_tokens"), ("", "answered"), ("I don't know", "answered")):
        assert scoring.score(item(), said(text, stop=stop), judge=judge)["judged"] is False
    assert not server.asked
    text = "The thing has the shade of a clear sky, I would say."
    server.says("1")
    result = scoring.score(item(), said(text), judge=judge)
    assert (result["outcome"], result["score"], result["judged"], result["parsed"]) == ("right", 1.0, True, text)
    prompt = server.asked[0]["messages"][0]["content"]
    assert "Which?\nA. red\nB. blue\nC. green\nD. grey" in prompt
    assert "B. blue\n\nAnswer to be judged" in prompt
    assert scoring.score(item(), said(text), judge=judge) == result
    assert len(server.asked) == 1  # kept on disk
    server.says("0")
    result = scoring.score(item("A"), said(text), judge=judge)
    assert (result["outcome"], result["score"], result["judged"]) == ("wrong", 0.0, True)
    assert len(server.asked) == 2
    result = scoring.score(item(), said("long " * 300), judge=judge)
    assert (result["outcome"], result["judged"], len(server.asked)) == ("unparsed", False, 2)


def test_a_judge_that_cannot_be_reached_is_an_error_and_no_verdict(server: Server) -> None:
    judge = judge_of(server)
    server.replies.append((500, "down"))
    with pytest.raises(EndpointError, match="cannot be reached"):
        scoring.score(item(), said("Something of the kind that you have in mind."), judge=judge)


# ---- other harnesses -----------------------------------------------------------------------------------------------------------

CASES = [
    case
    for line in (Path(__file__).parent / "data" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    if 2 <= len((case := json.loads(line)).get("options", ())) <= 4
]
TABLE = {  # reply: a careful reader, then the four rules of peer_rules.RULES
    "Answer: B": ("B", "A", "A", "B", "B"),
    "The answer is B.": ("B", "B", "B", "B", "B"),
    "A red car is visible, so B.": ("B", "A", "A", "A", "A"),
    "The color is red.": ("A", "D", None, "A", None),
    "<think>A or C?</think><answer>B</answer>": ("B", None, "A", None, "A"),
    r"\boxed{B}": ("B", None, "B", "B", "B"),
    "Based on the zoom, the sign is blue (C).": ("C", "B", "B", "C", "C"),
    "": (None, None, "A", None, None),
    "(B)": ("B", "B", "B", "B", "B"),
    "B": ("B", "B", "B", "B", "B"),
}


def cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("text", list(TABLE))
def test_the_table_of_disagreements(text: str) -> None:
    ours = extract(text, OPTIONS).text
    assert (ours, *(rule(text, OPTIONS) for rule in peer_rules.RULES.values())) == TABLE[text]
    told = [cells(line) for line in DOC.splitlines() if line.startswith("| `") and cells(line)[0] == (text or "(empty)")]
    assert told == [[text or "(empty)", *(answer or "–" for answer in TABLE[text])]]


@pytest.mark.parametrize("name", list(peer_rules.RULES))
def test_where_a_rule_of_another_harness_is_right_ours_says_the_same(name: str) -> None:
    rule = peer_rules.RULES[name]
    count: Counter[str] = Counter()
    for case in CASES:
        theirs, right = rule(case["text"], case["options"]), case["expected"]
        if theirs == right:
            assert extract(case["text"], case["options"]).text == theirs, case
            count["same"] += 1
        elif theirs is None:
            count["missed"] += 1
        else:
            count["other" if right else "invented"] += 1
    told = next(cells(line) for line in DOC.splitlines() if line.startswith(f"| {name}"))
    assert told[1:] == [str(count[key]) for key in ("same", "other", "invented", "missed")]
    assert re.search(rf"\b{len(CASES)} replies\b", DOC)


@pytest.mark.parametrize(
    ("text", "careful", "exact", "one_word"),
    [
        ("yes", "yes", "yes", "yes"),
        ("Yes.", "yes", None, "yes"),
        ("Yes, there is a dog.", "yes", None, "yes"),
        ("There is no dog, so the answer is no.", "no", None, "no"),
        ("There is no sign of a cat, but yes, a dog.", "yes", None, None),
        ("There are no people left of the dog.", None, None, "no"),
        ("Not sure.", None, None, None),
    ],
)
def test_yes_and_no(text: str, careful: str | None, exact: str | None, one_word: str | None) -> None:
    ours = extract(text, kind="yes_no").text
    assert ours == careful
    assert (peer_rules.exact_word_rule(text), peer_rules.one_word_rule(text)) == (exact, one_word)
    if exact is not None:
        assert ours == yes_or_no(text) == exact


def test_a_nearest_option_is_chosen_for_everything_even_for_nothing() -> None:
    assert peer_rules.nearest_option_rule("", ("twenty", "six", "eleven")) == "B"  # the shortest
    assert peer_rules.nearest_option_rule("I cannot tell.", OPTIONS) in "ABCD"
    assert scored(item("B", ("twenty", "six", "eleven")), "") == (None, "unparsed", 0.0)
