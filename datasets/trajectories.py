"""Tool trajectories as data: what a model says turn by turn, and what the world answers.

Scripted experts write them (`experts`), rejection sampling keeps them, and files hold them, in one of two formats:

| format | columns | actions |
|---|---|---|
| trajectories | those of the plain format, and ``actions: [{"text", "observation"?, "calls"?}]`` | as listed (our files) |
| messages | ``messages`` or ``conversations``, ``images`` | the assistant's messages; the world says what is between two |

In a chat the pictures of ``images`` belong to the ``<image>`` placeholders in order, over all messages; when the question has no
placeholder, the pictures that are left over are its own. An observation that a tool can make again need not be stored.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from ..vlm.images import Picture
from ..vlm.messages import Clip, Message, to_json
from ..vlm.records import Rollout, Sample, ToolCall
from ..vlm.video import VideoFile, open_video
from .crop_files import _file, _row
from .pictures import header_size, open_picture
from .raw_rows import RowError
from .read import _FAULTS, LazySamples, Problem, ReadError, _import, _problem, _renamed, _verify
from .rows import Rows, open_rows
from .spec import DataSpec
from .trajectory_rows import FORMATS, Said, Script, Unopened

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
NO_THOUGHT = "\n\n"
"""What stands in place of a thought that is left out (TON, 2505.16854)."""


@dataclass(frozen=True)
class Trajectory:
    """A sample and what is said about it: the texts of the model's turns, without the tokens that end them.

    ``observations[n]`` follows ``actions[n]``; None: the tools are asked when the trajectory is played (`train.script`). There is
    one between two actions each, none behind the last. ``calls[n]`` are the calls that were understood in ``actions[n]``, where
    somebody has played it before.
    """

    sample: Sample
    actions: tuple[str, ...]
    observations: tuple[Message | None, ...] = ()
    calls: tuple[tuple[ToolCall, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.actions or not all(self.actions):
            raise ValueError(f"trajectory of sample {self.sample.id}: it needs at least one action, and a text in each")
        for name, wanted, empty in (("observations", len(self.actions) - 1, None), ("calls", len(self.actions), ())):
            held = self.__dict__[name]
            if held and len(held) != wanted:
                raise ValueError(
                    f"trajectory of sample {self.sample.id}: {len(held)} {name} for {len(self.actions)} actions; "
                    f"expected {wanted}, or none at all"
                )
            if not held:
                object.__setattr__(self, name, (empty,) * wanted)

    @classmethod
    def of(cls, sample: Sample, rollout: Rollout) -> Trajectory:
        """What a rollout said and saw, as data: its texts are tokenized anew when they are taught."""
        turns = rollout.turns
        return cls(
            sample,
            tuple(turn.text for turn in turns),
            tuple(turn.observation for turn in turns[:-1]),
            tuple(turn.calls for turn in turns),
        )


def drop_thoughts(trajectory: Trajectory, probability: float, seed: int | str) -> Trajectory:
    """With this probability, all ``<think>`` tags of a trajectory are emptied (thought dropout: TON 2505.16854, stage 1, 0.5).

    Drawn once per sample and seed; another seed draws again.
    """
    if random.Random(f"{seed}:{trajectory.sample.id}").random() >= probability:
        return trajectory
    empty = f"<think>{NO_THOUGHT}</think>"
    return replace(trajectory, actions=tuple(_THOUGHT.sub(lambda _: empty, text) for text in trajectory.actions))


# --- writing ----------------------------------------------------------------------------------------------------------------


def trajectory_row(trajectory: Trajectory, folder: Path) -> dict[str, Any]:
    """The row of a trajectory for a file in ``folder``. Pictures without a file of their own go to ``images/`` there, by content.

    Of a video the shown frames are kept, with their times, and the name of the file where further ones can be had.
    """

    def store(picture: Picture) -> str:
        return _file(picture, folder, "images")

    sample = trajectory.sample
    row = _row(sample, sample.images, sample.privileged.crops, folder, draw=False)
    if sample.video is not None:
        clip, source = sample.video, sample.video.source
        named = {"file": str(Path(source.path).resolve())} if isinstance(source, VideoFile) else {}
        row["clip"] = {"frames": [store(frame) for frame in clip.frames], "times_s": list(clip.times_s), **named}
    actions: list[dict[str, Any]] = []
    for text, said, calls in zip(trajectory.actions, (*trajectory.observations, None), trajectory.calls, strict=True):
        actions.append({"text": text})
        if calls:
            actions[-1]["calls"] = [_call_json(call) for call in calls]
        if said is not None:
            actions[-1]["observation"] = to_json((said,), store)[0]
    return {**row, "actions": actions}


def write_trajectories(trajectories: Iterable[Trajectory], target: Path) -> int:
    """Write a file of trajectories (JSON lines) and return their number. A writing that is stopped leaves no half file."""
    if target.suffix != ".jsonl":
        raise ValueError(f"{target}: trajectories are written as JSON lines; give a name that ends in .jsonl")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    count = 0
    try:
        with unfinished.open("w", encoding="utf-8") as stream:
            for trajectory in trajectories:
                stream.write(json.dumps(trajectory_row(trajectory, target.parent), ensure_ascii=False) + "\n")
                count += 1
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _call_json(call: ToolCall) -> dict[str, Any]:
    return {
        field.name: call.__dict__[field.name]
        for field in dataclasses.fields(call)
        if call.__dict__[field.name] != field.default or field.name == "name"
    }


# --- reading ----------------------------------------------------------------------------------------------------------------


class _Questions:
    """The rows of a file of trajectories, as rows of questions."""

    def __init__(self, rows: Rows, spec: DataSpec, format_name: str) -> None:
        self._rows, self._spec = rows, spec
        _, self._script, self.format = FORMATS[format_name]

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        return self.script(index).question

    def place(self, index: int) -> str:
        return self._rows.place(index)

    def script(self, index: int) -> Script:
        """`RowError` says what is wrong with the row."""
        try:
            data = self._rows.row(index)
        except ValueError as error:
            raise RowError(f"not a readable row ({error})", "expected one JSON object with columns") from error
        return self._script(_renamed(data, self._spec))


class Trajectories(Sequence[Trajectory]):
    """Trajectories of a file, built on access; `ReadError` for a picture that turns out to be broken only then."""

    def __init__(self, rows: _Questions, samples: LazySamples, kept: Sequence[int]) -> None:
        self._rows, self._samples, self.kept = rows, samples, tuple(kept)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> Trajectory: ...
    @overload
    def __getitem__(self, index: slice) -> Trajectories: ...
    def __getitem__(self, index: int | slice) -> Trajectory | Trajectories:
        if isinstance(index, slice):
            return Trajectories(self._rows, self._samples, self.kept[index])
        return self.build(self.kept[index])

    def place(self, index: int) -> str:
        """Where trajectory ``index`` stands in the file, in words."""
        return self._rows.place(self.kept[index])

    def build(self, row: int) -> Trajectory:
        """The trajectory of a row of the file. Decodes its pictures. `ReadError`."""
        sample, _ = self._samples.build(row)
        try:
            script = self._rows.script(row)
            if script.clip is not None:
                video = self._open(script.clip)
                sample = replace(sample, video=video if isinstance(video, Clip) else None)
            said = tuple(one and self._message(one) for one in script.said)
            return Trajectory(sample, script.actions, said, script.calls)
        except _FAULTS as error:
            raise ReadError(f"{self._samples.file}, {self._rows.place(row)}: {error}") from error

    def _message(self, said: Said) -> Message:
        role, parts = said
        return Message(role, tuple(self._open(part) if isinstance(part, Unopened) else part for part in parts))

    def _open(self, ref: Unopened) -> Picture | Clip:
        pictures = self._pictures(ref)
        if ref.times_s is None:
            return pictures[0]
        return Clip(pictures, ref.times_s, None if ref.file is None else open_video(ref.file))

    def _pictures(self, unopened: Unopened) -> tuple[Picture, ...]:
        return tuple(open_picture(ref, self._samples.file, self._samples.spec.image_dir) for ref in unopened.refs)


@dataclass(frozen=True)
class TrajectoriesRead:
    """What a file gave: ``problems`` names every row that was left out."""

    trajectories: Trajectories
    problems: list[Problem]
    format: str
    num_rows: int


def read_trajectories(spec: DataSpec | dict[str, Any] | str) -> TrajectoriesRead:
    """Read a file of trajectories. Every row is looked at; a bad one is left out and named, or raises with ``strict``.

    ``format``, ``columns``, ``image_dir``, ``verify``, ``limit`` and ``strict`` are those of `read.read`. The sample of a row
    keeps the row's id, so that several trajectories of one sample stay its own. `ValueError` for a file that cannot be used.
    """
    spec = DataSpec(path=spec) if isinstance(spec, str) else DataSpec.model_validate(spec)
    if spec.path is None or spec.holdout_frac:
        raise ValueError("trajectories: give the path of a file, and no holdout_frac (hold out the samples they are made from)")
    rows = open_rows(spec.path, spec.hub_split, spec.hub_name)
    format_name = _format(rows, spec)
    questions = _Questions(rows, spec, format_name)
    plain = spec.model_copy(update={"columns": {}})
    ids: dict[int, str] = {}
    samples = LazySamples(questions, plain, questions.format, (), ids)
    found, problems, kept = Trajectories(questions, samples, ()), [], []
    for index in range(len(rows)):
        try:
            script = questions.script(index)
            raw = _import(questions, index, plain, samples.format)[0]
            ids[index] = raw.id or f"{Path(spec.path).stem}-{index}"
            _verify(raw, index, samples)
            if spec.verify == "header":
                for ref in script.refs:
                    header_size(ref, spec.path, spec.image_dir)
            elif spec.verify == "full":
                found.build(index)
        except (*_FAULTS, ReadError) as error:
            problems.append(_problem(spec.path, rows.place(index), error))
            if spec.strict:
                raise ReadError(str(problems[-1])) from error
            continue
        kept.append(index)
    if spec.limit is not None and len(kept) > spec.limit:
        kept = sorted(random.Random(spec.seed).sample(kept, spec.limit))
    return TrajectoriesRead(Trajectories(questions, samples, kept), problems, format_name, len(rows))


def _format(rows: Rows, spec: DataSpec) -> str:
    if spec.format is not None:
        if spec.format not in FORMATS:
            raise ValueError(f"trajectories: format {spec.format!r}; expected {' or '.join(FORMATS)}")
        return spec.format
    for index in range(min(len(rows), 20)):
        try:
            columns = set(_renamed(rows.row(index), spec))
        except ValueError:
            continue  # named with its line when the rows are gone through
        for name, (of_format, _, _) in FORMATS.items():
            if columns & of_format:
                return name
    raise ValueError(
        f"{spec.path}: no column actions, messages or conversations in its first rows; it holds no trajectories that can be read "
        "(questions with an answer are read as data; columns: {messages: my_chat} names another column)"
    )
