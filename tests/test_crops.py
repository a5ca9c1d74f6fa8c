"""Geometry of evidence: rounding, clipping, minimum sizes, and crops written as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.crop_files import crops_command
from foveate.datasets.crops import CropSpec, OverlaySpec, blank, checked_box, cut, degrade, draw_boxes, expanded, union_box
from foveate.datasets.read import read
from foveate.datasets.views import RED_BOX_HINT, make_view, resolve_view
from foveate.vlm.images import Picture


def noise(width: int = 100, height: int = 80) -> Picture:
    return Picture.of(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("box", "frac", "min_side", "expected"),
    [
        ((10, 10, 30, 20), 0.0, 1, (10, 10, 30, 20)),
        ((10.2, 10.8, 29.5, 20.1), 0.0, 1, (10, 10, 30, 21)),  # outwards: the evidence is never cut
        ((10, 10, 30, 20), 0.25, 1, (5, 7, 35, 23)),
        ((0, 0, 20, 10), 0.5, 1, (0, 0, 30, 15)),  # clipped at the corner
        ((10, 10, 14, 14), 0.0, 10, (7, 7, 17, 17)),
        ((0, 0, 4, 4), 0.0, 10, (0, 0, 10, 10)),  # widened to the side where there is room
        ((96, 76, 100, 80), 0.0, 10, (90, 70, 100, 80)),
        ((40, 40, 44, 44), 0.0, 500, (0, 0, 100, 80)),  # no further than the picture
    ],
)
def test_regions_by_hand(box: tuple[float, ...], frac: float, min_side: int, expected: tuple[int, ...]) -> None:
    assert expanded(box, frac, 100, 80, min_side) == expected  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 90), st.floats(0, 70), st.floats(1, 10), st.floats(1, 10), st.floats(0, 3), st.integers(1, 200))
def test_a_region_holds_the_box_stays_inside_and_is_large_enough(
    x: float, y: float, w: float, h: float, frac: float, least: int
) -> None:
    left, top, right, bottom = expanded((x, y, x + w, y + h), frac, 100, 80, least)
    assert 0 <= left <= x + 1e-5
    assert 0 <= top <= y + 1e-5
    assert x + w - 1e-5 <= right <= 100
    assert y + h - 1e-5 <= bottom <= 80
    assert right - left >= min(least, 100)
    assert bottom - top >= min(least, 80)


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (9, 5, 5, 9), (200, 0, 300, 9), (-9, -9, 0.5, 9), (1, 2, 3), (1, 2, float("nan"), 4), ("1", 2, 3, 4)]
)
def test_bad_boxes_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"row 3.*box"):
        checked_box(box, 100, 80, "row 3")


def test_boxes_are_clipped_to_the_picture() -> None:
    assert checked_box((-5, 10, 120, 90), 100, 80, "x") == (0, 10, 100, 80)
    assert union_box(((5, 6, 7, 8), (1, 7, 6, 20))) == (1, 6, 7, 20)


def test_a_crop_is_cut_at_full_resolution_and_scaled() -> None:
    plain = cut(noise(), (10, 20, 30, 50), CropSpec(), OverlaySpec())
    assert np.array_equal(np.asarray(plain.rgb()), np.asarray(noise().rgb())[20:50, 10:30])
    assert cut(noise(), (10, 20, 30, 50), CropSpec(scale=2), OverlaySpec()).size_px == (40, 60)
    assert cut(noise(), (10, 20, 30, 50), CropSpec(scale=0.5), OverlaySpec()).size_px == (10, 15)
    assert cut(noise(), (10, 20, 12, 22), CropSpec(min_side_px=28), OverlaySpec()).size_px == (28, 28)


def test_drawing_leaves_the_original_alone_and_fits_tiny_boxes() -> None:
    original = noise()
    before = np.array(original.rgb())
    drawn = draw_boxes(original, ((50, 40, 52, 42),), OverlaySpec(expand_frac=0))
    assert np.array_equal(np.asarray(original.rgb()), before)
    changed = (np.asarray(drawn.rgb()) != before).any(axis=2)
    assert changed.sum() == 4  # no more than the box itself
    assert drawn.key != original.key
    other = draw_boxes(original, ((50, 40, 60, 50),), OverlaySpec(expand_frac=0, line_px=1, colour=(0, 0, 255)))
    assert np.asarray(other.rgb())[40, 55].tolist() == [0, 0, 255]


def test_degraded_and_blank() -> None:
    assert degrade(noise(), 4).size_px == (25, 20)
    assert blank(7, 5).size_px == (7, 5)


def test_crops_command_writes_files_that_read_back(tmp_path: Path) -> None:
    noise().rgb().save(tmp_path / "a.png")
    rows = [
        {"id": "one", "image": "a.png", "question": "Q", "answer": "x", "bbox": [10, 20, 30, 50]},
        {"id": "none", "image": "a.png", "question": "Q"},
    ]
    source = tmp_path / "d.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = crops_command(str(source), tmp_path / "out" / "crops.jsonl", draw=True)
    assert (report.num_samples, report.num_crops, len(report.problems)) == (1, 1, 1)
    assert "neither crops nor boxes" in report.text()
    assert "line 2" in report.text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["crops", "crops.jsonl", "images"]
    result = read(str(tmp_path / "out" / "crops.jsonl"))
    assert (result.problems, result.unused, result.format) == ([], (), "plain")
    sample = result.samples[0]
    assert (sample.id, sample.answer, sample.question, sample.tags) == ("one", "x", f"Q {RED_BOX_HINT}", {"red_box": "drawn"})
    assert sample.privileged.crops[0].size_px == (56, 60)  # 28 x 30 (the least side is 28), twice as large
    student = make_view(sample, resolve_view("vision_opd.student"), "student")
    assert student.pictures == sample.images  # the box is drawn in already
    assert np.asarray(sample.images[0].rgb())[19, 15].tolist() == [255, 0, 0]


def test_crops_command_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"question": "q"}\n')
    with pytest.raises(ValueError, match=r"\.jsonl"):
        crops_command(str(tmp_path / "d.jsonl"), tmp_path / "out.json")
    with pytest.raises(ValueError, match="no such file"):
        crops_command(str(tmp_path / "none.jsonl"), tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]
