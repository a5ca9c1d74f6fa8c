"""One optimizer step: student forward, teacher forward, loss, backward, clip, step. Knows streams, not methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..vlm.backbone import hidden_rows
from ..vlm.load import VLM
from .batch import Batch, RowAddress
from .losses import HeadStats, KDRows, RowLoss, head_loss
from .policy import kl_estimate, kl_rows, needs_current, policy_rows
from .streams import Stream

if TYPE_CHECKING:
    from .teacher import Teacher


@dataclass
class Tally:
    """Sums over a step's rows, for means that do not depend on how the step was cut."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: torch.Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(values.sum())
        self.counts[name] = self.counts.get(name, 0.0) + values.numel()

    def means(self) -> dict[str, float]:
        return {name: total / max(1.0, self.counts[name]) for name, total in self.sums.items()}


@dataclass
class Gradients:
    """What `accumulate` found: the loss, means per row, and the divergence of every loss row by its address."""

    loss: float
    tally: Tally
    divergence_of: dict[tuple[str, int], list[list[float]]]


Through = Callable[[Callable[[], torch.Tensor], bool], torch.Tensor]
"""(forward pass, whether it is the update's last) -> its loss, detached, with the gradients added up."""


def plainly(forward: Callable[[], torch.Tensor], last: bool) -> torch.Tensor:
    """Forward and backward in one process."""
    loss = forward()
    loss.backward()
    return loss.detach()


def compute_dtype(vlm: VLM, compute: str) -> torch.dtype | None:
    """Type of the arithmetic where it is narrower than the weights: bfloat16 on CUDA (compute: auto) or when asked for."""
    if compute == "float32" or (compute == "auto" and vlm.device.type != "cuda"):
        return None
    return torch.bfloat16


def checkpoint_layers(vlm: VLM) -> None:
    """Recompute the layers' activations in backward in place of keeping them: the same gradients from less memory."""
    model: Any = vlm.model
    try:
        enable = model.activation_checkpointing_enable
    except AttributeError:  # transformers before 5.23
        enable = model.gradient_checkpointing_enable
    enable()
    vlm.model.train()  # transformers ignores the setting in eval mode; the families have no dropout that this could switch on


def accumulate(
    vlm: VLM,
    teacher: Teacher | None,
    batches: Sequence[Batch],
    temperature: float,
    compute: str = "auto",
    through: Through = plainly,
) -> Gradients:
    """Forward and backward over all micro-batches; the gradients of their sum are left in ``.grad``.

    Teacher and student read their own prompts and pictures; the head, the log-probs and the divergences are computed in chunks
    of rows from hidden states, so no rows x vocabulary tensor exists.
    """
    found = Gradients(0.0, Tally(), {})

    def forward(batch: Batch) -> torch.Tensor:
        teacher_hidden = None
        if batch.teacher is not None:
            assert teacher is not None, "a kd stream needs a teacher"
            with torch.no_grad(), _autocast(vlm, compute):
                teacher_hidden = hidden_rows(teacher.vlm, batch.teacher, batch.teacher_keep_R)
        with _autocast(vlm, compute):
            hidden = hidden_rows(vlm, batch.packed, batch.keep_R)
            current_R = _logprobs(vlm, batch, hidden, temperature) if any(map(needs_current, batch.rl)) else None
            rows = _row_loss(batch, teacher, teacher_hidden, current_R, vlm.device, found.tally)
            loss, stats = head_loss(
                hidden, vlm.head_weight, rows, temperature=temperature, banned_ids=vlm.renderer.banned_ids, want_entropy=True
            )
        _record(found, batch, stats)
        return loss

    for place, batch in enumerate(batches, 1):
        found.loss += float(through(functools.partial(forward, batch), place == len(batches)))
    return found


def remember_start(vlm: VLM, batches: Sequence[Batch], temperature: float, compute: str = "auto") -> None:
    """Keep the log-probs of now with the rows of streams that correct for the engine: ratios of several updates start there."""
    for batch in batches:
        parts = [part for part in batch.rl if part.stream.correction != "none"]
        if parts:
            with torch.no_grad(), _autocast(vlm, compute):
                logprobs_R = _logprobs(vlm, batch, hidden_rows(vlm, batch.packed, batch.keep_R), temperature)
            for part in parts:
                part.start_logprobs_R = logprobs_R[part.index_R.to(logprobs_R.device)]


def _autocast(vlm: VLM, compute: str) -> torch.autocast:
    dtype = compute_dtype(vlm, compute)
    return torch.autocast(vlm.device.type, dtype, enabled=dtype is not None)


@torch.no_grad()
def _logprobs(vlm: VLM, batch: Batch, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probs of the batch's rows, [R], computed exactly as the loss computes them."""
    rows = RowLoss(targets_R=batch.targets_R.to(vlm.device))
    _, stats = head_loss(hidden, vlm.head_weight, rows, temperature=temperature, banned_ids=vlm.renderer.banned_ids)
    return stats.logprobs_R


def _row_loss(
    batch: Batch,
    teacher: Teacher | None,
    teacher_hidden: torch.Tensor | None,
    current_R: torch.Tensor | None,
    device: torch.device,
    tally: Tally,
) -> RowLoss:
    ce = torch.zeros(len(batch.keep_R))
    for part in batch.ce:
        ce.index_add_(0, part.index_R, part.weights_R)
    policy = []
    for row in batch.rl:
        term, seen = policy_rows(row, current_R, device)
        policy.append(term)
        for name, values in seen.items():
            tally.add(f"loss/{row.stream.name}/{name}", values)
    policy += [pull for row in batch.rl if (pull := kl_rows(row, device)) is not None]  # after the policy terms: see _record
    kd = []
    head_VD = teacher.vlm.head_weight if teacher is not None and batch.kd else None  # once: it may have to be fetched
    for one in batch.kd:
        assert teacher is not None
        assert teacher_hidden is not None
        assert head_VD is not None
        kd.append(
            KDRows(
                index_R=one.index_R.to(device),
                weights_R=one.weights_R.to(device),
                divergence=one.stream.divergence,
                beta=one.stream.beta,
                support=one.stream.support,
                top_c=one.stream.top_c,
                term_clip=one.stream.term_clip,
                temperature=one.stream.temperature,
                mix=teacher.mix,
                teacher_hidden_RD=teacher_hidden[one.teacher_index_R.to(device)],
                teacher_weight_VD=head_VD,
            )
        )
    return RowLoss(targets_R=batch.targets_R.to(device), ce_weights_R=ce.to(device) if batch.ce else None, policy=policy, kd=kd)


def _record(found: Gradients, batch: Batch, stats: HeadStats) -> None:
    for part, values in zip(batch.kd, stats.kd_R, strict=True):
        found.tally.add(f"loss/{part.stream.name}/divergence", values)
        if part.stream.name == "distill":
            _by_address(found.divergence_of, [batch.addresses[index] for index in part.index_R.tolist()], values.tolist())
    for row, seen in zip(batch.rl, stats.policy[: len(batch.rl)], strict=True):
        name, stream = f"loss/{row.stream.name}", row.stream
        found.tally.add(f"{name}/advantage", row.advantages_R)
        found.tally.add(f"{name}/ratio", seen.ratio_R)
        if stream.policy == "cispo" and stream.clip_high is not None:
            found.tally.add(f"{name}/clipped_frac", (seen.ratio_R > 1 + stream.clip_high).float())
        elif stream.clip_low is not None or stream.clip_high is not None:
            found.tally.add(f"{name}/clipped_frac", seen.clipped_R.float())
        if row.reference_R is not None:
            now_R = stats.logprobs_R[row.index_R.to(stats.logprobs_R.device)]
            found.tally.add(f"{name}/kl", kl_estimate(stream.kl, now_R, row.reference_R.to(now_R.device)))
    for term in batch.ce:
        found.tally.add(f"loss/{term.stream.name}/nll", -stats.logprobs_R[term.index_R.to(stats.logprobs_R.device)])
    if stats.entropy_R is not None:
        found.tally.add("policy/entropy", stats.entropy_R[: len(batch.addresses)])


def _by_address(
    store: dict[tuple[str, int], list[list[float]]], addresses: Sequence[RowAddress], values: Sequence[float]
) -> None:
    for address, value in zip(addresses, values, strict=True):
        turns = store.setdefault(
            (address.rollout.group_id, address.rollout.index), [[0.0] * len(turn.action_ids_K) for turn in address.rollout.turns]
        )
        turns[address.turn][address.k] = value


def streams_by_name(streams: Iterator[Stream] | Sequence[Stream]) -> Mapping[str, Stream]:
    """Streams by name; two of one name are a programming error."""
    table: dict[str, Stream] = {}
    for stream in streams:
        assert stream.name not in table, f"two streams named {stream.name}"
        table[stream.name] = stream
    return table
