"""Views: what each preset shows, in which order, and what it says when a sample lacks something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from foveate.datasets.presets import PRESETS
from foveate.datasets.spec import load_data
from foveate.datasets.views import RED_BOX_HINT, ViewSpec, make_view, resolve_view
from foveate.vlm.images import Picture
from foveate.vlm.messages import Clip
from foveate.vlm.records import Privileged, Sample

GIVEN = Picture.of(np.full((6, 6, 3), 9, np.uint8))


def gradient(width: int = 200, height: int = 100) -> Picture:
    """Pixel (x, y) is (x, y, 7): a crop tells where it was cut."""
    y, x = np.mgrid[:height, :width]
    return Picture.of(np.stack([x, y, np.full_like(x, 7)], axis=2).astype(np.uint8))


def sample(**changes: Any) -> Sample:
    secret = Privileged(boxes_px_xyxy=((40, 20, 80, 40),), rationale="It is a hat.")
    return replace(Sample(id="s1", question="What?", answer="hat", images=(gradient(),), privileged=secret), **changes)


def test_full_is_the_picture_and_the_question() -> None:
    view = make_view(sample(), resolve_view("full"), "student")
    assert [message.role for message in view.messages] == ["user"]
    assert view.messages[0].parts == (gradient(), "What?")
    assert (view.name, view.role) == ("full", "student")


def test_crop_is_the_box_with_a_quarter_of_its_size_around_it() -> None:
    (crop,) = make_view(sample(), resolve_view("crop"), "teacher").pictures
    pixels = np.asarray(crop.rgb())
    assert crop.size_px == (60, 30)  # 40 x 20, times 1.5
    assert pixels[0, 0].tolist() == [30, 15, 7]
    assert pixels[-1, -1].tolist() == [89, 44, 7]


def test_two_boxes_give_two_crops_or_their_union() -> None:
    two = sample(privileged=Privileged(boxes_px_xyxy=((0, 0, 10, 10), (100, 50, 120, 60))))
    exact = {"image": "replace_by_crop"}
    assert [crop.size_px for crop in make_view(two, resolve_view(exact), "teacher").pictures] == [(10, 10), (20, 10)]
    union = make_view(two, resolve_view({**exact, "crop": {"union": True}}), "teacher").pictures
    assert [crop.size_px for crop in union] == [(120, 60)]


def test_vision_opd_draws_a_red_frame_for_the_student_and_cuts_it_for_the_teacher() -> None:
    student = make_view(sample(), resolve_view("vision_opd.student"), "student")
    teacher = make_view(sample(), resolve_view("vision_opd.teacher"), "teacher")
    assert student.messages[0].text == teacher.messages[0].text == f"What? {RED_BOX_HINT}"
    pixels = np.asarray(student.pictures[0].rgb())
    red = (pixels == (255, 0, 0)).all(axis=2)
    # 5 % of 40 x 20 is 2 and 1 px: the frame runs from (38, 19) to (82, 41), five pixels wide, inwards.
    assert np.argwhere(red).min(axis=0).tolist() == [19, 38]
    assert np.argwhere(red).max(axis=0).tolist() == [40, 81]
    assert red.sum() == 44 * 22 - 34 * 12
    assert np.array_equal(pixels[~red], np.asarray(gradient().rgb())[~red])
    crop = teacher.pictures[0]
    assert crop.size_px == (88, 44)  # the drawn box, twice as large
    assert np.asarray(crop.rgb())[2, 40].tolist()[0] > 240  # the frame is seen in it
    clean = make_view(sample(), resolve_view("vision_opd.teacher_clean"), "teacher").pictures[0]
    assert clean.size_px == (80, 40)
    assert np.asarray(clean.rgb())[0, 0, 0] < 60


def test_hint_is_removed_for_the_variant_without_it() -> None:
    told = sample(question=f"What? {RED_BOX_HINT}\nA. hat")
    view = make_view(told, resolve_view("vision_opd.student_no_hint"), "student")
    assert view.messages[0].text == "What?\nA. hat"


def test_imagine_opd_teacher_has_the_crop_behind_the_question_and_the_answer_last() -> None:
    student = make_view(sample(), resolve_view("imagine_opd.student"), "student")
    teacher = make_view(sample(), resolve_view("imagine_opd.teacher"), "teacher")
    assert [message.role for message in teacher.messages] == ["system", "user"]
    assert teacher.messages[0].text.startswith(student.messages[0].text)
    original, question, crop, answer = teacher.messages[1].parts
    assert (original, question, answer) == (gradient(), "What?", "Ground-truth answer: hat")
    assert isinstance(crop, Picture)
    assert crop.size_px == (60, 30)
    assert student.messages[1].parts == (gradient(), "What?")
    for name in ("imagine_opd.student", "imagine_opd.teacher"):
        assert "<answer>" in PRESETS[name].system


def test_controls_of_imagine_opd() -> None:
    crops_only = make_view(sample(), resolve_view("imagine_opd.teacher_crops_only"), "teacher")
    assert (len(crops_only.pictures), crops_only.messages[1].text) == (2, "What?")
    answer_only = make_view(sample(), resolve_view("imagine_opd.teacher_answer_only"), "teacher")
    assert (len(answer_only.pictures), answer_only.messages[1].text) == (1, "What?\nGround-truth answer: hat")
    same = resolve_view({"preset": "imagine_opd.teacher", "answer": ""})
    assert make_view(sample(), same, "teacher").messages == crops_only.messages


def test_opsd_context_coordinates_blank_and_degraded() -> None:
    assert "hat" in make_view(sample(), resolve_view("opsd.teacher"), "teacher").messages[0].text
    assert make_view(sample(), resolve_view("given.context"), "teacher").messages[0].text == "What?\nIt is a hat."
    for unit, told in (("px", "[40, 20, 80, 40]"), ("k1000", "[200, 200, 400, 400]"), ("frac", "[0.200, 0.200, 0.400, 0.400]")):
        assert make_view(sample(), resolve_view({"coordinates": unit}), "teacher").messages[0].text == f"What?\nLook at: {told}"
    blank = make_view(sample(), resolve_view("blank"), "student").pictures[0]
    assert blank.size_px == (200, 100)
    assert np.unique(np.asarray(blank.rgb())).tolist() == [127]
    assert make_view(sample(), resolve_view("degraded"), "student").pictures[0].size_px == (50, 25)


def test_tiny_presets_say_the_words_that_the_model_knows() -> None:
    made = load_data({"synth": "detail", "n": 1})[0]
    assert make_view(made, resolve_view("tiny.full"), "student").messages[0].parts == (made.images[0], made.question)
    assert make_view(made, resolve_view("tiny.tools"), "student").messages[0].text == "Zoom with image_zoom_in_tool."
    assert make_view(made, resolve_view("tiny.imagine"), "student").messages[0].text == "Imagine zooming in, then answer."
    teacher = make_view(made, resolve_view("tiny.imagine_teacher"), "teacher")
    assert (len(teacher.pictures), teacher.messages[0].text) == (2, "Imagine zooming in, then answer.")
    assert teacher.messages[1].text.endswith(f"Ground-truth answer: {made.answer}")


def test_crops_that_came_with_the_data_are_preferred_unless_told() -> None:
    both = sample(privileged=Privileged(boxes_px_xyxy=((40, 20, 80, 40),), crops=(GIVEN,)))
    assert make_view(both, resolve_view("crop"), "teacher").pictures == (GIVEN,)
    cut = make_view(both, resolve_view({"preset": "crop", "crop": {"source": "boxes"}}), "teacher")
    assert cut.pictures[0].size_px == (60, 30)


def test_placeholders_keep_their_place_and_only_the_boxed_picture_gives_way() -> None:
    other = Picture.of(np.zeros((5, 5, 3), np.uint8))
    two = sample(
        images=(other, gradient()),
        question="First <image> then <image>: same?",
        privileged=Privileged(boxes_px_xyxy=((0, 0, 9, 9),), box_image=1),
    )
    parts = make_view(two, resolve_view({"image": "replace_by_crop"}), "teacher").messages[0].parts
    assert [part if isinstance(part, str) else part.size_px for part in parts] == ["First ", (5, 5), " then ", (9, 9), ": same?"]
    three_crops = replace(two, privileged=replace(two.privileged, boxes_px_xyxy=((0, 0, 9, 9), (0, 0, 8, 8), (0, 0, 7, 7))))
    parts = make_view(three_crops, resolve_view({"image": "replace_by_crop"}), "teacher").messages[0].parts
    assert [part if isinstance(part, str) else part.size_px for part in parts] == [
        "First ",
        (5, 5),
        " then ",
        (9, 9),
        (8, 8),
        (7, 7),
        ": same?",
    ]


def test_options_prefix_suffix_and_system() -> None:
    choice = sample(options=("cap", "hat"), system="Own.")
    view = make_view(choice, resolve_view({"prefix": "Q: ", "suffix": " End.", "hint": "Look."}), "student")
    assert view.messages[0].text == "Own."
    assert view.messages[1].text == "Q: What? Look.\nA. cap\nB. hat End."
    assert [
        message.role for message in make_view(choice, resolve_view({"system": "none", "options": False}), "student").messages
    ] == ["user"]


def test_every_pair_of_presets_resolves_and_round_trips() -> None:
    for name, spec in PRESETS.items():
        assert resolve_view(name) is spec
        assert resolve_view(spec.model_dump(mode="json")) == spec
        assert spec.name == name


@pytest.mark.parametrize(
    ("view", "changes", "message"),
    [
        ("crop", {"privileged": Privileged()}, "s1.*neither crops nor boxes"),
        ("given.teacher_images", {}, "s1.*crops.*none"),
        ("vision_opd.student", {"privileged": Privileged()}, "s1.*boxes"),
        ("vision_opd.student", {"images": ()}, "s1.*has none"),
        ("opsd.teacher", {"answer": None}, "s1.*answer"),
        ("given.context", {"privileged": Privileged()}, "s1.*rationale"),
        ("given.teacher", {}, "s1.*teacher_prompt"),
        ("coordinates", {"privileged": Privileged()}, "s1.*boxes"),
        ("crop", {"privileged": Privileged(boxes_px_xyxy=((0, 0, 5, 5),), box_image=3)}, "s1.*picture 3"),
        ("crop", {"privileged": Privileged(boxes_px_xyxy=((300, 0, 400, 50),))}, "s1.*inside the picture"),
        ("full", {"question": "<image> <image>"}, "s1.*2 <image>"),
        ("full", {"question": "", "images": ()}, "s1.*empty"),
        ("crop", {"images": (), "video": Clip((GIVEN,), (0.0,))}, "s1.*video"),
    ],
)
def test_a_sample_that_lacks_something_is_named(view: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_view(sample(**changes), resolve_view(view), "teacher")


def test_views_that_make_no_sense_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"did you mean vision_opd\.student"):
        resolve_view("vision_opd.studnet")
    with pytest.raises(ValueError, match="exclude each other"):
        ViewSpec(image=("replace_by_crop", "append_crops"))
    with pytest.raises(ValueError, match=r"lacks \{answer\}"):
        ViewSpec(answer="the answer")
    with pytest.raises(ValueError, match="hnit"):
        resolve_view({"preset": "full", "hnit": "x"})
    with pytest.raises(ValueError, match="preset's name"):
        resolve_view(3)  # type: ignore[arg-type]
