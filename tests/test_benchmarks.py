"""Small local copies in their official layouts: items, pictures, prompts, and totals worked out by hand."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench_files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate.datasets.raw_rows import RowError
from foveate.datasets.views import make_view, resolve_view
from foveate.eval.benchmarks.base import accuracy, letter_of, lettered, split_inline
from foveate.eval.benchmarks.mmstar import split_options
from foveate.eval.benchmarks.registry import BENCHMARKS, benchmark
from foveate.eval.benchmarks.treebench import boxes_in, grounding
from foveate.eval.delimited import Delimited
from foveate.eval.lazy_pictures import LazyPicture
from foveate.eval.readers import pictures_of, read_rows
from foveate.eval.records import Item, Source
from foveate.vlm.images import Picture, PictureError


def read(name: str, path: Path) -> tuple[Sequence[Item], Source]:
    return benchmark(name).read(str(path))


def numbers(pictures: Sequence[Picture]) -> list[int]:
    """Which tiles these are, by their pixels; their sizes have to agree."""
    found = [picture.rgb().getpixel((3, 3))[0] for picture in pictures]  # type: ignore[index]
    assert [picture.width_px - 24 for picture in pictures] == found
    return found


def golds(items: Sequence[Item]) -> list[str | None]:
    return [item.sample.answer for item in items]


def right_options(items: Sequence[Item]) -> list[str]:
    return [item.sample.options["ABCDE".index(item.sample.answer or "")] for item in items]


def scored(*rows: tuple[float, Mapping[str, str]], **more: Any) -> list[dict[str, Any]]:
    return [{"score": score, "categories": dict(categories), "texts": [], **more} for score, categories in rows]


# --- V* ---------------------------------------------------------------------------------------------------------------------


def test_vstar_folders(tmp_path: Path) -> None:
    items, source = read("vstar", bench_files.write_vstar_tree(tmp_path))
    assert [item.id for item in items] == [
        "direct_attributes/sa_1", "direct_attributes/sa_2", "direct_attributes/sa_3", "relative_position/sa_4",
        "relative_position/sa_5",
    ]  # fmt: skip
    assert source.num_rows == 5
    assert [item.categories for item in items[:1]] == [{"category": "direct_attributes"}]
    assert numbers([item.sample.images[0] for item in items]) == [0, 1, 2, 3, 4]
    # x, y, width, height of the files become corners
    assert items[0].sample.privileged.boxes_px_xyxy == ((2, 3, 12, 8),)
    assert items[3].sample.privileged.boxes_px_xyxy == ((0, 0, 4, 4), (10, 2, 16, 10))


def test_vstar_folders_do_not_leave_the_right_option_first(tmp_path: Path) -> None:
    items, _ = read("vstar", bench_files.write_vstar_tree(tmp_path))
    assert right_options(items) == ["It is red.", "Glass.", "Black.", "Left of the car.", "Below the sign."]
    assert len(set(golds(items))) > 1
    options = json.loads((tmp_path / "direct_attributes/sa_1.json").read_text())["options"]
    assert [options[place] for place in items[0].extra["order"]] == list(items[0].sample.options)
    again, _ = read("vstar", tmp_path)
    assert golds(again) == golds(items)


def test_vstar_order_is_one_of_many(tmp_path: Path) -> None:
    (tmp_path / "direct_attributes").mkdir()
    for number in range(200):
        note = {"question": "?", "options": ["r", "x", "y", "z"], "bbox": []}
        (tmp_path / "direct_attributes" / f"{number}.json").write_text(json.dumps(note))
        (tmp_path / "direct_attributes" / f"{number}.jpg").write_bytes(b"")
    items, _ = read("vstar", tmp_path)
    counts = {letter: golds(items).count(letter) for letter in "ABCD"}
    assert sum(counts.values()) == 200
    assert all(30 <= count <= 70 for count in counts.values())  # 50 each, standard deviation 6


def test_vstar_questions_file_has_its_own_order_and_the_boxes_beside_it(tmp_path: Path) -> None:
    items, source = read("vstar", bench_files.write_vstar_jsonl(tmp_path))
    assert source.path.endswith("test_questions.jsonl")
    assert golds(items) == ["A", "B", "C", "A", "B"]
    assert items[1].sample.options == ("Wood.", "Glass.", "Steel.", "Clay.")
    assert items[1].sample.question == "What is the material of the lamp?"
    assert items[1].sample.privileged.boxes_px_xyxy == ((2, 3, 12, 8),)
    assert benchmark("vstar").prompt_tail(items[1]) == "\nAnswer with the option's letter from the given choices directly."


def test_vstar_parquet_and_tsv(tmp_path: Path) -> None:
    items, source = read("vstar", bench_files.write_vstar_parquet(tmp_path / "hub"))
    assert golds(items) == ["A", "B", "C", "A", "B"]
    assert numbers([item.sample.images[0] for item in items]) == [0, 1, 2, 3, 4]
    assert source.problems == ()
    items, source = read("vstar", bench_files.write_vstar_tsv(tmp_path))
    assert right_options(items) == ["It is red.", "Glass.", "Black.", "Left of the car.", "Below the sign."]
    assert "always A" in source.problems[0]
    assert len(set(golds(items))) > 1


def test_vstar_totals() -> None:
    rows = scored(
        (1, {"category": "direct_attributes"}), (0, {"category": "direct_attributes"}), (1, {"category": "relative_position"})
    )
    assert benchmark("vstar").aggregate(rows) == {
        "overall": pytest.approx(2 / 3), "direct_attributes": 0.5, "relative_position": 1.0,
    }  # fmt: skip


# --- HR-Bench ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "write"), [("hrbench-4k", "hrbench"), ("hrbench-8k", "hrbench_parquet")])
def test_hrbench(tmp_path: Path, name: str, write: str) -> None:
    items, source = read(name, bench_files.WRITERS[write](tmp_path))
    assert golds(items) == ["A", "B", "C", "D"] * 2
    assert right_options(items) == ["red"] * 4 + ["one"] * 4
    assert items[0].sample.question == 'Question 0, with a "quoted" word?'
    assert [item.group for item in items] == ["q0-1"] * 4 + ["q1-1"] * 4
    assert numbers([item.sample.images[0] for item in items]) == [0] * 4 + [1] * 4
    assert benchmark(name).prompt_tail(items[0]) == "\nAnswer the option letter directly."
    assert source.sha256 == hashlib.sha256(Path(source.path).read_bytes()).hexdigest()


def test_hrbench_is_found_in_a_folder(tmp_path: Path) -> None:
    bench_files.write_hrbench(tmp_path)
    bench_files.write_vstar_tsv(tmp_path)
    assert len(read("hrbench-4k", tmp_path)[0]) == 8


def test_hrbench_totals_weigh_cycles_and_categories_equally() -> None:
    rows = scored(
        (1, {"category": "single", "cycle": "0"}), (0, {"category": "single", "cycle": "0"}),
        (1, {"category": "single", "cycle": "1"}), (1, {"category": "cross", "cycle": "0"}),
        (0, {"category": "cross", "cycle": "1"}), (0, {"category": "cross", "cycle": "1"}),
    )  # fmt: skip
    totals = benchmark("hrbench-4k").aggregate(rows)
    # single: cycles 1/2 and 1, so 3/4; cross: cycles 1 and 0, so 1/2
    assert totals == {
        "overall": 0.625, "single": 0.75, "single, cycle 0": 0.5, "single, cycle 1": 1.0,
        "cross": 0.5, "cross, cycle 0": 1.0, "cross, cycle 1": 0.0,
    }  # fmt: skip


# --- MME-RealWorld ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "_lite", "_cn"])
def test_mme_realworld(tmp_path: Path, suffix: str) -> None:
    name = f"mme-realworld{suffix.replace('_', '-')}"
    items, _ = read(name, bench_files.WRITERS[f"mme_realworld{suffix}"](tmp_path))
    assert golds(items) == ["A", "B", "C", "D"]
    assert right_options(items) == (["选项A0", "选项B1", "选项C2", "选项D3"] if suffix == "_cn" else ["a0", "b1", "c2", "d3"])
    assert [len(item.sample.options) for item in items] == [5] * 4
    assert numbers([item.sample.images[0] for item in items]) == [0, 1, 2, 3]
    assert items[2].categories == {"half": "Perception", "task": "Perception/OCR with Complex Context", "l2": "text"}
    assert items[3].categories["half"] == "Reasoning"
    tail = benchmark(name).prompt_tail(items[0])
    assert tail.endswith("最佳答案为：" if suffix == "_cn" else "of the correct option.\nThe best answer is:")


def test_mme_realworld_totals() -> None:
    def at(half: str, task: str) -> dict[str, str]:
        return {"half": half, "task": f"{half}/{task}"}

    rows = scored(
        (1, at("Perception", "OCR")), (0, at("Perception", "OCR")), (0, at("Perception", "OCR")),
        (1, at("Perception", "Monitoring")), (1, at("Reasoning", "OCR")),
    )  # fmt: skip
    assert benchmark("mme-realworld").aggregate(rows) == {
        "overall": 0.6,
        "mean of tasks": pytest.approx((1 / 3 + 1 + 1) / 3),
        "Perception": 0.5,
        "Perception, mean of tasks": pytest.approx(2 / 3),
        "Perception/OCR": pytest.approx(1 / 3),
        "Perception/Monitoring": 1.0,
        "Reasoning": 1.0,
        "Reasoning, mean of tasks": 1.0,
        "Reasoning/OCR": 1.0,
    }


# --- ZoomBench, TreeBench, VisualProbe --------------------------------------------------------------------------------------


@pytest.mark.parametrize("renamed", [False, True])
def test_zoombench_in_full_and_in_crop(tmp_path: Path, renamed: bool) -> None:
    items, _ = read("zoombench", bench_files.write_zoombench(tmp_path, renamed))
    assert golds(items) == ["B", "A", "3", "KX 42"]
    assert items[0].sample.question == "What is on the sign?"
    assert items[0].sample.options == ("a cat", "a dog", "a car", "a tree")
    assert benchmark("zoombench").prompt_tail(items[0]) == ""
    assert benchmark("zoombench").prompt_tail(items[1]) == "\nAnswer with the option's letter."
    full = [make_view(item.sample, resolve_view("full"), "student").pictures for item in items]
    crop = [make_view(item.sample, resolve_view("crop"), "student").pictures for item in items]
    assert [numbers(pictures) for pictures in full] == [[0], [1], [2], [3]]
    assert [numbers(pictures) for pictures in crop] == [[100], [101], [102], [103]]


def test_treebench(tmp_path: Path) -> None:
    items, _ = read("treebench", bench_files.write_treebench(tmp_path))
    assert items[1].sample.privileged.boxes_px_xyxy == ((0, 0, 10, 10), (20, 0, 30, 10))
    assert items[1].sample.answer == "B"
    assert benchmark("treebench").prompt_tail(items[1]) == "\nAnswer with the correct option's letter directly."


def test_treebench_totals_accuracy_and_grounding(tmp_path: Path) -> None:
    items, _ = read("treebench", bench_files.write_treebench(tmp_path))
    texts = [
        ["It is at <box>[0,0,10,5]</box>. A"],  # half of the box: 0.5
        ["<box>[0, 0, 10, 10]</box> and <box>[100,100,110,110]</box>"],  # one of two boxes: (1 + 0) / 2
        ["<box>[0,0,10,10]</box>"],  # 25 of 100 + 100 - 25
        ["D"],  # none
    ]
    rows = [
        {"score": score, "categories": dict(item.categories), "texts": said, "extra": dict(item.extra)}
        for item, said, score in zip(items, texts, (1, 1, 0, 1), strict=True)
    ]
    totals = benchmark("treebench").aggregate(rows)
    assert totals["overall"] == 0.75
    assert totals["Reasoning/Occlusion"] == 0.5
    assert totals["mIoU"] == pytest.approx((0.5 + 0.5 + 1 / 7 + 0) / 4)
    assert "mIoU" not in benchmark("treebench").aggregate([{**row, "extra": {}} for row in rows])


def test_boxes_in_text() -> None:
    assert boxes_in("a <box>[1, 2.5, 3, 4]</box> b <box>5,6,7,8</box>") == [(1, 2.5, 3, 4), (5, 6, 7, 8)]
    assert boxes_in("<box>[3,2,1,4]</box> <box>[1,2,3]</box> <box>__import__('os')</box> [1,2,3,4]") == []
    assert grounding(["<box>[0,0,2,2]</box>", "<box>[0,0,4,2]</box>"], [[0, 0, 4, 2]]) == 1.0  # the best of several


def test_visualprobe(tmp_path: Path) -> None:
    items, source = read("visualprobe-hard", bench_files.write_visualprobe(tmp_path))
    assert [item.id for item in items] == ["d0", "d1", "d2", "d3"]
    assert golds(items) == ["blue", "7", "Main Street", "left"]
    assert numbers([item.sample.images[0] for item in items]) == [0, 1, 2, 3]
    view = make_view(items[0].sample, resolve_view("full"), "student")
    assert view.messages[-1].parts == (items[0].sample.images[0], "\nQuestion 0?")
    assert source.path.endswith("val.json")


# --- RealWorldQA, BLINK, CV-Bench, MMStar -----------------------------------------------------------------------------------


def test_realworldqa_takes_options_out_of_the_question(tmp_path: Path) -> None:
    items, _ = read("realworldqa", bench_files.write_realworldqa(tmp_path))
    assert golds(items) == ["C", "4", "Yes", "A"]
    assert items[0].sample.question == "Which way does the car point?"
    assert items[0].sample.options == ("Left", "Right", "Straight")
    assert benchmark("realworldqa").prompt_tail(items[0]).startswith("\nPlease answer directly with only the letter")
    assert items[1].sample.question.endswith("with a single word or number.")
    assert benchmark("realworldqa").prompt_tail(items[1]) == ""
    assert numbers([item.sample.images[0] for item in items]) == [0, 1, 2, 3]


def test_blink_of_the_hub(tmp_path: Path) -> None:
    items, source = read("blink", bench_files.write_blink(tmp_path))
    assert source.num_rows == 4  # val, and not the hidden test
    assert [numbers(item.sample.images) for item in items] == [[0], [2], [10, 11], [12, 13]]
    assert golds(items) == ["A", "B", "A", "B"]
    assert items[2].sample.question == "There are 2 pictures. Which?\nSelect from the following choices."
    view = make_view(items[2].sample, resolve_view("full"), "student")
    assert view.messages[-1].text.endswith("Select from the following choices.\nA. first\nB. second")


def test_blink_of_vlmevalkit(tmp_path: Path) -> None:
    items, _ = read("blink", bench_files.write_blink_tsv(tmp_path))
    assert [numbers(item.sample.images) for item in items] == [[0], [1], [2, 22], [3, 23]]
    assert [item.categories["sub_task"] for item in items] == ["Counting"] * 2 + ["Visual_Similarity"] * 2


def test_blink_totals_weigh_parts_equally() -> None:
    rows = scored((1, {"sub_task": "a"}), (1, {"sub_task": "a"}), (0, {"sub_task": "a"}), (0, {"sub_task": "b"}))
    assert benchmark("blink").aggregate(scored((1, {}), (0, {})))["overall"] == 0.5  # a copy that names no parts
    assert benchmark("blink").aggregate(rows) == {"overall": pytest.approx(1 / 3), "a": pytest.approx(2 / 3), "b": 0.0}


def test_cvbench(tmp_path: Path) -> None:
    items, source = read("cv-bench", bench_files.write_cvbench(tmp_path))
    assert source.num_rows == 5
    assert golds(items) == ["A", "B", "C", "A", "B"]
    assert items[0].sample.question == "How many, 0? Select from the following choices."
    assert numbers([item.sample.images[0] for item in items]) == [0, 1, 2, 3, 4]
    scores = (1, 1, 0, 0, 1)
    rows = scored(*((score, item.categories) for score, item in zip(scores, items, strict=True)))
    # ADE20K 1, COCO 1/2: 2D is 3/4; Omni3D 1/2; (3/4 + 1/2) / 2
    assert benchmark("cv-bench").aggregate(rows) == {
        "overall": 0.625, "2D": 0.75, "3D": 0.5, "ADE20K": 1.0, "COCO": 0.5, "Omni3D": 0.5,
        "Count": 1.0, "Relation": 0.0, "Depth": 0.0, "Distance": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("write", ["mmstar", "mmstar_tsv"])
def test_mmstar(tmp_path: Path, write: str) -> None:
    items, _ = read("mmstar", bench_files.WRITERS[write](tmp_path))
    assert golds(items) == ["A", "B", "C", "D"]
    assert [item.sample.question for item in items] == [f"Which, {number}?" for number in range(4)]
    assert items[0].sample.options[:3] == ("red", "a dog, or a cat", "blue")
    assert items[0].sample.options[3].lower() == "none"  # the word, and not an empty cell
    assert numbers([item.sample.images[0] for item in items]) == [0, 1, 2, 3]
    assert items[1].categories == {"category": "fine-grained perception", "l2": "fine-grained perception 2"}


# --- any table --------------------------------------------------------------------------------------------------------------


def test_custom_tsv(tmp_path: Path) -> None:
    items, source = read("custom", bench_files.write_custom(tmp_path))
    assert [item.id for item in items] == ["10", "11", "12", "13"]
    assert items[0].sample.question == 'Hint: Look\nclosely.\nSay "A"\tor not?'
    assert [item.sample.options for item in items] == [("yes", "no"), ("yes", "no", "None"), (), ("red", "blue")]
    assert golds(items) == ["B", "C", "a blue bag", "B"]
    assert [numbers(item.sample.images) for item in items] == [[1], [1], [2, 1], []]
    assert items[0].sample.privileged.boxes_px_xyxy == ((1, 2, 11, 12),)
    assert items[2].sample.privileged.boxes_px_xyxy == ((0, 0, 5, 5),)
    assert benchmark("custom").prompt_tail(items[2]) == ""
    assert source.num_rows == 4


@pytest.mark.parametrize("write", ["custom_local", "custom_jsonl", "custom_saved"])
def test_custom_in_other_forms(tmp_path: Path, write: str) -> None:
    items, source = read("custom", bench_files.WRITERS[write](tmp_path))
    assert len(items) == source.num_rows == 4
    assert items[1].sample.options == ("x", "y")
    assert numbers([item.sample.images[0] for item in items]) == [0, 1, 2, 3]


def test_synth_has_evidence_and_no_file() -> None:
    items, source = read("synth", Path("-"))
    assert len(items) == source.num_rows == 256
    assert len({item.id for item in items}) == 256
    first = items[0]
    assert first.id.startswith("detail-test-")
    assert len(make_view(first.sample, resolve_view("tiny.crop"), "student").pictures) == 1
    other, _ = benchmark("synth").read("place:dev:3")
    assert [item.categories["world"] for item in other] == ["place"] * 3
    assert other[2].id.startswith("place-dev-")
    for wrong in ("detial", "detail:test:0", "detail:all", "detail:test:3:4"):
        with pytest.raises(ValueError, match=r"WORLD\[:SPLIT\[:N\]\]"):
            benchmark("synth").read(wrong)


def test_names() -> None:
    assert benchmark("HRBench 4K") is BENCHMARKS["hrbench-4k"]
    assert benchmark("cv_bench") is BENCHMARKS["cv-bench"]
    with pytest.raises(ValueError, match="did you mean zoombench"):
        benchmark("zoom-bensh")
    assert all(name == name.lower() and one.name == name and one.title and one.source_note for name, one in BENCHMARKS.items())


# --- errors -----------------------------------------------------------------------------------------------------------------


def _rows(**changes: Any) -> list[dict[str, Any]]:
    row = {"index": 1, "image": bench_files.b64(1), "question": "?", "A": "x", "B": "y", "C": "z", "answer": "A"}
    return [row, {**row, "index": 2, **changes}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer": "Q"}, r"mine\.tsv, line 3: the answer 'Q' is none of 3 options; expected a letter of ABC"),
        ({"B": ""}, r"mine\.tsv, line 3: option B is empty and later ones are not"),
        ({"question": ""}, r"mine\.tsv, line 3: nothing in question; the columns here are index, image"),
        ({"image": "lost.jpg"}, r"mine\.tsv, line 3: no picture 'lost.jpg'; looked in"),
        ({"image": "https://example.org/a.jpg"}, r"mine\.tsv, line 3: https://.*not fetched from the net"),
        ({"image": "['a'"+ "x" * 10 + "]"}, r"mine\.tsv, line 3, image: not a list of pictures"),
    ],
)  # fmt: skip
def test_errors_name_file_and_row(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = bench_files.tsv(tmp_path / "mine.tsv", _rows(**changes))
    with pytest.raises(ValueError, match=said):
        read("custom", path)


def test_boxes_that_are_none(tmp_path: Path) -> None:
    path = bench_files.jsonl(tmp_path / "mine.jsonl", [{"question": "?", "answer": "a", "boxes": [[5, 5, 5, 9]]}])
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 1, boxes: box \[5, 5, 5, 9\] has no area"):
        read("custom", path)


def test_a_broken_picture_stops_nothing_before_it_is_looked_at(tmp_path: Path) -> None:
    broken = bench_files.b64(1)[:200]
    items, _ = read("custom", bench_files.tsv(tmp_path / "mine.tsv", _rows(image=broken[:90] * 12)))
    assert numbers(items[0].sample.images) == [1]
    with pytest.raises(PictureError, match=r"mine\.tsv, line 3, image"):
        items[1].sample.images[0].rgb()


def test_a_broken_line_of_json(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "?", "answer": "a"}\n{"question": \n')
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: not a readable row"):
        read("custom", tmp_path / "mine.jsonl")


def test_rows_of_the_wrong_width_are_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("question\tanswer\nOne?\tyes\nTwo?\tno\textra\nThree?\tno\n")
    items, source = read("custom", tmp_path)
    assert [item.sample.question for item in items] == ["One?", "Three?"]
    assert source.problems == ("line 3: 3 fields, the header has 2; row left out",)


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = bench_files.write_custom(tmp_path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"mine\.tsv, line 6: a quoted field never ends"):
        read("custom", path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing is downloaded.*TreeBench\.tsv"):
        read("treebench", tmp_path / "TreeBench.tsv")
    with pytest.raises(ValueError, match=r"one file is wanted and there is no file in \.tsv"):
        read("treebench", tmp_path)
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(ValueError, match="the file is empty"):
        read("custom", tmp_path / "empty.tsv")
    (tmp_path / "head.tsv").write_text("question\tanswer\n")
    with pytest.raises(ValueError, match="no rows"):
        read("custom", tmp_path / "head.tsv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"broken\.parquet: not a readable parquet file"):
        read("custom", tmp_path / "broken.parquet")


def test_an_id_used_twice(tmp_path: Path) -> None:
    items, _ = read("custom", bench_files.tsv(tmp_path / "mine.tsv", _rows(index=1)))
    assert [item.id for item in items] == ["1#0", "1#1"]


# --- reading ----------------------------------------------------------------------------------------------------------------


def test_pictures_stay_encoded_until_they_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    real = Picture.from_bytes
    monkeypatch.setattr(Picture, "from_bytes", lambda data, name: decoded.append(name) or real(data, name))  # type: ignore[func-returns-value]
    for write, name in (("hrbench", "hrbench-4k"), ("zoombench", "zoombench"), ("custom_saved", "custom")):
        items, _ = read(name, bench_files.WRITERS[write](tmp_path / write))
        kept = [items[place] for place in range(len(items))]
        assert decoded == []
        picture = kept[2].sample.images[0]
        assert picture.size_px[1] == 16  # from the header
        assert decoded == []
        assert picture.rgb() is picture.rgb()
        assert len(decoded) == 1
        decoded.clear()


def test_a_lazy_picture_is_the_same_picture(tmp_path: Path) -> None:
    items, _ = read("hrbench-4k", bench_files.write_hrbench(tmp_path))
    lazy, plain = items[0].sample.images[0], Picture.of(bench_files.tile(0))
    assert isinstance(lazy, LazyPicture)
    assert lazy.key == plain.key
    assert lazy == plain
    assert plain == lazy
    assert hash(lazy) == hash(plain)
    assert lazy.encoded() == bench_files.png(0)
    assert lazy != items[4].sample.images[0]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = bench_files.tsv(tmp_path / "mine.tsv", _rows())
    assert numbers(read("custom", path)[0][0].sample.images) == [1]
    bench_files.tsv(path, [{**row, "image": bench_files.b64(7)} for row in _rows()])
    assert numbers(read("custom", path)[0][0].sample.images) == [7]


def test_large_parquet_columns_in_any_order(tmp_path: Path) -> None:
    rows = [{"index": str(number), "image": {"bytes": bench_files.png(number) + bytes(4000), "path": ""}} for number in range(23)]
    path = bench_files.parquet(tmp_path / "test.parquet", rows, row_group=10)
    table = read_rows(str(path))
    for number in (0, 1, 22, 5, 4, 12, 11, 3, 22, 0):
        assert numbers(pictures_of(table[number])) == [number]
    assert table[3]["image"]["bytes"][:4] == b"\x89PNG"


@pytest.mark.parametrize("write", ["hrbench", "custom_jsonl", "custom_saved", "zoombench"])
def test_many_threads_read_the_same_pictures(tmp_path: Path, write: str) -> None:
    name = {"hrbench": "hrbench-4k", "zoombench": "zoombench"}.get(write, "custom")
    items, _ = read(name, bench_files.WRITERS[write](tmp_path))
    places = [place for _ in range(20) for place in range(len(items))]
    random.Random(0).shuffle(places)
    want = {place: numbers(items[place].sample.images) for place in range(len(items))}
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda place: numbers(items[place].sample.images), places)) == [want[place] for place in places]


def test_options_and_letters() -> None:
    assert lettered(["A. x", "B) y", "(C) z"]) == ("x", "y", "z")
    assert lettered(["A. x", "C. y"]) == ("A. x", "C. y")
    assert lettered(["Apple", "Banana"]) == ("Apple", "Banana")
    options = ["yes", "no", "A dog"]
    assert [letter_of(text, options, "") for text in ("b", "(C)", "B.", "C. A dog", "A dog", "NO")] == [
        "B",
        "C",
        "B",
        "C",
        "C",
        "B",
    ]
    for wrong in ("D", "", "maybe"):
        with pytest.raises(RowError):
            letter_of(wrong, options, "f, line 1")


def test_inline_options() -> None:
    assert split_inline("Q?\n(A) one\n(B) two\n\nAnswer.") == ("Q?", ("one", "two"), "Answer.")
    assert split_inline("A. Lincoln was born when?") == ("A. Lincoln was born when?", (), "")
    assert split_options("Q? Options: A: one, B: two, C: three") == ("Q?", ("one", "two", "three"))
    assert split_options("Q?") == ("Q?", ())


def test_accuracy_by_levels() -> None:
    rows = scored((1, {"category": "a", "l2": "a"}), (0, {"category": "b"}))
    assert accuracy(rows) == {"overall": 0.5, "a": 1.0, "b": 0.0, "l2: a": 1.0}


FIELD = st.text(st.sampled_from(list('ab"\t\n,é')), max_size=6)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=5),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    ending=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_delimited_rows_are_those_of_the_csv_module(
    tmp_path: Path, rows: list[tuple[str, str, str]], quoting: Any, ending: str, mark: bool
) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter="\t", quoting=quoting, lineterminator=ending)
    writer.writerows([("x", "y", "z"), *rows])
    path = tmp_path / "any.tsv"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + stream.getvalue().encode())
    table = Delimited(path, b"\t")
    assert table.columns == ("x", "y", "z")
    assert [tuple(table.field(index, name).decode() for name in "xyz") for index in range(len(table))] == rows
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from(list('ab"\t\n')), max_size=30))
def test_delimited_reads_loose_text_as_the_csv_module_does(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.tsv"
    path.write_text("x\ty\n" + text, encoding="utf-8", newline="")
    want = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t") if row]
    try:
        table = Delimited(path, b"\t")
    except ValueError:
        return  # an open quote at the end: the csv module takes what there is, we say that the file is cut short
    have = [[table.field(index, name).decode() for name in "xy"] for index in range(len(table))]
    assert have == [row for row in want if len(row) == 2]
    assert len(table.problems) == sum(len(row) != 2 for row in want)
