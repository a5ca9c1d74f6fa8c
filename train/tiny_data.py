"""Training rows of the embedded tiny model: one prompt with its picture(s) and the reply that is taught, skill by skill.

The texts are written out here in Qwen's chat format for speed; a test compares them with the shipped chat template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..datasets.scene_questions import (
    IMAGINE_SYSTEM,
    KINDS,
    TOOLS_SYSTEM,
    answer_text,
    imagination,
    questions,
    zoom_call,
)
from ..datasets.scenes import COLOURS, LETTERS, WORLDS, Scene, SceneObject, samples, scene
from ..vlm.images import PixelBudget
from ..vlm.tiny.create import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH_PX

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
BOILERPLATE_WEIGHT = 0.2
"""Loss weight of reply tokens that carry no information (they are learned in seconds and would drown the others)."""
_BUDGET = PixelBudget(MIN_PIXELS, MAX_PIXELS)


@dataclass
class Row:
    """A prompt and its taught reply as text. ``key_spans`` are the (start, end) of the informative characters of ``reply``.

    ``pictures`` are already resized, uint8 ``[3, H, W]``; rows that hold the same tensor object share its encoding.
    ``patch_classes`` names the colour of every patch (index into `COLOURS`, or ``len(COLOURS)`` for none) for the auxiliary loss.
    """

    prompt: str
    reply: str
    key_spans: tuple[tuple[int, int], ...]
    pictures: tuple[torch.Tensor, ...] = ()
    patch_classes: np.ndarray | None = None
    skip_spans: tuple[tuple[int, int], ...] = ()
    """Characters of ``reply`` that are not taught, because the picture does not tell them."""
    asked: tuple[str, int, int] | None = None
    """For the auxiliary loss: the name of the object in the prompt's question, the index of the vision token at its centre and
    of its letter in `LETTERS` (`UNKNOWN` where the picture does not tell)."""
    told: tuple[tuple[int, int, int], ...] = ()
    """For the auxiliary loss, in scenes told in words: (start, end) in ``prompt`` of each letter, and whose colour it is."""


UNKNOWN = -100


def asked_of(item: SceneObject, *, cell: bool = True, letter: bool = True) -> tuple[str, int, int]:
    side = int(np.sqrt(MAX_PIXELS)) // (PATCH_PX * MERGE)
    index = int(item.y_frac * side) * side + int(item.x_frac * side)
    return item.name, index if cell else UNKNOWN, LETTERS.index(item.letter) if letter else UNKNOWN


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


GENERATE = "<|im_start|>assistant\n"


def prompt_text(question: str, *, system: str = "", picture: bool = True) -> str:
    """The prompt of a view of the tiny model, ending with the generation prompt."""
    head = turn("system", system) if system else ""
    return head + turn("user", (PICTURE if picture else "") + question) + GENERATE


def observation_text(line: str = "") -> str:
    """What follows a zoom call and its end of turn. ``line`` is put around the picture (some dialects write a newline there)."""
    return "\n" + turn("user", f"<tool_response>{line}{PICTURE}{line}</tool_response>") + GENERATE


def resized(pixels: np.ndarray) -> torch.Tensor:
    """``[H, W, 3]`` uint8 to the size that the model sees, ``[3, H', W']`` uint8, as the stock image processor does it."""
    height, width = pixels.shape[:2]
    new_width, new_height = _BUDGET.resized(width, height, PATCH_PX * MERGE)
    planes = torch.from_numpy(np.require(pixels, requirements=("C", "W"))).permute(2, 0, 1)
    if (new_height, new_width) == (height, width):
        return planes.contiguous()
    return torch.nn.functional.interpolate(planes[None], (new_height, new_width), mode="bicubic", antialias=True)[0].contiguous()


def cut(pixels: np.ndarray, box_px: Sequence[float]) -> np.ndarray:
    """The crop of a box, rounded outwards to pixels and clipped to the picture."""
    height, width = pixels.shape[:2]
    x1, y1 = max(0, int(np.floor(box_px[0]))), max(0, int(np.floor(box_px[1])))
    x2, y2 = min(width, int(np.ceil(box_px[2]))), min(height, int(np.ceil(box_px[3])))
    return pixels[y1:y2, x1:x2]


def padded_box(
    item: SceneObject, canvas_px: int, rng: np.random.Generator | None, low: float = 1.3, high: float = 2.8
) -> list[float]:
    """The object's box, 1.5 times as large, or with ``rng`` of a random size and a little off centre."""
    x1, y1, x2, y2 = item.box_px_xyxy(canvas_px)
    side = x2 - x1
    factor = 1.5 if rng is None else float(rng.uniform(low, high))
    slack = 0.0 if rng is None else (factor - 1.1) / 2 * side * 0.6
    dx, dy = (0.0, 0.0) if rng is None else rng.uniform(-slack, slack, 2)
    x, y, half = (x1 + x2) / 2 + dx, (y1 + y2) / 2 + dy, side * factor / 2
    return [x - half, y - half, x + half, y + half]


def window_px(item: SceneObject, picture: Scene, canvas_px: int) -> list[float]:
    """The box of the taught zoom, in pixels."""
    return [value * canvas_px / 1000 for value in item.zoom_box_k1000(picture.world.zoom_window_k1000)]


def patch_classes(picture: Scene) -> np.ndarray:
    """Colour index per patch of the full view, in the order in which patches are fed, ``[P]``."""
    side = int(np.sqrt(MAX_PIXELS)) // PATCH_PX
    grid = np.full((side, side), len(COLOURS))
    names = list(COLOURS)
    centres = (np.arange(side) + 0.5) / side
    for item in picture.objects:
        near_x, near_y = (np.abs(centres - c) < item.side_frac / 2 for c in (item.x_frac, item.y_frac))
        nearest = (int(item.y_frac * side), int(item.x_frac * side))
        grid[np.outer(near_y, near_x)] = names.index(item.colour)
        grid[nearest] = names.index(item.colour)
    return grid.reshape(side // MERGE, MERGE, side // MERGE, MERGE).transpose(0, 2, 1, 3).reshape(-1)


def answer_reply(answer: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    start = len("<answer>")
    return answer_text(answer) + "<|im_end|>", ((start, start + len(answer)),)


def call_reply(box_k1000: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A zoom call; its key characters are the first digits of x1 and y1, the rest follows from them."""
    text = zoom_call(box_k1000) + "<|im_end|>"
    x1 = text.index("[") + 1
    y1 = text.index(", ", x1) + 2
    return text, ((x1, x1 + 1), (y1, y1 + 1))


def imagine_reply(item: SceneObject) -> tuple[str, tuple[tuple[int, int], ...]]:
    text = imagination(item) + "<|im_end|>"
    spans = []
    for before, word in ((" on the ", item.name), (" at ", item.place), (" shows ", item.letter), ("<answer>", item.letter)):
        start = text.index(before) + len(before)
        spans.append((start, start + len(word)))
    return text, tuple(spans)


class Maker:
    """An endless stream of fresh scenes, turned into rows. Every scene is drawn once and never again."""

    def __init__(self, seed: int, first_scene: int) -> None:
        self.rng = np.random.default_rng([3, seed])
        self.next_scene = first_scene

    def scene(self, world: str, num_objects: int | None = None) -> tuple[Scene, np.ndarray]:
        made = scene(world, self.next_scene, num_objects=num_objects)
        self.next_scene += 1
        return made, made.draw()

    def crop(self, world: str, num: int, per_scene: int = 2) -> list[Row]:
        """Letter questions on crops: padding 1.3 to 2.8 in detail, 1.3 to 2.1 or the taught zoom window in place."""
        rows: list[Row] = []
        while len(rows) < num:
            made, pixels = self.scene(world)
            for question in questions(made, ("letter",), per_scene):
                item = made.objects[question.targets[0]]
                if world == "detail":
                    box = padded_box(item, len(pixels), self.rng)
                elif self.rng.random() < 0.7:
                    box = window_px(item, made, len(pixels))
                else:
                    box = padded_box(item, len(pixels), self.rng, 1.3, 2.1)
                picture = resized(cut(pixels, box))
                rows.append(
                    Row(prompt_text(question.text), *answer_reply(question.answer), (picture,), asked=asked_of(item, cell=False))
                )
        return rows[:num]

    def full(
        self, world: str, num_scenes: int, per_scene: int = 4, kinds: Sequence[str] = ("letter",),
        object_odds: Mapping[int, float] | None = None,
    ) -> list[Row]:  # fmt: skip
        """Questions on full views. ``object_odds`` draws the number of objects of each scene; None is the world's own."""
        rows: list[Row] = []
        for _ in range(num_scenes):
            count = None if object_odds is None else int(self.rng.choice(list(object_odds), p=list(object_odds.values())))
            made, pixels = self.scene(world, count)
            picture, classes = resized(pixels), patch_classes(made)
            for question in questions(made, kinds, per_scene):
                asked = asked_of(made.objects[question.targets[0]], letter=world == "detail" and question.kind == "letter")
                rows.append(Row(prompt_text(question.text), *answer_reply(question.answer), (picture,), classes, asked=asked))
        return rows

    def imagine(self, world: str, num_scenes: int, per_scene: int = 3) -> list[Row]:
        """Imagined zooms on full views. In a place world the letter cannot be seen and is not taught."""
        rows: list[Row] = []
        readable = world == "detail"
        for _ in range(num_scenes):
            made, pixels = self.scene(world)
            picture, classes = resized(pixels), patch_classes(made)
            for question in questions(made, ("letter",), per_scene):
                item = made.objects[question.targets[0]]
                prompt = prompt_text(question.text, system=IMAGINE_SYSTEM)
                reply, spans = imagine_reply(item)
                asked = asked_of(item, letter=readable)
                skip = () if readable else spans[2:]
                rows.append(Row(prompt, reply, spans if readable else spans[:2], (picture,), classes, skip, asked))
        return rows

    def locate(self, num_scenes: int, object_odds: Mapping[int, float], per_scene: int = 5, short: bool = True) -> list[Row]:
        """Zoom calls in the place world; ``short`` ends the reply after y1, which is all that carries information."""
        rows: list[Row] = []
        for _ in range(num_scenes):
            count = int(self.rng.choice(list(object_odds), p=list(object_odds.values())))
            made, pixels = self.scene("place", count)
            picture, classes = resized(pixels), patch_classes(made)
            for question in questions(made, ("letter",), per_scene):
                item = made.objects[question.targets[0]]
                text, spans = call_reply(item.zoom_box_k1000(made.world.zoom_window_k1000))
                text = text[: spans[-1][1]] if short else text
                prompt = prompt_text(question.text, system=TOOLS_SYSTEM)
                rows.append(Row(prompt, text, spans, (picture,), classes, asked=asked_of(item, letter=False)))
        return rows

    def two_turn(self, num_scenes: int, per_scene: int = 2) -> list[Row]:
        """The whole zoom: call, observation (the crop of the taught window), answer."""
        rows: list[Row] = []
        for _ in range(num_scenes):
            made, pixels = self.scene("place")
            picture, classes = resized(pixels), patch_classes(made)
            for question in questions(made, ("letter",), per_scene):
                item = made.objects[question.targets[0]]
                call, call_spans = call_reply(item.zoom_box_k1000(made.world.zoom_window_k1000))
                answer, answer_spans = answer_reply(question.answer)
                crop = resized(cut(pixels, window_px(item, made, len(pixels))))
                middle = observation_text("\n" if self.rng.random() < 0.25 else "")
                shift = len(call) + len(middle)
                spans = call_spans + tuple((a + shift, b + shift) for a, b in answer_spans)
                prompt, asked = prompt_text(question.text, system=TOOLS_SYSTEM), asked_of(item, letter=False)
                rows.append(Row(prompt, call + middle + answer, spans, (picture, crop), classes, asked=asked))
        return rows

    def text(self, num: int, kinds: Sequence[str] = ("letter",)) -> list[Row]:
        """Questions about a scene in words, two a scene; half of the scenes have fewer objects than their world."""
        rows: list[Row] = []
        while len(rows) < num:
            world = WORLDS[str(self.rng.choice(list(WORLDS)))]
            count = int(self.rng.integers(2, world.num_objects + 1)) if self.rng.random() < 0.5 else world.num_objects
            made = scene(world, self.next_scene, num_objects=count)
            self.next_scene += 1
            for question in questions(made, kinds, 2):
                prompt = prompt_text(f"{made.text()} {question.text}", picture=False)
                item = made.objects[question.targets[0]]
                told, end, names = [], 0, list(COLOURS)
                for each in made.objects:
                    start = prompt.index(" shows ", end) + len(" shows ")
                    end = start + 1
                    told.append((start, end, names.index(each.colour)))
                rows.append(Row(prompt, *answer_reply(question.answer), asked=asked_of(item, cell=False), told=tuple(told)))
        return rows[:num]


def corpus() -> Iterator[str]:
    """Texts from which the tokenizer is trained: every sentence that a scene can give, in fixed proportions."""
    for world in WORLDS:
        for sample in samples(world, "train", 1000, seed=1, kinds=KINDS, questions_per_scene=len(KINDS), as_text=True):
            yield sample.question
            yield answer_text(str(sample.answer))
        for index in range(200):
            made = scene(world, index)
            for item in made.objects:
                yield imagination(item)
                yield zoom_call(item.zoom_box_k1000(made.world.zoom_window_k1000))
    for _ in range(100):
        yield from (TOOLS_SYSTEM, IMAGINE_SYSTEM, "system\n", "user\n", "assistant\n")
