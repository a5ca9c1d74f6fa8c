"""What a step's tokens are like before anything is learned from them: log-probs, the student's entropy, or the divergence to the
teacher.

One more forward pass (of both models for the divergence) without gradients, in the batches of the update; no rows x vocabulary
tensor exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ..vlm.backbone import hidden_rows
from ..vlm.load import VLM
from ..vlm.logprobs import token_logprobs
from ..vlm.packing import pack
from ..vlm.records import Rollout, Signal, View
from ..vlm.segments import Rendered
from .batch import make_batches
from .losses import KDRows, RowLoss, head_loss
from .streams import Stream
from .teacher import Teacher

What = Literal["entropy", "divergence"]


@torch.no_grad()
def token_values(
    vlm: VLM,
    teacher: Teacher | None,
    pairs: Sequence[tuple[Rollout, View]],
    stream: Stream,
    what: What,
    *,
    micro_tokens: int,
    temperature: float,
) -> list[list[list[float]]]:
    """``[N][K]`` of every rollout in nats: the student's entropy at the sampling ``temperature``, or ``stream``'s divergence to
    the teacher, who reads the rollout under the view beside it. The caller sets autocast."""
    found = {_key(rollout): [[0.0] * len(turn.action_ids_K) for turn in rollout.turns] for rollout, _ in pairs}
    signals = [_whole(rollout, view, stream, what) for rollout, view in pairs]
    for batch in make_batches(signals, {stream.name: stream}, vlm.renderer, micro_tokens):
        rows = RowLoss(batch.targets_R.to(vlm.device))
        if batch.teacher is not None and batch.teacher_keep_R is not None:
            assert teacher is not None, "a divergence needs a teacher"
            rows.kd = [
                KDRows(
                    teacher_hidden_RD=hidden_rows(teacher.vlm, batch.teacher, batch.teacher_keep_R),
                    teacher_weight_VD=teacher.vlm.head_weight,
                    weights_R=torch.ones(len(batch.keep_R), device=vlm.device),
                    divergence=stream.divergence,
                    beta=stream.beta,
                    support=stream.support,
                    top_c=stream.top_c,
                    temperature=stream.temperature,
                    mix=teacher.mix,
                    term_clip=stream.term_clip,
                )
            ]
        hidden = hidden_rows(vlm, batch.packed, batch.keep_R)
        banned = vlm.renderer.banned_ids
        _, stats = head_loss(hidden, vlm.head_weight, rows, temperature=temperature, banned_ids=banned, want_entropy=not rows.kd)
        values = stats.kd_R[0] if rows.kd else stats.entropy_R
        assert values is not None
        for address, value in zip(batch.addresses, values.tolist(), strict=True):
            found[_key(address.rollout)][address.turn][address.k] = value
    return [found[_key(rollout)] for rollout, _ in pairs]


@torch.no_grad()
def sampled_logprobs(
    vlm: VLM, pairs: Sequence[tuple[Rollout, View]], *, micro_tokens: int, temperature: float
) -> list[tuple[tuple[float, ...], ...]]:
    """Log-probs ``[N][K]`` of each rollout's tokens under a model that reads it under the view beside it; prompts are shared by
    view. The caller sets autocast."""
    renderer = vlm.renderer
    by_view: dict[View, list[tuple[int, Rendered]]] = {}
    for index, (rollout, view) in enumerate(pairs):
        by_view.setdefault(view, []).append((index, renderer.render(view, rollout.turns, rollout.sample_id)))
    found: dict[int, tuple[tuple[float, ...], ...]] = {}
    for chunk in _chunks(list(by_view.values()), micro_tokens):
        packed = pack([(members[0][1].prompt, [one.suffix for _, one in members]) for members in chunk])
        hidden = hidden_rows(vlm, packed)
        targets_R = packed.targets_R.to(hidden.device)
        values = token_logprobs(
            hidden, vlm.head_weight, targets_R, temperature=temperature, banned_ids=renderer.banned_ids
        ).tolist()
        offset = 0
        for index, one in (member for members in chunk for member in members):
            found[index] = tuple(tuple(values[offset + place] for place in span) for span in one.action_spans)
            offset += len(one.suffix)
    return [found[index] for index in range(len(pairs))]


_Members = list[tuple[int, Rendered]]


def _chunks(groups: list[_Members], micro_tokens: int) -> list[list[_Members]]:
    chunks: list[list[_Members]] = []
    size = 0
    for members in groups:
        tokens = len(members[0][1].prompt) + sum(len(one.suffix) for _, one in members)
        if not chunks or size + tokens > micro_tokens:
            chunks.append([])
            size = 0
        chunks[-1].append(members)
        size += tokens
    return chunks


def _key(rollout: Rollout) -> tuple[str, int]:
    return rollout.group_id, rollout.index


def _whole(rollout: Rollout, view: View, stream: Stream, what: What) -> Signal:
    ones_NK = tuple((1.0,) * len(turn.action_ids_K) for turn in rollout.turns)
    if what == "divergence":
        return Signal(rollout, kd_weights_NK=ones_NK, teacher_view=view, stream=stream.name)
    return Signal(rollout, ce_weights_NK=ones_NK, stream=stream.name)
