"""The tools of a run behind one door: action text in, the world's reply out, with a record of every call."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
from PIL import Image

from ..vlm.images import Picture
from ..vlm.records import Reply, Shown, ToolCall
from . import boxes
from .base import Arguments, Done, Scene, Tool, ToolError, ToolSettings, plain
from .dialects.base import BadCall, Call, Dialect, Result
from .pixels import decoded, refuse_slivers, resized
from .registry import near_or_all

Ablation = Literal["none", "grey", "blank", "other"]
GREY, WHITE = (127, 127, 127), (255, 255, 255)
_MAX_RECORD = 1000
_FAULTS = (ValueError, ArithmeticError, OSError, MemoryError, cv2.error)
"""What decoding and drawing may raise; it is reported to the model, and the rollout goes on."""


@dataclass(frozen=True, kw_only=True)
class Toolbox:
    """Tools in a dialect. Holds no state, so that all rollouts in all threads share one. See `vlm.rollout.Toolbox`.

    A wrong call is answered by a sentence that says how to mend it; nothing here raises, and model text is only ever read as
    data. ``max_calls`` are carried out in a turn; ``seconds`` is looked at after each of them (not reproducible). ``ablate``
    replaces what tools show, to prove that a model uses it: "grey" and "blank" (white) pictures of the same size, or "other":
    a region of the same size elsewhere in the same picture, grey where it still overlaps the one that was asked for; of a tool
    that cuts nothing out, its source as it was. The records say what was asked for.
    """

    dialect: Dialect
    tools: tuple[Tool, ...]
    settings: ToolSettings = field(default_factory=ToolSettings)
    max_calls: int = 8
    seconds: float | None = None
    ablate: Ablation = "none"

    @property
    def system_prompt(self) -> str:
        """The system message that offers the tools. `ValueError` for a tool that the dialect has no words for."""
        return self.dialect.system_prompt([tool.spec for tool in self.tools], self.settings.coords)

    def act(self, text: str, shown: Shown) -> Reply | None:
        """The reply to the calls in an action, or None when it holds none, so that it is the answer.

        A call may use what was shown before this turn, not what an earlier call of the same turn gave.
        """
        calls = self.dialect.read(text).calls
        if not calls:
            return None
        results: list[Result] = []
        records: list[ToolCall] = []
        start = time.monotonic()
        for number, call in enumerate(calls):
            left = len(calls) - number
            if number >= self.max_calls:
                refused = f"at most {self.max_calls} calls are carried out in a turn; {left} more were not"
            elif number and self.seconds is not None and time.monotonic() - start > self.seconds:
                refused = f"the time for the calls of this turn is over; {left} more were not carried out"
            else:
                result, record = self._answer(call, shown)
                results.append(result)
                records.append(record)
                continue
            # one sentence for all that are left: an action may hold thousands
            results.append(Result(call, (refused,), error=True))
            records.append(ToolCall(name=plain(call.name), error=refused))
            break
        return Reply(self.dialect.observation(results, shown), tuple(records))

    def _answer(self, call: Call | BadCall, shown: Shown) -> tuple[Result, ToolCall]:
        """What a call gives and its record. Never raises."""
        if isinstance(call, BadCall):
            return Result(call, (call.reason,), error=True), ToolCall(name=plain(call.name), error=call.reason)
        coords = call.coords or self.settings.coords
        written, index = _json(call.arguments), None
        misread = self.tools[0] if self.tools else None  # the tool whose call is to be shown written rightly
        try:
            misread = tool = self._tool(call.name)
            arguments = tool.read(call.arguments)
            written, misread = _canonical(arguments), None
            index = arguments.source(shown)
            scene = Scene(shown, index, coords, self.settings)
            done = tool.run(arguments, scene)
            parts = _ablated(done, self.ablate)
            for part in parts:
                if isinstance(part, Picture):
                    refuse_slivers(part)
        except _FAULTS as error:
            sentence, reason = _told(error)
            failed = ToolCall(name=plain(call.name), arguments=written, coords=coords, image=index, error=reason)
            return Result(call, (sentence if misread is None else sentence + self._example(misread),), error=True), failed
        return Result(call, parts), ToolCall(
            name=tool.name,
            arguments=written,
            coords=coords,
            image=index,
            box_px_xyxy=done.box_px_xyxy,
            times_s=done.times_s,
        )

    def _tool(self, name: str) -> Tool:
        for tool in self.tools:
            if tool.name == name:
                return tool
        if not self.tools:
            raise ToolError("there are no tools here")
        raise ToolError(f'there is no tool "{plain(name)}" ({near_or_all(plain(name), [tool.name for tool in self.tools])})')

    def _example(self, tool: Tool) -> str:
        """How a right call is written in this dialect, as the end of a sentence."""
        own = self.settings.coords
        ways = [Call(tool.name, arguments) for arguments in tool.examples(own)]
        # a dialect may draw in a convention of its own
        ways += [Call(tool.name, arguments, "norm1") for arguments in tool.examples("norm1")]
        for call in ways:
            try:
                return f"; for example: {self.dialect.write([call])}"
            except ValueError:
                continue
        return ""


def _told(error: Exception) -> tuple[str, str]:
    """The sentence for the model, and what the record says."""
    if isinstance(error, ToolError):
        return str(error), f"{error} ({error.detail})" if error.detail else str(error)
    # a library's message may name files, which a model must not read
    return "the tool failed on this picture", f"{type(error).__name__}: {str(error)[:_MAX_RECORD]}"


def _json(arguments: Mapping[str, Any]) -> str:
    """Arguments that were not understood, as JSON of bounded length."""
    try:
        text = json.dumps(dict(arguments), separators=(",", ":"))
        if len(text) <= _MAX_RECORD and not any(word in text for word in ("NaN", "Infinity")):
            return text
    except (ValueError, TypeError, RecursionError):
        text = "not JSON"
    return json.dumps({"unread": text[:_MAX_RECORD]})


def _canonical(arguments: Arguments) -> str:
    """Checked arguments as JSON; the picture stands in the record beside them."""
    value = _short(arguments.model_dump(exclude_none=True, exclude_defaults=True, exclude={"image"}))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _short(value: Any) -> Any:
    """Whole numbers without a point, so that the same call has one spelling."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _short(entry) for key, entry in value.items()}
    return [_short(entry) for entry in value] if isinstance(value, list | tuple) else value


# --- ablations ---------------------------------------------------------------------------------------------------------------


def _ablated(done: Done, how: Ablation) -> tuple[Any, ...]:
    """The parts of a result, their pictures replaced."""
    if how == "none":
        return done.parts
    return tuple(_replaced(part, done, how) if isinstance(part, Picture) else part for part in done.parts)


def _replaced(part: Picture, done: Done, how: Ablation) -> Picture:
    if how != "other":
        return Picture.of(Image.new("RGB", part.size_px, GREY if how == "grey" else WHITE))
    if done.source is None:
        raise ToolError("there is nothing else to show for this tool")
    if done.box_px_xyxy is None or not done.cut:
        return done.source
    x1, y1, x2, y2 = map(round, boxes.elsewhere(done.box_px_xyxy, done.source.size_px))
    cut = decoded(done.source).crop((x1, y1, x2, y2))
    common_px = boxes.intersection((x1, y1, x2, y2), done.box_px_xyxy)
    if boxes.area(common_px) > 0:
        left, top, right, bottom = map(round, common_px)
        cut.paste(GREY, (left - x1, top - y1, right - x1, bottom - y1))
    return resized(cut, part.size_px)
