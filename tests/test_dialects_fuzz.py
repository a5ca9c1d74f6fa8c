"""No text makes a dialect raise, and reading takes linear time: 100,000 strings, and texts of 1 MB that are made to hurt."""

from __future__ import annotations

import gc
import json
import math
import random
import time
from collections.abc import Callable

import pytest
from helpers import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.visual_tools.dialects.base import BadCall, Call, Dialect, Result
from foveate.visual_tools.dialects.registry import DIALECTS, dialect
from foveate.vlm.records import Shown

STRINGS = 100_000
SHOWN = Shown((picture(1),), ((56, 56),), 1)
SEEDS = (
    '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, 4], "label": "a", "img_idx": 0}}</tool_call>',
    '<tool_call>{"function": "zoom_in", "bbox_2d": [1, 2, 3, 4]}</tool_call>',
    '```json\n{"function": "zoom_in", "bbox_2d": [1, 2, 3, 4]}\n```',
    '<tool_call>{"function": {"name": "select_frames", "arguments": "{\\"times_s\\": [1, 2]}"}}</tool_call>',
    '<tool_call>{"name": "image_draw_box_tool", "arguments": {"boxes": [{"bbox_2d": [1, 2, 3, 4]}]}}</tool_call>',
    "<tool_call>\n<function=f>\n<parameter=bbox_2d>\n[1, 2]\n</parameter>\n<parameter=label>x</parameter></function></tool_call>",
    '<think>a</think><grounding>{"bbox_2d": [0.1, 0.2, 0.5, 0.6], "source": "observation_1"}</grounding>',
    '<tool_call>{"name": "crop_image_normalized", "arguments": {"bbox_2d": [0.1, 2, 0.5, 1], "target_image": 1}}</tool_call>',
    '<tool_call>{"name": "select_frames", "arguments": {"target_frames": [1, 4, 16]}}</tool_call>',
    '{"thought": "a", "actions": [{"name": "Crop", "arguments": {"image": "img_1", "param": "[1, 2, 3, 4]"}}]}',
    '{"thought": "a", "actions": [{"name": "Point", "arguments": {"image": "img_1", "param": "x=\\"1\\" y=\\"2\\""}}]}',
    '{"thought": "a", "actions": [{"name": "DrawVerticalLineByX", "arguments": {"param": "x=2.5"}}, {"name": "OCR"}]}',
    '{"thought": "a", "actions": [{"name": "Terminate", "arguments": {"ans": "1985"}}]}',
    '<think>a</think> Action: Object Mapper\n```json\n[{"index": 1, "bbox_2d": [1, 2, 3, 4], "label": "cup"}]\n```',
    '<think>a</think> Action: Path Tracer\n```json\n[{"start_point_2d": [1, 2], "end_point_2d": [3, 4], "label": "w"}]\n```',
    "<think>a</think> Action: Answer\n<answer>B</answer>",
    "<think>a</think><action>choose frames between 12 and 40</action>",
    "<think>a</think><action>get frame number at time 02:30</action><action>output answer: A</action>",
    '<think>{"bbox_2d": [1, 2, 3, 4], "label": "cup"} and "bbox_2d": [[1, 2, 3, 4]]</think><rethink></rethink>',
    "<think><box>[1,2,3,4]</box></think>",
    "<code>```python\nprint(1)\n```</code>",
)
PIECES = (
    "<tool_call>", "</tool_call>", "<function=", "<parameter=a>", "</parameter>", "</function>", "<grounding>", "</grounding>",
    "<action>", "</action>", "<box>", "</box>", "<code>", "</code>", "```json", "```", "<think>", "</think>", "Action: Answer",
    "<answer>", "</answer>", '"actions"', '"bbox_2d"', '"name"', '"function"', '"arguments"', '"param"', '"image"', '"index"',
    "NaN", "Infinity", "-Infinity", "1e999", "-0.0", "1" * 400, "9" * 5000, "null", "true", "{}", "[]", '""', "{", "}", "[", "]",
    "[" * 40, "{" * 40, '{"a":' * 40, "[" * 2000, ",", ":", '"', "\\", "'", "\n", "\t", " " * 50, "\x00", "\x1f",
    "\ud800", "\udfff", "\\ud800", "\\u0000", "\\udc00\\ud800", "é", "日本", "🙂", "\u202e", "\ufeff", "٣", "²",
    "observation_", "img_", "original_image", "x=", "y=1", "between 99999999999 and 1", "99:99", "0" * 30,
)  # fmt: skip


def mutated(rng: random.Random) -> str:
    """A call with things put in, cut out, cut off, said twice and mixed with another one."""
    text = rng.choice(SEEDS)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.randrange(12))
        match rng.randrange(6):
            case 0:
                text = text[:at] + rng.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + rng.choice(PIECES) + text[to:]
            case 2:
                text = text[:at] + text[to:]
            case 3:
                text = text[:at]
            case 4:
                text = text[:at] + text[at:to] * 3 + text[to:]
            case _:
                text = text[:at] + rng.choice(SEEDS) + text[at:]
    return text


def read(spoken: Dialect, text: str) -> bool:
    """What must hold of any text: nothing is raised, and what comes out can be told, stored and tokenized. True: it has calls."""
    found = spoken.read(text)
    results = []
    for call in found.calls:
        if isinstance(call, Call):
            json.dumps([call.name, dict(call.arguments)], ensure_ascii=False).encode("utf-8")
        else:
            assert isinstance(call, BadCall)
            assert 10 < len(call.reason) < 300
            results.append(Result(call, (call.reason,), error=True))
    if results:
        spoken.observation(results, SHOWN).text.encode("utf-8")
    (found.answer or "").encode("utf-8")
    assert found.answer is None or not found.calls
    for box in found.boxes:
        assert len(box.box) == 4
        assert all(abs(value) <= 1e9 for value in box.box)
        box.label.encode("utf-8")
    return bool(found.calls)


def test_a_hundred_thousand_texts_raise_nothing() -> None:
    """Each text is read by one dialect in turn, and by the one that reads them all."""
    rng, names = random.Random(0), sorted(DIALECTS)
    lenient, called = dialect("any"), 0
    for number in range(STRINGS):
        text = mutated(rng)
        read(dialect(names[number % len(names)]), text)
        called += read(lenient, text)
    assert STRINGS // 3 < called < STRINGS  # most of them hold calls, and some nothing


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_whatever_stands_in_every_place(name: str) -> None:
    """Each piece put into each call at every place, once."""
    for seed in SEEDS[:: 1 if name == "any" else 5]:
        for piece in PIECES:
            for at in range(0, len(seed) + 1, 7):
                read(dialect(name), seed[:at] + piece + seed[at:])


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=12).map("".join))
def test_texts_from_nowhere(text: str) -> None:
    for spoken in DIALECTS.values():
        read(spoken, text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, -(10**400)]) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
KEYS = (
    "bbox_2d", "bbox", "img_idx", "target_image", "target_frames", "source", "image", "param", "ans", "index", "start_point_2d",
    "label",
)  # fmt: skip
ARGUMENTS = st.dictionaries(st.sampled_from([*KEYS, "end_point_2d", "boxes"]), JSON, max_size=4)
NAMES = ("image_zoom_in_tool", "crop_image_normalized", "select_frames", "Crop", "Point", "DrawVerticalLineByX", "Terminate")
FORMS = {
    "hermes": '<tool_call>{{"name": {name}, "arguments": {arguments}}}</tool_call>',
    "pixel_reasoner": '<tool_call>{{"name": {name}, "arguments": {arguments}}}</tool_call>',
    "qwen3_coder": "<tool_call><function=f><parameter=bbox_2d>{arguments}</parameter></function></tool_call>",
    "mini_o3": "<grounding>{arguments}</grounding>",
    "openthinkimg": '{{"actions": [{{"name": {name}, "arguments": {arguments}}}]}}',
    "vilasr": "Action: Object Mapper\n```json\n[{arguments}]\n```",
    "treevgr": "<box>{arguments}</box>",
    "grit": '{{"bbox_2d": {arguments}, "label": {name}}}',
}


def read_arguments(name: object, arguments: object) -> None:
    for speaker, form in FORMS.items():
        text = form.format(name=json.dumps(name), arguments=json.dumps(arguments))
        read(dialect(speaker), text)
        read(dialect("any"), text)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NAMES) | JSON, ARGUMENTS | JSON)
def test_arguments_of_any_kind(name: object, arguments: object) -> None:
    read_arguments(name, arguments)


def test_every_argument_may_be_anything() -> None:
    odd = [
        10**400,
        -(10**400),
        1e308,
        math.nan,
        math.inf,
        -math.inf,
        True,
        None,
        -1,
        0.5,
        "",
        "x",
        "\ud800",
        "9" * 400,
        [],
        {},
        [[]],
    ]
    odd += [[value] * 4 for value in odd]
    for name in NAMES:
        for key in KEYS:
            for value in odd:
                read_arguments(name, {"bbox_2d": [1, 2, 3, 4], key: value})


def repeated(piece: str, before: str = "", after: str = "") -> Callable[[int], str]:
    return lambda size: before + piece * (size // len(piece)) + after


ACTIONS = '{"actions": [{"name": "Crop", "arguments": {"param": '
REPEATED = (
    "<tool_call>", "<tool_call></tool_call>", "<tool_call>{", "{", "[", "```json", "```json {", "<box>", "<box>[",
    "<box>[1,2,3,4]</box>", "<think>", "<grounding>", "<action>", "<action> </action>", "<code>", '{"bbox_2d": [',
    '{"bbox_2d": ["', '"bbox_2d": [[', '{"label": "', " ", "\n", "\\", '"', "Action: Answer", "Action: Answer <answer>",
    "<function=", "<parameter=", '{"actions"', "\ud800", "é", "x=1",
)  # fmt: skip
HARD: dict[str, Callable[[int], str]] = {piece: repeated(piece) for piece in REPEATED} | {
    "open call": repeated("a", "<tool_call>"),
    "open string": repeated("\\u0041", '<tool_call>{"name": "', '"}</tool_call>'),
    "deep call": repeated('{"a":', "<tool_call>", "</tool_call>"),
    "digits": repeated("9", "<tool_call>", "</tool_call>"),
    "decimals": repeated("9", '<tool_call>{"name": "f", "arguments": {"x": 1.', "}}</tool_call>"),
    "exponent": repeated("9", '<tool_call>{"name": "f", "arguments": {"x": 1e', "}}</tool_call>"),
    "numbers": repeated("1, ", '<tool_call>{"name": "f", "arguments": {"x": [', "1]}}</tool_call>"),
    "pictures": repeated('{"bbox_2d": [1], "index": "a"}, ', "Action: Object Mapper ```json [", '{"bbox_2d": 1}] ```'),
    "parameters": repeated("<parameter=a>1</parameter>", "<tool_call><function=f>", "</function></tool_call>"),
    "open parameters": repeated("<parameter=a>", "<tool_call><function=f>", "</function></tool_call>"),
    "actions": repeated('{"name": "OCR"}, ', '{"actions": [', "{}]}"),
    "box param": repeated("1,", f'{ACTIONS}"[', '1]"}}]}'),
    "bracket param": repeated("[", f'{ACTIONS}"', '"}}]}'),
    "point param": repeated("x=1 ", '{"actions": [{"name": "Point", "arguments": {"param": "', '"}}]}'),
    "spaced param": repeated("x   =", '{"actions": [{"name": "Point", "arguments": {"param": "', '"}}]}'),
    "picture name": repeated("img_", f'{ACTIONS}"[1,2,3,4]", "image": "', '"}}]}'),
    "spaced frames": repeated(" ", "<action>choose frames between", "1 and 2</action>"),
    "spaced box": repeated(" ", "bbox_2d: [", "1]"),
    "spaces after a box": repeated(" ", "bbox_2d: [[1, 2, 3, 4]"),
    "list of boxes": repeated("[1, 2, 3, 4], ", '"bbox_2d": [', "]"),
    "far object": repeated('{"bbox_2d": [1, 2, 3, 4], "a": "'),
}


READERS = sorted(DIALECTS.keys() - {"qwen3_vl", "arm_thinker"})
"""Dialects with a way of reading of their own; those two are Hermes with other words."""


@pytest.mark.parametrize("hard", sorted(HARD))
def test_reading_takes_linear_time(hard: str) -> None:
    """Four times the text, four times the time: 16 would be quadratic. What takes next to no time cannot be compared."""
    quarter, whole = HARD[hard](1 << 18), HARD[hard](1 << 20)
    for name in READERS:
        took = _seconds(name, whole)
        assert took < 3, f"{name}: 1 MB takes {took:.1f} s"
        if took > 0.1:
            short = _seconds(name, quarter)
            if took > 8 * short:  # once more: other processes share the machine
                took, short = _seconds(name, whole), max(short, _seconds(name, quarter))
            assert took < 8 * short, f"{name}: {took:.3f} s for 1 MB, {short:.3f} s for a quarter of it"


def _seconds(name: str, text: str) -> float:
    gc.disable()  # what it takes depends on all else that lives in the process
    start = time.process_time()
    dialect(name).read(text)
    took = time.process_time() - start
    gc.enable()
    return took
