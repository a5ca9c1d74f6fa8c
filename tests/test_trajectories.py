"""Trajectories as data and as rollouts: both formats, round trips, every bad row named, scripts played with tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import picture, view_of

from foveate.datasets.read import ReadError
from foveate.datasets.trajectories import Trajectory, drop_thoughts, read_trajectories, write_trajectories
from foveate.train.script import ScriptError, play_script
from foveate.train.signals.base import Context
from foveate.train.signals.settings import SftSignal
from foveate.train.signals.sft import Sft
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Clip, Message
from foveate.vlm.records import Group, Privileged, Reply, Rollout, Sample, Shown, StopReason, ToolCall, Turn
from foveate.vlm.video import read_clip


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen2_5_vl", seed=2)


@dataclass
class Cutter:
    """``cut`` gives a picture, ``fail`` an error, anything else is an answer; remembers what it was shown."""

    shown: list[Shown]

    def act(self, text: str, shown: Shown) -> Reply | None:
        self.shown.append(shown)
        if text.startswith("cut"):
            return Reply(Message.user("<", picture(len(self.shown), 84, 56), ">"), (ToolCall(name="zoom", image=0),))
        if text.startswith("fail"):
            return Reply(Message.user("no"), (ToolCall(name="zoom", error="the box is empty"),))
        return None


SAMPLE = Sample(id="s", question="Which?", answer="K", images=(picture(0, 112, 84),))
VIEW = view_of(SAMPLE.images[0], "Which?")


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def saved(folder: Path, *seeds: int) -> list[str]:
    names = [f"{seed}.png" for seed in seeds]
    for seed, name in zip(seeds, names, strict=True):
        picture(seed).rgb().save(folder / name)
    return names


# --- the record ---------------------------------------------------------------------------------------------------------------


def test_a_trajectory_has_one_observation_between_two_actions() -> None:
    asked = Trajectory(SAMPLE, ("a", "b", "c"))
    assert (asked.observations, asked.calls) == ((None, None), ((), (), ()))
    with pytest.raises(ValueError, match="sample s: 2 observations for 2 actions; expected 1"):
        Trajectory(SAMPLE, ("a", "b"), (Message.user("x"), Message.user("y")))
    for actions in ((), ("a", "")):
        with pytest.raises(ValueError, match="a text in each"):
            Trajectory(SAMPLE, actions)


def test_a_rollout_becomes_a_trajectory() -> None:
    reply, call = Message.user("<", picture(1), ">"), ToolCall(name="zoom")
    turns = (
        Turn((1, 2), (-1.0, -1.0), "look", StopReason.TOOL_CALL, reply, calls=(call,)),
        Turn((3,), (-1.0,), "K", StopReason.ANSWERED),
    )
    made = Trajectory.of(SAMPLE, Rollout("s", "g", 0, VIEW, turns, StopReason.ANSWERED))
    assert made == Trajectory(SAMPLE, ("look", "K"), (reply,), ((call,), ()))


def test_thoughts_are_dropped_at_the_given_rate() -> None:
    made = [
        Trajectory(Sample(id=str(n), question="q"), ("<think>a\nb</think>call", "<think>c</think><answer>K</answer>"))
        for n in range(400)
    ]
    dropped = [drop_thoughts(one, 0.5, seed=0) for one in made]
    empty = ("<think>\n\n</think>call", "<think>\n\n</think><answer>K</answer>")
    assert {one.actions for one in dropped} == {made[0].actions, empty}
    assert 160 < sum(one.actions == empty for one in dropped) < 240
    assert dropped == [drop_thoughts(one, 0.5, seed=0) for one in made]
    assert dropped != [drop_thoughts(one, 0.5, seed=1) for one in made]
    assert drop_thoughts(made[0], 0.0, 0) == made[0]
    assert all(drop_thoughts(one, 1.0, 0).actions == empty for one in made)


# --- our own format -----------------------------------------------------------------------------------------------------------


def test_written_trajectories_are_read_back(tmp_path: Path) -> None:
    file = saved(tmp_path, 7)[0]
    call = ToolCall(
        name="zoom",
        arguments='{"box": [0, 0, 5, 5]}',
        coords="norm1000",
        image=1,
        box_px_xyxy=(0.0, 0.0, 5.5, 5.0),
        times_s=(1.5,),
    )
    clip = Clip((picture(3), picture(4)), (0.0, 2.5))
    sample = Sample(
        id="a", question="<image>Which <image>?", answer="K", images=(Picture.open(tmp_path / file), picture(2)),
        options=("x", "K"), system="Look.", privileged=Privileged(boxes_px_xyxy=((1.0, 2.0, 30.0, 40.0),), rationale="since"),
        source="src", kind="letter", difficulty=0.5, tags={"world": "w"},
    )  # fmt: skip
    whole = Trajectory(
        sample,
        ("look <image> twice", "again", "<answer>K</answer>"),
        (Message.user("<r>a literal <image> ", picture(5), clip, "</r>"), None),
        ((call, ToolCall(name="", error="no")), (), ()),
    )
    filmed = Trajectory(Sample(id="b", question="When?", answer="2", video=clip, source="src"), ("2",))
    same = Trajectory(sample, ("<answer>K</answer>",))
    target = tmp_path / "out" / "t.jsonl"
    assert write_trajectories([whole, filmed, same], target) == 3
    read = read_trajectories({"path": str(target), "verify": "full"})
    assert (read.problems, read.format, read.num_rows) == ([], "trajectories", 3)
    assert list(read.trajectories) == [whole, filmed, same]
    assert read.trajectories[1:][0] == filmed
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4, "the file of a picture is named, other pictures kept once"
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["images"][0] == str((tmp_path / file).resolve())
    assert write_trajectories(read.trajectories, tmp_path / "again.jsonl") == 3
    assert list(read_trajectories(str(tmp_path / "again.jsonl")).trajectories) == [whole, filmed, same]


def test_a_video_keeps_the_file_that_has_more_frames(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"mp4v"), 4.0, (64, 48))  # type: ignore[attr-defined]
    for shade in range(8):
        writer.write(np.full((48, 64, 3), 30 * shade, np.uint8))
    writer.release()
    clip = read_clip(film, fps=1.0)
    target = tmp_path / "out" / "t.jsonl"
    write_trajectories([Trajectory(Sample(id="v", question="When?", answer="2", video=clip), ("2",))], target)
    (made,) = read_trajectories(str(target)).trajectories
    assert made.sample.video == clip
    assert made.sample.video is not None
    assert made.sample.video.source is not None
    assert made.sample.video.source.frames_at([1.0]) == clip.source.frames_at([1.0])  # type: ignore[union-attr]
    film.unlink()
    with pytest.raises(ReadError, match=r"t\.jsonl, line 1: .*film\.mp4"):
        read_trajectories({"path": str(target), "verify": "full", "strict": True})


def test_a_writing_that_is_stopped_leaves_no_file(tmp_path: Path) -> None:
    def some():  # type: ignore[no-untyped-def]
        yield Trajectory(SAMPLE, ("K",))
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_trajectories(some(), tmp_path / "t.jsonl")
    assert [path.name for path in tmp_path.glob("*") if path.is_file()] == []
    with pytest.raises(ValueError, match=r"ends in \.jsonl"):
        write_trajectories([], tmp_path / "t.json")


# --- chats --------------------------------------------------------------------------------------------------------------------


def chat(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


def test_a_chat_gives_actions_and_observations(tmp_path: Path) -> None:
    names = saved(tmp_path, 1, 2, 3)
    messages = chat(
        ("system", "You may zoom."),
        ("user", "<image>What letter?"),
        ("assistant", "<think>far</think>zoom"),
        ("user", "<r><image></r>"),
        ("assistant", "zoom again"),
        ("tool", [{"type": "text", "text": "here: "}, {"type": "image"}]),
        ("tool", "done"),
        ("assistant", "<think>seen</think><answer>K</answer>"),
    )
    path = write_lines(tmp_path / "c.jsonl", {"messages": messages, "images": names, "tools": "[]"})
    read = read_trajectories(str(path))
    assert (read.problems, read.format) == ([], "messages")
    (made,) = read.trajectories
    assert made.actions == ("<think>far</think>zoom", "zoom again", "<think>seen</think><answer>K</answer>")
    assert made.observations == (
        Message.user("<r>", picture(2), "</r>"),
        Message("tool", ("here: ", picture(3), "\n", "done")),
    )
    sample = made.sample
    assert (sample.id, sample.question, sample.system, sample.answer) == ("c-0", "<image>What letter?", "You may zoom.", "K")
    assert sample.images == (picture(1),)


@pytest.mark.parametrize("inside", [False, True])
def test_pictures_left_over_belong_to_the_question(tmp_path: Path, inside: bool) -> None:
    names = saved(tmp_path, 1, 2, 3)
    if inside:  # pictures named where they stand
        asked: Any = [{"type": "image", "image": names[0]}, {"type": "image_url", "image_url": {"url": names[1]}}, "Same?"]
        told: Any = [{"type": "image", "path": names[2]}]
        row: Mapping[str, Any] = {"messages": chat(("user", asked), ("assistant", "z"), ("user", told), ("assistant", "no"))}
    else:
        talk = [("human", "Same?"), ("gpt", "z"), ("observation", "<image>"), ("gpt", "no")]
        row = {"conversations": [{"from": role, "value": text} for role, text in talk], "images": names, "id": 5}
    (made,) = read_trajectories(str(write_lines(tmp_path / "c.jsonl", row))).trajectories
    assert made.sample.images == (picture(1), picture(2))
    assert [one and one.pictures for one in made.observations] == [(picture(3),)]
    assert made.sample.id == ("c-0" if inside else "5")


GOOD = {"messages": chat(("user", "q"), ("assistant", "a"))}
BAD: dict[str, tuple[Any, str]] = {
    "not json": ("{", "not a readable row"),
    "no assistant": ({"messages": chat(("user", "q"))}, "roles user; a question comes first"),
    "no end": ({"messages": chat(("user", "q"), ("assistant", "a"), ("user", "b"))}, "roles user, assistant, user"),
    "late system": ({"messages": chat(("user", "q"), ("system", "s"), ("assistant", "a"))}, "roles user, system, assistant"),
    "role": ({"messages": chat(("user", "q"), ("tool_call", "{}"), ("assistant", "a"))}, "role 'tool_call'; expected system"),
    "no role": ({"messages": ["q"]}, "a message of the role None"),
    "two actions": ({"messages": chat(("user", "q"), ("assistant", "a"), ("assistant", "b"))}, "action 1 follows another"),
    "mixed": (
        {"messages": chat(("user", "q"), ("assistant", "a"), ("user", "x"), ("tool", "y"), ("assistant", "b"))},
        "a user and a tool message between two actions",
    ),
    "empty action": ({"messages": chat(("user", "q"), ("assistant", ""))}, "action 0 is empty"),
    "no question": ({"messages": chat(("assistant", "a"))}, "roles assistant; a question comes first"),
    "picture in action": ({"messages": chat(("user", "q"), ("assistant", "<image>")), "images": ["1.png"]}, "holds a picture"),
    "tool_calls": ({"messages": [GOOD["messages"][0], {**GOOD["messages"][1], "tool_calls": [{}]}]}, "its calls in tool_calls"),
    "part": ({"messages": chat(("user", "q"), ("assistant", "a"), ("user", [{"type": "audio"}]), ("assistant", "b"))}, "'audio'"),
    "few": ({"messages": chat(("user", "<image><image>"), ("assistant", "a")), "images": ["1.png"]}, "2 <image> in the chat"),
    "many": ({"messages": chat(("user", "<image>"), ("assistant", "a")), "images": ["1.png"] * 2}, "but 2 pictures"),
    "no file": (
        {"messages": chat(("user", "q"), ("assistant", "a"), ("user", "<image>"), ("assistant", "b")), "images": ["9.png"]},
        "9.png: no such picture",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_chat_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    saved(tmp_path, 1)
    row, what = BAD[name]
    path = write_lines(tmp_path / "c.jsonl", GOOD, row, GOOD)
    read = read_trajectories(str(path))
    assert len(read.trajectories) == 2
    (problem,) = read.problems
    assert (problem.file, problem.place, problem.left_out) == (str(path), "line 2", True)
    assert what in str(problem)
    assert read.trajectories.place(1) == "line 3"
    with pytest.raises(ReadError, match=r"c\.jsonl, line 2: "):
        read_trajectories({"path": str(path), "strict": True})


BAD_OWN: dict[str, tuple[Any, str]] = {
    "no actions": ([], "it does not end with an action"),
    "no text": ([{"observation": None}], "action 0 has no text"),
    "observation last": ([{"text": "a", "observation": {"role": "user", "content": "x"}}], "it does not end with an action"),
    "role": ([{"text": "a", "observation": {"role": "assistant", "content": "x"}}, {"text": "b"}], "expected user, tool"),
    "call": ([{"text": "a", "calls": [{"name": "zoom", "box": 1}]}], "a call"),
    "picture": (
        [{"text": "a", "observation": {"role": "user", "content": [{"type": "image"}]}}, {"text": "b"}], "a picture part without"
    ),
    "video": (
        [{"text": "a", "observation": {"role": "user", "content": [{"type": "video", "frames": ["1.png"]}]}}, {"text": "b"}],
        "without a time for each",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OWN)
def test_a_bad_row_of_our_own_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    actions, what = BAD_OWN[name]
    path = write_lines(tmp_path / "t.jsonl", {"question": "q", "actions": [{"text": "K"}]}, {"question": "q", "actions": actions})
    read = read_trajectories(str(path))
    assert [one.actions for one in read.trajectories] == [("K",)]
    assert what in str(read.problems[0])


def test_files_that_hold_no_trajectories(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"question": "q", "answer": "a"})
    with pytest.raises(ValueError, match="no column actions, messages or conversations"):
        read_trajectories(str(path))
    with pytest.raises(ValueError, match="format 'plain'; expected trajectories or messages"):
        read_trajectories({"path": str(path), "format": "plain"})
    with pytest.raises(ValueError, match="hold out the samples"):
        read_trajectories({"path": str(path), "holdout_frac": 0.1})


def test_columns_and_limit(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", *({"talk": chat(("user", str(n)), ("assistant", "a"))} for n in range(20)))
    spec = {"path": str(path), "columns": {"messages": "talk"}, "limit": 5, "seed": 1}
    drawn = [one.sample.question for one in read_trajectories(spec).trajectories]
    assert len(drawn) == 5
    assert drawn == sorted(drawn, key=int)
    assert drawn == [one.sample.question for one in read_trajectories(spec).trajectories]


def test_a_picture_cut_short_is_found_by_verify_full(tmp_path: Path) -> None:
    (name,) = saved(tmp_path, 1)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    messages = chat(("user", "q"), ("assistant", "a"), ("user", "<image>"), ("assistant", "b"))
    path = write_lines(tmp_path / "c.jsonl", {"messages": messages, "images": ["cut.png"]}, GOOD)
    assert len(read_trajectories({"path": str(path), "verify": "full"}).trajectories) == 1
    late = read_trajectories(str(path)).trajectories
    with pytest.raises(ReadError, match=r"c\.jsonl, line 1: .*cut\.png: not a readable picture"):
        late[0]


# --- playing ------------------------------------------------------------------------------------------------------------------


def test_a_script_is_played_with_the_tools(vlm: VLM) -> None:
    tools = Cutter([])
    one = play_script(Trajectory(SAMPLE, ("cut a", "cut b", "<answer>K</answer>")), VIEW, tools, vlm.renderer, policy_version=3)
    assert [turn.text for turn in one.turns] == ["cut a", "cut b", "<answer>K</answer>"]
    assert [turn.stop for turn in one.turns] == [StopReason.TOOL_CALL, StopReason.TOOL_CALL, StopReason.ANSWERED]
    assert (one.stop, one.sample_id, one.view) == (StopReason.ANSWERED, "s", VIEW)
    assert [turn.calls for turn in one.turns] == [(ToolCall(name="zoom", image=0),)] * 2 + [()]
    end = vlm.renderer.stop_ids[0]
    assert [turn.action_ids_K for turn in one.turns] == [(*vlm.renderer.encode(turn.text), end) for turn in one.turns]
    assert all(set(turn.action_logprobs_K) == {0.0} and turn.policy_version == 3 for turn in one.turns)
    first, second = picture(1, 84, 56), picture(2, 84, 56)
    assert one.pictures == (SAMPLE.images[0], first, second)
    assert [shown.visuals for shown in tools.shown] == [
        (SAMPLE.images[0],),
        (SAMPLE.images[0], first),
        (SAMPLE.images[0], first, second),
    ]
    assert [(shown.num_prompt, shown.turn, len(shown.calls)) for shown in tools.shown] == [(1, 0, 0), (1, 1, 1), (1, 2, 2)]
    assert tools.shown[0].seen_px == ((112, 84),)


def test_given_observations_are_shown_as_they_are_and_cost_no_tool(vlm: VLM) -> None:
    given, call = Message("tool", ("old ", picture(9))), ToolCall(name="zoom", image=4)
    told = Trajectory(SAMPLE, ("cut", "cut", "K"), (given, None), ((call,), (), ()))
    tools = Cutter([])
    one = play_script(told, VIEW, tools, vlm.renderer)
    assert [shown.turn for shown in tools.shown] == [1, 2]
    assert tools.shown[0].visuals == (SAMPLE.images[0], picture(9))
    assert tools.shown[0].calls == (call,)
    assert one.turns[0].observation == given
    assert one.turns[0].calls == (call,)
    alone = play_script(Trajectory(SAMPLE, ("cut", "K"), (given,)), VIEW, None, vlm.renderer)
    assert [turn.stop for turn in alone.turns] == [StopReason.TOOL_CALL, StopReason.ANSWERED]
    replayed = play_script(Trajectory(told.sample, told.actions), VIEW, Cutter([]), vlm.renderer)
    assert replayed.turns[0].observation == Message.user("<", picture(1, 84, 56), ">")


def test_scripts_that_cannot_be_played(vlm: VLM) -> None:
    def played(*actions: str, toolbox: Cutter | None = None, errors: bool = False) -> Rollout:
        return play_script(Trajectory(SAMPLE, actions), VIEW, toolbox or Cutter([]), vlm.renderer, allow_errors=errors)

    with pytest.raises(ScriptError, match="sample s, turn 1: the tool zoom answers: the box is empty"):
        played("cut", "fail", "K")
    allowed = played("cut", "fail", "K", errors=True)
    assert allowed.stop is StopReason.ANSWERED
    assert allowed.turns[1].calls[0].error == "the box is empty"
    with pytest.raises(ScriptError, match="sample s, turn 1: the last action calls a tool"):
        played("cut", "cut")
    open_end = played("cut", "cut", errors=True)
    assert (open_end.stop, open_end.turns[-1].stop) == (StopReason.TURNS, StopReason.TOOL_CALL)
    assert open_end.turns[-1].observation is None
    with pytest.raises(ScriptError, match="sample s, turn 0: its action calls no tool, yet another action follows"):
        played("K", "cut", "K", errors=True)
    with pytest.raises(ScriptError, match="sample s, turn 0: there are no tools to ask"):
        play_script(Trajectory(SAMPLE, ("cut", "K")), VIEW, None, vlm.renderer)
    for text in ("a<|im_end|>b", "<|image_pad|>"):
        with pytest.raises(ScriptError, match=r"turn 0: the action holds the token <\|im"):
            played(text)


def test_only_the_actions_of_a_script_are_taught(vlm: VLM) -> None:
    one = play_script(Trajectory(SAMPLE, ("cut here", "K")), VIEW, Cutter([]), vlm.renderer)
    (signal,) = Sft(SftSignal(kind="sft")).build([Group(SAMPLE, (one,))], Context(lambda pairs: []))
    lengths = [len(vlm.renderer.encode(text)) + 1 for text in ("cut here", "K")]
    assert signal.ce_weights_NK is not None
    assert [list(row) for row in signal.ce_weights_NK] == [[1.0] * length for length in lengths]
    rendered = vlm.renderer.render(one.view, one.turns)
    taught = [list(rendered.suffix.ids_T[span.start : span.stop]) for span in rendered.action_spans]
    assert taught == [list(turn.action_ids_K) for turn in one.turns]
    assert len(rendered.suffix) > sum(lengths), "the observation stands between them"
