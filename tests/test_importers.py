"""One small file of each released format, written here and read back: the columns mean what their authors meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.datasets.importers import FORMATS, detect
from foveate.datasets.read import ReadResult, read
from foveate.datasets.spec import DataSpec, load_data
from foveate.datasets.views import RED_BOX_HINT, make_view, resolve_view
from foveate.vlm.records import Sample

FULL, CROP, CROP_2 = "full.png", "crop.png", "crop2.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, size) in enumerate({FULL: (60, 40), CROP: (20, 10), CROP_2: (8, 8)}.items()):
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def imported(folder: Path, row: dict[str, Any], **fields: Any) -> tuple[ReadResult, Sample]:
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    result = read(DataSpec(path=str(file), **fields))
    assert result.problems == []
    return result, result.samples[0]


def names(pictures: Any) -> list[str]:
    return [Path(picture.path).name for picture in pictures]


def test_vision_opd_jsonl(folder: Path) -> None:
    row = {
        "problem": f"<image>\nWhat is it? {RED_BOX_HINT}",
        "images": [FULL],
        "teacher_images": [CROP],
        "answer": "a hat",
        "extra_info": {"index": 7},
    }
    result, sample = imported(folder, row)
    assert result.format == "vision_opd"
    assert (sample.id, sample.answer, sample.tags["red_box"]) == ("7", "a hat", "drawn")
    assert (names(sample.images), names(sample.privileged.crops)) == ([FULL], [CROP])
    student = make_view(sample, resolve_view("vision_opd.student"), "student")
    teacher = make_view(sample, resolve_view("vision_opd.teacher"), "teacher")
    assert (names(student.pictures), names(teacher.pictures)) == ([FULL], [CROP])  # the box is drawn in already
    assert student.messages[0].text == teacher.messages[0].text
    assert student.messages[0].text.count(RED_BOX_HINT) == 1  # not said twice


def test_vision_opd_parquet_columns(folder: Path) -> None:
    row = {
        "data_source": "zwz_rl_vqa_bbox_teacher",
        "prompt": [{"role": "user", "content": "<image>What?"}],
        "images": [{"path": FULL}],
        "bbox_images": [{"path": CROP}],
        "reward_model": {"style": "none", "ground_truth": "B"},
        "extra_info": {"question": "What?"},
    }
    result, sample = imported(folder, row)
    assert result.format == "vision_opd"
    assert (sample.question, sample.answer, sample.source) == ("<image>What?", "B", "zwz_rl_vqa_bbox_teacher")
    assert names(sample.privileged.crops) == [CROP]
    assert "red_box" not in sample.tags


def test_imagine_opd_keeps_only_the_extra_views(folder: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "<image>Which?"},
            {"role": "assistant", "content": "I look. <answer>C</answer>"},
        ],
        "images": [FULL],
        "teacher_images": [FULL, CROP, CROP_2],
    }
    result, sample = imported(folder, row)
    assert result.format == "imagine_opd"
    assert (sample.answer, sample.privileged.rationale) == ("C", "I look. <answer>C</answer>")
    assert (names(sample.images), names(sample.privileged.crops)) == ([FULL], [CROP, CROP_2])
    teacher = make_view(sample, resolve_view("imagine_opd.teacher"), "teacher")
    assert names(teacher.pictures) == [FULL, CROP, CROP_2]
    assert teacher.messages[-1].parts[-1] == "Ground-truth answer: C"


def test_a_missing_answer_stays_missing(folder: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Which?"}], "images": [FULL], "teacher_images": [FULL, CROP]}
    assert imported(folder, row)[1].answer is None  # the released converter writes "A" here


def test_imagine_opd_second_converter(folder: Path) -> None:
    row = {
        "x": {"question": "Which?", "images": [FULL]},
        "c": {"intermediate_images": [CROP]},
        "target": {"answer": "D", "final_response": "So D."},
        "op_type": "zoom",
        "sample_id": "s1",
    }
    result, sample = imported(folder, row)
    assert (result.format, sample.id, sample.answer, sample.kind, names(sample.privileged.crops)) == (
        "imagine_opd_xc",
        "s1",
        "D",
        "zoom",
        [CROP],
    )


@pytest.mark.parametrize(
    "targets", [[[1, 2, 30, 20], [5, 5, 9, 9]], [{"name": "a", "bbox": [1, 2, 30, 20]}, {"bbox": [5, 5, 9, 9]}]]
)
def test_treevgr(folder: Path, targets: Any) -> None:
    row = {
        "images": [FULL],
        "crop_images": [CROP, CROP_2],
        "problem": "<image>Q",
        "answer": "x",
        "index": 3,
        "target_instances": targets,
    }
    result, sample = imported(folder, row)
    assert (result.format, sample.id) == ("treevgr", "3")
    assert sample.privileged.boxes_px_xyxy == ((1, 2, 30, 20), (5, 5, 9, 9))
    assert names(sample.privileged.crops) == [CROP, CROP_2]


@pytest.mark.parametrize(("question", "answer"), [("problem", "answer"), ("prompt", "answer")])
def test_easyr1(folder: Path, question: str, answer: str) -> None:
    result, sample = imported(folder, {question: "<image>How many?", "images": [FULL], answer: 3})
    assert (result.format, sample.question, sample.answer, names(sample.images)) == ("easyr1", "<image>How many?", "3", [FULL])


def test_ms_swift(folder: Path) -> None:
    row = {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>Q"}],
        "images": [FULL],
        "solution": "yes",
        "teacher_prompt": "<image>Look at the hat. Q",
        "teacher_images": [CROP],
    }
    result, sample = imported(folder, row)
    assert (result.format, sample.system, sample.answer, sample.privileged.prompt) == (
        "ms_swift",
        "Be brief.",
        "yes",
        "<image>Look at the hat. Q",
    )
    teacher = make_view(sample, resolve_view({"preset": "given.teacher", "image": "replace_by_crop"}), "teacher")
    assert (names(teacher.pictures), teacher.messages[-1].text) == ([CROP], "Look at the hat. Q")


def test_trl(folder: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Q"}]
    row = {
        "prompt": [{"role": "user", "content": content}],
        "image": FULL,
        "solution": "5",
        "privileged_context": "It is in the corner.",
    }
    result, sample = imported(folder, row)
    assert (result.format, sample.question, sample.answer, sample.privileged.rationale) == (
        "trl",
        "<image>Q",
        "5",
        "It is in the corner.",
    )
    teacher = make_view(sample, resolve_view("given.context"), "teacher")
    assert teacher.messages[0].text == "Q\nIt is in the corner."


def test_trl_pictures_inside_the_message(folder: Path) -> None:
    content = [{"type": "image", "image": FULL}, {"type": "text", "text": "Q"}]
    assert names(imported(folder, {"prompt": [{"role": "user", "content": content}]})[1].images) == [FULL]


def test_verl(folder: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "<image>Q"}],
        "images": [{"path": FULL}],
        "reward_model": {"style": "rule", "ground_truth": "42"},
        "extra_info": {"index": 5, "split": "train"},
        "data_source": "geo",
        "ability": "math",
    }
    result, sample = imported(folder, row)
    assert (result.format, sample.id, sample.answer, sample.source) == ("verl", "5", "42", "geo")
    assert result.unused == ("ability",)


def test_deepeyes(folder: Path) -> None:
    row = {
        "env_name": "visual_toolbox_v2",
        "prompt": [{"role": "system", "content": "Tools"}, {"role": "user", "content": "<image>Q"}],
        "images": [FULL],
        "reward_model": {"ground_truth": "red"},
    }
    result, sample = imported(folder, row)
    assert (result.format, sample.answer, sample.tags["protocol"], sample.system) == (
        "deepeyes",
        "red",
        "visual_toolbox_v2",
        "Tools",
    )
    _, plain = imported(folder, {**row, "env_name": None})
    assert plain.tags["protocol"] == "none"


def test_mini_o3(folder: Path) -> None:
    result, sample = imported(folder, {"images": [FULL], "problem": "<image>\nQ", "solution": "blue", "doc_id": 12})
    assert (result.format, sample.id, sample.answer) == ("mini_o3", "12", "blue")


@pytest.mark.parametrize("picture", [FULL, [FULL]])
def test_cap_curriculum(folder: Path, picture: Any) -> None:
    result, sample = imported(folder, {"prompt": "Q", "image_path": picture, "answer": "4", "pass_rate": 0.25})
    assert (result.format, sample.difficulty, names(sample.images), sample.tags["pass_rate"]) == (
        "cap_curriculum",
        0.75,
        [FULL],
        "0.25",
    )


def test_cap_curriculum_text_stage(folder: Path) -> None:
    assert imported(folder, {"prompt": "1 + 1?", "image_path": None, "answer": "2", "pass_rate": 1.0})[1].images == ()


def test_plain(folder: Path) -> None:
    row = {
        "id": "a",
        "images": [FULL, CROP],
        "question": "<image> or <image>?",
        "options": ["x", "y"],
        "answer": "B",
        "boxes": [[0, 0, 500, 500]],
        "boxes_format": "k1000_xyxy",
        "box_image": 1,
        "rationale": "r",
        "kind": "compare",
        "difficulty": 0.5,
        "tags": {"t": 1},
        "system": "S",
    }
    result, sample = imported(folder, row)
    assert (result.format, result.unused) == ("plain", ())
    assert (sample.options, sample.kind, sample.difficulty, sample.tags, sample.system) == (
        ("x", "y"),
        "compare",
        0.5,
        {"t": "1"},
        "S",
    )
    assert (sample.privileged.box_image, sample.privileged.boxes_px_xyxy) == (1, ((0.0, 0.0, 10.0, 5.0),))


def test_a_format_named_by_the_user_wins(folder: Path) -> None:
    row = {"problem": "<image>Q", "images": [FULL], "solution": "blue"}
    assert imported(folder, row, format="easyr1")[0].format == "easyr1"
    with pytest.raises(ValueError, match=r"line 1: no column 'messages'"):
        load_data({"path": str(folder / "rows.jsonl"), "format": "imagine_opd"})


def test_a_chat_of_several_questions_is_refused_by_row(folder: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (folder / "rows.jsonl").write_text(json.dumps({"messages": turns, "images": []}) + "\n")
    assert "more than one question" in str(read(str(folder / "rows.jsonl")).problems[0])


def test_detect_knows_every_format_and_says_no_to_others() -> None:
    assert detect({"question", "image"}) == "plain"
    with pytest.raises(ValueError, match=r"columns a, b.*data\.columns"):
        detect({"b", "a"})
    assert set(FORMATS) == {
        "deepeyes",
        "vision_opd",
        "imagine_opd_xc",
        "treevgr",
        "imagine_opd",
        "ms_swift",
        "verl",
        "cap_curriculum",
        "mini_o3",
        "plain",
        "trl",
        "easyr1",
        "video_mme",
        "longvideobench",
    }
