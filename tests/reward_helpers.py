"""Samples and rollouts as tests of rewards need them: texts, calls and endings, no tokens."""

from __future__ import annotations

from typing import Any

from helpers import picture

from foveate.rewards.base import Case
from foveate.rewards.combine import RewardSpec
from foveate.vlm.messages import Message
from foveate.vlm.records import Privileged, Rollout, Sample, StopReason, ToolCall, Turn, View

OPTIONS = ("red", "blue", "green", "grey")
DONE = StopReason.ANSWERED


def sample(answer: str | None = None, question: str = "q", options: tuple[str, ...] = (), **more: Any) -> Sample:
    return Sample(id="s", question=question, answer=answer, options=options, **more)


NO_VIEW = View("student", ())


def rollout(*turns: str | Turn, sample_id: str = "s", stop: StopReason = DONE, index: int = 0, view: View = NO_VIEW) -> Rollout:
    made = tuple(one if isinstance(one, Turn) else Turn((1,), (0.0,), one, DONE) for one in turns)
    return Rollout(sample_id, "g", index, view, made, stop)


def acted(text: str, *calls: ToolCall, observation: Message | None = None) -> Turn:
    return Turn((1, 2), (0.0, 0.0), text, StopReason.TOOL_CALL, observation, calls=calls)


def case(text: str, one: Sample | None = None) -> Case:
    return Case(one or sample(), rollout(text))


def spec(value: Any) -> RewardSpec:
    return RewardSpec.model_validate(value)


def boxed_sample(*boxes_px: tuple[float, float, float, float], answer: str | None = None) -> Sample:
    return sample(answer, images=(picture(1, 200, 100),), privileged=Privileged(boxes_px_xyxy=boxes_px))


CHOICE = sample("B", "Which?\nA. red\nB. blue\nC. green", ("red", "blue", "green"))
VIEW = View("student", (Message.user("Which?\nA. red\nB. blue\nC. green"),))
