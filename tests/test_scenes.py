"""Synthetic worlds: the same seed gives the same scene, splits never meet, and every answer is right and the only one."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from foveate.datasets.scene_questions import KINDS, imagination, questions, zoom_call
from foveate.datasets.scenes import COLOURS, LETTERS, SPLITS, WORLDS, iter_samples, samples, scene, scene_of, split_seeds


@pytest.mark.parametrize("world", list(WORLDS))
def test_a_scene_is_a_function_of_world_and_seed(world: str) -> None:
    first, again, other = scene(world, 7), scene(world, 7), scene(world, 8)
    assert first == again
    assert np.array_equal(first.draw(), again.draw())
    assert first != other
    assert not np.array_equal(first.draw(), other.draw())
    assert scene("place", 7).objects != scene("place_dense", 7).objects


def test_splits_and_streams_never_share_a_scene() -> None:
    ranges = [split_seeds(split, seed) for split in SPLITS for seed in (0, 1, 999_999)]
    ordered = sorted(ranges, key=lambda seeds: seeds.start)
    assert all(left.stop <= right.start for left, right in itertools.pairwise(ordered))
    drawn = {split: {sample.tags["scene"] for sample in samples("detail", split, 50)} for split in SPLITS}
    assert not drawn["train"] & drawn["dev"]
    assert not drawn["train"] & drawn["test"]
    assert not drawn["dev"] & drawn["test"]


def test_ids_are_unique_and_stable_and_a_shorter_list_is_a_prefix() -> None:
    many = samples("place", "train", 60, kinds=KINDS, questions_per_scene=3)
    assert len({sample.id for sample in many}) == 60
    assert samples("place", "train", 20, kinds=KINDS, questions_per_scene=3) == many[:20]
    first = samples("place", "dev", 20)[0].id
    assert first.startswith("place-dev-1000000000000-letter-")
    assert first == samples("place", "dev", 1)[0].id


def test_evidence_box_surrounds_the_object_at_any_resolution() -> None:
    for world in WORLDS:
        made = scene(world, 3)
        for side in (made.world.canvas_px, 480):
            pixels = made.draw(side).astype(int)
            for item in made.objects:
                x1, y1, x2, y2 = item.box_px_xyxy(side)
                assert 0 <= x1 < x2 <= side
                assert 0 <= y1 < y2 <= side
                inside = np.zeros((side, side), bool)
                inside[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = True
                near = np.abs(pixels - np.array(COLOURS[item.colour])).max(-1) < 12 + 2 * made.world.noise_sd
                assert (near & inside).sum() > 0.2 * (x2 - x1) * (y2 - y1)


def test_letter_is_ink_in_the_middle_of_its_shape() -> None:
    made = scene("detail", 5)
    pixels = made.draw()
    for item in made.objects:
        x, y = round(item.x_frac * 128), round(item.y_frac * 128)
        patch = pixels[y - 8 : y + 10, x - 6 : x + 6].max(-1)
        assert (patch < 30).sum() > 25, item


@pytest.mark.parametrize("world", list(WORLDS))
def test_zoom_box_holds_the_letter_and_lies_on_the_coarse_grid(world: str) -> None:
    for seed in range(100):
        made = scene(world, seed)
        window = made.world.zoom_window_k1000
        width, height = (1000 * side / made.world.canvas_px for side in made.world.glyph_px)
        for item in made.objects:
            x1, y1, x2, y2 = item.zoom_box_k1000(window)
            assert all(0 <= value <= 1000 and value % 100 == 0 for value in (x1, y1, x2, y2))
            assert (x2 - x1, y2 - y1) == (window, window)
            lower = 150 * item.side_frac if item.shape == "triangle" else 0
            x, y = 1000 * item.x_frac, 1000 * item.y_frac + lower
            assert x1 <= x - width / 2 < x + width / 2 <= x2, (item, x1)
            assert y1 <= y - height / 2 < y + height / 2 <= y2, (item, y1)


def _facts(text: str) -> list[tuple[str, str, str, str]]:
    return re.findall(r"(\w+) (\w+) at ([a-z ]+) shows (\w)", text)


def _solve(question: str, facts: list[tuple[str, str, str, str]]) -> set[str]:
    """Every answer that the scene in words allows."""
    patterns = (
        (r"Where is the (\w+) (\w+)\?", lambda c, s: {f[2] for f in facts if f[:2] == (c, s)}),
        (r"What shape is the (\w+) object\?", lambda c: {f[1] for f in facts if f[0] == c}),
        (r"How many (\w+)s are there\?", lambda s: {str(sum(f[1] == s for f in facts))}),
        (r"What letter is on the (\w+) (\w+)\?", lambda c, s: {f[3] for f in facts if f[:2] == (c, s)}),
        (r"What colour is the (\w+) that shows (\w)\?", lambda s, k: {f[0] for f in facts if (f[1], f[3]) == (s, k)}),
        (
            r"Do the (\w+) \w+ and the (\w+) \w+ show the same letter\?",
            lambda a, b: {"yes" if len({f[3] for f in facts if f[0] in (a, b)}) == 1 else "no"},
        ),
        (
            r"Which letter is earlier, that on the (\w+) \w+ or that on the (\w+) \w+\?",
            lambda a, b: {sorted(f[3] for f in facts if f[0] in (a, b))[0]},
        ),
    )
    for pattern, answers in patterns:
        match = re.fullmatch(pattern, question)
        if match:
            return answers(*match.groups())
    raise AssertionError(question)


def test_answers_follow_from_the_scene_in_words_and_are_unique() -> None:
    kinds = tuple(kind for kind in KINDS if kind != "hop")
    made = samples("place_dense", "test", 300, kinds=kinds, questions_per_scene=7, as_text=True)
    for sample in made:
        words, question = sample.question.split(". ", 1)
        assert _solve(question, _facts(words)) == {sample.answer}, sample
        assert not sample.images
        assert not sample.privileged.boxes_px_xyxy
    assert {sample.kind for sample in made} == set(kinds)


def test_hop_names_the_neighbour() -> None:
    steps = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
    for seed in range(60):
        made = scene("detail", seed)
        for question in questions(made, ("hop",), 4):
            pattern = r"What letter is on the shape (left of|right of|above|below) the (\w+) \w+\?"
            words, colour = re.fullmatch(pattern, question.text).groups()
            start = next(item for item in made.objects if item.colour == colour)
            target = made.objects[question.targets[0]]
            assert (target.row - start.row, target.column - start.column) == steps[words]
            assert target.letter == question.answer


def test_compare_is_balanced() -> None:
    answers = [sample.answer for sample in samples("place", "train", 200, kinds=("compare",))]
    assert 0.3 < answers.count("yes") / 200 < 0.65


def test_scene_of_a_sample_and_the_taught_texts() -> None:
    sample = samples("place", "dev", 1)[0]
    made = scene_of(sample)
    assert np.array_equal(np.asarray(sample.images[0].rgb()), made.draw())
    item = made.objects[int(sample.tags["target"])]
    assert item.letter == sample.answer
    assert sample.privileged.boxes_px_xyxy == (item.box_px_xyxy(400),)
    told = f"I zoom in on the {item.name} at {item.place}. It shows {item.letter}. <answer>{item.letter}</answer>"
    assert imagination(item) == told
    call = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [300, 400, 500, 600]}}\n</tool_call>'
    assert zoom_call((300, 400, 500, 600)) == call


def test_letters_and_colours_are_uniform() -> None:
    letters = [sample.answer for sample in samples("detail", "train", 1000, as_text=True)]
    assert set(letters) == set(LETTERS)
    assert max(letters.count(letter) for letter in LETTERS) < 150


def test_mistakes_are_named() -> None:
    for call in (lambda: scene("desk", 1), lambda: samples("detail", "valid", 1), lambda: scene("detail", 1, num_objects=9)):
        with pytest.raises(ValueError, match=r"expected|fit"):
            call()
    with pytest.raises(ValueError, match="question kinds"):
        next(iter_samples("detail", "train", kinds=("colours",)))


def test_samples_on_demand_are_those_of_the_list() -> None:
    from foveate.datasets.scene_stream import SceneSamples, scene_samples
    from foveate.datasets.scenes import samples

    for kinds, per_scene in ((("letter",), 2), (("letter", "where"), 3)):
        lazy = scene_samples("detail", "dev", 11, seed=3, kinds=kinds, questions_per_scene=per_scene)
        assert isinstance(lazy, SceneSamples)
        assert list(lazy) == samples("detail", "dev", 11, seed=3, kinds=kinds, questions_per_scene=per_scene)
        assert lazy[-1] == lazy[10]
        assert lazy[2:4] == [lazy[2], lazy[3]]
    # how many questions of this kind a scene allows is not known beforehand
    assert not isinstance(scene_samples("detail", "dev", 4, kinds=("hop",)), SceneSamples)
