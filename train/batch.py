"""Signals to batches: packed rows with shared prefixes, and one weight per loss row and stream.

Legend: T packed tokens, R loss rows (action tokens with any weight, in packed order), 3 M-RoPE axes.

The weights are final: each stream's weight divided by its **global** denominator, over all signals of the step. A step cut into
micro-batches, or spread over ranks, therefore has the loss of the whole (law 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..vlm.packing import Packed, pack
from ..vlm.records import Rollout, Signal, View
from ..vlm.render import Renderer
from ..vlm.segments import Rendered, Segment
from .streams import Denominators, Stream, denominators, plain_weight, row_weight, teaches


@dataclass
class KdRows:
    """Rows of one kd stream: ``index_R`` into the batch's loss rows, and the same rows of the teacher's batch."""

    stream: Stream
    index_R: torch.Tensor
    teacher_index_R: torch.Tensor
    weights_R: torch.Tensor


@dataclass
class RlRows:
    """Rows of one rl stream.

    ``old_logprobs_R`` are the sampler's, ``sequence_R`` says which rows are of one rollout. With a KL to a reference,
    ``reference_R`` are its log-probs and ``kl_weights_R`` the weights of the term in the loss. ``start_logprobs_R`` are the
    trainer's own log-probs before the first of several updates, where they are needed (see `policy`).
    """

    stream: Stream
    index_R: torch.Tensor
    advantages_R: torch.Tensor
    old_logprobs_R: torch.Tensor
    weights_R: torch.Tensor
    sequence_R: torch.Tensor
    reference_R: torch.Tensor | None = None
    kl_weights_R: torch.Tensor | None = None
    start_logprobs_R: torch.Tensor | None = None


@dataclass
class CeRows:
    """Rows of one ce stream."""

    stream: Stream
    index_R: torch.Tensor
    weights_R: torch.Tensor


@dataclass(frozen=True)
class RowAddress:
    """Where a loss row comes from: alignment is by rollout, turn and k."""

    rollout: Rollout
    turn: int
    k: int


@dataclass
class Batch:
    """One packed forward pass and what each of its loss rows teaches.

    ``keep_R`` are the suffix tokens of ``packed`` that carry a loss; ``targets_R`` their ids. ``teacher`` packs the same actions
    behind the teacher's prompts, ``teacher_keep_R`` are its rows for the kd streams. Rows at the end without an address are idle.
    """

    packed: Packed
    keep_R: torch.Tensor
    targets_R: torch.Tensor
    addresses: list[RowAddress]
    kd: list[KdRows] = field(default_factory=list)
    rl: list[RlRows] = field(default_factory=list)
    ce: list[CeRows] = field(default_factory=list)
    teacher: Packed | None = None
    teacher_keep_R: torch.Tensor | None = None


@dataclass(frozen=True)
class _Sequence:
    """One rollout with all its signals, rendered once."""

    rollout: Rollout
    rendered: Rendered
    signals: tuple[Signal, ...]
    idle: bool = False

    @property
    def prefix(self) -> tuple[str, View]:
        return self.rollout.group_id, self.rollout.view


Cut = list[list[_Sequence]]
"""The groups of one batch."""


def rendered_sequence(signals: Sequence[Signal], renderer: Renderer, idle: Rollout | None = None) -> _Sequence:
    """A rollout with its signals. ``idle``: one that is read and teaches nothing (see `lockstep`); the last of its batch."""
    rollout = idle or signals[0].rollout
    rendered = renderer.render(rollout.view, rollout.turns, rollout.sample_id)
    return _Sequence(rollout, rendered, tuple(signals), idle is not None)


def make_batches(
    signals: Sequence[Signal],
    streams: Mapping[str, Stream],
    renderer: Renderer,
    micro_tokens: int,
    totals: Denominators | None = None,
    longest_tokens: int | None = None,
    level: Callable[[list[Cut]], list[Cut]] | None = None,
) -> list[Batch]:
    """Pack signals into batches of about ``micro_tokens`` tokens; the rollouts of a prompt are never separated.

    ``totals``: denominators of the whole step when ``signals`` are only this rank's share. ``longest_tokens``: the most action
    tokens that a rollout can have (for reduction constant). ``level`` has the last word on what is packed together (`lockstep`).
    Signals without a stream are left out; if all are, there is no batch.
    """
    totals = denominators(signals, streams, longest_tokens) if totals is None else totals
    cuts: list[Cut] = []
    open_groups: Cut = []
    open_tokens = 0
    for group in _groups(signals, renderer):
        tokens = len(group[0].rendered.prompt) + sum(len(sequence.rendered.suffix) for sequence in group)
        if open_groups and open_tokens + tokens > micro_tokens:
            cuts.append(open_groups)
            open_groups, open_tokens = [], 0
        open_groups.append(group)
        open_tokens += tokens
    if open_groups:
        cuts.append(open_groups)
    return [_batch(groups, streams, totals, renderer) for groups in (cuts if level is None else level(cuts))]


def _groups(signals: Sequence[Signal], renderer: Renderer) -> list[list[_Sequence]]:
    by_rollout: dict[tuple[str, int], list[Signal]] = {}
    for signal in signals:
        if signal.rollout.num_actions and teaches(signal):
            by_rollout.setdefault((signal.rollout.group_id, signal.rollout.index), []).append(signal)
    groups: dict[str, list[_Sequence]] = {}
    for (group_id, _), same in by_rollout.items():
        groups.setdefault(group_id, []).append(rendered_sequence(same, renderer))
    for group_id, sequences in groups.items():
        if any(sequence.rollout.view != sequences[0].rollout.view for sequence in sequences):
            raise ValueError(f"group {group_id}: its rollouts have different student views and cannot share a prompt")
    return list(groups.values())


def _batch(groups: list[list[_Sequence]], streams: Mapping[str, Stream], totals: Denominators, renderer: Renderer) -> Batch:
    sequences = [sequence for group in groups for sequence in group]
    packed = pack([(group[0].rendered.prompt, [sequence.rendered.suffix for sequence in group]) for group in groups])
    keep: list[int] = []
    addresses: list[RowAddress] = []
    first_row: list[int] = []
    offset = 0
    for sequence in sequences:
        first_row.append(len(keep))
        for turn, span in enumerate(sequence.rendered.action_spans):
            keep += [offset + place for place in span]
            addresses += [] if sequence.idle else [RowAddress(sequence.rollout, turn, k) for k in range(len(span))]
        offset += len(sequence.rendered.suffix)
    keep_R = torch.tensor(keep, dtype=torch.long)
    batch = Batch(packed, keep_R, packed.targets_R[keep_R], addresses)
    _add_teacher(batch, groups, renderer)
    _add_streams(batch, sequences, first_row, streams, totals)
    return batch


def _add_teacher(batch: Batch, groups: list[list[_Sequence]], renderer: Renderer) -> None:
    """Pack the teacher's reading of every sequence with a kd stream, with the same rows in the same order."""
    packs: list[tuple[Segment, list[Segment]]] = []
    keep: list[int] = []
    offset = 0
    for group in groups:
        prompt_of: dict[View, int] = {}
        for sequence in group:
            for view in {signal.teacher_view for signal in sequence.signals if signal.kd_weights_NK is not None}:
                assert view is not None
                rendered = renderer.render(view, sequence.rollout.turns, sequence.rollout.sample_id)
                if rendered.action_spans != sequence.rendered.action_spans:
                    raise AssertionError(f"sample {sequence.rollout.sample_id}: the views place the actions differently")
                if view not in prompt_of:
                    prompt_of[view] = len(packs)
                    packs.append((rendered.prompt, []))
                packs[prompt_of[view]][1].append(rendered.suffix)
        if len(prompt_of) > 1:
            raise ValueError(
                f"group {group[0].rollout.group_id}: more than one teacher view in a group; use one kd signal per run, "
                "and anchors of their own"
            )
        for sequence in group:
            if any(signal.kd_weights_NK is not None for signal in sequence.signals):
                keep += [offset + place for span in sequence.rendered.action_spans for place in span]
                offset += len(sequence.rendered.suffix)
    if packs:
        batch.teacher, batch.teacher_keep_R = pack(packs), torch.tensor(keep, dtype=torch.long)


def _add_streams(
    batch: Batch, sequences: list[_Sequence], first_row: list[int], streams: Mapping[str, Stream], totals: Denominators
) -> None:
    kd: dict[str, list[tuple[int, int, float]]] = {}
    rl: dict[str, list[_RlRow]] = {}
    ce: dict[str, list[tuple[int, float]]] = {}
    teacher_row = 0
    for place, (sequence, row) in enumerate(zip(sequences, first_row, strict=True)):
        old = [value for turn in sequence.rollout.turns for value in turn.action_logprobs_K]
        rows = range(row, row + len(old))
        for signal in sequence.signals:
            stream = streams[signal.stream]
            unit = row_weight(signal, stream, totals)
            if signal.kd_weights_NK is not None:
                weights = _flat(signal.kd_weights_NK)
                kd.setdefault(stream.name, []).extend(
                    (r, teacher_row + i, w * unit) for i, (r, w) in enumerate(zip(rows, weights, strict=True)) if w
                )
            if signal.advantages_NK is not None:
                values, reference = _flat(signal.advantages_NK), _flat(signal.teacher_logprobs_NK or ((0.0,) * len(old),))
                kl = plain_weight(signal, stream, totals) * stream.kl_weight
                rl.setdefault(stream.name, []).extend(
                    (r, a, o, unit, place, q, kl) for r, a, o, q in zip(rows, values, old, reference, strict=True)
                )
            if signal.ce_weights_NK is not None:
                weights = _flat(signal.ce_weights_NK)
                ce.setdefault(stream.name, []).extend((r, w * unit) for r, w in zip(rows, weights, strict=True) if w)
        if any(signal.kd_weights_NK is not None for signal in sequence.signals):
            teacher_row += len(old)
    batch.kd = [
        KdRows(streams[name], _long(r for r, _, _ in found), _long(t for _, t, _ in found), _float(w for _, _, w in found))
        for name, found in kd.items()
    ]
    batch.rl = [_rl_rows(streams[name], found) for name, found in rl.items()]
    batch.ce = [CeRows(streams[name], _long(r for r, _ in found), _float(w for _, w in found)) for name, found in ce.items()]


_RlRow = tuple[int, float, float, float, int, float, float]


def _rl_rows(stream: Stream, found: Sequence[_RlRow]) -> RlRows:
    index, advantages, old, weights, places, reference, kl_weights = zip(*found, strict=True)
    rows = RlRows(stream, _long(index), _float(advantages), _float(old), _float(weights), _long(places))
    if stream.kl != "none":
        rows.reference_R, rows.kl_weights_R = _float(reference), _float(kl_weights)
    return rows


def _flat(values_NK: Sequence[Sequence[float]]) -> list[float]:
    return [value for row in values_NK for value in row]


def _long(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def _float(values: Iterable[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float32)
