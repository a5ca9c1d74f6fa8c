"""Rollouts: the model acts, tools answer with text or pictures, the model goes on, until it answers or a limit ends it.

Each way to end is a named `StopReason`. A tool never raises into the loop: what goes wrong in it becomes an observation that the
model reads. Every rollout has a seed of its own, made of the run's seed, the sample and its index, so that it is the same rollout
in whatever company it is played.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .generate import Completion, Engine, Sampling
from .images import Picture
from .messages import Clip, Message, visuals_of
from .records import Group, Reply, Rollout, Sample, Shown, StopReason, ToolCall, Turn, View
from .render import Renderer, RenderError
from .segments import Segment, join

_TOOL_FAULTS = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError, RuntimeError, AssertionError, MemoryError,
)  # fmt: skip
"""What a faulty tool may raise; it is reported to the model, and the rollout goes on."""
_WORKERS = min(32, 4 * (os.cpu_count() or 1))


class Toolbox(Protocol):
    """The tools of a protocol, shared by all rollouts and called from several threads: what it needs to know is handed to it."""

    def act(self, text: str, shown: Shown) -> Reply | None:
        """Carry out the calls in an action's ``text``; None when it holds none, so that the action is the answer.

        A call that is wrong is answered by an observation that says what was wrong.
        """
        ...


@dataclass(frozen=True)
class Limits:
    """When a rollout ends without an answer; None means no limit. Tokens of one turn are limited by `Sampling.max_new_tokens`.

    ``turns``: actions. ``total_tokens``: tokens after the prompt, observations included. ``pictures``, ``pixels``: what tools may
    show, as the model sees it. ``repeats``: how often the same calls may be made again. ``errors``: turns without a single valid
    call. ``seconds``: from the start of the call, looked at between turns; ``tool_seconds``: for the tools of one turn, after
    which the model is told so (neither is reproducible).
    """

    turns: int = 8
    total_tokens: int | None = None
    pictures: int | None = None
    pixels: int | None = None
    repeats: int | None = None
    errors: int | None = None
    seconds: float | None = None
    tool_seconds: float | None = 60.0

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ValueError(f"limits: at least one turn is needed, got turns={self.turns}")


@dataclass(frozen=True)
class Rules:
    """How a sample is played: with which tools, and within which limits. Without a ``toolbox`` a rollout is one action long."""

    toolbox: Toolbox | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass
class _Play:
    """One rollout being played. ``context`` is all that the model reads next; ``suffix_tokens`` of it came after the prompt."""

    place: int
    index: int
    seed: int
    view: View
    rules: Rules
    context: Segment
    shown: Shown
    turns: list[Turn] = field(default_factory=list)
    last: Completion | None = None
    suffix_tokens: int = 0
    pixels: int = 0
    stop: StopReason | None = None


def rollout(
    samples_and_views: Sequence[tuple[Sample, View]],
    engine: Engine,
    renderer: Renderer,
    *,
    n: int | Sequence[int],
    sampling: Sampling,
    seed: int,
    policy_version: int = 0,
    rules: Rules | Callable[[Sample], Rules] | None = None,
    earlier: Sequence[int] | None = None,
) -> list[Group]:
    """Play ``n`` rollouts of each sample (or ``n[i]`` of the i-th) in its view; one group per entry, in order.

    ``rules`` may differ from sample to sample. ``earlier[i]``: how often the i-th sample was drawn before, where others play
    those draws; None: all draws are here.

    All rollouts of a call advance together, a turn at a time; the rollouts of a sample share the reading of their prompt, and
    what a rollout has read is kept for its next turn. Raises `RenderError` for a view that cannot be written as tokens.
    """
    chosen = rules if callable(rules) else lambda _: rules or Rules()
    counts = [n] * len(samples_and_views) if isinstance(n, int) else n
    start, met, plays = time.monotonic(), Counter[str](), list[_Play]()
    for place, (sample, view) in enumerate(samples_and_views):
        prompt, own = renderer.prompt(view.messages, sample.id), chosen(sample)
        visuals = visuals_of(view.messages)
        shown = Shown(visuals, _seen_px(renderer, visuals), len(visuals))
        for index in range(counts[place]):  # a sample drawn twice in one call is played twice, not copied
            own_seed = derive_seed(seed, sample.id, met[sample.id] if earlier is None else earlier[place], index)
            plays.append(_Play(place, index, own_seed, view, own, prompt, shown))
        met[sample.id] += 1
    playing = plays
    with _workers(plays) as workers:
        while playing:
            completions = _complete(playing, engine, sampling)
            for play, completion, text, reply in _replies(playing, completions, renderer, workers):
                _advance(play, completion, text, reply, renderer, policy_version)
            for play in playing:
                seconds = play.rules.limits.seconds
                if seconds is not None and time.monotonic() - start > seconds:
                    play.stop = play.stop or StopReason.SECONDS
            playing = [play for play in playing if play.stop is None]
    groups, waiting = [], iter(plays)
    for place, (sample, _) in enumerate(samples_and_views):
        own_plays = [next(waiting) for _ in range(counts[place])]
        groups.append(Group(sample, tuple(_record(play, sample, f"{sample.id}/{place}") for play in own_plays)))
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
    after: list[Completion | None] = []
    for play in playing:
        if not contexts or contexts[-1] is not play.context:
            contexts.append(play.context)
            seeds.append([])
            after.append(play.last)
        seeds[-1].append(derive_seed(play.seed, len(play.turns)))
    keep = any(play.rules.toolbox is not None and len(play.turns) + 1 < play.rules.limits.turns for play in playing)
    return [one for own in engine.generate(contexts, seeds, sampling, keep=keep, after=after) for one in own]


def _replies(
    playing: Sequence[_Play], completions: Sequence[Completion], renderer: Renderer, workers: ThreadPoolExecutor | None
) -> Iterator[tuple[_Play, Completion, str, Reply | None]]:
    """Each action, cut at the limit on all tokens, its text and the reply; tools of different rollouts run side by side."""
    asked: list[tuple[_Play, Completion, str, Future[Reply | None] | None]] = []
    for play, whole in zip(playing, completions, strict=True):
        completion, toolbox = _within(whole, play), play.rules.toolbox
        text = renderer.decode(completion.ids)
        future = None
        if completion.stop is StopReason.ANSWERED and toolbox is not None and workers is not None:
            future = workers.submit(toolbox.act, text, play.shown)
        asked.append((play, completion, text, future))
    start = time.monotonic()
    for play, completion, text, future in asked:
        yield play, completion, text, None if future is None else _reply(future, play.rules.limits.tool_seconds, start)


def _reply(future: Future[Reply | None], tool_seconds: float | None, start: float) -> Reply | None:
    left_s = None if tool_seconds is None else max(0.0, tool_seconds - (time.monotonic() - start))
    try:
        return future.result(left_s)
    except TimeoutError:
        future.cancel()
        reason = f"the tool took longer than {tool_seconds:g} s and was given up"
    except _TOOL_FAULTS as error:
        reason = f"the tool failed: {type(error).__name__}: {error}"
    return _failed(reason)


def _failed(reason: str) -> Reply:
    return Reply(Message.user(f"<tool_response>Error: {reason}.</tool_response>"), (ToolCall(name="", error=reason),))


def _within(completion: Completion, play: _Play) -> Completion:
    """The completion, cut where the rollout may have no more tokens."""
    total = play.rules.limits.total_tokens
    if total is None or play.suffix_tokens + len(completion.ids) <= total:
        return completion
    kept = total - play.suffix_tokens  # the first tokens of a sample are a sample of the first tokens
    return Completion(completion.ids[:kept], completion.logprobs[:kept], StopReason.TOTAL_TOKENS)


def _advance(
    play: _Play, completion: Completion, text: str, reply: Reply | None, renderer: Renderer, policy_version: int
) -> None:
    """Add the action and, when it calls a tool, the reply; set ``play.stop`` when the rollout is over."""
    ids, stop = completion.ids, completion.stop
    calls: tuple[ToolCall, ...] = ()
    observation: Message | None = None
    play.stop = stop
    if reply is not None:
        try:
            segment = renderer.observation(reply.message, renderer.closed(ids))
        except RenderError as error:  # a picture that no model can be shown
            reply = _failed(f"the result cannot be shown: {error}")
            segment = renderer.observation(reply.message, renderer.closed(ids))
        stop, calls = StopReason.TOOL_CALL, reply.calls
        visuals = visuals_of((reply.message,))
        seen_px = _seen_px(renderer, visuals)
        pixels = sum(width * height for width, height in seen_px)
        play.stop = _limit(play, reply, len(ids) + len(segment), len(visuals), pixels)
        if play.stop is None:  # nobody reads the reply to a last call
            observation = reply.message
            before = play.shown
            play.shown = Shown(
                before.visuals + visuals, before.seen_px + seen_px, before.num_prompt, before.turn + 1, before.calls + calls
            )
            play.context = join((play.context, _as_segment(ids), segment))
            play.suffix_tokens += len(ids) + len(segment)
            play.pixels += pixels
    play.last = completion if play.stop is None else None
    play.turns.append(Turn(ids, completion.logprobs, text, stop, observation, policy_version, calls))


def _limit(play: _Play, reply: Reply, new_tokens: int, new_pictures: int, new_pixels: int) -> StopReason | None:
    """Why the rollout cannot go on after this tool call, or None."""
    limits = play.rules.limits
    if len(play.turns) + 1 >= limits.turns:
        return StopReason.TURNS
    if limits.pictures is not None and len(play.shown.visuals) - play.shown.num_prompt + new_pictures > limits.pictures:
        return StopReason.IMAGES
    if limits.pixels is not None and play.pixels + new_pixels > limits.pixels:
        return StopReason.PIXELS
    if limits.repeats is not None and sum(_same_calls(turn, reply) for turn in play.turns) > limits.repeats:
        return StopReason.REPEATED_CALL
    failed = sum(all(call.error is not None for call in calls) for calls in (*(turn.calls for turn in play.turns), reply.calls))
    if limits.errors is not None and failed > limits.errors:
        return StopReason.ERRORS
    if limits.total_tokens is not None and play.suffix_tokens + new_tokens >= limits.total_tokens:
        return StopReason.TOTAL_TOKENS
    return None


def _same_calls(turn: Turn, reply: Reply) -> bool:
    """Whether an earlier turn asked for the same things of the same pictures."""
    if not reply.calls:
        return turn.observation == reply.message

    def named(calls: Sequence[ToolCall]) -> list[tuple[str, str, int | None]]:
        return [(call.name, call.arguments, call.image) for call in calls]

    return named(turn.calls) == named(reply.calls)


def _seen_px(renderer: Renderer, visuals: Sequence[Picture | Clip]) -> tuple[tuple[int, int], ...]:
    return tuple((item.width_px, item.height_px) for item in map(renderer.item, visuals))


@contextmanager
def _workers(plays: Sequence[_Play]) -> Iterator[ThreadPoolExecutor | None]:
    """Threads for tools, if any rollout has some. A tool that hangs is left behind, not waited for."""
    if all(play.rules.toolbox is None for play in plays):
        yield None
        return
    workers = ThreadPoolExecutor(_WORKERS, "tool")
    try:
        yield workers
    finally:
        workers.shutdown(wait=False, cancel_futures=True)


def _as_segment(ids: Sequence[int]) -> Segment:
    return Segment(np.asarray(ids, np.int64), np.tile(np.arange(len(ids)), (3, 1)), len(ids))
