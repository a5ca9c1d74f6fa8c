"""Rows of the released formats, read into one form. A format is found from the columns, or named.

An importer only says which column means what; pictures stay references (path, base64, data URI, bytes, ``{"bytes", "path"}``,
PIL) until `read` opens them, and boxes stay in their own unit until the size of their picture is known.

| format | columns that tell it | pictures for the teacher |
|---|---|---|
| vision_opd | ``problem, images, teacher_images`` or ``bbox_images`` | teacher_images / bbox_images |
| imagine_opd | ``messages, images, teacher_images`` (originals first) | teacher_images that are not in images |
| imagine_opd_xc | ``x{question, images}, c{intermediate_images}, target{answer}`` | intermediate_images |
| treevgr | ``problem, images, crop_images`` or ``target_instances`` | crop_images, boxes in target_instances |
| ms_swift | ``messages`` (``images``, ``teacher_prompt``, ``teacher_images``) | teacher_images, text in teacher_prompt |
| deepeyes | ``env_name, prompt, images, reward_model`` | - |
| verl | ``prompt, reward_model`` (``images, extra_info``) | - |
| cap_curriculum | ``prompt, image_path, answer`` (``pass_rate``) | - |
| mini_o3 | ``problem, images, solution`` | - |
| trl | ``prompt`` with ``image`` / ``privileged_context`` / messages | text in privileged_context |
| easyr1 | ``problem`` or ``prompt``, ``images, answer`` | - |
| plain | ``question``, ``image`` or ``images`` (``answer``, ``boxes`` ...) | crops or teacher_images, boxes |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .spec import BoxFormat

RED_BOX_MARK = "red bounding box"
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_THINK = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)


class RowError(ValueError):
    """A row that cannot be used: what is wrong, and how to mend it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}; {mend}")
        self.what, self.mend = what, mend


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """A row with its columns understood and nothing opened or converted yet."""

    question: str
    id: str | None = None
    answer: str | None = None
    images: tuple[Any, ...] = ()
    crops: tuple[Any, ...] = ()
    boxes: tuple[Any, ...] = ()
    box_format: BoxFormat | None = None
    box_image: int = 0
    options: tuple[str, ...] = ()
    system: str | None = None
    rationale: str | None = None
    prompt: str | None = None
    source: str = ""
    kind: str = ""
    difficulty: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class Row(Mapping[str, Any]):
    """A row that remembers which of its columns were asked for, so that unused ones can be named."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def first(self, *names: str) -> Any:
        """The value of the first of these columns that is there and not None."""
        for name in names:
            if name in self.data and self[name] is not None:
                return self[name]
        return None


def _list(value: Any) -> tuple[Any, ...]:
    """A list column as a tuple; a single value as one; None and empty text as none."""
    if value is None or value == "":
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _text(value: Any) -> str | None:
    """Text of a cell; whole numbers as text; a list of one as its only element; None and "" as None."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value)
    raise RowError(f"expected text, got {type(value).__name__} {str(value)[:60]!r}", "give one text or number")


def _below(value: Any, *names: str) -> Any:
    """The first of these keys of a nested column (``reward_model.ground_truth``), or None."""
    if isinstance(value, Mapping):
        for name in names:
            if value.get(name) is not None:
                return value[name]
    return None


def _content(content: Any) -> tuple[str, list[Any]]:
    """Text of a message's content, with ``<image>`` where a picture part stands, and the pictures that the parts carry."""
    if isinstance(content, str):
        return content, []
    text, pictures = "", []
    for part in content or ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            text += part
        elif kind == "text":
            text += str(part.get("text") or "")
        elif kind in ("image", "image_url"):
            text += "<image>"
            reference = _below(part, "image", "image_url", "path", "url")
            reference = (
                _below(reference, "url", "path") or reference
                if isinstance(reference, Mapping) and "bytes" not in reference
                else reference
            )
            pictures += [reference] if reference is not None else []
        else:
            raise RowError(f"a message part of type {kind!r}", "text and image parts are read")
    return text, pictures


@dataclass(frozen=True)
class _Chat:
    question: str
    system: str | None
    reply: str | None
    images: tuple[Any, ...]


def _chat(messages: Any) -> _Chat:
    """One question from a chat: a system message, one user message, and the reply if it is there."""
    if isinstance(messages, str):
        return _Chat(messages, None, None, ())
    system, question, reply, images = None, None, None, []
    for message in messages or ():
        if not isinstance(message, Mapping) or "role" not in message:
            raise RowError("a message without a role", 'messages are {"role": ..., "content": ...}')
        text, pictures = _content(message.get("content"))
        images += pictures
        if message["role"] == "system":
            system = text
        elif message["role"] == "user" and question is None:
            question = text
        elif message["role"] == "assistant" and question is not None and reply is None:
            reply = text
        else:
            raise RowError(
                f"a chat of more than one question (a second {message['role']} message)",
                "split it into rows of one question each",
            )
    if question is None:
        raise RowError("no user message", "a chat needs one question")
    return _Chat(question, system, reply, tuple(images))


def _final(reply: str | None) -> tuple[str | None, str | None]:
    """``(answer, rationale)`` of a reply: the text in its last answer tags, or all of it without its thoughts."""
    if not reply:
        return None, None
    tagged = _ANSWER.findall(reply)
    answer = (tagged[-1] if tagged else _THINK.sub("", reply)).strip()
    return answer or None, reply if reply.strip() != answer and reply.strip() != f"<answer>{answer}</answer>" else None


# --- the formats ------------------------------------------------------------------------------------------------------------


def _question_row(row: Row, *names: str, **fields: Any) -> RawRow:
    given = row.first(*names)
    if given is None:
        raise RowError(f"no {' or '.join(names)}", "every row needs a question")
    chat = _chat(given)
    fields = {"system": chat.system, "answer": _text(row.first("answer", "solution", "ground_truth")), **fields}
    fields["images"] = tuple(fields.get("images") or ()) or chat.images
    return RawRow(question=chat.question, **fields)


def _vision_opd(row: Row) -> RawRow:
    answer = (
        _text(row.first("answer"))
        or _text(_below(row.first("reward_model"), "ground_truth"))
        or _text(_below(row.first("extra_info"), "answer"))
    )
    raw = _question_row(
        row, "problem", "prompt", answer=answer, images=_list(row.first("images", "image")),
        crops=_list(row.first("teacher_images", "bbox_images")), source=_text(row.first("data_source")) or "",
    )  # fmt: skip
    # The released pictures have the box drawn in, and the question says so; its coordinates are not given.
    return replace(raw, tags={"red_box": "drawn"}) if RED_BOX_MARK in raw.question else raw


def _messages(row: Row) -> RawRow:
    chat = _chat(row["messages"])
    said, rationale = _final(chat.reply)
    answer = _text(row.first("answer", "solution")) or said
    return RawRow(
        question=chat.question, system=chat.system, answer=answer, rationale=rationale,
        images=_list(row.first("images", "image")) or chat.images, crops=_list(row.first("teacher_images")),
        prompt=_text(row.first("teacher_prompt")),
    )  # fmt: skip


def _imagine_xc(row: Row) -> RawRow:
    shown, extra, target = row["x"], row["c"], row["target"]
    final = _text(_below(target, "final_response"))
    return RawRow(
        question=_text(_below(shown, "question")) or "", images=_list(_below(shown, "images")),
        crops=_list(_below(extra, "intermediate_images")),
        answer=_text(_below(target, "answer")), rationale=final, kind=_text(row.first("op_type")) or "",
    )  # fmt: skip


def _treevgr(row: Row) -> RawRow:
    raw = _question_row(
        row, "problem", "question", images=_list(row.first("images", "image")), crops=_list(row.first("crop_images"))
    )
    return replace(raw, boxes=_instances(row.first("target_instances")))


def _instances(value: Any) -> tuple[Any, ...]:
    """Boxes of annotated objects: a list of boxes, or of mappings that hold one."""
    boxes = tuple(_below(item, "bbox", "box", "bbox_2d") if isinstance(item, Mapping) else item for item in _list(value))
    return (boxes,) if len(boxes) == 4 and all(isinstance(number, int | float) for number in boxes) else boxes


def _verl(row: Row) -> RawRow:
    answer = (
        _text(_below(row.first("reward_model"), "ground_truth"))
        or _text(_below(row.first("extra_info"), "answer"))
        or _text(row.first("answer"))
    )
    return _question_row(
        row,
        "prompt",
        "problem",
        answer=answer,
        images=_list(row.first("images", "image")),
        source=_text(row.first("data_source")) or "",
    )


def _deepeyes(row: Row) -> RawRow:
    raw = _verl(row)
    # The prompt's system message describes DeepEyes' own tool; the view of a run says which tools there are.
    return replace(raw, tags={"env_name": _text(row.first("env_name")) or ""})


def _cap_curriculum(row: Row) -> RawRow:
    raw = _question_row(row, "prompt", "problem", images=_list(row.first("image_path", "images", "image")))
    rate = row.first("pass_rate")
    return raw if rate is None else replace(raw, difficulty=1.0 - float(rate), tags={"pass_rate": str(rate)})


def _mini_o3(row: Row) -> RawRow:
    return _question_row(
        row, "problem", images=_list(row.first("images", "image")), answer=_text(row.first("solution", "answer"))
    )


def _trl(row: Row) -> RawRow:
    raw = _question_row(row, "prompt", images=_list(row.first("images", "image")))
    context = row.first("privileged_context")
    return replace(raw, rationale=_chat(context).question if context is not None else None)


def _easyr1(row: Row) -> RawRow:
    return _question_row(row, "problem", "prompt", images=_list(row.first("images", "image")))


def _plain(row: Row) -> RawRow:
    raw = _question_row(row, "question", images=_list(row.first("images", "image", "image_path")))
    return replace(
        raw, crops=_list(row.first("crops", "teacher_images", "crop_images")), prompt=_text(row.first("teacher_prompt"))
    )


FORMATS: dict[str, tuple[Callable[[set[str]], bool], Callable[[Row], RawRow]]] = {
    "deepeyes": (lambda c: {"env_name", "prompt"} <= c, _deepeyes),
    "vision_opd": (
        lambda c: bool({"problem", "prompt"} & c and {"bbox_images", "teacher_images"} & c) and "messages" not in c,
        _vision_opd,
    ),
    "imagine_opd_xc": (lambda c: {"x", "c", "target"} <= c, _imagine_xc),
    "treevgr": (lambda c: "problem" in c and bool({"crop_images", "target_instances"} & c), _treevgr),
    "imagine_opd": (lambda c: {"messages", "images", "teacher_images"} <= c and "teacher_prompt" not in c, _messages),
    "ms_swift": (lambda c: "messages" in c, _messages),
    "verl": (lambda c: {"prompt", "reward_model"} <= c, _verl),
    "cap_curriculum": (lambda c: bool({"prompt", "problem"} & c) and bool({"image_path", "pass_rate"} & c), _cap_curriculum),
    "mini_o3": (lambda c: {"problem", "images", "solution"} <= c, _mini_o3),
    "plain": (lambda c: "question" in c, _plain),
    "trl": (lambda c: "prompt" in c and bool({"privileged_context", "image", "solution"} & c or "answer" not in c), _trl),
    "easyr1": (lambda c: bool({"problem", "prompt"} & c), _easyr1),
}
"""Every format: whether a set of columns is of it (asked in this order), and its importer."""


def detect(columns: Iterable[str]) -> str:
    """The format of a file with these columns. `ValueError` when none fits."""
    names = set(columns)
    for name, (fits, _) in FORMATS.items():
        if fits(names):
            return name
    raise ValueError(
        f"no known format has the columns {', '.join(sorted(names)) or '(none)'}; name your columns with data.columns, for "
        f"instance {{question: my_question, images: my_pictures}}, or choose data.format from {', '.join(FORMATS)}"
    )


_BOX_COLUMNS: tuple[tuple[str, BoxFormat | None], ...] = (
    ("boxes_px_xyxy", "px_xyxy"),
    ("boxes_k1000_xyxy", "k1000_xyxy"),
    ("boxes_frac_xyxy", "frac_xyxy"),
    ("boxes", None),
    ("box", None),
    ("bboxes", None),
    ("bbox", None),
    ("bbox_2d", None),
)


def import_row(row: Row, format_name: str, box_format: BoxFormat | None = None) -> RawRow:
    """A row in its format, with the columns that every format may have: boxes, options, id, kind, rationale ... `RowError`."""
    raw = FORMATS[format_name][1](row)
    extra = row.first("extra_info")
    found: dict[str, Any] = {
        "id": raw.id
        or _text(row.first("id", "sample_id", "doc_id", "question_id", "index"))
        or _text(_below(extra, "id", "index"))
    }
    boxes, unit = raw.boxes, raw.box_format
    for name, named_unit in () if boxes else _BOX_COLUMNS:
        value = row.first(name)
        if value is not None:
            boxes, unit = _instances(value), named_unit
            break
    said = _text(row.first("boxes_format", "box_format"))
    if boxes and unit is None:
        unit = _unit(said) if said else box_format or "px_xyxy"
    found.update(boxes=boxes, box_format=unit, box_image=int(row.first("box_image") or 0))
    found["options"] = raw.options or tuple(str(option) for option in _list(row.first("options", "choices")))
    found["system"] = raw.system or _text(row.first("system"))
    found["rationale"] = raw.rationale or _text(row.first("rationale", "privileged_context"))
    found["source"] = raw.source or _text(row.first("source", "data_source")) or ""
    found["kind"] = raw.kind or _text(row.first("kind", "category", "type")) or ""
    if raw.difficulty is None and isinstance(row.first("difficulty"), int | float):
        found["difficulty"] = float(row["difficulty"])
    tags = row.first("tags")
    if isinstance(tags, Mapping):
        found["tags"] = {**{str(key): str(value) for key, value in tags.items() if value is not None}, **raw.tags}
    return replace(raw, **found)


def _unit(said: str) -> BoxFormat:
    names: dict[str, BoxFormat] = {
        "px_xyxy": "px_xyxy",
        "k1000_xyxy": "k1000_xyxy",
        "frac_xyxy": "frac_xyxy",
        "px_xywh": "px_xywh",
    }
    if said not in names:
        raise RowError(f"boxes_format {said!r}", f"expected {', '.join(names)}")
    return names[said]
