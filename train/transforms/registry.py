"""The transform of a setting."""

from __future__ import annotations

from .base import Transform
from .dot import Dot
from .dyme import Dyme
from .rethink import Rethink
from .settings import AnyTransform, DotTransform, DymeTransform, RethinkTransform


def transform(config: AnyTransform) -> Transform:
    """A new transform, without any counts."""
    match config:
        case DotTransform():
            return Dot(config)
        case RethinkTransform():
            return Rethink(config)
        case DymeTransform():
            return Dyme(config)
