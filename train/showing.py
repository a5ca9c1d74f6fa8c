"""Which rollouts of a step are written down, and how student and teacher see each of their tokens before anything is learned.

One more forward pass of both models over those few rollouts, without gradients and on logging steps only. Logits exist for a
chunk of rows at a time: no tokens x vocabulary tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from ..vlm.backbone import hidden_rows
from ..vlm.load import VLM
from ..vlm.records import Rollout, Signal
from .batch import Batch, make_batches
from .config import RunConfig
from .divergence import divergence
from .losses import rows_at_once
from .streams import Stream
from .teacher import Teacher
from .update import compute_dtype

NUM_CANDIDATES = 5
_SIBLINGS = 4
"""Of one group so many are taken before the next group has its turn."""

Candidates = tuple[tuple[int, float], ...]
"""``(token id, probability)``, most probable first."""


@dataclass(frozen=True)
class Look:
    """A rollout's tokens, nested ``[N][K]`` as its action ids; ``K`` of every list are candidates or nats of one action token.

    Probabilities are those of the sampling temperature over all tokens that may be sampled, before top-k and top-p.
    ``divergence_NK`` in nats is that of the signal's stream over the full vocabulary. ``measure`` names it, and whether the
    teacher reads a view of its own ("teacher") or the student's ("student"). None: the run has no teacher.
    """

    student_NK: list[list[Candidates]]
    teacher_NK: list[list[Candidates]] | None = None
    divergence_NK: list[list[float]] | None = None
    measure: Mapping[str, Any] | None = None


def shown(config: RunConfig, signals: Sequence[Signal], step: int) -> list[Signal]:
    """The signals of step ``step`` (from 1) that are written down: none on most steps, else `chosen` of them."""
    return chosen(signals, config.log_rollouts) if step == 1 or step % config.log_rollouts_every == 0 else []


def chosen(signals: Sequence[Signal], quota: int) -> list[Signal]:
    """At most ``quota`` signals in which every stream has its share: one of each anchor, up to half of them all, and of the other
    streams one after another in turn."""
    streams: dict[str, list[Signal]] = {}
    for one in signals:
        streams.setdefault(one.stream, []).append(one)
    anchors = [found[0] for name, found in streams.items() if name.startswith("anchor:")]
    main = [_spread(found) for name, found in streams.items() if not name.startswith("anchor:")]
    anchors = anchors[: quota // 2 if main else quota]
    dealt = [one for one in chain.from_iterable(zip_longest(*main)) if one is not None][: quota - len(anchors)]
    return [one for name in streams for one in (*dealt, *anchors) if one.stream == name]


def _spread(signals: Iterable[Signal]) -> list[Signal]:
    """A few siblings of each group before further ones of any."""
    seen: dict[str, int] = {}
    rounds: list[tuple[int, Signal]] = []
    for one in signals:
        place = seen[one.rollout.group_id] = seen.get(one.rollout.group_id, 0) + 1
        rounds.append(((place - 1) // _SIBLINGS, one))
    return [one for _, one in sorted(rounds, key=lambda pair: pair[0])]


@torch.no_grad()
def looks(
    vlm: VLM, teacher: Teacher | None, signals: Sequence[Signal], streams: Mapping[str, Stream], config: RunConfig
) -> list[Look]:
    """How both models see the tokens of each signal's rollout now. A rollout without a teacher's view, as in grpo, is read by the
    teacher (there the reference) under the student's own."""
    found: dict[tuple[str, str, int], Look] = {}
    dtype = compute_dtype(vlm, config.model.compute)
    with torch.autocast(vlm.device.type, dtype, enabled=dtype is not None):
        for name in dict.fromkeys(one.stream for one in signals):
            same = [one for one in signals if one.stream == name]
            whole = [_whole(one, teacher is not None) for one in same]
            for one in same:
                found[_key(one.stream, one.rollout)] = _blank(one, streams[name], teacher)
            for batch in make_batches(whole, {name: Stream(name)}, vlm.renderer, config.micro_tokens):
                _look(vlm, teacher, batch, streams[name], config.sampling.temperature or 1.0, found)
    return [found[_key(one.stream, one.rollout)] for one in signals]


def _key(stream: str, rollout: Rollout) -> tuple[str, str, int]:
    return stream, rollout.group_id, rollout.index


def _whole(signal: Signal, teacher: bool) -> Signal:
    rollout = signal.rollout
    ones_NK = tuple((1.0,) * len(turn.action_ids_K) for turn in rollout.turns)
    if teacher:
        return Signal(rollout, kd_weights_NK=ones_NK, teacher_view=signal.teacher_view or rollout.view, stream=signal.stream)
    return Signal(rollout, ce_weights_NK=ones_NK, stream=signal.stream)


def _blank(signal: Signal, stream: Stream, teacher: Teacher | None) -> Look:
    turns = signal.rollout.turns
    if teacher is None:
        return Look([[] for _ in turns])
    beta = {"beta": stream.beta} if stream.divergence == "jsd" else {}
    view = "student" if signal.teacher_view is None else "teacher"
    measure = {"divergence": stream.divergence, **beta, "view": view}
    return Look([[] for _ in turns], [[] for _ in turns], [[] for _ in turns], measure)


def _look(
    vlm: VLM, teacher: Teacher | None, batch: Batch, stream: Stream, temperature: float, found: dict[tuple[str, str, int], Look]
) -> None:
    """Fill the looks of a batch's rollouts, whose rows are in the order of turns and tokens."""
    hidden = hidden_rows(vlm, batch.packed, batch.keep_R)
    theirs = head_VD = None
    if teacher is not None and batch.teacher is not None:
        theirs, head_VD = hidden_rows(teacher.vlm, batch.teacher, batch.teacher_keep_R), teacher.vlm.head_weight
    size = rows_at_once(vlm.head_weight)
    for start in range(0, len(hidden), size):
        own_RV = _logits(vlm, hidden[start : start + size], vlm.head_weight)
        addresses = batch.addresses[start : start + size]
        for address, row in zip(addresses, _candidates(own_RV, temperature), strict=True):
            found[_key(stream.name, address.rollout)].student_NK[address.turn].append(row)
        if teacher is None or theirs is None or head_VD is None:
            continue
        other_RV = _logits(teacher.vlm, theirs[start : start + size], head_VD)
        if teacher.mix:
            free = own_RV.isfinite()  # banned tokens: -inf on both sides
            other_RV = torch.where(free, other_RV.lerp(own_RV, teacher.mix), other_RV)
        value_R = divergence(
            stream.divergence,
            (own_RV / stream.temperature).log_softmax(-1),
            (other_RV / stream.temperature).log_softmax(-1),
            stream.beta,
        )
        for address, row, value in zip(addresses, _candidates(other_RV, temperature), value_R.tolist(), strict=True):
            look = found[_key(stream.name, address.rollout)]
            assert look.teacher_NK is not None
            assert look.divergence_NK is not None
            look.teacher_NK[address.turn].append(row)
            look.divergence_NK[address.turn].append(value)


def _logits(vlm: VLM, hidden_RD: Tensor, head_VD: Tensor) -> Tensor:
    logits_RV = (hidden_RD @ head_VD.to(hidden_RD.dtype).t()).float()
    if vlm.renderer.banned_ids:
        logits_RV[:, list(vlm.renderer.banned_ids)] = -torch.inf
    return logits_RV


def _candidates(logits_RV: Tensor, temperature: float) -> list[Candidates]:
    probs_RC, ids_RC = (logits_RV / temperature).softmax(-1).topk(min(NUM_CANDIDATES, logits_RV.shape[-1]), dim=-1)
    return [tuple(zip(ids, probs, strict=True)) for ids, probs in zip(ids_RC.tolist(), probs_RC.tolist(), strict=True)]
