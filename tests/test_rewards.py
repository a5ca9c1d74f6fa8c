"""Rewards: answers and their outcomes, totals, recipes; keyed by sample, finite whatever a model writes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from reward_helpers import CHOICE, OPTIONS, VIEW, boxed_sample, case, rollout, sample, spec

from foveate.rewards import expression
from foveate.rewards.base import Query
from foveate.rewards.combine import RewardSpec, score, score_group, score_groups, score_text
from foveate.rewards.maths import same_maths
from foveate.rewards.terms.answer import Answer, Brier, confidence
from foveate.rewards.terms.judge import Judge
from foveate.rewards.terms.length import Words
from foveate.vlm.records import Group, Sample

# --- answers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "options", "text", "outcome"),
    [
        ("K", (), "<answer>K</answer>", "right"),
        ("K", (), "<answer>P</answer>", "wrong"),
        ("K", (), "I look at the red triangle at top left", "unparsed"),
        ("12", (), "<answer>12.0</answer>", "right"),
        ("12", (), "<answer>twelve</answer>", "right"),
        ("12", (), "<answer>13</answer>", "wrong"),
        ("12", (), "<answer>many</answer>", "unparsed"),
        ("12", (), "<answer>11 or 12</answer>", "unparsed"),
        ("B", OPTIONS, "blue", "right"),
        ("blue", OPTIONS, "(B)", "right"),
        ("blue", OPTIONS, "red", "wrong"),
        ("blue", OPTIONS, "hard to say", "unparsed"),
        ("yes", (), "Yes, there is.", "right"),
        ("Yes", (), "No.", "wrong"),
        ("no", (), "The dog is there.", "unparsed"),
        (None, (), "<answer>K</answer>", "unscored"),
        (None, OPTIONS, "B", "unscored"),
    ],
)
def test_outcomes(reference: str | None, options: tuple[str, ...], text: str, outcome: str) -> None:
    reward = score_text(sample(reference, options=options), text)
    assert reward.outcome == outcome
    assert reward.total == (1.0 if outcome == "right" else 0.0)


@pytest.mark.parametrize(
    ("kind", "reference", "text", "value"),
    [
        ("exact", "Ab", "<answer>Ab</answer>", 1.0),
        ("exact", "Ab", "<answer>ab</answer>", 0.0),
        ("text", "12", "<answer>12.0</answer>", 0.0),
        ("number", "0.5", "1/2", 1.0),
        ("mra", "10", "<answer>8</answer>", 0.6),
        ("mra", "left", "<answer>Left.</answer>", 1.0),
        ("mra", "10", "<answer>many</answer>", 0.0),
        ("anls", "kitten", "<answer>sitting</answer>", 1 - 3 / 7),
        ("anls", "kitten", "<answer>dog</answer>", 0.0),
        ("bleu", "a red car", "<answer>red bus</answer>", 0.5),
        ("yes_no", "no", "No, it is not.", 1.0),
    ],
)
def test_kinds_of_answers(kind: str, reference: str, text: str, value: float) -> None:
    assert score_text(sample(reference), text, spec({"terms": {"a": {"term": "answer", "kind": kind}}})).total == pytest.approx(
        value
    )


def test_choices_come_first_where_there_are_options() -> None:
    asked = sample("C", "Which colour?\nA. red\nB. blue\nC. green")
    for kind in ("auto", "choice", "maths", "mra"):
        one = spec({"terms": {"a": {"term": "answer", "kind": kind}}})
        assert score_text(asked, "A red car is visible, so C.", one).outcome == "right"
        assert score_text(asked, "It must be red.", one).outcome == "wrong"
    letters = spec({"terms": {"a": {"term": "answer", "kind": "choice"}}})
    assert score_text(sample("C", "Choose the letter in the picture."), "(C)", letters).outcome == "right"


def test_a_long_answer_is_wrong_where_length_is_limited() -> None:
    limited = spec({"terms": {"a": {"term": "answer", "kind": "text", "max_chars": 5}}})
    assert score_text(sample("abcd"), "<answer>abcd</answer>", limited).outcome == "right"
    assert score_text(sample("abcde"), "<answer>abcde</answer>", limited).outcome == "wrong"


def test_right_at_moves_the_outcome() -> None:
    def outcome(least: float) -> str:
        one = spec({"terms": {"a": {"term": "answer", "kind": "mra", "right_at": least}}})
        return score_text(sample("10"), "<answer>8</answer>", one).outcome

    assert (outcome(0.5), outcome(0.6), outcome(0.7)) == ("right", "right", "wrong")


def test_maths_is_compared_as_maths() -> None:
    one = spec({"maths": 1.0})
    for said, reference, right in (
        ("1/2", "0.5", True), (r"\frac{1}{2}", "0.5", True), ("2x+1", "1+2x", True), ("3", "4", False),
        ("not maths at all (", "4", False), ("the red car", "red car", True),
    ):  # fmt: skip
        assert score_text(sample(reference), f"<answer>{said}</answer>", one).total == float(right), said


def test_maths_gives_up_in_time_and_goes_on() -> None:
    start = time.monotonic()
    assert not same_maths("9^(9^(9^(9^9)))", "4", limit_s=0.5)
    assert same_maths("2x+1", "1+2x")
    assert not same_maths("x" * 1_000_000, "4")
    assert time.monotonic() - start < 30


def test_maths_works_in_threads() -> None:
    said = ["x+1", "1+x", "x", "2", "x + 1.0", "(x^2-1)/(x-1)"]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: same_maths(one, "x+1"), said)) == [True, True, False, False, True, True]


def test_brier_by_hand() -> None:
    def value(answer: str, stated: str) -> float:
        return Brier().value(case(f"<answer>{answer}</answer>{stated}", sample("K")))

    assert value("K", "<confidence>0.8</confidence>") == pytest.approx(0.96)
    assert value("P", "<confidence>0.8</confidence>") == pytest.approx(0.36)
    assert value("K", "<confidence>1</confidence>") == 1.0
    assert [value("K", stated) for stated in ("", "<confidence>1.2</confidence>", "<confidence>high</confidence>")] == [0.0] * 3
    assert value("K", "<confidence>nan</confidence>") == 0.0
    assert (confidence("<confidence>85%</confidence>"), confidence("<confidence>1.1.1</confidence>")) == (0.85, None)
    assert confidence("<confidence>0.1</confidence><confidence>0.9</confidence>") is None


# --- expressions -------------------------------------------------------------------------------------------------------------

VALUES = {"acc": 1.0, "tool": 0.5, "zero": 0.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.8*acc + 1.2*(tool if acc > 0.5 else 0)", 1.4),
        ("acc - tool / 2", 0.75),
        ("-tool + +acc", 0.5),
        ("min(acc, tool, 0.1) + max(acc, 3)", 3.1),
        ("clip(5*acc, 0, 2) + abs(-1)", 3.0),
        ("acc and tool", 1.0),
        ("acc and zero", 0.0),
        ("zero or tool", 1.0),
        ("not zero", 1.0),
        ("0 < tool < 1", 1.0),
        ("tool == 0.5 and acc != 1", 0.0),
        ("tool if zero else acc if acc >= 1 else 7", 1.0),
        ("acc / zero if zero > 0 else 2", 2.0),  # what is not chosen is not computed
    ],
)
def test_expressions(text: str, value: float) -> None:
    expression.check(text, VALUES)
    assert expression.evaluate(text, VALUES) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acc + acx", r"column 7 \('acx'\).*no term.*acc, tool, zero"),
        ("acc +", "not an expression"),
        ("acc ** 2", "not understood"),
        ("acc.real", "not understood"),
        ("acc[0]", "not understood"),
        ("__import__('os')", "not understood"),
        ("(lambda: 1)()", "not understood"),
        ("[acc for acc in acc]", "not understood"),
        ("'acc'", "not understood"),
        ("True", "not understood"),
        ("1e999", "not understood"),
        ("9" * 1000, "not understood"),
        ("acc if acc", "not an expression"),
        ("min(acc)", "min takes 2 to 20"),
        ("clip(acc, 1)", "clip takes 3"),
        ("min(acc, key=acc)", "not understood"),
        ("min", "no term"),
        ("acc\0", "not an expression"),
        ("acc; acc", "not an expression"),
        ("-" * 100 + "acc", "nested"),
        ("(" * 500 + "acc" + ")" * 500, "not an expression"),
        ("acc+" * 1000 + "acc", "at most 2000"),
        ("", "not an expression"),
    ],
)  # fmt: skip
def test_bad_expressions_are_refused(text: str, message: str) -> None:
    with pytest.raises(expression.ExpressionError, match=message):
        expression.check(text, VALUES)


def test_a_total_without_a_value_names_the_sample() -> None:
    one = spec({"terms": {"acc": {"term": "answer"}, "format": {"term": "format"}}, "total": "format / acc"})
    assert score_text(sample("K"), "<answer>K</answer>", one).total == 1.0
    with pytest.raises(ValueError, match=r"sample s, .*division by zero.*acc = 0, format = 1"):
        score_text(sample("K"), "<answer>P</answer>", one)
    large = spec({"terms": {"acc": {"term": "answer"}}, "total": "1e300 * 1e300 * acc"})
    with pytest.raises(ValueError, match=r"sample s, .* is inf"):
        score_text(sample("K"), "<answer>K</answer>", large)


def test_a_term_that_is_not_finite_names_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Words, "value", lambda self, case: math.nan)
    with pytest.raises(ValueError, match=r"sample s, .*the reward term words is nan"):
        score_text(sample("K"), "K", spec({"words": 1.0}))


# --- the combiner ------------------------------------------------------------------------------------------------------------


def test_weights_and_breakdown() -> None:
    one = spec({"answer": 0.9, "format": 0.1})
    both = score_text(sample("12"), "Two dozen halved: <answer>12</answer>", one)
    assert (both.total, dict(both.terms), both.parsed) == (pytest.approx(1.0), {"answer": 1.0, "format": 1.0}, "12")
    bare = score_text(sample("12"), "12", one)
    assert (bare.total, dict(bare.terms)) == (pytest.approx(0.9), {"answer": 1.0, "format": 0.0})
    wrong = score_text(sample("12"), "<answer>13</answer>", one)
    assert (wrong.total, wrong.outcome) == (pytest.approx(0.1), "wrong")
    assert score_text(sample("12"), "12", spec({"answer": 1, "repetition": -0.5})).total == 1.0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"anwser": 1.0}, "no term 'anwser'; did you mean answer"),
        ({"terms": {}}, "no terms"),
        ({"answer": 0.0}, "no term has a weight"),
        ({"answer": math.nan}, "weight of answer must be a number"),
        ({"answer": {"kind": "text"}}, "terms: {answer"),
        ({"terms": {"a": {"term": "answer"}, "b": {"term": "format"}}}, r"no total.*0\.5\*a \+ 0\.5\*b"),
        ({"terms": {"a": {"term": "anwser"}}}, "anwser"),
        ({"terms": {"a": {"term": "answer", "kind": "guess"}}}, "kind"),
        ({"terms": {"a b": {"term": "answer"}}}, "cannot be named"),
        ({"terms": {"min": {"term": "answer"}}}, "cannot be named"),
        ({"terms": {"a": {"term": "answer"}}, "total": "a + b"}, "'b' is no term"),
        ({"terms": {"a": {"term": "answer"}}, "ttoal": "a"}, "ttoal"),
        ({"terms": {"answer": 1.0}, "total": "answer"}, "not both"),
        ({"preset": "deepeye"}, "did you mean deepeyes"),
        ({"preset": "deepeyes", "terms": {"acc": {"kindd": "text"}}}, "kindd"),
        ({"format": "xml"}, "weight of format"),
    ],
)
def test_bad_reward_recipes_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSpec.model_validate(bad)


def test_forms_of_a_recipe_are_read_back() -> None:
    assert RewardSpec().total == "answer"
    for value in (
        {}, {"format": 1.0}, {"terms": {"answer": 0.5, "maths": 0.5}}, {"terms": {"a": {"term": "answer"}}},
        {"preset": "grit"}, {"terms": {"a": {"term": "answer"}}, "total": " a\n + 1 ", "by_source": {"x": {"answer": 1.0}}},
    ):  # fmt: skip
        one = spec(value)
        assert spec(json.loads(json.dumps(one.model_dump(mode="json")))) == one
    assert spec({"maths": 1.0}).terms["maths"] == Answer(kind="maths")
    assert "AnyTerm" not in json.dumps(RewardSpec.model_json_schema())


def test_presets_are_overridden_in_parts() -> None:
    one = spec({"preset": "deepeyes", "terms": {"acc": {"kind": "text"}}, "total": "acc + tool"})
    assert one.terms["acc"] == Answer(kind="text", max_chars=1000)
    assert one.total == "acc + tool"
    assert set(one.terms) == {"acc", "format", "tool"}
    judge = {"term": "judge", "endpoint": {"url": "http://localhost:1/v1", "model": "m"}}
    grit = spec({"preset": "grit", "terms": {"acc": judge}})
    assert isinstance(grit.terms["acc"], Judge)
    assert isinstance(grit.by_source["tallyqa"].terms["acc"], Judge)


def test_rewards_by_source_and_kind() -> None:
    one = spec({"answer": 1.0, "format": 1.0})
    one = spec({**one.model_dump(mode="json"), "by_source": {"vstar": {"answer": 2.0}, "counting": {"format": 3.0}}})

    def total(source: str, kind: str) -> float:
        return score_text(sample("K", source=source, kind=kind), "<answer>K</answer>", one).total

    assert (total("", ""), total("vstar", ""), total("x", "counting"), total("vstar", "counting")) == (2.0, 2.0, 3.0, 2.0)
    assert set(score_text(sample("K", source="vstar"), "K", one).terms) == {"answer"}


def test_rewards_are_keyed_by_sample() -> None:
    assert score(sample("12"), rollout("<answer>12</answer>")).total == 1.0
    with pytest.raises(ValueError, match="is of sample other"):
        score(sample("12"), rollout("<answer>12</answer>", sample_id="other"))
    group = score_group(Group(sample("12"), (rollout("12"), rollout("no idea what this could be", index=1))))
    assert [one.reward.outcome for one in group.rollouts if one.reward] == ["right", "unparsed"]
    assert [one.index for one in group.rollouts] == [0, 1]


def test_groups_are_scored_together_and_stay_apart() -> None:
    asked: list[int] = []

    def ask(queries: Sequence[Query]) -> list[str]:
        asked.append(len(queries))
        return ["A"] * len(queries)

    text = "<answer>B</answer>"
    groups = [
        Group(CHOICE, (rollout(text, view=VIEW), rollout("<answer>C</answer>", view=VIEW, index=1))),
        Group(Sample(id="t", question="q", answer="K", source="plain"), (rollout("K", sample_id="t"),)),
    ]
    one = spec({
        "terms": {"acc": {"term": "answer"}, "lcr": {"term": "consistency"}}, "total": "acc * (1 + lcr)",
        "by_source": {"plain": {"answer": 5.0}},
    })  # fmt: skip
    scored = score_groups(groups, one, ask)
    assert asked == [4]  # two rollouts, two orders each, one call
    rewards = [[rollout.reward for rollout in group.rollouts] for group in scored]
    assert [[reward.outcome for reward in own if reward] for own in rewards] == [["right", "wrong"], ["right"]]
    assert rewards[1][0] is not None
    assert rewards[1][0].total == 5.0


@pytest.mark.parametrize("text", ["A" * 1_000_000, "<answer>" * 100_000, "[1, 2, 3, 4]" * 80_000, "\0" * 1000, "nan", "1e999"])
def test_hostile_texts_get_a_finite_reward(text: str) -> None:
    every = spec({
        "terms": {
            "acc": {"term": "answer"}, "maths": {"term": "answer", "kind": "maths"}, "anls": {"term": "answer", "kind": "anls"},
            "bleu": {"term": "answer", "kind": "bleu"}, "brier": {"term": "brier"}, "parsed": {"term": "parsed"},
            "f": {"term": "format", "style": "rlcr"}, "iou": {"term": "box_iou"}, "match": {"term": "box_match"},
            "edges": {"term": "box_edges"}, "point": {"term": "point_in_box"}, "rep": {"term": "repetition"},
            "waits": {"term": "words"},
            "frames": {"term": "frame_thinker"}, "tool": {"term": "tool_use"}, "count": {"term": "box_count"},
        },
        "total": "acc + maths + anls + bleu + brier + parsed + f + iou + match + edges + point + rep + waits + frames + tool"
        " + count",
    })  # fmt: skip
    start = time.perf_counter()
    reward = score(boxed_sample((20, 10, 60, 50), answer="4"), rollout(text), every)
    assert math.isfinite(reward.total)
    assert reward.outcome in ("wrong", "unparsed")
    assert time.perf_counter() - start < 20
