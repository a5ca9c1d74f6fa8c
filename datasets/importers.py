"""Rows of the released formats, read into one form. A format is found from the columns, or named.

An importer only says which column means what; pictures stay references (path, base64, data URI, bytes, ``{"bytes", "path"}``,
PIL) until `read` opens them, and boxes stay in their own unit until the size of their picture is known. In every format a row may
have one video instead, or besides: in ``video``, ``videos``, ``video_path`` or ``video_file``, or as a part of its message.

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
| video_mme | ``videoID, question, options, answer`` | - |
| longvideobench | ``video_path, question, correct_choice`` (``candidates`` or ``option0`` ...) | - |
| plain | ``question``, ``image`` or ``images`` (``answer``, ``boxes`` ...) | crops or teacher_images, boxes |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .raw_rows import RawRow, Row, RowError, as_list, as_text, below
from .spec import BoxFormat

RED_BOX_MARK = "red bounding box"
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_LETTERED = re.compile(r"\(?([A-Z])[.):]\s*")
_VIDEO = "<video>"
_THINK = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)


@dataclass
class _Chat:
    """One question of a chat. ``<image>`` and ``<video>`` stand in its text where the message had one."""

    question: str | None = None
    system: str | None = None
    reply: str | None = None
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()

    def text_of(self, content: Any) -> str:
        """The text of a message's content; the pictures and videos that its parts carry are kept."""
        if isinstance(content, str):
            return content
        text = ""
        for part in content or ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(part, str):
                text += part
            elif kind == "text":
                text += str(part.get("text") or "")
            elif kind in ("image", "image_url"):
                text += "<image>"
                self.images += _reference(part, "image")
            elif kind in ("video", "video_url"):
                text += "<video>"
                self.videos += _reference(part, "video")
            else:
                raise RowError(f"a message part of type {kind!r}", "text, image and video parts are read")
        return text


def _reference(part: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """What a picture or video part points at; none where the row's own column holds it."""
    found = below(part, name, f"{name}_url", "path", "url")
    if isinstance(found, Mapping) and "bytes" not in found:
        found = below(found, "url", "path") or found
    return () if found is None else (found,)


def _chat(messages: Any) -> _Chat:
    """One question from a chat: a system message, one user message, and the reply if it is there."""
    if isinstance(messages, str):
        return _Chat(messages)
    if not isinstance(messages, list | tuple):
        raise RowError(f"a question of type {type(messages).__name__}", "a question is text, or a list of messages")
    chat = _Chat()
    for message in messages or ():
        if not isinstance(message, Mapping) or "role" not in message:
            raise RowError("a message without a role", 'messages are {"role": ..., "content": ...}')
        text = chat.text_of(message.get("content"))
        if message["role"] == "system":
            chat.system = text
        elif message["role"] == "user" and chat.question is None:
            chat.question = text
        elif message["role"] == "assistant" and chat.question is not None and chat.reply is None:
            chat.reply = text
        else:
            raise RowError(
                f"a chat of more than one question (a second {message['role']} message)",
                "split it into rows of one question each",
            )
    if chat.question is None:
        raise RowError("no user message", "a chat needs one question")
    return chat


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
    fields = {"system": chat.system, "answer": as_text(row.first("answer", "solution", "ground_truth")), **fields}
    fields["images"] = tuple(fields.get("images") or ()) or chat.images
    return RawRow(question=chat.question or "", videos=chat.videos, **fields)


def _vision_opd(row: Row) -> RawRow:
    answer = (
        as_text(row.first("answer"))
        or as_text(below(row.first("reward_model"), "ground_truth"))
        or as_text(below(row.first("extra_info"), "answer"))
    )
    raw = _question_row(
        row, "problem", "prompt", answer=answer, images=as_list(row.first("images", "image")),
        crops=as_list(row.first("teacher_images", "bbox_images")), source=as_text(row.first("data_source")) or "",
    )  # fmt: skip
    # The released pictures have the box drawn in, and the question says so; its coordinates are not given.
    return replace(raw, tags={"red_box": "drawn"}) if RED_BOX_MARK in raw.question else raw


def _messages(row: Row) -> RawRow:
    chat = _chat(row["messages"])
    said, rationale = _final(chat.reply)
    answer = as_text(row.first("answer", "solution")) or said
    return RawRow(
        question=chat.question or "", system=chat.system, answer=answer, rationale=rationale, videos=chat.videos,
        images=as_list(row.first("images", "image")) or chat.images, crops=as_list(row.first("teacher_images")),
        prompt=as_text(row.first("teacher_prompt")),
    )  # fmt: skip


def _imagine_xc(row: Row) -> RawRow:
    shown, extra, target = row["x"], row["c"], row["target"]
    final = as_text(below(target, "final_response"))
    return RawRow(
        question=as_text(below(shown, "question")) or "", images=as_list(below(shown, "images")),
        crops=as_list(below(extra, "intermediate_images")),
        answer=as_text(below(target, "answer")), rationale=final, kind=as_text(row.first("op_type")) or "",
    )  # fmt: skip


def _treevgr(row: Row) -> RawRow:
    raw = _question_row(
        row, "problem", "question", images=as_list(row.first("images", "image")), crops=as_list(row.first("crop_images"))
    )
    return replace(raw, boxes=_instances(row.first("target_instances")))


def _instances(value: Any) -> tuple[Any, ...]:
    """Boxes of annotated objects: a list of boxes, or of mappings that hold one."""
    boxes = tuple(below(item, "bbox", "box", "bbox_2d") if isinstance(item, Mapping) else item for item in as_list(value))
    return (boxes,) if len(boxes) == 4 and all(isinstance(number, int | float) for number in boxes) else boxes


def _verl(row: Row) -> RawRow:
    answer = (
        as_text(below(row.first("reward_model"), "ground_truth"))
        or as_text(below(row.first("extra_info"), "answer"))
        or as_text(row.first("answer"))
    )
    return _question_row(
        row,
        "prompt",
        "problem",
        answer=answer,
        images=as_list(row.first("images", "image")),
        source=as_text(row.first("data_source")) or "",
    )


def _deepeyes(row: Row) -> RawRow:
    raw = _verl(row)
    # The prompt's system message describes DeepEyes' own tool; the view of a run says which tools there are.
    name = as_text(row.first("env_name")) or ""
    return replace(raw, tags={"env_name": name, "protocol": "none" if name in ("", "None") else name})


def _cap_curriculum(row: Row) -> RawRow:
    raw = _question_row(row, "prompt", "problem", images=as_list(row.first("image_path", "images", "image")))
    rate = row.first("pass_rate")
    return raw if rate is None else replace(raw, difficulty=1.0 - float(rate), tags={"pass_rate": str(rate)})


def _mini_o3(row: Row) -> RawRow:
    return _question_row(
        row, "problem", images=as_list(row.first("images", "image")), answer=as_text(row.first("solution", "answer"))
    )


def _trl(row: Row) -> RawRow:
    raw = _question_row(row, "prompt", images=as_list(row.first("images", "image")))
    context = row.first("privileged_context")
    return replace(raw, rationale=_chat(context).question if context is not None else None)


def _easyr1(row: Row) -> RawRow:
    return _question_row(row, "problem", "prompt", images=as_list(row.first("images", "image")))


def _plain(row: Row) -> RawRow:
    raw = _question_row(row, "question", images=as_list(row.first("images", "image", "image_path")))
    return replace(
        raw, crops=as_list(row.first("crops", "teacher_images", "crop_images")), prompt=as_text(row.first("teacher_prompt"))
    )


def _video_mme(row: Row) -> RawRow:
    """The videos lie as ``<videoID>.mp4``; the options carry their letters, which views write themselves."""
    options = tuple(str(option) for option in as_list(row.first("options")))
    heads = [_LETTERED.match(option) for option in options]
    if [head and head[1] for head in heads] == [chr(ord("A") + index) for index in range(len(options))]:
        options = tuple(option[head.end() :] for option, head in zip(options, heads, strict=True) if head)
    tags = {name: str(row[name]) for name in ("duration", "domain", "sub_category") if row.first(name) is not None}
    raw = _question_row(row, "question", options=options, kind=as_text(row.first("task_type")) or "", tags=tags)
    return replace(raw, videos=as_list(row.first("video", "video_path")) or (f"{row['videoID']}.mp4",))


def _longvideobench(row: Row) -> RawRow:
    """``correct_choice`` counts the options from 0; those that a question lacks are "N/A"."""
    given = as_list(row.first("candidates")) or tuple(row.first(f"option{number}") for number in range(5))
    options = tuple(str(option) for option in given if option not in (None, "", "N/A"))
    right = row.first("correct_choice")
    if right is not None and not 0 <= (int(right) if str(right).isdigit() else -1) < len(options):
        raise RowError(f"correct_choice {right!r} of {len(options)} options", "it counts the options from 0")
    tags = {name: str(row[name]) for name in ("duration_group", "topic_category") if row.first(name) is not None}
    return _question_row(
        row, "question", options=options, answer=None if right is None else chr(ord("A") + int(right)), tags=tags,
        kind=as_text(row.first("question_category")) or "",
    )  # fmt: skip


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
    "video_mme": (lambda c: {"videoID", "question", "options"} <= c, _video_mme),
    "longvideobench": (
        lambda c: {"question", "video_path"} <= c and bool({"correct_choice", "candidates", "option0"} & c),
        _longvideobench,
    ),
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
        or as_text(row.first("id", "sample_id", "doc_id", "question_id", "index"))
        or as_text(below(extra, "id", "index"))
    }
    boxes, unit = raw.boxes, raw.box_format
    for name, named_unit in () if boxes else _BOX_COLUMNS:
        value = row.first(name)
        if value is not None:
            boxes, unit = _instances(value), named_unit
            break
    said = as_text(row.first("boxes_format", "box_format"))
    if boxes and unit is None:
        unit = _unit(said) if said else box_format or "px_xyxy"
    found.update(boxes=boxes, box_format=unit, box_image=int(row.first("box_image") or 0))
    found["videos"] = raw.videos or as_list(row.first("videos", "video", "video_path", "video_file"))
    found["question"] = _without_video(raw.question, len(found["videos"]))
    found["options"] = raw.options or tuple(str(option) for option in as_list(row.first("options", "choices")))
    found["system"] = raw.system or as_text(row.first("system"))
    found["rationale"] = raw.rationale or as_text(row.first("rationale", "privileged_context"))
    found["hints"] = _hints(row.first("hints"))
    found["source"] = raw.source or as_text(row.first("source", "data_source")) or ""
    found["kind"] = raw.kind or as_text(row.first("kind", "category", "type")) or ""
    if raw.difficulty is None and isinstance(row.first("difficulty"), int | float):
        found["difficulty"] = float(row["difficulty"])
    tags = row.first("tags")
    if isinstance(tags, Mapping):
        found["tags"] = {**{str(key): str(value) for key, value in tags.items() if value is not None}, **raw.tags}
    return replace(raw, **found)


def _hints(value: Any) -> tuple[str, ...]:
    hints = as_list(value)
    if not all(isinstance(hint, str) and hint.strip() for hint in hints):
        raise RowError(f"hints {value!r}", "a list of texts, each helping more than the one before")
    return hints


def _without_video(question: str, num_videos: int) -> str:
    """The question without its ``<video>``: a view shows the video before the text, so that is where it has to stand."""
    if num_videos > 1:
        raise RowError(f"a row with {num_videos} videos", "a row holds one video; make it one, or rows of their own")
    before, placeholder, behind = question.partition(_VIDEO)
    if not placeholder:
        return question
    if not num_videos:
        raise RowError("<video> in the question and no video", "name the file in the column video, or leave <video> out")
    if before.strip() or _VIDEO in behind:
        raise RowError("<video> inside the question, or twice", "the video is shown first: put one <video> at the start")
    return behind


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
