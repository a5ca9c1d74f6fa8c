"""Qwen3-VL: interleaved M-RoPE, deepstack, each temporal patch of a video under its own timestamp, boxes from 0 to 1000
(Bai et al. 2025, arXiv 2511.21631)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..images import ImageSettings
from ..messages import Clip
from ..segments import VisualItem
from .base import HALF, IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START, Family, TinySizes, timestamps_s
from .qwen2_vl import vision_ids

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Qwen3VL(Family):
    name = "qwen3-vl"
    model_type = "qwen3_vl"
    coords = "norm1000"
    patch_size = 16
    mean, std = HALF, HALF
    processor_class = "Qwen3VLProcessor"
    video_processor_class = "Qwen3VLVideoProcessor"
    min_pixels, max_pixels = 64 * 32 * 32, 16384 * 32 * 32
    video_min_pixels, video_max_pixels = 128 * 32 * 32, 768 * 32 * 32

    def clip_size(self, clip: Clip, settings: ImageSettings) -> tuple[int, int]:
        """``(width, height)`` in px of the resized frames: all frames together have the video budget."""
        width, height = clip.frames[0].size_px
        if min(width, height) < settings.factor:
            scale = max(settings.factor / width, settings.factor / height)
            width, height = int(width * scale), int(height * scale)
        frames = max(len(clip.frames), settings.temporal_patch_size)
        return settings.video.budget.resized(width, height, settings.factor, frames, settings.temporal_patch_size)

    def blocks(self, item: VisualItem) -> int:
        return item.grid_thw[0] if item.kind == "video" else 1

    def visual_text(self, item: VisualItem, settings: ImageSettings) -> str:
        if not isinstance(item.source, Clip):
            return IMAGE_PAD
        times = timestamps_s(item.source, settings.temporal_patch_size)
        return "".join(f"<{time:.1f} seconds>{VISION_START}{VIDEO_PAD}{VISION_END}" for time in times)

    def tiny_config(self, sizes: TinySizes, token_ids: Mapping[str, int]) -> PreTrainedConfig:
        from transformers import Qwen3VLConfig

        text: dict[str, Any] = {
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden,
            "intermediate_size": 2 * sizes.hidden,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.heads // 2,
            "head_dim": sizes.head_dim,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_interleaved": True,
                "mrope_section": sizes.mrope_section(sizes.head_dim // 2),
            },
            "initializer_range": sizes.initializer_range,
            "tie_word_embeddings": sizes.tie_word_embeddings,
            "pad_token_id": token_ids["<|endoftext|>"],
        }
        vision = qwen3_vision(sizes)
        vision["deepstack_visual_indexes"] = list(range(min(sizes.layers, sizes.vision_layers - 1)))
        return Qwen3VLConfig(text_config=text, vision_config=vision, **vision_ids(sizes, token_ids))


def qwen3_vision(sizes: TinySizes) -> dict[str, Any]:
    """Vision settings shared by Qwen3-VL and Qwen3.5."""
    return {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": 2 * sizes.vision_hidden,
        "out_hidden_size": sizes.hidden,
        "num_heads": 2,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": sizes.merge_size,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "initializer_range": sizes.initializer_range,
    }


FAMILY = Qwen3VL()
