"""Views: what a student, a teacher or an evaluation is shown of a sample. The only reader of ``sample.privileged``.

A `ViewSpec` says what happens to the pictures, to the text and to the system prompt, each on its own, so that any student view
crosses with any teacher view. Named ones are in `presets`; `resolve_view` takes a name, a mapping, or a mapping with a preset
to start from:

    student: vision_opd.student
    teacher: {preset: imagine_opd.teacher, answer: ""}        # crops only, no ground truth

Two views of a sample differ in prompt and pixels, never in the action tokens.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from ..visual_tools import boxes
from ..vlm.images import Picture
from ..vlm.messages import Message, Part, fill_placeholders
from ..vlm.records import Box, Sample, View
from . import crops
from .crops import CropSpec, OverlaySpec

RED_BOX_HINT = "Only focus on the objects inside the red bounding box in the image to answer this question."
"""The sentence that Vision-OPD's data appends to a question whose picture has the box drawn in."""

ImageOp = Literal["keep", "replace_by_crop", "append_crops", "overlay_box", "spotlight", "degrade", "blank"]
Reveal = Literal["box", "crop", "answer", "rationale", "coordinates", "prompt", "hints"]


class ViewSpec(crops.Part):
    """A view of a sample. The default is the plain one: pictures and question as they are."""

    name: str = ""
    """Written into metrics and rollouts; a preset's name by default."""
    image: tuple[ImageOp, ...] = ("keep",)
    """What happens to the pictures, in this order: keep; replace_by_crop (the picture with the evidence gives way to its crops);
    append_crops (crops follow the question); overlay_box; spotlight (all but the evidence in one colour); degrade (smaller);
    blank (grey). Crops are cut from the original."""
    crop: CropSpec = CropSpec()
    overlay: OverlaySpec = OverlaySpec()
    degrade_factor: float = pydantic.Field(default=4.0, gt=1)
    """Both sides are divided by this."""
    system: str = "own"
    """own: the sample's system prompt, if any; none: no system prompt; tools: the one that offers the sample's tools in their
    dialect; anything else is the system prompt."""
    question: Literal["own", "teacher"] = "own"
    """teacher: the teacher prompt that came with the data (``teacher_prompt``) takes the question's place."""
    options: bool = True
    """Write the sample's options below the question, one ``A. text`` a line."""
    remove: tuple[str, ...] = ()
    """Sentences taken out of the question (a hint that the data has written into it)."""
    hint: str = ""
    """Sentence behind the question, unless the question already holds it."""
    coordinates: Literal["none", "px", "k1000", "frac"] = "none"
    """Tell the evidence boxes as text: pixels of the original, 0-1000, or 0-1."""
    coordinates_template: str = "\nLook at: {boxes}"
    answer: str = ""
    """Template with {answer}, at the end of the message; empty: the answer is not told."""
    rationale: str = ""
    """Template with {rationale}; empty: not told."""
    rationale_frac: float = pydantic.Field(default=1.0, ge=0, le=1)
    """Share of the rationale's words that is told, from its beginning (ATESD, 2605.11458); with less than half a word nothing."""
    hints: str = ""
    """Template with {hints}: the first hints of a sample, as many as `make_view` is asked for (Keye-VL 1.5, 2509.01563). A view
    that is not asked shows none; an evaluation never asks."""
    prefix: str = ""
    suffix: str = ""
    """Text before and after everything else in the user's message; the same for all samples."""
    reveals: tuple[Reveal, ...] = ()
    """Privileged things that this view may show to a student; everything else is a leak (see `leaks`)."""

    @pydantic.field_validator("image", mode="before")
    @classmethod
    def _one_op(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _sense(self) -> ViewSpec:
        if "replace_by_crop" in self.image and "append_crops" in self.image:
            raise ValueError("view: replace_by_crop and append_crops exclude each other; choose one")
        if self.answer and "{answer}" not in self.answer:
            raise ValueError(f"view: the answer template {self.answer!r} lacks {{answer}}")
        if self.rationale and "{rationale}" not in self.rationale:
            raise ValueError(f"view: the rationale template {self.rationale!r} lacks {{rationale}}")
        if self.hints and "{hints}" not in self.hints:
            raise ValueError(f"view: the hints template {self.hints!r} lacks {{hints}}")
        if self.coordinates != "none" and "{boxes}" not in self.coordinates_template:
            raise ValueError(f"view: the template {self.coordinates_template!r} lacks {{boxes}}")
        return self

    @property
    def uses(self) -> tuple[Reveal, ...]:
        """The privileged things that this view shows without being asked for hints."""
        shown: list[Reveal] = []
        if "overlay_box" in self.image or "spotlight" in self.image:
            shown.append("box")
        if "replace_by_crop" in self.image or "append_crops" in self.image:
            shown.append("crop")
        if self.answer:
            shown.append("answer")
        if self.rationale:
            shown.append("rationale")
        if self.coordinates != "none":
            shown.append("coordinates")
        if self.question == "teacher":
            shown.append("prompt")
        return tuple(shown)


def resolve_view(value: ViewSpec | str | Mapping[str, Any]) -> ViewSpec:
    """A view from a preset's name, a mapping, or a mapping with ``preset`` and what differs from it.

    `ValueError` with a did-you-mean for an unknown preset; pydantic's error (a `ValueError`) for an unknown key.
    """
    if isinstance(value, ViewSpec):
        return value
    if isinstance(value, str):
        return _preset(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"a view is a preset's name or a mapping, got {value!r}")
    given = dict(value)
    if "preset" not in given:
        return ViewSpec.model_validate(given)
    base = _preset(str(given.pop("preset")))
    return ViewSpec.model_validate(_merged(base.model_dump(), given))


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, change in changes.items():
        below = merged.get(key)
        merged[key] = _merged(below, change) if isinstance(below, dict) and isinstance(change, Mapping) else change
    return merged


def _preset(name: str) -> ViewSpec:
    from .presets import PRESETS

    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 3, 0.5)
        raise ValueError(
            f"no view named {name!r}; "
            + (f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(PRESETS))}")
        )
    return PRESETS[name]


def make_view(
    sample: Sample, spec: ViewSpec, role: Literal["student", "teacher"], tools_prompt: str | None = None, hint: int = 0
) -> View:
    """The sample as this view shows it. ``tools_prompt`` offers its tools; ``hint`` is the level of help: so many of its hints.

    `ValueError` names the sample and what it lacks.
    """
    if hint and not spec.hints:
        raise ValueError(
            f"sample {sample.id}: asked for hint level {hint}, and the view {spec.name or 'given'} shows no hints; give it "
            "hints: '\\nHint: {hints}' and reveals: [hints]"
        )
    if sample.video is not None and spec.image != ("keep",):
        raise ValueError(
            f"sample {sample.id}: the view {spec.name or spec.image} changes pictures and the sample has a video; use image: keep"
        )
    parts = _user_parts(sample, spec, hint)
    system = _system(sample, spec, tools_prompt)
    head = (Message.system(system),) if system else ()
    return View(role=role, messages=(*head, Message("user", parts)), name=spec.name)


def _system(sample: Sample, spec: ViewSpec, tools_prompt: str | None) -> str | None:
    if spec.system == "tools" and tools_prompt is None:
        name = spec.name or "given"
        raise ValueError(f"sample {sample.id}: the view {name} offers tools and none are given; set `tools` in the recipe")
    return {"own": sample.system, "none": None, "tools": tools_prompt}.get(spec.system, spec.system)


def _user_parts(sample: Sample, spec: ViewSpec, hint: int) -> tuple[Part, ...]:
    pictures, extra = _pictures(sample, spec)
    slots: list[tuple[Picture, ...]] = [(picture,) for picture in pictures]
    if "replace_by_crop" in spec.image:
        slots = _replaced(sample, slots, crops.evidence_crops(sample, spec.crop, spec.overlay))
    text = _question(sample, spec)
    if "<image>" in text:
        # One placeholder stands for one original picture; several crops in its place stay together.
        pieces = fill_placeholders(text, pictures, f"sample {sample.id}")
        waiting = iter(slots)
        body: list[Part] = []
        for piece in pieces:
            body.extend(next(waiting) if isinstance(piece, Picture) else (piece,))
    else:
        body = [picture for slot in slots for picture in slot]
        body += [text] if text else []
    if sample.video is not None:
        body.insert(0, sample.video)
    tail = _tail(sample, spec, hint)
    joined = [*([spec.prefix] if spec.prefix else []), *body, *extra, *([tail] if tail else [])]
    if not joined:
        raise ValueError(
            f"sample {sample.id}: the view {spec.name or 'given'} is empty: no picture and no text; give the sample a question"
        )
    return _joined(joined)


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return tuple(merged)


def _pictures(sample: Sample, spec: ViewSpec) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    pictures = list(sample.images)
    extra: tuple[Picture, ...] = ()
    for op in spec.image:
        if op in ("overlay_box", "spotlight", "degrade", "blank") and not pictures:
            raise ValueError(f"sample {sample.id}: the view {spec.name or op} changes pictures and the sample has none")
        if op == "overlay_box":
            # Vision-OPD's released pictures come with the box drawn in, and without its coordinates.
            if sample.tags.get("red_box") != "drawn":
                evidence = crops.evidence_boxes(sample, spec.crop)
                index = sample.privileged.box_image
                pictures[index] = crops.draw_boxes(pictures[index], evidence, spec.overlay)
        elif op == "spotlight":
            index = sample.privileged.box_image
            evidence = crops.evidence_boxes(sample, spec.crop)
            pictures[index] = crops.spotlight(pictures[index], evidence, spec.crop.padding_frac)
        elif op == "degrade":
            pictures = [crops.degrade(picture, spec.degrade_factor) for picture in pictures]
        elif op == "blank":
            pictures = [crops.blank(*picture.size_px) for picture in pictures]
        elif op == "append_crops":
            extra = crops.evidence_crops(sample, spec.crop, spec.overlay)
    return tuple(pictures), extra


def _replaced(sample: Sample, slots: list[tuple[Picture, ...]], evidence: tuple[Picture, ...]) -> list[tuple[Picture, ...]]:
    if not slots:
        raise ValueError(f"sample {sample.id}: replace_by_crop needs a picture to replace and the sample has none")
    if len(evidence) == len(slots):
        return [(picture,) for picture in evidence]
    index = sample.privileged.box_image
    return [*slots[:index], evidence, *slots[index + 1 :]]


def _question(sample: Sample, spec: ViewSpec) -> str:
    text = sample.question
    if spec.question == "teacher":
        if sample.privileged.prompt is None:
            raise ValueError(
                f"sample {sample.id}: this view needs a teacher prompt and the sample has none; "
                "add teacher_prompt to the data, or question: own"
            )
        text = sample.privileged.prompt
    for sentence in spec.remove:
        text = text.replace(f" {sentence}", "").replace(sentence, "")
    if spec.hint and spec.hint not in text:
        text = f"{text} {spec.hint}" if text else spec.hint
    if spec.options and sample.options:
        text += "".join(f"\n{chr(ord('A') + index)}. {option}" for index, option in enumerate(sample.options))
    return text


def opening(text: str, frac: float) -> str:
    """The first share of a text's words, rounded to whole words (half of one counts as one); 1 is the text as it is.

    >>> opening("The red triangle shows K.", 0.5)
    'The red triangle'
    """
    words = list(re.finditer(r"\S+", text))
    keep = int(frac * len(words) + 0.5)
    if keep >= len(words):
        return text
    return text[: words[keep - 1].end()] if keep else ""


def told_hints(sample: Sample, spec: ViewSpec, hint: int) -> str:
    """What the view says of the first ``hint`` hints, or of all where the sample has fewer; "" for none."""
    shown = sample.privileged.hints[:hint]
    return spec.hints.replace("{hints}", " ".join(shown)) if shown else ""


def _tail(sample: Sample, spec: ViewSpec, hint: int) -> str:
    tail = ""
    if spec.coordinates != "none":
        picture = crops.boxed_picture(sample)
        evidence = crops.evidence_boxes(sample, spec.crop)
        told = ", ".join(box_text(box, picture, spec.coordinates) for box in evidence)
        tail += spec.coordinates_template.replace("{boxes}", told)
    tail += told_hints(sample, spec, hint)
    if spec.rationale:
        if sample.privileged.rationale is None:
            raise ValueError(
                f"sample {sample.id}: this view tells a rationale and the sample has none; add one to the data, or rationale: ''"
            )
        told = opening(sample.privileged.rationale, spec.rationale_frac)
        tail += spec.rationale.replace("{rationale}", told) if told else ""
    if spec.answer:
        if sample.answer is None:
            raise ValueError(
                f"sample {sample.id}: this view tells the answer and the sample has none; add one to the data, or answer: ''"
            )
        tail += spec.answer.replace("{answer}", sample.answer)
    return tail + spec.suffix


def box_text(box: Box, picture: Picture, convention: Literal["px", "k1000", "frac"]) -> str:
    """``[x1, y1, x2, y2]`` of a pixel box in the convention: pixels, 0-1000, or 0-1 with three digits."""
    coords: dict[str, boxes.Coords] = {"px": "abs_original", "k1000": "norm1000", "frac": "norm1"}
    told = boxes.from_px(box, coords[convention], picture.size_px)
    return "[" + ", ".join(f"{value:.3f}" if convention == "frac" else str(round(value)) for value in told) + "]"
