"""Rewards of published methods, by name: ``reward: {preset: deepeyes}``. Other keys of the recipe override parts of a preset.

Terms are named alike in all of them: ``acc`` is the answer, ``format`` the form. Where a method asks a served model about the
answer (DeepEyes, GRIT), ``acc`` is the rule here, so that a preset works as it stands; with a server it is ``{preset: grit,
terms: {acc: {term: judge, endpoint: {url: ..., model: ...}}}}``. Presets that read boxes take norm1000; set ``coords``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GRIT_TERMS: Mapping[str, Any] = {
    "acc": {"term": "answer"},
    "bleu": {"term": "answer", "kind": "bleu"},
    "format": {"term": "format", "style": "grit_answer"},
    "tags": {"term": "format", "style": "grit_tags"},
    "boxes": {"term": "format", "style": "grit_boxes"},
    "repetition": {"term": "repetition", "n": 8},
}
_GRIT_TOTAL = "acc + 0.1*bleu + 0.5*format + 0.5*(1 - repetition) + 0.5*tags + 0.5*boxes"
_VILASR_TERMS: Mapping[str, Any] = {"acc": {"term": "answer", "kind": "mra"}, "format": {"term": "format", "style": "vilasr"}}
_RLCR_TERMS: Mapping[str, Any] = {
    "acc": {"term": "answer", "kind": "maths"},
    "brier": {"term": "brier", "kind": "maths"},
    "format": {"term": "format", "style": "rlcr"},
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # VLM-CapCurriculum, 2605.20177: the same in all three stages.
    "vlm_capcurriculum": {
        "terms": {"acc": {"term": "answer", "kind": "maths"}, "format": {"term": "format", "style": "think_boxed"}},
        "total": "0.9*acc + 0.1*format",
    },
    # DeepEyes, 2505.14362: the tool counts only with a right answer, and only if a picture came back.
    "deepeyes": {
        "terms": {
            "acc": {"term": "answer", "max_chars": 1000},
            "format": {"term": "format", "style": "deepeyes"},
            "tool": {"term": "tool_use"},
        },
        "total": "0.8*acc + 0.2*format + 1.2*(tool if acc > 0.5 else 0)",
    },
    # DeepEyes on its mathematics subset: no tool term.
    "deepeyes_maths": {
        "terms": {
            "acc": {"term": "answer", "kind": "maths", "max_chars": 1000},
            "format": {"term": "format", "style": "deepeyes"},
        },
        "total": "1.2*acc + 0.4*format",
    },
    # OpenThinkIMG / V-ToolRL, 2505.08617: the answer alone; the format is logged.
    "openthinkimg": {
        "terms": {"acc": {"term": "answer", "kind": "maths"}, "format": {"term": "format", "style": "openthinkimg"}},
        "total": "acc",
    },
    # GRIT, 2505.15879: a sum without weights of its own; counting is for TallyQA.
    "grit": {
        "terms": _GRIT_TERMS,
        "total": _GRIT_TOTAL,
        "by_source": {"tallyqa": {"terms": {**_GRIT_TERMS, "count": {"term": "box_count"}}, "total": f"{_GRIT_TOTAL} + count"}},
    },
    # ViLaSR, 2506.09965: the paper's form, and half of it, as the code has it.
    "vilasr": {"terms": _VILASR_TERMS, "total": "acc + format if acc > 0 else 0"},
    "vilasr_repo": {"terms": _VILASR_TERMS, "total": "0.5*acc + 0.5*format if acc > 0 else 0"},
    # FrameThinker, 2509.24304: any violation of its check makes the total 0.
    "frame_thinker": {
        "terms": {
            "acc": {"term": "answer"},
            "valid": {"term": "frame_thinker", "part": "valid"},
            "timed": {"term": "frame_thinker", "part": "timed"},
            "chose": {"term": "frame_thinker", "part": "chose"},
        },
        "total": "acc + (0.5*timed + 0.02*chose if acc == 1 else 0) if valid else 0",
    },
    # DeepSport, 2511.12908: a small gain for using the tool even when wrong ("curiosity"); a repeated call is a format error.
    "deepsport": {
        "terms": {
            "acc": {"term": "answer"},
            "format": {"term": "format", "style": "deepsport"},
            "tool": {"term": "tool_use"},
            "repeated": {"term": "repeated_calls"},
        },
        "total": "acc + ((0.5*acc if acc >= 0.5 else 0.03) if tool else 0) if format and not repeated else -0.05",
    },
    # GUI-G1, 2505.15810: hit alone shrinks boxes, overlap alone inflates them. The +-1 px of its IoU cancel out.
    "gui_g1": {
        "terms": {
            "hit": {"term": "point_in_box", "point": "centre"},
            "iou": {"term": "box_iou"},
            "edges": {"term": "box_edges"},
        },
        "total": "hit + 0.25*iou + 0.125*edges",
    },
    # RLCR, 2507.16806: c - (q - c)^2; the code's form is the same up to scale and constant, and has a format term.
    "rlcr": {"terms": _RLCR_TERMS, "total": "acc + brier - 1"},
    "rlcr_repo": {"terms": _RLCR_TERMS, "total": "0.5*format + 0.5*acc + 0.5*(brier if format else 0)"},
    # TT-OPD, 2605.02943: right 1.1 to 0.7 and wrong 0 to -0.3 along half a cosine, cut off -0.5.
    "tt_opd": {
        "terms": {
            "acc": {"term": "answer"},
            "length": {"term": "length", "shape": "cosine", "max_tokens": 12288},
            "cut": {"term": "cut_off"},
        },
        "total": "-0.5 if cut else 1.1 - 0.4*length if acc > 0.5 else -0.3*length",
    },
    # VL-Rethinker, 2504.08837: one or two "wait" in a right answer earn a little, more cost; no readable answer costs.
    "vl_rethinker": {
        "terms": {
            "acc": {"term": "answer", "kind": "maths"},
            "parsed": {"term": "parsed", "kind": "maths"},
            "waits": {"term": "words", "word": "wait"},
        },
        "total": "(1 if waits == 0 else 1.1 - 0.2*max(0, waits - 2)) if acc > 0.5 else (0 if parsed else -0.1)",
    },
    # DyME, 2506.23061, without the third term of its sum, a text model that holds the thought against facts of the picture.
    "dyme": {
        "terms": {"acc": {"term": "answer"}, "format": {"term": "format", "style": "answer_line"}},
        "total": "format + acc if format else 0",
    },
    # Think Or Not, 2505.16854: an empty thought passes.
    "ton": {
        "terms": {"acc": {"term": "answer", "kind": "maths"}, "format": {"term": "format", "style": "ton"}},
        "total": "acc + format",
    },
}
"""Every preset by its name, as a recipe would write it."""
