"""FrameThinker's check of cognitive consistency (CCV, 2509.24304): does the model do what it thinks, and nothing twice?"""

from __future__ import annotations

import math
import re
from typing import Literal

import pydantic

from ...vlm.records import Sample
from ..base import Case, Term
from .format import frame_thinker as well_formed

_ACTION = re.compile(r"<action>([^<]{0,4000})</action>")
_CHOOSE = re.compile(r"choose frames between\s+(\d{1,9})\s+and\s+(\d{1,9})\.?")
_TIME = re.compile(r"get frame number at time\s+((?:\d{1,3}:)?\d{1,3}:\d{2})\.?")
_NUMBER = re.compile(r"(?<![\d:])\b\d{1,9}\b(?!:)")
_RETURNED = re.compile(r"\bis:?\s+(?:frame\s+)?(\d{1,9})\b")
_CLOCK = re.compile(r"\d{1,3}:\d{2}")

Interval = tuple[int, int]


class FrameThinkerTerm(Term):
    """What the actions of a FrameThinker rollout show.

    valid: 1, or 0 for any violation: a turn that is not one thought and one action; a last action that is no answer; an unknown
    action; an interval asked for again, or the same but for one frame at each end, or the whole video; an interval of ``count``
    frames or fewer; one that is not the last two numbers of its thought; a time asked for twice, or without a reply; a frame
    number that was asked for and does not lie in the next interval, or is never used. timed: 1 when the rollout is valid, a
    frame was asked for by its time and the question names a time. chose: valid, and frames were chosen.
    """

    term: Literal["frame_thinker"] = "frame_thinker"
    part: Literal["valid", "timed", "chose"] = "valid"
    count: int = pydantic.Field(default=8, ge=1)
    """Frames that one choice shows."""
    frame_rate_fps: float | None = pydantic.Field(default=None, gt=0)
    """The rate at which frames are numbered, to know the interval of the whole video where the sample has no tag
    ``num_frames``. With neither, asking for the whole video is no violation."""

    def value(self, case: Case) -> float:
        done = self.check(case)
        if done is None:
            return 0.0
        intervals, times = done
        if self.part == "timed":
            return float(bool(times) and _CLOCK.search(case.sample.question) is not None)
        return float(bool(intervals)) if self.part == "chose" else 1.0

    def check(self, case: Case) -> tuple[list[Interval], list[str]] | None:
        """The intervals and times that were asked for, or None for a rollout with any violation."""
        texts = case.texts
        if not texts or well_formed(texts) == 0:
            return None
        intervals: list[Interval] = []
        times: list[str] = []
        pending: int | None = None
        num_frames = _num_frames(case.sample, self.frame_rate_fps)
        for turn in case.rollout.turns[:-1]:
            found = _ACTION.search(turn.text)
            action = found.group(1).strip() if found else ""
            if chosen := _CHOOSE.fullmatch(action):
                interval = int(chosen[1]), int(chosen[2])
                if not self._sensible(interval, intervals, num_frames, turn.text):
                    return None
                if pending is not None and not interval[0] <= pending <= interval[1]:
                    return None
                pending = None
                intervals.append(interval)
            elif asked := _TIME.fullmatch(action):
                reply = _RETURNED.search(turn.observation.text) if turn.observation is not None else None
                if asked[1] in times or reply is None:
                    return None
                times.append(asked[1])
                pending = int(reply[1])
            else:
                return None
        return None if pending is not None else (intervals, times)

    def _sensible(self, interval: Interval, before: list[Interval], num_frames: int | None, text: str) -> bool:
        start, end = interval
        known = before if num_frames is None else [(0, num_frames - 1), *before]
        if start >= end - self.count or any(_again(interval, other) for other in known):
            return False
        thought = text.partition("<think>")[2].partition("</think>")[0]
        return [int(number) for number in _NUMBER.findall(thought)[-2:]] == [start, end]


def _again(one: Interval, other: Interval) -> bool:
    return abs(one[0] - other[0]) <= 1 and abs(one[1] - other[1]) <= 1


def _num_frames(sample: Sample, rate_fps: float | None) -> int | None:
    if "num_frames" in sample.tags:
        return int(sample.tags["num_frames"])
    if rate_fps is None or sample.video is None:
        return None
    last_s = sample.video.source.duration_s if sample.video.source is not None else sample.video.times_s[-1]
    return math.floor(last_s * rate_fps) + 1
