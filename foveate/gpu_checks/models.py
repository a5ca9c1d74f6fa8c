"""Random models of real sizes, built on the device: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch

from ..vlm.attention import NAME, one_call_per_layer
from ..vlm.backbone import project_patches_by_matmul
from ..vlm.families.base import RESERVED_TOKENS
from ..vlm.families.registry import family_of
from ..vlm.folder import with_clock
from ..vlm.load import VLM, tiny_random
from ..vlm.render import Renderer
from ..vlm.scratch import CORPUS, train_tokenizer

VOCAB = 151_936
MOST_PIXELS = 2048 * 2048


def random_model(family_name: str, device: torch.device, quick: bool, dtype: torch.dtype = torch.float32) -> VLM:
    """``qwen3_vl`` of the size of Qwen3-VL-2B or ``qwen2_5_vl`` of the size of Qwen2.5-VL-3B, with random weights.

    The tokenizer is the small one of the tests, so most ids have no text.
    """
    if quick:
        return moved(tiny_random(family_name, initializer_range=0.02, max_pixels=MOST_PIXELS), device, dtype)
    return _built(family_name, {}, {}, device, dtype, MOST_PIXELS)


def served_model(device: torch.device, quick: bool, dtype: torch.dtype) -> VLM:
    """``qwen3_vl`` whose attention vLLM has kernels for, that of Qwen3-VL-2B or ``quick`` a small one; pictures of up to 1 MP."""
    if not quick:
        return _built("qwen3_vl", {}, {}, device, dtype, 1 << 20)
    text = {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_hidden_layers": 2, "initializer_range": 0.1,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 128, "intermediate_size": 128, "out_hidden_size": 256, "num_heads": 2,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0], "initializer_range": 0.1,
    }  # fmt: skip
    return _built("qwen3_vl", text, vision, device, dtype, 1 << 16)


def _built(
    family_name: str, text: dict[str, Any], vision: dict[str, Any], device: torch.device, dtype: torch.dtype, max_pixels: int
) -> VLM:
    from transformers import AutoModelForImageTextToText

    family = family_of(family_name)
    tokenizer = train_tokenizer(CORPUS, 512)
    vocab = tokenizer.get_vocab()
    config = CONFIGS[family_name]({token: vocab[token] for token in RESERVED_TOKENS})
    for part, changes in ((config.text_config, text), (config.vision_config, vision)):
        part.update(changes)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=NAME)
    model.to(device).eval()
    project_patches_by_matmul(model)
    one_call_per_layer(model)
    settings = with_clock(family.settings(max_pixels=max_pixels), model.config.to_dict())
    return VLM(model, Renderer(family, tokenizer, settings), family, f"{family.name}-random", tokenizer)


def moved(vlm: VLM, device: torch.device, dtype: torch.dtype = torch.float32) -> VLM:
    """The model, on a device and in a type."""
    module: torch.nn.Module = vlm.model
    module.to(device, dtype)
    return vlm


def _ids(token_ids: dict[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": token_ids["<|image_pad|>"],
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
        "vision_end_token_id": token_ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }


def _text(token_ids: dict[str, int], **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "max_position_embeddings": 128_000,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
        **more,
    }


def _qwen3_vl_2b(token_ids: dict[str, int]) -> Any:
    from transformers import Qwen3VLConfig

    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True, "mrope_section": [24, 20, 20]}
    text = _text(
        token_ids, intermediate_size=6144, num_hidden_layers=28, num_key_value_heads=8, head_dim=128, rope_parameters=rope
    )
    vision = {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2048, "num_heads": 16, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, **_ids(token_ids))


def _qwen2_5_vl_3b(token_ids: dict[str, int]) -> Any:
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = _text(token_ids, intermediate_size=11008, num_hidden_layers=36, num_key_value_heads=2, rope_parameters=rope)
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048, "num_heads": 16, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_ids(token_ids))


CONFIGS = {"qwen3_vl": _qwen3_vl_2b, "qwen2_5_vl": _qwen2_5_vl_3b}
