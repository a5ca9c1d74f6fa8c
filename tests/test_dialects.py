"""Dialects: every form in which calls, boxes and answers are met, as literal text."""

from __future__ import annotations

import pytest

from foveate.visual_tools.boxes import Coords
from foveate.visual_tools.dialects.base import BadCall, Call, Reading, TextBox
from foveate.visual_tools.dialects.grit import GRIT
from foveate.visual_tools.dialects.registry import DIALECTS, dialect
from foveate.visual_tools.dialects.treevgr import TREEVGR


def zoom(*box: float, coords: Coords | None = None, **more: object) -> Call:
    return Call("zoom", {"box": list(box), **more}, coords)


ONE = '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, 4], "label": "sign"}}'
FORMS: list[tuple[str, str, tuple[Call, ...]]] = [
    # Hermes, DeepEyes
    ("hermes", f"<think>small</think>\n<tool_call>\n{ONE}\n</tool_call>", (zoom(1, 2, 3, 4, label="sign"),)),
    ("hermes", '<tool_call>{"name":"image_zoom_in_tool","arguments":{"bbox":[1,2,3,4]}}</tool_call>', (zoom(1, 2, 3, 4),)),
    (
        "hermes",
        '<tool_call>{"name": "image_rotate_tool", "arguments": {"angle": 90, "img_idx": 2}}</tool_call>',
        (Call("rotate", {"angle": 90, "image": 2}),),
    ),
    (
        "hermes",
        f'<tool_call>{ONE}</tool_call> and <tool_call>{{"name": "search", "arguments": {{"img_idx": 1}}}}</tool_call>',
        (zoom(1, 2, 3, 4, label="sign"), Call("search", {"img_idx": 1})),
    ),
    (
        "hermes",
        'I need more.\n```json\n{\n  "function": "zoom_in",\n  "bbox_2d": [1, 2, 3, 4],\n  "label": "sign"\n}\n```',
        (zoom(1, 2, 3, 4, label="sign"),),
    ),
    ("hermes", '<tool_call>{"function": "zoom_in", "bbox_2d": [1, 2, 3, 4]}</tool_call>', (zoom(1, 2, 3, 4),)),
    (
        "hermes",
        '<tool_call>{"type": "function", "function": {"name": "image_zoom_in_tool", '
        '"arguments": "{\\"bbox_2d\\": [1, 2, 3, 4], \\"img_idx\\": null}"}}</tool_call>',
        (zoom(1, 2, 3, 4),),
    ),
    (
        "hermes",
        '<tool_call>{"name": "image_draw_box_tool", "arguments": {"boxes": [{"bbox_2d": [1, 2, 3, 4], "label": "a"}]}}'
        "</tool_call>",
        (Call("draw_box", {"boxes": [{"box": [1, 2, 3, 4], "label": "a"}]}),),
    ),
    # DeepSport
    (
        "hermes",
        '<tool_call>{"name": "frame_extraction_tool", "arguments": {"idx_start": 12, "idx_end": 40}}</tool_call>',
        (Call("select_frames", {"start_frame": 12, "end_frame": 40}),),
    ),
    # Qwen3-VL, with and without its picture
    (
        "qwen3_vl",
        '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 500, 250, 1000], "label": "x", "img_idx": 1}}\n'
        "</tool_call>",
        (zoom(0, 500, 250, 1000, label="x", image=1, coords="norm1000"),),
    ),
    ("qwen3_vl", f"<tool_call>{ONE}</tool_call>", (zoom(1, 2, 3, 4, label="sign", coords="norm1000"),)),
    # Qwen3.5
    (
        "qwen3_coder",
        "<tool_call>\n<function=image_zoom_in_tool>\n<parameter=bbox_2d>\n[1, 2, 3, 4]\n</parameter>\n<parameter=label>\n12\n"
        "</parameter>\n<parameter=img_idx>\n1\n</parameter>\n</function>\n</tool_call>",
        (zoom(1, 2, 3, 4, label="12", image=1),),
    ),
    (
        "qwen3_coder",
        "<tool_call><function=image_zoom_in_tool><parameter=bbox_2d>[1,2,3,4]</parameter></function></tool_call>",
        (zoom(1, 2, 3, 4),),
    ),
    # Mini-o3
    (
        "mini_o3",
        '<think>look</think><grounding>{"bbox_2d": [0.1, 0.2, 0.5, 0.6], "source": "original_image"}</grounding>',
        (zoom(0.1, 0.2, 0.5, 0.6, image=0, coords="norm1"),),
    ),
    (
        "mini_o3",
        '<grounding>{"bbox_2d":[0,0,1,0.5],"source":"observation_2"}</grounding>',
        (zoom(0, 0, 1, 0.5, image="observation 2", coords="norm1"),),
    ),
    # Pixel-Reasoner: pictures from 1; from 0 to 1, or pixels
    (
        "pixel_reasoner",
        '<tool_call>{"name": "crop_image_normalized", "arguments": {"bbox_2d": [0.1, 0.2, 0.5, 1.0], "target_image": 1}}'
        "</tool_call>",
        (zoom(0.1, 0.2, 0.5, 1.0, image=0, padding_frac=0.1, coords="norm1"),),
    ),
    (
        "pixel_reasoner",
        '<tool_call>{"name": "zoom_in", "arguments": {"bbox_2d": [100, 0, 300, 200], "target_image": 2.0}}</tool_call>',
        (zoom(100, 0, 300, 200, image=1, padding_frac=0.1, coords="abs_original"),),
    ),
    (
        "pixel_reasoner",
        '<tool_call>{"name": "select_frames", "arguments": {"target_frames": [1, 4, 16]}}</tool_call>',
        (Call("select_frames", {"frames": [0, 3, 15]}, "norm1"),),
    ),
    # OpenThinkIMG
    (
        "openthinkimg",
        '{"thought": "cut", "actions": [{"name": "Crop", "arguments": {"image": "img_1", "param": "[10, 20, 30, 40]"}}]}',
        (zoom(10, 20, 30, 40, image=0, coords="abs_original"),),
    ),
    (
        "openthinkimg",
        '```json\n{"thought": "", "actions": [{"name": "ZoomInSubfigure", '
        '"arguments": {"image": "img_2", "param": [1, 2, 3, 4]}}]}```',
        (zoom(1, 2, 3, 4, image=1, coords="abs_original"),),
    ),
    (
        "openthinkimg",
        '{"thought": "", "actions": [{"name": "DrawHorizontalLineByY", "arguments": {"image": "img_3", "param": "y=28.5"}}, '
        '{"name": "DrawVerticalLineByX", "arguments": {"param": 21.5}}, '
        '{"name": "Point", "arguments": {"image": "img_1", "param": "x1=\\"10\\" y1=\\"12.5\\" x2=\\"20\\" y2=\\"25\\""}}]}',
        (
            Call("draw_line", {"y": 0.285, "image": 2}, "norm1"),
            Call("draw_line", {"x": 0.215}, "norm1"),
            Call("draw_point", {"points": [[0.1, 0.125], [0.2, 0.25]], "image": 0}, "norm1"),
        ),
    ),
    # ViLaSR
    (
        "vilasr",
        '<think>where</think> Action: Object Mapper\n```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cup"}, '
        '{"bbox_2d": [5, 6, 7, 8], "label": "jar"}]\n```',
        (Call("draw_box", {"boxes": [{"box": [1, 2, 3, 4], "label": "cup"}, {"box": [5, 6, 7, 8], "label": "jar"}]}),),
    ),
    (
        "vilasr",
        "<think>way</think> Action: Path Tracer\n```json\n"
        '[{"index": 2, "start_point_2d": [1, 2], "end_point_2d": [3, 4], "label": "way"}]\n```',
        (Call("draw_line", {"lines": [{"start": [1, 2], "end": [3, 4], "label": "way"}], "image": 1}),),
    ),
    # FrameThinker
    (
        "frame_thinker",
        "<think>12 to 40</think><action>choose frames between 12 and 40</action>",
        (Call("select_frames", {"start_frame": 12, "end_frame": 40, "count": 8}),),
    ),
    ("frame_thinker", "<think></think><action> get frame number at time 62:30 </action>", (Call("frame_at", {"time_s": 3750}),)),
    ("frame_thinker", "<action>get frame number at time 1:02:30</action>", (Call("frame_at", {"time_s": 3750}),)),
    # ARM-Thinker
    (
        "arm_thinker",
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"image": "original_image", "bbox_2d": [100, 100, 900, 900]}}'
        "</tool_call>",
        (zoom(100, 100, 900, 900, image=0, coords="norm1000"),),
    ),
    (
        "arm_thinker",
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"image": "original_image_2", "bbox_2d": [0, 0, 9, 9]}}'
        "</tool_call>",
        (zoom(0, 0, 9, 9, image=2, coords="norm1000"),),
    ),
]


@pytest.mark.parametrize(("name", "text", "calls"), FORMS)
def test_every_form_is_read(name: str, text: str, calls: tuple[Call, ...]) -> None:
    assert dialect(name).read(text) == Reading(calls)


@pytest.mark.parametrize(("name", "text", "calls"), [form for form in FORMS if form[0] not in ("qwen3_vl", "arm_thinker")])
def test_any_reads_what_the_others_read(name: str, text: str, calls: tuple[Call, ...]) -> None:
    """Two dialects are Hermes to the eye; what their numbers mean cannot be told from the text."""
    assert dialect("any").read(text) == Reading(calls)


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("openthinkimg", '{"thought": "", "actions": [{"name": "Terminate", "arguments": {"ans": "1985"}}]}', "1985"),
        ("openthinkimg", '{"actions": [{"name": "OCR"}, {"name": "Terminate", "arguments": {"ans": 3.5}}]}', "3.5"),
        ("vilasr", "<think>so</think> Action: Answer\n<answer> B </answer>", "B"),
        ("vilasr", '```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n``` Action: Answer <answer>B</answer>', "B"),
        ("frame_thinker", "<think>so</think><action>output answer: C</action>", "C"),
    ],
)
def test_dialects_that_answer_by_an_action(name: str, text: str, answer: str) -> None:
    assert dialect(name).read(text) == dialect("any").read(text) == Reading(answer=answer)


@pytest.mark.parametrize("name", DIALECTS)
def test_an_answer_holds_no_call(name: str) -> None:
    spoken = dialect(name)
    found = spoken.read(spoken.write_answer("B", "I am sure."))
    assert found == Reading(answer="B" if name in ("openthinkimg", "vilasr", "frame_thinker") else None)
    assert spoken.read("It is B.") == Reading()
    assert spoken.read("") == Reading()


def test_boxes_in_the_text() -> None:
    text = (
        'The <think>cup {"bbox_2d": [10, 20, 30, 40], "label": "a \\"red\\" cup {1}"} and {"label": "jar", "bbox_2d": [1,2,3,4]} '
        '\'bbox_2d\': [5.5, 6, 7, 8], all: {"bbox_2d": [[1, 1, 2, 2], [3, 3, 4, 4]], "label": "two"}, '
        '{"bbox_2d": [1, 2, 3]}, {"bbox_2d": [1, 2, NaN, 4]}, {"bbox_2d": "none"}</think><rethink>'
    )
    boxes = (
        TextBox((10, 20, 30, 40), 'a "red" cup {1}'),
        TextBox((1, 2, 3, 4), "jar"),
        TextBox((5.5, 6, 7, 8)),
        TextBox((1, 1, 2, 2), "two"),
        TextBox((3, 3, 4, 4), "two"),
    )
    assert GRIT.read(text) == dialect("any").read(text) == Reading(boxes=boxes)
    assert GRIT.read(" ".join(map(GRIT.write_box, boxes))).boxes == boxes

    text = "a cup <box>[10,20,30,40]</box>, a jar <box> [0.5, 0.25, 0.75, 1] </box> <box>[1,2]</box><box>1</box><box>[1,2,3,4]"
    found = (TextBox((10, 20, 30, 40)), TextBox((0.5, 0.25, 0.75, 1)))
    assert TREEVGR.read(text) == dialect("any").read(text) == Reading(boxes=found)
    assert TREEVGR.write_box(found[0]) == "<box>[10,20,30,40]</box>"
    assert TREEVGR.read("".join(map(TREEVGR.write_box, found))).boxes == found


BAD: list[tuple[str, str, str]] = [
    ("hermes", "<tool_call>{", "not closed with </tool_call>"),
    ("hermes", f"<tool_call>{ONE}", "not closed with </tool_call>"),
    ("hermes", "<tool_call>{'name': 1}</tool_call>", "not valid JSON"),
    ("hermes", "<tool_call>[1]</tool_call>", '"name" and "arguments"'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '"arguments" must be'),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{"}</tool_call>', '"arguments" is not valid JSON'),
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"x": {"[" * 40}{"]" * 40}}}}}</tool_call>', "nested more than 32"),
    ("hermes", f"<tool_call>{'[' * 100_000}</tool_call>", "not valid JSON"),
    ("hermes", f"<tool_call>{'9' * 10_000}</tool_call>", "not valid JSON"),
    ("hermes", '```json\n{"function": "zoom_in", "bbox_2d": [1, 2}\n```', "not valid JSON"),
    ("qwen3_coder", f"<tool_call>{ONE}</tool_call>", "<function=NAME>"),
    ("qwen3_coder", "<tool_call><function=f><parameter=x>1</parameter></tool_call>", "not closed with </function>"),
    ("qwen3_coder", "<tool_call><function=f><parameter=x>1</function></tool_call>", "not closed with </parameter>"),
    ("mini_o3", '<grounding>{"bbox_2d": [0, 0, 1, 1]', "not closed with </grounding>"),
    ("mini_o3", "<grounding>[0, 0, 1, 1]</grounding>", '"bbox_2d" and "source"'),
    ("openthinkimg", '{"thought": "", "actions": [', "the action is not valid JSON"),
    ("openthinkimg", '{"thought": "", "actions": {}}', 'a list of "actions"'),
    ("openthinkimg", '{"actions": [3]}', '"name" and "arguments"'),
    ("openthinkimg", '{"actions": [{"name": "OCR", "arguments": {"image": "img_1"}}]}', "OCR is not available here"),
    ("openthinkimg", '{"actions": [{"name": "GroundingDINO", "arguments": {"param": "dog"}}]}', "not available here"),
    ("openthinkimg", '{"actions": [{"name": "Point", "arguments": {"image": "img_1", "param": "A dog."}}]}', "x=... y=..."),
    ("openthinkimg", '{"actions": [{"name": "ZoomInSubfigure", "arguments": {"param": "Toy"}}]}', "[x1, y1, x2, y2]"),
    ("openthinkimg", '{"actions": [{"name": "DrawVerticalLineByX", "arguments": {"param": "y=3"}}]}', '"x=..."'),
    ("openthinkimg", '{"actions": [{"name": "Terminate", "arguments": {}}]}', '"ans"'),
    ("vilasr", "<think>where</think> Action: Object Mapper", "must be followed"),
    ("vilasr", '```json\n[{"label": "cup"}]\n```', "each entry"),
    ("vilasr", "```json\n[]\n```", "the list is empty"),
    ("vilasr", "```json\n[", "not closed with ```"),
    ("frame_thinker", "<action>choose frames between a and b</action>", '"output answer: X"'),
    ("frame_thinker", "<action>choose frames between 1 and 2", "not closed with </action>"),
    ("code", "<code>```python\nimport os\n```</code>", "code is not run here"),
    ("code", "<code>\nprint(1)", "code is not run here"),
]


@pytest.mark.parametrize(("name", "text", "reason"), BAD)
def test_what_is_no_call_says_why(name: str, text: str, reason: str) -> None:
    (bad,) = dialect(name).read(text).calls
    assert isinstance(bad, BadCall)
    assert reason in bad.reason
    assert not bad.reason.endswith(".")


def test_a_bad_call_does_not_hide_a_good_one() -> None:
    bad, good = dialect("hermes").read(f"<tool_call>{{</tool_call><tool_call>{ONE}</tool_call>").calls
    assert isinstance(bad, BadCall)
    assert good == zoom(1, 2, 3, 4, label="sign")
    assert dialect("any").read(f"<code>1</code> <tool_call>{ONE}</tool_call>").calls == (good,)
    (bad,) = dialect("any").read("<code>1</code>").calls
    assert bad == BadCall(
        "code is not run here; look at the picture, reason in words and give the final answer in <answer> and </answer>", "code"
    )


def test_names() -> None:
    assert all(name == spoken.name for name, spoken in DIALECTS.items())
    with pytest.raises(ValueError, match="no dialect named 'hermess'; did you mean hermes"):
        dialect("hermess")
    with pytest.raises(ValueError, match="there are any, arm_thinker"):
        dialect("zzz")
