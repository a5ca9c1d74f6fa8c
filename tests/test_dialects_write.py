"""Dialects: everything that is written is read again; system prompts, and what the world says."""

from __future__ import annotations

import hashlib
import json

import pytest
from helpers import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.datasets.scene_questions import zoom_call
from foveate.visual_tools.boxes import Coords
from foveate.visual_tools.dialects import hermes
from foveate.visual_tools.dialects.base import BadCall, Call, Reading, Result, ToolSpec
from foveate.visual_tools.dialects.registry import DIALECTS, dialect
from foveate.vlm.records import Shown

SPECS = {
    name: ToolSpec(name, f"About {name}.", {"type": "object", "properties": properties, "required": list(properties)[:1]})
    for name, properties in {
        "zoom": {"box": {"type": "array", "description": "The region."}, "image": {"type": "integer"}},
        "draw_box": {"boxes": {"type": "array", "items": {"properties": {"box": {"type": "array"}}, "required": ["box"]}}},
        "draw_line": {"lines": {"type": "array"}},
        "draw_point": {"points": {"type": "array"}},
        "select_frames": {"frames": {"type": "array", "description": "Which, counted from 0."}},
        "frame_at": {"time_s": {"type": "number"}},
    }.items()
}


def zoom(*box: float, coords: Coords | None = None, **more: object) -> Call:
    return Call("zoom", {"box": list(box), **more}, coords)


FRACTIONS = st.integers(0, 1000).map(lambda value: value / 1000)
WHOLE = st.integers(0, 5000)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
IMAGE = st.integers(0, 20)


def boxes_of(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.lists(values, min_size=4, max_size=4)


def calls_of(
    tool: str, needed: dict[str, st.SearchStrategy[object]], **optional: st.SearchStrategy[object]
) -> st.SearchStrategy[Call]:
    return st.fixed_dictionaries(needed, optional=optional).map(lambda arguments: Call(tool, arguments))


NUMBERS = FRACTIONS | WHOLE
POINT = st.lists(NUMBERS, min_size=2, max_size=2)
BOXES = st.lists(st.fixed_dictionaries({"box": boxes_of(NUMBERS)}, optional={"label": TEXT}), min_size=1, max_size=3)
LINES = st.lists(st.fixed_dictionaries({"start": POINT, "end": POINT}, optional={"label": TEXT}), min_size=1, max_size=3)
EVERY_TOOL = st.one_of(
    calls_of("zoom", {"box": boxes_of(NUMBERS)}, label=TEXT, image=IMAGE, time_s=NUMBERS),
    calls_of("rotate", {"angle": NUMBERS}, image=IMAGE),
    calls_of("flip", {"direction": st.sampled_from(["horizontal", "vertical"])}, image=IMAGE),
    calls_of("draw_box", {"boxes": BOXES}, image=IMAGE),
    calls_of("draw_line", {"lines": LINES}, image=IMAGE),
    calls_of("draw_line", {"y": NUMBERS}, image=IMAGE),
    calls_of("draw_point", {"points": st.lists(POINT, min_size=1, max_size=3)}, label=TEXT, image=IMAGE),
    calls_of("draw_label", {"point": POINT, "text": TEXT}, image=IMAGE),
    calls_of("enhance", {}, contrast=NUMBERS, sharpen=NUMBERS, brightness=NUMBERS, image=IMAGE),
    calls_of("select_frames", {"times_s": st.lists(NUMBERS, max_size=4)}, image=IMAGE),
    calls_of("select_frames", {"start_s": NUMBERS, "end_s": NUMBERS}, count=WHOLE),
    calls_of("frame_at", {"time_s": NUMBERS}),
)


def in_coords(calls: st.SearchStrategy[Call], coords: Coords) -> st.SearchStrategy[Call]:
    return calls.map(lambda call: Call(call.name, call.arguments, coords))


NAMED = st.just(0) | st.integers(1, 9).map(lambda number: f"observation {number}")
PADDED = {"padding_frac": st.just(0.1)}
WRITABLE: dict[str, st.SearchStrategy[Call]] = {
    "hermes": EVERY_TOOL,
    "any": EVERY_TOOL,
    "qwen3_coder": EVERY_TOOL,
    "qwen3_vl": in_coords(EVERY_TOOL, "norm1000"),
    "arm_thinker": in_coords(EVERY_TOOL, "norm1000"),
    "mini_o3": in_coords(calls_of("zoom", {"box": boxes_of(FRACTIONS), "image": NAMED}, label=TEXT), "norm1"),
    "pixel_reasoner": st.one_of(
        in_coords(calls_of("zoom", {"box": boxes_of(FRACTIONS), **PADDED}, label=TEXT, image=IMAGE), "norm1"),
        in_coords(calls_of("zoom", {"box": boxes_of(st.integers(2, 5000)), **PADDED}, image=IMAGE), "abs_original"),
        in_coords(calls_of("select_frames", {"frames": st.lists(WHOLE, max_size=4)}), "norm1"),
    ),
    "openthinkimg": st.one_of(
        in_coords(calls_of("zoom", {"box": boxes_of(WHOLE), "image": IMAGE}), "abs_original"),
        in_coords(
            st.one_of(
                calls_of("draw_line", {"y": FRACTIONS, "image": IMAGE}),
                calls_of("draw_line", {"x": FRACTIONS, "image": IMAGE}),
                calls_of(
                    "draw_point", {"points": st.lists(st.lists(FRACTIONS, min_size=2, max_size=2), min_size=1), "image": IMAGE}
                ),
            ),
            "norm1",
        ),
    ),
    "vilasr": calls_of("draw_box", {"boxes": BOXES}, image=IMAGE) | calls_of("draw_line", {"lines": LINES}, image=IMAGE),
    "frame_thinker": st.one_of(
        calls_of("select_frames", {"start_frame": WHOLE, "end_frame": WHOLE, "count": st.just(8)}),
        calls_of("frame_at", {"time_s": st.integers(0, 59_999)}),
    ),
}


@pytest.mark.parametrize("name", WRITABLE)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_written_is_read_again(name: str, data: st.DataObject) -> None:
    spoken = dialect(name)
    calls = data.draw(st.lists(WRITABLE[name], min_size=1, max_size=1 if name == "frame_thinker" else 3))
    thought = data.draw(st.sampled_from(["", "I look at the sign."]))
    text = spoken.write(calls, thought)
    assert spoken.read(text) == Reading(tuple(calls))
    assert thought in text


def test_labels_that_look_like_tags() -> None:
    call = zoom(1, 2, 3, 4, label="</tool_call> \\ </parameter>")
    assert dialect("hermes").read(dialect("hermes").write([call])).calls == (call,)
    with pytest.raises(ValueError, match="closing tag"):
        dialect("qwen3_coder").write([call])


def test_hermes_writes_what_it_always_wrote() -> None:
    assert dialect("hermes").write([zoom(300, 400, 500, 600)]) == zoom_call((300, 400, 500, 600))
    assert dialect("hermes").write([], "So.") == "<think>So.</think>\n"
    offer = hermes.system_prompt(hermes.ZOOM_SCHEMA)
    assert hashlib.sha256(offer.encode()).hexdigest() == "81fc9b1d2940f0a4aa87f1c891cd496d269ab385f41e92654dadfd72eaeee030"


@pytest.mark.parametrize(
    ("name", "call", "why"),
    [
        ("hermes", Call("paint"), "hermes cannot write the tool 'paint': it has draw_box, draw_label"),
        ("hermes", zoom(0, 0, 1, 1, coords="norm1"), "coordinates are those of the model's family"),
        ("qwen3_vl", zoom(0, 0, 1, 1, coords="norm1"), "'norm1000', the call has 'norm1'"),
        ("hermes", zoom(0, 0, 1, 1, image="observation 1"), "no name for the picture 'observation 1'"),
        ("mini_o3", Call("rotate", {"angle": 90}), "mini_o3 cannot write the tool 'rotate': it has zoom"),
        ("mini_o3", zoom(0, 0, 1, 1, image=3), "no name for the picture 3"),
        ("pixel_reasoner", zoom(0, 0, 9, 9), "if and only if it is in pixels"),
        ("pixel_reasoner", zoom(0, 0, 1, 1, padding_frac=0.2), "always 0.1"),
        ("openthinkimg", Call("draw_line", {"y": 0.5}), "coords='norm1'"),
        ("openthinkimg", Call("draw_line", {"lines": []}, "norm1"), "one y or one x"),
        ("openthinkimg", zoom(0, 0, 1, 1, label="a"), "no argument label"),
        ("openthinkimg", Call("flip", {}), "zoom, draw_line and draw_point"),
        ("vilasr", Call("draw_line", {"y": 5}), "draw_line with lines"),
        ("vilasr", Call("zoom", {}), "vilasr cannot write the tool 'zoom'"),
        ("frame_thinker", Call("select_frames", {"times_s": [1]}), "start_frame and end_frame"),
        ("frame_thinker", Call("select_frames", {"start_frame": 1, "end_frame": 9, "count": 4}), "always 8"),
        ("frame_thinker", Call("frame_at", {"time_s": 1.5}), "whole seconds"),
        ("grit", zoom(0, 0, 1, 1), "grit cannot write the tool 'zoom': it has boxes in the text"),
        ("treevgr", zoom(0, 0, 1, 1), "treevgr cannot write the tool 'zoom'"),
        ("code", zoom(0, 0, 1, 1), "none is run"),
    ],
)
def test_what_a_dialect_cannot_say_is_an_error(name: str, call: Call, why: str) -> None:
    with pytest.raises(ValueError) as error:
        dialect(name).write([call])
    assert why in str(error.value)


# --- system prompts and observations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tools", "said"),
    [
        ("hermes", ["zoom", "draw_box"], ["image_zoom_in_tool", "image_draw_box_tool", "bbox_2d", "<tool_call>"]),
        ("qwen3_vl", ["zoom"], ["image_zoom_in_tool", "counted from 0", "from 0 (left, top) to 1000"]),
        ("qwen3_coder", ["zoom"], ["image_zoom_in_tool", "<function=name>", "</answer>"]),
        ("arm_thinker", ["zoom"], ["original_image", "to 1000"]),
        ("mini_o3", ["zoom"], ["<grounding>", "original_image", "to 1 (right"]),
        ("pixel_reasoner", ["select_frames"], ['"target_frames"', "counted from 1."]),
        ("pixel_reasoner", ["zoom"], ["crop_image_normalized", "target_image", "counted from 1", "\\boxed{}", "to 1 (right"]),
        ("openthinkimg", ["zoom", "draw_line", "draw_point"], ["Crop", "DrawVerticalLineByX", "Point", "Terminate", "percent"]),
        ("vilasr", ["draw_box", "draw_line"], ["Object Mapper", "Path Tracer", "start_point_2d", "Action: Answer"]),
        ("frame_thinker", ["select_frames", "frame_at"], ["choose frames between", "see 8 frames", "MM:SS", "output answer"]),
        ("grit", [], ["bbox_2d", "<rethink>"]),
        ("treevgr", [], ["<box>[x1,y1,x2,y2]</box>"]),
        ("code", [], ["<answer>"]),
        ("any", ["zoom"], ["image_zoom_in_tool"]),
    ],
)
def test_system_prompts_speak_the_dialect(name: str, tools: list[str], said: list[str]) -> None:
    prompt = dialect(name).system_prompt([SPECS[tool] for tool in tools], "abs_resized")
    for words in said:
        assert words in prompt
    assert ("pixels of the picture as it is shown" in prompt) == (
        dialect(name).coords is None and name not in ("frame_thinker", "code")
    )
    if name not in ("hermes", "any", "qwen3_vl", "qwen3_coder", "arm_thinker"):
        with pytest.raises(ValueError, match=f"the dialect {name} cannot write the tool 'enhance'"):
            dialect(name).system_prompt([ToolSpec("enhance", "", {})], "norm1")


def test_schemas_have_the_names_of_the_dialect() -> None:
    prompt = dialect("hermes").system_prompt([SPECS["zoom"], SPECS["draw_box"]], "norm1000")
    zooming, boxing = (json.loads(line) for line in prompt.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines())
    assert zooming == {
        "type": "function",
        "function": {
            "name": "image_zoom_in_tool",
            "description": "About zoom.",
            "parameters": {
                "type": "object",
                "properties": {
                    "bbox_2d": {"type": "array", "description": "The region."},
                    "img_idx": {"type": "integer", "description": "Which picture, counted from 0; the first when left out."},
                },
                "required": ["bbox_2d"],
            },
        },
    }
    assert boxing["function"]["parameters"]["properties"]["boxes"]["items"] == {
        "properties": {"bbox_2d": {"type": "array"}},
        "required": ["bbox_2d"],
    }


SHOWN = Shown((picture(1), picture(2)), ((56, 56), (56, 56)), 1, turn=1)
CUT = picture(3)
GOOD = Result(zoom(1, 2, 3, 4), (CUT,))
WRONG = Result(BadCall("the call is not closed"), ("the call is not closed",), error=True)


def test_the_reply_of_hermes_is_what_it_always_was() -> None:
    reply = dialect("hermes").observation([GOOD], SHOWN)
    assert reply.role == "user"
    assert reply.parts == ("<tool_response>", CUT, "</tool_response>")
    both = ("<tool_response>", CUT, "</tool_response>", "<tool_response>", "Error: the call is not closed.", "</tool_response>")
    assert dialect("hermes").observation([GOOD, WRONG], SHOWN).parts == both
    lines = ("<tool_response>\n", CUT, "\n</tool_response>", "\n<tool_response>\n", CUT, "\n</tool_response>")
    assert dialect("qwen3_vl").observation([GOOD, GOOD], SHOWN).parts == lines


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mini_o3", "Action 1 gave this picture (Observation 2):\n"),
        ("openthinkimg", "OBSERVATION:\nCrop model outputs: img_3\n"),
        ("vilasr", "Check what was drawn"),
        ("pixel_reasoner", "<tool_response>"),
        ("frame_thinker", "\n"),
    ],
)
def test_observations_show_pictures_and_errors(name: str, said: str) -> None:
    reply = dialect(name).observation([GOOD, WRONG], SHOWN)
    assert reply.pictures == (CUT,)
    assert said in reply.text
    assert "Error: the call is not closed." in reply.text


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_can_tell_an_error(name: str) -> None:
    assert "Error: the call is not closed." in dialect(name).observation([WRONG], SHOWN).text
