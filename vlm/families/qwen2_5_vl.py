"""Qwen2.5-VL: window attention in the tower, time positions in real seconds, boxes in pixels of the resized picture
(Bai et al. 2025, arXiv 2502.13923)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..images import ImageSettings
from ..segments import VisualItem
from .base import Coords, TinySizes
from .qwen2_vl import Qwen2VL, qwen2_text, vision_ids

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Qwen25VL(Qwen2VL):
    name = "qwen2.5-vl"
    model_type = "qwen2_5_vl"
    coords: Coords = "abs_resized"
    processor_class = "Qwen2_5_VLProcessor"

    def time_step(self, item: VisualItem, settings: ImageSettings) -> float:
        return settings.video.tokens_per_second * item.seconds_per_grid if item.kind == "video" else 1.0

    def tiny_config(self, sizes: TinySizes, token_ids: Mapping[str, int]) -> PreTrainedConfig:
        from transformers import Qwen2_5_VLConfig

        vision: dict[str, Any] = {
            "depth": sizes.vision_layers,
            "hidden_size": sizes.vision_hidden,
            "intermediate_size": 2 * sizes.vision_hidden,
            "out_hidden_size": sizes.hidden,
            "num_heads": 2,
            "patch_size": sizes.patch_size,
            "spatial_merge_size": sizes.merge_size,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 8 * sizes.patch_size,
            "fullatt_block_indexes": [sizes.vision_layers - 1],
            "initializer_range": sizes.initializer_range,
        }
        return Qwen2_5_VLConfig(text_config=qwen2_text(sizes, token_ids), vision_config=vision, **vision_ids(sizes, token_ids))


FAMILY = Qwen25VL()
