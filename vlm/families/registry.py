"""The families by the ``model_type`` of their config, in order of appearance."""

from __future__ import annotations

from . import qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl
from .base import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (qwen2_vl.FAMILY, qwen2_5_vl.FAMILY, qwen3_vl.FAMILY, qwen3_5.FAMILY)
}


def family_of(name: str) -> Family:
    """The family with this name ("qwen2.5-vl") or model type ("qwen2_5_vl"). Raises `ValueError` that lists those there are."""
    for family in FAMILIES.values():
        if name in (family.name, family.model_type):
            return family
    known = ", ".join(f"{family.name} ({family.model_type})" for family in FAMILIES.values())
    raise ValueError(f"{name!r} is not a supported model family; supported: {known}")
