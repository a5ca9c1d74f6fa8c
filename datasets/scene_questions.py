"""Questions about a synthetic scene, and the texts that a model is taught to say about it.

Kinds, from easy to hard:

| kind | question | answer |
|---|---|---|
| where | Where is the red triangle? | top left |
| shape | What shape is the red object? | triangle |
| count | How many triangles are there? | 2 |
| letter | What letter is on the red triangle? | K |
| colour | What colour is the triangle that shows K? | red |
| compare | Do the red triangle and the blue circle show the same letter? | yes |
| earlier | Which letter is earlier, that on the red triangle or that on the blue circle? | C |
| hop | What letter is on the shape left of the red triangle? | C |

Every question has exactly one right answer; a scene in which it would have none or several is not asked it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .scenes import Scene, SceneObject

TOOLS_SYSTEM = "Zoom with image_zoom_in_tool."
"""System message of the view in which the tiny model may zoom."""
IMAGINE_SYSTEM = "Imagine zooming in, then answer."
"""System message of the view in which the tiny model says what a zoom would show."""


@dataclass(frozen=True)
class Question:
    """``targets`` are the indices of the objects whose sight decides the answer; ``tag`` tells it from others of the scene."""

    kind: str
    text: str
    answer: str
    targets: tuple[int, ...]
    tag: str
    difficulty: float
    rationale: str
    hints: tuple[str, ...] = ()
    """Concept, strategy, where to look, steps, full solution; letter and earlier have them."""


def answer_text(answer: str) -> str:
    return f"<answer>{answer}</answer>"


def imagination(item: SceneObject) -> str:
    """What a model says when it answers "letter" with an imagined zoom.

    "I zoom in on the red triangle at top left. It shows K. <answer>K</answer>"
    """
    return f"I zoom in on the {item.name} at {item.place}. It shows {item.letter}. {answer_text(item.letter)}"


def zoom_call(box_k1000: Sequence[int]) -> str:
    """A zoom in the Hermes dialect; ``box_k1000`` is (x1, y1, x2, y2) in thousandths of the picture."""
    call = {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [int(value) for value in box_k1000]}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _where(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    for index in rng.permutation(len(scene.objects)):
        item = scene.objects[index]
        yield f"Where is the {item.name}?", item.place, (int(index),), item.colour


def _shape(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    for index in rng.permutation(len(scene.objects)):
        item = scene.objects[index]
        yield f"What shape is the {item.colour} object?", item.shape, (int(index),), item.colour


def _count(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    from .scenes import SHAPES

    for shape in rng.permutation(SHAPES):
        members = tuple(index for index, item in enumerate(scene.objects) if item.shape == shape)
        yield f"How many {shape}s are there?", str(len(members)), members, str(shape)


def _letter(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    for index in rng.permutation(len(scene.objects)):
        item = scene.objects[index]
        yield f"What letter is on the {item.name}?", item.letter, (int(index),), item.colour


def _colour(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    keys = [(item.shape, item.letter) for item in scene.objects]
    for index in rng.permutation(len(scene.objects)):
        item = scene.objects[index]
        if keys.count(keys[index]) == 1:
            yield f"What colour is the {item.shape} that shows {item.letter}?", item.colour, (int(index),), item.colour


def _compare(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    same = bool(rng.integers(2))  # drawn first: with ten letters most pairs differ, and "no" must not be a good guess
    for first in rng.permutation(len(scene.objects)):
        for second in rng.permutation(len(scene.objects)):
            one, other = scene.objects[first], scene.objects[second]
            if first != second and (one.letter == other.letter) == same:
                text = f"Do the {one.name} and the {other.name} show the same letter?"
                yield text, "yes" if same else "no", (int(first), int(second)), f"{one.colour}-{other.colour}"


def _earlier(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    pairs = [(first, second) for first in range(len(scene.objects)) for second in range(len(scene.objects)) if first != second]
    for place in rng.permutation(len(pairs)):
        one, other = (scene.objects[index] for index in pairs[place])
        text = f"Which letter is earlier, that on the {one.name} or that on the {other.name}?"
        yield text, min(one.letter, other.letter), pairs[place], f"{one.colour}-{other.colour}"


def _hop(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    steps = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
    cells = {(item.row, item.column): index for index, item in enumerate(scene.objects)}
    for index in rng.permutation(len(scene.objects)):
        item = scene.objects[index]
        for words in rng.permutation(list(steps)):
            down, right = steps[str(words)]
            found = cells.get((item.row + down, item.column + right))
            if found is not None:
                text = f"What letter is on the shape {words} the {item.name}?"
                yield text, scene.objects[found].letter, (found, int(index)), f"{item.colour}-{str(words).replace(' ', '-')}"


_MAKERS: dict[str, tuple[float, Callable[[Scene, np.random.Generator], Iterator[tuple[str, str, tuple[int, ...], str]]]]] = {
    "where": (0.1, _where),
    "shape": (0.2, _shape),
    "count": (0.3, _count),
    "letter": (0.5, _letter),
    "colour": (0.6, _colour),
    "compare": (0.8, _compare),
    "earlier": (0.85, _earlier),
    "hop": (0.9, _hop),
}
KINDS: tuple[str, ...] = tuple(_MAKERS)


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds as a tuple. Raises `ValueError` for an unknown or missing one."""
    unknown = [kind for kind in kinds if kind not in _MAKERS]
    if unknown or not kinds:
        raise ValueError(f"question kinds {list(kinds)}: expected some of {', '.join(KINDS)}")
    return tuple(kinds)


def _hints(kind: str, items: Sequence[SceneObject], answer: str) -> tuple[str, ...]:
    """Five levels of help (Keye-VL 1.5, 2509.01563), in the few words that the tiny model knows: those of a scene in words."""
    names = " and ".join(item.name for item in items)
    where = ", ".join(f"{item.name} at {item.place}" for item in items)
    seen = "; ".join(f"{item.name} at {item.place} shows {item.letter}" for item in items)
    if kind == "letter":
        return "a shape shows a letter;", f"{names};", f"{where};", f"zoom in on {where};", f"{seen}."
    if kind == "earlier":
        return (
            "A is the earlier letter of A and C;",
            f"{names};",
            f"{where};",
            f"zoom in on {where};",
            f"{seen}; {answer} is earlier.",
        )
    return ()


def questions(scene: Scene, kinds: Sequence[str], count: int) -> list[Question]:
    """Up to ``count`` different questions, the kinds taking turns. The same for the same scene, kinds and count."""
    rng = np.random.default_rng([11, scene.seed])
    streams = {kind: _MAKERS[kind][1](scene, rng.spawn(1)[0]) for kind in check_kinds(kinds)}
    found: list[Question] = []
    while streams and len(found) < count:
        for kind in list(streams):
            drawn = next(streams[kind], None)
            if drawn is None:
                del streams[kind]
            elif len(found) < count:
                text, answer, targets, tag = drawn
                items = [scene.objects[index] for index in targets]
                seen = ". ".join(f"The {item.name} at {item.place} shows {item.letter}" for item in items)
                seen = f"{seen}." if seen else ""
                hints = _hints(kind, items, answer)
                found.append(Question(kind, text, answer, targets, tag, _MAKERS[kind][0], seen, hints))
    return found
