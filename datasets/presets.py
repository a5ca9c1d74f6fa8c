"""The named views. A preset is a `ViewSpec` and nothing more; any of them may stand on either side."""

from __future__ import annotations

from typing import Any

from ..visual_tools.dialects import hermes
from .crops import CropSpec
from .views import RED_BOX_HINT, ViewSpec

# --- Imagine-OPD (2606.08719): its prompts in words of our own, with the same function ----------------------------------------

_EXAMPLE = """Example
Question: What is written on the sign above the shop door?
Reply: The whole picture shows a street with three shops. The sign is above the middle door, slightly left of the \
centre. I picture that region enlarged until it fills my view: a green board with white capital letters. At this size \
the letters read OPEN. <answer>OPEN</answer>"""

IMAGINE_STUDENT = f"""Solve the question step by step, in words alone. When something is too small or too crowded to \
be sure of, look closer in your mind: say which region you turn to, imagine cropping and enlarging it, and describe \
what becomes visible there. This is reasoning, not a tool: there is nothing to call.

{_EXAMPLE}

Rules
- Say what you do in your mind and what it makes clearer, in a few sentences.
- End with the final answer in <answer> and </answer>, once.
- With options to choose from, give the letter. If two seem to fit, take the more plausible one and stop."""

IMAGINE_TEACHER = f"""{IMAGINE_STUDENT}

You are given more than the question shows. Image 1 is the picture of the question; the images after it are enlarged \
views of the regions that matter, and the right answer may be given at the end. Use them to know what there is to see, \
and write as someone who has only Image 1 and looks closer in the mind. Never mention the further images, an enlarged \
view that was given, or that the answer was known."""

ANSWER_PROMPT = "Answer the question from the picture. End with the final answer in <answer> and </answer>, once."
IMAGINE_TEACHER_ANSWER_ONLY = f"""{IMAGINE_STUDENT}

The right answer is given at the end. Use it to know what there is to see, and never mention that it was known."""

# --- thinking with images: the zoom tool in the Hermes form, 0-1000 coordinates (Qwen3-VL) ------------------------------------

TOOLS_SYSTEM = f"""{hermes.system_prompt(hermes.ZOOM_SCHEMA)}

Coordinates run from 0 (left, top) to 1000 (right, bottom). When you have seen enough, end with the final answer in <answer> and \
</answer>, once."""

# --- prompts of the embedded tiny model: it knows these words and no others ---------------------------------------------------

TINY_TOOLS = "Zoom with image_zoom_in_tool."
TINY_IMAGINE = "Imagine zooming in, then answer."

OPSD_ANSWER = "\nHere is a reference solution:\n{answer}\nNow solve the question in your own way."
GROUND_TRUTH = "Ground-truth answer: {answer}"
GROUND_TRUTH_ALONE = "\nGround-truth answer: {answer}"
OPSD_SOLUTION = "\nHere is a reference solution:\n{rationale}"
OPSD_FINAL = "\nFinal answer: {answer}\nNow solve the question in your own way."
HINT = "\nHint: {hints}"

_AROUND = CropSpec(padding_frac=0.25)
_ZWZ = CropSpec(padding_frac=0.05, scale=2.0, frame=True)


def _all() -> dict[str, dict[str, Any]]:
    crop: dict[str, Any] = {"image": ("replace_by_crop",), "crop": _AROUND}
    with_crops: dict[str, Any] = {"image": ("append_crops",), "crop": _AROUND}
    red: dict[str, Any] = {"hint": RED_BOX_HINT}
    return {
        # plain
        "full": {},
        "answer": {"system": ANSWER_PROMPT},
        "crop": crop,
        "blank": {"image": ("blank",)},
        "degraded": {"image": ("degrade",)},
        "both": with_crops,
        "coordinates": {"coordinates": "k1000"},
        # Vision-OPD (2605.18740): box and hint for both, the crop in the picture's place for the teacher
        "vision_opd.student": {**red, "image": ("overlay_box",), "reveals": ("box",)},
        "vision_opd.teacher": {**red, "image": ("replace_by_crop",), "crop": _ZWZ},
        "vision_opd.teacher_clean": {**red, "image": ("replace_by_crop",), "crop": CropSpec(scale=2.0)},
        "vision_opd.student_no_hint": {"remove": (RED_BOX_HINT,)},
        # Imagine-OPD (2606.08719), with its two controls
        "imagine_opd.student": {"system": IMAGINE_STUDENT},
        "imagine_opd.student_plain": {"system": ANSWER_PROMPT},
        "imagine_opd.teacher": {**with_crops, "system": IMAGINE_TEACHER, "answer": GROUND_TRUTH},
        "imagine_opd.teacher_crops_only": {**with_crops, "system": IMAGINE_TEACHER},
        "imagine_opd.teacher_answer_only": {"system": IMAGINE_TEACHER_ANSWER_ONLY, "answer": GROUND_TRUTH_ALONE},
        # on-policy self-distillation from the answer
        "opsd.teacher": {"answer": OPSD_ANSWER},
        "opsd.teacher_solution": {"rationale": OPSD_SOLUTION, "answer": OPSD_FINAL},
        # what came with the data: teacher_prompt, teacher_images, privileged_context
        "given.teacher": {"question": "teacher"},
        "given.teacher_images": {"image": ("replace_by_crop",), "crop": CropSpec(source="given")},
        "given.context": {"rationale": "\n{rationale}"},
        # hints as far as a sampler asks for them, none otherwise (Keye-VL 1.5, 2509.01563)
        "hinted": {"hints": HINT, "reveals": ("hints",)},
        # thinking with images, and in words
        "tools": {"system": TOOLS_SYSTEM},
        "imagine": {"system": IMAGINE_STUDENT},
        # the embedded tiny model
        "tiny.full": {"system": "none"},
        "tiny.crop": {**crop, "system": "none"},
        "tiny.tools": {"system": TINY_TOOLS},
        "tiny.tools_teacher_crop": {**crop, "system": TINY_TOOLS},
        "tiny.tools_teacher_both": {**with_crops, "system": TINY_TOOLS},
        "tiny.tools_teacher_spotlight": {"image": ("spotlight",), "crop": _AROUND, "system": TINY_TOOLS},
        "tiny.imagine": {"system": TINY_IMAGINE},
        "tiny.imagine_teacher": {**with_crops, "system": TINY_IMAGINE, "answer": GROUND_TRUTH},
        "tiny.imagine_teacher_crops_only": {**with_crops, "system": TINY_IMAGINE},
        "tiny.imagine_teacher_answer_only": {"system": TINY_IMAGINE, "answer": GROUND_TRUTH_ALONE},
        "tiny.text": {"system": "none"},
        "tiny.hinted": {"system": "none", "hints": HINT, "reveals": ("hints",)},
        "tiny.solved_teacher": {"system": "none", "rationale": " {rationale}", "answer": " " + GROUND_TRUTH},
    }


PRESETS: dict[str, ViewSpec] = {name: ViewSpec(name=name, **fields) for name, fields in _all().items()}
"""Every named view."""
