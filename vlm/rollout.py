"""Rollouts: the model acts, a tool answers with text or a picture, the model goes on, until it answers or a limit ends it.

Each way to end is a named `StopReason`. A tool never raises into the loop: what goes wrong in it becomes an observation that the
model reads. Every rollout has a seed of its own, made of the run's seed, the sample and its index, so that it is the same rollout
in whatever company it is played.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .generate import Completion, Engine, Sampling
from .images import Picture
from .messages import Message
from .records import Group, Rollout, Sample, StopReason, Turn, View
from .render import Renderer
from .segments import Segment, join

_TOOL_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError, RuntimeError)
"""What a faulty tool may raise; it is reported to the model, and the rollout goes on."""


class Toolbox(Protocol):
    """The tools of a run, shared by all rollouts: what it needs to know about one is handed to it."""

    def act(self, text: str, pictures: Sequence[Picture], seen_px: Sequence[tuple[int, int]]) -> Message | None:
        """Run the tool call in an action's ``text``; None when it holds none, so that the action is the answer.

        ``pictures`` are all the model has seen in this rollout, at full resolution, prompt first; ``seen_px`` their width and
        height as the model saw them. A call that is wrong is answered by an observation that says what was wrong.
        """
        ...


@dataclass(frozen=True)
class Limits:
    """When a rollout ends without an answer; None means no limit.

    ``turns``: actions. ``total_tokens``: tokens after the prompt, observations included. ``pictures``: pictures the tools may
    show. ``seconds``: from the start of the call, looked at between turns (not reproducible). ``repeats``: how often the same
    observation may be asked for; one more ends the rollout.
    """

    turns: int = 8
    total_tokens: int | None = None
    pictures: int | None = None
    seconds: float | None = None
    repeats: int | None = None

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ValueError(f"limits: at least one turn is needed, got turns={self.turns}")


@dataclass
class _Play:
    """One rollout being played. ``context`` is all that the model reads next; ``suffix_tokens`` of it came after the prompt."""

    place: int
    index: int
    seed: int
    view: View
    context: Segment
    turns: list[Turn] = field(default_factory=list)
    suffix_tokens: int = 0
    shown: int = 0
    stop: StopReason | None = None

    def pictures(self) -> list[Picture]:
        observed = [picture for turn in self.turns if turn.observation is not None for picture in turn.observation.pictures]
        return [*self.view.pictures, *observed]


def rollout(
    samples_and_views: Sequence[tuple[Sample, View]],
    engine: Engine,
    renderer: Renderer,
    *,
    n: int,
    sampling: Sampling,
    seed: int,
    policy_version: int = 0,
    toolbox: Toolbox | None = None,
    limits: Limits | None = None,
) -> list[Group]:
    """Play ``n`` rollouts of each sample in its view; one group per entry, in order.

    All rollouts of a call advance together, a turn at a time; the rollouts of a sample share the reading of their prompt. Without
    a ``toolbox`` every rollout is one action long. Raises `RenderError` for a view that cannot be written as tokens.
    """
    limits = limits or Limits()
    start, met, plays = time.monotonic(), Counter[str](), []
    for place, (sample, view) in enumerate(samples_and_views):
        prompt = renderer.prompt(view.messages, sample.id)
        # a sample drawn twice in one call is played twice, not copied
        plays += [_Play(place, i, derive_seed(seed, sample.id, met[sample.id], i), view, prompt) for i in range(n)]
        met[sample.id] += 1
    playing = plays
    while playing:
        for play, completion in zip(playing, _complete(playing, engine, sampling), strict=True):
            _advance(play, completion, renderer, toolbox, limits, policy_version)
        if limits.seconds is not None and time.monotonic() - start > limits.seconds:
            for play in playing:
                play.stop = play.stop or StopReason.SECONDS
        playing = [play for play in playing if play.stop is None]
    groups = []
    for place, (sample, _) in enumerate(samples_and_views):
        own = plays[place * n : (place + 1) * n]
        groups.append(Group(sample, tuple(_record(play, sample, f"{sample.id}/{place}") for play in own)))
    return groups


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from anything that names a draw; other parts give independent draws."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _record(play: _Play, sample: Sample, group_id: str) -> Rollout:
    assert play.stop is not None
    return Rollout(sample.id, group_id, play.index, play.view, tuple(play.turns), play.stop, play.seed)


def _complete(playing: Sequence[_Play], engine: Engine, sampling: Sampling) -> list[Completion]:
    """One action for each rollout; those that stand at the same context (the first turn) share one reading of it."""
    contexts: list[Segment] = []
    seeds: list[list[int]] = []
    for play in playing:
        if not contexts or contexts[-1] is not play.context:
            contexts.append(play.context)
            seeds.append([])
        seeds[-1].append(derive_seed(play.seed, len(play.turns)))
    return [one for own in engine.generate(contexts, seeds, sampling) for one in own]


def _advance(
    play: _Play, completion: Completion, renderer: Renderer, toolbox: Toolbox | None, limits: Limits, policy_version: int
) -> None:
    """Add the action and, when it calls a tool, the tool's reply; set ``play.stop`` when the rollout is over."""
    ids, logprobs, stop = completion.ids, completion.logprobs, completion.stop
    if limits.total_tokens is not None and play.suffix_tokens + len(ids) > limits.total_tokens:
        # the first tokens of a sample are a sample of the first tokens
        kept = limits.total_tokens - play.suffix_tokens
        ids, logprobs, stop = ids[:kept], logprobs[:kept], StopReason.TOTAL_TOKENS
    text = renderer.decode(ids)
    observation: Message | None = None
    segment: Segment | None = None
    end: StopReason | None = stop
    if stop is StopReason.ANSWERED and toolbox is not None:
        reply = _act(toolbox, text, play, renderer)
        if reply is not None:
            stop = StopReason.TOOL_CALL
            segment = renderer.observation(reply, renderer.closed(ids))
            end = _limit(play, reply, len(ids) + len(segment), limits)
            observation = reply if end is None else None  # nobody reads the reply to a last call
    play.turns.append(Turn(ids, logprobs, text, stop, observation, policy_version))
    play.stop = end
    if observation is not None and segment is not None:
        play.context = join((play.context, _as_segment(ids), segment))
        play.suffix_tokens += len(ids) + len(segment)
        play.shown += len(observation.pictures)


def _limit(play: _Play, reply: Message, new_tokens: int, limits: Limits) -> StopReason | None:
    """Why the rollout cannot go on after this tool call, or None."""
    if len(play.turns) + 1 >= limits.turns:
        return StopReason.TURNS
    if limits.pictures is not None and play.shown + len(reply.pictures) > limits.pictures:
        return StopReason.IMAGES
    same = sum(turn.observation == reply for turn in play.turns)
    if limits.repeats is not None and same >= limits.repeats:
        return StopReason.REPEATED_CALL
    if limits.total_tokens is not None and play.suffix_tokens + new_tokens >= limits.total_tokens:
        return StopReason.TOTAL_TOKENS
    return None


def _act(toolbox: Toolbox, text: str, play: _Play, renderer: Renderer) -> Message | None:
    pictures = play.pictures()
    seen_px = [(item.width_px, item.height_px) for item in map(renderer.item, pictures)]
    try:
        return toolbox.act(text, pictures, seen_px)
    except _TOOL_FAULTS as error:
        return Message.user(f"<tool_response>The tool failed: {type(error).__name__}: {error}</tool_response>")


def _as_segment(ids: Sequence[int]) -> Segment:
    return Segment(np.asarray(ids, np.int64), np.tile(np.arange(len(ids)), (3, 1)), len(ids))
