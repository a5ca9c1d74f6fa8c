"""ARM-Thinker: Hermes with coordinates of 0 to 1000, and pictures by name: ``"image": "original_image"`` or "observation_1"."""

from __future__ import annotations

from .hermes import WIRES, Hermes
from .wire import Pictures, Vocabulary, Wire


def _by_name(wire: Wire) -> Wire:
    return Wire(wire.tool, {"image": "image", **wire.arguments})


ARM_THINKER = Hermes(
    "arm_thinker",
    "norm1000",
    Vocabulary({name: _by_name(wire) for name, wire in WIRES.items()}, Pictures("source", many=True)),
    break_lines=True,
)
