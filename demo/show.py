"""An answer as HTML: what was shown, what the model said turn by turn, where it looked, what its tools showed it."""

from __future__ import annotations

import base64
import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image, ImageDraw

from ..rewards.answer import extract
from ..vlm.images import Picture
from ..vlm.messages import Clip
from ..vlm.records import Box
from .asks import WAYS, Ask
from .players import Player
from .story import STOPS, Story

_MAX_SIDE_PX = 640
_SMALL_PX = 224
"""Pictures up to this width are drawn enlarged with hard pixel edges, as in reports."""
_MARK = (255, 0, 90)  # as `foveate rollout` draws


@functools.lru_cache(1)
def environment() -> jinja2.Environment:
    """Templates of the demo; everything a visitor or a model wrote is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )


@dataclass(frozen=True)
class Shot:
    """A picture for the page: its bytes, its size, the boxes on it in percent with their numbers."""

    uri: str
    title: str
    small: bool
    boxes: tuple[tuple[float, float, float, float, str], ...] = ()


def answer_html(story: Story, ask: Ask, player: Player) -> str:
    """One answer, complete or still being written."""
    numbers = _numbers(story)
    marked = {0: [(ask.box_px_xyxy, "")]} if ask.way == "evidence" and ask.box_px_xyxy is not None else {}
    # in the way "evidence" the model was shown a crop, and the box lies on the visitor's own picture
    whole = ask.source.visual(ask.frames) if marked else story.prompt[0] if story.prompt else None
    boxes = marked if marked else _boxes(story, numbers)
    turns = []
    place = len(story.prompt)
    for number, turn in enumerate(story.turns):
        shots = [_shots(visual, f"shown to the model{_seen(player, visual)}", []) for visual in turn.visuals]
        calls = [
            {"number": numbers[number][k], "name": call.name or "no call that can be read", "arguments": call.arguments,
             "box": _px(call.box_px_xyxy), "times": [f"{time:g} s" for time in call.times_s], "error": call.error,
             "on": "" if call.image in (None, 0) else f" of picture {call.image}"}
            for k, call in enumerate(turn.calls)
        ]  # fmt: skip
        for offset in range(len(turn.visuals)):
            later = boxes.get(place + offset)
            if later:
                shots[offset] = _shots(turn.visuals[offset], "where it looked further", later)
        place += len(turn.visuals)
        turns.append({"text": turn.text, "calls": calls, "shots": [one for own in shots for one in own], "read": turn.read})
    title = "your picture, with the box that you marked" if marked else "the picture"
    if not marked and boxes.get(0):
        title = "where it looked"
    return environment().get_template("answer.html.j2").render(
        model=player.name, way=WAYS[ask.way][0], state=story.state, tokens=story.tokens, calls=story.calls,
        seconds=story.seconds, stop=STOPS.get(story.stop, story.stop), error=story.error, turns=turns, question=ask.question,
        whole=[] if whole is None else _shots(whole, title + ("" if marked else _seen(player, whole)), boxes.get(0, [])),
        crop=_crop(story, player) if marked else [],
        verdict=_verdict(story, ask),
    )  # fmt: skip


def _crop(story: Story, player: Player) -> list[Shot]:
    told = "all that the model was shown, the box and a quarter of it around"
    return [shot for visual in story.prompt[:1] for shot in _shots(visual, told + _seen(player, visual), [])]


def _numbers(story: Story) -> list[list[int]]:
    """Numbers of the calls of each turn, from 1 over the whole answer."""
    found, count = [], 0
    for turn in story.turns:
        found.append(list(range(count + 1, count + 1 + len(turn.calls))))
        count += len(turn.calls)
    return found


def _boxes(story: Story, numbers: list[list[int]]) -> dict[int, list[tuple[Box, str]]]:
    """Where calls looked, by the picture on which they did."""
    found: dict[int, list[tuple[Box, str]]] = {}
    for own, turn in zip(numbers, story.turns, strict=True):
        for number, call in zip(own, turn.calls, strict=True):
            if call.image is not None and call.box_px_xyxy is not None:
                found.setdefault(call.image, []).append((call.box_px_xyxy, str(number)))
    return found


def _verdict(story: Story, ask: Ask) -> dict[str, Any] | None:
    """What was answered, and whether it is right, where that is known."""
    if story.state != "done" or not story.turns:
        return None
    said, right = extract(story.text).text, ask.source.answers.get(ask.question)
    same = None if right is None else said is not None and said.strip().lower() == right.lower()
    return {"said": said, "right": right, "same": same}


def _seen(player: Player, visual: Picture | Clip) -> str:
    size, seen = (visual if isinstance(visual, Picture) else visual.frames[0]).size_px, player.seen_px(visual)
    told = f": {size[0]} × {size[1]} px"
    return told if seen is None or seen == size else f"{told}, seen by the model as {seen[0]} × {seen[1]}"


def _px(box: Box | None) -> str:
    return "" if box is None else ", ".join(f"{value:.0f}" for value in box)


def _shots(visual: Picture | Clip, title: str, boxes: list[tuple[Box, str]]) -> list[Shot]:
    if isinstance(visual, Clip):
        return [
            Shot(picture_uri(frame), f"second {time:g}", False) for frame, time in zip(visual.frames, visual.times_s, strict=True)
        ]
    width, height = visual.size_px
    drawn = tuple(
        (100 * x1 / width, 100 * y1 / height, 100 * (x2 - x1) / width, 100 * (y2 - y1) / height, label)
        for (x1, y1, x2, y2), label in boxes
    )
    return [Shot(picture_uri(visual), title, width <= _SMALL_PX, drawn)]


@functools.lru_cache(256)
def picture_uri(picture: Picture) -> str:
    """The picture in a ``data:`` URL, made smaller where it is large."""
    image, buffer = picture.rgb(), io.BytesIO()
    if max(image.size) <= _SMALL_PX:
        image.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    image = image.copy()
    image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


PREVIEW_PX = 1024
"""Longest side of the picture in which a box is drawn."""


def preview(visual: Picture | Clip, box: Box | None = None, corner: tuple[float, float] | None = None) -> Image.Image:
    """The picture to click on, with the box or its first corner; of a video its frames side by side."""
    if isinstance(visual, Clip):
        return _sheet(visual)
    image = _shrunk(visual).copy()
    draw, scale = ImageDraw.Draw(image), image.width / visual.width_px
    line = max(2, round(min(image.size) / 150))
    if box is not None:
        draw.rectangle([value * scale for value in box], outline=_MARK, width=line)
    if corner is not None:
        x, y = corner[0] * scale, corner[1] * scale
        arm = 4 * line
        draw.line((x - arm, y, x + arm, y), fill=_MARK, width=line)
        draw.line((x, y - arm, x, y + arm), fill=_MARK, width=line)
    return image


@functools.lru_cache(64)
def _shrunk(picture: Picture) -> Image.Image:
    image = picture.rgb().copy()
    image.thumbnail((PREVIEW_PX, PREVIEW_PX), Image.Resampling.LANCZOS)
    return image


def _sheet(clip: Clip) -> Image.Image:
    columns = min(4, len(clip.frames))
    tile = clip.frames[0].rgb().copy()
    tile.thumbnail((256, 256))
    rows = -(-len(clip.frames) // columns)
    sheet = Image.new("RGB", (columns * tile.width, rows * tile.height), (255, 255, 255))
    for place, frame in enumerate(clip.frames):
        sheet.paste(frame.rgb().resize(tile.size), (place % columns * tile.width, place // columns * tile.height))
    return sheet


def problem_html(sentence: str) -> str:
    """A message about something that was not taken; empty for none."""
    return environment().get_template("problem.html.j2").render(sentence=sentence)
