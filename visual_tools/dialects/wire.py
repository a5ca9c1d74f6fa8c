"""The words of a dialect: what it calls our tools, their arguments and the pictures; and sentences that dialects share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ...vlm.messages import Part
from ..boxes import Coords
from .base import Call, Result, ToolSpec

T = TypeVar("T")
_NAMED = re.compile(r"(img|original|observation)(?:[_ ]image)?(?:[_ ]([0-9]{1,6}))?")

COORDINATES: Mapping[Coords, str] = {
    "norm1": "Coordinates run from 0 (left, top) to 1 (right, bottom).",
    "norm1000": "Coordinates run from 0 (left, top) to 1000 (right, bottom).",
    "abs_resized": "Coordinates are pixels of the picture as it is shown, counted from its top left corner.",
    "abs_original": "Coordinates are pixels of the picture at its full resolution, counted from its top left corner.",
}
"""What a system prompt says about a convention."""

ANSWER = "When you have seen enough, give the final answer in <answer> and </answer>, once."


@dataclass(frozen=True)
class Wire:
    """A tool as a dialect spells it: our name for it, and ours for its arguments where they differ.

    Of several spellings of one argument the first is the one that is written, and the one that counts when a call has both.
    """

    tool: str
    arguments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """How a dialect names the picture that a call works on.

    - number: a whole number that counts from ``first``;
    - img: ``img_1``, ``img_2``, over all that was shown;
    - source: ``original_image`` and ``observation_1``, ``observation_2``; further pictures of the prompt are ``original_image_1``
      and so on where ``many`` is set (ARM-Thinker).
    """

    style: Literal["number", "img", "source"] = "number"
    first: int = 0
    many: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the argument."""
        if self.style == "number":
            return {"type": "integer", "description": f"Which picture, counted from {self.first}; the first when left out."}
        if self.style == "img":
            return {"type": "string", "description": 'Which picture: "img_1" is the first one shown, "img_2" the second.'}
        said = 'Which picture: "original_image", or "observation_1" for the first one that a tool has shown.'
        return {"type": "string", "description": said}

    def read(self, value: Any) -> Any:
        """The picture in our terms (see `base.Call`); what is no name of a picture stays as written.

        >>> Pictures(first=1).read(2), Pictures("source").read("original_image"), Pictures("source").read("observation_2")
        (1, 0, 'observation 2')
        """
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value - self.first
        found = _NAMED.fullmatch(value.strip().lower()) if isinstance(value, str) else None
        if not found or (found[1] != "original" and found[2] is None):
            return value
        if found[1] == "observation":
            return f"observation {int(found[2])}"
        return int(found[2]) - 1 if found[1] == "img" else int(found[2] or 0)

    def write(self, call: Call, dialect: str) -> Any:
        """The dialect's name for the picture of a call. Raises `ValueError` when it has none."""
        value = call.arguments.get("image", 0)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if self.style == "number" and whole:
            return value + self.first
        if self.style == "img" and whole:
            return f"img_{value + 1}"
        if self.style == "source" and value in (0, "original"):
            return "original_image"
        if self.style == "source" and whole and self.many:
            return f"original_image_{value}"
        if self.style == "source" and isinstance(value, str) and value.startswith("observation "):
            return value.replace(" ", "_")
        raise cannot_write(dialect, call, f"it has no name for the picture {value!r}")


def renamed(arguments: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Arguments under other names, also in objects that stand in a list (``boxes: [{"bbox_2d": ...}]``)."""
    found = {name: value for name, value in arguments.items() if name not in names}
    for theirs, ours in names.items():
        if theirs in arguments:
            found.setdefault(ours, arguments[theirs])
    return {name: _each(value, names) for name, value in found.items()}


def _each(value: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return [renamed(entry, names) if isinstance(entry, Mapping) else entry for entry in value]


@dataclass(frozen=True)
class Vocabulary:
    """A dialect's tools by the names it gives them; of several names of one tool the first is the one that is written."""

    wires: Mapping[str, Wire]
    pictures: Pictures = field(default_factory=Pictures)

    def read(self, name: str, arguments: Mapping[str, Any], coords: Coords | None = None) -> Call:
        """A call in our terms. A name that is not in the table stays as it is, and so do the arguments."""
        wire = self.wires.get(name)
        if wire is None:
            return Call(name, dict(arguments), coords)
        given = renamed(arguments, wire.arguments)
        image = given.pop("image", None)
        return Call(wire.tool, given if image is None else {**given, "image": self.pictures.read(image)}, coords)

    def spelling(self, tool: str) -> tuple[str, dict[str, str]] | None:
        """The dialect's name for a tool of ours and its names for the arguments; None when it has no such tool."""
        for name, wire in self.wires.items():
            if wire.tool == tool:
                names: dict[str, str] = {}
                for theirs, ours in wire.arguments.items():
                    names.setdefault(ours, theirs)
                return name, names
        return None

    def write(self, call: Call, dialect: str) -> tuple[str, dict[str, Any]]:
        """Name and arguments as the dialect writes them. Raises `ValueError` for what it cannot say."""
        spelling = self.spelling(call.name)
        if spelling is None:
            raise cannot_write(dialect, call, f"it has {', '.join(sorted({wire.tool for wire in self.wires.values()}))}")
        arguments = dict(call.arguments)
        if "image" in arguments:
            arguments["image"] = self.pictures.write(call, dialect)
        return spelling[0], renamed(arguments, spelling[1])

    def schema(self, spec: ToolSpec, dialect: str) -> dict[str, Any]:
        """A tool as a function schema under the dialect's names. Raises `ValueError` for a tool that it does not have."""
        spelling = self.spelling(spec.name)
        if spelling is None:
            raise cannot_write(dialect, Call(spec.name), "leave the tool out, or choose another dialect")
        parameters = _renamed_schema(spec.parameters, spelling[1], self.pictures)
        return {
            "type": "function",
            "function": {"name": spelling[0], "description": spec.description, "parameters": parameters},
        }


def _renamed_schema(schema: Mapping[str, Any], names: Mapping[str, str], pictures: Pictures) -> dict[str, Any]:
    found = dict(schema)
    if "properties" in found:
        found["properties"] = {
            names.get(name, name): pictures.schema if name == "image" else _renamed_schema(value, names, pictures)
            for name, value in found["properties"].items()
        }
        if "required" in found:
            found["required"] = [names.get(name, name) for name in found["required"]]
    if isinstance(found.get("items"), Mapping):
        found["items"] = _renamed_schema(found["items"], names, pictures)
    return found


def cannot_write(dialect: str, call: Call, why: str) -> ValueError:
    """The error for a call that a dialect has no way to write."""
    return ValueError(f"the dialect {dialect} cannot write the tool {call.name!r}: {why}")


def offered(dialect: str, tools: Sequence[ToolSpec], offers: Mapping[str, T]) -> list[T]:
    """What a dialect says of each tool. Raises `ValueError` for a tool that it does not have."""
    for spec in tools:
        if spec.name not in offers:
            raise cannot_write(dialect, Call(spec.name), "leave the tool out, or choose another dialect")
    return [offers[spec.name] for spec in tools]


def check_coords(dialect: str, call: Call, *allowed: Coords | None) -> None:
    """Raises `ValueError` when a call's coordinates are not in a convention that the dialect writes."""
    if call.coords is not None and call.coords not in allowed:
        known = " or ".join(repr(coords) for coords in allowed if coords) or "those of the model's family (coords=None)"
        raise cannot_write(dialect, call, f"its coordinates are {known}, the call has {call.coords!r}")


def thinking(thought: str) -> str:
    """A thought in the tags that reasoning models use; nothing for no thought."""
    return f"<think>{thought}</think>\n" if thought else ""


def tagged_answer(answer: str, thought: str = "") -> str:
    """A final answer in the tags that most dialects use."""
    return f"{thinking(thought)}<answer>{answer}</answer>"


def parts_of(result: Result) -> tuple[Part, ...]:
    """What a model is shown of a result: pictures and text as they are, an error as one sentence that says so."""
    if not result.error:
        return result.parts
    sentence = "".join(part for part in result.parts if isinstance(part, str))
    return (f"Error: {sentence.rstrip('.')}.",)
