"""The transform of a setting."""

from __future__ import annotations

from .base import Transform
from .settings import AnyTransform


def transform(config: AnyTransform) -> Transform:
    raise NotImplementedError(config.kind)
