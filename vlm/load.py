"""Models in and out: load a Qwen-VL folder, save one, or make a small one from nothing.

Legend: V vocabulary, D width.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .families.base import Family, TinySizes
from .families.registry import FAMILIES, family_of
from .images import ImageSettings, PixelBudget
from .render import Renderer
from .scratch import CORPUS, build_model, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY_FOLDER = Path(__file__).parent / "tiny" / "weights"
_PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".safetensors.index.json", ".bin.index.json")


class LoadError(ValueError):
    """A model that cannot be loaded. Says what was found, what was expected and how to mend it."""


@dataclass
class VLM:
    """A model with all that is needed to speak to it.

    ``folder`` is where it was loaded from; None for one made from nothing.
    """

    model: PreTrainedModel
    renderer: Renderer
    family: Family
    name: str
    tokenizer: PreTrainedTokenizerBase
    folder: Path | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def head_weight(self) -> torch.Tensor:
        """``[V, D]`` weight of the output head (shared with the embedding where the model ties them)."""
        head = self.model.get_output_embeddings()
        assert head is not None
        weight = head.weight
        assert isinstance(weight, torch.Tensor)
        return weight


def tiny_random(
    family_name: str,
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    vocab_size: int = 512,
    vision_hidden: int = 32,
    vision_layers: int = 2,
    patch_size: int = 0,
    merge_size: int = 2,
    min_pixels: int = 0,
    max_pixels: int = 0,
    initializer_range: float = 0.2,
    corpus: Sequence[str] = CORPUS,
    chat_template: str | None = None,
    attention: str = "foveate",
) -> VLM:
    """A small random model of a family, fp32 on the CPU, without any file; the global random state is not touched.

    ``initializer_range`` is large so that a wrong position or a stale cache shows in the logits; take 0.02 for training.
    ``patch_size`` 0 means the family's own; ``min_pixels`` 0 one token, ``max_pixels`` 0 256 tokens (fast tests on small pictures).
    """
    family = family_of(family_name)
    tokenizer = train_tokenizer(corpus, vocab_size)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    sizes = TinySizes(
        vocab_size=vocab_size,
        hidden=hidden,
        layers=layers,
        vision_hidden=vision_hidden,
        vision_layers=vision_layers,
        patch_size=patch_size or family.patch_size,
        merge_size=merge_size,
        initializer_range=initializer_range,
    )
    model = build_model(family, tokenizer, sizes, seed, _attention(attention))
    token_px = (sizes.patch_size * merge_size) ** 2
    image = family.settings(patch_size=sizes.patch_size, merge_size=merge_size, min_pixels=min_pixels or token_px, max_pixels=max_pixels or 256 * token_px)
    renderer = Renderer(family, tokenizer, _with_clock(image, model.config.to_dict()))
    return VLM(model, renderer, family, f"{family.name}-tiny", tokenizer)


def _attention(name: str) -> str | dict[str, str]:
    """The value for ``attn_implementation``; "foveate" is for the language model, never for the vision tower."""
    if name != "foveate":
        return name
    from importlib.util import find_spec

    if find_spec(f"{__package__}.attention") is None:
        return "sdpa"
    from importlib import import_module

    import_module(f"{__package__}.attention").register()
    return {"text_config": "foveate", "vision_config": "sdpa"}


def _with_clock(image: ImageSettings, config: dict[str, Any]) -> ImageSettings:
    """``tokens_per_second`` is a setting of the model, not of its processor."""
    per_second = float(config["vision_config"].get("tokens_per_second", 1.0))
    return dataclasses.replace(image, video=dataclasses.replace(image.video, tokens_per_second=per_second))
