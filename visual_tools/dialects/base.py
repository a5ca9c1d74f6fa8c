"""What a dialect is: how a model writes tool calls, boxes and answers, and how the world replies. One file each.

A dialect turns text into calls in canonical terms (our tool names, our argument names, pictures counted from 0) and back. Reading
treats model text as data: linear time, nothing executed, nothing raised. What was meant as a call and is none becomes a `BadCall`
whose reason the model reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...vlm.images import Picture
from ...vlm.messages import Clip, Message
from ...vlm.records import Box, Shown
from ..boxes import Coords


@dataclass(frozen=True)
class Call:
    """A tool call in canonical terms: ``name`` is one of our tools' names where the dialect knows it, else as written.

    ``arguments`` are parsed JSON with canonical names, not yet checked. A picture is named by ``image``: a whole number from 0
    (all pictures and clips seen, prompt first), or text such as "original" or "observation 2" (counted from 1). ``coords``
    overrides the toolbox's convention for this call (dialects that fix their own).
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    coords: Coords | None = None


@dataclass(frozen=True)
class BadCall:
    """Something that was meant as a call and is none; ``reason`` is a sentence for the model, without its final full stop."""

    reason: str
    name: str = ""


@dataclass(frozen=True)
class TextBox:
    """A box written as text (not a call), as written; ``coords`` None: the toolbox's convention."""

    box: Box
    label: str = ""
    coords: Coords | None = None


@dataclass(frozen=True)
class Reading:
    """What an action holds. ``answer`` is set where the dialect has its own way to answer (an action, not tags)."""

    calls: tuple[Call | BadCall, ...] = ()
    boxes: tuple[TextBox, ...] = ()
    answer: str | None = None


@dataclass(frozen=True)
class ToolSpec:
    """A tool as a dialect offers it: canonical name, one sentence, JSON schema of its canonical arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What one call gave: pictures or clips, or text (``error``: it says what was wrong)."""

    call: Call | BadCall
    parts: tuple[str | Picture | Clip, ...]
    error: bool = False


class Dialect(Protocol):
    """One way of writing. Stateless."""

    @property
    def name(self) -> str: ...

    @property
    def coords(self) -> Coords | None:
        """The convention that the dialect fixes for boxes; None: the model family's."""
        ...

    def read(self, text: str) -> Reading:
        """What an action holds. Never raises; linear in the length of ``text``."""
        ...

    def write(self, calls: Sequence[Call], thought: str = "") -> str:
        """The calls as a model writes them (scripted experts, demonstrations). `read` gives them back."""
        ...

    def write_answer(self, answer: str, thought: str = "") -> str:
        """A final answer as a model writes it."""
        ...

    def system_prompt(self, tools: Sequence[ToolSpec], coords: Coords) -> str:
        """The system message that offers ``tools`` and says how coordinates are counted."""
        ...

    def observation(self, results: Sequence[Result], shown: Shown) -> Message:
        """The world's turn: the results of an action's calls in order. ``shown`` is what was there before them."""
        ...
