"""Models in and out: load a Qwen-VL folder, save one, or make a small one from nothing.

Legend: V vocabulary, D width.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .attention import NAME, one_call_per_layer, register
from .backbone import project_patches_by_matmul
from .families.base import Family, TinySizes
from .families.registry import family_of
from .folder import (
    LoadError,
    copy_processor,
    family_in,
    read_json,
    read_settings,
    resolve,
    same_patches,
    save_processor,
    template_in,
    tokenizer_in,
    with_clock,
)
from .lora import ADAPTER_CONFIG, base_of, files_of, is_adapter, keep_gradients, load_adapter, merge, quantization, write_adapter
from .render import Renderer
from .scratch import CORPUS, build_model, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class VLM:
    """A model with all that is needed to speak to it.

    ``folder`` is where it was loaded from (of an adapter, where its processor's files are); None for one made from nothing.
    ``adapter`` says whether the model carries adapters: "" (none), "new" (they started as nothing), or "loaded".
    """

    model: PreTrainedModel
    renderer: Renderer
    family: Family
    name: str
    tokenizer: PreTrainedTokenizerBase
    folder: Path | None = None
    adapter: str = ""

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
    attention: str = NAME,
) -> VLM:
    """A small random model of a family, fp32 on the CPU, without any file; the global random state is not touched.

    ``initializer_range`` is large so that a wrong position or a stale cache shows in the logits; take 0.02 for training.
    ``patch_size`` 0 means the family's own; ``min_pixels`` 0 one token, ``max_pixels`` 0 256 tokens (small pictures, fast tests).
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
    project_patches_by_matmul(model)
    one_call_per_layer(model)
    token_px = (sizes.patch_size * merge_size) ** 2
    image = family.settings(
        patch_size=sizes.patch_size,
        merge_size=merge_size,
        min_pixels=min_pixels or token_px,
        max_pixels=max_pixels or 256 * token_px,
    )
    renderer = Renderer(family, tokenizer, with_clock(image, model.config.to_dict()))
    return VLM(model, renderer, family, f"{family.name}-tiny", tokenizer)


def _attention(name: str) -> str:
    """The value for ``attn_implementation``, known to transformers."""
    if name == NAME:
        register()
    return name


# ---- loading --------------------------------------------------------------------------------------------------------------


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    freeze: Sequence[str] = (),
    attention: str = NAME,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    merged: bool = False,
    trainable: bool = False,
    quantize: str = "none",
    unquantized: Sequence[str] = (),
) -> VLM:
    """A model from a folder in Hugging Face format, from the Hub, or the embedded one (``"tiny"``).

    A folder with an adapter gives its base with the adapter beside it, ``trainable`` or not, or with it ``merged`` into the
    weights. ``quantize`` ("4bit", "8bit") holds the base's linear layers in fewer bits, but for the head's and those of modules
    called ``unquantized``.

    ``dtype`` and ``device`` "auto": bfloat16 on the first CUDA device, else float32 on the CPU. ``min_pixels`` and ``max_pixels``
    replace the bounds of the folder's processor. ``freeze`` names parameter groups ("vision", "projector", "language").
    Raises `LoadError`; no weight is ever left at its random start.
    """
    from transformers import AutoModelForImageTextToText

    found = resolve(name)
    base = base_of(found)
    folder = files_of(found, base)
    config = read_json(base / "config.json")
    family = family_in(folder, config)
    tokenizer = tokenizer_in(folder)
    vocab_size = int((config.get("text_config") or {}).get("vocab_size") or config.get("vocab_size") or 0)
    largest = max(tokenizer.get_vocab().values())
    if vocab_size and largest >= vocab_size:
        raise LoadError(
            f"{folder}: the tokenizer has ids up to {largest} but the embedding only {vocab_size} rows; "
            "take the tokenizer and the weights of one model"
        )
    image = with_clock(read_settings(folder, family, min_pixels, max_pixels), config)
    same_patches(folder, image, config)
    try:
        renderer = Renderer(family, tokenizer, image, chat_template or template_in(folder, tokenizer), template_kwargs)
    except ValueError as error:
        raise LoadError(f"{folder}: {error}") from error
    target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    weights = _dtype(dtype, target)
    _quiet()
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        base,
        dtype=weights,
        attn_implementation=_attention(attention),
        output_loading_info=True,
        **({} if quantize == "none" else {**quantization(quantize, weights, unquantized), "device_map": {"": str(target)}}),
    )
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise LoadError(
            f"{base}: {len(missing)} weights are missing, such as {missing[0]}; the download or the checkpoint is incomplete"
        )
    if quantize != "none":
        keep_gradients(model)
    project_patches_by_matmul(model)
    one_call_per_layer(model)
    vlm = VLM((model if quantize != "none" else model.to(target)).eval(), renderer, family, str(name), tokenizer, folder)
    if is_adapter(found):
        load_adapter(vlm, found, trainable=trainable)
        if merged:
            merge(vlm)
    freeze_groups(vlm, freeze)
    return vlm


def freeze_groups(vlm: VLM, groups: Sequence[str]) -> None:
    """Stop the gradient of all parameters in these groups. Raises `LoadError` for a group that does not exist."""
    unknown = sorted(set(groups) - set(vlm.family.parameter_groups))
    if unknown:
        raise LoadError(
            f"freeze: no parameter group {', '.join(unknown)}; there are {', '.join(sorted(vlm.family.parameter_groups))}"
        )
    for name, parameter in vlm.model.named_parameters():
        if vlm.family.group_of(name) in groups:
            parameter.requires_grad_(False)


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    named["auto"] = torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in named:
        raise LoadError(f"dtype {dtype!r}: expected one of {', '.join(named)}")
    return named[dtype]


# ---- saving ---------------------------------------------------------------------------------------------------------------


def save(vlm: VLM, folder: str | os.PathLike[str]) -> None:
    """Write a model so that transformers and vLLM load it as it stands, with the pixel budget and the chat template in use.

    Atomic: the folder is complete or it is not there. An existing model folder is replaced; any other full folder is refused.
    """
    target = Path(folder)
    own = ("config.json", ADAPTER_CONFIG)
    if target.exists() and not any((target / name).is_file() for name in own) and any(target.iterdir()):
        raise LoadError(f"{target}: not empty and not a model folder; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _quiet()
        if vlm.adapter:
            write_adapter(vlm, unfinished)
        else:
            vlm.model.save_pretrained(unfinished)
        if vlm.folder is None:
            save_processor(vlm.renderer, unfinished)
        else:
            copy_processor(vlm.renderer, vlm.folder, unfinished)
        unfinished.chmod(0o755)
        if target.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.rename(target, replaced / "model")
            os.rename(unfinished, target)
            shutil.rmtree(replaced)
        else:
            os.rename(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _quiet() -> None:
    """No bar for every load and save: a run that writes a checkpoint every minute has one bar, its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
