"""Settings of selective sample replay. The buffer is in `replay`."""

from __future__ import annotations

from ..datasets.crops import Part


class ReplaySpec(Part):
    """Selective sample replay (VL-Rethinker, 2504.08837)."""
