"""The items of a report that a person can read: pictures with their boxes, what was said, what was called, how it was judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from .charts import colour
from .records import Row
from .tables import by_mode, cost_of, score_of

_MAX_CHARS = 4_000
_MAX_DRAWS = 3


def chosen_items(rows: Sequence[Row], count: int) -> list[str]:
    """Ids of ``count`` items in which every kind of result is seen: one item of each combination of the modes' outcomes in turn,
    combinations in which modes disagree first, items in their order. Items whose story was kept come before all others."""
    told = {str(row["item"]) for row in rows if row.get("story")}
    parts = [[row for row in rows if (str(row["item"]) in told) is kept] for kept in (True, False)]
    return [item for part in parts for item in _in_turn(part)][:count]


def _in_turn(rows: Sequence[Row]) -> list[str]:
    outcomes: dict[str, dict[str, str]] = {}
    for row in rows:
        outcomes.setdefault(str(row["item"]), {}).setdefault(str(row["mode"]), str(row["outcome"]))
    kinds: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for item, found in outcomes.items():
        kinds.setdefault(tuple(sorted(found.items())), []).append(item)
    agreeing_last = sorted(kinds, key=lambda kind: len({outcome for _, outcome in kind}) == 1)
    turns = zip_longest(*(kinds[kind] for kind in agreeing_last))
    return [item for turn in turns for item in turn if item is not None]


def gallery(rows: Sequence[Row], count: int) -> list[dict[str, Any]]:
    """What the page shows of each chosen item: ``{"id", "question", "options", "gold", "categories", "pictures", "answers"}``."""
    colours = {name: colour(place) for place, name in enumerate(by_mode(rows))}
    chosen = chosen_items(rows, count)
    of_item: dict[str, list[Row]] = {item: [] for item in chosen}
    for row in rows:
        if str(row["item"]) in of_item and int(row.get("draw") or 0) < _MAX_DRAWS:
            of_item[str(row["item"])].append(row)
    return [_item(item, of_item[item], colours) for item in chosen]


def _item(item: str, rows: Sequence[Row], colours: Mapping[str, str]) -> dict[str, Any]:
    # the row whose prompt has most pixels shows the picture whole; crops and smaller views are left to their modes
    whole = max(rows, key=lambda row: sum(_area(part) for part in _visuals(_prompt(row))))
    main = [part for part in _visuals(_prompt(whole)) if part["type"] == "image"]
    evidence = [tuple(box) for box in whole.get("boxes_px_xyxy") or ()]
    names = [part["image"] for part in main]
    answers = [_answer(row, colours[str(row["mode"])], names) for row in rows]
    pictures = []
    for place, part in enumerate(main):
        boxes = [{"box": box, "colour": "evidence", "mode": "", "label": "evidence"} for box in evidence]
        marks = boxes if place == int(whole.get("box_image") or 0) else []
        marks += [mark for answer in answers for mark in answer["marks"] if mark["picture"] == part["image"]]
        pictures.append({"name": part["image"], "size_px": part["size_px"], "marks": marks})
    return {
        "id": item,
        "question": cut_short(str(whole.get("question", ""))),
        "options": lettered(whole),
        "gold": whole.get("gold"),
        "categories": list((whole.get("categories") or {}).values()),
        "pictures": pictures,
        "answers": answers,
    }


def _answer(row: Row, shade: str, main: Sequence[str]) -> dict[str, Any]:
    visuals, calls = _visuals(row.get("story") or ()), row.get("calls") or ()
    records: list[Mapping[str, Any]] = list(calls) if isinstance(calls, Sequence) else []
    turns = _turns(row)
    extra = [name for part in _visuals(_prompt(row)) for name in _names(part) if name not in main]
    marks = []
    for number, call in enumerate(records, 1):
        source, box = call.get("image"), call.get("box_px_xyxy")
        if box and isinstance(source, int) and 0 <= source < len(visuals) and visuals[source]["type"] == "image":
            label = f"{row['mode']} {number}"
            marks.append(
                {
                    "picture": visuals[source]["image"],
                    "box": tuple(box),
                    "colour": shade,
                    "mode": str(row["mode"]),
                    "label": label,
                }
            )
    return {
        "mode": str(row["mode"]),
        "draw": int(row.get("draw") or 0),
        "colour": shade,
        "outcome": str(row["outcome"]),
        "runaway": bool(row.get("runaway")),
        "judged": bool(row.get("judged")),
        "score": score_of(row),
        "parsed": _named(row.get("parsed"), row),
        "gold": _named(row.get("gold"), row),
        "prompt": [{"role": one["role"], "text": cut_short(_text(one))} for one in _prompt(row) if _text(one)],
        "pictures": extra,
        "turns": turns,
        "calls": [_call(call) for call in records],
        "marks": marks,
        "stop": str(row.get("stop", "")),
        "error": cut_short(str(row.get("error") or "")),
        "cost": {name: cost_of(row, name) for name in ("tokens_in", "tokens_out", "tokens_image", "seconds")},
    }


def _turns(row: Row) -> list[dict[str, Any]]:
    """The model's texts with what the world said to each: of the story behind the prompt, all that is not the model's own."""
    story = list(row.get("story") or ())
    replies = [message for message in story[len(_prompt(row)) :] if message["role"] != "assistant"]
    turns = [{"text": cut_short(str(text)), "pictures": [], "reply": ""} for text in row.get("texts") or ()]
    for turn, message in zip(turns, replies, strict=False):
        turn["pictures"] = [name for part in _visuals([message]) for name in _names(part)]
        turn["reply"] = cut_short(_text(message))
    return turns


def _prompt(row: Row) -> list[Mapping[str, Any]]:
    """The story up to its first user message."""
    story = list(row.get("story") or ())
    first = next((place for place, message in enumerate(story) if message["role"] == "user"), -1)
    return story[: first + 1]


def _visuals(story: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pictures and clips in reading order, a clip once: a call's ``image`` counts them so."""
    return [part for message in story for part in message["content"] if part["type"] in ("image", "video")]


def _names(part: Mapping[str, Any]) -> list[str]:
    return [part["image"]] if part["type"] == "image" else list(part["frames"])


def _area(part: Mapping[str, Any]) -> float:
    width, height = part.get("size_px", (0, 0))
    return float(width * height)


def _text(message: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text").strip()


def _call(call: Mapping[str, Any]) -> str:
    if call.get("error"):
        return f"{call.get('name', '')}: {cut_short(str(call['error']), 300)}"
    box = call.get("box_px_xyxy")
    where = "" if box is None else " (" + ", ".join(f"{value:.0f}" for value in box) + ") px"
    times = call.get("times_s") or ()
    return f"{call.get('name', '')}{where}" + (" at " + ", ".join(f"{value:g} s" for value in times) if times else "")


def lettered(row: Row) -> list[tuple[str, str]]:
    """``(letter, text)`` of the options as they were shown."""
    return [(chr(ord("A") + place), str(option)) for place, option in enumerate(row.get("options") or ())]


def _named(value: Any, row: Row) -> str:
    """An answer with the text of the option that it names; empty for none."""
    texts = dict(lettered(row))
    if value is None:
        return ""
    return f"{value} · {texts[str(value)]}" if str(value) in texts else cut_short(str(value), 300)


def cut_short(text: str, limit: int = _MAX_CHARS) -> str:
    """The text, its middle left out where it is longer than a person will read."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters left out … {text[-half:]}"
