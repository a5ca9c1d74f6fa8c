"""The leak check: a student's view carries nothing privileged, in its text, its pixels or its file names.

It works on what the view really holds, not on what its `ViewSpec` says it does: every picture must be one that the sample shows
openly (an original, or an original that the spec makes smaller, blanks, or draws into), and no answer, rationale (or its
beginning), hint, teacher prompt, box coordinate or crop's file name may be added to the question. A spec that means to show more
declares it in ``reveals``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

import cv2
import numpy as np

from ..vlm.images import Picture
from ..vlm.records import Sample, View
from . import crops
from .views import ViewSpec, box_text, told_hints

_TOLERANCE = 4.0  # grey levels: what re-encoding may change
_THUMB_PX = 32
_FIRST_WORDS = 3  # of a rationale that is told in part
_MARK, _MARK_SHARE = 64.0, 0.002  # a mark: more than this many grey levels off, on more than this share of the pixels


class LeakError(ValueError):
    """A student view with something privileged in it."""


@dataclass(frozen=True)
class Leak:
    """One leak: what was found, and where in the view."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what} in {self.where}"


def check_student_view(sample: Sample, view: View, spec: ViewSpec | None = None) -> None:
    """Raise `LeakError` naming the sample and every leak, unless there is none."""
    found = find_leaks(sample, view, spec)
    if found:
        raise LeakError(
            f"sample {sample.id}: the student view {view.name or '(no name)'} shows {'; '.join(map(str, found))}; choose a view "
            "without it, declare it with reveals: [...] if the student is meant to see it, or set leak_check: false"
        )


def find_leaks(sample: Sample, view: View, spec: ViewSpec | None = None) -> list[Leak]:
    """Everything privileged in a view. ``spec`` tells which texts are the same for all samples and what is meant to be shown."""
    spec = spec or ViewSpec()
    return [*_text_leaks(sample, view, spec), *_picture_leaks(sample, view, spec)]


# --- text -------------------------------------------------------------------------------------------------------------------


def _text_leaks(sample: Sample, view: View, spec: ViewSpec) -> Iterable[Leak]:
    secret, may = sample.privileged, set(spec.reveals)
    # What offers the tools is written by the dialect and knows no sample.
    told = [one.text for one in view.messages if not (spec.system == "tools" and one.role == "system")]
    said = _without_hints(sample, "\n".join(told), spec)
    added = _added(sample, said, spec)
    if "answer" not in may and sample.answer and _says(added, sample.answer):
        yield Leak(f"the answer {sample.answer!r}", "text that is not the question's")
    if "rationale" not in may and secret.rationale and _begins(added, said, secret.rationale, sample):
        yield Leak("the rationale", "the text")
    if "prompt" not in may and secret.prompt and _holds(said, secret.prompt, sample):
        yield Leak("the teacher prompt", "the text")
    for number, hint in enumerate(secret.hints, 1):
        if hint.strip() and _says(added, hint):
            yield Leak(f"hint {number}", "the text")
    if "coordinates" not in may and 0 <= secret.box_image < len(sample.images):
        picture = sample.images[secret.box_image]
        for box in secret.boxes_px_xyxy:
            if any(_says(added, told.strip("[]")) for told in (box_text(box, picture, unit) for unit in ("px", "k1000", "frac"))):
                yield Leak("the coordinates of an evidence box", "the text")
    for crop in secret.crops:
        if crop.path and PurePath(crop.path).name in said:
            yield Leak(f"the file name {PurePath(crop.path).name} of an evidence crop", "the text")


def _without_hints(sample: Sample, said: str, spec: ViewSpec) -> str:
    """The text without the hints that the spec means to show, once, in the words in which it shows them."""
    if "hints" not in spec.reveals:
        return said
    told = (told_hints(sample, spec, level) for level in range(len(sample.privileged.hints), 0, -1))
    return said.replace(next((text for text in told if text and text in said), "\n"), "\n", 1)


def _holds(said: str, text: str, sample: Sample) -> bool:
    return bool(text.strip()) and text.strip() in said and text.strip() not in sample.question


def _begins(added: str, said: str, rationale: str, sample: Sample) -> bool:
    """Is the rationale, or its beginning, in the text? A few words of it are enough where nobody else says them."""
    first = " ".join(rationale.split()[:_FIRST_WORDS])
    return _holds(said, rationale, sample) or (bool(first) and _says(" ".join(added.split()), first))


def _added(sample: Sample, said: str, spec: ViewSpec) -> str:
    """The text without what the sample says openly and without what the spec says to every sample alike."""
    pieces = re.split("|".join(map(re.escape, ("<image>", *spec.remove))), sample.question)  # a view may cut these out
    openly = [sample.question, *pieces, *sample.options, sample.system or ""]
    alike = [spec.prefix, spec.suffix, spec.hint, "" if spec.system in ("own", "none") else spec.system]
    for text in sorted((piece for piece in (*openly, *alike) if piece.strip()), key=len, reverse=True):
        said = said.replace(text, "\n")
    return re.sub(r"^[A-Z]\. *$", "", said, flags=re.MULTILINE) if sample.options else said


def _says(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", text, re.IGNORECASE) is not None


# --- pictures and their names ------------------------------------------------------------------------------------------------


def _picture_leaks(sample: Sample, view: View, spec: ViewSpec) -> Iterable[Leak]:
    open_pictures = {picture.key: picture for picture in sample.images}
    if sample.video is not None:
        open_pictures.update({frame.key: frame for frame in sample.video.frames})
    hidden = {crop.key for crop in sample.privileged.crops} - set(open_pictures)
    hidden_files = {crop.path for crop in sample.privileged.crops if crop.path and crop.key not in open_pictures}
    allowed = set(open_pictures)
    if "box" in spec.reveals and sample.privileged.boxes_px_xyxy:
        original = crops.boxed_picture(sample)
        allowed.add(crops.draw_boxes(original, crops.evidence_boxes(sample, spec.crop), spec.overlay).key)
    for number, picture in enumerate(view.pictures, 1):
        where = f"picture {number}"
        if picture.path in hidden_files and "crop" not in spec.reveals:
            yield Leak("the file of an evidence crop", where)
        elif picture.key in hidden and "crop" not in spec.reveals:
            yield Leak("an evidence crop", where)
        elif picture.key not in allowed and "crop" not in spec.reveals:
            what = _unknown(picture, sample, spec)
            if what is not None:
                yield Leak(what, where)


def _unknown(picture: Picture, sample: Sample, spec: ViewSpec) -> str | None:
    """What a picture is that the sample does not show openly; None when it is an original made smaller, or blank."""
    pixels_HWC = np.asarray(picture.rgb())
    if not np.ptp(pixels_HWC.reshape(-1, 3), axis=0).any():
        return None  # one colour has nothing to tell
    for original in sample.images:
        if picture.size_px == original.size_px:
            return _drawn(pixels_HWC, original)
    for original in sample.images:
        if picture.width_px < original.width_px and _same_at(picture, original):
            return (
                None
                if "box" in spec.reveals or not _changed(picture, original)
                else "a mark drawn into a smaller copy of the picture"
            )
    return "a picture that the sample does not show (a crop of the evidence, or another sample's)"


def _drawn(pixels_HWC: np.ndarray, original: Picture) -> str | None:
    changed_HW = np.abs(pixels_HWC.astype(np.int16) - np.asarray(original.rgb()).astype(np.int16)).max(axis=2) > 24
    if not changed_HW.any():
        return None
    return "a changed copy of the picture (a box drawn in, or a crop of the same size)"


def _thumb(picture: Picture, size_px: tuple[int, int]) -> np.ndarray:
    return cv2.resize(np.asarray(picture.rgb(), np.float32), size_px, interpolation=cv2.INTER_AREA)  # an exact mean over areas


def _same_at(picture: Picture, original: Picture) -> bool:
    """Is it the whole original, made smaller? Both are compared as small thumbnails."""
    if (
        abs(picture.width_px / picture.height_px - original.width_px / original.height_px)
        > 0.1 * original.width_px / original.height_px
    ):
        return False
    size = min(_THUMB_PX, picture.width_px), min(_THUMB_PX, picture.height_px)
    return float(np.abs(_thumb(picture, size) - _thumb(original, size)).mean()) < _TOLERANCE


def _changed(picture: Picture, original: Picture) -> bool:
    """Does a smaller copy differ from the original by more than a resampling filter can?"""
    pixels_HWC, honest_HWC = np.asarray(picture.rgb(), np.float32), _thumb(original, picture.size_px)
    return bool((np.abs(pixels_HWC - honest_HWC).max(axis=2) > _MARK).mean() > _MARK_SHARE)
