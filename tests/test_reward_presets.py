"""The published rewards, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import picture

from foveate.rewards.combine import RewardSpec, score
from foveate.rewards.presets import PRESETS
from foveate.vlm.messages import Message
from foveate.vlm.records import Privileged, Reward, Rollout, Sample, StopReason, ToolCall, Turn, View

DONE = StopReason.ANSWERED
THINK = "<think>t</think>"
SEEN = Message.user("here:", picture(1))


def play(preset: str, sample: Sample, *turns: str | Turn, stop: StopReason = DONE) -> Reward:
    made = tuple(one if isinstance(one, Turn) else Turn((1,), (0.0,), one, DONE) for one in turns)
    one = Rollout(sample.id, "g", 0, View("student", ()), made, stop)
    return score(sample, one, RewardSpec.model_validate({"preset": preset}))


def total(preset: str, sample: Sample, *turns: str | Turn, stop: StopReason = DONE) -> float:
    return play(preset, sample, *turns, stop=stop).total


def asked(answer: str = "K", question: str = "q", **more: Any) -> Sample:
    return Sample(id="s", question=question, answer=answer, **more)


def call(text: str, *, shown: bool = True, error: str | None = None, arguments: str = "{}") -> Turn:
    record = ToolCall(name="zoom", arguments=arguments, image=0, error=error)
    return Turn((1,), (0.0,), text, StopReason.TOOL_CALL, SEEN if shown else Message.user("Error."), calls=(record,))


ZOOM = THINK + "<tool_call>{}</tool_call>"


def test_every_preset_is_read_back() -> None:
    for name in PRESETS:
        spec = RewardSpec.model_validate({"preset": name})
        assert RewardSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_vlm_capcurriculum() -> None:
    sample = asked("1/2")
    assert total("vlm_capcurriculum", sample, THINK + r"\boxed{0.5}") == pytest.approx(1.0)
    assert total("vlm_capcurriculum", sample, r"\boxed{0.5}") == pytest.approx(0.9)
    assert total("vlm_capcurriculum", sample, THINK + r"\boxed{2}") == pytest.approx(0.1)
    assert total("vlm_capcurriculum", sample, "I do not see it.") == 0.0


def test_dyme() -> None:
    assert total("dyme", asked(), "The sign shows K.\nAnswer: K") == pytest.approx(2.0)
    assert total("dyme", asked(), "The sign shows K.\nAnswer: P") == pytest.approx(1.0)
    assert total("dyme", asked(), "K") == 0.0, "right, and without its form it counts for nothing"
    assert play("dyme", asked(), "K").outcome == "right"


def test_deepeyes() -> None:
    right, wrong = THINK + "<answer>K</answer>", THINK + "<answer>P</answer>"
    assert total("deepeyes", asked(), right) == pytest.approx(0.8)
    assert total("deepeyes", asked(), call(ZOOM), right) == pytest.approx(2.0)
    assert total("deepeyes", asked(), wrong) == 0.0
    assert total("deepeyes", asked(), call(ZOOM), wrong) == 0.0
    assert total("deepeyes", asked(), "<think>t<answer>K</answer>") == pytest.approx(-0.2)  # hidden in a thought that never ends
    assert total("deepeyes", asked(), "<think>t</think><think><answer>P</answer>") == pytest.approx(-0.2)
    long = "K" * 1000
    assert total("deepeyes", asked(long), f"{THINK}<answer>{long}</answer>") == pytest.approx(-0.2)


def test_the_tool_reward_is_conditional() -> None:
    right, wrong = THINK + "<answer>K</answer>", THINK + "<answer>P</answer>"
    assert total("deepeyes", asked(), call(ZOOM), wrong) == total("deepeyes", asked(), wrong)
    assert total("deepeyes", asked(), call(ZOOM), right) > total("deepeyes", asked(), right)
    # a call that brought no picture is no use of the tool
    assert total("deepeyes", asked(), call(ZOOM, shown=False, error="empty box"), right) == total("deepeyes", asked(), right)
    assert total("deepeyes", asked(), call(ZOOM, error="empty box"), right) == total("deepeyes", asked(), right)


def test_deepeyes_maths_has_no_tool_term() -> None:
    right = THINK + "<answer>0.5</answer>"
    assert total("deepeyes_maths", asked("1/2"), right) == pytest.approx(1.2)
    assert total("deepeyes_maths", asked("1/2"), call(ZOOM), right) == pytest.approx(1.2)
    assert total("deepeyes_maths", asked("1/2"), "<think><think>t</think><answer>0.5</answer>") == pytest.approx(0.8)


def test_openthinkimg_is_the_answer_alone() -> None:
    turn, end = (
        '{"thought": "t", "actions": []}',
        '{"thought": "t", "actions": [{"name": "Terminate", "arguments": {"ans": "0.5"}}]}',
    )
    reward = play("openthinkimg", asked("1/2"), "no JSON", end)
    assert (reward.total, reward.terms["format"]) == (1.0, 0.5)
    assert total("openthinkimg", asked("a red car"), turn, end.replace("0.5", "The red car.")) == 1.0
    assert total("openthinkimg", asked("2"), turn, end) == 0.0
    assert play("openthinkimg", asked("2"), turn).outcome == "unparsed"


GRIT = "<think>at [1, 2, 3, 4] is it</think><rethink>yes</rethink><answer>red car</answer>"


def test_grit() -> None:
    sample = asked("red car")
    # acc 1, bleu 1, answer format 1, no repetition, all tags, a box
    assert total("grit", sample, GRIT) == pytest.approx(1 + 0.1 + 0.5 + 0.5 + 0.5 + 0.5)
    # acc 0, bleu 1/2: "red bus" shares one of two words
    assert total("grit", sample, GRIT.replace("red car", "red bus")) == pytest.approx(0.05 + 2.0)
    # without a box
    assert total("grit", sample, GRIT.replace("[1, 2, 3, 4]", "there")) == pytest.approx(2.6)
    # bare: no answer format, no tags (0 of 5), no repetition
    assert total("grit", sample, "red car") == pytest.approx(1.1 + 0.5)


def test_grit_counts_on_tallyqa_alone() -> None:
    text = "<think>[1, 2, 3, 4] [5, 6, 7, 8]</think><rethink>two</rethink><answer>2</answer>"
    counted = total("grit", asked("2", source="tallyqa"), text)
    assert counted == pytest.approx(total("grit", asked("2", source="vsr"), text) + 1)
    one_box = text.replace("[5, 6, 7, 8]", "")
    assert total("grit", asked("2", source="tallyqa"), one_box) == pytest.approx(total("grit", asked("2"), one_box))


VILASR = THINK + " Action: Answer\n<answer>{}</answer>"


def test_vilasr() -> None:
    assert total("vilasr", asked("10"), VILASR.format(10)) == pytest.approx(2.0)
    assert total("vilasr", asked("10"), VILASR.format(8)) == pytest.approx(0.6 + 1)
    assert total("vilasr", asked("10"), VILASR.format(30)) == 0.0  # the form alone earns nothing
    assert total("vilasr", asked("10"), "<answer>8</answer>") == pytest.approx(0.6)
    choice = asked("B", options=("left", "right"))
    assert total("vilasr", choice, VILASR.format("B")) == pytest.approx(2.0)
    assert total("vilasr", choice, VILASR.format("A")) == 0.0
    assert total("vilasr_repo", asked("10"), VILASR.format(8)) == pytest.approx(0.3 + 0.5)
    assert total("vilasr_repo", asked("10"), VILASR.format(30)) == 0.0


def choose(start: int, end: int) -> Turn:
    text = f"<think>{start} to {end}</think><action>choose frames between {start} and {end}</action>"
    return Turn((1,), (0.0,), text, StopReason.TOOL_CALL, SEEN)


def clock(time: str, frame: int) -> Turn:
    text = f"<think>t</think><action>get frame number at time {time}</action>"
    return Turn((1,), (0.0,), text, StopReason.TOOL_CALL, Message.user(f"The frame number at time {time} is: {frame}"))


FINAL = "<think>t</think><action>output answer: B</action>"


def film(answer: str = "B", question: str = "What happens at 01:00?") -> Sample:
    return Sample(id="s", question=question, answer=answer, options=("left", "right"), tags={"num_frames": "300"})


def test_frame_thinker() -> None:
    assert total("frame_thinker", film(), FINAL) == 1.0
    assert total("frame_thinker", film(), choose(10, 90), FINAL) == pytest.approx(1.02)
    assert total("frame_thinker", film(), clock("01:00", 60), choose(10, 90), FINAL) == pytest.approx(1.52)
    assert total("frame_thinker", film(question="What happens?"), clock("01:00", 60), choose(10, 90), FINAL) == pytest.approx(
        1.02
    )
    assert total("frame_thinker", film("A"), clock("01:00", 60), choose(10, 90), FINAL) == 0.0


@pytest.mark.parametrize(
    "turns",
    [
        [choose(10, 90), choose(10, 90), FINAL],
        [choose(10, 90), choose(11, 90), FINAL],
        [choose(0, 299), FINAL],
        [choose(10, 18), FINAL],
        [Turn((1,), (0.0,), "<think>10 to 80</think><action>choose frames between 10 and 90</action>", DONE, SEEN), FINAL],
        [Turn((1,), (0.0,), "<think>t</think><action>look closer</action>", DONE, SEEN), FINAL],
        [clock("01:00", 60), choose(100, 190), FINAL],
        [clock("01:00", 60), FINAL],
        [clock("01:00", 60), choose(10, 90), clock("01:00", 60), choose(20, 80), FINAL],
        ["<think>a</think><think>b</think><action>output answer: B</action>"],
    ],
)
def test_each_violation_alone_makes_frame_thinkers_reward_nothing(turns: list[str | Turn]) -> None:
    assert total("frame_thinker", film(), *turns) == 0.0


def test_a_rollout_that_does_not_answer_earns_nothing_from_frame_thinker() -> None:
    assert total("frame_thinker", film(), choose(10, 90)) == 0.0


def test_deepsport() -> None:
    right, wrong = THINK + "<answer>K</answer>", THINK + "<answer>P</answer>"
    assert total("deepsport", asked(), right) == 1.0
    assert total("deepsport", asked(), call(ZOOM), right) == pytest.approx(1.5)
    assert total("deepsport", asked(), call(ZOOM), wrong) == pytest.approx(0.03)
    assert total("deepsport", asked(), wrong) == 0.0
    assert total("deepsport", asked(), "<answer>K</answer>") == pytest.approx(-0.05)
    twice = [call(ZOOM, arguments='{"start_s": 1}'), call(ZOOM, arguments='{"start_s": 1}')]
    assert total("deepsport", asked(), *twice, right) == pytest.approx(-0.05)
    apart = [call(ZOOM, arguments='{"start_s": 1}'), call(ZOOM, arguments='{"start_s": 2}')]
    assert total("deepsport", asked(), *apart, right) == pytest.approx(1.5)


def test_gui_g1() -> None:
    sample = asked(images=(picture(1, 200, 100),), privileged=Privileged(boxes_px_xyxy=((20.0, 10.0, 60.0, 50.0),)))
    assert total("gui_g1", sample, '[{"bbox_2d": [100, 100, 300, 500]}]') == pytest.approx(1.375)
    # 40 px right: x edges off by .2 of the width. No overlap; the centre (80, 30) is outside; 4 / (1/.8 + 1 + 1/.8 + 1) = 8/9
    assert total("gui_g1", sample, "[300, 100, 500, 500]") == pytest.approx(0.125 * 8 / 9)
    # twice as wide: the centre (60, 30) is on the edge; IoU 1/2; x2 is off by .2
    assert total("gui_g1", sample, "[100, 100, 500, 500]") == pytest.approx(1 + 0.125 + 0.125 * 4 / 4.25)
    assert total("gui_g1", sample, "nothing") == 0.0


RLCR = "<think>t</think><answer>{}</answer><analysis>a</analysis><confidence>{}</confidence>"


def test_rlcr() -> None:
    assert total("rlcr", asked("7"), RLCR.format(7, 0.8)) == pytest.approx(1 - 0.04)
    assert total("rlcr", asked("7"), RLCR.format(8, 0.8)) == pytest.approx(-0.64)
    assert total("rlcr", asked("7"), "<answer>7</answer>") == pytest.approx(0.0)  # as if sure of the contrary
    assert total("rlcr_repo", asked("7"), RLCR.format(7, 0.8)) == pytest.approx(0.5 + 0.5 + 0.48)
    assert total("rlcr_repo", asked("7"), RLCR.format(8, 0.8)) == pytest.approx(0.5 + 0.18)
    assert total("rlcr_repo", asked("7"), "<answer>7</answer><confidence>0.8</confidence>") == pytest.approx(0.5)


@pytest.mark.parametrize("preset", ["rlcr", "rlcr_repo"])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_honest_confidence_is_the_best_under_rlcr(preset: str, p: float) -> None:
    def reward(answer: int, q: float) -> float:
        return total(preset, asked("7"), RLCR.format(answer, f"{q:.2f}"))

    stated = np.linspace(0, 1, 21)
    expected = [p * reward(7, q) + (1 - p) * reward(8, q) for q in stated]
    assert stated[int(np.argmax(expected))] == pytest.approx(p)


def test_tt_opd() -> None:
    def reward(text: str, tokens: int, stop: StopReason = DONE) -> float:
        turn = Turn((1,) * tokens, (0.0,) * tokens, text, DONE)
        one = Rollout("s", "g", 0, View("student", ()), (turn,), stop)
        return score(asked(), one, RewardSpec.model_validate({"preset": "tt_opd"})).total

    assert reward("<answer>K</answer>", 6144) == pytest.approx(0.9)  # half way
    assert reward("<answer>K</answer>", 12288) == pytest.approx(0.7)
    assert reward("<answer>K</answer>", 1) == pytest.approx(1.1, abs=1e-6)
    assert reward("<answer>P</answer>", 6144) == pytest.approx(-0.15)
    assert reward("<answer>P</answer>", 12288) == pytest.approx(-0.3)
    assert reward("<answer>K</answer>", 12288, StopReason.TURN_TOKENS) == -0.5


def test_vl_rethinker() -> None:
    def reward(text: str) -> float:
        return total("vl_rethinker", asked("7"), text)

    assert reward(r"\boxed{7}") == 1.0
    assert [reward("wait " * count + r"\boxed{7}") for count in (1, 2, 3, 4)] == pytest.approx([1.1, 1.1, 0.9, 0.7])
    assert reward(r"wait \boxed{8}") == 0.0
    assert reward("I really do not know this") == pytest.approx(-0.1)


def test_ton() -> None:
    assert total("ton", asked("7"), "<think>\n\n</think><answer>7</answer>") == 2.0
    assert total("ton", asked("7"), "<think>\n\n</think><answer>8</answer>") == 1.0
    assert total("ton", asked("7"), "<answer>7</answer>") == 1.0
