"""Rollouts: what the model reads in every turn, every way to end, and seeds that do not depend on company."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from helpers import zoom_toolbox

from foveate.visual_tools.dialects.base import Call
from foveate.vlm.generate import Completion, HFEngine, Sampling
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Group, Reply, Rollout, Sample, Shown, StopReason, ToolCall, View
from foveate.vlm.rollout import Limits, Rules, Toolbox, derive_seed, rollout
from foveate.vlm.segments import Segment

SAMPLING = Sampling(max_new_tokens=64)


@functools.cache
def tiny() -> VLM:
    return tiny_random("qwen2_5_vl", seed=2)


def picture(seed: int = 0) -> Picture:
    return Picture.of(np.random.default_rng(seed).integers(0, 256, (84, 112, 3), np.uint8))


def pair(name: str = "a", seed: int = 0) -> tuple[Sample, View]:
    shown = picture(seed)
    return Sample(id=name, question="Which?", images=(shown,)), View("student", (Message.user(shown, "Which?"),))


def call(*box: float) -> str:
    return zoom_toolbox().dialect.write([Call("zoom", {"box": list(box)})])


@dataclass
class Script:
    """An engine that says what it is told, and remembers what it was shown. ``lines[i][t]``: rollout i, turn t."""

    vlm: VLM
    lines: Sequence[Sequence[str]]
    ends: bool = True
    contexts: list[list[Segment]] = field(default_factory=list)

    def generate(
        self, contexts: Sequence[Segment], seeds: Sequence[Sequence[int]], sampling: Sampling, *, keep: bool = False,
        after: Sequence[Completion | None] | None = None,
    ) -> list[list[Completion]]:  # fmt: skip
        turn = len(self.contexts)
        self.contexts.append(list(contexts))
        speakers = iter([line for line in self.lines if len(line) > turn])
        return [[self._say(next(speakers)[turn]) for _ in own] for own in seeds]

    def _say(self, text: str) -> Completion:
        ids = tuple(self.vlm.renderer.encode(text)) + ((self.vlm.renderer.stop_ids[0],) if self.ends else ())
        return Completion(ids, (-0.5,) * len(ids), StopReason.ANSWERED if self.ends else StopReason.TURN_TOKENS)


def play(
    lines: Sequence[Sequence[str]], limits: Limits | None = None, toolbox: Toolbox | None = None, n: int = 1
) -> tuple[list[Rollout], Script]:
    engine = Script(tiny(), lines)
    rules = Rules(toolbox or zoom_toolbox(), limits or Limits())
    groups = rollout([pair()], engine, tiny().renderer, n=n, sampling=SAMPLING, seed=0, rules=rules)
    return list(groups[0].rollouts), engine


def test_a_tool_call_is_run_and_the_model_reads_its_reply() -> None:
    (one,), engine = play([[call(0, 0, 500, 500), call(500, 500, 1000, 1000), "<answer>K</answer>"]])
    assert [turn.stop for turn in one.turns] == [StopReason.TOOL_CALL, StopReason.TOOL_CALL, StopReason.ANSWERED]
    assert one.stop is StopReason.ANSWERED
    assert one.text == "<answer>K</answer>"
    first, second = (turn.observation for turn in one.turns[:2])
    assert first is not None
    assert second is not None
    full = np.asarray(picture().rgb())
    assert np.array_equal(np.asarray(first.pictures[0].rgb()), full[:42, :56])
    assert np.array_equal(np.asarray(second.pictures[0].rgb()), full[42:, 56:])
    for turn, contexts in enumerate(engine.contexts):
        whole = tiny().renderer.render(one.view, one.turns[:turn]).whole
        assert np.array_equal(contexts[0].ids_T, whole.ids_T)
        assert np.array_equal(contexts[0].positions_3T, whole.positions_3T)
        assert contexts[0].visuals == whole.visuals
        assert len(contexts[0].visuals) == turn + 1


def test_rollouts_of_a_sample_share_the_first_reading_only() -> None:
    lines = [[call(0, 0, 500, 500), "yes"], ["no"], [call(1, 1, 900, 900), call(0, 0, 500, 500), "perhaps"]]
    played, engine = play(lines, n=3)
    assert [len(contexts) for contexts in engine.contexts] == [1, 2, 1]
    assert [one.text for one in played] == ["yes", "no", "perhaps"]
    assert [len(one.turns) for one in played] == [2, 1, 3]
    assert [one.index for one in played] == [0, 1, 2]
    assert len({one.seed for one in played}) == 3


def test_without_tools_a_call_is_just_text() -> None:
    engine = Script(tiny(), [[call(0, 0, 500, 500)]])
    (group,) = rollout([pair()], engine, tiny().renderer, n=1, sampling=SAMPLING, seed=0)
    assert group.rollouts[0].stop is StopReason.ANSWERED
    assert group.rollouts[0].turns[0].observation is None


CALLS = [[call(0, 0, 500, 500)] * 6]


@pytest.mark.parametrize(
    ("limits", "stop", "turns"),
    [
        (Limits(turns=2), StopReason.TURNS, 2),
        (Limits(pictures=2), StopReason.IMAGES, 3),
        (Limits(pixels=2 * 56 * 56), StopReason.PIXELS, 3),
        (Limits(repeats=0), StopReason.REPEATED_CALL, 2),
        (Limits(repeats=2), StopReason.REPEATED_CALL, 4),
        (Limits(seconds=0.0), StopReason.SECONDS, 1),
        (Limits(total_tokens=5), StopReason.TOTAL_TOKENS, 1),
        (Limits(total_tokens=60), StopReason.TOTAL_TOKENS, 1),
    ],
)
def test_every_limit_ends_a_rollout_by_its_name(limits: Limits, stop: StopReason, turns: int) -> None:
    (one,), _ = play(CALLS, limits)
    assert one.stop is stop
    assert len(one.turns) == turns
    if stop is not StopReason.SECONDS:
        assert one.turns[-1].observation is None
    if limits.total_tokens == 5:
        assert len(one.turns[0].action_ids_K) == 5
        assert one.turns[0].stop is StopReason.TOTAL_TOKENS


def test_an_action_cut_at_its_limit_calls_no_tool() -> None:
    engine = Script(tiny(), CALLS, ends=False)
    (group,) = rollout([pair()], engine, tiny().renderer, n=1, sampling=SAMPLING, seed=0, rules=Rules(zoom_toolbox()))
    assert group.rollouts[0].stop is StopReason.TURN_TOKENS
    assert group.rollouts[0].turns[0].stop is StopReason.TURN_TOKENS


@pytest.mark.parametrize("fault", [ZeroDivisionError, KeyError, OSError, TypeError, RuntimeError, AttributeError])
def test_a_tool_that_raises_is_reported_to_the_model(fault: type[Exception]) -> None:
    class Broken:
        def act(self, text: str, shown: Shown) -> Reply | None:
            if "again" in text:
                return None
            raise fault("by zero")

    (one,), engine = play([["try", "again"]], toolbox=Broken())
    assert one.stop is StopReason.ANSWERED
    assert one.turns[0].observation is not None
    assert f"{fault.__name__}: " in one.turns[0].observation.text
    assert fault.__name__ in tiny().tokenizer.decode(engine.contexts[1][0].ids_T.tolist())


def test_a_wrong_call_is_answered_and_the_model_may_try_again() -> None:
    (one,), _ = play([[call(5, 5, 1, 1), call(0, 0, 500, 500), "K"]])
    assert one.turns[0].observation is not None
    assert "Error: " in one.turns[0].observation.text
    assert one.turns[0].calls[0].error is not None
    assert one.turns[1].calls[0].error is None
    assert one.turns[1].observation is not None
    assert len(one.turns[1].observation.pictures) == 1


def test_too_many_wrong_calls_end_a_rollout() -> None:
    (one,), _ = play([[call(5, 5, 1, 1)] * 5], Limits(errors=1))
    assert one.stop is StopReason.ERRORS
    assert len(one.turns) == 2


def test_what_a_call_did_is_kept_with_its_turn() -> None:
    (one,), _ = play([[call(0, 0, 500, 500), "K"]])
    (done,) = one.turns[0].calls
    assert (done.name, done.coords, done.image, done.error) == ("zoom", "norm1000", 0, None)
    assert done.box_px_xyxy == (0, 0, 56, 42)  # half of 112 x 84
    assert one.calls == (done,)


def test_a_result_that_cannot_be_shown_is_an_error_to_the_model() -> None:
    class Line:
        def act(self, text: str, shown: Shown) -> Reply | None:
            sliver = Picture.of(np.zeros((2, 900, 3), np.uint8))
            return None if shown.turn else Reply(Message.user(sliver), (ToolCall(name="line"),))

    (one,), _ = play([["try", "again"]], toolbox=Line())
    assert one.turns[0].observation is not None
    assert "cannot be shown" in one.turns[0].observation.text
    assert one.turns[0].calls[0].error is not None


def test_tools_of_different_rollouts_run_side_by_side_and_a_slow_one_is_given_up() -> None:
    inside, most = threading.Semaphore(0), threading.Barrier(3, timeout=20)

    class Meets:
        """Returns only when three calls are inside at once; hangs on "slow" until the test is over."""

        def act(self, text: str, shown: Shown) -> Reply | None:
            if shown.turn:
                return None
            if text == "slow":
                inside.acquire(timeout=20)
            else:
                most.wait()
            return Reply(Message.user(text), (ToolCall(name="meet"),))

    played, _ = play([["a", "x"], ["b", "x"], ["c", "x"]], toolbox=Meets(), n=3)
    assert [one.turns[0].observation for one in played] == [Message.user(text) for text in "abc"]
    (late,), _ = play([["slow", "x"]], Limits(tool_seconds=0.2), Meets())
    inside.release()
    assert late.turns[0].observation is not None
    assert "took longer than 0.2 s" in late.turns[0].observation.text
    assert late.turns[0].calls[0].error is not None
    assert late.stop is StopReason.ANSWERED


def test_rules_are_chosen_by_sample() -> None:
    pairs = [pair("plain", 0), pair("tools", 1)]
    engine = Script(tiny(), [[call(0, 0, 500, 500)], [call(0, 0, 500, 500), "K"]])
    groups = rollout(
        pairs, engine, tiny().renderer, n=1, sampling=SAMPLING, seed=0,
        rules=lambda sample: Rules(zoom_toolbox() if sample.id == "tools" else None),
    )  # fmt: skip
    plain, tools = (group.rollouts[0] for group in groups)
    assert (len(plain.turns), plain.stop) == (1, StopReason.ANSWERED)
    assert (len(tools.turns), tools.text) == (2, "K")


def played_by_model(pairs: Sequence[tuple[Sample, View]], n: int, seed: int = 5) -> list[Group]:
    return rollout(
        pairs, HFEngine(tiny()), tiny().renderer, n=n, sampling=Sampling(max_new_tokens=12), seed=seed, policy_version=3
    )


def test_a_rollout_is_the_same_in_any_company() -> None:
    together = played_by_model([pair("a", 0), pair("b", 1), pair("a", 0)], n=3)
    alone = played_by_model([pair("b", 1)], n=2)
    ids_together, ids_alone = ([one.turns[0].action_ids_K for one in group.rollouts[:2]] for group in (together[1], alone[0]))
    assert ids_together == ids_alone
    assert [one.seed for one in together[1].rollouts[:2]] == [one.seed for one in alone[0].rollouts]
    ids = [one.turns[0].action_ids_K for group in together for one in group.rollouts]
    assert len(set(ids)) == 9  # a sample drawn twice is played twice
    assert len({group.rollouts[0].group_id for group in together}) == 3
    assert all(one.turns[0].policy_version == 3 for one in together[0].rollouts)
    assert played_by_model([pair("b", 1)], n=2, seed=6)[0].rollouts[0].turns[0].action_ids_K != ids_alone[0]


def test_seeds_differ_with_every_part() -> None:
    assert derive_seed(1, "a", 2) == derive_seed(1, "a", 2)
    assert (
        len(
            {derive_seed(1, "a", 2), derive_seed(1, "a2"), derive_seed(2, "a", 2), derive_seed(1, "a", 3), derive_seed(1, "b", 2)}
        )
        == 5
    )
    assert 0 <= derive_seed("x") < 2**63
