"""Scripted experts: their texts by hand, their calls carried out by the real tools, and the tiny model's own text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from foveate.datasets.experts import ExpertSpec, ExpertTrajectories, expert
from foveate.datasets.scene_questions import TOOLS_SYSTEM
from foveate.datasets.scenes import Scene, samples, scene, scene_of
from foveate.datasets.trajectories import Trajectory
from foveate.datasets.views import ViewSpec, make_view
from foveate.train.rejection import reflective
from foveate.train.script import play_script
from foveate.train.tiny_data import Maker
from foveate.visual_tools import boxes
from foveate.visual_tools.dialects.registry import dialect
from foveate.visual_tools.spec import ToolsSpec, build_toolbox
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, load
from foveate.vlm.records import Rollout, Sample, StopReason

HERMES = dialect("hermes")
VIEW = ViewSpec(system=TOOLS_SYSTEM)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load("tiny")


def play(vlm: VLM, made: Trajectory, spec: ToolsSpec | None = None) -> Rollout:
    toolbox = build_toolbox(spec or ToolsSpec(), "norm1000")
    return play_script(made, make_view(made.sample, VIEW, "student"), toolbox, vlm.renderer)


def some(world: str, n: int, kind: str = "letter") -> list[Sample]:
    return samples(world, "dev", n, kinds=(kind,))


def asked(sample: Sample) -> list[int]:
    return [int(index) for index in sample.tags["target"].split(",") if index]


def numbers(text: str) -> list[float]:
    found = re.search(r"\[([0-9., ]+)\]", text)
    assert found is not None
    return [float(value) for value in found[1].split(",")]


# --- against what the tiny model was taught -----------------------------------------------------------------------------------


def test_the_scripted_zoom_is_what_the_tiny_model_was_taught(vlm: VLM) -> None:
    """Not one character differs, prompt and observation included."""
    rows = [row for row in Maker(0, 5_000_000).two_turn(8, per_scene=2) if "<tool_response>\n" not in row.reply]
    drawn = [one for seed in range(5_000_000, 5_000_008) for one in scene("place", seed).samples(("letter",), 2)]
    asked_of = {one.question + one.id.split("-")[1]: one for one in drawn}
    found = 0
    for one in asked_of.values():
        rollout = play(vlm, expert(one, HERMES))
        rendered = vlm.renderer.render(rollout.view, rollout.turns)
        whole = vlm.tokenizer.decode(rendered.whole.ids_T)
        text = re.sub(r"(<\|image_pad\|>)+", "<|image_pad|>", str(whole))
        found += any(row.prompt + row.reply == text for row in rows)
    assert found == len(rows) > 4


def test_every_scripted_zoom_is_carried_out(vlm: VLM) -> None:
    for world in ("place", "place_dense", "detail"):
        for sample in some(world, 20):
            one = play(vlm, expert(sample, HERMES))
            assert [turn.stop for turn in one.turns] == [StopReason.TOOL_CALL, StopReason.ANSWERED]
            (call,) = one.calls
            assert (call.name, call.error, call.image) == ("zoom", None, 0)
            (target,) = asked(sample)
            made = scene_of(sample)
            window = made.objects[target].zoom_box_k1000(made.world.zoom_window_k1000)
            size = sample.images[0].size_px
            wanted = boxes.round_out(boxes.to_px(tuple(map(float, window)), "norm1000", size), size)  # type: ignore[arg-type]
            assert call.box_px_xyxy == wanted
            assert one.turns[0].observation is not None
            assert one.turns[0].observation.pictures == (Picture.of(sample.images[0].rgb().crop(wanted)),)
            assert one.text == f"<answer>{sample.answer}</answer>"


# --- what is looked at --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "num_looks"), [("letter", 1), ("colour", 1), ("hop", 1), ("compare", 2), ("where", 0), ("shape", 0), ("count", 0)]
)
def test_it_looks_only_where_it_has_to(kind: str, num_looks: int) -> None:
    for sample in some("place", 6, kind):
        made = expert(sample, HERMES)
        assert len(made.actions) == num_looks + 1
        objects, window = scene_of(sample).objects, scene_of(sample).world.zoom_window_k1000
        assert [numbers(text) for text in made.actions[:-1]] == [
            list(objects[index].zoom_box_k1000(window)) for index in asked(sample)[:num_looks]
        ]
        assert made.actions[-1] == f"<answer>{sample.answer}</answer>"
        assert made.observations == (None,) * num_looks


def test_a_count_of_none_is_answered() -> None:
    made = next(
        one
        for seed in range(200)
        for one in scene("place", seed).samples(("count",), 4)
        if one.answer == "0" and one.tags["target"] == ""
    )
    said = expert(made, HERMES, ExpertSpec(think=True))
    assert said.actions == ("<think>There is none.</think>\n<answer>0</answer>",)


def test_thoughts_and_labels_by_hand() -> None:
    (sample,) = some("place", 1)
    item = scene_of(sample).objects[asked(sample)[0]]
    said = expert(sample, HERMES, ExpertSpec(think=True, label=True))
    assert said.actions[0].startswith(f"<think>I zoom in on the {item.name} at {item.place}.</think>\n<tool_call>")
    assert f'"label": "{item.name}"' in said.actions[0]
    assert said.actions[1] == f"<think>The {item.name} shows {item.letter}.</think>\n<answer>{item.letter}</answer>"


@pytest.mark.parametrize(
    ("coords", "unit"), [("norm1000", (1000, 1000)), ("norm1", (1, 1)), ("abs_original", (400, 400)), ("abs_resized", (64, 64))]
)
def test_boxes_in_every_convention(coords: boxes.Coords, unit: tuple[int, int]) -> None:
    (sample,) = some("place", 1)
    item = scene_of(sample).objects[asked(sample)[0]]
    told = numbers(expert(sample, HERMES, None, coords, lambda picture: (64, 64)).actions[0])
    exact = [value / 1000 * unit[0] for value in item.zoom_box_k1000(200)]
    assert told == ([round(value, 3) for value in exact] if coords == "norm1" else [round(value) for value in exact])
    if coords == "abs_resized":
        with pytest.raises(ValueError, match="the size that the model saw is needed"):
            expert(sample, HERMES, None, coords)


# --- noise --------------------------------------------------------------------------------------------------------------------


def windows(made: Scene) -> list[list[float]]:
    return [[float(value) for value in item.zoom_box_k1000(made.world.zoom_window_k1000)] for item in made.objects]


def test_jitter_moves_a_box_by_at_most_its_share_and_keeps_it_inside() -> None:
    moved = 0
    for sample in some("place", 40):
        exact = windows(scene_of(sample))[asked(sample)[0]]
        told = numbers(expert(sample, HERMES, ExpertSpec(jitter_frac=0.25)).actions[0])
        assert all(abs(a - b) <= 51 for a, b in zip(told, exact, strict=True))  # a quarter of 200, and rounding
        assert all(0 <= value <= 1000 for value in told)
        assert abs((told[2] - told[0]) - 200) <= 1
        moved += told != exact
    assert moved > 30


def test_wrong_first_is_corrected_and_reflective(vlm: VLM) -> None:
    spec = ExpertSpec(wrong_first_frac=1.0, label=True, think=True)
    plain = ExpertSpec(label=True)
    for sample in some("place", 12):
        made, (target,) = scene_of(sample), asked(sample)
        item = made.objects[target]
        said = expert(sample, HERMES, spec)
        first, second, answer = said.actions
        assert numbers(second) == windows(made)[target] != numbers(first)
        wrong = made.objects[windows(made).index(numbers(first))]
        assert second.startswith(f"<think>That is the {wrong.name}. I zoom in on the {item.name} at {item.place}.</think>")
        assert answer.endswith(f"<answer>{item.letter}</answer>")
        x1, y1, x2, y2 = numbers(first)
        assert not (x1 <= item.x_frac * 1000 <= x2 and y1 <= item.y_frac * 1000 <= y2), "the wrong look does not show it"
        one = play(vlm, said)
        assert reflective(one)
        assert not reflective(play(vlm, expert(sample, HERMES, plain)))


def test_the_share_of_wrong_looks() -> None:
    drawn = some("place", 300)
    spec = ExpertSpec(wrong_first_frac=0.3)
    made = list(ExpertTrajectories(drawn, HERMES, spec))
    wrong = sum(len(one.actions) == 3 for one in made)
    assert 60 < wrong < 120
    assert made == list(ExpertTrajectories(drawn, HERMES, spec)), "the same every time"
    assert made != list(ExpertTrajectories(drawn, HERMES, ExpertSpec(wrong_first_frac=0.3, seed=1)))
    assert ExpertTrajectories(drawn, HERMES, spec)[2:4] == made[2:4]
    assert len(ExpertTrajectories(drawn, HERMES)) == 300


def test_thought_dropout_empties_all_thoughts_of_a_sample() -> None:
    made = list(ExpertTrajectories(some("place", 200), HERMES, ExpertSpec(think=True, thought_dropout=0.5)))
    empty = [one for one in made if "<think>\n\n</think>" in one.actions[0]]
    assert 70 < len(empty) < 130
    assert all(one.actions[-1].startswith("<think>\n\n</think>") for one in empty)
    assert all("<think>\n\n" not in text for one in made if one not in empty for text in one.actions)


# --- other dialects -----------------------------------------------------------------------------------------------------------

CALLING = ("hermes", "qwen3_vl", "qwen3_coder", "mini_o3", "pixel_reasoner", "openthinkimg")


@pytest.mark.parametrize("name", CALLING)
def test_a_zoom_in_every_dialect_is_carried_out(vlm: VLM, name: str) -> None:
    spoken = dialect(name)
    for sample in some("place", 4):
        made = expert(sample, spoken, ExpertSpec(think=True), "norm1000")
        one = play(vlm, made, ToolsSpec(dialect=name))
        (call,) = one.calls
        window = windows(scene_of(sample))[asked(sample)[0]]
        padding_px = 8 if name == "pixel_reasoner" else 0  # a tenth of the window's 80 px on each side, as that dialect has it
        padded = [value * 0.4 + sign * padding_px for value, sign in zip(window, (-1, -1, 1, 1), strict=True)]
        assert call.box_px_xyxy == tuple(round(min(max(value, 0), 400)) for value in padded)
        assert one.stop is StopReason.ANSWERED
        assert sample.answer in one.text


def test_vilasr_draws_a_box_and_answers(vlm: VLM) -> None:
    spec, tools = ExpertSpec(kind="draw", think=True), ToolsSpec(dialect="vilasr", tools=["draw_box"])
    for sample in some("detail", 6):
        item = scene_of(sample).objects[asked(sample)[0]]
        one = play(vlm, expert(sample, dialect("vilasr"), spec), tools)
        (call,) = one.calls
        assert (call.name, call.error) == ("draw_box", None)
        assert f'"label":"{item.name}"' in call.arguments
        box = [float(value) for value in item.box_px_xyxy(1000)]
        assert numbers(one.turns[0].text) == pytest.approx(box, abs=0.5)
        assert one.turns[0].observation is not None
        assert len(one.turns[0].observation.pictures) == 1
        assert f"<answer>{item.letter}</answer>" in one.text
        again = play(vlm, expert(sample, dialect("vilasr"), ExpertSpec(kind="draw", wrong_first_frac=1.0)), tools)
        assert reflective(again)
        assert not reflective(one)


def test_grit_points_in_its_thought_and_calls_nothing(vlm: VLM) -> None:
    spoken = dialect("grit")
    for sample in some("detail", 6):
        item = scene_of(sample).objects[asked(sample)[0]]
        made = expert(sample, spoken, ExpertSpec(kind="boxes"))
        (text,) = made.actions
        (box,) = spoken.read(text).boxes
        assert box.label == item.name
        assert list(box.box) == pytest.approx(item.box_px_xyxy(1000), abs=0.5)
        assert text.startswith(f"<think>I look at the {item.name} at {item.place}: {{")
        assert text.endswith(f"</think><rethink>The {item.name} shows {item.letter}.</rethink><answer>{item.letter}</answer>")
        assert play_script(made, make_view(sample, VIEW, "student"), None, vlm.renderer).stop is StopReason.ANSWERED
    (silent,) = expert(sample, spoken, ExpertSpec(kind="boxes", thought_dropout=1.0)).actions
    assert silent == f"<think>\n\n</think><rethink>\n\n</rethink><answer>{sample.answer}</answer>"
    (tagged,) = expert(sample, dialect("treevgr"), ExpertSpec(kind="boxes")).actions
    assert len(dialect("treevgr").read(tagged).boxes) == 1


# --- refusals -----------------------------------------------------------------------------------------------------------------


def test_what_an_expert_cannot_do() -> None:
    (placed,), (detail,) = some("place", 1), some("detail", 1)
    (told,) = samples("place", "dev", 1, as_text=True)
    with pytest.raises(ValueError, match="an expert needs a picture"):
        expert(told, HERMES)
    with pytest.raises(ValueError, match="is no synthetic world"):
        expert(Sample(id="a", question="q", answer="K", images=placed.images), HERMES)
    for spec in (ExpertSpec(kind="draw"), ExpertSpec(kind="boxes")):
        with pytest.raises(ValueError, match="cannot be read without a zoom; use kind zoom, or the world detail"):
            expert(placed, HERMES, spec)
    with pytest.raises(ValueError, match="use grit or treevgr"):
        expert(detail, HERMES, ExpertSpec(kind="boxes"))
    with pytest.raises(ValueError, match="cannot write the tool 'zoom'"):
        expert(detail, dialect("vilasr"))
    (where,) = some("place", 1, "where")
    assert len(expert(where, HERMES, ExpertSpec(kind="draw")).actions) == 1


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"kind": "boxes", "wrong_first_frac": 0.5}, "looked at in turn"),
        ({"thought_dropout": 0.5}, "set think: true"),
        ({"jitter": 0.5}, "jitter"),
        ({"jitter_frac": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        ExpertSpec.model_validate(given)


def test_the_experts_of_a_run_are_a_sequence() -> None:
    made: Sequence[Trajectory] = ExpertTrajectories(some("place", 3), HERMES)
    assert [one.sample.id for one in made] == [one.id for one in some("place", 3)]
    with pytest.raises(IndexError):
        made[3]
