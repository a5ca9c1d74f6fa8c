"""What is known of a model from its small files alone: no weight is downloaded or loaded.

Legend: D width, I width of the MLP, Q and KV widths of queries and of keys.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..train.config import ModelPart
from ..vlm.families.base import Family
from ..vlm.folder import (
    LoadError,
    family_in,
    read_json,
    read_settings,
    resolve,
    same_patches,
    template_in,
    tokenizer_in,
    with_clock,
)
from ..vlm.render import Renderer

_SMALL = ("*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Known:
    """A model without its weights. ``has_weights``: they are on this machine."""

    name: str
    folder: Path
    family: Family
    renderer: Renderer
    config: Mapping[str, Any]

    @property
    def has_weights(self) -> bool:
        return any(self.folder.glob("*.safetensors")) or any(self.folder.glob("*.bin"))


def known(part: ModelPart) -> Known:
    """Config, tokenizer and processor of the model that a recipe names. Raises `LoadError`."""
    folder = small_files(part.name)
    config = read_json(folder / "config.json")
    family = family_in(folder, config)
    tokenizer = tokenizer_in(folder)
    image = with_clock(read_settings(folder, family, part.min_pixels, part.max_pixels), config)
    same_patches(folder, image, config)
    renderer = Renderer(family, tokenizer, image, template_in(folder, tokenizer), part.template)
    return Known(part.name, folder, family, renderer, config)


def small_files(name: str) -> Path:
    """The model's folder; of a model on the Hub everything but the weights is fetched. Raises `LoadError`."""
    if name == "tiny" or Path(name).expanduser().is_dir() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return resolve(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_SMALL)))
    except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError, OSError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise LoadError(
            f"{name}: not a folder here, and the Hub does not give it{offline}: {str(error).splitlines()[0]}; check the name, "
            "connect or log in, or download it elsewhere and give the local folder as model.name"
        ) from error
    if not (folder / "config.json").is_file():
        raise LoadError(f"{name}: the Hub's folder has no config.json; give a model in Hugging Face format")
    return folder


# ---- sizes ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tower:
    """A stack of equal transformer layers of width ``d``. ``kept`` is how many numbers a layer keeps per token for backward,
    besides the two of width ``d`` of the residual stream: outputs of norms, queries, keys, values, attention's output, and the
    MLP's four."""

    layers: int
    d: int
    kv: int
    kept: int


def _kept(d: int, i: int, q: int, kv: int, normed_heads: bool = False, linear: bool = False) -> int:
    """`Tower.kept`. ``normed_heads``: queries and keys have norms of their own. ``linear``: most layers are gated delta rules,
    which keep about twice as much. Counted on transformers' models (`tests/test_doctor_plan.py`)."""
    return (2 if linear else 1) * (4 * d + (6 if normed_heads else 4) * (q + kv) + 4 * i)


@dataclass(frozen=True)
class Sizes:
    """Parameters by group ("vision", "projector", "language"), those that Muon takes, the shapes of the two towers, and by
    group the sum of rows and columns of all linear layers: an adapter of rank 1 has so many numbers."""

    parameters: Mapping[str, int]
    matrices: Mapping[str, int]
    language: Tower
    vision: Tower
    edges: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parameters.values())


def sizes(model: Known) -> Sizes:
    """Counted on the meta device: shapes without numbers. Tied weights count once."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    from ..train.optim import is_hidden_matrix

    config: Any = AutoConfig.from_pretrained(model.folder)
    with torch.device("meta"):
        made = AutoModelForImageTextToText.from_config(config)
    made.tie_weights()
    parameters, matrices = Counter[str](), Counter[str]()
    for name, one in made.named_parameters():
        group = model.family.group_of(name)
        parameters[group] += one.numel()
        matrices[group] += one.numel() if is_hidden_matrix(name, one) else 0
    edges = Counter[str]()
    for name, module in made.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head"):
            edges[model.family.group_of(f"{name}.weight")] += module.in_features + module.out_features
    text, vision = config.get_text_config().to_dict(), config.vision_config.to_dict()
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    linear = not model.family.can_share_prefix
    kv = head * text["num_key_value_heads"]
    inner = text.get("intermediate_size") or 4 * text["hidden_size"]
    normed = model.family.model_type in ("qwen3_vl", "qwen3_5")
    kept = _kept(text["hidden_size"], inner, head * text["num_attention_heads"], kv, normed, linear)
    language = Tower(text["num_hidden_layers"], text["hidden_size"], kv, kept)
    width = vision.get("embed_dim") if model.family.model_type == "qwen2_vl" else vision["hidden_size"]
    width = int(width or vision["hidden_size"])
    inner = vision.get("intermediate_size") or int(width * vision.get("mlp_ratio", 4))
    tower = Tower(vision["depth"], width, width, _kept(width, inner, width, width))
    return Sizes(parameters, matrices, language, tower, edges)
