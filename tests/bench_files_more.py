"""Small files in the official layouts of benchmarks: pairs, yes and no, mathematics, videos. Each function fills a folder."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from video_files import greys, write_video


def png(seed: int, width: int = 24, height: int = 16) -> bytes:
    """One grey, so that a picture can be told by its first pixel."""
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), seed, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def base64_png(seed: int) -> str:
    return base64.b64encode(png(seed)).decode()


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path


def held(seed: int, name: str = "") -> dict[str, Any]:
    """A picture as Hugging Face's parquet files hold it."""
    return {"bytes": png(seed), "path": name or f"{seed}.png"}


def write_mmvp(folder: Path) -> Path:
    """Two pairs and half of a third."""
    pictures = folder / "MMVP Images"
    pictures.mkdir(parents=True)
    asked = ["Is the door open?", "Is the door open?", "Long or short tusks?", "Long or short tusks?", "One dog or two?"]
    options = ["(a) Open (b) Closed"] * 2 + ["(a) Long (b) Short"] * 2 + ["(a) One (b) Two (2)"]
    with (folder / "Questions.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Index", "Question", "Options", "Correct Answer"])
        for number, (question, own, answer) in enumerate(
            zip(asked, options, ["(a)", "(b)", "(b)", "(a)", "(b)"], strict=True), 1
        ):
            writer.writerow([number, question, own, answer])
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(pictures / f"{number}.jpg", quality=100)
    return folder


def write_mmvp_tsv(folder: Path) -> Path:
    """VLMEvalKit's layout: no Index, pictures as base64 with a reference to another row."""
    rows = [
        {"index": 0, "image": base64_png(1), "question": "Open?", "A": "Open", "B": "Closed", "answer": "A"},
        {"index": 1, "image": base64_png(2), "question": "Open?", "A": "Open", "B": "Closed", "answer": "B"},
        {"index": 2, "image": "0", "question": "Dark?", "A": "Yes", "B": "No", "answer": "A"},
        {"index": 3, "image": "1", "question": "Dark?", "A": "Yes", "B": "No", "answer": "B"},
    ]
    return write_tsv(folder / "MMVP.tsv", rows)


def write_pope(folder: Path) -> Path:
    """Four questions of the category adversarial and two of random."""
    asked = [("adversarial", "yes"), ("adversarial", "yes"), ("adversarial", "no"), ("adversarial", "no")]
    asked += [("random", "yes"), ("random", "no")]
    rows = [
        {
            "id": str(number), "question_id": str(number), "question": f"Is there a dog number {number} in the image?",
            "answer": answer, "image_source": "COCO_val2014_000000310196", "image": held(number), "category": category,
        }
        for number, (category, answer) in enumerate(asked)
    ]  # fmt: skip
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    return folder


def write_pope_tsv(folder: Path) -> Path:
    """VLMEvalKit's layout: a question asked in several categories is one row."""
    rows = [
        {"index": 0, "image": base64_png(1), "question": "Is there a cat?", "answer": "Yes", "category": "adversarial,popular"},
        {"index": 1, "image": "0", "question": "Is there a car?", "answer": "No", "category": "popular"},
    ]
    return write_tsv(folder / "POPE.tsv", rows)


WEMATH_KEYS = {
    "p1": ["2steps_1", "2steps_2", "2steps_multi"],
    "p2": ["2steps_1", "2steps_2", "2steps_multi"],
    "p3": ["2steps_1", "2steps_2", "2steps_multi"],
    "p4": ["3steps_1", "3steps_2", "3steps_3", "3steps_multi"],
    "p5": ["3steps_1", "3steps_2", "3steps_3", "3steps_multi"],
}


def _wemath(extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "ID": problem, "split": "testmini", "knowledge concept": "Area of a circle",
            "question": f"{problem}, {key}: how long?", "answer": "B", "key": key, "question number": number,
            "knowledge concept description": "...", **extra,
        }
        for problem, keys in WEMATH_KEYS.items()
        for number, key in enumerate(keys)
    ]  # fmt: skip


def write_wemath(folder: Path) -> Path:
    """Three problems of two steps, two of three; B is always right."""
    option = "A. 3.14 cm; B. 6.28 cm; C. 9.42 cm; D. No correct answer"
    write_parquet(folder / "testmini-00000.parquet", [{**row, "image_path": held(7)} for row in _wemath({"option": option})])
    return folder


def write_wemath_tsv(folder: Path) -> Path:
    rows = _wemath({"A": "3.14 cm", "B": "6.28 cm", "C": "No correct answer"})
    return write_tsv(folder / "WeMath.tsv", [{"index": n, "image": base64_png(7), **row} for n, row in enumerate(rows)])


MATHVISTA: list[dict[str, Any]] = [
    {
        "question": "What is the gap?",
        "choices": ["0", "2", "1"],
        "answer": "1",
        "question_type": "multi_choice",
        "answer_type": "text",
    },
    {"question": "How many birds?", "answer": "13", "answer_type": "integer"},
    {"question": "How long?", "unit": "cm", "precision": 2.0, "answer": "3.14", "answer_type": "float"},
    {"question": "What share?", "precision": 1.0, "answer": "0.6", "answer_type": "float"},
    {"question": "Which years?", "answer": "[2007, 2008]", "answer_type": "list"},
]


def write_mathvista(folder: Path) -> Path:
    tasks = ["figure question answering", "math word problem"]
    rows = [
        {
            "pid": str(number + 1), "image": f"images/{number + 1}.jpg", "decoded_image": held(number), "query": "Hint: ...",
            "choices": None, "unit": None, "precision": None, "question_type": "free_form", **row,
            "metadata": {
                "category": "general-vqa" if number == 1 else "math-targeted-vqa", "context": "photo", "grade": "daily life",
                "img_height": 16, "img_width": 24, "language": "english", "skills": ["arithmetic"], "source": "x",
                "split": "testmini", "task": tasks[number == 1],
            },
        }
        for number, row in enumerate(MATHVISTA)
    ]  # fmt: skip
    write_parquet(folder / "data" / "testmini-00000-of-00001.parquet", rows)
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [{**row, "answer": None} for row in rows])
    return folder


def write_mathvista_tsv(folder: Path) -> Path:
    """VLMEvalKit's layout: the question is the whole query, hint and choices included."""
    hint = "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
    free = (
        "Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.\n"
    )
    shared = {"image": base64_png(3), "task": "geometry problem solving", "skills": "['geometry reasoning']"}
    rows = [
        {
            "index": 1, "question": f"{hint}Question: Find x.\nChoices:\n(A) 3\n(B) 5", "answer": "5", "answer_option": "B",
            "choices": "['3', '5']", "question_type": "multi_choice", "answer_type": "text", "precision": "", **shared,
        },
        {
            "index": 2, "question": f"{free}Question: How many?", "answer": "4", "answer_option": "", "choices": "",
            "question_type": "free_form", "answer_type": "integer", "precision": "1.0", **shared,
        },
    ]  # fmt: skip
    return write_tsv(folder / "MathVista_MINI.tsv", rows)


def write_mathverse(folder: Path) -> Path:
    """A problem with choices in three versions, and a free one in two."""
    choices = "Choices:\nA:50°\nB:60°\nC:130°"
    asked = [
        ("Text Dominant", f"In triangle ABC, angle A is 50°. Find angle D. ()\n{choices}", "multi-choice", "C", 1),
        ("Vision Intensive", f"Find angle D. ()\n{choices}", "multi-choice", "C", 1),
        ("Vision Only", "", "multi-choice", "C", 1),
        ("Text Dominant", "AB is 3 and BC is 4. Find the length of AC as a fraction of BC.", "free-form", r"\frac{5}{4}", 2),
        ("Text Only", "AB is 3 and BC is 4. Find the length of AC as a fraction of BC.", "free-form", r"\frac{5}{4}", 2),
    ]
    rows = [
        {
            "sample_index": str(number + 1), "problem_index": str(problem), "problem_version": version, "question": question,
            "image": None if version == "Text Only" else held(number), "answer": answer, "question_type": kind,
            "metadata": {"split": "testmini", "source": "Geo", "subject": "Plane Geometry", "subfield": "Angle"},
            "query_wo": "Please directly answer ...", "query_cot": "Please first conduct reasoning ...",
            "question_for_eval": question,
        }
        for number, (version, question, kind, answer, problem) in enumerate(asked)
    ]  # fmt: skip
    write_parquet(folder / "testmini.parquet", rows)
    write_parquet(folder / "testmini_text_dominant.parquet", rows[:1])
    return folder


def write_mathvision(folder: Path) -> Path:
    asked = [
        ("<image1> Which figure fits?", ["A", "B", "C", "D", "E"], "D", 1, "transformation geometry"),
        ("What is the largest share in\n<image1>\nof all?", [r"$\frac{1}{2}$", r"$\frac{2}{3}$"], "B", 1, "algebra"),
        ("What is the area?\n<image1>", [], "1.5", 5, "algebra"),
    ]
    rows = [
        {
            "id": str(number + 4), "question": question, "options": options, "image": f"images/{number + 4}.jpg",
            "decoded_image": held(number), "answer": answer, "solution": None, "level": level, "subject": subject,
        }
        for number, (question, options, answer, level, subject) in enumerate(asked)
    ]  # fmt: skip
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    return folder


VIDEOS = {"fFjv93ACGo8": 6, "N1cdUjctpG8": 12}
"""Name and frames of two videos of ten frames a second."""


def _videos(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, count in VIDEOS.items():
        write_video(folder / f"{name}.mp4", greys(count))


def write_videomme(folder: Path) -> Path:
    """Two questions about a short video, one about a long one; the parquet lies in videomme/, the videos in data/."""
    _videos(folder / "data")
    options = ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."]
    asked = [("fFjv93ACGo8", "short", "C"), ("fFjv93ACGo8", "short", "A"), ("N1cdUjctpG8", "long", "D")]
    rows = [
        {
            "video_id": f"{number:03}", "duration": duration, "domain": "Knowledge", "sub_category": "Humanity & History",
            "url": f"https://www.youtube.com/watch?v={name}", "videoID": name, "question_id": f"{number:03}-1",
            "task_type": "Counting Problem", "question": f"Question {number}?", "options": options, "answer": answer,
        }
        for number, (name, duration, answer) in enumerate(asked)
    ]  # fmt: skip
    write_parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    return folder


def write_videomme_tsv(folder: Path) -> Path:
    """VLMEvalKit's layout: paths below ``video/`` and the options as the text of a list."""
    _videos(folder / "video")
    row = {
        "index": 0, "video": "N1cdUjctpG8", "video_path": "./video/N1cdUjctpG8.mp4", "duration": "medium", "domain": "Knowledge",
        "candidates": "['A. One.', 'B. Two.', 'C. Three.', 'D. Four.']", "sub_category": "Law", "task_type": "OCR Problems",
        "subtitle_path": "./subtitle/N1cdUjctpG8.srt", "question": "How many?", "answer": "B",
    }  # fmt: skip
    return write_tsv(folder / "Video-MME.tsv", [row])


def write_longvideobench(folder: Path) -> Path:
    _videos(folder / "videos")
    names, asked = list(VIDEOS), [(0, 15, "T2E", 1), (0, 600, "T2E", 0), (1, 600, "E2O", 4)]
    rows = [
        {
            "video_id": names[video], "question": f"When {number}?", "question_wo_referring_query": "?", "correct_choice": right,
            "candidates": ["a hat", "a coat", "a glove", "a shoe", "a scarf"][: right + 2], "topic_category": "KH-Knowledge",
            "question_category": category, "level": "L1-Perception", "id": f"{names[video]}_{number}",
            "video_path": f"{names[video]}.mp4", "subtitle_path": f"{names[video]}_en.json", "duration_group": group,
            "starting_timestamp_for_subtitles": 0, "duration": 1.2, "position": [3], "view_count": 1,
        }
        for number, (video, group, category, right) in enumerate(asked)
    ]  # fmt: skip
    (folder / "lvb_val.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder
