"""Hindsight: is what a trajectory looked at enough to answer from? (Video-Thinker, 2510.23473: a model that is given the times
and captions of a trace alone has to answer right, else the trace is written anew, up to three times.)

Here the traces are written beforehand, several to a sample (``foveate sample`` with ``rollouts`` above 1): they are tried in the
order of the file, and the first that holds is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from ...vlm.images import Picture
from ...vlm.records import Privileged, Sample
from ..trajectories import Trajectory

What = Literal["pictures", "captions", "both"]
HINDSIGHT_SYSTEM = "Answer the question from what you are given. End with the final answer in <answer> and </answer>, once."
_NOTES = re.compile(r"<(time|caption)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)


def evidence(trajectory: Trajectory, what: What = "both") -> Sample | None:
    """The trajectory's question over nothing but its evidence, or None when it has none.

    pictures: what the tools have shown (crops, frames), in order. captions: what the model has written between ``<time>`` and
    ``<caption>`` tags. The sample's own picture or video is left out, and so is everything else that the model said.
    """
    sample = trajectory.sample
    pictures: list[Picture] = []
    notes: list[str] = []
    if what != "captions":
        pictures = [one for said in trajectory.observations if said is not None for one in said.pictures]
    if what != "pictures":
        notes = [f"{name.lower()}: {text.strip()}" for action in trajectory.actions for name, text in _NOTES.findall(action)]
    if not pictures and not any(note.startswith("caption") for note in notes):
        return None
    question = sample.question.replace("<image>", "").strip()
    told = "\n".join([*notes, question])
    return replace(sample, question=told, images=tuple(pictures), video=None, system=None, privileged=Privileged())


def candidates(sample_ids: Iterable[str], tries: int) -> list[list[int]]:
    """The places of each sample's trajectories, at most ``tries`` of them. ``sample_ids`` are those of all, in order."""
    own: dict[str, list[int]] = {}
    for place, name in enumerate(sample_ids):
        own.setdefault(name, []).append(place)
    return [places[:tries] for places in own.values()]


def reason(outcome: str) -> str | None:
    """Why a trajectory is dropped after a judge's answer, or None. An answer that was cut off is one that cannot be read."""
    reasons: Mapping[str, str] = {"truncated": "unparsed"}
    return None if outcome == "right" else reasons.get(outcome, outcome)
