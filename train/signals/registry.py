"""Which file builds which signal."""

from __future__ import annotations

from .base import SignalBuilder
from .distill import Distill
from .distill_settings import DistillSignal
from .grpo import Grpo
from .settings import GrpoSignal, SftSignal
from .sft import Sft


def builder(config: SftSignal | DistillSignal | GrpoSignal) -> SignalBuilder:
    match config:
        case SftSignal():
            return Sft(config)
        case DistillSignal():
            return Distill(config)
        case GrpoSignal():
            return Grpo(config)
