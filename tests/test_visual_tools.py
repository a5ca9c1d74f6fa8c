"""Tools and the toolbox: coordinates, pixels and sentences computed by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import zoom_toolbox
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.visual_tools import boxes, drawing, pixels, rotate
from foveate.visual_tools.base import Done, Scene, ToolError
from foveate.visual_tools.dialects.base import Call
from foveate.visual_tools.dialects.registry import DIALECTS
from foveate.visual_tools.registry import TOOLS
from foveate.visual_tools.spec import ToolsSpec, build_toolbox
from foveate.visual_tools.toolbox import Toolbox
from foveate.visual_tools.zoom import Zoom, ZoomArguments
from foveate.vlm.images import Picture
from foveate.vlm.messages import Clip, Message
from foveate.vlm.records import Reply, Shown, ToolCall

PIXELS = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
PICTURE = Picture.of(PIXELS)
SEEN = (112, 56)
WHITE = Picture.of(np.full((300, 300, 3), 255, np.uint8))


def cut(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    return PIXELS[y1:y2, x1:x2]


def array(picture: Picture) -> np.ndarray:
    return np.asarray(picture.rgb())


def shown(*visuals: Picture | Clip, num_prompt: int = 1, calls: tuple[ToolCall, ...] = ()) -> Shown:
    """Everything seen at its own size, but for `PICTURE`."""
    sizes = [one.frames[0].size_px if isinstance(one, Clip) else SEEN if one == PICTURE else one.size_px for one in visuals]
    return Shown(visuals, tuple(sizes), num_prompt, calls=calls)


def call(toolbox: Toolbox, name: str, where: Shown | None = None, **arguments: Any) -> tuple[Message, ToolCall]:
    # Hermes reads our own names as they are, also where it would not write them
    raw = f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
    text = raw if toolbox.dialect.name == "hermes" else toolbox.dialect.write([Call(name, arguments)])
    reply = toolbox.act(text, where or shown(PICTURE))
    assert reply is not None
    (record,) = reply.calls
    return reply.message, record


def one_picture(toolbox: Toolbox, name: str, where: Shown | None = None, **arguments: Any) -> np.ndarray:
    message, record = call(toolbox, name, where, **arguments)
    assert record.error is None, record.error
    (picture,) = message.pictures
    return array(picture)


def error(toolbox: Toolbox, name: str, where: Shown | None = None, **arguments: Any) -> str:
    message, record = call(toolbox, name, where, **arguments)
    assert record.error is not None
    assert not message.pictures
    assert message.text.startswith("<tool_response>Error: ")
    return message.text.removeprefix("<tool_response>Error: ").removesuffix(".</tool_response>")


def box_of(*tools: str, **fields: Any) -> Toolbox:
    return build_toolbox(ToolsSpec(**{"tools": tools or ("zoom",), "coords": "abs_original", **fields}))


ALL = box_of(*TOOLS)


# --- coordinates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coords", "box"),
    [
        ("norm1", (0.25, 0.5, 0.75, 1.0)),
        ("norm1000", (250.0, 500.0, 750.0, 1000.0)),
        ("abs_resized", (28.0, 28.0, 84.0, 56.0)),
        ("abs_original", (50.0, 50.0, 150.0, 100.0)),
    ],
)
def test_the_same_region_in_every_convention(coords: boxes.Coords, box: tuple[float, float, float, float]) -> None:
    assert boxes.to_px(box, coords, PICTURE.size_px, SEEN) == (50.0, 50.0, 150.0, 100.0)
    assert boxes.from_px((50.0, 50.0, 150.0, 100.0), coords, PICTURE.size_px, SEEN) == box
    assert boxes.point_to_px(box[:2], coords, PICTURE.size_px, SEEN) == (50.0, 50.0)
    assert boxes.point_from_px((50.0, 50.0), coords, PICTURE.size_px, SEEN) == box[:2]
    message, record = call(zoom_toolbox(coords), "zoom", box=box)
    assert np.array_equal(array(message.pictures[0]), cut(50, 50, 150, 100))
    assert record.box_px_xyxy == (50, 50, 150, 100)
    assert record.coords == coords


@pytest.mark.parametrize(
    ("coords", "outside", "valid"),
    [
        ("norm1", [1.5, 0, 2, 1], "x goes from 0 to 1, y from 0 to 1"),
        ("norm1000", [1500, 0, 2000, 9], "x goes from 0 to 1000, y from 0 to 1000"),
        ("abs_resized", [150, 0, 160, 50], "x goes from 0 to 112, y from 0 to 56"),
        ("abs_original", [300, 0, 400, 50], "x goes from 0 to 200, y from 0 to 100"),
    ],
)
def test_what_lies_outside_is_told_in_the_models_own_convention(coords: str, outside: list[float], valid: str) -> None:
    told = ", ".join(f"{value:g}" for value in outside)
    assert error(box_of(coords=coords), "zoom", box=outside) == f"the box [{told}] lies outside the picture: {valid}"
    assert error(box_of("draw_point", coords=coords), "draw_point", points=[outside[:2]]).endswith(
        f"lies outside the picture: {valid}"
    )


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
    assert boxes.elsewhere((10, 10, 30, 20), (100, 50)) == (80, 40, 100, 50)
    assert boxes.elsewhere((70, 0, 100, 10), (100, 50)) == (0, 40, 30, 50)
    assert boxes.elsewhere((0, 0, 100, 50), (100, 50)) == (0, 0, 100, 50)
    with pytest.raises(ValueError, match="the size that the model saw"):
        boxes.to_px((0, 0, 1, 1), "abs_resized", (10, 10))
    with pytest.raises(ValueError, match="norm1000, abs_resized"):
        boxes.to_px((0, 0, 1, 1), "norm100", (10, 10))  # type: ignore[arg-type]


def test_numbers_are_read_where_their_meaning_is_plain() -> None:
    for box in ([1, 2, 3, 4], ["1", "2.0", " 3", 4.0], "[1, 2, 3, 4]", "1, 2, 3, 4", [[1, 2, 3, 4]], (1, 2, 3, 4)):
        assert boxes.read_box(box) == (1, 2, 3, 4), box
    lists: list[Any] = [[1, 2, 3], [1, 2, 3, True], [1, 2, 3, float("nan")], [1, 2, 3, "inf"], [1, 2, 3, 10**400]]
    for wrong in (*lists, None, "box", {}, 7):
        assert boxes.read_box(wrong) == "a box is a list of four finite numbers [x1, y1, x2, y2]", wrong
    assert "is empty: x1 < x2" in str(boxes.read_box([5, 5, 5, 9]))
    assert boxes.read_point(["3", 4]) == (3, 4)
    assert boxes.read_point([3, 4, 5]) == "a point is a list of two finite numbers [x, y]"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats() | st.integers(), min_size=4, max_size=4))
def test_a_region_is_never_empty_nor_outside(box: list[float]) -> None:
    read = boxes.read_box(box)
    region = None if isinstance(read, str) else boxes.clip(read, (200, 100))
    if region is None:
        return
    x1, y1, x2, y2 = boxes.round_out(boxes.grow(region, (200, 100), 16, 20), (200, 100))
    assert 0 <= x1 < x2 <= 200
    assert 0 <= y1 < y2 <= 100
    assert x2 - x1 >= 16
    assert y2 - y1 >= 16


# --- zoom --------------------------------------------------------------------------------------------------------------------


def test_zoom_clips_pads_and_widens() -> None:
    plain = box_of(max_aspect=4)
    assert np.array_equal(one_picture(plain, "zoom", box=[150, -20, 400, 50]), cut(150, 0, 200, 50))
    assert np.array_equal(one_picture(plain, "zoom", box=[100, 50, 102, 52]), cut(93, 43, 109, 59))
    assert np.array_equal(one_picture(plain, "zoom", box=[0, 0, 200, 3]), cut(0, 0, 200, 50))
    assert np.array_equal(one_picture(plain, "zoom", box=[50, 40, 90, 60], padding_frac=0.1), cut(46, 38, 94, 62))
    assert np.array_equal(one_picture(plain, "zoom", box=[-50_000, -50_000, 50_000, 50_000]), PIXELS)
    assert "is empty" in error(plain, "zoom", box=[5, 5, 5, 9])


def test_results_fit_their_budget() -> None:
    # four quarters of one value each: scaling 4 x 4 down to 2 x 2 by averages gives these values
    quarters = np.kron(np.array([[10, 20], [30, 40]], np.uint8), np.ones((2, 2), np.uint8))[:, :, None].repeat(3, 2)
    small = box_of(max_pixels=4, min_side_px=4)
    found = one_picture(small, "zoom", shown(Picture.of(quarters)), box=[0, 0, 4, 4])
    assert found[:, :, 0].tolist() == [[10, 20], [30, 40]]
    large = one_picture(box_of(min_result_side_px=28), "zoom", box=[0, 0, 40, 20])
    assert large.shape == (28, 56, 3)
    both = one_picture(box_of(min_result_side_px=28, max_pixels=200), "zoom", box=[0, 0, 40, 20])
    assert both.shape == (10, 20, 3)
    width, height = pixels.fitted_px((1, 50_000), None, 28)
    assert width * height <= pixels.MAX_PIXELS
    assert width == 28


def test_what_no_model_could_be_shown_is_refused() -> None:
    sliver = shown(Picture.of(np.zeros((1, 300, 3), np.uint8)))
    told = "the result would be 300 x 1 pixels, longer than 200 times its width"
    assert error(box_of(), "zoom", sliver, box=[0, 0, 300, 1]) == told
    assert np.shape(one_picture(box_of(), "zoom", sliver, box=[0, 0, 90, 1])) == (1, 90, 3)


def test_a_file_that_is_gone_is_told_without_its_name(tmp_path: Path) -> None:
    WHITE.rgb().save(tmp_path / "the_answer_is_K.png")
    picture = Picture.open(tmp_path / "the_answer_is_K.png")
    (tmp_path / "the_answer_is_K.png").unlink()
    for name, arguments in (("zoom", {"box": [0, 0, 9, 9]}), ("rotate", {"angle": 90})):
        message, record = call(ALL, name, shown(picture), **arguments)
        assert message.text == "<tool_response>Error: the picture cannot be read.</tool_response>"
        assert "the_answer_is_K.png" in str(record.error)


# --- turning and enhancing ---------------------------------------------------------------------------------------------------


def test_turned_and_mirrored_pixels() -> None:
    assert np.array_equal(one_picture(ALL, "rotate", angle=90), PIXELS.transpose(1, 0, 2)[::-1])
    assert np.array_equal(one_picture(ALL, "rotate", angle="-90"), PIXELS[::-1].transpose(1, 0, 2))
    assert np.array_equal(one_picture(ALL, "rotate", angle=540), PIXELS[::-1, ::-1])
    assert np.array_equal(one_picture(ALL, "rotate", angle=-1e-30), PIXELS)
    assert np.array_equal(one_picture(ALL, "flip", direction="Horizontal"), PIXELS[:, ::-1])
    assert np.array_equal(one_picture(ALL, "flip", direction="vertical"), PIXELS[::-1])


def test_a_turn_by_any_angle_keeps_everything() -> None:
    red_left = np.zeros((100, 100, 3), np.uint8)
    red_left[:, :50] = 255, 0, 0
    turned = one_picture(ALL, "rotate", shown(Picture.of(red_left)), angle=45)
    assert turned.shape == (142, 142, 3)  # 100 sqrt 2
    assert turned[0, 0].tolist() == [127, 127, 127]
    # counter-clockwise: what was on the left goes down, what was on the right goes up
    assert turned[71 + 30, 71 - 30].tolist() == [255, 0, 0]
    assert turned[71 - 30, 71 + 30].tolist() == [0, 0, 0]


def test_a_turn_that_would_be_too_large_is_scaled_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotate, "MAX_PIXELS", 10_000)
    turned = rotate.rotated_HWC(np.zeros((1, 2000, 3), np.uint8), 45)
    assert turned.shape[0] * turned.shape[1] <= 10_201
    monkeypatch.setattr(pixels, "MAX_PIXELS", 10_000)
    assert "too large to work on" in error(ALL, "rotate", angle=45)


def test_levels_by_hand() -> None:
    levels = Picture.of(np.array([[[0, 100, 255]]], np.uint8))
    assert one_picture(ALL, "enhance", shown(levels), contrast=2).tolist() == [[[0, 72, 255]]]  # (100 - 127.5) 2 + 127.5
    assert one_picture(ALL, "enhance", shown(levels), brightness="1.5").tolist() == [[[0, 150, 255]]]
    assert one_picture(ALL, "enhance", shown(levels), contrast=0).tolist() == [[[128, 128, 128]]]
    edge = np.full((9, 9, 3), 100, np.uint8)
    edge[:, 5:] = 150
    sharp = one_picture(ALL, "enhance", shown(Picture.of(edge)), sharpen=1)
    assert sharp[4, 4, 0] < 100
    assert sharp[4, 5, 0] > 150
    assert sharp[4, 0, 0] == 100
    assert error(ALL, "enhance").startswith("one of contrast, brightness and sharpen is needed; for example: ")


# --- drawing -----------------------------------------------------------------------------------------------------------------

RED, BLUE = drawing.PALETTE[:2]


def test_a_frame_lies_outside_of_its_box() -> None:
    # 300 px seen as they are: lines of 2 px with a rim of 1 px
    drawn = one_picture(ALL, "draw_box", shown(WHITE), box=[100, 100, 200, 150])
    assert (drawn[100:150, 100:200] == 255).all()
    for row in (98, 99, 150, 151):
        assert (drawn[row, 98:202] == RED).all()
    for column in (98, 99, 200, 201):
        assert (drawn[98:152, column] == RED).all()
    assert (drawn[97, 97:203] == 0).all()
    assert (drawn[152, 97:203] == 0).all()
    assert (drawn[96] == 255).all()
    everything = one_picture(ALL, "draw_box", shown(WHITE), boxes=[[0, 0, 300, 300]])
    assert (everything[:2] == RED).all()
    assert (everything[:, -2:] == RED).all()
    assert (everything[3:-3, 3:-3] == 255).all()


def test_boxes_in_every_form_in_which_models_write_them() -> None:
    one = {"box": [100, 100, 200, 150], "label": "cat"}
    written = '{"boxes":[{"box":[100,100,200,150],"label":"cat"}]}'
    for form in (
        {"boxes": [one]},
        {"boxes": one},
        one,
        {"boxes": [["100", 100, 200, 150.0]], "label": "cat"},
        {"boxes": [100, 100, 200, 150], "label": "cat"},
    ):
        _, record = call(ALL, "draw_box", shown(WHITE), **form)
        assert record.arguments == written
        assert record.box_px_xyxy == (100, 100, 200, 150)
    assert error(ALL, "draw_box", boxes=[{"bx": [1, 2, 3, 4]}]).startswith("the argument boxes[0].box is missing; for example: ")


def test_lines_and_points() -> None:
    drawn = one_picture(ALL, "draw_line", shown(WHITE), y=100)
    assert (drawn[100] == RED).all()
    assert (drawn[90] == 255).all()
    drawn = one_picture(ALL, "draw_line", shown(WHITE), lines={"start": [50, 60], "end": [250, 60]}, x=200)
    assert (drawn[60, 50:190] == RED).all()
    assert (drawn[60, :45] == 255).all()
    assert (drawn[:, 200] == BLUE).all()
    drawn = one_picture(ALL, "draw_point", shown(WHITE), points=[[150, 60], [300, 300]])
    assert drawn[60, 150].tolist() == drawn[299, 299].tolist() == list(RED)
    assert (drawn[60, 100:140] == 255).all()
    assert np.array_equal(
        one_picture(ALL, "draw_point", shown(WHITE), point=[9, 9]), one_picture(ALL, "draw_point", shown(WHITE), points=[9, 9])
    )


@pytest.mark.parametrize("text", ["door", "Straße é 東京", "\ud800x", "\x00\n\t", "x" * 500, "😀" * 50, "ﷺ"])
def test_labels_are_short_readable_and_inside(text: str) -> None:
    drawn = one_picture(ALL, "draw_label", shown(WHITE), point=[150, 60], text=text)
    changed = (drawn != 255).any(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert 10 <= rows[-1] - rows[0] <= 30
    assert columns[-1] - columns[0] <= 299
    assert (drawn == RED).all(2).any()
    tiny = Picture.of(np.zeros((1, 1, 3), np.uint8))
    assert one_picture(ALL, "draw_label", shown(tiny), point=[0, 0], text=text).shape == (1, 1, 3)


def test_letters_are_as_large_as_the_model_needs_them() -> None:
    large = Picture.of(np.full((1200, 1200, 3), 255, np.uint8))
    where = Shown((large,), ((300, 300),), 1)
    drawn = one_picture(ALL, "draw_label", where, point=[600, 600], text="door")
    rows = np.flatnonzero((drawn != 255).any(2).any(1))
    assert rows[-1] - rows[0] >= 4 * 14


def test_boxes_of_one_label_are_merged() -> None:
    toolbox = box_of(tools={"draw_box": {"merge_labels": True}}, dialect="vilasr", coords="norm1000")
    first = (
        ToolCall(name="draw_box", arguments='{"boxes":[{"box":[0,0,100,100],"label":"a"}]}', coords="norm1000", image=0),
        ToolCall(name="draw_box", arguments='{"boxes":[{"box":[500,500,700,700],"label":"b"}]}', coords="norm1000", image=0),
        ToolCall(name="draw_box", arguments='{"boxes":[{"box":[0,0,9,9],"label":"c"}]}', coords="norm1000", image=1),
        ToolCall(name="draw_box", arguments='{"boxes":[{"box":[0,0,9,9],"label":"d"}]}', coords="norm1000", image=0, error="e"),
    )
    boxes_k1000 = [{"box": [200, 200, 400, 400], "label": "a"}]
    drawn = one_picture(toolbox, "draw_box", shown(WHITE, calls=first), boxes=boxes_k1000)
    alone = one_picture(toolbox, "draw_box", shown(WHITE), boxes=[*boxes_k1000, {"box": [500, 500, 700, 700], "label": "b"}])
    assert np.array_equal(drawn, alone)
    plain = box_of("draw_box", coords="norm1000")
    assert np.array_equal(
        one_picture(plain, "draw_box", shown(WHITE, calls=first), boxes=boxes_k1000),
        one_picture(plain, "draw_box", shown(WHITE), boxes=boxes_k1000),
    )


# --- sources -----------------------------------------------------------------------------------------------------------------


def flat(value: int) -> Picture:
    return Picture.of(np.full((20, 40, 3), value, np.uint8))


@pytest.mark.parametrize(
    ("image", "value"),
    [
        *((None, 1), (0, 1), ("original", 1), ("original_image", 1), (3, 4), ("3", 4), (2.0, 3)),
        *(("observation 1", 3), ("observation_2", 4), ("Observation 2", 4), ("img_2", 2), ("image 3", 3)),
    ],
)
def test_every_name_of_a_picture(image: Any, value: int) -> None:
    where = shown(*(flat(level) for level in (1, 2, 3, 4)), num_prompt=2)
    arguments = {} if image is None else {"image": image}
    message, record = call(ALL, "zoom", where, box=[0, 0, 20, 20], **arguments)
    assert array(message.pictures[0])[0, 0, 0] == value
    assert record.image == value - 1
    assert record.arguments == '{"box":[0,0,20,20]}'


def test_only_what_was_shown_before_the_turn_is_a_source() -> None:
    told = {
        "observation 2": '"observation 2" was not shown before this turn: there are observations 1 to 1',
        "observation 0": '"observation 0" was not shown before this turn: there are observations 1 to 1',
        2: "image 2 was not shown before this turn: images 0 to 1 were",
        -1: "image -1 was not shown before this turn: images 0 to 1 were",
        "<|image_pad|>": 'there is no picture "??image_pad??"; write a whole number from 0 to 1',
    }
    for image, sentence in told.items():
        assert error(ALL, "zoom", shown(PICTURE, WHITE), box=[0, 0, 9, 9], image=image) == sentence
    assert error(ALL, "zoom", shown(num_prompt=0), box=[0, 0, 9, 9]) == "there is no picture to work on"
    assert error(ALL, "zoom", image=[0], box=[0, 0, 9, 9]).startswith("image: a picture is named by a whole number from 0")
    # a turn with two calls: the second cannot see what the first one made
    text = ALL.dialect.write([Call("zoom", {"box": [0, 0, 50, 50]}), Call("zoom", {"box": [0, 0, 9, 9], "image": 1})])
    reply = ALL.act(text, shown(PICTURE))
    assert reply is not None
    assert [record.error for record in reply.calls] == [None, "image 1 was not shown before this turn: only image 0 was"]
    assert len(reply.message.pictures) == 1


# --- video -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """11 s; the frame at each whole second has that second as its grey level, and sizes of its own."""

    duration_s: float = 10.0
    broken: bool = False

    def frames_at(self, times_s: Sequence[float]) -> Clip:
        if self.broken:
            raise ValueError("secret.mp4: not readable")
        seconds = [round(time_s) for time_s in times_s]
        return Clip(tuple(flat(second) for second in seconds), tuple(float(second) for second in seconds))


VIDEO = Clip((flat(0), flat(5), flat(10)), (0.0, 5.0, 10.0), Source())
KEPT = Clip((flat(0), flat(5), flat(10)), (0.0, 5.0, 10.0))


def levels(message: Message) -> list[int]:
    return [int(array(picture)[0, 0, 0]) for picture in message.pictures]


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        ({"times_s": [3, "00:07"]}, [3, 7]),
        ({"times_s": 4}, [4]),
        ({"times_s": [3, 3.2]}, [3]),
        ({"start_s": 2, "end_s": 8, "count": 4}, [2, 4, 6, 8]),
        ({"start_s": 2, "end_s": 8, "count": 1}, [5]),
        ({"start_s": 6, "end_s": 99, "count": 3}, [6, 8, 10]),
        ({"start_frame": 1, "end_frame": 4}, [1, 2, 3, 4]),
        ({"frames": [0, 2]}, [0, 10]),
    ],
)
def test_frames_that_were_asked_for(arguments: dict[str, Any], seconds: list[int]) -> None:
    message, record = call(ALL, "select_frames", shown(PICTURE, VIDEO, num_prompt=2), **arguments)
    assert levels(message) == seconds
    assert record.times_s == tuple(seconds)
    assert record.image == 1
    first = f"Frame {seconds[0]} ({seconds[0]}.0 s): " if "start_frame" in arguments else f"{seconds[0]}.0 s: "
    assert message.parts[1] == first


def test_frames_within_an_interval_and_by_number() -> None:
    toolbox = box_of(tools={"select_frames": {"exclude_ends": True, "max_frames": 3}, "frame_at": {}}, frame_rate_fps=2)
    where = shown(VIDEO)
    message, record = call(toolbox, "select_frames", where, start_frame=4, end_frame=14, count=3)  # frames 5, 9 and 13
    assert record.times_s == (2.0, 4.0, 6.0)  # round half to even, as the source finds them
    assert "Frame 8 (4.0 s): " in message.parts
    assert call(toolbox, "select_frames", where, start_s=0, end_s=8, count=3)[1].times_s == (2.0, 4.0, 6.0)
    message, record = call(toolbox, "frame_at", where, time_s="00:04")
    assert message.text == "<tool_response>The frame at 4 s is frame 8.</tool_response>"
    assert record.times_s == (4.0,)
    assert error(toolbox, "select_frames", where, times_s=[1, 2, 3, 4]) == "4 frames are too many: at most 3 in a call"
    assert error(toolbox, "frame_at", where, time_s=11) == "second 11 is not in the video, which goes from 0 to 10 seconds"
    assert error(toolbox, "select_frames", where, start_s=9, end_s=3).startswith("there is nothing from second 9 to 3")
    assert error(toolbox, "select_frames", where, start_frame=30, end_frame=40).startswith("there is nothing from frame 30")
    assert error(toolbox, "select_frames", where, start_s=3).startswith("either times_s, or start_s and end_s")
    assert error(toolbox, "select_frames", shown(PICTURE), times_s=[1]) == "image 0 is a picture, and this needs a video"


def test_without_the_whole_video_its_own_frames_are_shown() -> None:
    assert levels(call(ALL, "select_frames", shown(KEPT), start_s=0, end_s=10, count=8)[0]) == [0, 5, 10]
    assert call(ALL, "select_frames", shown(KEPT), times_s=[4])[1].times_s == (5.0,)


def test_zoom_into_a_frame() -> None:
    message, record = call(ALL, "zoom", shown(PICTURE, VIDEO, num_prompt=2), box=[0, 0, 20, 20], time_s=7)
    assert levels(message) == [7]
    assert (record.image, record.times_s, record.box_px_xyxy) == (1, (7.0,), (0, 0, 20, 20))
    assert "is a video" in error(ALL, "zoom", shown(VIDEO), box=[0, 0, 20, 20])
    assert "is a video" in error(ALL, "rotate", shown(VIDEO), angle=90)
    broken = shown(Clip(VIDEO.frames, VIDEO.times_s, Source(broken=True)))
    message, record = call(ALL, "zoom", broken, box=[0, 0, 20, 20], time_s=7)
    assert "secret" not in message.text
    assert "secret.mp4" in str(record.error)


# --- the toolbox -------------------------------------------------------------------------------------------------------------


def test_what_the_embedded_model_reads() -> None:
    text = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [250, 500, 750, 1000]}}\n</tool_call>'
    record = ToolCall(
        name="zoom", arguments='{"box":[250,500,750,1000]}', coords="norm1000", image=0, box_px_xyxy=(50, 50, 150, 100)
    )
    crop = Picture.of(cut(50, 50, 150, 100))
    assert zoom_toolbox().act(text, shown(PICTURE)) == Reply(Message.user("<tool_response>", crop, "</tool_response>"), (record,))
    grey = zoom_toolbox(grey=True).act(text, shown(PICTURE))
    assert grey is not None
    assert (array(grey.message.pictures[0]) == np.full((50, 100, 3), 127)).all()
    assert grey.calls == (record,)


def test_no_call_is_an_answer() -> None:
    assert zoom_toolbox().act("<answer>K</answer>", shown(PICTURE)) is None
    terminate = build_toolbox(ToolsSpec(dialect="openthinkimg"))
    assert terminate.act(terminate.dialect.write_answer("K"), shown(PICTURE)) is None


def test_every_error_says_what_was_wrong_and_how_to_mend_it() -> None:
    toolbox = box_of("zoom", "rotate", coords="norm1000")
    example = (
        '; for example: <tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [250, 400, 500, 600]}}\n</tool_call>'
    )
    told = {
        '{"name": "rotat"}': 'there is no tool "rotat" (did you mean rotate?)',
        '{"name": "<|im_end|>"}': 'there is no tool "??im_end??" (there are zoom, rotate)',
        '{"name": "zoom"}': "the argument box is missing",
        '{"name": "image_zoom_in_tool", "arguments": {"bbox": [0, 0, NaN, 1]}}': (
            "box: a box is a list of four finite numbers [x1, y1, x2, y2]"
        ),
        '{"name": "zoom", "arguments": {"box": [0, 0, 9, 9], "angle": 3}}': (
            "there is no argument angle; there are box, label, image"
        ),
    }
    for written, sentence in told.items():
        reply = toolbox.act(f"<tool_call>{written}</tool_call>", shown(PICTURE))
        assert reply is not None
        assert reply.message.text == f"<tool_response>Error: {sentence}{example}.</tool_response>"
        assert reply.calls[0].error == sentence
    assert error(toolbox, "rotate", angle="left").startswith("angle: a finite number is needed; for example: ")
    unclosed = toolbox.act("<tool_call>{", shown(PICTURE))
    assert unclosed is not None
    assert unclosed.calls[0].error == "the call is not closed with </tool_call>"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_example_in_an_error_is_a_call_that_works(dialect: str) -> None:
    for name, tool in TOOLS.items():
        try:
            toolbox = build_toolbox(ToolsSpec(dialect=dialect, tools=[name]))
        except ValueError:
            continue
        example = toolbox._example(tool())
        where = shown(Picture.of(np.zeros((1000, 1000, 3), np.uint8)), VIDEO, num_prompt=2)
        reply = toolbox.act(example.removeprefix("; for example: "), where)
        assert reply is not None, (dialect, name, example)
        assert [record.name for record in reply.calls] == [name]
        assert [record.error for record in reply.calls] == [None]


def test_calls_beyond_the_limit_are_refused_in_one_sentence() -> None:
    toolbox = box_of(max_calls=2)
    text = toolbox.dialect.write([Call("zoom", {"box": [0, 0, 50, 50]})] * 5)
    reply = toolbox.act(text, shown(PICTURE))
    assert reply is not None
    assert len(reply.message.pictures) == 2
    refused = "at most 2 calls are carried out in a turn; 3 more were not"
    assert [record.error for record in reply.calls] == [None, None, refused]
    assert reply.message.text.endswith(f"Error: {refused}.</tool_response>")
    start = time.process_time()
    assert toolbox.act("<tool_call>{}</tool_call>" * 50_000, shown(PICTURE)) is not None
    assert time.process_time() - start < 5


def test_the_time_of_a_turn_ends() -> None:
    toolbox = box_of(call_seconds=0.0)
    reply = toolbox.act(toolbox.dialect.write([Call("zoom", {"box": [0, 0, 50, 50]})] * 3), shown(PICTURE))
    assert reply is not None
    assert [record.error for record in reply.calls] == [
        None,
        "the time for the calls of this turn is over; 2 more were not carried out",
    ]


def test_ablations_show_anything_but_what_was_asked_for() -> None:
    box = [0, 0, 50, 40]
    assert (one_picture(box_of(ablate="grey"), "zoom", box=box) == np.full((40, 50, 3), 127)).all()
    assert (one_picture(box_of(ablate="blank"), "zoom", box=box) == np.full((40, 50, 3), 255)).all()
    assert np.array_equal(one_picture(box_of(ablate="other"), "zoom", box=box), cut(150, 60, 200, 100))
    _, record = call(box_of(ablate="other"), "zoom", box=box)
    assert record.box_px_xyxy == (0, 0, 50, 40)
    # three quarters of the picture: the furthest place overlaps the asked one, and there it is grey
    overlapping = one_picture(box_of(ablate="other"), "zoom", box=[0, 0, 150, 100])
    assert (overlapping[:, :100] == 127).all()
    assert np.array_equal(overlapping[:, 100:], cut(150, 0, 200, 100))
    assert (one_picture(box_of(ablate="other"), "zoom", box=[0, 0, 200, 100]) == 127).all()
    scaled = one_picture(box_of(ablate="other", max_pixels=500), "zoom", box=box)
    assert scaled.shape == (20, 25, 3)
    drawing_tools = box_of("draw_box", "rotate", ablate="other")
    assert np.array_equal(one_picture(drawing_tools, "draw_box", box=box), PIXELS)
    assert np.array_equal(one_picture(drawing_tools, "rotate", angle=90), PIXELS)
    grey = call(box_of("select_frames", ablate="grey"), "select_frames", shown(VIDEO), times_s=[1, 2])[0]
    assert levels(grey) == [127, 127]


def test_threads_share_one_toolbox() -> None:
    arguments: list[dict[str, Any]] = [{"box": [x, 0, x + 20, 20], "label": f"{x} é"} for x in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: one_picture(ALL, "draw_box", **one).tobytes(), arguments))
    assert together == [one_picture(ALL, "draw_box", **one).tobytes() for one in arguments]


# --- recipes -----------------------------------------------------------------------------------------------------------------


def test_coordinates_follow_the_recipe_then_the_dialect_then_the_family() -> None:
    assert build_toolbox(ToolsSpec(), "abs_resized").settings.coords == "abs_resized"
    assert build_toolbox(ToolsSpec(dialect="mini_o3"), "abs_resized").settings.coords == "norm1"
    assert build_toolbox(ToolsSpec(coords="abs_original"), "abs_resized").settings.coords == "abs_original"
    with pytest.raises(ValueError, match="mini_o3 counts coordinates as norm1; leave coords out"):
        ToolsSpec(dialect="mini_o3", coords="norm1000")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tools": ["zom"]}, "did you mean zoom"),
        ({"tools": {"draw_box": {"merge_label": True}}}, "no option 'merge_label'; did you mean merge_labels"),
        ({"tools": {"select_frames": {"max_frames": 0}}}, "max_frames"),
        ({"tools": {"zoom": {"hidden": ["box"]}}}, "no argument 'box' that may be left out"),
        ({"tools": ["zoom", "zoom"]}, "named twice"),
        ({"dialect": "hermez"}, "did you mean hermes"),
        ({"dialect": "mini_o3", "tools": ["rotate"]}, "mini_o3 cannot write the tool 'rotate'"),
        ({"ablate": "other", "tools": ["select_frames"]}, "use grey or blank"),
        ({"min_side": 3}, "Extra inputs"),
        ({"max_aspect": 500}, "less than or equal to 200"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ToolsSpec(**fields)


def test_a_recipe_survives_being_written_down() -> None:
    spec = ToolsSpec(tools=["zoom", "select_frames"], max_pixels=1000)
    assert ToolsSpec.model_validate(json.loads(spec.model_dump_json())) == spec
    assert ToolsSpec(tools="zoom") == ToolsSpec(tools={"zoom": None}) == ToolsSpec()
    assert ToolsSpec.model_json_schema()["properties"]["dialect"]["default"] == "hermes"
    assert build_toolbox(ToolsSpec(dialect="code", tools=[])).act("<code>1</code>", shown(PICTURE)) is not None


@pytest.mark.parametrize("name", TOOLS)
def test_schemas_are_whole_and_plain(name: str) -> None:
    spec = TOOLS[name]().spec
    text = json.dumps(spec.parameters)
    assert "$ref" not in text
    assert "anyOf" not in text
    assert '"title"' not in text
    assert spec.parameters["type"] == "object"
    assert set(spec.parameters.get("required", ())) <= set(spec.parameters["properties"])
    assert all("description" in value for value in spec.parameters["properties"].values())
    assert list(spec.parameters["properties"])[-1] == "image"
    without = TOOLS[name](hidden=("image",)).spec.parameters["properties"]
    assert "image" not in without
    assert spec.description.endswith(".")


@pytest.mark.parametrize(
    ("fault", "told", "recorded"),
    [
        (OSError("/secret"), "the tool failed on this picture", "OSError: /secret"),
        (MemoryError(), "the tool failed on this picture", "MemoryError: "),
        (ToolError("no", "why"), "no", "no (why)"),
    ],
)
def test_a_tool_that_fails_is_told_and_recorded(fault: Exception, told: str, recorded: str) -> None:
    class Faulty(Zoom):
        def run(self, arguments: ZoomArguments, scene: Scene) -> Done:
            raise fault

    message, record = call(Toolbox(dialect=DIALECTS["hermes"], tools=(Faulty(),)), "zoom", box=[0, 0, 9, 9])
    assert message.text == f"<tool_response>Error: {told}.</tool_response>"
    assert record.error == recorded
