"""Qwen2-VL: M-RoPE with one step per temporal patch, boxes from 0 to 1000 (Wang et al. 2024, arXiv 2409.12191)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import CLIP_MEAN, CLIP_STD, Coords, Family, TinySizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Qwen2VL(Family):
    name = "qwen2-vl"
    model_type = "qwen2_vl"
    coords: Coords = "norm1000"
    patch_size = 14
    mean, std = CLIP_MEAN, CLIP_STD
    processor_class = "Qwen2VLProcessor"
    video_processor_class = "Qwen2VLVideoProcessor"
    min_pixels, max_pixels = 56 * 56, 28 * 28 * 1280
    video_min_pixels, video_max_pixels = 128 * 28 * 28, 768 * 28 * 28

    def tiny_config(self, sizes: TinySizes, token_ids: Mapping[str, int]) -> PreTrainedConfig:
        from transformers import Qwen2VLConfig

        vision: dict[str, Any] = {
            "depth": sizes.vision_layers,
            "embed_dim": sizes.vision_hidden,
            "hidden_size": sizes.hidden,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": sizes.patch_size,
            "spatial_merge_size": sizes.merge_size,
            "temporal_patch_size": 2,
            "initializer_range": sizes.initializer_range,
        }
        return Qwen2VLConfig(text_config=qwen2_text(sizes, token_ids), vision_config=vision, **vision_ids(sizes, token_ids))


def qwen2_text(sizes: TinySizes, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """Text settings shared by Qwen2-VL and Qwen2.5-VL."""
    return {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden,
        "intermediate_size": 2 * sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads // 2,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": sizes.mrope_section(sizes.head_dim // 2),
        },
        "initializer_range": sizes.initializer_range,
        "tie_word_embeddings": sizes.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
    }


def vision_ids(sizes: TinySizes, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """The ids of the vision tokens as the configs of all families name them."""
    return {
        "image_token_id": token_ids["<|image_pad|>"],
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
        "vision_end_token_id": token_ids["<|vision_end|>"],
        "tie_word_embeddings": sizes.tie_word_embeddings,
    }


FAMILY = Qwen2VL()
