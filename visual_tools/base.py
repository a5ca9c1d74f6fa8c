"""What a tool is: arguments as a pydantic model, options as its own fields, and `run`, which gives pictures or a sentence.

A tool holds no state: it is handed a `Scene` (all that the rollout has shown, and how coordinates are read), so that one tool
serves all rollouts in all threads. What goes wrong is a `ToolError`, whose sentence the model reads; `toolbox` catches it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pydantic

from ..vlm.images import Picture
from ..vlm.messages import Clip
from ..vlm.records import Box, Shown
from . import boxes
from .boxes import Coords, Point, Size
from .dialects.base import ToolSpec

MAX_PIXELS = 64 << 20
"""No tool makes a larger picture, whatever the settings say."""
_MAX_TEXT = 200
_UNSAFE = re.compile(r"[^\w .,:;'+/()\[\]-]")


class ToolError(ValueError):
    """Why a call was not carried out: a sentence for the model, without its final full stop.

    ``detail`` is for the record only (a file's name, a library's message): the model must not read it.
    """

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.detail = detail


class Settings(pydantic.BaseModel):
    """Base of the settings here: immutable, unknown keys are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Budgets(Settings):
    """Sizes of what tools show."""

    min_side_px: int = pydantic.Field(default=16, ge=1)
    """A region with a shorter side is widened around its centre, as far as the picture reaches; pixels of the source."""
    max_aspect: float = pydantic.Field(default=100.0, ge=1, le=200)
    """So is a region that is longer than so many times its width; no model sees pictures beyond 200."""
    max_pixels: int | None = pydantic.Field(default=None, ge=1)
    """A cut-out region or a frame is scaled down to at most so many pixels. Drawn and turned pictures keep the size of their
    source, so that one can zoom into them: what a model sees of them is bounded by its own pixel budget. None: never scaled."""
    min_result_side_px: int | None = pydantic.Field(default=None, ge=1)
    """A cut-out region with a shorter side is enlarged (28 for DeepEyes). None: the model's own pixel budget does so."""
    frame_rate_fps: float = pydantic.Field(default=1.0, gt=0)
    """Frames are numbered at this rate: frame k of a video is the one nearest to second k / frame_rate_fps."""


class ToolSettings(Budgets):
    """What all tools of a run have in common."""

    coords: Coords = "norm1000"
    """How the model writes coordinates, unless a call's dialect fixes it (see `boxes`)."""


@dataclass(frozen=True)
class Scene:
    """What a call looks at: ``shown.visuals[index]``, beside everything else that was shown before this turn."""

    shown: Shown
    index: int
    coords: Coords
    settings: ToolSettings

    @property
    def visual(self) -> Picture | Clip:
        return self.shown.visuals[self.index]

    @property
    def seen_px(self) -> Size:
        return self.shown.seen_px[self.index]

    def picture(self) -> Picture:
        """The source as a picture. Raises `ToolError` for a video."""
        if isinstance(self.visual, Clip):
            raise ToolError(f"image {self.index} is a video, and this tool needs a picture; take a frame of it first")
        return self.visual

    def clip(self) -> Clip:
        """The source as a video. Raises `ToolError` for a picture."""
        if isinstance(self.visual, Picture):
            raise ToolError(f"image {self.index} is a picture, and this needs a video")
        return self.visual

    def box_px(self, box: Box, size_px: Size, padding_frac: float = 0.0) -> Box:
        """The part of a model's box inside a picture of ``size_px``. Raises `ToolError` when nothing of it is."""
        padded_px = boxes.expand(boxes.to_px(box, self.coords, size_px, self.seen_px), padding_frac)
        inside_px = boxes.clip(padded_px, size_px)
        if inside_px is None:
            written = ", ".join(f"{value:g}" for value in box)
            raise ToolError(
                f"the box [{written}] lies outside the picture: {boxes.extent_text(self.coords, size_px, self.seen_px)}"
            )
        return inside_px

    def point_px(self, point: Point, size_px: Size) -> Point:
        """A model's point in pixels of a picture of ``size_px``. Raises `ToolError` outside of it."""
        x_px, y_px = boxes.point_to_px(point, self.coords, size_px, self.seen_px)
        if not (0 <= x_px <= size_px[0] and 0 <= y_px <= size_px[1]):
            raise ToolError(
                f"the point [{point[0]:g}, {point[1]:g}] lies outside the picture: "
                f"{boxes.extent_text(self.coords, size_px, self.seen_px)}"
            )
        return x_px, y_px


@dataclass(frozen=True)
class Done:
    """What a call gave. ``box_px_xyxy`` is the region of ``source`` that was used, ``times_s`` the frames that were fetched;
    ``cut``: the picture is that region and nothing else.
    """

    parts: tuple[str | Picture | Clip, ...]
    source: Picture | None = None
    box_px_xyxy: Box | None = None
    times_s: tuple[float, ...] = ()
    cut: bool = False


# --- arguments: what models write is bent into shape where its meaning is plain ----------------------------------------------


def plain(text: str, limit: int = 40) -> str:
    """What a model wrote, short and harmless enough to be quoted back to it."""
    short = text if len(text) <= limit else text[: limit - 3] + "..."
    return _UNSAFE.sub("?", short)


def _number(value: object) -> float:
    number = boxes.read_number(value)
    if number is None:
        raise ValueError("a finite number is needed")
    return number


def _whole(value: object) -> int:
    number = boxes.read_number(value)
    if number is None or number != int(number):
        raise ValueError("a whole number is needed")
    return int(number)


def _seconds(value: object) -> float:
    pieces = value.split(":") if isinstance(value, str) and len(value) <= 40 else [value]
    numbers = [number for number in map(boxes.read_number, pieces) if number is not None]
    if len(numbers) != len(pieces) or len(pieces) > 3:
        raise ValueError("a time is a number of seconds, or text such as 01:30")
    return float(sum(number * 60**place for place, number in enumerate(reversed(numbers))))


def _box(value: object) -> Box:
    box = boxes.read_box(value)
    if isinstance(box, str):
        raise ValueError(box)
    return box


def _point(value: object) -> Point:
    point = boxes.read_point(value)
    if isinstance(point, str):
        raise ValueError(point)
    return point


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("text is needed")
    try:
        text = str(value)
    except ValueError:  # Python refuses to write out an int of thousands of digits
        raise ValueError("shorter text is needed") from None
    return text[:_MAX_TEXT].encode("utf-8", "replace").decode("utf-8")


def _reference(value: object) -> int | str:
    number = boxes.read_number(value)
    if number is not None and number == int(number):
        return int(number)
    if isinstance(value, str) and len(value) <= 40:
        return value
    raise ValueError('a picture is named by a whole number from 0, or by text such as "observation 2"')


def _numbers_schema(count: int) -> pydantic.WithJsonSchema:
    return pydantic.WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": count, "maxItems": count})


Number = Annotated[float, pydantic.BeforeValidator(_number)]
Whole = Annotated[int, pydantic.BeforeValidator(_whole)]
Seconds = Annotated[float, pydantic.BeforeValidator(_seconds), pydantic.WithJsonSchema({"type": "number"})]
Text = Annotated[str, pydantic.BeforeValidator(_text)]
BoxArgument = Annotated[Box, pydantic.BeforeValidator(_box), _numbers_schema(4)]
PointArgument = Annotated[Point, pydantic.BeforeValidator(_point), _numbers_schema(2)]
Reference = Annotated[int | str, pydantic.BeforeValidator(_reference), pydantic.WithJsonSchema({"type": "integer"})]


class Arguments(pydantic.BaseModel):
    """Base of all arguments. Docstrings of fields go into the schema, so that the model reads them."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    image: Reference | None = None
    """Which picture, counted from 0 over all shown so far; 0 when left out."""

    def source(self, shown: Shown) -> int:
        """Index of what the call works on. Raises `ToolError` when there is no such thing."""
        return find_visual(shown, 0 if self.image is None else self.image)


def find_visual(shown: Shown, reference: int | str) -> int:
    """Index among ``shown.visuals``. Raises `ToolError`.

    A whole number counts from 0. In text, "original" is the first, "observation 2" the second that tools have shown, and
    "img_2" the second of all: these count from 1, as the dialects that write them do.
    """
    num_all, num_prompt = len(shown.visuals), shown.num_prompt
    if not num_all:
        raise ToolError("there is no picture to work on")
    index = reference if isinstance(reference, int) else _named(reference.strip().lower(), num_prompt)
    if index is None:
        raise ToolError(f'there is no picture "{plain(str(reference))}"; write a whole number from 0 to {num_all - 1}')
    if isinstance(reference, str) and "observation" in reference.lower() and not num_prompt <= index < num_all:
        made = num_all - num_prompt
        raise ToolError(
            f'"{plain(reference)}" was not shown before this turn: '
            + (f"there are observations 1 to {made}" if made else "there are no observations yet")
        )
    if not 0 <= index < num_all:
        known = f"images 0 to {num_all - 1} were" if num_all > 1 else "only image 0 was"
        raise ToolError(f"image {plain(str(reference))} was not shown before this turn: {known}")
    return index


def _named(text: str, num_prompt: int) -> int | None:
    if text in ("original", "original image", "original_image", "original_img"):
        return 0
    found = re.fullmatch(r"(observation|image|img|picture)s?[ _-]{0,2}(\d{1,6})", text)
    if not found:
        return None
    number = int(found[2]) - 1
    return num_prompt + number if found[1] == "observation" and number >= 0 else number


def listed(value: Any) -> Any:
    """A single thing where a list is expected becomes a list of one."""
    return value if value is None or isinstance(value, list) else [value]


# --- tools -------------------------------------------------------------------------------------------------------------------


class Tool(Settings, ABC):
    """Base of the tools; a tool's fields are its options in a recipe."""

    name: ClassVar[str]
    description: ClassVar[str]
    """One sentence for the model."""
    arguments: ClassVar[type[Arguments]]

    hidden: tuple[str, ...] = ()
    """Arguments that the schema does not offer to the model; a call that has them is carried out all the same."""

    @pydantic.field_validator("hidden")
    @classmethod
    def _hidden_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = cls.arguments.model_fields
        for name in value:
            if name not in known or known[name].is_required():
                raise ValueError(f"{cls.name} has no argument {name!r} that may be left out; there are {', '.join(known)}")
        return value

    @abstractmethod
    def examples(self, coords: Coords) -> Sequence[Mapping[str, Any]]:
        """Arguments of calls that are right, to be shown where one was wrong: the first that the dialect has words for."""

    @abstractmethod
    def run(self, arguments: Any, scene: Scene) -> Done:
        """Carry out a call whose ``arguments`` are of the tool's own class. Raises `ToolError`."""

    @property
    def spec(self) -> ToolSpec:
        """The tool as a dialect offers it."""
        schema = self.arguments.model_json_schema()
        parameters = _tidy(schema, schema.get("$defs", {}))
        parameters["properties"] = {name: parameters["properties"][name] for name in self._offered()}
        return ToolSpec(self.name, self.description, parameters)

    def read(self, raw: Mapping[str, Any]) -> Arguments:
        """Checked arguments from parsed JSON. Raises `ToolError`."""
        if len(raw) > 50:
            raise ToolError(f"{len(raw)} arguments are too many; there are {', '.join(self._offered())}")
        try:
            return self.arguments.model_validate(dict(raw))
        except pydantic.ValidationError as error:
            raise ToolError(_sentence(error, self._offered())) from None

    def _offered(self) -> list[str]:
        """Names of the arguments that the schema shows, the picture last."""
        names = [name for name in self.arguments.model_fields if name not in ("image", *self.hidden)]
        return names if "image" in self.hidden else [*names, "image"]


def _sentence(error: pydantic.ValidationError, known: Iterable[str]) -> str:
    """The first thing that is wrong, for the model."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ""
    for step in first["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{plain(step)}" if place else plain(step)
    if first["type"] == "missing":
        return f"the argument {place} is missing"
    if first["type"] == "extra_forbidden":
        return f"there is no argument {place}" + (f"; there are {', '.join(known)}" if len(first["loc"]) == 1 else "")
    told = first["msg"].removeprefix("Value error, ")
    if told.startswith("Input should"):
        return f"{place or 'it'} must{told.removeprefix('Input should')}"
    return f"{place}: {told}" if place else told


def _tidy(node: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema without references, titles, defaults, class docstrings and the null of what may be left out."""
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_tidy(entry, definitions) for entry in node]
    if not isinstance(node, Mapping):
        return node
    if "$ref" in node:
        return _tidy(definitions[node["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in node:
        (kind,) = (entry for entry in node["anyOf"] if entry != {"type": "null"})
        node = {**kind, **{key: value for key, value in node.items() if key != "anyOf"}}
    dropped = {"title", "$defs", "additionalProperties", "default"} | ({"description"} if "properties" in node else set())
    # pydantic leaves its own words for bounds where a validator of ours comes first
    words = {"ge": "minimum", "le": "maximum"}
    kept = {words.get(key, key): value for key, value in node.items() if key not in dropped}
    if "properties" in kept:  # its keys are names of arguments, not words of the schema language
        kept["properties"] = {key: _tidy(value, definitions) for key, value in kept["properties"].items()}
    return {key: value if key == "properties" else _tidy(value, definitions) for key, value in kept.items()}
