"""One update by several ranks: sums of gradients, and who learns from what.

Every rank holds the whole step's signals and learns from its share of the groups; losses carry the step's denominators (law 6),
so gradients and losses of ranks are added up and nothing is averaged.

    zero 0        gradients are added in one go after the last micro-batch; torch alone
    zero 1 to 3   DeepSpeed, see `zero`

What happens without gradients (sampling, scoring, evaluation, saving, handing weights to an engine) happens inside
`Spread.whole`, with all weights on every rank: there ranks may differ in what they call, and how often.

Checkpoints do not show how many ranks there were: the model is one Hugging Face folder, and the optimizer's state is that of
`optim.Optimizer`, whole tensors by parameter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..vlm.load import VLM
from ..vlm.records import Signal
from .config import RunConfig
from .optim import Optimizer, build_optimizer
from .ranks import Ranks
from .update import Gradients, Tally, Through, plainly

_BUCKET_NUMBERS = 16_000_000


class Spread:
    """How ranks share an update, all of them holding all weights; with one rank, nothing at all."""

    through: Through = staticmethod(plainly)
    """Forward and backward of one micro-batch."""

    def __init__(self, ranks: Ranks, vlm: VLM, optimizer: Optimizer) -> None:
        self.ranks, self.vlm, self.optimizer = ranks, vlm, optimizer

    @property
    def in_step(self) -> bool:
        """Whether ranks must go through the same micro-batches (`lockstep`)."""
        return False

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Within it all weights are on every rank."""
        return contextlib.nullcontext()

    def norm(self) -> float | None:
        """Add up the gradients of all ranks. None: they lie in ``.grad``; else the norm of those that lie elsewhere."""
        if self.ranks.size > 1:
            sum_gradients([one for one in self.vlm.model.parameters() if one.requires_grad])
        return None


def build_spread(config: RunConfig, vlm: VLM, ranks: Ranks, total_updates: int) -> Spread:
    """The optimizer of a run, and how its updates are shared. Raises `ValueError` for what cannot be shared so."""
    named = vlm.model.named_parameters()
    if ranks.size == 1 or not config.distributed.zero:
        return Spread(ranks, vlm, build_optimizer(named, config.optimizer, total_updates))
    if config.distributed.zero == 3 and not vlm.family.can_share_prefix:
        raise ValueError(
            f"distributed.zero: {vlm.family.name} runs sequence by sequence, and ZeRO-3 waits until all ranks call a layer "
            "equally often; use zero: 2"
        )
    types = sorted({str(one.dtype).removeprefix("torch.") for one in vlm.model.parameters() if one.requires_grad})
    if len(types) > 1:
        raise ValueError(
            f"distributed.zero: it lays all trained weights into one row, and these are {' and '.join(types)} (adapters are "
            "always float32, model.lora.modules_to_save have the base's type); use model.dtype: float32, no modules_to_save, or "
            "zero: 0"
        )
    from .zero import Zero, ZeroOptimizer

    return Zero(ranks, vlm, ZeroOptimizer(config, vlm, build_optimizer(named, config.optimizer, total_updates), ranks))


def my_share(signals: Sequence[Signal], ranks: Ranks) -> list[Signal]:
    """The signals that this rank learns from. A group is never cut; the longest go first, each to the rank that has least."""
    groups: dict[str, list[Signal]] = {}
    for one in signals:
        groups.setdefault(one.rollout.group_id, []).append(one)
    load = [0] * ranks.size
    mine: set[str] = set()
    for name, group in sorted(groups.items(), key=lambda item: -_tokens(item[1])):
        owner = load.index(min(load))
        load[owner] += _tokens(group)
        if owner == ranks.rank:
            mine.add(name)
    return [one for one in signals if one.rollout.group_id in mine]


def _tokens(group: Sequence[Signal]) -> int:
    return sum(one.rollout.num_actions for one in group)


def summed(found: Gradients, ranks: Ranks) -> Gradients:
    """The loss and the tally of all ranks."""
    if ranks.size == 1:
        return found
    tally = Tally(ranks.summed(found.tally.sums), ranks.summed(found.tally.counts))
    return Gradients(sum(ranks.gather(found.loss)), tally, found.divergence_of)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up ``.grad`` over ranks. One that no rank has stays None, so that its weight is left alone as in one process."""
    having = torch.tensor([float(one.grad is not None) for one in parameters])
    dist.all_reduce(having)
    wanted = [one for one, ranks in zip(parameters, having.tolist(), strict=True) if ranks]
    bucket: list[Tensor] = []
    for place, one in enumerate(wanted, 1):
        one.grad = torch.zeros_like(one) if one.grad is None else one.grad
        bucket.append(one.grad)
        last = place == len(wanted)
        if last or sum(map(torch.numel, bucket)) > _BUCKET_NUMBERS or wanted[place].dtype != one.dtype:
            flat = torch.cat([grad.flatten() for grad in bucket])
            dist.all_reduce(flat)
            for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(part.view_as(grad))
            bucket = []
