"""Settings of group transforms: what is done to a step's groups after their rewards and before their advantages."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from ...datasets.crops import Part


class DotTransform(Part):
    """Dynamic outlier truncation (DOT, 2601.03969)."""

    kind: Literal["dot"]


AnyTransform = Annotated[DotTransform, pydantic.Field(discriminator="kind")]
