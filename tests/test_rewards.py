"""Rewards: the extractors' disagreement table, unparsed as an outcome of its own, breakdowns keyed by sample."""

from __future__ import annotations

from typing import Any

import pytest

from foveate.rewards.answer import extract, is_number, letter_of, number_in, options_in, same_number, same_text
from foveate.rewards.combine import RewardSpec, score, score_group, score_text
from foveate.rewards.format import answer_tags, boxed, think_answer, think_boxed
from foveate.vlm.records import Group, Rollout, Sample, StopReason, Turn, View

OPTIONS = ("red", "blue", "green", "grey")

TABLE = {  # what a careful reader reads; peers' extractors differ on most of these lines
    "Answer: B": "B",
    "The answer is B.": "B",
    "A red car is visible, so B.": "B",
    "The color is red.": "A",
    "<think>A or C?</think><answer>B</answer>": "B",
    r"\boxed{B}": "B",
    "Based on the zoom, the sign is blue (C).": "C",
    "": None,
    "(B)": "B",
    "B": "B",
}
MORE = {
    "<answer>b</answer>": "B",
    "<answer>B. blue</answer>": "B",
    "<answer>blue</answer>": "B",
    "<answer>The blue one.</answer>": "B",
    r"<answer>\boxed{D}</answer>": "D",
    r"\boxed{\text{C}}": "C",
    "**Answer:** B": "B",
    "Final answer: **C**": "C",
    "The correct option is (D)": "D",
    "Answer: B. It is not A.": "B",
    "The answer is a red car": "A",
    "The answer is A red": "A",
    "Answer: the red one": "A",
    "First I thought (A).\nAnswer: C": "C",
    "D) grey": "D",
    "<answer>A</answer> wait <answer>B</answer>": "B",
    "I see that <think>it is A</think> B": "B",
    "thinking ... A ... </think>B": "B",
    # nothing that can be read: never a guess
    "   ": None,
    "I cannot tell.": None,
    "I think it is either A or B.": None,
    "A. or B.": None,
    "It is A. or B. Either way it is red.": None,
    "Answer: A, B": None,
    "Answer: not B": None,
    "It isn't A, it's B.": None,
    "The car is red and blue": None,
    "The answer is not visible": None,
    "<answer></answer>": None,
    "<answer>B": None,  # cut off: more might have followed
    "<answer>purple</answer>": None,
    "<answer>E</answer>": None,
    "<think>The answer is B": None,
    "A man is walking": None,
    "I": None,
}


@pytest.mark.parametrize("text", list(TABLE))
def test_the_table_on_which_extractors_disagree(text: str) -> None:
    assert extract(text, OPTIONS).text == TABLE[text]


@pytest.mark.parametrize("text", list(MORE))
def test_more_ways_to_answer(text: str) -> None:
    assert extract(text, OPTIONS).text == MORE[text]


def test_an_option_inside_a_longer_one() -> None:
    assert extract("It is a dark red car.", ("red", "dark red")).text == "B"
    assert extract("It is red.", ("red", "dark red")).text == "A"
    assert extract("Dark red or red.", ("red", "dark red")).text is None


FREE = {
    "K": "K",
    "It shows K. <answer>K</answer>": "K",
    "I zoom in on the red triangle at top left.": None,
    "The answer is 12": "12",
    r"so \boxed{\frac{1}{2}}": r"\frac{1}{2}",
    "two cars": "two cars",
    "": None,
}


@pytest.mark.parametrize("text", list(FREE))
def test_free_answers(text: str) -> None:
    assert extract(text).text == FREE[text]


def test_options_listed_in_the_question() -> None:
    assert options_in("Which?\nA. red\nB. blue\nC) green") == ("red", "blue", "green")
    assert options_in("Which? (A) red (B) dark blue, (C) green") == ("red", "dark blue", "green")
    assert options_in("Is A. Smith here?") == ()
    assert options_in("What letter is on the red triangle?") == ()


def test_letters_of_references() -> None:
    assert [letter_of(text, OPTIONS) for text in ("B", "(B)", "B. blue", "blue", "Blue.", "purple", "E")] == [
        "B",
        "B",
        "B",
        "B",
        "B",
        None,
        None,
    ]


def test_comparisons() -> None:
    assert same_text("The Red Car.", "red car")
    assert not same_text("red", "red car")
    assert same_text("Yes, there is.", "yes")
    assert not same_text("No, yes", "yes")
    assert same_text("A", "a")
    assert same_number("1,200 m", "1200")
    assert same_number("12.0", "12")
    assert not same_number("between 3 and 4", "3")
    assert (number_in("-3.5e2"), number_in("none"), number_in("1 or 2")) == (-350.0, None, None)
    assert (is_number("45%"), is_number("45 cars"), is_number("")) == (True, False, False)


def sample(answer: str | None, question: str = "q", options: tuple[str, ...] = ()) -> Sample:
    return Sample(id="s", question=question, answer=answer, options=options)


@pytest.mark.parametrize(
    ("reference", "options", "text", "outcome"),
    [
        ("K", (), "<answer>K</answer>", "right"),
        ("K", (), "<answer>P</answer>", "wrong"),
        ("K", (), "I look at the red triangle at top left", "unparsed"),
        ("12", (), "<answer>12.0</answer>", "right"),
        ("12", (), "<answer>twelve</answer>", "wrong"),
        ("B", OPTIONS, "blue", "right"),
        ("blue", OPTIONS, "(B)", "right"),
        ("blue", OPTIONS, "red", "wrong"),
        ("blue", OPTIONS, "hard to say", "unparsed"),
        (None, (), "<answer>K</answer>", "unscored"),
        (None, OPTIONS, "B", "unscored"),
    ],
)
def test_outcomes(reference: str | None, options: tuple[str, ...], text: str, outcome: str) -> None:
    reward = score_text(sample(reference, options=options), text)
    assert reward.outcome == outcome
    assert reward.total == (1.0 if outcome == "right" else 0.0)


def test_inline_options_are_a_choice() -> None:
    asked = sample("C", "Which colour?\nA. red\nB. blue\nC. green")
    assert score_text(asked, "It must be green.").outcome == "right"
    assert score_text(asked, "A red car is visible, so C.").outcome == "right"
    assert score_text(sample("C", "Choose the letter in the picture."), "(C)", RewardSpec(kind="choice")).outcome == "right"


def test_weights_and_breakdown() -> None:
    spec = RewardSpec.model_validate({"answer": 0.9, "format": 0.1})
    both = score_text(sample("12"), "Two dozen halved: <answer>12</answer>", spec)
    assert (both.total, dict(both.terms), both.parsed) == (pytest.approx(1.0), {"answer": 1.0, "format": 1.0}, "12")
    bare = score_text(sample("12"), "12", spec)
    assert (bare.total, dict(bare.terms)) == (pytest.approx(0.9), {"answer": 1.0, "format": 0.0})
    wrong = score_text(sample("12"), "<answer>13</answer>", spec)
    assert (wrong.total, wrong.outcome) == (pytest.approx(0.1), "wrong")
    cut = score_text(sample("12"), "<answer>12</answer>", spec, truncated=True)
    assert dict(cut.terms) == {"answer": 1.0, "format": 0.0}


@pytest.mark.parametrize(
    "bad", [{"anwser": 1.0}, {"terms": {}}, {"answer": 0.0}, {"terms": {"answer": 1}, "kind": "guess"}, {"format": "xml"}]
)
def test_bad_reward_recipes_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        RewardSpec.model_validate(bad)


def test_short_and_long_forms_of_a_recipe() -> None:
    assert RewardSpec.model_validate({"format": 1.0}).terms == {"format": 1.0}
    assert RewardSpec.model_validate({"format": "boxed"}).terms == {"answer": 1.0}
    spec = RewardSpec.model_validate({"terms": {"maths": 1}, "kind": "exact"})
    assert RewardSpec.model_validate(spec.model_dump(mode="json")) == spec


def rollout(text: str, sample_id: str = "s", stop: StopReason = StopReason.ANSWERED, index: int = 0) -> Rollout:
    return Rollout(sample_id, "g", index, View("student", ()), (Turn((1,), (0.0,), text, stop),), stop)


def test_rewards_are_keyed_by_sample() -> None:
    assert score(sample("12"), rollout("<answer>12</answer>")).total == 1.0
    with pytest.raises(ValueError, match="is of sample other"):
        score(sample("12"), rollout("<answer>12</answer>", "other"))
    group = score_group(Group(sample("12"), (rollout("12"), rollout("no idea what this could be", index=1))))
    assert [one.reward.outcome for one in group.rollouts if one.reward] == ["right", "unparsed"]
    spec = RewardSpec.model_validate({"answer": 1.0, "format": 1.0})
    assert score(sample("12"), rollout("<answer>12</answer>", stop=StopReason.TURN_TOKENS), spec).terms["format"] == 0.0


def test_maths_is_compared_as_maths() -> None:
    spec = RewardSpec(terms={"maths": 1.0})
    for said, reference, right in (
        ("1/2", "0.5", True), (r"\frac{1}{2}", "0.5", True), ("2x+1", "1+2x", True), ("3", "4", False),
        ("not maths at all (", "4", False),
    ):  # fmt: skip
        assert score_text(sample(reference), f"<answer>{said}</answer>", spec).total == float(right), said


def test_maths_gives_up_in_time() -> None:
    import time

    start = time.monotonic()
    assert score_text(sample("4"), "<answer>9^(9^(9^(9^9)))</answer>", RewardSpec(terms={"maths": 1.0})).outcome == "wrong"
    assert time.monotonic() - start < 15


def test_formats() -> None:
    assert [
        answer_tags(text)
        for text in ("<answer>x</answer>", "So <answer>x</answer> \n", "<answer> </answer>", "x", "<answer>x</answer>.")
    ] == [1, 1, 0, 0, 0]
    assert answer_tags("<answer>a</answer><answer>b</answer>") == 0
    assert answer_tags("<answer>a<answer>b</answer>") == 0
    assert [
        think_answer(text)
        for text in ("<think>t</think><answer>x</answer>", "<answer>x</answer>", "<think></think><answer>x</answer>")
    ] == [1, 0, 0]
    assert [boxed(text) for text in (r"\boxed{3}", r"\boxed{}", r"\boxed{3}\boxed{4}", "3")] == [1, 0, 0, 0]
    assert [think_boxed(text) for text in (r"<think>t</think>\boxed{3}", r"\boxed{3}")] == [1, 0]
