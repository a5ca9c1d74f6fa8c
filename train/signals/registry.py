"""Which file builds which signal."""

from __future__ import annotations

from ..config import DistillSignal, GrpoSignal, SftSignal
from .base import SignalBuilder
from .distill import Distill
from .grpo import Grpo
from .sft import Sft


def builder(config: SftSignal | DistillSignal | GrpoSignal) -> SignalBuilder:
    match config:
        case SftSignal():
            return Sft(config)
        case DistillSignal():
            return Distill(config)
        case GrpoSignal():
            return Grpo(config)
