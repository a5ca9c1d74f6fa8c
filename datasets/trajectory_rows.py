"""Rows of trajectory files taken apart: the question, which the readers of samples know, and the script of what follows it.

Nothing is opened here: pictures stay references, as in `importers`. `trajectories` describes the two formats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..vlm.messages import Role
from ..vlm.records import ToolCall
from .raw_rows import RowError, as_list, as_text, below

_ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "tool": "tool",
    "observation": "tool", "tool_response": "tool", "function": "tool",
}  # fmt: skip
_WORLD: tuple[Role, ...] = ("user", "tool")


@dataclass(frozen=True)
class Unopened:
    """A picture not yet opened, or with ``times_s`` the frames of a clip, and the video ``file`` that has more of them."""

    refs: tuple[Any, ...]
    times_s: tuple[float, ...] | None = None
    file: str | None = None


Said = tuple[Role, tuple[str | Unopened, ...]]
"""A message of the world, as written."""


@dataclass(frozen=True)
class Script:
    """``question`` is a row of the format ``FORMATS`` names; ``said[n]`` follows ``actions[n]``."""

    question: Mapping[str, Any]
    actions: tuple[str, ...]
    said: tuple[Said | None, ...]
    calls: tuple[tuple[ToolCall, ...], ...] = ()
    clip: Unopened | None = None

    @property
    def refs(self) -> tuple[Any, ...]:
        """The pictures that are not in the question."""
        shown = [part for said in self.said if said is not None for part in said[1] if isinstance(part, Unopened)]
        return tuple(ref for visual in (*shown, *([self.clip] if self.clip else [])) for ref in visual.refs)


def own_script(data: Mapping[str, Any]) -> Script:
    """A row that `trajectories.trajectory_row` wrote. `RowError`."""
    actions: list[str] = []
    said: list[Said | None] = []
    calls: list[tuple[ToolCall, ...]] = []
    for step in as_list(data.get("actions")):
        if not isinstance(step, Mapping) or not isinstance(step.get("text"), str) or not step["text"]:
            raise RowError(f"action {len(actions)} has no text", 'actions are [{"text": ..., "observation": ...}, ...]')
        told = step.get("observation")
        actions.append(step["text"])
        calls.append(tuple(_call(call) for call in as_list(step.get("calls"))))
        said.append(None if told is None else (_role(told, _WORLD), tuple(_parts(told.get("content"), None))))
    if not actions or said[-1] is not None:
        raise RowError("it does not end with an action", "there is one at least, and no observation behind the last")
    clip = data.get("clip")
    question = {name: value for name, value in data.items() if name not in ("actions", "clip")}
    return Script(question, tuple(actions), tuple(said[:-1]), tuple(calls), None if clip is None else _clip(clip))


def chat_script(data: Mapping[str, Any]) -> Script:
    """A chat: the assistant's messages are the actions, what stands between two of them is what the world said. `RowError`."""
    chat = as_list(data.get("messages") if data.get("messages") is not None else data.get("conversations"))
    roles = [_role(message, tuple(dict.fromkeys(_ROLES.values()))) for message in chat]
    contents = [below(message, "content", "value") for message in chat]
    if roles[-1:] != ["assistant"] or "user" not in roles[: roles.index("assistant")] or "system" in roles[1:]:
        raise RowError(
            f"roles {', '.join(roles[:12])}", "a question comes first, then assistant and world in turn, assistant last"
        )
    first = roles.index("assistant")
    pictures = as_list(data.get("images") if data.get("images") is not None else data.get("image"))
    waits = [_waiting(content) for content in contents]
    of_question = sum(waits[:first])
    spare = len(pictures) - sum(waits)
    if spare < 0 or (spare and of_question):
        raise RowError(
            f"{sum(waits)} <image> in the chat but {len(pictures)} pictures",
            "make them equal, or leave out those of the question",
        )
    waiting = iter(pictures[of_question + spare :])
    actions: list[str] = []
    said: list[Said] = []
    for place in range(first, len(chat)):
        role, before, parts = roles[place], roles[place - 1], tuple(_parts(contents[place], waiting))
        if role == "assistant":
            actions.append(_action(parts, len(actions), chat[place], follows=bool(actions) and before == "assistant"))
        elif before == "assistant":
            said.append((role, parts))
        elif before == role:
            said[-1] = (role, (*said[-1][1], "\n", *parts))
        else:
            raise RowError(f"a {before} and a {role} message between two actions", "write what the world said as one message")
    question = [
        *({"role": role, "content": content} for role, content in zip(roles[:first], contents[:first], strict=True)),
        {"role": "assistant", "content": actions[-1]},  # the importer reads answer and rationale from it
    ]
    rest = {name: value for name, value in data.items() if name not in ("messages", "conversations", "images", "image")}
    own = list(pictures[: of_question + spare])
    return Script({**rest, "messages": question, "images": own}, tuple(actions), tuple(said))


FORMATS: dict[str, tuple[frozenset[str], Callable[[Mapping[str, Any]], Script], str]] = {
    "trajectories": (frozenset({"actions"}), own_script, "plain"),
    "messages": (frozenset({"messages", "conversations"}), chat_script, "ms_swift"),
}
"""Every format: columns of which it has one, its reader, and the format of `importers` in which it gives the question."""


def _action(parts: Sequence[str | Unopened], number: int, message: Mapping[str, Any], follows: bool) -> str:
    if message.get("tool_calls"):
        raise RowError(
            f"action {number} has its calls in tool_calls", "write them into its content, as the model is to write them"
        )
    if follows:
        raise RowError(f"action {number} follows another with nothing in between", "join the two, or write what the world said")
    text = "".join(part for part in parts if isinstance(part, str))
    if not text or any(isinstance(part, Unopened) for part in parts):
        raise RowError(f"action {number} is empty or holds a picture", "an assistant's message is text")
    return text


def _role(message: Any, allowed: Sequence[Role]) -> Role:
    given = below(message, "role", "from")
    role = _ROLES.get(str(given))
    if role is None or role not in allowed:
        raise RowError(f"a message of the role {given!r}", f"expected {', '.join(allowed)}; calls belong in the assistant's text")
    return role


def _parts(content: Any, waiting: Iterator[Any] | None) -> Iterator[str | Unopened]:
    """Text and pictures in order; a placeholder, or a picture part that names none, takes the next that waits.

    Without ``waiting`` text is text, and every picture is named.
    """
    for part in [content] if isinstance(content, str) else as_list(content):
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        if kind == "text":
            text = part if isinstance(part, str) else str(part.get("text") or "")
            for number, piece in enumerate([text] if waiting is None else text.split("<image>")):
                if number and waiting is not None:
                    yield Unopened((next(waiting),))
                if piece:
                    yield piece
        elif kind in ("image", "image_url"):
            ref = _reference(part)
            if ref is None and waiting is None:
                raise RowError("a picture part without a picture", 'give {"type": "image", "image": a file}')
            yield Unopened((next(waiting) if ref is None and waiting is not None else ref,))
        elif kind == "video":
            yield _clip(part)
        else:
            raise RowError(f"a message part of type {kind!r}", "text, image, and video with frames and times_s are read")


def _waiting(content: Any) -> int:
    """How many of the row's pictures a content takes."""
    count = 0
    for part in [content] if isinstance(content, str) else as_list(content):
        if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
            count += _reference(part) is None
        else:
            count += str((part.get("text") if isinstance(part, Mapping) else part) or "").count("<image>")
    return count


def _reference(part: Any) -> Any:
    ref = below(part, "image", "image_url", "path", "url")
    return below(ref, "url", "path") or ref if isinstance(ref, Mapping) and "bytes" not in ref else ref


def _clip(value: Any) -> Unopened:
    frames, times = as_list(below(value, "frames")), as_list(below(value, "times_s"))
    if not frames or len(frames) != len(times) or not all(isinstance(time, int | float) for time in times):
        raise RowError("a video without frames, or without a time for each", 'give {"frames": [...], "times_s": [...]}')
    return Unopened(frames, tuple(float(time) for time in times), as_text(below(value, "file")))


def _call(value: Any) -> ToolCall:
    known = {field.name for field in dataclasses.fields(ToolCall)}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str) or not set(value) <= known:
        raise RowError(f"a call {str(value)[:60]!r}", f"a call has a name and some of {', '.join(sorted(known - {'name'}))}")
    lists = {name: as_list(value[name]) for name in ("box_px_xyxy", "times_s") if value.get(name) is not None}
    return ToolCall(**{**value, **lists})
