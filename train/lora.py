"""The student at the start of a run: whole weights, or a base with adapters.

A run with ``model.lora`` starts from one of three things, and never from two of them:

- a whole model: new adapters on it.
- an adapter of the same settings (rank, alpha, DoRA, rsLoRA, targets): training goes on with that adapter, on its base.
- an adapter of other settings: it is merged into its base, once, the result is written to the run's ``base`` folder, and new
  adapters go on that.

A run without ``model.lora`` that starts from an adapter merges it and trains the whole weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..vlm.folder import LoadError, resolve
from ..vlm.load import VLM, load, save
from ..vlm.lora import adapter_config, add_adapter, base_of, is_adapter, load_adapter, same_settings
from .config import ModelPart, RunConfig
from .lora_settings import lora_targets
from .ranks import ALONE, Ranks
from .update import checkpoint_layers

BASE = "base"


def load_student(config: RunConfig, folder: Path, name: str | None = None, ranks: Ranks = ALONE) -> VLM:
    """The model that a run trains, from ``name`` or what its recipe names; ``folder`` is the run's. Raises `LoadError`."""
    part = config.model
    start = name or part.name
    whole = part.lora is None
    vlm = load(start, **_how(part), freeze=part.freeze, merged=True) if whole else _adapted(config, folder, start, ranks)
    if part.gradient_checkpointing:
        checkpoint_layers(vlm)
    return vlm


def _adapted(config: RunConfig, folder: Path, start: str, ranks: Ranks) -> VLM:
    lora, parts, how = config.model.lora, lora_targets(config), _how(config.model)
    assert lora is not None
    merged = folder / BASE
    if ranks.first(lambda: (merged / "config.json").is_file()):  # made when the run began; a rank alone might see it half-way
        start = str(merged.resolve())
    found = resolve(start)
    vlm = load(base_of(found), **how, quantize=lora.quantize, unquantized=lora.modules_to_save)
    if lora.dora and lora.quantize == "8bit" and vlm.device.type == "cpu":
        raise LoadError(
            "model.lora: on a CPU the row lengths of dora cannot be read from 8-bit weights (PEFT loses their scales there); use "
            "quantize: 4bit, or dora: false"
        )
    vlm.name = _lasting(start)
    if is_adapter(found):
        if same_settings(vlm, found, adapter_config(vlm, lora, parts)):
            load_adapter(vlm, found, trainable=True)
            return vlm
        ranks.first(lambda: save(load(found, **how, merged=True), merged))
        return _adapted(config, folder, str(merged.resolve()), ranks)
    add_adapter(vlm, adapter_config(vlm, lora, parts), config.seed)
    return vlm


def _lasting(name: str) -> str:
    """A model's name as an adapter's file may keep it: of a folder the whole path."""
    path = Path(name).expanduser()
    return str(resolve(name).resolve()) if path.is_dir() and name != "tiny" else name


def _how(part: ModelPart) -> dict[str, Any]:
    return {
        "dtype": part.dtype,
        "device": part.device,
        "min_pixels": part.min_pixels,
        "max_pixels": part.max_pixels,
        "template_kwargs": part.template,
    }
