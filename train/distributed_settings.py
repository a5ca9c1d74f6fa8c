"""How a run is spread over processes. The work is in `ranks`, `lockstep` and `distributed`; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from ..datasets.crops import Part

if TYPE_CHECKING:
    from .config import RunConfig


class DistributedPart(Part):
    """What several ranks (torchrun, deepspeed, accelerate launch) share. A process on its own trains as without this part."""

    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage: 0, every rank holds everything and DeepSpeed is not needed; 1, each holds a share of the optimizer
    state; 2, of the gradients too; 3, of the weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in the host's memory: the optimizer state (zero 1 to 3), or the weights too (zero 3)."""
    minutes: float = pydantic.Field(60.0, gt=0)
    """How long a rank waits for the others before it gives up. Rank 0 evaluates and writes checkpoints while the rest wait."""
    settings: Mapping[str, Any] = pydantic.Field(default_factory=dict)
    """Further entries of DeepSpeed's ``zero_optimization``, as they are called there."""


def check_distributed(run: RunConfig) -> None:
    """Raise `ValueError` for settings that mean nothing together."""
    part = run.distributed
    if part.offload != "none" and not part.zero:
        raise ValueError("distributed.offload: it is DeepSpeed that offloads; set distributed.zero to 1, 2 or 3")
    if part.offload == "all" and part.zero != 3:
        raise ValueError(
            f"distributed.offload: all moves the weights, which zero {part.zero} keeps whole; use zero: 3 or optimizer"
        )
    if part.settings and not part.zero:
        raise ValueError("distributed.settings: they are DeepSpeed's; set distributed.zero to 1, 2 or 3")
    if part.zero == 3 and run.model.lora is not None and run.model.lora.quantize != "none":
        raise ValueError(
            "distributed.zero: 3 would cut up weights that bitsandbytes keeps packed with scales of their own; use zero: 2 (the "
            "quantised base is small), or model.lora.quantize: none"
        )
    if part.zero and run.optimizer.name == "muon":
        raise ValueError(
            "distributed.zero: Muon orthogonalises whole matrices, and ZeRO cuts all weights into one flat row; use zero: 0, or "
            "optimizer.name: adamw"
        )
