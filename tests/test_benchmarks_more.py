"""Benchmarks of pairs, yes and no, mathematics and videos: small official files are read, asked and scored; sums by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_files_more as files
import numpy as np
import pytest
from video_files import numbers_of

from foveate.datasets.views import ViewSpec, make_view
from foveate.eval import lazy_clips, scoring
from foveate.eval.benchmarks.longvideobench import LONGVIDEOBENCH
from foveate.eval.benchmarks.mathverse import MATHVERSE
from foveate.eval.benchmarks.mathvision import MATHVISION
from foveate.eval.benchmarks.mathvista import MATHVISTA
from foveate.eval.benchmarks.mmvp import MMVP
from foveate.eval.benchmarks.pope import POPE
from foveate.eval.benchmarks.videomme import VIDEO_MME
from foveate.eval.benchmarks.wemath import WEMATH, inline_options
from foveate.eval.lazy_clips import LazyClip
from foveate.eval.records import Item, Played
from foveate.vlm.messages import Clip


def read(benchmark: Any, path: Path) -> list[Item]:
    items, source = benchmark.read(str(path))
    assert source.num_rows == len(items)
    assert len(source.sha256) == 64
    assert not source.problems
    return list(items)


def rows_of(items: Sequence[Item], replies: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"item": one.id, "group": one.group, "categories": dict(one.categories), "gold": one.sample.answer}
        | scoring.score(one, Played((reply,), "answered"))
        for one, reply in zip(items, replies, strict=True)
    ]


def close(numbers: Mapping[str, float], **expected: float) -> None:
    own = {name.replace("_", " "): value for name, value in expected.items()}
    assert {name: numbers.get(name) for name in own} == pytest.approx(own)


def grey(item: Item, picture: int = 0) -> int:
    return int(np.asarray(item.sample.images[picture].rgb())[0, 0, 0])


def prompt(benchmark: Any, item: Item) -> str:
    """What mode direct writes."""
    text = "".join(part for part in make_view(item.sample, ViewSpec(), "student").messages[-1].parts if isinstance(part, str))
    return text + benchmark.prompt_tail(item)


# ---- MMVP ----------------------------------------------------------------------------------------------------------------------


def test_mmvp_counts_pairs(tmp_path: Path) -> None:
    items = read(MMVP, files.write_mmvp(tmp_path))
    assert [one.sample.answer for one in items] == ["A", "B", "B", "A", "B"]
    assert [one.group for one in items] == ["pair 0", "pair 0", "pair 1", "pair 1", "pair 2"]
    assert items[4].sample.options == ("One", "Two (2)")
    assert abs(grey(items[3]) - 4) <= 1
    assert prompt(MMVP, items[0]) == (
        "Is the door open?\nA. Open\nB. Closed\nAnswer with the option's letter from the given choices directly."
    )
    numbers = MMVP.aggregate(rows_of(items, ["A", "B", "Short", "B", "(B)"]))
    assert numbers == pytest.approx({"overall": 1 / 2, "questions": 4 / 5})  # the half pair counts as a question only


def test_mmvp_in_the_other_layout(tmp_path: Path) -> None:
    items = read(MMVP, files.write_mmvp_tsv(tmp_path))
    assert [(grey(one), one.group) for one in items] == [(1, "pair 0"), (2, "pair 0"), (1, "pair 1"), (2, "pair 1")]
    numbers = MMVP.aggregate(rows_of(items, ["A", "", "Yes.", "No."]))
    assert numbers == pytest.approx({"overall": 1 / 2, "questions": 3 / 4})


def test_mmvp_without_a_picture_says_which(tmp_path: Path) -> None:
    files.write_mmvp(tmp_path)
    (tmp_path / "MMVP Images" / "3.jpg").unlink()
    with pytest.raises(ValueError, match=r"line 4: no picture 'MMVP Images/3.jpg'"):
        MMVP.read(str(tmp_path))


# ---- POPE ----------------------------------------------------------------------------------------------------------------------


def test_pope_counts_what_was_said(tmp_path: Path) -> None:
    items = read(POPE, files.write_pope(tmp_path))
    assert prompt(POPE, items[2]) == ("Is there a dog number 2 in the image?\nAnswer the question using a single word or phrase.")
    assert grey(items[5]) == 5
    # references yes yes no no | yes no; replies yes, nothing, yes, no | yes, no
    numbers = POPE.aggregate(rows_of(items, ["Yes.", "Perhaps.", "Yes, there is a dog.", "no", "yes", "No dog is there: no."]))
    close(numbers, overall=4 / 6, accuracy=4 / 6, precision=2 / 3, recall=2 / 3, f1=2 / 3, yes_ratio=3 / 6)
    own = {name.partition(": ")[2]: value for name, value in numbers.items() if name.startswith("adversarial: ")}
    assert own == pytest.approx({"accuracy": 2 / 4, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "yes ratio": 2 / 4})
    own = {name.partition(": ")[2]: value for name, value in numbers.items() if name.startswith("random: ")}
    assert own == pytest.approx({"accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes ratio": 1 / 2})


def test_pope_with_several_categories_of_a_question_and_no_yes_at_all(tmp_path: Path) -> None:
    items = read(POPE, files.write_pope_tsv(tmp_path))
    assert [one.sample.answer for one in items] == ["yes", "no"]
    numbers = POPE.aggregate(rows_of(items, ["No.", "No."]))
    close(numbers, overall=1 / 2, precision=0, recall=0, f1=0, yes_ratio=0)
    assert (numbers["adversarial: accuracy"], numbers["popular: accuracy"]) == (0, 1 / 2)


def test_a_runaway_says_neither_yes_nor_no(tmp_path: Path) -> None:
    items = read(POPE, files.write_pope_tsv(tmp_path))
    numbers = POPE.aggregate(rows_of(items, ["word " * 2001 + "\nAnswer: yes", "yes"]))
    close(numbers, overall=0, precision=0, recall=0, yes_ratio=1 / 2)


# ---- We-Math -------------------------------------------------------------------------------------------------------------------

RIGHT, WRONG = "Answer: B", "Answer: A"
SOLVED = {  # problem: its steps, then the whole
    "p1": [RIGHT, RIGHT, RIGHT],  # CM
    "p2": [RIGHT, WRONG, RIGHT],  # strict RM, loose CM
    "p3": [RIGHT, RIGHT, WRONG],  # IG
    "p4": [WRONG, "no idea", WRONG, RIGHT],  # RM
    "p5": [RIGHT, WRONG, RIGHT, WRONG],  # IK
}


@pytest.mark.parametrize("write", [files.write_wemath, files.write_wemath_tsv])
def test_wemath_tells_mastery_from_memory(tmp_path: Path, write: Any) -> None:
    items = read(WEMATH, write(tmp_path))
    assert items[0].id == "p1-2steps_1"
    assert items[0].sample.options[:2] == ("3.14 cm", "6.28 cm")
    assert items[-1].group == "3steps p5"
    numbers = WEMATH.aggregate(rows_of(items, [reply for replies in SOLVED.values() for reply in replies]))
    close(numbers, IK=1 / 5, IG=1 / 5, strict=1 / 5 + 1 / 10, loose=2 / 5 + 1 / 10, overall=3 / 10)
    close(numbers, CM_strict=1 / 5, CM_loose=2 / 5, RM_strict=2 / 3, RM_loose=1 / 3)
    # steps: 2, 1, 2 right of 2 each, 0 and 2 right of 3 each; wholes: 2 of 3 and 1 of 2
    close(numbers, one_step=7 / 12, two_steps=2 / 3, three_steps=1 / 2)


def test_wemath_leaves_incomplete_problems_out(tmp_path: Path) -> None:
    items = read(WEMATH, files.write_wemath(tmp_path))[:5]  # p1, and p2 without its whole
    close(WEMATH.aggregate(rows_of(items, [RIGHT] * 5)), overall=1, IK=0, RM_strict=0)
    assert WEMATH.aggregate([])["overall"] == 0


def test_wemath_reads_options_of_a_line() -> None:
    assert inline_options("A. 3.5 cm; B. 4 cm;C、A circle； D：none") == ("3.5 cm", "4 cm", "A circle", "none")
    assert inline_options("no options") == ()


def test_wemath_names_a_row_with_a_strange_key(tmp_path: Path) -> None:
    rows = [{"ID": "1", "key": "4steps_1", "question": "?", "option": "A. 1; B. 2", "answer": "A", "image_path": files.held(1)}]
    path = files.write_parquet(tmp_path / "testmini.parquet", rows)
    with pytest.raises(ValueError, match=r"testmini.parquet.*the key '4steps_1'"):
        WEMATH.read(str(path))


@pytest.mark.parametrize("benchmark", [MMVP, POPE, WEMATH, MATHVISTA, MATHVERSE, MATHVISION, VIDEO_MME, LONGVIDEOBENCH])
def test_rows_of_items_that_could_not_be_read_are_wrong(benchmark: Any) -> None:
    unread = {"item": "#1", "group": "", "categories": {}, "gold": None, "parsed": None, "outcome": "failed", "score": 0.0}
    assert benchmark.aggregate([unread, unread])["overall"] == 0.0


# ---- MathVista -----------------------------------------------------------------------------------------------------------------


def test_mathvista(tmp_path: Path) -> None:
    items = read(MATHVISTA, files.write_mathvista(tmp_path))
    assert [one.kind for one in items] == ["choice", "number", "rounded", "rounded", "list"]
    assert items[0].sample.answer == "C"  # the text "1", not the option's number
    assert prompt(MATHVISTA, items[0]) == (
        "What is the gap?\nA. 0\nB. 2\nC. 1\n"
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
    )
    assert prompt(MATHVISTA, items[2]) == (
        "How long? (Unit: cm)\nHint: Please answer the question requiring a floating-point number with two decimal places and "
        "provide the final value, e.g., 1.23, 1.34, 1.45, at the end."
    )
    assert grey(items[3]) == 3
    replies = ["The answer is C.", "There are 13 birds.", "Answer: 3.1416 cm", "0.5", "[2007, 2008]"]
    numbers = MATHVISTA.aggregate(rows_of(items, replies))
    assert numbers["overall"] == pytest.approx(4 / 5)
    assert numbers["figure question answering"] == pytest.approx(3 / 4)
    assert (numbers["math word problem"], numbers["rounded"], numbers["list"]) == pytest.approx((1, 1 / 2, 1))


def test_mathvistas_test_split_has_no_references(tmp_path: Path) -> None:
    files.write_mathvista(tmp_path)
    items = read(MATHVISTA, tmp_path / "data" / "test-00000-of-00001.parquet")
    assert [row["outcome"] for row in rows_of(items, ["C", "1", "0.5", "0.5", "[1]"])] == ["unscored"] * 5


def test_mathvistas_whole_query_is_taken_apart(tmp_path: Path) -> None:
    first, second = read(MATHVISTA, files.write_mathvista_tsv(tmp_path))
    assert (first.sample.question, first.sample.options, first.sample.answer) == ("Find x.", ("3", "5"), "B")
    assert (second.sample.question, second.sample.options, second.sample.answer) == ("How many?", (), "4")
    assert first.categories["task"] == "geometry problem solving"
    assert [row["score"] for row in rows_of([first, second], ["Answer: 5", r"\boxed{4}"])] == [1, 1]


# ---- MathVerse -----------------------------------------------------------------------------------------------------------------


def test_mathverse(tmp_path: Path) -> None:
    items = read(MATHVERSE, files.write_mathverse(tmp_path))
    assert items[1].sample.options == ("50°", "60°", "130°")
    assert items[1].sample.question == "Find angle D. ()"
    assert items[2].sample.options == ()  # they are in the picture
    assert prompt(MATHVERSE, items[2]).startswith(
        "Answer the question that is shown in the image.\nPlease first conduct reasoning"
    )
    assert prompt(MATHVERSE, items[3]).endswith("provide the final value, e.g., 1, 2.5, 300, at the end.")
    assert [len(one.sample.images) for one in items] == [1, 1, 1, 1, 0]
    assert [one.group for one in items] == ["problem 1"] * 3 + ["problem 2"] * 2
    rows = rows_of(items, ["So it is C.", "130°", "Answer: C", r"It is \boxed{1.25}", r"\boxed{2}"])
    assert [row["score"] for row in rows] == [1, 1, 1, 1, 0]
    close(MATHVERSE.aggregate(rows), overall=1, Text_Only=0, Plane_Geometry=4 / 5)
    rows = rows_of(items, ["A", "C", "B", "1.25", "1.25"])
    # Text Dominant 1/2, Vision Intensive 1, Vision Only 0, and Text Only aside
    close(MATHVERSE.aggregate(rows), overall=1 / 2, Text_Dominant=1 / 2, Vision_Intensive=1, Vision_Only=0, Text_Only=1)


def test_mathverse_takes_an_instruction_off_the_question(tmp_path: Path) -> None:
    row = {
        "index": 1,
        "image": files.base64_png(1),
        "problem_version": "Vision Only",
        "question_type": "free-form",
        "answer": "7",
    }
    asked = ["Please directly answer the question and provide the final value.\nQuestion: How far?", ""]
    asked[1] = "According to the question shown in the image, please directly answer the question and provide the final value."
    rows = [{**row, "index": number, "question": question} for number, question in enumerate(asked)]
    items = read(MATHVERSE, files.write_tsv(tmp_path / "MathVerse_MINI.tsv", rows))
    assert [one.sample.question for one in items] == ["How far?", "Answer the question that is shown in the image."]


# ---- MATH-Vision ---------------------------------------------------------------------------------------------------------------


def test_mathvision(tmp_path: Path) -> None:
    items = read(MATHVISION, files.write_mathvision(tmp_path))
    parts = make_view(items[1].sample, ViewSpec(), "student").messages[-1].parts
    assert [part if isinstance(part, str) else "picture" for part in parts] == [
        "What is the largest share in\n", "picture", "\nof all?\nA. $\\frac{1}{2}$\nB. $\\frac{2}{3}$",
    ]  # fmt: skip
    assert scoring.shuffled(items[0], 3)[1] == (0, 1, 2, 3, 4)  # labels of figures in the picture
    assert prompt(MATHVISION, items[2]).endswith('only one letter is allowed in the "\\boxed{}".')
    numbers = MATHVISION.aggregate(rows_of(items, [r"\boxed{D}", r"\boxed{A}", r"\boxed{\frac{3}{2}}"]))
    assert numbers["overall"] == pytest.approx(2 / 3)
    assert (numbers["1"], numbers["5"], numbers["algebra"]) == pytest.approx((1 / 2, 1, 1 / 2))


# ---- videos --------------------------------------------------------------------------------------------------------------------


def test_videomme(tmp_path: Path) -> None:
    items = read(VIDEO_MME, files.write_videomme(tmp_path))
    assert [one.id for one in items] == ["000-1", "001-1", "002-1"]
    assert items[0].sample.options == ("Apples.", "Candles.", "Berries.", "The three kinds are of the same number.")
    clip = items[2].sample.video
    assert isinstance(clip, LazyClip)
    assert not [how for how in lazy_clips._held if tmp_path in how[0].parents]  # nothing is decoded to read the questions
    assert numbers_of(clip.frames) == [0, 4, 7, 11]  # 1.2 s at two a second, and four at least
    assert clip.times_s == pytest.approx((0, 0.4, 0.7, 1.1))
    assert clip.source is not None
    assert numbers_of(clip.source.frames_at([0.5]).frames) == [5]
    assert prompt(VIDEO_MME, items[0]).endswith(
        "Respond with only the letter (A, B, C, or D) of the correct option.\nThe best answer is:"
    )
    assert make_view(items[2].sample, ViewSpec(), "student").messages[-1].parts[0] == clip
    numbers = VIDEO_MME.aggregate(rows_of(items, ["C", "B", "Answer: D"]))
    close(numbers, overall=2 / 3, short=1 / 2, long=1, Knowledge=2 / 3)


def test_videomme_in_the_other_layout_and_with_fewer_frames(tmp_path: Path) -> None:
    fewer = dataclasses.replace(VIDEO_MME, max_frames=2, max_pixels=32 * 24)
    (one,) = read(fewer, files.write_videomme_tsv(tmp_path))
    assert (one.sample.options, one.sample.answer) == (("One.", "Two.", "Three.", "Four."), "B")
    assert isinstance(one.sample.video, Clip)
    assert numbers_of(one.sample.video.frames) == [0, 11]
    assert one.sample.video.frames[0].width_px <= 32


def test_clips_are_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [one.sample.video for one in read(VIDEO_MME, files.write_videomme(tmp_path))]
    assert clips[0] is not None
    monkeypatch.setattr(lazy_clips, "_HELD_BYTES", clips[0].frames[0].width_px)
    lazy_clips._held.clear()
    for clip in clips:
        assert clip is not None
        assert len(clip.frames) == len(clip.times_s) == 4
        assert len(lazy_clips._held) == 1
    assert clips[0] == clips[1] != clips[2]


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    files.write_videomme(tmp_path)
    (tmp_path / "data" / "N1cdUjctpG8.mp4").unlink()
    with pytest.raises(ValueError, match=r"no video N1cdUjctpG8.mp4; extract the archives"):
        VIDEO_MME.read(str(tmp_path))


def test_longvideobench(tmp_path: Path) -> None:
    items = read(LONGVIDEOBENCH, files.write_longvideobench(tmp_path))
    assert [one.sample.answer for one in items] == ["B", "A", "E"]
    assert items[1].sample.options == ("a hat", "a coat")
    assert items[2].sample.video is not None
    assert numbers_of(items[2].sample.video.frames) == [0, 4, 7, 11]
    assert prompt(LONGVIDEOBENCH, items[1]) == (
        "When 1?\nA. a hat\nB. a coat\nAnswer with the option's letter from the given choices directly."
    )
    numbers = LONGVIDEOBENCH.aggregate(rows_of(items, ["a coat", "B", "(E)"]))
    assert numbers["overall"] == pytest.approx(2 / 3)
    assert (numbers["up to 15 s"], numbers["up to 600 s"], numbers["T2E"], numbers["E2O"]) == pytest.approx((1, 1 / 2, 1 / 2, 1))


def test_longvideobench_with_options_in_columns_and_a_wrong_choice(tmp_path: Path) -> None:
    files.write_longvideobench(tmp_path)
    rows = json.loads((tmp_path / "lvb_val.json").read_text(encoding="utf-8"))
    for row in rows:
        candidates = row.pop("candidates")
        row |= {f"option{number}": (candidates + ["N/A"] * 5)[number] for number in range(5)}
    (tmp_path / "lvb_val.json").write_text(json.dumps(rows), encoding="utf-8")
    assert [len(one.sample.options) for one in read(LONGVIDEOBENCH, tmp_path)] == [3, 2, 5]
    rows[1]["correct_choice"] = 3
    (tmp_path / "lvb_val.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ValueError, match="correct_choice '3' of 2 options"):
        LONGVIDEOBENCH.read(str(tmp_path))
