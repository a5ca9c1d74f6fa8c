"""What the pages of a run share: the environment of their templates, pictures, and rollouts made ready to be shown."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

_MAX_SIDE_PX = 640
"""Larger pictures are embedded smaller; the originals stay in images/."""
_MAX_BYTES = 100_000
"""Heavier files are embedded as JPEG."""
_SMALL_PX = 224
"""Pictures up to this width are drawn enlarged with hard pixel edges."""
_LONG_CHARS = 600
"""Longer texts of a prompt are folded."""
HEAT_NATS = (0.0, 0.02, 0.1, 0.25, 0.5)
"""The divergences that the scale of a page names; the last is full colour."""
TEMPLATES = Path(__file__).resolve().parent / "templates"

Shown = dict[str, Any]
"""A picture for ``<img>``: ``{"uri", "small"}``; ``uri`` is empty when it cannot be shown."""
_GONE: Shown = {"uri": "", "small": False}


def environment(picture: Callable[[str], Shown], *folders: Path) -> jinja2.Environment:
    """Templates of ``folders``, then of this room. All text is escaped; ``picture`` finds the pictures that rows name."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.globals |= {"picture": picture, "heat_scale": [(nats, heat([nats])[0]) for nats in HEAT_NATS]}
    made.filters |= {"heat": heat, "signed": signed}
    return made


# --- pictures ------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(1024)
def _embedded(path: str, _mtime_ns: int) -> tuple[str, int]:
    """``(data URI, width of the original in px)``."""
    data, kind, width_px = reduced(path, _MAX_SIDE_PX, _MAX_BYTES)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}", width_px


def reduced(path: str, side_px: int, most_bytes: int) -> tuple[bytes, str, int]:
    """A picture with no side above ``side_px``: ``(bytes, media type, width of the original in px)``. A small one of at most
    ``most_bytes`` is the file itself. Raises `OSError` or ``DecompressionBombError`` for a file that is no whole picture.
    """
    with Image.open(path, formats=("PNG",)) as image:
        width_px = image.width
        image.load()
        if max(image.size) <= _SMALL_PX or (max(image.size) <= side_px and Path(path).stat().st_size <= most_bytes):
            return Path(path).read_bytes(), "image/png", width_px
        image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=86)
        return buffer.getvalue(), "image/jpeg", width_px


def embedded(path: Path | None) -> Shown:
    """A picture inside the page; ``uri`` is empty when the file is gone, or was cut short by a kill."""
    if path is None or not path.is_file():
        return _GONE
    try:
        uri, width_px = _embedded(str(path), path.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return _GONE
    return {"uri": uri, "small": width_px <= _SMALL_PX}


def linked(uri: str, path: Path | None) -> Shown:
    """A picture that the page asks for at ``uri``."""
    if path is None:
        return _GONE
    try:
        with Image.open(path, formats=("PNG",)) as image:  # reads the header only
            return {"uri": uri, "small": image.width <= _SMALL_PX}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return _GONE


# --- rollouts ------------------------------------------------------------------------------------------------------------------


def prepared(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``rollouts/`` as the template shows it: every region that a call used is a mark on the picture it was cut from.

    Raises `ValueError` for a row whose lists do not fit together.
    """
    calls = [call for turn in row["turns"] for call in turn.get("calls") or ()]
    marks: dict[int, list[dict[str, Any]]] = {}
    for number, call in enumerate(calls, 1):
        box, source = call.get("box_px_xyxy"), call.get("image")
        if isinstance(box, list) and len(box) == 4 and isinstance(source, int):
            marks.setdefault(source, []).append({"box": box, "number": number})
    places = iter(range(10**9))
    student = _marked(row["student"], marks, places)
    turns, number = [], 0
    for place, turn in enumerate(row["turns"]):
        made = [_call(call, number + k) for k, call in enumerate(turn.get("calls") or (), 1)]
        number += len(made)
        seen = turn.get("observation")
        observation = None if seen is None else _marked([seen], marks, places)[0]
        turns.append({**_tokens(turn, place), "text": turn.get("text", ""), "calls": made, "observation": observation})
    divergences = flat(row, "divergence")
    return {
        **{key: row.get(key) for key in ("sample", "group", "index", "stream", "reward", "seed")},
        "stop": str(row.get("stop", "")).replace("_", " "),
        "student": student,
        "teacher": None if row.get("teacher") is None else _marked(row["teacher"], {}, iter(range(10**9))),
        "turns": turns,
        "num_tokens": sum(len(turn.get("ids") or ()) for turn in row["turns"]),
        "num_calls": len(calls),
        "mean_nats": sum(divergences) / len(divergences) if divergences else None,
        "max_nats": max(divergences, default=None),
        "measure": measure_text(row),
        "advantage": advantage_text(row),
        "has_candidates": any(turn.get("top_student") for turn in row["turns"]),
    }


def flat(row: Mapping[str, Any], name: str) -> list[float]:
    """A list of every action token of a row's turns, end to end; empty where it is absent."""
    return [float(value) for turn in row["turns"] for value in turn.get(name) or ()]


def measure_text(row: Mapping[str, Any]) -> str:
    """What the divergence of a row is; "" when it has none."""
    if not flat(row, "divergence"):
        return ""
    measure = row.get("measure") or {}
    kinds = {"jsd": "Jensen-Shannon divergence", "forward_kl": "KL(teacher || student)", "reverse_kl": "KL(student || teacher)"}
    kind = kinds.get(str(measure.get("divergence")), "divergence")
    if measure.get("view") == "student":
        return f"{kind}; the reference reads the same view as the student"
    return f"{kind}; the teacher reads its own view"


def advantage_text(row: Mapping[str, Any]) -> str:
    """The advantage of a row's tokens: one number, or the least and the greatest; "" when it has none."""
    values = flat(row, "advantages")
    if not values:
        return ""
    low, high = min(values), max(values)
    return signed(low, 3) if high - low < 5e-4 else f"{signed(low, 3)} to {signed(high, 3)}"


def _tokens(turn: Mapping[str, Any], place: int) -> dict[str, Any]:
    """The tokens of a turn with their shades, and what the page's script shows of them."""
    texts = turn.get("tokens")
    if not texts:
        return {"tokens": [], "data": ""}
    names = {"logprobs": "l", "divergence": "d", "advantages": "a", "top_student": "s", "top_teacher": "t"}
    data: dict[str, Any] = {"turn": place + 1}
    for name, short in names.items():
        values = turn.get(name)
        if values is None:
            continue
        if len(values) != len(texts):
            raise ValueError(f"turn {place + 1} has {len(texts)} tokens but {len(values)} of {name}")
        data[short] = [round(value, 5) for value in values] if short in "lda" else values
    shades = heat(turn["divergence"]) if turn.get("divergence") is not None else [None] * len(texts)
    return {"tokens": list(zip(texts, shades, strict=True)), "data": json.dumps(data, ensure_ascii=False)}


def _call(call: Mapping[str, Any], number: int) -> dict[str, Any]:
    box = call.get("box_px_xyxy")
    return {
        "number": number,
        "name": call.get("name", ""),
        "arguments": call.get("arguments", ""),
        "box": "" if box is None else ", ".join(f"{value:.0f}" for value in box),
        "times": ", ".join(f"{value:g} s" for value in call.get("times_s") or ()),
        "error": call.get("error") or "",
    }


def _marked(
    messages: Sequence[Mapping[str, Any]], marks: Mapping[int, Sequence[Mapping[str, Any]]], places: Iterator[int]
) -> list[dict[str, Any]]:
    """Messages whose pictures carry marks; ``places`` counts pictures and clips as calls do, a clip once."""
    found = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append({**part, "long": len(part["text"]) > _LONG_CHARS})
                continue
            mine = marks.get(next(places), ())
            parts.append({**part, "marks": [_rectangle(one) for one in mine] if part["type"] == "image" else []})
        found.append({"role": message["role"], "content": parts})
    return found


def _rectangle(mark: Mapping[str, Any]) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in mark["box"])
    return {"x": left, "y": top, "width": max(0.0, right - left), "height": max(0.0, bottom - top), "number": mark["number"]}


# --- numbers -------------------------------------------------------------------------------------------------------------------


def signed(value: float, digits: int = 1) -> str:
    """A change with its sign; nothing has no sign."""
    text = f"{value:+.{digits}f}".replace("-", "\u2212")
    return text[1:] if float(text[1:]) == 0 else text


def heat(values: Sequence[float]) -> list[float]:
    """Shades 0 to 1 of divergences in nats; a square root keeps small ones visible, and 0.5 nats is full colour on every page."""
    return [round(min(1.0, max(0.0, value) / HEAT_NATS[-1]) ** 0.5, 3) for value in values]
