"""``report.html``: one page that shows how a model did and lets a person read items. Made from rows, their summary and the
pictures of a folder; self-contained, so that no request leaves it and it can be sent around."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from . import tables
from .charts import Curve, Point, colour, curves, scatter
from .gallery import gallery
from .records import Row

IMAGES = "images"
_NUM_ITEMS = 36
_MAX_SIDE_PX, _THUMB_PX = 640, 240
"""Pictures of questions and crops are embedded no larger; the originals stay in images/."""
_SMALL_PX = 224
"""Pictures up to this width are drawn enlarged with hard pixel edges."""


@dataclass(frozen=True)
class Extra:
    """A further table of the page (a diagnosis): rows of text, the first of them the header."""

    title: str
    note: str
    rows: Sequence[Sequence[str]]


def write_report(
    folder: Path, rows: Sequence[Row], summary: Mapping[str, Any], extras: Sequence[Extra] = (), num_items: int = _NUM_ITEMS
) -> Path:
    """Write ``report.html`` into ``folder`` and return its path; ``summary`` is that of `tables.summary`.

    Pictures that the rows' stories name are looked for in ``folder/images``; one that is gone is said to be gone. Evidence boxes
    are drawn where a row has ``boxes_px_xyxy`` (and ``box_image``).
    """
    folder = Path(folder)
    page = _environment(folder / IMAGES).get_template("report.html.j2").render(_context(rows, summary, extras, num_items))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "report.html"
    unfinished = target.with_name(f".report.html.{os.getpid()}")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, target)
    return target


def _context(rows: Sequence[Row], summary: Mapping[str, Any], extras: Sequence[Extra], num_items: int) -> dict[str, Any]:
    modes = summary["modes"]
    colours = {name: colour(place) for place, name in enumerate(modes)}
    return {
        "title": summary["title"] or summary["benchmark"],
        "meta": summary["meta"],
        "meta_json": json.dumps(summary["meta"], indent=2, ensure_ascii=False, default=str),
        "modes": modes,
        "colours": colours,
        "best": max(modes, key=lambda name: modes[name]["overall"]["value"], default=""),
        "table": tables.render(summary),
        "levels": _levels(modes),
        "charts": [Markup(chart) for chart in _charts(summary, colours) if chart],
        "budgets": summary["equal_cost"],
        "extras": extras,
        "items": gallery(rows, num_items),
        "num_all": len({str(row["item"]) for row in rows}),
        "outcomes": list(dict.fromkeys(outcome for outcome in _OUTCOMES if any(row["outcome"] == outcome for row in rows))),
    }


_OUTCOMES = ("right", "wrong", "unparsed", "truncated", "failed", "unscored")


def _levels(modes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per level its categories, each with one bar a mode."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, mode in modes.items():
        for level, values in mode["categories"].items():
            for category, value in values.items():
                found.setdefault(level, {}).setdefault(category, {})[name] = value
    return [
        {"name": level, "categories": [{"name": name, "bars": bars} for name, bars in values.items()]}
        for level, values in found.items()
    ]


def _charts(summary: Mapping[str, Any], colours: Mapping[str, str]) -> list[str]:
    def points(cost: str) -> list[Point]:
        return [
            Point(name, mode["cost"][cost], mode["overall"]["value"], tuple(mode["overall"]["ci95"]), colours[name])
            for name, mode in summary["modes"].items()
        ]

    lines = [Curve(name, curve, colours[name]) for name, curve in summary["equal_cost"]["curves"].items()]
    return [
        scatter("Accuracy against output tokens", points("tokens_out"), "output tokens per item"),
        scatter("Accuracy against seconds", points("seconds"), "seconds per item"),
        curves("Accuracy within a token limit", lines, "output tokens allowed per item"),
    ]


# --- pictures ------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(512)
def _embedded(path: str, _mtime_ns: int, side_px: int) -> tuple[str, tuple[int, int]]:
    """``(data URI, width and height of the original)``. Small pictures are kept to the pixel."""
    with Image.open(path) as image:
        size, buffer = image.size, io.BytesIO()
        if max(size) <= _SMALL_PX:
            image.convert("RGB").save(buffer, "PNG", optimize=True)
            kind = "png"
        else:
            image.draft("RGB", (side_px, side_px))
            shown = image.convert("RGB")
            shown.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
            shown.save(buffer, "JPEG", quality=84)
            kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", size


def embedded(images: Path, name: str, side_px: int = _MAX_SIDE_PX) -> dict[str, Any]:
    """A picture of the folder for ``<img>``: ``{"uri", "size_px", "small"}``; ``uri`` is empty when the file is gone."""
    path = images / name
    # a story names files of its own folder; a name that leads out of it is not followed
    if Path(name).name != name or not path.is_file():
        return {"uri": "", "size_px": (1, 1), "small": False}
    try:
        uri, size_px = _embedded(str(path), path.stat().st_mtime_ns, side_px)
    except (OSError, SyntaxError, Image.DecompressionBombError):  # half written when the run was killed
        return {"uri": "", "size_px": (1, 1), "small": False}
    return {"uri": uri, "size_px": size_px, "small": max(size_px) <= _SMALL_PX}


def _environment(images: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {
        "picture": functools.partial(embedded, images),
        "thumb": functools.partial(embedded, images, side_px=_THUMB_PX),
    }
    environment.filters |= {"percent": tables.percent, "ends": tables.interval_text}
    return environment
