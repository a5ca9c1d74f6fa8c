"""Scripted experts: how one who knows a synthetic scene would look, draw and answer, in any dialect. For the cold start (SFT).

| kind | what is done | where |
|---|---|---|
| zoom | the taught window around each shape that the question is about, one a turn, then the answer | every world |
| draw | a box drawn around it, then the answer | worlds whose letters the full view shows |
| boxes | no call: the box as text inside the thought, then a second thought (GRIT, 2505.15879; TreeVGR) | the same |
| frames | the frames of a clip between two that are shown, then the answer (FrameThinker, 2509.24304) | clips |

Questions that the full view answers (where, shape, count) are answered at once: an expert looks only when it has to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import pydantic

from ..visual_tools import boxes
from ..visual_tools.boxes import Coords, Size
from ..visual_tools.dialects.base import Call, Dialect, TextBox
from ..visual_tools.dialects.frame_thinker import FrameThinker
from ..visual_tools.dialects.grit import Grit
from ..vlm.images import Picture
from ..vlm.records import Box, Sample
from .crops import Part
from .scenes import Scene, SceneObject, scene_of
from .trajectories import NO_THOUGHT, Trajectory
from .video_scenes import video_expert_calls

_LOOKED_AT = {"letter": 1, "colour": 1, "compare": 2, "hop": 1}  # how many of a question's targets have to be seen closely
_READABLE = ("detail",)  # worlds whose letters can be read without a zoom
SeenPx = Callable[[Picture], Size]
"""Width and height at which a model sees a picture."""


class ExpertSpec(Part):
    """What an expert does, and how far from perfect it is. Every draw is a function of ``seed`` and the sample's id."""

    kind: Literal["zoom", "draw", "boxes", "frames"] = "zoom"
    """zoom: look closely, then answer; draw: draw a box, then answer; boxes: boxes as text in the thought, no call; frames:
    select the frames of a clip that were not shown, then answer."""
    think: bool = False
    """Say in a thought what is looked for and what was seen. ``boxes`` always does."""
    label: bool = False
    """Name the shape in the zoom's call. A drawn box always has its label."""
    jitter_frac: float = pydantic.Field(default=0.0, ge=0, le=1)
    """A box is moved, along each side, by up to this share of the side; it stays inside the picture."""
    wrong_first_frac: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of looks that first go to another shape, under the right label, and are corrected in the next turn: reflective traces
    as ViLaSR (2506.09965) selects them."""
    thought_dropout: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of samples whose thoughts are all empty (TON, 2505.16854, has 0.5)."""
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _sense(self) -> ExpertSpec:
        if self.kind in ("boxes", "frames") and self.wrong_first_frac:
            raise ValueError(
                f"expert: wrong_first_frac is for shapes looked at in turn, not for kind {self.kind}; use zoom or draw"
            )
        if self.thought_dropout and not self.think and self.kind != "boxes":
            raise ValueError("expert: thought_dropout needs thoughts; set think: true")
        return self


def expert(
    sample: Sample,
    dialect: Dialect,
    spec: ExpertSpec | None = None,
    coords: Coords = "norm1000",
    seen_px: SeenPx | None = None,
) -> Trajectory:
    """What the expert does with a sample of a synthetic world. The observations are left to the tools.

    ``coords`` is how the model writes boxes, unless the dialect fixes it; ``seen_px`` is needed for abs_resized only. Raises
    `ValueError` for a sample of no world, one told in words, and a world in which this expert could not see its answer.
    """
    spec = spec or ExpertSpec()
    if spec.kind == "frames":
        return _select_frames(sample, dialect, spec)
    made = scene_of(sample)
    if not sample.images or sample.answer is None:
        raise ValueError(
            f"sample {sample.id}: an expert needs a picture and an answer; use a synthetic world with as_text: false"
        )
    targets = [made.objects[int(index)] for index in sample.tags["target"].split(",") if index]
    looked_at = targets[: _LOOKED_AT.get(sample.kind, 0)]
    if looked_at and spec.kind != "zoom" and made.world.name not in _READABLE:
        raise ValueError(
            f"sample {sample.id}: in the world {made.world.name} a letter cannot be read without a zoom; use kind zoom, or the "
            f"world {' or '.join(_READABLE)}"
        )
    rng = random.Random(f"{spec.seed}:{sample.id}")
    picture = sample.images[0]
    seen = None if seen_px is None else seen_px(picture)
    silent = rng.random() < spec.thought_dropout
    hand = _Hand(made, picture.size_px, dialect, spec, dialect.coords or coords, seen, rng, silent)
    if spec.kind == "boxes":
        return Trajectory(sample, (hand.boxes(looked_at, targets, sample.answer),))
    actions = [action for item in looked_at for action in hand.looks(item)]
    return Trajectory(sample, (*actions, hand.answer(looked_at, targets, sample.answer)))


def _select_frames(sample: Sample, dialect: Dialect, spec: ExpertSpec) -> Trajectory:
    """Look between the two frames where something changes, then answer. A thought names the two, as FrameThinker checks."""
    numbered = isinstance(dialect, FrameThinker)
    calls = video_expert_calls(sample, numbered)
    silent = random.Random(f"{spec.seed}:{sample.id}").random() < spec.thought_dropout
    low, high = (calls[0].arguments[name] for name in (("start_frame", "end_frame") if numbered else ("start_s", "end_s")))
    thought, seen = f"I look between {low} and {high}.", f"It shows {sample.answer}."
    if not spec.think or silent:
        thought = seen = NO_THOUGHT if spec.think else ""
    return Trajectory(sample, (dialect.write(calls, thought), dialect.write_answer(str(sample.answer), seen)))


class ExpertTrajectories(Sequence[Trajectory]):
    """The expert's trajectory of every sample, made on access."""

    def __init__(
        self,
        samples: Sequence[Sample],
        dialect: Dialect,
        spec: ExpertSpec | None = None,
        coords: Coords = "norm1000",
        seen_px: SeenPx | None = None,
    ) -> None:
        self._samples, self._dialect, self._spec, self._coords, self._seen_px = samples, dialect, spec, coords, seen_px

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Trajectory: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trajectory]: ...
    def __getitem__(self, index: int | slice) -> Trajectory | list[Trajectory]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return expert(self._samples[index], self._dialect, self._spec, self._coords, self._seen_px)


@dataclass(frozen=True)
class _Hand:
    """One expert at one sample: turns shapes into texts."""

    made: Scene
    size_px: Size
    dialect: Dialect
    spec: ExpertSpec
    coords: Coords
    seen_px: Size | None
    rng: random.Random
    silent: bool

    def looks(self, item: SceneObject) -> list[str]:
        """One action, or two when the expert errs first."""
        verb = "zoom in on" if self.spec.kind == "zoom" else "draw a box around"
        first = f"I {verb} the {item.name} at {item.place}."
        others = [other for other in self.made.objects if not self._covers(self._box_px(other), item)]
        if self.rng.random() >= self.spec.wrong_first_frac or not others:
            return [self._call(item, item, first)]
        wrong = self.rng.choice(others)
        return [
            self._call(wrong, item, f"I {verb} the {item.name} at {wrong.place}."),
            self._call(item, item, f"That is the {wrong.name}. {first}"),
        ]

    def answer(self, seen: Sequence[SceneObject], targets: Sequence[SceneObject], answer: str) -> str:
        return self.dialect.write_answer(answer, self._thought(_sight(seen, targets)))

    def boxes(self, seen: Sequence[SceneObject], targets: Sequence[SceneObject], answer: str) -> str:
        """One turn: a thought with boxes in it, in GRIT a second one, the answer."""
        if not isinstance(self.dialect, Grit):
            raise ValueError(
                f"expert: kind boxes writes boxes into its thought, and {self.dialect.name} has calls; use grit or treevgr"
            )
        shown = " ".join(self._pointed_at(item, self.dialect) for item in (seen or targets)) or "There is none."
        first, second = (NO_THOUGHT, NO_THOUGHT) if self.silent else (shown, _sight(seen, targets))
        return self.dialect.write_answer(answer, first).replace("<rethink></rethink>", f"<rethink>{second}</rethink>", 1)

    def _pointed_at(self, item: SceneObject, dialect: Grit) -> str:
        x1, y1, x2, y2 = map(float, self._written(self._jittered(self._box_px(item))))
        return f"I look at the {item.name} at {item.place}: {dialect.write_box(TextBox((x1, y1, x2, y2), item.name))}."

    def _call(self, item: SceneObject, meant: SceneObject, thought: str) -> str:
        box = self._written(self._jittered(self._box_px(item)))
        label = {"label": meant.name} if self.spec.label or self.spec.kind == "draw" else {}
        region = {"box": box, **label}
        call = Call("zoom", region) if self.spec.kind == "zoom" else Call("draw_box", {"boxes": [region]})
        return self.dialect.write([call], self._thought(thought))

    def _thought(self, text: str) -> str:
        return "" if not self.spec.think else NO_THOUGHT if self.silent else text

    def _box_px(self, item: SceneObject) -> Box:
        """What is zoomed into, or the shape itself."""
        if self.spec.kind != "zoom":
            return item.box_px_xyxy(self.size_px[0])
        x1, y1, x2, y2 = item.zoom_box_k1000(self.made.world.zoom_window_k1000)
        return boxes.to_px((x1, y1, x2, y2), "norm1000", self.size_px)

    def _covers(self, box_px: Box, item: SceneObject) -> bool:
        x, y = item.x_frac * self.size_px[0], item.y_frac * self.size_px[1]
        return box_px[0] <= x <= box_px[2] and box_px[1] <= y <= box_px[3]

    def _jittered(self, box_px: Box) -> Box:
        reach = self.spec.jitter_frac
        x1, x2 = self._moved(box_px[0], box_px[2], self.rng.uniform(-reach, reach), self.size_px[0])
        y1, y2 = self._moved(box_px[1], box_px[3], self.rng.uniform(-reach, reach), self.size_px[1])
        return x1, y1, x2, y2

    @staticmethod
    def _moved(low: float, high: float, shift_frac: float, limit: float) -> tuple[float, float]:
        moved = min(max(low + shift_frac * (high - low), 0.0), limit - (high - low))
        return moved, moved + high - low

    def _written(self, box_px: Box) -> list[Any]:
        """The box as the model writes it: whole numbers, three digits for norm1."""
        told = boxes.from_px(box_px, self.coords, self.size_px, self.seen_px)
        return [round(value, 3) if self.coords == "norm1" else round(value) for value in told]


def _sight(seen: Sequence[SceneObject], targets: Sequence[SceneObject]) -> str:
    if seen:
        return " ".join(f"The {item.name} shows {item.letter}." for item in seen)
    return " ".join(f"The {item.name} is at {item.place}." for item in targets) or "There is none."
