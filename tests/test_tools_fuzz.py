"""Ten thousand hostile calls: nothing raises, every error is a sentence, every picture can be shown."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.visual_tools.base import ToolSettings
from foveate.visual_tools.dialects.base import BadCall, Call, Reading, Result, ToolSpec
from foveate.visual_tools.draw_box import DrawBox
from foveate.visual_tools.registry import TOOLS
from foveate.visual_tools.spec import ToolsSpec, build_toolbox
from foveate.visual_tools.toolbox import Ablation, Toolbox
from foveate.vlm.images import Picture
from foveate.vlm.messages import Clip, Message
from foveate.vlm.records import Shown, ToolCall

NUM_CALLS = 10_000


@dataclass(frozen=True)
class Handed:
    """A dialect whose calls need not be text: what JSON cannot hold reaches the tools too."""

    name: str = "handed"
    coords: None = None
    calls: dict[str, tuple[Call | BadCall, ...]] = field(default_factory=dict)

    def read(self, text: str) -> Reading:
        return Reading(self.calls[text])

    def write(self, calls: Sequence[Call], thought: str = "") -> str:
        return f"{calls[0].name} {json.dumps(calls[0].arguments)}"

    def write_answer(self, answer: str, thought: str = "") -> str:
        return answer

    def system_prompt(self, tools: Sequence[ToolSpec], coords: str) -> str:
        return ""

    def observation(self, results: Sequence[Result], shown: Shown) -> Message:
        return Message.user(*(part for result in results for part in result.parts))


class Broken:
    """A video that claims to be ten seconds long and cannot be read."""

    duration_s = 10.0

    def frames_at(self, times_s: Sequence[float]) -> Clip:
        raise ValueError("broken.mp4")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


NUMBERS: tuple[Any, ...] = (0, 1, -1, 0.5, 3, 10, 50, 99.5, 100, 500, 1000, 50_000, -50_000, 1e9, 1e-30, 5e-324, "7", "00:03")
HOSTILE: tuple[Any, ...] = (
    *(math.nan, math.inf, -math.inf, 1e308, 10**5000, -(10**400), True, None, "", "NaN", "9" * 5000, "1e999", "\ud800", "\x00"),
    *(
        [],
        {},
        [[]],
        deep(900),
        "[" * 150,
        "[1,2,3,4]",
        {"box": None},
        {1: 2},
        "x" * 100_000,
        list(range(5000)),
        "<|image_pad|>",
        b"1",
    ),
    *({"k" * 300: 1}, [None] * 4, [math.nan] * 4, ["a"] * 4, (1, 2), {"box": [0, 0, 9, 9], "label": 10**5000}, "東京", "1:2:3:4"),
)
IMAGES: tuple[Any, ...] = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    -1,
    99,
    "original",
    "observation 1",
    "observation 9",
    "img_1",
    "img_0",
    1.5,
    "",
    10**30,
)


def value(rng: random.Random, kind: str) -> Any:
    """Something that an argument of this kind may or may not take."""
    if rng.random() < 0.06:
        return rng.choice(HOSTILE)
    if kind in ("box", "point"):
        unit = rng.choice((1, 20, 20, 900, 50_000))
        corners = sorted(rng.uniform(-0.2, 1.2) * unit for _ in range(2)), sorted(rng.uniform(-0.2, 1.2) * unit for _ in range(2))
        own = [corners[0][0], corners[1][0], corners[0][1], corners[1][1]][: 4 if kind == "box" else 2]
        return [rng.choice(NUMBERS) if rng.random() < 0.05 else one for one in own]
    if kind == "boxes":
        return [{"box": value(rng, "box"), "label": value(rng, "text")} for _ in range(rng.randint(0, 3))]
    if kind == "lines":
        return [{"start": value(rng, "point"), "end": value(rng, "point")} for _ in range(rng.randint(0, 3))]
    if kind == "points":
        return [value(rng, "point") for _ in range(rng.randint(0, 3))]
    if kind in ("times_s", "frames"):
        return [rng.choice((0, 1, "00:03", rng.choice(NUMBERS))) for _ in range(rng.randint(0, 3))]
    if kind == "direction":
        return rng.choice(("horizontal", "vertical", "up"))
    if kind.endswith(("_s", "_frame", "count")):
        return rng.choice((0, 1, 3, "00:02", rng.choice(NUMBERS)))
    return rng.choice(("cat", "Straße", "", 7, "two words")) if kind in ("label", "text") else rng.choice(NUMBERS)


def random_call(rng: random.Random) -> Call:
    name = rng.choice([*TOOLS] * 4 + ["zom", "", "\ud800<|im_end|>", "x" * 10_000])
    known = list(TOOLS[name].arguments.model_fields) if name in TOOLS else ["box"]
    required = [key for key in known if name in TOOLS and TOOLS[name].arguments.model_fields[key].is_required()]
    chosen = {*rng.sample(known, rng.randint(0, min(3, len(known)))), *(required if rng.random() < 0.9 else ())} - {"image"}
    if name == "select_frames" and rng.random() < 0.7:
        chosen = set(rng.choice((("times_s",), ("frames",), ("start_s", "end_s", "count"), ("start_frame", "end_frame"))))
    arguments = {key: value(rng, key) for key in sorted(chosen)}
    if rng.random() < 0.4:
        arguments["image"] = rng.choice(HOSTILE if rng.random() < 0.05 else IMAGES)
    if rng.random() < 0.03:
        arguments[rng.choice(("\ud800", "bbox", "k" * 5000, "<tool_call>"))] = 1
    return Call(name, arguments, rng.choice((None, None, "norm1", "abs_resized", "abs_original")))


def picture(width_px: int, height_px: int) -> Picture:
    return Picture.of(np.random.default_rng(width_px).integers(0, 256, (height_px, width_px, 3), np.uint8))


def sentence(text: str) -> bool:
    """One short line or two, that a tokenizer and a file can take, and that names no part of this program."""
    text.encode("utf-8")
    return 5 <= len(text) <= 600 and not text.endswith(".") and "Traceback" not in text and "foveate" not in text


def test_ten_thousand_hostile_calls() -> None:
    rng = random.Random(0)
    frames = Clip((picture(30, 20), picture(31, 20)), (0.0, 4.0))
    visuals = (
        picture(1, 1),
        picture(64, 48),
        picture(2, 300),
        frames,
        Clip(frames.frames, frames.times_s, Broken()),
        picture(3, 40),
    )
    shown = Shown(visuals, ((28, 28), (56, 56), (28, 2800), (28, 28), (28, 28), (28, 28)), 5)
    drawn = tuple(
        ToolCall(name="draw_box", arguments='{"boxes":[{"box":[1,2,30,40],"label":"cat"}]}', coords="norm1000", image=image)
        for image in (0, 1, 2)
    )
    merging = Shown(visuals, shown.seen_px, 5, calls=drawn)
    handed, done, refused = Handed(), Counter[str](), Counter[str]()
    toolboxes = []
    ablations: tuple[Ablation, ...] = ("none", "none", "grey", "other")
    for number, ablate in enumerate(ablations):
        tools = tuple(DrawBox(merge_labels=True) if tool is DrawBox else tool() for tool in TOOLS.values())
        budgets = {"max_pixels": 500, "min_result_side_px": 28} if number == 1 else {}
        toolboxes.append(Toolbox(dialect=handed, tools=tools, settings=ToolSettings(**budgets), ablate=ablate))
    for number in range(NUM_CALLS):
        call = random_call(rng)
        handed.calls["text"] = (call,)
        reply = rng.choice(toolboxes).act("text", merging if number % 2 else shown)
        assert reply is not None
        (record,) = reply.calls
        json.loads(record.arguments, parse_constant=lambda name: 1 / 0)  # NaN is no JSON
        record.name.encode("utf-8")
        if record.error is None:
            done[record.name] += 1
            assert reply.message.pictures or record.name == "frame_at"
            for one in reply.message.pictures:
                assert one.width_px * one.height_px <= 4 * 300 * 300
        else:
            refused[record.name] += 1
            assert not reply.message.pictures
            assert sentence(reply.message.text), (call, reply.message.text)
    # both happen often to every tool, or this test would prove little
    assert min(done[name] for name in TOOLS) > 50, done
    assert min(refused[name] for name in TOOLS) > 50, refused


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["name", "arguments", "bbox_2d", "img_idx"]), inner, max_size=4)
    ),
    max_leaves=12,
)
ZOOMS = st.fixed_dictionaries(
    {
        "name": st.just("image_zoom_in_tool"),
        "arguments": st.fixed_dictionaries(
            {"bbox_2d": st.lists(st.floats() | st.integers(), min_size=4, max_size=4) | JSON}, optional={"img_idx": JSON}
        ),
    }
)
PIECES = st.sampled_from(["<tool_call>", "</tool_call>", '{"name":', "[", "{", "NaN", "1e999", "\x00", "é"]) | st.text(max_size=5)
TEXTS = st.lists(PIECES, max_size=8).map("".join) | (JSON | ZOOMS).map(
    lambda value: f"<tool_call>{json.dumps(value)}</tool_call>"
)

SPECS = (ToolsSpec(tools={name: {} for name in TOOLS}), ToolsSpec(coords="abs_resized", min_side_px=1))
TOOLBOXES = [build_toolbox(spec) for spec in SPECS]


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_no_text_makes_a_toolbox_raise(text: str) -> None:
    for toolbox in TOOLBOXES:
        assert (toolbox.act(text, Shown((picture(64, 48),), ((28, 28),), 1)) is None) == ("<tool_call>" not in text)
