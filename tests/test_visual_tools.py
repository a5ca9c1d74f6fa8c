"""Boxes, zoom and the Hermes dialect: numbers by hand, and text from nowhere that must not raise."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.scene_questions import zoom_call
from foveate.visual_tools import boxes
from foveate.visual_tools.dialects import hermes
from foveate.visual_tools.toolbox import ZoomToolbox
from foveate.visual_tools.zoom import ZoomSettings, zoom
from foveate.vlm.images import Picture

PIXELS = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
PICTURE = Picture.of(PIXELS)
SEEN = (112, 56)


def cut(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    return PIXELS[y1:y2, x1:x2]


def pixels(picture: Picture | str) -> np.ndarray:
    assert isinstance(picture, Picture), picture
    return np.asarray(picture.rgb())


@pytest.mark.parametrize(
    ("coords", "box"),
    [
        ("norm1", (0.25, 0.5, 0.75, 1.0)),
        ("norm1000", (250.0, 500.0, 750.0, 1000.0)),
        ("abs_resized", (28.0, 28.0, 84.0, 56.0)),
        ("abs_original", (50.0, 50.0, 150.0, 100.0)),
    ],
)
def test_the_same_region_in_every_coordinate_system(coords: boxes.Coords, box: tuple[float, float, float, float]) -> None:
    assert boxes.to_px(box, coords, PICTURE.size_px, SEEN) == (50.0, 50.0, 150.0, 100.0)
    assert boxes.from_px((50.0, 50.0, 150.0, 100.0), coords, PICTURE.size_px, SEEN) == box
    assert np.array_equal(pixels(zoom(PICTURE, box, ZoomSettings(coords=coords), SEEN)), cut(50, 50, 150, 100))


def test_geometry_by_hand() -> None:
    assert boxes.iou((0, 0, 2, 2), (1, 1, 3, 3)) == 1 / 7
    assert boxes.iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0
    assert boxes.iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert boxes.clip((-5, 10, 50, 999), (40, 20)) == (0, 10, 40, 20)
    assert boxes.clip((40, 0, 50, 5), (40, 20)) is None
    assert boxes.expand((10, 20, 30, 60), 0.1) == (8, 16, 32, 64)
    assert boxes.round_out((0.2, 3.0, 4.1, 9.9), (5, 9)) == (0, 3, 5, 9)
    assert boxes.grow((10, 10, 12, 30), (100, 100), 16, 100) == (3, 10, 19, 30)
    assert boxes.grow((0, 0, 90, 1), (100, 100), 1, 10) == (0, 0, 90, 9)
    assert boxes.grow((0, 0, 2, 2), (10, 6), 8, 10) == (0, 0, 8, 6)
    with pytest.raises(ValueError, match="the size that the model saw"):
        boxes.to_px((0, 0, 1, 1), "abs_resized", (10, 10))
    with pytest.raises(ValueError, match="norm1000, abs_resized"):
        boxes.to_px((0, 0, 1, 1), "norm100", (10, 10))  # type: ignore[arg-type]


def test_zoom_clips_widens_and_explains() -> None:
    plain = ZoomSettings(coords="abs_original", min_side_px=16, max_aspect=4)
    assert np.array_equal(pixels(zoom(PICTURE, (150, -20, 400, 50), plain)), cut(150, 0, 200, 50))
    assert np.array_equal(pixels(zoom(PICTURE, (100, 50, 102, 52), plain)), cut(93, 43, 109, 59))
    assert pixels(zoom(PICTURE, (0, 0, 200, 3), plain)).shape == (50, 200, 3)
    outside = zoom(PICTURE, (300, 0, 400, 50), plain)
    assert outside == "the box [300, 0, 400, 50] lies outside the picture: x goes from 0 to 200, y from 0 to 100"
    assert "from 0 to 112, y from 0 to 56" in str(zoom(PICTURE, (300, 0, 400, 50), ZoomSettings(coords="abs_resized"), SEEN))
    grey = pixels(zoom(PICTURE, (50, 50, 150, 100), ZoomSettings(coords="abs_original", grey=True)))
    assert grey.shape == (50, 100, 3)
    assert (grey == 127).all()


def test_calls_are_read_as_data() -> None:
    text = (
        'I look. <tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, 4], "label": "x"}}\n</tool_call>'
    )
    assert hermes.find_call(text) == hermes.Call("image_zoom_in_tool", {"bbox_2d": [1, 2, 3, 4], "label": "x"})
    assert hermes.find_call("<answer>K</answer>") is None
    assert hermes.box_argument({"bbox": [1, 2, 3, 4]}) == [1, 2, 3, 4]
    reasons = {
        "<tool_call>{": "not closed",
        "<tool_call>{'name': 1}</tool_call>": "not valid JSON",
        "<tool_call>[1]</tool_call>": "must be a JSON object",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>': '"arguments" must be',
        f"<tool_call>{'[' * 100_000}</tool_call>": "not valid JSON",
        f"<tool_call>{'9' * 10_000}</tool_call>": "not valid JSON",
    }
    for bad, reason in reasons.items():
        found = hermes.find_call(bad)
        assert isinstance(found, hermes.BadCall)
        assert reason in found.reason


def test_what_is_written_is_what_is_read() -> None:
    assert hermes.write_call(hermes.ZOOM, {"bbox_2d": [300, 400, 500, 600]}) == zoom_call((300, 400, 500, 600))
    found = hermes.find_call(zoom_call((300, 400, 500, 600)))
    assert found == hermes.Call(hermes.ZOOM, {"bbox_2d": [300, 400, 500, 600]})
    prompt = ZoomToolbox().system_prompt
    schema = json.loads(prompt.partition("<tools>\n")[2].partition("\n</tools>")[0])
    assert schema["function"]["name"] == hermes.ZOOM


def act(call: object, toolbox: ZoomToolbox | None = None) -> tuple[str, list[Picture]]:
    text = call if isinstance(call, str) else f"<tool_call>{json.dumps(call)}</tool_call>"
    reply = (toolbox or ZoomToolbox()).act(text, [PICTURE, PICTURE], [SEEN, SEEN])
    assert reply is not None
    assert reply.role == "user"
    return reply.text, list(reply.pictures)


def test_the_toolbox_answers_every_call() -> None:
    text, pictures = act({"name": hermes.ZOOM, "arguments": {"bbox_2d": [250, 500, 750, 1000], "img_idx": 1}})
    assert text == "<tool_response></tool_response>"
    assert np.array_equal(pixels(pictures[0]), cut(50, 50, 150, 100))
    assert ZoomToolbox().act("<answer>K</answer>", [PICTURE], [SEEN]) is None
    errors = {
        "there is no tool 'run'": {"name": "run", "arguments": {}},
        "a box is a list of four numbers": {"name": hermes.ZOOM, "arguments": {}},
        "four finite numbers": {"name": hermes.ZOOM, "arguments": {"bbox": [0, 0, float("nan"), 1]}},
        "is empty": {"name": hermes.ZOOM, "arguments": {"bbox": [5, 5, 5, 9]}},
        "img_idx must be a whole number from 0 to 1": {"name": hermes.ZOOM, "arguments": {"bbox": [0, 0, 9, 9], "img_idx": 2}},
        "lies outside": {"name": hermes.ZOOM, "arguments": {"bbox": [2000, 0, 3000, 9]}},
        "not closed": "<tool_call>",
    }
    for reason, call in errors.items():
        text, pictures = act(call)
        assert text.startswith("<tool_response>Error: ")
        assert reason in text
        assert not pictures
    none = ZoomToolbox().act(zoom_call((0, 0, 9, 9)), [], [])
    assert none is not None
    assert "no picture" in none.text
    _, (grey,) = act({"name": hermes.ZOOM, "arguments": {"bbox": [0, 0, 500, 500]}}, ZoomToolbox(ZoomSettings(grey=True)))
    assert (pixels(grey) == 127).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["name", "arguments", "bbox", "img_idx"]), inner, max_size=4)
    ),
    max_leaves=12,
)
BOXES = st.lists(st.floats() | st.integers(), min_size=4, max_size=4)
ZOOMS = st.fixed_dictionaries(
    {"name": st.just(hermes.ZOOM), "arguments": st.fixed_dictionaries({"bbox_2d": BOXES | JSON}, optional={"img_idx": JSON})}
)
PIECES = st.sampled_from(["<tool_call>", "</tool_call>", '{"name":', "[", "{", "NaN", "1e999", "\x00", "é"]) | st.text(max_size=5)
TEXTS = st.lists(PIECES, max_size=8).map("".join) | (JSON | ZOOMS).map(
    lambda value: f"<tool_call>{json.dumps(value)}</tool_call>"
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_no_text_makes_the_toolbox_raise(text: str) -> None:
    for toolbox in (ZoomToolbox(), ZoomToolbox(ZoomSettings(coords="abs_resized", min_side_px=1))):
        reply = toolbox.act(text, [PICTURE], [SEEN])
        assert (reply is None) == ("<tool_call>" not in text)


@settings(max_examples=200, deadline=None)
@given(BOXES)
def test_a_region_is_never_empty_nor_outside(box: list[float]) -> None:
    read = boxes.read_box(box)
    if isinstance(read, str):
        return
    region = boxes.clip(read, (200, 100))
    if region is None:
        return
    x1, y1, x2, y2 = boxes.round_out(boxes.grow(region, (200, 100), 16, 20), (200, 100))
    assert 0 <= x1 < x2 <= 200
    assert 0 <= y1 < y2 <= 100
    assert x2 - x1 >= 16
    assert y2 - y1 >= 16


def test_parsing_takes_linear_time() -> None:
    start = time.process_time()
    for text in ("<tool_call>" * 200_000, "<tool_call>{" + "</tool_call" * 200_000, "<" * 2_000_000):
        hermes.find_call(text)
    assert time.process_time() - start < 1.0
