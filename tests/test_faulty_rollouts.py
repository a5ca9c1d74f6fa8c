"""Thousands of rollouts by a model that calls tools every wrong way: none raises, each ends by its name, nothing piles up."""

from __future__ import annotations

import gc
import random
import resource
from collections import Counter
from collections.abc import Sequence
from typing import Any

from helpers import picture

from foveate.visual_tools.dialects.base import Call
from foveate.visual_tools.dialects.registry import DIALECTS
from foveate.visual_tools.spec import ToolsSpec, build_toolbox
from foveate.visual_tools.toolbox import Toolbox
from foveate.vlm.generate import Completion, Sampling
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Rollout, Sample, StopReason, View
from foveate.vlm.rollout import Limits, Rules, rollout
from foveate.vlm.segments import Segment

_TOOLS = {
    "hermes": ["zoom", "rotate", "flip", "draw_box", "draw_line", "draw_point", "draw_label", "enhance", "select_frames"],
    "qwen3_coder": ["zoom", "draw_box"],
    "mini_o3": ["zoom"],
    "pixel_reasoner": ["zoom", "select_frames"],
    "openthinkimg": ["zoom", "draw_line", "draw_point"],
    "vilasr": ["draw_box", "draw_line"],
    "frame_thinker": ["select_frames", "frame_at"],
    "code": [],
}
_PIECES = (
    '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [%s]}}',
    '{"name": "image_rotate_tool", "arguments": {"angle": %s}}',
    '{"bbox_2d": [%s], "source": "observation_%s"}',
    '{"name": "crop_image_normalized", "arguments": {"bbox_2d": [%s], "target_image": %s}}',
    '{"thought": "", "actions": [{"name": "Crop", "arguments": {"image": "img_%s", "param": "[%s]"}}]}',
    "<function=image_zoom_in_tool><parameter=bbox_2d>[%s]</parameter></function>",
    '```json\n[{"bbox_2d": [%s], "label": "x"}]\n```',
    "<think></think><action>choose frames between %s and %s</action>",
    "<code>```python\nimport os; os.remove('/')\n```</code>",
    "<answer>K</answer>",
    "",
)
_NUMBERS = (
    "0, 0, 500, 500", "1", "NaN", "1e999", "-5, 3, 2, 1", "0.1, 0.1, 0.9, 0.9", "[[1]]", "null", "9" * 400, "'; DROP", "\u0000",
)  # fmt: skip
_FRAMES = (("<tool_call>", "</tool_call>"), ("<grounding>", "</grounding>"), ("Action: ", ""), ("", ""), ("<tool_call>", ""))


def action(draw: random.Random) -> str:
    piece = draw.choice(_PIECES)
    piece %= tuple(draw.choice(_NUMBERS) for _ in range(piece.count("%s")))
    opened, closed = draw.choice(_FRAMES)
    text = f"{opened}{piece}{closed}" * draw.choice((1, 1, 1, 2, 5))
    return text[: draw.randrange(len(text) + 1)] if draw.random() < 0.2 else text


class Talks:
    """An engine that says something wrong most of the time."""

    def __init__(self, vlm: VLM, toolbox: Toolbox, seed: int) -> None:
        self.vlm, self.toolbox, self.draw = vlm, toolbox, random.Random(seed)

    def generate(
        self, contexts: Sequence[Segment], seeds: Sequence[Sequence[int]], sampling: Sampling, *, keep: bool = False,
        after: Sequence[Completion | None] | None = None,
    ) -> list[list[Completion]]:  # fmt: skip
        return [[self._say() for _ in own] for own in seeds]

    def _say(self) -> Completion:
        banned = {*self.vlm.renderer.banned_ids, *self.vlm.renderer.stop_ids}
        text = self._right() if self.draw.random() < 0.4 else action(self.draw)
        ids = [token for token in self.vlm.renderer.encode(text) if token not in banned]
        ended = self.draw.random() > 0.05
        ids = ids[:300] + ([self.vlm.renderer.stop_ids[0]] if ended else [])
        return Completion(tuple(ids), (-1.0,) * len(ids), StopReason.ANSWERED if ended else StopReason.TURN_TOKENS)


    def _right(self) -> str:
        """A call that is well-formed, though what it asks for may not be there."""
        tools = [tool.name for tool in self.toolbox.tools if tool.name in _RIGHT]
        if not tools:
            return action(self.draw)
        name = self.draw.choice(tools)
        coords = self.toolbox.settings.coords
        scale = {"norm1": 0.001, "abs_original": 0.05}.get(coords, 1.0)
        arguments = {key: scaled(value, scale) for key, value in self.draw.choice(_RIGHT[name]).items()}
        return self.toolbox.dialect.write([Call(name, arguments)])


def scaled(value: Any, scale: float) -> Any:
    """Coordinates, which are lists, from thousandths to the convention of the toolbox."""
    if isinstance(value, list):
        return [scaled(one, scale) if isinstance(one, list | dict) else one * scale for one in value]
    return {key: scaled(one, scale) for key, one in value.items()} if isinstance(value, dict) else value


_RIGHT: dict[str, list[dict[str, Any]]] = {
    "zoom": [{"box": [100, 100, 600, 700]}, {"box": [700, 700, 710, 705]}, {"box": [0, 0, 1000, 1000], "image": 0}],
    "draw_box": [{"boxes": [{"box": [100, 100, 600, 700], "label": "x"}]}],
    "select_frames": [{"start_frame": 3, "end_frame": 20}],
}


def play(vlm: VLM, num: int, seed: int) -> list[Rollout]:
    draw = random.Random(seed)
    played: list[Rollout] = []
    while len(played) < num:
        name = draw.choice(sorted(_TOOLS))
        toolbox = build_toolbox(ToolsSpec(dialect=name, tools=_TOOLS[name]), "norm1000")
        limits = Limits(
            turns=draw.choice((2, 4, 8)), total_tokens=draw.choice((None, 400)), pictures=draw.choice((None, 0, 1)),
            pixels=draw.choice((None, 1000)), repeats=draw.choice((None, 0, 1)), errors=draw.choice((None, 1, 3)),
        )  # fmt: skip
        shown = picture(draw.randrange(20), draw.choice((28, 56, 112)), 56)
        view = View("student", (Message.user(shown, "Which?"),))
        pairs = [(Sample(id=f"s{k}", question="Which?"), view) for k in range(5)]
        engine = Talks(vlm, toolbox, draw.randrange(1 << 30))
        sampling, rules = Sampling(max_new_tokens=300), Rules(toolbox, limits)
        groups = rollout(pairs, engine, vlm.renderer, n=5, sampling=sampling, seed=seed, rules=rules)
        played += [one for group in groups for one in group.rollouts]
    return played[:num]


def check(rollouts: Sequence[Rollout]) -> Counter[StopReason]:
    for one in rollouts:
        assert one.turns
        assert one.stop is not StopReason.TOOL_CALL
        assert all(turn.stop is StopReason.TOOL_CALL for turn in one.turns[:-1])
        assert all(turn.observation is not None for turn in one.turns[:-1])
        assert all(call.error is None or call.error.strip() for call in one.calls)
    return Counter(one.stop for one in rollouts)


def test_ten_thousand_faulty_rollouts_end_by_name_and_leave_no_memory_behind() -> None:
    assert set(_TOOLS) <= set(DIALECTS)
    vlm = tiny_random("qwen2_5_vl", seed=0)
    ends: Counter[StopReason] = Counter()
    calls: Counter[bool] = Counter()
    sizes_mb = []
    for part in range(10):
        rollouts = play(vlm, 1000, seed=part)
        ends += check(rollouts)
        calls += Counter(call.error is None for one in rollouts for call in one.calls)
        del rollouts
        gc.collect()
        sizes_mb.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert sum(ends.values()) == 10_000
    assert set(ends) == {
        StopReason.ANSWERED, StopReason.TURN_TOKENS, StopReason.TURNS, StopReason.TOTAL_TOKENS, StopReason.IMAGES,
        StopReason.REPEATED_CALL, StopReason.ERRORS, StopReason.PIXELS,
    }  # fmt: skip
    assert calls[True] > 1000, "some calls must be right"
    assert calls[False] > 1000, "and many wrong"
    # the caches of the renderer fill up at first and are bounded
    assert sizes_mb[-1] - sizes_mb[4] < 60, sizes_mb
