"""Reading answers: a table of what a careful reader reads, and what must not be read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.rewards.answer import Parsed, extract
from foveate.rewards.choices import blank_letters, letter_of, option_spans, options_in
from foveate.rewards.compare import (
    bleu1,
    edit_similarity,
    is_number,
    number_in,
    relative_accuracy,
    same_number,
    same_text,
    words,
    yes_or_no,
)  # fmt: skip
from foveate.rewards.marks import answer_start

OPTIONS = ("red", "blue", "green", "grey")
CASES = [json.loads(line) for line in (Path(__file__).parent / "data" / "answers.jsonl").read_text(encoding="utf-8").splitlines()]

PIECES = [
    "<answer>", "</answer>", "<think>", "</think>", "A", "B", " ", ".", "\\boxed{", "}", "Answer: ", "not ", "red", "or", "\n",
    "{", '"ans": "', "is ", "3", "/", "?", "no ", "yes",
]  # fmt: skip

PEERS_DISAGREE = {
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


@pytest.mark.parametrize("text", list(PEERS_DISAGREE))
def test_the_table_on_which_extractors_disagree(text: str) -> None:
    assert extract(text, OPTIONS).text == PEERS_DISAGREE[text]


def read(case: dict[str, Any]) -> str | float | None:
    got = extract(case["text"], case.get("options", ()), case.get("letters"), case.get("kind", "auto")).text
    return number_in(got) if got is not None and case.get("kind") == "number" else got


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case['why'][:40]}" for number, case in enumerate(CASES, 1)])
def test_a_careful_reader(case: dict[str, Any]) -> None:
    expected = case["expected"]
    if case.get("kind") == "number" and expected is not None:
        expected = float(expected)
    assert read(case) == expected, case["why"]


def test_there_are_many_cases_and_many_that_must_not_be_read() -> None:
    assert len(CASES) >= 300
    assert sum(case["expected"] is None for case in CASES) >= 80
    assert len({(case["text"], str(case.get("options")), case.get("kind")) for case in CASES}) == len(CASES)


def test_the_evidence_is_named() -> None:
    texts = ("<answer>B</answer>", r"\boxed{B}", "Answer: B", "so B.", "It is blue.", "?")
    assert [extract(text, OPTIONS).how for text in texts] == ["tag", "boxed", "phrase", "letter", "option", "none"]
    assert extract("<action>output answer: 7</action>") == Parsed("7", "action")
    assert extract("two cars") == Parsed("two cars", "whole")


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_reading_never_raises_and_gives_an_option_or_nothing(text: str) -> None:
    assert extract(text, OPTIONS).text in ("A", "B", "C", "D", None)
    assert extract(text, letters=2).text in ("A", "B", None)
    assert extract(text, kind="yes_no").text in ("yes", "no", None)
    number = extract(text, kind="number").text
    assert number is None or number_in(number) is not None
    free = extract(text).text
    assert free is None or free.strip()


@pytest.mark.parametrize(
    "unit",
    [
        "<think>", "<answer>", "\\boxed{", "{", "A, ", "A or ", "not A, ", "A is wrong ", "Answer: ", "答案是", " ", "\n", "1,",
        "1 / ", "(", '"ans": "', "red, ", "is it A? ", "<action>output answer:",
    ],
)  # fmt: skip
def test_long_texts_are_read_in_linear_time(unit: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        start = time.process_time()  # other work on the machine comes and goes
        for one in (text, f"Answer: {text}", f"<answer>{text}</answer>"):
            extract(one, OPTIONS)
            extract(one, kind="number")
            extract(one)
        return time.process_time() - start

    short, long = (min(seconds(size) for _ in range(3)) for size in (25_000, 200_000))
    # 8 times the text: linear is 8 times the time, and up to 25 where a processor's cache is shared; quadratic is 64 times
    assert long < 40 * max(short, 0.01)


def test_a_megabyte_is_read() -> None:
    start = time.process_time()
    assert extract("x" * 1_000_000 + " so <answer>B</answer>", OPTIONS).text == "B"
    assert extract("<think>" + "A. " * 333_000 + "</think> Answer: C", OPTIONS).text == "C"
    assert number_in("9" * 1_000_000) is None
    assert time.process_time() - start < 5


def test_options_listed_in_the_question() -> None:
    assert options_in("Which?\nA. red\nB. blue\nC) green") == ("red", "blue", "green")
    assert options_in("Which? (A) red (B) dark blue, (C) green") == ("red", "dark blue", "green")
    assert options_in("Is A. Smith here?") == ()
    assert options_in("What letter is on the red triangle?") == ()
    text = "Which?\nA. red\nB. blue\n"
    assert [text[start:end] for start, end in option_spans(text)] == ["red", "blue"]


def test_letters_of_references() -> None:
    said = ("B", "(B)", "B. blue", "blue", "Blue.", "purple", "E")
    assert [letter_of(text, OPTIONS) for text in said] == ["B", "B", "B", "B", "B", None, None]


def test_letters_are_blanked_and_words_are_not() -> None:
    assert blank_letters("A red car, so (B). Option C is not it: B.", 4) == "A red car, so (_). Option _ is not it: _."


def test_where_an_answer_begins() -> None:
    text = "thought <answer>B</answer>"
    assert text[answer_start(text) :] == "B</answer>"
    assert answer_start("so \\boxed{B}") == len("so \\boxed{")
    assert answer_start("nothing") is None


def test_words_are_cut_alike() -> None:
    assert words("The Red-car's 1,200.5 isn't 3.5%, 红色!") == ["red", "car", "1200.5", "not", "3.5%", "红", "色"]
    assert same_text("The Red Car.", "red car")
    assert not same_text("red", "red car")
    assert same_text("A", "a")
    assert not same_text("3.5", "35")
    assert same_text("...", "...")
    assert not same_text("-3", "3")


def test_numbers() -> None:
    table = {
        "1,200 m": 1200, "12.0": 12, "-3.5e2": -350, "45%": 45, "3/4": 0.75, r"\frac{3}{4}": 0.75, r"-\frac{1}{2}": -0.5,
        "2 + 2 = 4": 4, "twelve": 12, "about 30": 30, "5 (not 6)": 5, ".5": 0.5,
        "between 3 and 4": None, "1 or 2": None, "none": None, "12:30": None, "nan": None, "inf": None, "1e999": None,
        "3/0": None, "": None, "not 3": None, "3-4": None, "\u00b2": None,
    }  # fmt: skip
    assert {text: number_in(text) for text in table} == table
    assert same_number("1,200 m", "1200")
    assert same_number("0.3333", "1/3", tolerance=1e-3)
    assert not same_number("0.33", "1/3", tolerance=1e-3)
    assert (is_number("45%"), is_number("45 cars"), is_number(""), is_number("-1.5")) == (True, False, False, True)


def test_yes_and_no() -> None:
    table = {"Yes.": "yes", "no dog": "no", "Yes, there is no dog": "yes", "yes, no": None, "not yes": None, "maybe": None}
    assert {text: yes_or_no(text) for text in table} == table


def test_relative_accuracy_by_hand() -> None:
    # the error must be below .5, .45, ..., .05: an error of .2 passes .5 to .25, six of ten
    assert relative_accuracy("8", "10") == pytest.approx(0.6)
    assert relative_accuracy("10", "10") == 1.0
    assert relative_accuracy("15", "10") == 0.0
    assert relative_accuracy("9.5", "10") == pytest.approx(0.9)  # .05 is not below .05
    assert relative_accuracy("-8", "-10") == pytest.approx(0.6)
    assert (relative_accuracy("0", "0"), relative_accuracy("1", "0"), relative_accuracy("x", "10")) == (1.0, 0.0, 0.0)


def test_edit_similarity_by_hand() -> None:
    assert edit_similarity("Kitten", "kitten ") == 1.0
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert edit_similarity("abc", "xyz") == 0.0
    assert edit_similarity("ab", "xb", threshold=0.0) == pytest.approx(0.5)
    assert edit_similarity("ab", "cd ef gh") == 0.0
    assert edit_similarity("", "") == 1.0
    start = time.process_time()
    assert edit_similarity("a" * 1_000_000, "b" * 900_000) == 0.0
    assert time.process_time() - start < 1


def test_bleu1_by_hand() -> None:
    assert bleu1("the red car", "a red car") == 1.0
    assert bleu1("red red car", "red car") == pytest.approx(2 / 3)
    assert bleu1("red", "red car") == pytest.approx(0.36787944)  # precision 1, brevity exp(1 - 2)
    assert bleu1("", "red") == 0.0
