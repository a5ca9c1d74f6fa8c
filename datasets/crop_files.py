"""``foveate data crops``: cut evidence crops into files, and write the rows that name them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..vlm.images import Picture
from ..vlm.records import Sample
from .builders.journal import Journal, write_rows
from .crops import CropSpec, OverlaySpec, draw_boxes, evidence_boxes, evidence_crops
from .read import Problem, ReadResult, read
from .spec import DataSpec
from .views import RED_BOX_HINT


@dataclass(frozen=True)
class CropsReport:
    """What was written, and the rows that had no evidence to cut."""

    target: str
    num_samples: int
    num_crops: int
    problems: tuple[Problem, ...]

    def text(self, max_problems: int = 20) -> str:
        """The report in lines."""
        lines = [f"{self.target}: {self.num_samples} samples, {self.num_crops} crops, {len(self.problems)} problems"]
        return "\n".join([*lines, *(str(problem) for problem in self.problems[:max_problems])])


def write_crops(spec: DataSpec, target: Path, crop: CropSpec, overlay: OverlaySpec, *, draw: bool = False) -> CropsReport:
    """Cut the crops of every row and write ``target`` (JSON lines in the plain format) and ``crops/`` beside it.

    With ``draw`` the box is also drawn into a copy of the picture, and Vision-OPD's sentence is added to the question: the
    student's side of that method as files. The rows appear at once when all is done. What is cut already stands in
    ``.NAME.part.jsonl`` until then: a run that was killed goes on behind it, with the same file and the same settings.
    """
    if target.suffix != ".jsonl":
        raise ValueError(f"{target}: the rows are written as JSON lines; give a name that ends in .jsonl")
    result = read(spec)
    with Path(result.file).open("rb") if Path(result.file).is_file() else io.BytesIO() as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    settings = {
        "data": spec.model_dump(mode="json"), "sha256": digest, "crop": crop.model_dump(mode="json"),
        "overlay": overlay.model_dump(mode="json"), "draw": draw,
    }  # fmt: skip
    rows = result.samples.kept
    with Journal(target.with_name(f".{target.stem}.part.jsonl"), settings) as journal:
        made = journal.rows
        for row in rows[len(made) :]:
            made.append(_cut(result, row, target.parent, crop, overlay, draw))
            journal.add(made[-1])
        written = [one["row"] for one in made if "row" in one]
        write_rows(target, written)
        journal.remove()
    lost = [Problem(result.file, *one["problem"]) for one in made if "problem" in one]
    num_crops = sum(len(row.get("crops", ())) for row in written)
    return CropsReport(str(target), len(written), num_crops, (*result.problems, *lost))


def _cut(result: ReadResult, row: int, folder: Path, crop: CropSpec, overlay: OverlaySpec, draw: bool) -> dict[str, Any]:
    """The line of the journal for a row of the file: its ``row`` as written, or its ``problem``."""
    try:
        sample = result.samples.build(row)[0]
        cut = evidence_crops(sample, crop, overlay)
        shown = _drawn(sample, crop, overlay) if draw else sample.images
    except ValueError as error:
        what, _, mend = str(error).rpartition("; ")
        return {"problem": [result.samples.rows.place(row), what, mend]}
    return {"row": _row(sample, shown, cut, folder, draw)}


def _drawn(sample: Sample, crop: CropSpec, overlay: OverlaySpec) -> tuple[Picture, ...]:
    index = sample.privileged.box_image
    boxed = draw_boxes(sample.images[index], evidence_boxes(sample, crop), overlay)
    return (*sample.images[:index], boxed, *sample.images[index + 1 :])


def _row(sample: Sample, shown: tuple[Picture, ...], cut: tuple[Picture, ...], folder: Path, draw: bool) -> dict[str, Any]:
    question = f"{sample.question} {RED_BOX_HINT}" if draw and RED_BOX_HINT not in sample.question else sample.question
    secret = sample.privileged
    row: dict[str, Any] = {
        "id": sample.id,
        "images": [_file(picture, folder, "images") for picture in shown],
        "question": question,
        "answer": sample.answer,
        "crops": [_file(picture, folder, "crops") for picture in cut],
        "boxes_px_xyxy": [list(box) for box in secret.boxes_px_xyxy],
        "box_image": secret.box_image,
        "options": list(sample.options),
        "system": sample.system,
        "rationale": secret.rationale,
        "teacher_prompt": secret.prompt,
        "hints": list(secret.hints),
        "source": sample.source,
        "kind": sample.kind,
        "difficulty": sample.difficulty,
        "tags": {**sample.tags, **({"red_box": "drawn"} if draw else {})},
    }
    return {name: value for name, value in row.items() if value not in (None, "", [], {})}


def _file(picture: Picture, folder: Path, name: str) -> str:
    """The picture's file as written into the row: its own file if it has one, relative where it lies below ``folder``."""
    if picture.path is None:
        return f"{name}/{picture.save_png(folder / name)}"
    path, base = Path(picture.path).resolve(), folder.resolve()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def crops_command(
    path: str,
    out: Path,
    *,
    format: str | None = None,
    image_dir: str | None = None,
    box_format: str | None = None,
    padding: float = 0.0,
    scale: float = 2.0,
    min_side_px: int = 28,
    union: bool = False,
    frame: bool = False,
    draw: bool = False,
) -> CropsReport:
    """What ``foveate data crops FILE OUT`` calls. Defaults as in the data behind Vision-OPD: the exact box, twice as large."""
    spec = DataSpec.model_validate({"path": path, "format": format, "image_dir": image_dir, "box_format": box_format})
    crop = CropSpec(source="boxes", padding_frac=padding, scale=scale, min_side_px=min_side_px, union=union, frame=frame)
    return write_crops(spec, out, crop, OverlaySpec(), draw=draw)
