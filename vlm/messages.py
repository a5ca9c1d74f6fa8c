"""Messages: what people, tools and rewards see. Only `render.py` turns them into tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .images import Picture

Role = Literal["system", "user", "assistant", "tool"]


class VideoSource(Protocol):
    """A whole video, behind the few frames of it that a clip shows. Hashable and immutable."""

    @property
    def duration_s(self) -> float:
        """Second of the last frame."""
        ...

    def frames_at(self, times_s: Sequence[float]) -> Clip:
        """The frames nearest to these seconds, at full resolution, with their own times. Raises `ValueError` when unreadable."""
        ...


@dataclass(frozen=True)
class Clip:
    """A video as the frames that were kept, with the second at which each was taken.

    ``source`` is where more frames can be had from (tools that select frames); None: these frames are all there is.
    """

    frames: tuple[Picture, ...]
    times_s: tuple[float, ...]
    source: VideoSource | None = None

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.times_s):
            raise ValueError(
                f"a clip needs one time per frame and at least one frame, got {len(self.frames)} frames, "
                f"{len(self.times_s)} times"
            )


Part = str | Picture | Clip
"""One piece of a message: text, a picture, or a video."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat: a role and its parts in the order in which the model reads them.

    >>> Message.user(picture, "What letter is on the red triangle?")     # doctest: +SKIP
    """

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def user(cls, *parts: Part) -> Message:
        return cls("user", parts)

    @classmethod
    def system(cls, text: str) -> Message:
        return cls("system", (text,))

    @classmethod
    def assistant(cls, *parts: Part) -> Message:
        return cls("assistant", parts)

    @property
    def text(self) -> str:
        """The text parts, joined by nothing."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures in reading order, frames of clips included."""
        return tuple(self._pictures())

    def _pictures(self) -> Iterator[Picture]:
        for part in self.parts:
            if isinstance(part, Picture):
                yield part
            elif isinstance(part, Clip):
                yield from part.frames


def pictures_of(messages: Iterable[Message]) -> tuple[Picture, ...]:
    """All pictures of a chat in reading order."""
    return tuple(picture for message in messages for picture in message.pictures)


def visuals_of(messages: Iterable[Message]) -> tuple[Picture | Clip, ...]:
    """All pictures and clips of a chat in reading order; a clip counts once."""
    return tuple(part for message in messages for part in message.parts if not isinstance(part, str))


def fill_placeholders(text: str, pictures: Sequence[Picture], where: str, placeholder: str = "<image>") -> tuple[Part, ...]:
    """Split ``text`` at each placeholder and put the pictures there, in order.

    With no placeholder the pictures come first, as the released data sets mean it. Any other mismatch raises `ValueError`
    naming ``where`` (a sample or a line): nothing is dropped.
    """
    pieces = text.split(placeholder)
    if len(pieces) == 1:
        return (*pictures, text) if text else tuple(pictures)
    if len(pieces) - 1 != len(pictures):
        raise ValueError(
            f"{where}: {len(pieces) - 1} {placeholder} in the text but {len(pictures)} pictures; make them equal, "
            f"or leave all {placeholder} out"
        )
    parts: list[Part] = []
    for piece, picture in zip(pieces, (*pictures, None), strict=True):
        if piece:
            parts.append(piece)
        if picture is not None:
            parts.append(picture)
    return tuple(parts)


def to_json(
    messages: Sequence[Message], store: Callable[[Picture], str], seen_px: Callable[[Picture], tuple[int, int]] | None = None
) -> list[dict[str, Any]]:
    """JSON form of a chat; ``store`` saves a picture and returns the name that is written in its place.

    ``seen_px`` says at which width and height the model sees a picture; it is written beside the picture's own size.
    """

    def part_json(part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if isinstance(part, Picture):
            seen = {} if seen_px is None else {"seen_px": list(seen_px(part))}
            return {"type": "image", "image": store(part), "size_px": list(part.size_px), **seen}
        return {"type": "video", "frames": [store(frame) for frame in part.frames], "times_s": list(part.times_s)}

    return [{"role": message.role, "content": [part_json(part) for part in message.parts]} for message in messages]


def from_json(chat: Sequence[dict[str, Any]], opened: Callable[[str], Picture]) -> tuple[Message, ...]:
    """The chat that `to_json` wrote; ``opened`` gives the picture of a name. A clip comes back without its source."""

    def part(written: dict[str, Any]) -> Part:
        if written["type"] == "text":
            return str(written["text"])
        if written["type"] == "image":
            return opened(written["image"])
        return Clip(tuple(opened(name) for name in written["frames"]), tuple(written["times_s"]))

    return tuple(Message(message["role"], tuple(map(part, message["content"]))) for message in chat)
