"""The synthetic clips: nothing of the ringed shape in the shown frames, all of it in the frames between."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from foveate.datasets.leaks import find_leaks
from foveate.datasets.scenes import COLOURS, split_seeds
from foveate.datasets.spec import load_data
from foveate.datasets.video_scenes import (
    CLIP_WORLDS,
    ClipScene,
    clip_scene,
    clip_scene_of,
    video_expert_calls,
)
from foveate.datasets.views import ViewSpec, make_view
from foveate.visual_tools.dialects import registry as dialects
from foveate.visual_tools.select_frames import SelectFrames
from foveate.visual_tools.toolbox import Toolbox
from foveate.vlm.images import Picture
from foveate.vlm.messages import Clip
from foveate.vlm.records import Shown

KINDS = ("when", "colour", "letter")
CLIPS = [clip_scene("clip", seed) for seed in range(12)]


def grey(pixels_HWC: np.ndarray) -> float:
    """The background: the most common grey of a frame."""
    return float(Counter(pixels_HWC[:, :, 0].ravel().tolist()).most_common(1)[0][0])


def ringed(scene: ClipScene, pixels_HWC: np.ndarray) -> bool:
    """Whether the ring is drawn: black at the eight points of it."""
    item, side = scene.ringed, scene.canvas_px
    radius = 0.68 * item.side_frac * side
    angles = np.arange(8) * np.pi / 4
    xs, ys = item.x_frac * side + radius * np.cos(angles), item.y_frac * side + radius * np.sin(angles)
    return bool((pixels_HWC[ys.round().astype(int), xs.round().astype(int)] < 40).all())


def test_the_ringed_shape_is_there_in_its_frames_and_the_background_dark_from_then_on() -> None:
    for scene in CLIPS:
        frames = [scene.draw(number) for number in range(64)]
        assert [number for number in range(64) if ringed(scene, frames[number])] == list(scene.event)
        backgrounds = [grey(frame) for frame in frames]
        start = scene.event.start
        assert set(backgrounds[:start]) == {backgrounds[0]}
        assert set(backgrounds[start:]) == {backgrounds[0] - 80}


def test_the_shown_frames_hold_nothing_of_it_and_eight_hidden_ones_lie_around_it() -> None:
    assert CLIP_WORLDS["clip"].shown == (0, 9, 18, 27, 36, 45, 54, 63)
    for scene in CLIPS:
        (sample,) = scene.samples()
        assert sample.video is not None
        assert sample.video.times_s == (0.0, 9.0, 18.0, 27.0, 36.0, 45.0, 54.0, 63.0)
        assert not any(ringed(scene, np.asarray(frame.rgb())) for frame in sample.video.frames)
        assert len(scene.hidden) == 8
        assert set(scene.event) <= set(scene.hidden)
        assert not set(scene.hidden) & set(scene.world.shown)


def test_every_moment_between_shown_frames_is_as_likely_as_any_other() -> None:
    starts = Counter(clip_scene("clip", seed).event.start for seed in range(4900))
    assert set(starts) == {start for start in range(63) if start % 9 not in (0, 8)}  # 7 moments in each of 7 gaps
    assert max(abs(count - 100) for count in starts.values()) < 45  # 4.5 standard deviations of 10


def test_the_evidence_is_the_shape_and_its_letter() -> None:
    for scene in CLIPS:
        (sample,) = scene.samples(("letter",))
        x1, y1, x2, y2 = (round(value) for value in sample.privileged.boxes_px_xyxy[0])
        before, during = (scene.draw(number).astype(int) for number in (scene.event.start + 2, scene.event.start))
        inside = during[y1:y2, x1:x2]
        colour = np.abs(inside - COLOURS[scene.ringed.colour]).max(axis=2) < 4
        assert colour.mean() > 0.3
        assert colour.any(axis=0).mean() > 0.85  # the shape reaches from side to side of its box
        ink = (inside == 0).all(axis=2)
        assert 0.02 < ink.mean() < 0.2
        assert before.shape == during.shape == (128, 128, 3)


def test_answers_and_tags_are_those_of_the_scene() -> None:
    scene = CLIPS[0]
    assert (scene.event, scene.hidden, scene.ringed.name, scene.ringed.letter) == (
        range(13, 15),
        range(10, 18),
        "cyan square",
        "Z",
    )
    samples = scene.samples(KINDS, 3)
    assert [(sample.kind, sample.answer) for sample in samples] == [("when", "13"), ("colour", "cyan"), ("letter", "Z")]
    assert samples[0].question == "At which second does the ringed shape appear?"
    assert samples[0].tags == {"world": "clip", "scene": "0", "start_s": "13", "end_s": "14"}
    assert samples[2].privileged.rationale == "At 13 s the ringed cyan square appears at middle and shows Z."


def test_the_expert_asks_for_the_hidden_frames_and_sees_the_answer() -> None:
    for scene in CLIPS:
        (sample,) = scene.samples()
        (call,) = video_expert_calls(sample)
        assert call.name == "select_frames"
        assert dict(call.arguments) == {"start_s": scene.hidden[0], "end_s": scene.hidden[-1], "count": 8}
        times_s = np.linspace(call.arguments["start_s"], call.arguments["end_s"], 8)
        found = scene.frames_at([float(time) for time in times_s])
        assert found.times_s == tuple(float(number) for number in scene.hidden)
        seen = [ringed(scene, np.asarray(frame.rgb())) for frame in found.frames]
        assert seen == [number in scene.event for number in scene.hidden]
    # the ends by number are shown frames, for a tool that leaves the ends of an interval out
    (numbered,) = video_expert_calls(CLIPS[0].samples()[0], numbered=True)
    assert dict(numbered.arguments) == {"start_frame": 9, "end_frame": 18, "count": 8}
    with pytest.raises(ValueError, match=r"source 'synth:clip' is no synthetic clip"):
        video_expert_calls(replace(CLIPS[0].samples()[0], video=Clip((Picture.of(CLIPS[0].draw(0)),), (0.0,))))


def test_a_clip_is_a_source_of_frames() -> None:
    scene = clip_scene("clip", 5)
    assert (scene.duration_s, scene == clip_scene("clip", 5, canvas_px=128), scene == clip_scene("clip", 6)) == (
        63.0,
        True,
        False,
    )
    assert hash(scene) == hash(clip_scene("clip", 5))
    found = scene.frames_at([30.6, 2.4, 2.5, 30.6, 99.0, -4.0])
    assert found.times_s == (31.0, 2.0, 2.0, 31.0, 63.0, 0.0)
    assert found.frames[0] == found.frames[3] == Picture.of(scene.draw(31))
    assert found.source == scene
    for times_s in ([], [float("nan")]):
        with pytest.raises(ValueError, match=r"finite seconds"):
            scene.frames_at(times_s)


def test_twice_the_canvas_is_the_same_clip_drawn_larger() -> None:
    small, large = clip_scene("clip", 2), clip_scene("clip", 2, canvas_px=256)
    (few,), (many,) = small.samples(), large.samples()
    assert many.video is not None
    assert many.video.frames[0].size_px == (256, 256)
    assert many.privileged.boxes_px_xyxy[0] == pytest.approx([2 * value for value in few.privileged.boxes_px_xyxy[0]])
    assert ringed(large, large.draw(large.event.start))
    assert clip_scene_of(many) == large


@pytest.mark.parametrize(("name", "exclude_ends"), [("hermes", False), ("frame_thinker", True)])
def test_the_expert_sees_the_hidden_frames_through_the_tool(name: str, exclude_ends: bool) -> None:
    (sample,) = CLIPS[0].samples()
    dialect = dialects.dialect(name)
    toolbox = Toolbox(dialect=dialect, tools=(SelectFrames(exclude_ends=exclude_ends),))
    assert sample.video is not None
    reply = toolbox.act(dialect.write(video_expert_calls(sample, numbered=exclude_ends)), Shown((sample.video,), ((64, 64),), 1))
    assert reply is not None
    assert reply.calls[0].times_s == (10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0)
    assert [ringed(CLIPS[0], np.asarray(picture.rgb())) for picture in reply.message.pictures] == [0, 0, 0, 1, 1, 0, 0, 0]


# ---- as data ----------------------------------------------------------------------------------------------------------------


def test_load_data_draws_on_demand_and_splits_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = ClipScene.draw

    def counting(self: ClipScene, number: int) -> np.ndarray:
        drawn.append(self.seed)
        return draw(self, number)

    monkeypatch.setattr(ClipScene, "draw", counting)
    data = {split: load_data({"synth": "clip", "n": 100_000, "kinds": KINDS, "split": split}) for split in ("train", "test")}
    assert [len(samples) for samples in data.values()] == [100_000, 100_000]
    assert drawn == []
    first = [data["train"][index] for index in range(6)]
    assert [sample.kind for sample in first] == ["when", "colour", "letter", "when", "colour", "letter"]
    assert sorted(set(drawn)) == list(range(6))
    assert len(drawn) == 48
    assert first[0].id == "clip-train-0-when"
    assert data["test"][0].tags["scene"] == str(split_seeds("test").start)
    assert [sample.answer for sample in load_data({"synth": "clip", "n": 6, "kinds": KINDS})] == [one.answer for one in first]
    both = load_data({"synth": "clip", "n": 4, "kinds": ["when", "letter"], "questions_per_scene": 2})
    assert [(sample.tags["scene"], sample.kind) for sample in both] == [
        ("0", "when"), ("0", "letter"), ("1", "when"), ("1", "letter"),
    ]  # fmt: skip
    assert load_data({"synth": "clip", "n": 1})[0].kind == "letter"


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown world 'clap'; expected one of detail, .*, clip"):
        load_data({"synth": "clap"})
    with pytest.raises(ValueError, match=r"question kinds \['where'\] about clips: expected some of when, colour, letter"):
        load_data({"synth": "clip", "kinds": ["where"]})
    with pytest.raises(ValueError, match=r"world clip: clips are not told as text"):
        load_data({"synth": "clip", "as_text": True})
    with pytest.raises(ValueError, match=r"2 questions of 1 kinds"):
        load_data({"synth": "clip", "questions_per_scene": 2})
    with pytest.raises(ValueError, match=r"unknown clip world 'detail'; expected one of clip"):
        clip_scene("detail", 0)
    crowded = replace(CLIP_WORLDS["clip"], num_shown=33)
    with pytest.raises(ValueError, match=r"an event of 2 frames does not fit between two of the 33 shown frames of 64"):
        clip_scene(crowded, 0).draw(0)


def test_the_plain_view_shows_the_clip_and_leaks_nothing() -> None:
    (sample,) = CLIPS[3].samples(("when",))
    view = make_view(sample, ViewSpec(), "student")
    assert view.visuals == (sample.video,)
    assert view.messages[0].text == sample.question
    assert find_leaks(sample, view) == []
    secret = replace(sample, video=CLIPS[3].clip([0, CLIPS[3].event.start]))
    found = find_leaks(sample, make_view(secret, ViewSpec(), "student"))
    assert [leak.where for leak in found] == ["picture 2"]
