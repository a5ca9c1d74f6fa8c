"""Which file builds which signal."""

from __future__ import annotations

from ..exposure import Exposure
from .base import SignalBuilder
from .distill import Distill
from .distill_settings import DistillSignal
from .grpo import Grpo
from .settings import GrpoSignal, SftSignal
from .sft import Sft


def builder(config: SftSignal | DistillSignal | GrpoSignal, exposure: Exposure | None = None) -> SignalBuilder:
    """The builder of a signal; ``exposure`` decides how much of the rationale a distilling teacher sees."""
    match config:
        case SftSignal():
            return Sft(config)
        case DistillSignal():
            return Distill(config, exposure=exposure if config.exposure else None)
        case GrpoSignal():
            return Grpo(config)
