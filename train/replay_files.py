"""Signals as JSON, exactly: a rollout with its view, turns, ids and log-probs, what it teaches, and its pictures by name.

Numbers come back bit for bit (JSON holds the shortest text that reads as the same float). A picture that was opened from a file
is named by it, and must have the same pixels when it is opened again; any other (drawn, or from a tool) is written as a PNG once.
A clip comes back without the source for further frames, which only tools need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..vlm.images import Picture, PictureError
from ..vlm.messages import from_json, to_json
from ..vlm.records import Reward, Rollout, Signal, StopReason, ToolCall, Turn, View

_WEIGHTS = ("advantages_NK", "ce_weights_NK", "kd_weights_NK", "teacher_logprobs_NK")


class Pictures:
    """The pictures of a folder and their names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Picture] = {}

    def store(self, picture: Picture) -> str:
        """The name of a picture, which is written unless it has a file of its own."""
        if picture.path is not None:
            return f"{picture.key}:{picture.path}"
        return f"{picture.key}:" if picture.key in self._known else self._written(picture)

    def opened(self, name: str) -> Picture:
        """The picture of a name, in memory unless it has a file of its own. Raises `PictureError`."""
        if name not in self._known:
            key, _, path = name.partition(":")
            if path:
                picture = Picture.open(path)
            else:
                file = self._folder / f"{key[:24]}.png"
                try:
                    picture = Picture.from_bytes(file.read_bytes(), str(file))
                except OSError as error:
                    raise PictureError(f"{file}: cannot be read ({error.strerror}), and a replayed rollout shows it") from error
            if picture.key != key:
                raise PictureError(
                    f"{picture.path or name}: a replayed rollout was played with other pixels; bring back the file as it was"
                )
            self._known[name] = picture
        return self._known[name]

    def _written(self, picture: Picture) -> str:
        self._known[picture.key] = picture
        picture.save_png(self._folder)
        return f"{picture.key}:"


def signal_to_json(signal: Signal, store: Callable[[Picture], str]) -> dict[str, Any]:
    """A signal as JSON; ``store`` names its pictures."""
    weights = {name: signal.__dict__[name] for name in _WEIGHTS}
    teacher = None if signal.teacher_view is None else _view_json(signal.teacher_view, store)
    return {"rollout": _rollout_json(signal.rollout, store), **weights, "teacher_view": teacher, "stream": signal.stream}


def signal_from_json(written: Mapping[str, Any], opened: Callable[[str], Picture]) -> Signal:
    """What `signal_to_json` wrote; ``opened`` gives the picture of a name."""
    weights = {name: None if written[name] is None else tuple(map(tuple, written[name])) for name in _WEIGHTS}
    teacher = None if written["teacher_view"] is None else _view(written["teacher_view"], opened)
    return Signal(_rollout(written["rollout"], opened), **weights, teacher_view=teacher, stream=written["stream"])


def _rollout_json(rollout: Rollout, store: Callable[[Picture], str]) -> dict[str, Any]:
    return {
        **{name: rollout.__dict__[name] for name in ("sample_id", "group_id", "index", "seed", "origin")},
        "view": _view_json(rollout.view, store),
        "turns": [_turn_json(turn, store) for turn in rollout.turns],
        "stop": rollout.stop.value,
        "reward": None if rollout.reward is None else {**rollout.reward.__dict__, "terms": dict(rollout.reward.terms)},
    }


def _rollout(written: Mapping[str, Any], opened: Callable[[str], Picture]) -> Rollout:
    return Rollout(
        **{name: written[name] for name in ("sample_id", "group_id", "index", "seed", "origin")},
        view=_view(written["view"], opened),
        turns=tuple(_turn(turn, opened) for turn in written["turns"]),
        stop=StopReason(written["stop"]),
        reward=None if written["reward"] is None else Reward(**written["reward"]),
    )


def _turn_json(turn: Turn, store: Callable[[Picture], str]) -> dict[str, Any]:
    return {
        **{name: turn.__dict__[name] for name in ("action_ids_K", "action_logprobs_K", "text", "policy_version")},
        "stop": turn.stop.value,
        "observation": None if turn.observation is None else to_json((turn.observation,), store),
        "calls": [dataclasses.asdict(call) for call in turn.calls],
    }


def _turn(written: Mapping[str, Any], opened: Callable[[str], Picture]) -> Turn:
    return Turn(
        tuple(written["action_ids_K"]),
        tuple(written["action_logprobs_K"]),
        written["text"],
        StopReason(written["stop"]),
        None if written["observation"] is None else from_json(written["observation"], opened)[0],
        written["policy_version"],
        tuple(ToolCall(**_tuples(call)) for call in written["calls"]),
    )


def _view_json(view: View, store: Callable[[Picture], str]) -> dict[str, Any]:
    return {"role": view.role, "name": view.name, "messages": to_json(view.messages, store)}


def _view(written: Mapping[str, Any], opened: Callable[[str], Picture]) -> View:
    return View(written["role"], from_json(written["messages"], opened), written["name"])


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in values.items()
    }
