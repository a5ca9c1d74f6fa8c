"""Selective sample replay: who is drawn, what a replayed rollout is, and that the buffer survives a kill bit for bit."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture, scripted, view_of

from foveate.train import checkpoint
from foveate.train.batch import make_batches
from foveate.train.config import GrpoSignal
from foveate.train.loop import train
from foveate.train.recipes import RecipeError, load_recipe
from foveate.train.replay import Replay, magnitude
from foveate.train.replay_files import Pictures, signal_from_json, signal_to_json
from foveate.train.replay_settings import ReplaySpec
from foveate.train.signals.base import Context, constant_NK
from foveate.train.signals.grpo import Grpo
from foveate.train.update import accumulate
from foveate.vlm.images import Picture, PictureError
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Clip, Message
from foveate.vlm.records import Group, Reward, Rollout, Sample, Signal, StopReason, ToolCall, Turn, View

NO_VIEW = View("student", ())


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen3_vl", seed=1, initializer_range=0.1)


def signal(value: float | None, index: int = 0, group: str = "g", stream: str = "grpo") -> Signal:
    """Two tokens with this advantage; None: filtered."""
    turn = Turn((5, 6), (-1.0, -2.0), "", StopReason.ANSWERED)
    rollout = Rollout("s", group, index, NO_VIEW, (turn,), StopReason.ANSWERED)
    return Signal(rollout, advantages_NK=None if value is None else constant_NK(rollout, value), stream=stream)


def step_of(step: int, *values: float | None) -> list[Signal]:
    return [signal(value, index, f"main/{step}/0") for index, value in enumerate(values)]


def replay(**settings: Any) -> Replay:
    return Replay(ReplaySpec.model_validate({"kind": "ssr", **settings}), seed=5)


def keys(signals: list[Signal]) -> list[tuple[str, int]]:
    return [(one.rollout.group_id, one.rollout.index) for one in signals]


# ---------------------------------------------------------------- who is drawn


def test_idle_rollouts_make_room_for_earlier_ones() -> None:
    buffer = replay(size=8)
    first = step_of(0, 0.5, -0.5, 0.0, 0.0)
    assert buffer.merge(first, 0) == first, "nothing is held yet"
    assert [one.signal for one in buffer.held] == first[:2]
    second = step_of(1, 0.0, 0.0, 0.0, 2.0)
    taught = buffer.merge(second, 1)
    assert Counter(keys(taught)) == Counter([("main/1/0", 3), ("main/0/0", 0), ("main/0/0", 1), ("main/1/0", 0)])
    assert len(taught) == 4, "the step keeps its size"
    assert buffer.metrics() == {"replay/fresh": 1.0, "replay/replayed": 2.0, "replay/age_mean": 1.0, "replay/held": 3.0}
    assert all(one in taught for one in (*first[:2], second[3])), "with the advantages of then"
    filtered = step_of(2, None, None, 0.0, 0.0)
    taught = buffer.merge(filtered, 2)
    assert len(taught) == 4, "three are held, four places are free: one idle rollout stays"
    assert buffer.metrics()["replay/replayed"] == 3
    assert [one for one in taught if one.rollout.group_id == "main/2/0"] == [filtered[2]]


def test_other_streams_are_left_alone() -> None:
    buffer = replay(size=8)
    other = [signal(1.0, 0, "main/0/0", "distill"), signal(0.0, 1, "main/0/0", "nll")]
    given = Signal(signal(None).rollout, ce_weights_NK=((1.0, 1.0),), stream="grpo")
    buffer.merge([*other, given, *step_of(0, 1.0, -1.0)], 0)
    assert len(buffer.held) == 2, "neither another stream's nor a text that is learned by heart"
    taught = buffer.merge([*other, given, *step_of(1, 0.0, 0.0)], 1)
    assert taught[:3] == [*other, given]
    assert set(keys(taught[3:])) == {("main/0/0", 0), ("main/0/0", 1)}


def test_those_without_an_advantage_are_never_drawn() -> None:
    """All-right groups included: with p in proportion to |A| = 0, letting some of them in changes nothing."""
    for form in ("fill", "redraw"):
        buffer = replay(form=form, size=100)
        for step in range(20):
            values = (0.0, 0.0, 0.0, 0.0) if step % 2 else (1.0, -1.0, 0.0, 0.0)
            taught = buffer.merge(step_of(step, *values), step)
            old = [one for one in taught if one.rollout.group_id != f"main/{step}/0"]
            assert all(magnitude(one) > 0 for one in old)
        assert all(magnitude(one.signal) > 0 for one in buffer.held)
        assert len(buffer.held) == 20


def test_magnitudes_by_hand() -> None:
    rollout = signal(1.0).rollout
    assert magnitude(Signal(rollout, advantages_NK=((-0.5, 1.5),))) == 1.0
    assert magnitude(signal(-2.0)) == 2.0
    assert magnitude(signal(None)) == magnitude(signal(0.0)) == 0.0


@pytest.mark.parametrize(("alpha", "wanted"), [(1.0, [1 / 6, 2 / 6, 3 / 6]), (2.0, [1 / 14, 4 / 14, 9 / 14]), (0.0, [1 / 3] * 3)])
def test_draws_are_in_proportion_to_the_advantage(alpha: float, wanted: list[float]) -> None:
    for form, idle in (("fill", (0.0,)), ("redraw", (0.0, 0.0))):  # one is drawn
        buffer = replay(form=form, alpha=alpha, size=3)
        buffer.merge(step_of(0, 1.0, -2.0, 3.0), 0)
        seen = Counter(one.rollout.index for step in range(1, 3001) for one in buffer.merge(step_of(step, *idle), step))
        assert sum(seen.values()) == 3000
        assert [seen[index] / 3000 for index in range(3)] == pytest.approx(wanted, abs=0.03)


def test_drawing_several_takes_one_after_the_other() -> None:
    """Of |A| = 1, 2, 3 two are drawn: 3 is among them unless 1, 2 or 2, 1 come first: 1 - (1/6 x 2/5 + 2/6 x 1/4) = .85."""
    buffer = replay(size=3)
    buffer.merge(step_of(0, 1.0, -2.0, 3.0), 0)
    taught = [keys(buffer.merge(step_of(step, 0.0, 0.0), step)) for step in range(1, 3001)]
    assert all(len(set(one)) == 2 for one in taught)
    assert sum(("main/0/0", 2) in one for one in taught) / 3000 == pytest.approx(0.85, abs=0.02)


def test_size_and_age_bound_the_buffer() -> None:
    buffer = replay(size=3)
    for step in range(4):
        buffer.merge(step_of(step, 1.0, -1.0), step)
    assert [(one.step, one.signal.rollout.index) for one in buffer.held] == [(2, 1), (3, 0), (3, 1)]
    half = replay()
    half.merge(step_of(0, 1.0, 1.0, -1.0, -1.0), 0)
    assert len(half.held) == 2, "half of the step, unless a size is given"
    young = replay(size=9, max_age=2)
    young.merge(step_of(0, 1.0, -1.0), 0)
    assert young.merge(step_of(2, 0.0, 0.0), 2)[0].rollout.group_id == "main/0/0"
    third = step_of(3, 0.0, 0.0)
    assert young.merge(third, 3) == third
    assert young.held == []


def test_redraw_learns_from_half_as_many_drawn_with_repetition() -> None:
    """As the released code: its own first, the rest from the buffer, which has this step's too."""
    buffer = replay(form="redraw")
    many = step_of(0, *([1.0] * 6 + [0.0] * 2))
    taught = buffer.merge(many, 0)
    assert len(taught) == 4
    assert len(buffer.held) == 4
    assert len(set(keys(taught))) == 4, "a repeated rollout is a group of its own in the batch"
    few = step_of(1, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    repeats = 0
    for attempt in range(1, 60):
        buffer = replay(form="redraw", size=4)
        buffer.seed = attempt
        buffer.merge(many, 0)
        taught = buffer.merge(few, 1)
        assert len(taught) == 4
        assert taught[0] == few[1]
        assert len(set(keys(taught))) == 4
        repeats += any("#" in one.rollout.group_id for one in taught)
        assert {one.rollout.group_id.split("#")[0] for one in taught} <= {"main/0/0", "main/1/0"}
    assert repeats > 10
    assert replay(form="redraw").merge(step_of(0, 0.0, 0.0, 0.0, 0.0), 0) == [], "nothing to learn from at all"


# ---------------------------------------------------------------- what a replayed rollout is


def played(vlm: VLM) -> list[Signal]:
    """Groups with pictures in prompts and observations, their log-probs those of the weights of now."""
    from foveate.train.measure import sampled_logprobs

    rollouts = [scripted(vlm, view_of(picture(g), "q"), g, i, f"main/0/{g}", "K " * (1 + i)) for g in (0, 1) for i in range(2)]
    scores = sampled_logprobs(vlm, [(one, one.view) for one in rollouts], micro_tokens=10_000, temperature=1.0)
    groups: dict[str, list[Rollout]] = {}
    for index, (one, rows) in enumerate(zip(rollouts, scores, strict=True)):
        turns = tuple(dataclasses.replace(turn, action_logprobs_K=row) for turn, row in zip(one.turns, rows, strict=True))
        reward = Reward(float(index % 2), {"answer": float(index % 2)}, "right" if index % 2 else "wrong", "K")
        groups.setdefault(one.group_id, []).append(dataclasses.replace(one, turns=turns, reward=reward))
    sample = Sample(id="s", question="q", answer="K")
    settings = GrpoSignal(kind="grpo")
    return Grpo(settings).build([Group(sample, tuple(own)) for own in groups.values()], Context(lambda pairs: []))


def test_a_replayed_rollout_keeps_its_advantage_and_is_off_policy(vlm: VLM) -> None:
    moved = tiny_random("qwen3_vl", seed=1, initializer_range=0.1)
    streams = {"grpo": Grpo(GrpoSignal(kind="grpo")).streams()[0]}
    buffer = replay(size=10)
    signals = played(moved)
    buffer.merge(signals, 0)

    def ratio(taught: list[Signal]) -> float:
        return accumulate(moved, None, make_batches(taught, streams, moved.renderer, 10_000), 1.0).tally.means()[
            "loss/grpo/ratio"
        ]

    idle = [
        dataclasses.replace(
            one,
            rollout=dataclasses.replace(one.rollout, group_id=one.rollout.group_id.replace("main/0", "main/1")),
            advantages_NK=constant_NK(one.rollout, 0.0),
        )
        for one in signals
    ]
    taught = buffer.merge(idle, 1)
    assert sorted(keys(taught)) == sorted(keys(signals))
    by_key = dict(zip(keys(signals), signals, strict=True))
    assert all(one == by_key[key] for key, one in zip(keys(taught), taught, strict=True)), "advantages, ids and log-probs of then"
    assert ratio(taught) == pytest.approx(1, abs=1e-5), "the weights have not moved yet"
    with torch.no_grad():
        moved.model.get_input_embeddings().weight.mul_(1.05)
    assert abs(ratio(taught) - 1) > 1e-3


def test_repetitions_weigh_as_often_as_they_are_drawn(vlm: VLM) -> None:
    """A batch knows a rollout by group and index: without groups of their own, two draws would be one rollout."""
    one = played(vlm)[1]
    buffer = replay(form="redraw", size=4)
    buffer.merge([one, one], 0)  # half of two is one draw; the buffer has it twice
    taught = buffer.merge([signal(0.0, index, "main/1/0") for index in range(6)], 1)
    assert len(taught) == 3
    streams = {"grpo": Grpo(GrpoSignal(kind="grpo", ratio="sequence", reduction="sequence")).streams()[0]}
    batches = make_batches(taught, streams, vlm.renderer, 10_000)
    assert sum(len(batch.packed.suffix_starts) - 1 for batch in batches) == 3
    loss = accumulate(vlm, None, batches, 1.0).loss
    assert loss == pytest.approx(accumulate(vlm, None, make_batches([one], streams, vlm.renderer, 10_000), 1.0).loss, rel=1e-4)


# ---------------------------------------------------------------- files


def rich(file: Path) -> Signal:
    """Everything that a signal can hold: odd floats, calls, pictures in memory and in a file, a clip."""
    on_disk, drawn = Picture.open(file), picture(3, 40, 30)
    clip = Clip((picture(4), picture(5)), (0.0, 1 / 3))
    view = View("student", (Message.system("look"), Message.user(on_disk, "a\u2028b ö", clip, drawn)), "full")
    call = ToolCall(
        name="zoom", arguments='{"a": 1}', coords="norm1000", image=0, box_px_xyxy=(0.1, 0.2, 3.0, 4.0), times_s=(0.5,)
    )
    turns = (
        Turn((5, 6), (-0.1, -1e-17), "zoom", StopReason.TOOL_CALL, Message("tool", (picture(6), "seen")), 4, (call,)),
        Turn((7,), (-1 / 3,), "K", StopReason.ANSWERED, None, 4),
    )
    reward = Reward(0.1 + 0.2, {"acc": 1.0, "form": 0.3}, "right", "K")
    rollout = Rollout("s", "main/4/0", 2, view, turns, StopReason.ANSWERED, 2**62 + 1, reward, "edited")
    return Signal(
        rollout,
        advantages_NK=((1 / 7, 1e-300), (-0.0,)),
        teacher_logprobs_NK=((-2 / 3, -5.0), (-1.0,)),
        teacher_view=View("teacher", (Message.user(drawn, "q"),)),
        stream="grpo",
    )


def test_a_signal_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "here.png"
    picture(2, 64, 48).rgb().save(file)
    one, folder = rich(file), tmp_path / "kept"
    written = json.dumps(signal_to_json(one, Pictures(folder).store))
    back = signal_from_json(json.loads(written), Pictures(folder).opened)
    assert back == one
    assert hash(back.rollout.view) == hash(one.rollout.view)
    assert len(list(folder.iterdir())) == 4, "each picture once, and the one with a file not at all"
    for mine, theirs in zip(one.rollout.pictures, back.rollout.pictures, strict=True):
        assert np.array_equal(np.asarray(mine.rgb()), np.asarray(theirs.rgb()))
    assert [p.path for p in back.rollout.pictures] == [str(file), None, None, None, None], "none points into the checkpoint"
    assert back.rollout.turns[0].calls[0].box_px_xyxy == (0.1, 0.2, 3.0, 4.0)


def test_a_picture_that_has_changed_or_gone_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "here.png"
    picture(2, 64, 48).rgb().save(file)
    buffer = replay(size=4)
    buffer.merge([rich(file)], 4)
    folder = tmp_path / "kept"
    folder.mkdir()
    buffer.save(folder)
    picture(9, 64, 48).rgb().save(file)
    with pytest.raises(PictureError, match=r"here\.png: a replayed rollout was played with other pixels"):
        replay(size=4).load(folder)
    picture(2, 64, 48).rgb().save(file)
    drawn = next(one for one in folder.iterdir() if one.suffix == ".png")
    drawn.unlink()
    with pytest.raises(PictureError, match=f"{drawn.name}: cannot be read"):
        replay(size=4).load(folder)


def test_a_restored_buffer_gives_the_same_next_batch(tmp_path: Path, vlm: VLM) -> None:
    buffer = replay(size=6)
    signals = played(vlm)
    for step in range(3):
        renamed = [
            dataclasses.replace(one, rollout=dataclasses.replace(one.rollout, group_id=f"main/{step}/{one.rollout.group_id[-1]}"))
            for one in signals
        ]
        buffer.merge(renamed, step)
    buffer.save(tmp_path)
    restored = replay(size=6)
    restored.load(tmp_path)
    assert restored.held == buffer.held
    idle = [signal(0.0, index, "main/3/0") for index in range(4)]
    random.seed(1)  # nothing may hang on the process's own random numbers
    ours = buffer.merge(idle, 3)
    random.seed(2)
    theirs = restored.merge(idle, 3)
    assert theirs == ours
    assert restored.held == buffer.held
    assert restored.metrics() == buffer.metrics()
    streams = {"grpo": Grpo(GrpoSignal(kind="grpo")).streams()[0]}
    for a, b in zip(*(make_batches(one, streams, vlm.renderer, 10_000) for one in (ours, theirs)), strict=True):
        assert torch.equal(a.targets_R, b.targets_R)
        assert torch.equal(a.rl[0].old_logprobs_R, b.rl[0].old_logprobs_R)
        assert torch.equal(a.rl[0].advantages_R, b.rl[0].advantages_R)


# ---------------------------------------------------------------- runs


class Killed(BaseException):
    """Stands for a kill that leaves no time for anything."""


def logged(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows if "loss/total" in row]


SMALL = [
    "steps=6",
    "prompts=4",
    "threads=1",
    "loggers=[]",
    "checkpoint.every=2",
    "eval.every=1",
    "replay.size=10",
    "replay.max_age=3",
]


@pytest.mark.parametrize("form", ["fill", "redraw"])
def test_a_killed_and_resumed_run_with_replay_logs_the_same_numbers(form: str, tmp_path: Path) -> None:
    config = load_recipe("tiny/ssr", [*SMALL, f"replay.form={form}"])
    waiting = [1, 3, 5]

    def evaluate(_: VLM, step: int, whole: bool) -> dict[str, Any]:
        if step in waiting:
            waiting.remove(step)
            raise Killed
        return {"step": step, "whole": whole, "views": {"full": {"accuracy": 0.5, "right": [1], "ci95": [0, 1], "n": 1}}}

    for _ in range(3):
        with pytest.raises(Killed):
            train(config, tmp_path / "killed", evaluate)
    train(config, tmp_path / "killed", evaluate)
    train(config, tmp_path / "whole", evaluate)
    rows = logged(tmp_path / "whole")
    assert logged(tmp_path / "killed") == rows
    assert len(rows) == 6
    assert sum(row["replay/replayed"] for row in rows) > 0
    assert any(abs(row["loss/grpo/ratio"] - 1) > 1e-3 for row in rows[1:]), "replayed rollouts are off-policy"
    if form == "redraw":
        return
    waiting.append(5)
    with pytest.raises(Killed):
        train(config, tmp_path / "other", evaluate)
    path = checkpoint.folder_of(tmp_path / "other", 4) / "trainer" / "replay" / "buffer.jsonl"
    path.write_text("")
    train(config, tmp_path / "other", evaluate)
    assert logged(tmp_path / "other")[-1] != rows[-1], "a run that has lost its buffer is seen"


@pytest.mark.parametrize(
    ("recipe", "overrides", "match"),
    [
        ("tiny/opsd", ["replay={kind: ssr}"], "it replays what grpo learns from"),
        ("tiny/ssr", ["signals.0.kl=k1", "signals.0.kl_weight=0.01"], "no rollout is without one; use k2 or k3"),
        ("tiny/ssr", ["signals.0.kl=k3", "signals.0.kl_weight=0.01", "teacher.weights=ema"], "reference moves on"),
        ("tiny/ssr", ["replay.size=0"], "greater than or equal to 1"),
    ],
)
def test_replays_that_make_no_sense_are_refused(recipe: str, overrides: list[str], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        load_recipe(recipe, overrides)
