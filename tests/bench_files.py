"""Small local copies of benchmarks in the layouts of their releases: ``write_NAME(folder)`` writes one and returns its path.

    python tests/bench_files.py FOLDER        writes all of them, a folder each

The pictures are plain tiles whose size and colour tell their number (`tile`), so that a test sees which one it was given.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
VSTAR_TAIL = "Answer with the option's letter from the given choices directly."


def tile(number: int, width: int = 0, height: int = 16) -> Image.Image:
    """A picture of one colour: ``(number, 100, 200)``, ``24 + number`` px wide."""
    return Image.new("RGB", (width or 24 + number, height), (number, 100, 200))


def png(number: int) -> bytes:
    stream = io.BytesIO()
    tile(number).save(stream, format="PNG")
    return stream.getvalue()


def b64(number: int) -> str:
    """A tile in base64, longer than the 64 characters up to which a cell is taken for a row's index."""
    return base64.b64encode(png(number)).decode()


def hf_image(number: int) -> dict[str, Any]:
    return {"bytes": png(number), "path": f"{number}.png"}


def save(path: Path, number: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    return path.name


def tsv(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = "\t", quoting: Any = csv.QUOTE_ALL) -> Path:
    """A table as VLMEvalKit writes it: every field in quotes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path: Path, rows: Sequence[Mapping[str, Any]], images: Sequence[str] = ("image",), row_group: int = 2) -> Path:
    """A table as the hub stores it, two rows a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        columns[name] = pyarrow.array(values, IMAGE) if name in images else pyarrow.array(values)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group)
    return path


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- V* ---------------------------------------------------------------------------------------------------------------------

_VSTAR = (
    ("direct_attributes", "sa_1", "What is the colour of the cup?", ["It is red.", "It is blue.", "It is green.", "x"]),
    ("direct_attributes", "sa_2", "What is the material of the lamp?", ["Glass.", "Wood.", "Steel.", "Clay."]),
    ("direct_attributes", "sa_3", "What is the colour of the bag?", ["Black.", "White.", "Pink.", "Grey."]),
    ("relative_position", "sa_4", "Is the dog left or right of the car?", ["Left of the car.", "Right of the car."]),
    ("relative_position", "sa_5", "Is the bin above or below the sign?", ["Below the sign.", "Above the sign."]),
)  # fmt: skip


def write_vstar_tree(folder: Path) -> Path:
    """The authors' folders; the first option is always the right one, and boxes are x, y, width, height."""
    for number, (part, name, question, options) in enumerate(_VSTAR):
        save(folder / part / f"{name}.jpg", number)
        boxes = [[2, 3, 10, 5]] if part == "direct_attributes" else [[0, 0, 4, 4], [10, 2, 6, 8]]
        note = {"target_object": ["it"], "bbox": boxes, "question": question, "options": options}
        (folder / part / f"{name}.json").write_text(json.dumps(note), encoding="utf-8")
    return folder


def _vstar_rows() -> list[dict[str, Any]]:
    """Options turned by one place each row, so that the right letter is A, B, C, A, B."""
    rows = []
    for number, (part, name, question, options) in enumerate(_VSTAR):
        turn = (0, 1, 2, 0, 1)[number]
        shown = [*options[1 : turn + 1], options[0], *options[turn + 1 :]]
        lines = "".join(f"\n({letter}) {option}" for letter, option in zip("ABCD", shown, strict=False))
        rows.append(
            {"image": f"{part}/{name}.jpg", "text": f"{question}{lines}\n{VSTAR_TAIL}", "category": part,
             "label": "ABC"[turn], "question_id": str(number)}
        )  # fmt: skip
    return rows


def write_vstar_jsonl(folder: Path) -> Path:
    """The folders with ``test_questions.jsonl`` beside them, as they are released."""
    write_vstar_tree(folder)
    jsonl(folder / "test_questions.jsonl", _vstar_rows())
    return folder


def write_vstar_parquet(folder: Path) -> Path:
    rows = [{**row, "image": hf_image(number)} for number, row in enumerate(_vstar_rows())]
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    return folder


def write_vstar_tsv(folder: Path) -> Path:
    rows = []
    for number, (part, _, question, options) in enumerate(_VSTAR):
        four = [*options, "", ""][:4]
        rows.append(
            {"index": number, "image": b64(number), "question": question, **dict(zip("ABCD", four, strict=True)),
             "answer": "A", "category": part}
        )  # fmt: skip
    return tsv(folder / "VStarBench.tsv", rows)


# --- HR-Bench ---------------------------------------------------------------------------------------------------------------


def _hrbench_rows() -> list[dict[str, Any]]:
    """Two questions in four cycles each; the options move round by one each cycle. The last rows refer to pictures of others."""
    rows = []
    for question, (category, options) in enumerate((("single", "red blue green grey"), ("cross", "one two three four"))):
        words = options.split()
        for cycle in range(4):
            index = 4 * question + cycle
            turned = words[-cycle:] + words[:-cycle] if cycle else words
            rows.append(
                {"index": index, "question": f"Question {question}, with a \"quoted\" word?", "answer": "ABCD"[cycle],
                 "category": category, **dict(zip("ABCD", turned, strict=True)), "cycle_category": cycle,
                 "image": b64(question) if cycle == 0 else str(4 * question)}
            )  # fmt: skip
    return rows


def write_hrbench(folder: Path) -> Path:
    """A TSV; the cycles after the first refer to the first one's picture by its index."""
    return tsv(folder / "hr_bench_4k.tsv", _hrbench_rows())


def write_hrbench_parquet(folder: Path) -> Path:
    """Base64 text in a parquet column, as released."""
    rows = [{**row, "image": b64(row["index"] // 4), "index": str(row["index"])} for row in _hrbench_rows()]
    return parquet(folder / "hr_bench_8k.parquet", rows, images=())


# --- MME-RealWorld ----------------------------------------------------------------------------------------------------------


def _mme_rows() -> list[dict[str, Any]]:
    tasks = (
        ("Perception/Remote Sensing", "color"), ("Perception/Remote Sensing", "count"),
        ("Perception/OCR with Complex Context", "text"), ("Reasoning/Monitoring", "intention"),
    )  # fmt: skip
    return [
        {"index": number, "question": f"What is object {number}?", "category": category, "l2-category": level,
         "answer": "ABCDE"[number],
         "multi-choice options": str([f"({letter}) {letter.lower()}{number}" for letter in "ABCD"]
                                     + ["(E) The image does not feature it."])}
        for number, (category, level) in enumerate(tasks)
    ]  # fmt: skip


def write_mme_realworld(folder: Path) -> Path:
    return tsv(folder / "MME-RealWorld.tsv", [{**row, "image": b64(number)} for number, row in enumerate(_mme_rows())])


def write_mme_realworld_lite(folder: Path) -> Path:
    """The hub's form: base64 in ``bytes``, options a list."""
    rows = []
    for number, row in enumerate(_mme_rows()):
        options = [f"({letter}) {letter.lower()}{number}" for letter in "ABCD"] + ["(E) Not in it."]
        rows.append({**row, "index": str(number), "multi-choice options": options, "bytes": b64(number)})
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows, images=())
    return folder


def write_mme_realworld_cn(folder: Path) -> Path:
    """Full-width brackets around the letters."""
    rows = []
    for number, row in enumerate(_mme_rows()):
        options = str([f"（{letter}）选项{letter}{number}" for letter in "ABCDE"])
        rows.append({**row, "question": f"物体{number}是什么？", "multi-choice options": options, "image": b64(number)})
    return tsv(folder / "MME-RealWorld-CN.tsv", rows)


# --- ZoomBench, TreeBench, VisualProbe --------------------------------------------------------------------------------------


def write_zoombench(folder: Path, renamed: bool = False) -> Path:
    """``query, response`` or, renamed, ``prompt, answer``; rows 0 and 1 have options, rows 2 and 3 an open answer."""
    question, answer = ("prompt", "answer") if renamed else ("query", "response")
    texts = [
        ("What is on the sign?\nA. a cat\nB. a dog\nC. a car\nD. a tree", "B"),
        ("Which way?\nA. left\nB. right\nAnswer with the option's letter.", "A"),
        ("How many birds are there?", "3"),
        ("What does the plate say?", "KX 42"),
    ]
    rows = [
        {"id": f"z{number}", question: text, answer: gold, "image": hf_image(number), "crop_image": hf_image(100 + number)}
        for number, (text, gold) in enumerate(texts)
    ]
    return parquet(folder / "data" / "test.parquet", rows, images=("image", "crop_image"))


def write_treebench(folder: Path) -> Path:
    rows = [
        {"index": number, "image": b64(number), "question": f"Where is thing {number}?", "A": "left", "B": "right", "C": "up",
         "D": "down", "answer": "ABCD"[number], "category": "Perception/Attributes" if number < 2 else "Reasoning/Occlusion",
         "target_instances": str(boxes)}
        for number, boxes in enumerate(
            ([[0, 0, 10, 10]], [[0, 0, 10, 10], [20, 0, 30, 10]], [[5, 5, 15, 15]], [[0, 0, 4, 4]])
        )
    ]  # fmt: skip
    return tsv(folder / "TreeBench.tsv", rows)


def write_visualprobe(folder: Path) -> Path:
    rows = []
    for number, solution in enumerate(("blue", "7", "Main Street", "left")):
        save(folder / "images" / f"{number}.jpg", number)
        rows.append(
            {"images": [f"images/{number}.jpg"], "problem": f"<image>\nQuestion {number}?", "solution": solution,
             "doc_id": f"d{number}"}
        )  # fmt: skip
    (folder / "val.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


# --- RealWorldQA, BLINK, CV-Bench, MMStar -----------------------------------------------------------------------------------

_REAL = (
    ("Which way does the car point?\nA. Left\nB. Right\nC. Straight\nPlease answer directly with only the letter of the correct "
     "option and nothing else.", "C"),
    ("How many lanes are there?\nPlease answer directly with a single word or number.", "4"),
    ("Is the light green?\nPlease answer directly with a single word or number.", "Yes"),
    ("Which is closer?\nA. The bus\nB. The bike\nPlease answer directly with only the letter of the correct option and nothing "
     "else.", "A"),
)  # fmt: skip


def write_realworldqa(folder: Path) -> Path:
    rows = [{"image": hf_image(number), "question": text, "answer": gold} for number, (text, gold) in enumerate(_REAL)]
    parquet(folder / "data" / "test-00000-of-00002.parquet", rows[:2])
    parquet(folder / "data" / "test-00001-of-00002.parquet", rows[2:])
    return folder


def write_blink(folder: Path) -> Path:
    """Two of its parts, val and test; the second part has two pictures a question."""
    for part, (number, count) in {"Counting": (0, 1), "Visual_Similarity": (10, 2)}.items():
        for split in ("val", "test"):
            rows = [
                {"idx": f"{split}_{part}_{row}", "question": "Which?", "sub_task": part,
                 **{f"image_{k + 1}": hf_image(number + 2 * row + k) if k < count else None for k in range(4)},
                 "choices": ["first", "second"], "answer": "(hidden)" if split == "test" else "(A)" if row == 0 else "(B)",
                 "prompt": f"There are {count} pictures. Which?\nSelect from the following choices.\n(A) first\n(B) second"}
                for row in range(2)
            ]  # fmt: skip
            parquet(folder / part / f"{split}-00000-of-00001.parquet", rows, images=[f"image_{k + 1}" for k in range(4)])
    return folder


def write_blink_tsv(folder: Path) -> Path:
    """VLMEvalKit's form: several pictures as the text of a Python list."""
    rows = [
        {"index": number, "image": b64(number) if number < 2 else str([b64(number), b64(20 + number)]),
         "question": f"Which, {number}?", "A": "first", "B": "second", "answer": "AB"[number % 2],
         "category": "Counting" if number < 2 else "Visual_Similarity"}
        for number in range(4)
    ]  # fmt: skip
    return tsv(folder / "BLINK.tsv", rows)


def write_cvbench(folder: Path) -> Path:
    def row(number: int, kind: str, task: str, source: str) -> dict[str, Any]:
        return {
            "idx": number, "type": kind, "task": task, "image": hf_image(number), "question": f"How many, {number}?",
            "choices": ["1", "2", "3"], "answer": f"({'ABC'[number % 3]})", "source": source, "filename": f"{number}.png",
            "prompt": f"How many, {number}? Select from the following choices.\n(A) 1\n(B) 2\n(C) 3",
        }  # fmt: skip

    flat = [row(0, "2D", "Count", "ADE20K"), row(1, "2D", "Count", "COCO"), row(2, "2D", "Relation", "COCO")]
    deep = [row(3, "3D", "Depth", "Omni3D"), row(4, "3D", "Distance", "Omni3D")]
    parquet(folder / "test_2d.parquet", flat)
    parquet(folder / "test_3d.parquet", deep)
    return folder


_MMSTAR_PARTS = ("coarse perception", "fine-grained perception", "instance reasoning", "logical reasoning")


def write_mmstar(folder: Path) -> Path:
    """The hub's form: options at the end of the question."""
    rows = [
        {"index": number, "question": f"Which, {number}?\nOptions: A: red, B: a dog, or a cat, C: blue, D: none",
         "image": hf_image(number), "answer": "ABCD"[number], "category": part, "l2_category": f"{part} 2",
         "meta_info": {"source": "x", "split": "val", "image_path": f"{number}.jpg"}}
        for number, part in enumerate(_MMSTAR_PARTS)
    ]  # fmt: skip
    return parquet(folder / "mmstar.parquet", rows)


def write_mmstar_tsv(folder: Path) -> Path:
    rows = [
        {"index": number, "image": b64(number), "question": f"Which, {number}?", "A": "red", "B": "a dog, or a cat", "C": "blue",
         "D": "None", "answer": "ABCD"[number], "category": part, "l2_category": f"{part} 2"}
        for number, part in enumerate(_MMSTAR_PARTS)
    ]  # fmt: skip
    return tsv(folder / "MMStar.tsv", rows)


# --- any table --------------------------------------------------------------------------------------------------------------


def write_custom(folder: Path) -> Path:
    """A TSV with line breaks, doubled quotes and tabs inside fields, a hint, evidence boxes and an open question."""
    rows = [
        {"index": 10, "image": b64(1), "hint": "Look\nclosely.", "question": 'Say "A"\tor not?', "A": "yes", "B": "no", "C": "",
         "answer": "B", "category": "x", "boxes_px_xyxy": "[[1, 2, 11, 12]]"},
        {"index": 11, "image": "10", "hint": "", "question": "Again?", "A": "yes", "B": "no", "C": "None", "answer": "c",
         "category": "y", "boxes_px_xyxy": ""},
        {"index": 12, "image": str([b64(2), "10"]), "hint": "", "question": "Open?", "A": "", "B": "", "C": "",
         "answer": "a blue bag", "category": "y", "boxes_px_xyxy": "[0, 0, 5, 5]"},
        {"index": 13, "image": "", "hint": "", "question": "No picture?", "A": "red", "B": "blue", "C": "", "answer": "blue",
         "category": "", "boxes_px_xyxy": ""},
    ]  # fmt: skip
    return tsv(folder / "mine.tsv", rows)


def write_custom_local(folder: Path) -> Path:
    """What VLMEvalKit makes of a large file: ``image_path`` into ``images/NAME``."""
    rows = []
    for number in range(4):
        save(folder / "images" / "mine" / f"{number}.jpg", number)
        rows.append({"index": number, "image_path": f"{number}.jpg", "question": "Which?", "A": "x", "B": "y", "answer": "A"})
    return tsv(folder / "mine_local.tsv", rows)


def write_custom_jsonl(folder: Path) -> Path:
    rows = []
    for number in range(4):
        save(folder / "images" / f"{number}.png", number)
        rows.append(
            {"id": f"j{number}", "image": f"{number}.png", "question": "Which?", "options": ["(A) x", "(B) y"], "answer": "(B) y",
             "category": "even" if number % 2 == 0 else "odd"}
        )  # fmt: skip
    return jsonl(folder / "mine.jsonl", rows)


def write_custom_saved(folder: Path) -> Path:
    """A folder that Hugging Face's ``save_to_disk`` wrote."""
    from datasets import Dataset, Features, Value
    from datasets import Image as HFImage

    rows = [
        {"id": str(number), "image": hf_image(number), "question": "Which?", "choices": "['x', 'y']", "answer": "B"}
        for number in range(4)
    ]
    text = {name: Value("string") for name in ("id", "question", "choices", "answer")}
    saved = Dataset.from_list(rows, features=Features({**text, "image": HFImage()}))
    saved.save_to_disk(str(folder))
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    name.removeprefix("write_"): made for name, made in list(globals().items()) if name.startswith("write_")
}


if __name__ == "__main__":
    for name, made in WRITERS.items():
        made(Path(sys.argv[1]) / name)
