"""Reading files: every way a picture may be given, every way a row may be bad, laziness, splits by content."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.datasets.check import check, check_command
from foveate.datasets.read import ReadError, read, to_px
from foveate.datasets.spec import DataSpec, load_data
from foveate.datasets.splits import in_test


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pictures_as_path_base64_data_uri_and_dict_are_the_same_picture(tmp_path: Path) -> None:
    image = picture(0)
    (tmp_path / "pics").mkdir()
    image.save(tmp_path / "pics" / "a.png")
    text = base64.b64encode(encoded(image)).decode()
    given: list[Any] = [
        "a.png",
        str(tmp_path / "pics" / "a.png"),
        text,
        f"data:image/png;base64,{text}",
        {"bytes": None, "path": "a.png"},
        {"bytes": text},
    ]
    rows = [{"question": "What?", "image": one} for one in given]
    result = read(DataSpec(path=str(write_rows(tmp_path / "d.jsonl", rows)), image_dir=str(tmp_path / "pics")))
    assert result.problems == []
    assert len(result.samples) == len(given)
    assert len({sample.images[0].key for sample in result.samples}) == 1
    assert result.samples[0].images[0].size_px == (40, 30)


def test_jpeg_base64_that_starts_like_an_absolute_path(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(0).save(buffer, format="JPEG")
    text = base64.b64encode(buffer.getvalue()).decode()
    assert text.startswith("/9j/")
    result = read(str(write_rows(tmp_path / "d.jsonl", [{"question": "q", "image": text}])))
    assert result.problems == []
    assert result.samples[0].images[0].size_px == (40, 30)


def test_every_bad_row_is_named_with_its_line_and_the_rest_is_read(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    good = {"question": "q", "image": "good.png"}
    lines = [
        json.dumps(good),
        "{this is not json",
        json.dumps({**good, "image": "missing.png"}),
        json.dumps({**good, "image": "broken.png"}),
        json.dumps({**good, "box": [10, 10, 10, 20]}),
        json.dumps({**good, "box": [100, 100, 120, 120]}),
        json.dumps({**good, "question": "<image> and <image>"}),
        json.dumps({"image": "good.png"}),
        "[1, 2]",
        "",
        json.dumps({**good, "box": [20, 10, 60, 20]}),
    ]
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = read(str(file))
    assert [sample.id for sample in result.samples] == ["d-0", "d-9"]
    told = {problem.place: problem for problem in result.problems}
    expected = {
        "line 2": "not a readable row",
        "line 3": "no such picture",
        "line 4": "not a readable picture",
        "line 5": "has no area",
        "line 6": "less than a pixel inside",
        "line 7": "2 <image> in the question but 1 pictures",
        "line 8": "no question",
        "line 9": "not a readable row",
        "line 11": "reaches out of the picture",
    }
    assert {place: what for place, what in expected.items() if place in told and what in str(told[place])} == expected
    assert set(told) == set(expected)
    assert [place for place, problem in told.items() if not problem.left_out] == ["line 11"]
    assert all(problem.mend and problem.file == str(file) for problem in result.problems)
    assert result.num_left_out == 8
    assert result.samples[1].privileged.boxes_px_xyxy == ((20.0, 10.0, 40.0, 20.0),)  # clipped at the right edge
    with pytest.raises(ReadError, match="line 2"):
        read(DataSpec(path=str(file), strict=True))


def test_a_picture_cut_short_is_found_by_full_and_replaced_when_met_later(tmp_path: Path) -> None:
    picture(0, 200, 200).save(tmp_path / "a.png")
    picture(1, 200, 200).save(tmp_path / "b.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    file = write_rows(tmp_path / "d.jsonl", [{"question": "q", "image": name} for name in ("a.png", "cut.png", "b.png")])
    full = read(DataSpec(path=str(file), verify="full"))
    assert [problem.place for problem in full.problems] == ["line 2"]
    assert len(full.samples) == 2
    lazy = read(str(file)).samples
    assert len(lazy) == 3
    with pytest.warns(UserWarning, match="line 2"):
        assert lazy[1].id == "d-2"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lazy[1].id == "d-2"  # the same one again, and said once
    strict = read(DataSpec(path=str(file), strict=True)).samples
    with pytest.raises(ReadError, match="line 2"):
        strict[1]


def test_reading_opens_no_picture_until_a_sample_is_asked_for(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "d.jsonl", [{"question": "q", "image": f"{index}.png"} for index in range(3)])
    result = read(DataSpec(path=str(file), verify="none"))  # the pictures do not even exist
    assert len(result.samples) == 3
    assert result.problems == []
    picture(2).save(tmp_path / "2.png")
    assert result.samples[2].images[0].size_px == (40, 30)


def test_a_large_file_is_read_fast(tmp_path: Path) -> None:
    import time

    file = write_rows(
        tmp_path / "d.jsonl", [{"id": str(index), "question": f"q{index}", "answer": "a"} for index in range(20_000)]
    )
    start = time.process_time()
    result = read(str(file))
    assert time.process_time() - start < 10
    assert result.samples[19_999].question == "q19999"
    assert [sample.id for sample in result.samples[5:8]] == ["5", "6", "7"]


def test_repeated_ids_are_made_different_and_told(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "d.jsonl", [{"id": "x", "question": "one"}, {"id": "x", "question": "two"}])
    result = read(str(file))
    assert [sample.id for sample in result.samples] == ["x", "x#1"]
    assert "used before" in str(result.problems[0])
    assert not result.problems[0].left_out


@pytest.mark.parametrize(
    ("unit", "box", "expected"),
    [
        ("px_xyxy", [10, 20, 30, 40], (10, 20, 30, 40)),
        ("k1000_xyxy", [100, 500, 200, 1000], (20, 50, 40, 100)),
        ("frac_xyxy", [0.1, 0.5, 0.2, 1.0], (20, 50, 40, 100)),
        ("px_xywh", [10, 20, 30, 40], (10, 20, 40, 60)),
    ],
)
def test_units_of_boxes(unit: Any, box: list[float], expected: tuple[float, ...]) -> None:
    assert to_px(box, unit, 200, 100) == pytest.approx(expected)


def test_the_unit_of_a_box_comes_from_its_column_the_row_or_the_spec(tmp_path: Path) -> None:
    picture(0, 200, 100).save(tmp_path / "a.png")
    rows = [
        {"question": "q", "image": "a.png", "boxes_k1000_xyxy": [[100, 500, 200, 1000]]},
        {"question": "q", "image": "a.png", "boxes_frac_xyxy": [[0.1, 0.5, 0.2, 1.0]]},
        {"question": "q", "image": "a.png", "boxes": [[20, 50, 20, 50]], "boxes_format": "px_xywh"},
        {"question": "q", "image": "a.png", "bbox": [20, 50, 40, 100]},
    ]
    samples = read(str(write_rows(tmp_path / "d.jsonl", rows))).samples
    assert [sample.privileged.boxes_px_xyxy for sample in samples] == [((20.0, 50.0, 40.0, 100.0),)] * 4
    told = read(
        DataSpec(
            path=str(write_rows(tmp_path / "e.jsonl", [{"question": "q", "image": "a.png", "box": [100, 500, 200, 1000]}])),
            box_format="k1000_xyxy",
        )
    )
    assert told.samples[0].privileged.boxes_px_xyxy == ((20.0, 50.0, 40.0, 100.0),)


def test_archives_that_were_not_extracted_are_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "images.tar.gz00").write_bytes(b"")
    result = read(str(write_rows(tmp_path / "d.jsonl", [{"question": "q", "image": "images/a.jpg"}])))
    assert "images.tar.gz00" in str(result.problems[0])
    assert "cat " in result.problems[0].mend or "cat " in str(result.problems[0])
    with pytest.raises(ValueError, match="no usable row"):
        load_data({"path": str(tmp_path / "d.jsonl")})


def test_parquet_and_saved_data_sets_keep_pictures_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets import Dataset, DatasetDict

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {
        "question": ["one", "two"],
        "image": [{"bytes": encoded(picture(seed)), "path": None} for seed in (1, 2)],
        "bbox": [[1, 2, 9, 8]] * 2,
    }
    table = Dataset.from_dict(rows)
    table = table.cast_column("image", datasets.Image())
    table.to_parquet(str(tmp_path / "d.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    DatasetDict({"train": table, "other": table.select([1])}).save_to_disk(str(tmp_path / "dict"))
    from_parquet = read(str(tmp_path / "d.parquet"))
    assert from_parquet.format == "plain"
    assert [sample.question for sample in from_parquet.samples] == ["one", "two"]
    assert np.array_equal(np.asarray(from_parquet.samples[1].images[0].rgb()), np.asarray(picture(2)))
    assert from_parquet.samples[0].privileged.boxes_px_xyxy == ((1.0, 2.0, 9.0, 8.0),)
    assert [sample.images[0].key for sample in read(str(tmp_path / "saved")).samples] == [
        sample.images[0].key for sample in from_parquet.samples
    ]
    assert [sample.question for sample in read(DataSpec(path=str(tmp_path / "dict"), hub_split="other")).samples] == ["two"]
    with pytest.raises(ValueError, match="hub_split is one of train, other"):
        read(DataSpec(path=str(tmp_path / "dict"), hub_split="test"))


def test_json_lists_own_column_names_and_unused_columns(tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    file.write_text(json.dumps({"data": [{"q": "What?", "truth": "x", "colour": 3}]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"data\.columns"):
        read(str(file))
    result = read(DataSpec(path=str(file), columns={"question": "q", "answer": "truth"}))
    assert (result.samples[0].question, result.samples[0].answer) == ("What?", "x")
    assert result.unused == ("colour",)


def test_errors_of_the_whole_file_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read(str(tmp_path / "none.jsonl"))
    (tmp_path / "d.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"\.jsonl"):
        read(str(tmp_path / "d.csv"))
    write_rows(tmp_path / "d.jsonl", [{"question": "q"}])
    with pytest.raises(ValueError, match=r"name one of its files: d\.jsonl"):
        read(str(tmp_path))
    with pytest.raises(ValueError, match="expected one of"):
        read(DataSpec(path=str(tmp_path / "d.jsonl"), format="nonsense"))
    with pytest.raises(ValueError, match="exactly one of"):
        DataSpec(path="a", synth="detail")
    with pytest.raises(ValueError, match="holdout_frac"):
        DataSpec(path="a", split="test")


def test_splits_hang_on_the_content_of_pictures_alone(tmp_path: Path) -> None:
    rows = []
    for index in range(60):
        picture(index // 2).save(tmp_path / f"{index}.png")  # two files of the same pixels each
        rows.append({"id": str(index), "question": f"q{index}", "image": f"{index}.png"})
    file = write_rows(tmp_path / "d.jsonl", rows)
    fields: dict[str, Any] = {"path": str(file), "holdout_frac": 0.3, "seed": 1}
    train, test = load_data({**fields, "split": "train"}), load_data({**fields, "split": "test"})
    assert len(train) + len(test) == 60
    assert 8 <= len(test) <= 28
    assert not {sample.images[0].key for sample in train} & {sample.images[0].key for sample in test}
    shuffled = write_rows(tmp_path / "e.jsonl", rows[::-1])
    again = load_data({**fields, "path": str(shuffled), "split": "test"})
    assert {sample.id for sample in again} == {sample.id for sample in test}
    assert {sample.id for sample in load_data({**fields, "split": "test", "seed": 2})} != {sample.id for sample in test}
    assert len(load_data({**fields, "split": "all"})) == 60
    assert len(load_data({**fields, "split": "all", "limit": 7})) == 7


def test_rows_linked_through_others_stay_together() -> None:
    chain = [[f"{index}", f"{index + 1}"] for index in range(0, 40)]  # 0-1, 1-2, ... are one chain
    assert len(set(in_test(chain, 0.5))) == 1
    apart = [[f"{index}"] for index in range(400)]
    assert 140 < sum(in_test(apart, 0.5)) < 260
    assert in_test(apart, 0.5) == in_test(apart[::-1], 0.5)[::-1]


def test_check_reports_what_is_there_and_what_is_wrong(tmp_path: Path) -> None:
    picture(0, 200, 100).save(tmp_path / "a.png")
    picture(0, 200, 100).save(tmp_path / "same.png")
    data = encoded(picture(3, 100, 100))
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    rows: list[dict[str, Any]] = [
        {"question": "q", "image": "a.png", "answer": "12", "box": [0, 0, 20, 100], "extra": 1},
        {"question": "q", "image": "same.png", "answer": "yes"},
        {"question": "q", "image": "cut.png", "answer": "B"},
        {"question": "Which?", "options": ["x", "y"], "answer": "B"},
    ]
    report = check_command(str(write_rows(tmp_path / "d.jsonl", rows)), sheet=tmp_path / "sheet.html")
    assert (report.format, report.num_rows, report.num_samples, report.num_pictures, report.num_distinct_pictures) == (
        "plain",
        4,
        3,
        2,
        1,
    )
    assert report.num_repeated_rows == 1
    assert report.box_area_frac == pytest.approx([0.1])
    assert dict(report.answers) == {"number": 1, "yes/no": 1, "option letter": 1}
    assert not report.ok
    text = report.text()
    assert "line 3" in text
    assert "LEFT OUT" in text
    assert "columns extra" in text
    assert "200 / 200 / 200" in text
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 3
    assert page.count("data:image/jpeg;base64,") == 2
    assert check(str(write_rows(tmp_path / "good.jsonl", rows[:1]))).ok


def test_data_and_rewards_import_without_the_model_stack() -> None:
    code = (
        "import sys, foveate.datasets.spec, foveate.datasets.views, foveate.datasets.presets\n"
        "import foveate.datasets.read, foveate.datasets.check, foveate.datasets.crop_files\n"
        "import foveate.datasets.leaks, foveate.datasets.mix, foveate.rewards.combine\n"
        "print([name for name in ('torch', 'transformers', 'vllm', 'deepspeed', 'sympy', 'pyarrow') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert out.stdout.strip() == "[]"
