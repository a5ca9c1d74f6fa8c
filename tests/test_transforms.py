"""Group transforms: cuts, continuations and injected texts by hand, published traps, and recipes in which they really act."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import picture, view_of
from hypothesis import given
from hypothesis import strategies as st

from foveate.rewards.combine import RewardSpec, score_groups
from foveate.train.batch import make_batches
from foveate.train.config import GrpoSignal
from foveate.train.loop import train
from foveate.train.recipes import RecipeError, load_recipe
from foveate.train.run import Run
from foveate.train.signals.base import Context
from foveate.train.signals.filters import reasons
from foveate.train.signals.grpo import Grpo
from foveate.train.signals.settings import SftSignal
from foveate.train.signals.sft import Sft
from foveate.train.streams import Stream
from foveate.train.transforms.base import Counts, Tools
from foveate.train.transforms.dot import Dot, limit, shortened
from foveate.train.transforms.dyme import Dyme
from foveate.train.transforms.rethink import Rethink, cut_ids, cut_place
from foveate.train.transforms.settings import DotTransform, DymeTransform, RethinkTransform
from foveate.train.update import accumulate
from foveate.vlm.generate import Completion, HFEngine, Sampling
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Group, Privileged, Rollout, Sample, Signal, StopReason, ToolCall, Turn
from foveate.vlm.rollout import Limits, Rules
from foveate.vlm.segments import Segment

RIGHT, WRONG = "<answer>K</answer>", "<answer>P</answer>"
SAMPLE = Sample(id="s", question="q", answer="K", privileged=Privileged(rationale="The sign shows K."))
OWN = RewardSpec.model_validate(
    {
        "terms": {"acc": {"term": "answer"}, "length": {"term": "length", "max_tokens": 1000}},
        "total": "acc + length",
    }
)
"""Every length has a reward of its own: a reward in a wrong place is seen."""


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen3_vl", seed=1, initializer_range=0.1)


class Says:
    """An engine that goes on with what ``reply`` makes of the text behind the generation prompt; "" is cut at its limit."""

    def __init__(self, vlm: VLM, reply: Callable[[str], str]) -> None:
        self.renderer, self.reply = vlm.renderer, reply
        self.begun: list[str] = []
        self.asked: list[Sampling] = []

    def generate(
        self, contexts: Sequence[Segment], seeds: Sequence[Sequence[int]], sampling: Sampling, **_: Any
    ) -> list[list[Completion]]:
        self.asked.append(sampling)
        made = []
        for context in contexts:
            begun = self.renderer.decode(context.ids_T.tolist()).rpartition("assistant\n")[2]
            self.begun.append(begun)
            said = self.reply(begun)
            ids = (*self.renderer.encode(said), self.renderer.stop_ids[0]) if said else (self.renderer.encode("x")[0],) * 9
            made.append([Completion(ids, (-9.0,) * len(ids), StopReason.ANSWERED if said else StopReason.TURN_TOKENS)])
        return made


def tools_of(vlm: VLM, reply: Callable[[str], str] = lambda _: RIGHT, **changes: Any) -> Tools:
    """Tools with a scripted engine, and log-probs that tell whose they are."""
    given = {
        "step": 3,
        "seed": 0,
        "engine": Says(vlm, reply),
        "renderer": vlm.renderer,
        "sampling": Sampling(max_new_tokens=1000),
        "rules": lambda _: Rules(),
        "score": lambda groups: score_groups(groups, OWN),
        "logprobs": lambda pairs: [tuple((-1.0 - one.index,) * len(t.action_ids_K) for t in one.turns) for one, _ in pairs],
    }
    return Tools(**{**given, **changes})  # type: ignore[arg-type]


def said(vlm: VLM, text: str, index: int, tokens: int | None = None, group: str = "g") -> Rollout:
    """A finished rollout; ``tokens`` long by words before the text."""
    ids = [*vlm.renderer.encode(text), vlm.renderer.stop_ids[0]]
    (filler,) = vlm.renderer.encode(" It")
    if tokens is not None:
        assert tokens >= len(ids)
        ids = [filler] * (tokens - len(ids)) + ids
    turn = Turn(tuple(ids), tuple(-0.01 * k for k in range(len(ids))), vlm.renderer.decode(ids), StopReason.ANSWERED)
    return Rollout("s", group, index, view_of(picture(1), "q"), (turn,), StopReason.ANSWERED)


def group_of(*rollouts: Rollout) -> Group:
    return score_groups([Group(SAMPLE, rollouts)], OWN)[0]


def no_teacher(pairs: object) -> list[tuple[tuple[float, ...], ...]]:
    raise AssertionError("nobody asks the teacher")


def test_counts_are_sums_over_the_calls_of_a_step() -> None:
    counts = Counts("dot", "cut", "groups")
    for step, number in ((0, 1), (0, 2), (1, 4)):
        counts.start(step)
        counts.add("cut", number)
        assert counts.values() == {"dot/cut": {1: 1.0, 2: 3.0, 4: 4.0}[number], "dot/groups": 0.0}


# ---------------------------------------------------------------- dot


def dot(**changes: Any) -> Dot:
    return Dot(DotTransform(kind="dot", **changes))


def test_a_long_right_rollout_among_right_ones_is_cut(vlm: VLM) -> None:
    """Nine of 10 tokens and one of 110: mean 20, std sqrt((9 x 100 + 8100) / 9) = 31.62, T = floor(20 + 2 x 31.62) = 83."""
    group = group_of(*(said(vlm, RIGHT, index, 10 + 100 * (index == 4)) for index in range(10)))
    assert limit([one.num_actions for one in group.rollouts], 2.0) == 83
    assert dot(alpha=2.0, margin_tokens=28).apply([group], tools_of(vlm)) == [group], "27 tokens lie beyond the cut"
    transform = dot(alpha=2.0, margin_tokens=27)
    (changed,) = transform.apply([group], tools_of(vlm))
    cut, whole = changed.rollouts[4], group.rollouts[4]
    assert [one.index for one in changed.rollouts] == list(range(10))
    assert cut.turns[0].action_ids_K == whole.turns[0].action_ids_K[:83]
    assert cut.turns[0].action_logprobs_K == whole.turns[0].action_logprobs_K[:83]
    assert (cut.stop, cut.turns[0].stop, cut.origin) == (StopReason.TURN_TOKENS, StopReason.TURN_TOKENS, "edited")
    assert cut.reward is not None
    assert (cut.reward.outcome, cut.reward.total) == ("unparsed", pytest.approx(0.083))
    assert [one for one in changed.rollouts if one.index != 4] == [one for one in group.rollouts if one.index != 4]
    assert transform.metrics() == {"dot/groups_all_right": 1.0, "dot/cut": 1.0, "dot/cut_tokens": 27.0, "dot/cut_wrong": 1.0}


def test_dot_makes_variance_before_it_is_filtered(vlm: VLM) -> None:
    settings = GrpoSignal(kind="grpo", filter_zero_variance=True)
    plain = tuple(said(vlm, RIGHT, index, 10 + 100 * (index == 4)) for index in range(10))
    (group,) = score_groups([Group(SAMPLE, plain)])
    assert reasons(group, settings) == ["zero_variance"] * 10
    (changed,) = dot(alpha=2.0, margin_tokens=20).apply([group], tools_of(vlm, score=score_groups))
    assert reasons(changed, settings) == [None] * 10
    values = [one.advantages_NK[0][0] for one in Grpo(settings).build([changed], Context(no_teacher)) if one.advantages_NK]
    assert values[4] < 0 < min(values[:4] + values[5:])


def test_dot_leaves_groups_that_are_not_all_right(vlm: VLM) -> None:
    group = group_of(*(said(vlm, WRONG if index == 7 else RIGHT, index, 10 + 100 * (index == 4)) for index in range(10)))
    transform = dot(alpha=2.0, margin_tokens=1)
    assert transform.apply([group], tools_of(vlm)) == [group]
    assert transform.metrics()["dot/groups_all_right"] == 0


@given(st.lists(st.integers(1, 4000), min_size=2, max_size=10))
def test_alpha_3_never_fires_in_groups_of_up_to_10(lengths: list[int]) -> None:
    """The largest z-score of G numbers is (G - 1) / sqrt(G): 2.85 for 10, 3.02 for 11."""
    assert max(lengths) - limit(lengths, 3.0) < 1


def test_dot_that_cannot_fire_is_refused_with_the_reason() -> None:
    assert [round((size - 1) / math.sqrt(size), 2) for size in (8, 10, 11)] == [2.47, 2.85, 3.02]
    three = DotTransform(kind="dot")
    with pytest.raises(
        ValueError, match=r"alpha 3 can never cut .* a group of 10 .* 2\.85 .* at least 11 rollouts, or an alpha below"
    ):
        three.check(10, 10**6)
    three.check(11, 10**6)
    with pytest.raises(ValueError, match=r"none reaches more than 18\.7 tokens beyond the cut, and margin_tokens is 32"):
        three.check(11, 4096)
    one = DotTransform(kind="dot", alpha=1.5, margin_tokens=5)
    for longest in range(2, 60):  # one rollout as long as it can be and all others as short: the farthest that one can lie out
        fires = longest - limit([1] * 7 + [longest], 1.5) >= 5
        if fires:
            one.check(8, longest)
        else:
            with pytest.raises(ValueError, match="can never cut"):
                one.check(8, longest)
    assert fires


def test_a_cut_in_an_earlier_turn_takes_the_tail_with_it(vlm: VLM) -> None:
    seen = Message.user("<tool_response>", picture(2), "</tool_response>")
    calls = (ToolCall(name="zoom"),)
    turns = tuple(
        Turn(tuple(range(10, 10 + size)), (-0.5,) * size, f"t{size}", StopReason.TOOL_CALL if size < 5 else StopReason.ANSWERED,
             seen if size < 5 else None, 7, calls if size < 5 else ())
        for size in (3, 4, 6)
    )  # fmt: skip
    rollout = Rollout("s", "g", 0, view_of("q"), turns, StopReason.ANSWERED)
    inside = shortened(rollout, 5, vlm.renderer)
    assert inside.turns[0] == turns[0]
    last = inside.turns[1]
    assert (last.action_ids_K, last.stop, last.observation, last.calls, last.policy_version) == (
        (10, 11), StopReason.TURN_TOKENS, None, (), 7,
    )  # fmt: skip
    assert last.text == vlm.renderer.decode((10, 11))
    border = shortened(rollout, 7, vlm.renderer)
    assert border.turns == (turns[0], dataclasses.replace(turns[1], observation=None)), "nothing reads the reply"
    assert [len(one.turns) for one in (border, shortened(rollout, 3, vlm.renderer), shortened(rollout, 8, vlm.renderer))] == [
        2,
        1,
        3,
    ]
    for tokens in range(1, 13):
        one = shortened(rollout, tokens, vlm.renderer)
        assert (one.num_actions, one.stop) == (tokens, StopReason.TURN_TOKENS)
        rendered = vlm.renderer.render(one.view, one.turns)
        assert rendered.action_spans[-1].stop == len(rendered.suffix), "no observation stands at the end"


# ---------------------------------------------------------------- rethink


def rethinking(**changes: Any) -> RethinkTransform:
    small = {"room_tokens": 10, "least_tokens": 2, "most_tokens": 60, "skip": 0.0, "cut": 0.0, "neutral": 0.0}
    return RethinkTransform.model_validate({"kind": "rethink", **small, **changes})


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One.\n\nTwo. Wait, 3.", "One."),  # before Wait, then before the blank line
        ("One.\n\nTwo.\n\nWait a bit. Wait, \\boxed{3}", "One.\n\nTwo."),  # the last Wait, then the last blank line
        ("So it is 3. \\boxed{3}", "So it is 3."),
        ("A.\n\nB. The Answer is 3, my answer: 3", "A."),  # the first answer, in any case
        ("<think>A.\n\nB. C.</think><answer>3</answer>", "<think>A."),
        ("<think>A. B.</think>\n<answer>3</answer>", "<think>A. B."),
        ("<answer>3</answer>", ""),
        ("Nothing marked", "Nothing marked"),
        ("Zwölf\n\nör Wait", "Zwölf"),
    ],
)
def test_the_text_is_cut_before_marks_and_a_blank_line(text: str, kept: str) -> None:
    assert text.encode()[: cut_place(text.encode(), rethinking())].decode() == kept


def test_a_cut_falls_on_the_border_of_a_token_and_of_a_character() -> None:
    # ö is two bytes in two tokens, and the cut (before Wait) falls into the last token
    pieces = [b"a", b"\xc3", b"\xb6 b", b"c. Wa", b"it"]
    assert cut_ids((1, 2, 3, 4, 5), pieces, rethinking()) == (1, 2, 3)
    marked = rethinking(cut_before_last=["b"])
    assert cut_ids((1, 2, 3, 4, 5), pieces, marked) == (1,), "the second token ends within a character"
    assert cut_ids((1, 2), [b"Wai", b"t"], rethinking()) == ()


def test_rewards_stay_with_their_rollouts_when_continuations_are_dropped(vlm: VLM) -> None:
    """The released code counts along the kept ones: here the first is too short, the second wrong, and the last two are right."""
    said_by = {"a": "x", "b": f"long {WRONG}", "c": f"longer still {RIGHT}", "d": f"the very longest of all of them {RIGHT}"}
    group = group_of(*(said(vlm, f"{name} {WRONG}", index) for index, name in enumerate("abcd")))
    tools = tools_of(vlm, lambda begun: said_by[begun.strip()[0]])
    transform = Rethink(rethinking(most_per_prompt=4))
    (changed,) = transform.apply([group], tools)
    assert changed.rollouts[:2] == group.rollouts[:2]
    for index, name in ((2, "c"), (3, "d")):
        one, before = changed.rollouts[index], group.rollouts[index]
        kept = before.turns[0].action_ids_K[:-1]
        added = (*vlm.renderer.encode("\n\nWait, there might be a mistake"), *vlm.renderer.encode(said_by[name]))
        assert one.turns[0].action_ids_K == (*kept, *added, vlm.renderer.stop_ids[0])
        assert one.turns[0].text == vlm.renderer.decode(one.turns[0].action_ids_K)
        assert one.reward is not None
        assert (one.reward.total, one.reward.outcome) == (pytest.approx(1 + one.num_actions / 1000), "right")
        assert one.turns[0].action_logprobs_K == (-1.0 - index,) * one.num_actions, "of the weights of now, not the sampler's"
        assert (one.index, one.origin, one.group_id, one.stop) == (index, "edited", "g", StopReason.ANSWERED)
    counts = transform.metrics()
    assert {name.removeprefix("rethink/"): value for name, value in counts.items() if value} == {
        "asked": 4.0, "replaced": 2.0, "was_wrong": 2.0, "dropped_length": 1.0, "dropped_wrong": 1.0,
    }  # fmt: skip
    assert tools.engine.asked == [Sampling(temperature=0.9, max_new_tokens=60)]  # type: ignore[attr-defined]


def test_at_most_two_of_a_prompt_and_siblings_are_scored_in_the_company_they_end_in(vlm: VLM) -> None:
    scored: list[list[str]] = []

    def score(groups: list[Group]) -> list[Group]:
        scored.extend([one.origin for one in group.rollouts] for group in groups)
        return score_groups(groups, OWN)

    groups = [
        group_of(*(said(vlm, WRONG, index, group=name) for index in range(count)))
        for name, count in (("g", 4), ("h", 2), ("i", 2))
    ]
    groups[2] = group_of(*(dataclasses.replace(one, stop=StopReason.TURN_TOKENS) for one in groups[2].rollouts))
    transform = Rethink(rethinking())
    changed = transform.apply(groups, tools_of(vlm, lambda _: f"well {RIGHT}", score=score))
    assert [[one.origin for one in group.rollouts] for group in changed] == [
        ["edited", "edited", "sampled", "sampled"], ["edited"] * 2, ["sampled"] * 2,
    ]  # fmt: skip
    assert scored == [["edited"] * 4, ["edited"] * 2, ["edited", "edited", "sampled", "sampled"]]
    assert transform.metrics()["rethink/dropped_quota"] == 2
    assert transform.metrics()["rethink/asked"] == 6, "an unfinished rollout is left alone"
    assert changed[2] is groups[2]


@pytest.mark.parametrize(
    ("changes", "reply", "name"),
    [
        ({"most_waits": 2}, f"wait, so. Wait, no {RIGHT}", "dropped_waits"),
        ({"least_tokens": 40}, f"no {RIGHT}", "dropped_length"),
        ({"most_tokens": 4}, f"no {RIGHT}", "dropped_length"),
        ({}, "", "dropped_length"),
        ({}, f"no {WRONG}", "dropped_wrong"),
    ],
)
def test_continuations_are_dropped_by_name(vlm: VLM, changes: dict[str, Any], reply: str, name: str) -> None:
    group = group_of(said(vlm, WRONG, 0), said(vlm, RIGHT, 1))
    transform = Rethink(rethinking(**changes))
    assert transform.apply([group], tools_of(vlm, lambda _: reply)) == [group]
    assert transform.metrics()[f"rethink/{name}"] == 2
    if name == "dropped_waits":
        assert Rethink(rethinking(most_waits=3)).apply([group], tools_of(vlm, lambda _: reply)) != [group]


def test_a_continuation_must_fit_into_the_rollouts_limits(vlm: VLM) -> None:
    group = group_of(said(vlm, WRONG, 0, 30), said(vlm, RIGHT, 1, 30))
    size = 29 + len(vlm.renderer.encode("\n\nWait, there might be a mistake")) + len(vlm.renderer.encode(f"no {RIGHT}")) + 1
    for total, edited in ((size, True), (size - 1, False)):
        for limits in (
            {"sampling": Sampling(max_new_tokens=total)},
            {"rules": lambda _, t=total: Rules(None, Limits(total_tokens=t))},
        ):
            (changed,) = Rethink(rethinking(room_tokens=0)).apply([group], tools_of(vlm, lambda _: f"no {RIGHT}", **limits))
            assert (changed.rollouts[0].origin == "edited") is edited


def test_who_is_asked_and_how(vlm: VLM) -> None:
    """Room, ease, chance, and triggers in their shares."""
    right, wrong = [said(vlm, RIGHT, index) for index in range(4)], said(vlm, WRONG, 4, 20)
    group = group_of(*right, wrong)

    def asked(**changes: Any) -> list[str]:
        tools = tools_of(vlm, lambda _: WRONG, sampling=Sampling(max_new_tokens=40))
        Rethink(rethinking(**{"easy": 1.0, **changes})).apply([group], tools)
        return list(tools.engine.begun)  # type: ignore[attr-defined]

    assert [text[len(RIGHT) :] for text in asked()[:4]] == ["\n\nWait, let's double check"] * 4
    assert asked()[4].endswith("\n\nWait, there might be a mistake")
    assert len(asked(room_tokens=20)) == 5
    assert len(asked(room_tokens=21)) == 4, "the long one has 20 tokens left"
    assert len(asked(easy=0.8)) == 5
    assert len(asked(easy=0.79)) == 4, "4 of 5 are right: the wrong one is left alone"
    assert asked(skip=1.0) == []
    assert asked(cut=1.0)[:4] == ["\n\nWait, let's double check"] * 4, "all that stands there is the answer"
    many = [group_of(*(said(vlm, RIGHT, index, group=f"g{place}") for index in range(8))) for place in range(60)]
    tools = tools_of(vlm, lambda _: WRONG)
    Rethink(rethinking(neutral=0.5, skip=0.35)).apply(many, tools)
    begun = tools.engine.begun  # type: ignore[attr-defined]
    assert len(begun) == pytest.approx(480 * 0.65, rel=0.1)
    shares = [sum(text.endswith(end) for text in begun) / len(begun) for end in ("\n\nWait", "seem right?", "double check")]
    assert shares == pytest.approx([0.2, 0.3, 0.5], abs=0.07)


def test_what_is_gone_on_with_can_be_imitated_as_well(vlm: VLM) -> None:
    group = group_of(said(vlm, WRONG, 0), said(vlm, RIGHT, 1), said(vlm, RIGHT, 2))
    first = Rethink(rethinking(most_per_prompt=1)).apply([group], tools_of(vlm, lambda _: f"no {RIGHT}"))
    for on, wanted in (("edited", [0]), ("positive", [0, 2])):  # all are right; 0 and its trigger are longest, 1 and 2 equal
        settings = GrpoSignal(kind="grpo", nll_weight=0.05, nll_on=on)  # type: ignore[arg-type]
        grpo, nll = Grpo(settings).streams()
        assert (grpo.name, nll.name, nll.weight) == ("grpo", "nll", 0.05)
        made = Grpo(settings).build(first, Context(no_teacher))
        found = [one.rollout.index for one in made if one.stream == "nll"]
        if on == "positive":
            wanted = [
                one.rollout.index for one in made if one.stream == "grpo" and one.advantages_NK and one.advantages_NK[0][0] > 0
            ]
        assert found == wanted
        assert all(one.ce_weights_NK == ((1.0,) * one.rollout.num_actions,) for one in made if one.stream == "nll")
    assert [one.name for one in Grpo(GrpoSignal(kind="grpo")).streams()] == ["grpo"]


# ---------------------------------------------------------------- dyme

TAGS = "{rationale}\n<answer>{answer}</answer>"


def dyme(vlm: VLM, *groups: Group, template: str = TAGS) -> tuple[list[Group], dict[str, float]]:
    transform = Dyme(DymeTransform(kind="dyme", template=template))
    return transform.apply(groups, tools_of(vlm)), transform.metrics()


def test_a_group_memorises_explores_or_rests(vlm: VLM) -> None:
    none = group_of(*(said(vlm, WRONG, index, 10 + index, "none") for index in range(3)))
    some = group_of(said(vlm, WRONG, 0, group="some"), said(vlm, RIGHT, 1, group="some"))
    every = group_of(said(vlm, RIGHT, 0, 10, "every"), said(vlm, RIGHT, 1, 20, "every"))
    changed, counts = dyme(vlm, none, some, every)
    assert counts == {"dyme/memorise": 1.0, "dyme/explore": 1.0, "dyme/rest": 1.0, "dyme/memorised_wrong": 0.0}
    given = changed[0].rollouts[0]
    text = "The sign shows K.\n<answer>K</answer>"
    assert given.turns[0].action_ids_K == (*vlm.renderer.encode(text), vlm.renderer.stop_ids[0])
    assert (given.turns[0].text, given.origin, given.index, given.group_id) == (text, "injected", 0, "none")
    assert given.reward is not None
    assert given.reward.outcome == "right"
    assert changed[0].rollouts[1:] == none.rollouts[1:]
    assert changed[1] == some
    assert changed[2] == dataclasses.replace(every, weight=0.0)

    def taught(**settings: Any) -> list[Any]:
        made = Grpo(GrpoSignal(kind="grpo", advantage="mean", **settings)).build(changed, Context(no_teacher))
        return [
            ("ce", one.ce_weights_NK[0][0])
            if one.ce_weights_NK
            else None
            if one.advantages_NK is None
            else one.advantages_NK[0][0]
            for one in made
        ]

    half = 0.5  # some: totals 1 + n and n, both of the same length
    assert taught() == [("ce", 1.0), 0.0, 0.0, pytest.approx(-half), pytest.approx(half), 0.0, 0.0], (
        "rests, though lengths differ"
    )
    filtered = taught(filter_zero_variance=True, filter_void=True, filter_overlong=True)
    assert filtered == [("ce", 1.0), 0.0, 0.0, pytest.approx(-half), pytest.approx(half), None, None]


def test_it_is_accuracy_that_decides_and_not_the_total(vlm: VLM) -> None:
    formal = RewardSpec.model_validate({"preset": "dyme"})
    sure = score_groups([Group(SAMPLE, tuple(said(vlm, "Answer: P", index) for index in range(2)))], formal)[0]
    assert [one.reward.total for one in sure.rollouts if one.reward] == [1.0, 1.0], "a good form, and still nothing right"
    changed, counts = dyme(vlm, sure)
    assert counts["dyme/memorise"] == 1
    assert changed[0].rollouts[0].origin == "injected"


def test_a_text_that_the_reward_does_not_read_is_counted(vlm: VLM) -> None:
    none = group_of(*(said(vlm, WRONG, index) for index in range(2)))
    assert dyme(vlm, none, template="I do not know.")[1]["dyme/memorised_wrong"] == 1


def test_a_text_that_is_memorised_is_never_filtered(vlm: VLM) -> None:
    """Whatever its reward: it is not compared with its siblings, and dynamic sampling draws no other group in its place."""
    (none,) = score_groups([Group(SAMPLE, tuple(said(vlm, WRONG, index) for index in range(2)))])
    transform = Dyme(DymeTransform(kind="dyme", template="I do not know."))
    (changed,) = transform.apply([none], tools_of(vlm, score=score_groups))
    assert [one.reward.total for one in changed.rollouts if one.reward] == [0.0, 0.0]
    settings = GrpoSignal(kind="grpo", filter_zero_variance=True, filter_void=True)
    assert reasons(none, settings) == ["zero_variance"] * 2
    assert reasons(changed, settings) == [None, None]


def test_a_sample_without_a_hint_is_an_error_that_names_it(vlm: VLM) -> None:
    none = group_of(*(said(vlm, WRONG, index) for index in range(2)))
    bare = dataclasses.replace(none, sample=Sample(id="s", question="q", answer="K"))
    with pytest.raises(ValueError, match=r"sample s: the dyme template .* needs rationale, which the sample lacks"):
        dyme(vlm, bare)


def gradients(vlm: VLM, signals: list[Signal], stream: Stream) -> dict[str, torch.Tensor]:
    vlm.model.zero_grad(set_to_none=True)
    accumulate(vlm, None, make_batches(signals, {stream.name: stream}, vlm.renderer, 10_000, longest_tokens=50), 1.0)
    return {name: one.grad.clone() for name, one in vlm.model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant", "balanced"])
def test_the_gradient_of_an_injected_group_is_the_supervised_one_times_its_weight(vlm: VLM, reduction: str) -> None:
    none = group_of(*(said(vlm, WRONG, index, 10 + 5 * index) for index in range(3)))
    (changed,), _ = dyme(vlm, none)
    grpo = Grpo(GrpoSignal(kind="grpo", reduction=reduction))  # type: ignore[arg-type]
    own = gradients(vlm, grpo.build([changed], Context(no_teacher)), *grpo.streams())
    sft = Sft(SftSignal(kind="sft"))
    alone = dataclasses.replace(changed, rollouts=changed.rollouts[:1])
    wanted = gradients(vlm, sft.build([alone], Context(no_teacher)), *sft.streams())
    tokens = changed.rollouts[0].num_actions
    weight = {"token": tokens / (tokens + 15 + 20), "sequence": 1 / 3, "constant": tokens / (3 * 50), "balanced": 1.0}[reduction]
    assert max(float(one.abs().max()) for one in wanted.values()) > 1e-2
    for name, value in wanted.items():
        torch.testing.assert_close(own[name], weight * value, atol=1e-6, rtol=1e-4)


# ---------------------------------------------------------------- recipes

TWO_STEPS = ["steps=2", "prompts=2", "threads=1", "loggers=[]", "eval=null", "checkpoint.best_view=null"]


def logged(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss/total" in row]


class Rambles(HFEngine):
    """Samples as ever, but the first rollout of every prompt says a lot before it."""

    def generate(self, contexts: Any, seeds: Any, sampling: Any, **more: Any) -> list[list[Completion]]:
        made = super().generate(contexts, seeds, sampling, **more)
        filler = tuple(self.vlm.renderer.encode(" It")) * 40
        return [
            [dataclasses.replace(one, ids=filler + one.ids, logprobs=(-2.0,) * len(filler) + one.logprobs, held=None), *rest]
            for one, *rest in made
        ]


def scored_as(outcome: Callable[[Rollout], str]) -> Callable[..., list[Group]]:
    """A scorer that finds right what ``outcome`` says."""

    def score(groups: Sequence[Group], spec: RewardSpec | None = None, ask: Any = None) -> list[Group]:
        made = score_groups(groups, spec, ask)
        judged = []
        for group in made:
            rollouts = [
                dataclasses.replace(
                    one, reward=dataclasses.replace(one.reward, outcome=outcome(one), total=float(outcome(one) == "right"))
                )
                for one in group.rollouts
            ]  # type: ignore[type-var]
            judged.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
        return judged

    return score


def test_the_dot_recipe_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.train.sync.HFEngine", Rambles)
    monkeypatch.setattr(
        "foveate.train.experience.score_groups", scored_as(lambda one: "wrong" if one.stop.truncated else "right")
    )
    config = load_recipe("tiny/dot", [*TWO_STEPS, "sampling.max_turns=1", "rollouts=6", "signals.0.extra_rounds=0"])
    train(config, tmp_path)
    for row in logged(tmp_path):
        assert row["dot/groups_all_right"] == 2
        assert row["dot/cut"] == row["dot/cut_wrong"] == 2
        assert row["grpo/filtered_zero_variance"] == 0, "cut before groups without variance are filtered"
        assert row["optim/grad_norm"] > 0


def test_the_rethinking_recipe_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(one: Rollout) -> str:
        return "right" if one.origin == "edited" or one.index == 0 else "wrong"

    monkeypatch.setattr("foveate.train.experience.score_groups", scored_as(outcome))
    config = load_recipe("tiny/rethinking", [*TWO_STEPS, "rollouts=4", "transforms.0.skip=0", "log_rollouts_every=1"])
    train(config, tmp_path)
    for row in logged(tmp_path):
        assert row["rethink/asked"] == row["rethink/cut"] == 8
        assert 0 < row["rethink/replaced"] <= 4
        assert row["rethink/dropped_wrong"] == 0
        assert row["loss/nll/nll"] > 0
        assert row["loss/grpo/ratio"] == pytest.approx(1, abs=1e-4), "edited rollouts have the log-probs of the weights of now"


def test_edited_rollouts_get_the_log_probs_of_the_trainers_own_pass(tmp_path: Path) -> None:
    """With the real engine and scorer of a run, and skips and wrong ends as they come."""
    config = load_recipe("tiny/rethinking", [*TWO_STEPS, "prompts=6"])
    run = Run(config, tmp_path)
    from foveate.train import experience

    played = experience.play(run.main, 0, run.engine, run.vlm.renderer, config.grpo, run.changed)
    edited = [one for group in played.groups for one in group.rollouts if one.origin == "edited"]
    assert edited
    assert all(one.origin == "sampled" for group in played.played for one in group.rollouts)
    own = run.logprobs(run.vlm, [(one, one.view) for one in edited])
    for one, rows in zip(edited, own, strict=True):
        assert one.turns[0].action_logprobs_K == pytest.approx(rows[0])
        assert one.reward is not None
        assert one.reward.outcome == "right"
        assert "Wait" in one.text
    again = Run(config, tmp_path)
    replayed = experience.play(again.main, 0, again.engine, again.vlm.renderer, config.grpo, again.changed)
    assert replayed.groups == played.groups, "a resumed step is the same step"


@pytest.mark.parametrize(("outcome", "name"), [("wrong", "memorise"), ("right", "rest")])
def test_the_dyme_recipe_memorises_and_rests(outcome: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.train.experience.score_groups", scored_as(lambda _: outcome))
    train(load_recipe("tiny/dyme", [*TWO_STEPS, "rollouts=3"]), tmp_path)
    for row in logged(tmp_path):
        assert row[f"dyme/{name}"] == 2
        assert (row["optim/grad_norm"] > 0) is (outcome == "wrong")
        assert ("loss/grpo/nll" in row) is (outcome == "wrong")


def test_the_dyme_recipe_as_it_is(tmp_path: Path) -> None:
    train(load_recipe("tiny/dyme", [*TWO_STEPS, "prompts=8"]), tmp_path)
    rows = logged(tmp_path)
    assert all(sum(row[f"dyme/{name}"] for name in ("memorise", "explore", "rest")) == 8 for row in rows)
    assert all(row["dyme/memorised_wrong"] == 0 for row in rows)
    assert sum(row["dyme/explore"] for row in rows) > 0


@pytest.mark.parametrize(
    ("recipe", "overrides", "match"),
    [
        ("tiny/dot", ["transforms.0.alpha=3"], "alpha 3 can never cut a rollout: in a group of 8"),
        ("tiny/dot", ["transforms.0.margin_tokens=100"], "margin_tokens is 100"),
        ("tiny/dot", ["signals.0.filter_overlong=true"], "what dot cuts off, filter_overlong takes out"),
        ("tiny/dot", ["signals.0.shuffle=true"], "grpo.shuffle then deals out"),
        ("tiny/rethinking", ["transforms.0.room_tokens=72"], "never finds 72 free tokens"),
        ("tiny/rethinking", ["sampling.max_turns=2"], "nobody would carry out a call"),
        ("tiny/rethinking", ["transforms.0.least_tokens=39"], "set them further apart"),
        ("tiny/rethinking", ["transforms=[]"], "nll_on: edited learns what rethink"),
        ("tiny/rethinking", ["transforms.0.neutral_triggers={Wait: 0}"], "one above 0"),
        ("tiny/rethinking", ["transforms.0.right_trigger=''"], "a trigger without text is none"),
        ("tiny/dyme", ["transforms=[{kind: dyme}, {kind: dyme}]"], "each kind once"),
        ("tiny/opsd", ["transforms=[{kind: dyme}]"], "only grpo has rewards"),
    ],
)
def test_transforms_that_cannot_work_are_refused(recipe: str, overrides: list[str], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        load_recipe(recipe, overrides)


def test_dot_goes_by_the_largest_group_that_a_sampler_may_play() -> None:
    changes = ["transforms.0.alpha=3", "rollouts=4", "signals.0.extra_rounds=0"]
    assert load_recipe("tiny/dot", ["curriculum={kind: duet}", *changes]).transforms
    with pytest.raises(RecipeError, match="a group of 10"):
        load_recipe("tiny/dot", ["curriculum={kind: duet, most_rollouts: 10}", *changes])
