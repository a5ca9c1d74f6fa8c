"""The leak check finds what was planted, and nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from foveate.datasets.crops import CropSpec, OverlaySpec, cut, draw_boxes
from foveate.datasets.leaks import LeakError, check_student_view, find_leaks
from foveate.datasets.presets import PRESETS
from foveate.datasets.views import ViewSpec, make_view, resolve_view
from foveate.vlm.images import Picture
from foveate.vlm.messages import Message
from foveate.vlm.records import Privileged, Sample, View

BOX = (60.0, 40.0, 100.0, 80.0)
PRIVILEGED = {
    "crop",
    "both",
    "coordinates",
    "opsd.teacher",
    "tiny.crop",
    "given.teacher",
    "given.context",
    "given.teacher_images",
}


def scene(seed: int = 0) -> Picture:
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    return Picture.of(smooth)


def crop_of(picture: Picture) -> Picture:
    return cut(picture, BOX, CropSpec(padding_frac=0.25), OverlaySpec())


def sample() -> Sample:
    secret = Privileged(
        boxes_px_xyxy=(BOX,),
        crops=(Picture.of(np.full((8, 8, 3), (1, 2, 3), np.uint8)), crop_of(scene())),
        rationale="It hangs on the left wall.",
        prompt="Look at the left wall. What hangs there?",
    )
    return Sample(
        id="s1", question="What is on the wall, a mirror or a clock?", answer="clock", images=(scene(),), privileged=secret
    )


def student(*parts: str | Picture, system: str | None = None) -> View:
    head = (Message.system(system),) if system else ()
    return View("student", (*head, Message.user(*parts)), "planted")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_for_students_pass_and_presets_for_teachers_do_not(name: str) -> None:
    spec = PRESETS[name]
    found = find_leaks(sample(), make_view(sample(), spec, "student"), spec)
    teacher = "teacher" in name or name in PRIVILEGED
    assert bool(found) == teacher, [str(leak) for leak in found]


PLANTED = {
    "answer": student(scene(), sample().question, " Answer: clock"),
    "answer in another case": student(scene(), sample().question, "\nCLOCK."),
    "answer in the system prompt": student(scene(), sample().question, system="You know it is the clock."),
    "rationale": student(scene(), sample().question, " It hangs on the left wall."),
    "teacher prompt": student(scene(), "Look at the left wall. What hangs there?"),
    "coordinates px": student(scene(), sample().question, " [60, 40, 100, 80]"),
    "coordinates 0-1000": student(scene(), sample().question, " (188, 167, 312, 333)"),
    "given crop": student(scene(), sample().question, sample().privileged.crops[0]),
    "given crop in the picture's place": student(sample().privileged.crops[1], sample().question),
    "crop with other padding": student(cut(scene(), BOX, CropSpec(padding_frac=0.9, scale=2), OverlaySpec()), sample().question),
    "box drawn in": student(draw_boxes(scene(), (BOX,), OverlaySpec()), sample().question),
    "thin box drawn in": student(draw_boxes(scene(), (BOX,), OverlaySpec(line_px=1)), sample().question),
    "box in a smaller copy": student(
        Picture.of(np.asarray(draw_boxes(scene(), (BOX,), OverlaySpec()).rgb().resize((160, 120)))), sample().question
    ),
    "another sample's picture": student(scene(1), sample().question),
}


@pytest.mark.parametrize("plant", sorted(PLANTED))
def test_planted_leaks_are_found(plant: str) -> None:
    assert find_leaks(sample(), PLANTED[plant])
    with pytest.raises(LeakError, match=r"sample s1.*planted"):
        check_student_view(sample(), PLANTED[plant])


CLEAN = {
    "original": student(scene(), sample().question),
    "another file of the same pixels": student(Picture.of(np.asarray(scene().rgb())), sample().question),
    "smaller": student(Picture.of(np.asarray(scene().rgb().resize((160, 120)))), sample().question),
    "much smaller": student(Picture.of(np.asarray(scene().rgb().resize((32, 24)))), sample().question),
    "blank": student(Picture.of(np.full((240, 320, 3), 127, np.uint8)), sample().question),
    "no picture": student(sample().question),
    "answer within the question": student(scene(), sample().question),
}


@pytest.mark.parametrize("name", sorted(CLEAN))
def test_clean_views_pass(name: str) -> None:
    assert find_leaks(sample(), CLEAN[name]) == []


def test_a_crops_file_name_and_file_are_leaks(tmp_path: Path) -> None:
    crop_of(scene()).rgb().save(tmp_path / "clock_closeup.png")
    crop = Picture.open(tmp_path / "clock_closeup.png")
    with_file = replace(sample(), privileged=replace(sample().privileged, crops=(crop,)))
    assert "clock_closeup.png" in str(find_leaks(with_file, student(scene(), with_file.question, " see clock_closeup.png"))[-1])
    assert find_leaks(with_file, student(crop, with_file.question))


def test_what_a_view_declares_is_no_leak_and_the_rest_still_is() -> None:
    shows_box = resolve_view("vision_opd.student")
    assert find_leaks(sample(), make_view(sample(), shows_box, "student"), shows_box) == []
    undeclared = ViewSpec(image=("overlay_box",), hint=shows_box.hint)
    assert find_leaks(sample(), make_view(sample(), undeclared, "student"), undeclared)
    elsewhere = student(draw_boxes(scene(), ((0, 0, 50, 50),), OverlaySpec()), sample().question)
    assert find_leaks(sample(), elsewhere, shows_box)  # a box, but not the one that was declared
    crop = resolve_view({"preset": "crop", "reveals": ["crop"]})
    assert find_leaks(sample(), make_view(sample(), crop, "student"), crop) == []
    crop_and_answer = resolve_view({"preset": "crop", "reveals": ["crop"], "answer": " ({answer})"})
    assert [str(leak) for leak in find_leaks(sample(), make_view(sample(), crop_and_answer, "student"), crop_and_answer)] == [
        "the answer 'clock' in text that is not the question's"
    ]


def test_text_that_is_the_same_for_all_samples_is_no_leak() -> None:
    spec = resolve_view({"system": "A clock is a thing that tells the time.", "suffix": " Say mirror or clock."})
    assert find_leaks(sample(), make_view(sample(), spec, "student"), spec) == []


def test_options_hold_the_answer_openly() -> None:
    choice = replace(sample(), question="What hangs there?", options=("mirror", "clock"), answer="B")
    spec = resolve_view("full")
    assert find_leaks(choice, make_view(choice, spec, "student"), spec) == []
    told = resolve_view({"answer": " ({answer})"})
    assert find_leaks(choice, make_view(choice, told, "student"), told)


def test_what_offers_the_tools_tells_nothing_of_a_sample() -> None:
    """The prompt of a dialect may hold the word or letter that is an answer; the question's own message may not."""
    offer = "A tool: image_zoom_in_tool. Coordinates run from 0 to 1000."
    spec, one = ViewSpec(system="tools"), Sample(id="s", question="Which tool?", answer="A", images=(scene(),))
    assert not find_leaks(one, make_view(one, spec, "student", offer), spec)
    told = ViewSpec(system="tools", answer=" It is {answer}.")
    assert find_leaks(one, make_view(one, told, "student", offer), told)
