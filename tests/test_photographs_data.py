"""Real photographs, 2,000 px wide, all the way: read, check, crop, view, split. Nothing here is synthetic but the boxes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
import sklearn.datasets
from PIL import Image

from foveate.datasets.check import check
from foveate.datasets.crop_files import crops_command
from foveate.datasets.leaks import find_leaks
from foveate.datasets.read import read
from foveate.datasets.spec import DataSpec, load_data
from foveate.datasets.views import make_view, resolve_view

WIDTH_PX = 2000
PHOTOGRAPHS = {  # name: a box in the original's pixels, and what is in it
    "astronaut.png": ((170, 60, 290, 220), "What is seen here?", "a face"),
    "coffee.png": ((180, 90, 400, 300), "What is on the table?", "a cup"),
    "chelsea.png": ((130, 80, 330, 240), "Which animal is it?", "a cat"),
    "china.jpg": ((230, 60, 400, 200), "What stands there?", "a temple"),
    "flower.jpg": ((200, 60, 420, 330), "What grows there?", "a flower"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("photographs")
    rows = []
    for name, (box, question, answer) in PHOTOGRAPHS.items():
        source = (
            Path(skimage.__file__).parent / "data" if name.endswith(".png") else Path(sklearn.datasets.__file__).parent / "images"
        )
        pixels = np.asarray(Image.open(source / name).convert("RGB"))
        scale = WIDTH_PX / pixels.shape[1]
        large = cv2.resize(pixels, (WIDTH_PX, round(pixels.shape[0] * scale)), interpolation=cv2.INTER_CUBIC)
        file = Path(name).with_suffix(".jpg").name
        Image.fromarray(large).save(target / file, quality=90)
        box_k1000 = [1000 * value / side for value, side in zip(box, (pixels.shape[1], pixels.shape[0]) * 2, strict=True)]
        rows.append({"id": file, "image": file, "question": question, "answer": answer, "boxes_k1000_xyxy": [box_k1000]})
    (target / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


def test_check_of_photographs(folder: Path, tmp_path: Path) -> None:
    report = check(DataSpec(path=str(folder / "rows.jsonl")), sheet=tmp_path / "sheet.html")
    assert report.ok, report.text()
    assert (report.num_samples, report.num_distinct_pictures, report.num_with_boxes) == (5, 5, 5)
    assert {width for width, _ in report.sizes_px} == {WIDTH_PX}
    assert all(0.05 < area < 0.4 for area in report.box_area_frac)
    assert (tmp_path / "sheet.html").stat().st_size > 50_000


@pytest.mark.parametrize("name", [Path(name).with_suffix(".jpg").name for name in PHOTOGRAPHS])
def test_a_crop_shows_the_same_pixels_at_full_resolution(folder: Path, name: str) -> None:
    sample = next(one for one in read(str(folder / "rows.jsonl")).samples if one.id == name)
    x1, y1, x2, y2 = sample.privileged.boxes_px_xyxy[0]
    original = np.asarray(sample.images[0].rgb())
    (crop,) = make_view(sample, resolve_view({"image": "replace_by_crop"}), "teacher").pictures
    left, top = int(x1 + 1e-6), int(y1 + 1e-6)
    assert abs(crop.width_px - (x2 - x1)) <= 2
    assert abs(crop.height_px - (y2 - y1)) <= 2
    assert np.array_equal(np.asarray(crop.rgb()), original[top : top + crop.height_px, left : left + crop.width_px])
    (twice,) = make_view(sample, resolve_view("vision_opd.teacher_clean"), "teacher").pictures
    assert twice.size_px == (2 * crop.width_px, 2 * crop.height_px)
    back = cv2.resize(np.asarray(twice.rgb()), crop.size_px, interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(back - np.asarray(crop.rgb()).astype(int)).mean() < 2


def test_student_views_of_photographs_carry_no_leak_and_teacher_views_do(folder: Path) -> None:
    for sample in read(str(folder / "rows.jsonl")).samples:
        for name in ("full", "vision_opd.student", "degraded"):
            spec = resolve_view(name)
            assert find_leaks(sample, make_view(sample, spec, "student"), spec) == [], (sample.id, name)
        for name in ("crop", "vision_opd.teacher", "imagine_opd.teacher_crops_only"):
            spec = resolve_view(name)
            assert find_leaks(sample, make_view(sample, spec, "student"), spec), (sample.id, name)


def test_a_thin_box_in_a_shrunk_photograph_is_found(folder: Path) -> None:
    sample = read(str(folder / "rows.jsonl")).samples[0]
    planted = resolve_view({"image": ["overlay_box", "degrade"], "degrade_factor": 2})
    assert find_leaks(sample, make_view(sample, planted, "student"), planted)


def test_crops_of_photographs_as_files(folder: Path, tmp_path: Path) -> None:
    two = folder / "two.jsonl"
    two.write_text("".join(f"{line}\n" for line in (folder / "rows.jsonl").read_text().splitlines()[3:]))
    report = crops_command(str(two), tmp_path / "crops.jsonl", scale=1.0, padding=0.25)
    assert (report.num_samples, report.num_crops, report.problems) == (2, 2, ())
    cut = read(str(tmp_path / "crops.jsonl"))
    direct = read(str(two))
    assert cut.problems == []
    for one, other in zip(cut.samples, direct.samples, strict=True):
        assert one.images[0].key == other.images[0].key
        from_file, just_cut = (make_view(sample, resolve_view("crop"), "teacher").pictures for sample in (one, other))
        assert [picture.key for picture in from_file] == [picture.key for picture in just_cut]


def test_a_split_of_photographs_keeps_copies_together(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    copies = []
    for row in rows:  # the same pixels under another name and in another format
        Image.open(folder / row["image"]).save(tmp_path / f"copy-{row['image']}.bmp")
        copies.append({**row, "id": f"copy of {row['id']}", "image": str(tmp_path / f"copy-{row['image']}.bmp")})
    file = tmp_path / "both.jsonl"
    file.write_text("".join(json.dumps({**row, "image": str(folder / row["image"])}) + "\n" for row in [*rows, *copies]))
    fields = {"path": str(file), "holdout_frac": 0.5, "seed": 3}
    train, test = load_data({**fields, "split": "train"}), load_data({**fields, "split": "test"})
    assert len(train) + len(test) == 10
    assert len(train) % 2 == 0
    assert 0 < len(test) < 10
    assert not {one.images[0].key for one in train} & {one.images[0].key for one in test}
