"""Qwen3.5: three linear-attention layers (gated delta rule) for each full one; pixels and positions as in Qwen3-VL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import TinySizes
from .qwen2_vl import vision_ids
from .qwen3_vl import Qwen3VL, qwen3_vision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Qwen35(Qwen3VL):
    name = "qwen3.5"
    model_type = "qwen3_5"
    can_share_prefix = False

    def tiny_config(self, sizes: TinySizes, token_ids: Mapping[str, int]) -> PreTrainedConfig:
        from transformers import Qwen3_5Config

        text: dict[str, Any] = {
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden,
            "intermediate_size": 2 * sizes.hidden,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.heads // 2,
            "head_dim": sizes.head_dim,
            "layer_types": ["full_attention" if layer % 2 else "linear_attention" for layer in range(sizes.layers)],
            "linear_key_head_dim": sizes.head_dim,
            "linear_value_head_dim": sizes.head_dim,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_interleaved": True,
                "partial_rotary_factor": 0.5,
                "mrope_section": sizes.mrope_section(sizes.head_dim // 4),
            },
            "initializer_range": sizes.initializer_range,
            "tie_word_embeddings": sizes.tie_word_embeddings,
            "eos_token_id": token_ids["<|im_end|>"],
            "pad_token_id": token_ids["<|endoftext|>"],
        }
        return Qwen3_5Config(text_config=text, vision_config=qwen3_vision(sizes), **vision_ids(sizes, token_ids))


FAMILY = Qwen35()
