"""Adapters on a model: LoRA, DoRA, rsLoRA and QLoRA by PEFT, in PEFT's own files.

A folder with an adapter loads like any other model: the base that its ``adapter_config.json`` names, then the adapter. Adapter
weights are always *put into* the one adapter that is there, never added as another, so nothing is counted twice.

`Beside` is the model as it would be with other adapter weights, or with none: a teacher that shares the base with its student.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .families.base import Family
from .folder import LoadError, read_json, resolve

if TYPE_CHECKING:
    from .load import VLM

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_NO_ADAPTER = ("lm_head", "embed_tokens")
"""The loss reads the head's weight itself, and many models share it with the embedding."""


class LoraSettings(Protocol):
    """What is read from a recipe's ``model.lora``."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def dora(self) -> bool: ...
    @property
    def rslora(self) -> bool: ...
    @property
    def modules_to_save(self) -> tuple[str, ...]: ...


# ---- folders --------------------------------------------------------------------------------------------------------------


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> Path:
    """The folder of the weights under an adapter, or ``folder`` itself for a whole model. Raises `LoadError`.

    A run that was moved takes its own ``base`` folder along, which is then found where the recorded path is not.
    """
    if not is_adapter(folder):
        return folder
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name:
        raise LoadError(f"{folder / ADAPTER_CONFIG}: no base_model_name_or_path; write the base model's folder or Hub name there")
    moved = folder.parent.parent / "base"
    if not Path(name).is_dir() and Path(name).name == "base" and (moved / "config.json").is_file():
        return moved
    try:
        base = resolve(name)
    except LoadError as error:
        raise LoadError(f"{folder}: its base model cannot be found: {error} (see {ADAPTER_CONFIG})") from error
    if is_adapter(base):
        raise LoadError(f"{folder}: its base {base} is an adapter itself; merge that first: foveate merge {base} OUT")
    return base


def files_of(folder: Path, base: Path) -> Path:
    """Where tokenizer and processor are: beside the adapter, or with its base."""
    return folder if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")) else base


def write_adapter(vlm: VLM, folder: Path) -> None:
    """``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT writes and reads them."""
    model: Any = vlm.model
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form for a model card, with nothing filled in


def read_adapter(vlm: VLM, folder: Path) -> None:
    """Put the adapter weights of a folder into the adapter that ``vlm`` has. Raises `ValueError` for another one."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(folder / _WEIGHTS)
    own = get_peft_model_state_dict(vlm.model, save_embedding_layers=False)
    odd = unlike(own, state)
    if odd:
        raise ValueError(
            f"{folder / _WEIGHTS}: an adapter of other settings ({len(odd)} weights differ, such as {odd[0]}); go on with the "
            "model.lora that it was trained with"
        )
    set_peft_model_state_dict(vlm.model, state)


def unlike(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Names of weights that one of two states lacks, or has in another shape."""
    odd = sorted(own.keys() ^ state.keys())
    return odd + [name for name in own if name in state and own[name].shape != state[name].shape]


# ---- building -------------------------------------------------------------------------------------------------------------


def target_names(model: nn.Module, family: Family, parts: Sequence[str]) -> list[str]:
    """Names of the linear layers in these parts of the model; none in a part raises `LoadError`. The head is left out."""
    found: dict[str, list[str]] = {part: [] for part in parts}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(_NO_ADAPTER):
            group = family.group_of(f"{name}.weight")
            if group in found:
                found[group].append(name)
    empty = [part for part, names in found.items() if not names]
    if empty:
        raise LoadError(
            f"model.lora: no linear layer of this {family.name} model belongs to {', '.join(empty)}; parts are "
            f"{', '.join(sorted(family.parameter_groups))}"
        )
    return [name for names in found.values() for name in names]


def adapter_config(vlm: VLM, settings: LoraSettings, parts: Sequence[str]) -> Any:
    """PEFT's settings for adapters on ``parts`` of a model that has none. Raises `LoadError`."""
    lora = _peft().LoraConfig
    targets = target_names(vlm.model, vlm.family, parts)
    for module in settings.modules_to_save:
        if module in _NO_ADAPTER:
            raise LoadError(f"model.lora.modules_to_save: {module} cannot be trained beside adapters; name other modules")
        owners = [name for name, _ in vlm.model.named_modules() if name.endswith(f".{module}")]
        if not owners:
            raise LoadError(f"model.lora.modules_to_save: no module of this {vlm.family.name} model is called {module}")
        if any(name.startswith(f"{owner}.") or name == owner for name in targets for owner in owners):
            raise LoadError(
                f"model.lora.modules_to_save: {module} has layers that model.lora.targets give adapters; a layer is trained as a "
                "whole or by an adapter: take it out of one of the two"
            )
    # \d+ for the numbers: a line for each kind of layer, not for each layer
    kinds = sorted({re.sub(r"(?<=\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in targets})
    return lora(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(kinds),
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        modules_to_save=list(settings.modules_to_save) or None,
    )


def same_settings(vlm: VLM, folder: Path, config: Any) -> bool:
    """Whether the adapter in ``folder`` is what ``config`` would make on this model, so that its training can be gone on with."""
    saved = read_json(folder / ADAPTER_CONFIG)
    plain = {
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }
    plain |= {"peft_type": "LORA", "r": config.r, "lora_alpha": config.lora_alpha}
    names = [name for name, _ in vlm.model.named_modules()]
    return (
        all((saved.get(key) or value) == value and bool(saved.get(key)) == bool(value) for key, value in plain.items())
        and sorted(saved.get("modules_to_save") or ()) == sorted(config.modules_to_save or ())
        and _matching(names, saved.get("target_modules")) == _matching(names, config.target_modules)
    )


def _matching(names: Sequence[str], targets: str | Sequence[str] | None) -> list[str]:
    if isinstance(targets, str):
        return [name for name in names if re.fullmatch(targets, name)]
    return [name for name in names if any(name == one or name.endswith(f".{one}") for one in targets or ())]


def add_adapter(vlm: VLM, config: Any, seed: int) -> None:
    """Give a model new adapters that change nothing yet, and stop the gradient of everything else.

    The start values come from ``seed`` alone; the global random state is not touched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = _peft().get_peft_model(vlm.model, config)
    config.base_model_name_or_path = vlm.name  # PEFT has put the folder there, which of a Hub name is this machine's cache
    _take(vlm, model, "new")


def load_adapter(vlm: VLM, folder: Path, *, trainable: bool = False) -> None:
    """Load an adapter onto the plain model that it belongs to. Raises `LoadError`."""
    try:
        model: Any = _peft().PeftModel.from_pretrained(vlm.model, folder, is_trainable=trainable)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise LoadError(f"{folder}: the adapter does not fit {vlm.folder} ({error}); take both of one training") from error
    _take(vlm, model, "loaded")


def merge(vlm: VLM) -> None:
    """Add the adapters to the weights they sit on; a plain model is left. Raises `LoadError` for a quantised base."""
    model: Any = vlm.model
    if model.get_base_model().config.to_dict().get("quantization_config"):
        raise LoadError("merge: the base weights are quantised; load the base without quantisation and merge there")
    vlm.model = model.merge_and_unload(safe_merge=True)
    vlm.model.requires_grad_(True)
    vlm.adapter = ""


def merged_model(folder: Path, dtype: str | None = None) -> VLM:
    """The base of an adapter with the adapter merged in, on the CPU, added in fp32 and then rounded to ``dtype`` (None: that of
    the base's files)."""
    from .load import load

    config = read_json(base_of(folder) / "config.json")
    name = dtype or config.get("dtype") or config.get("torch_dtype") or "float32"
    vlm = load(folder, dtype="float32", device="cpu", merged=True)
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in types:
        raise LoadError(f"{base_of(folder)}: its weights have type {name}; give one of float32, bfloat16")
    model: Any = vlm.model
    model.to(types[name])
    return vlm


def _take(vlm: VLM, model: Any, kind: str) -> None:
    for module in model.modules():
        if type(module) is nn.Dropout and module.p:
            module.__class__ = LearningDropout
    vlm.model, vlm.adapter = model.eval(), kind


class LearningDropout(nn.Dropout):
    """Dropout where gradients are made, and nowhere else, whatever mode the model is in."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, training=torch.is_grad_enabled())


def _peft() -> Any:
    if importlib.util.find_spec("peft") is None:
        raise LoadError("adapters need PEFT, which is not installed: pip install 'foveate[train]'")
    import peft

    return peft


def quantization(kind: str, dtype: torch.dtype, whole: Sequence[str] = ()) -> dict[str, Any]:
    """Keywords for ``from_pretrained``: all linear layers in 4 or 8 bits, but for the head and the modules called ``whole``.

    What is computed is computed in ``dtype``. Raises `LoadError` where that cannot be.
    """
    if kind == "none":
        return {}
    lacking = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if lacking:
        raise LoadError(
            f"model.lora.quantize: {kind} needs {' and '.join(lacking)}, which is not installed: pip install 'foveate[qlora]', "
            "or quantize: none"
        )
    from transformers import BitsAndBytesConfig

    kept = ["lm_head", *(rf".*\.{re.escape(name)}" for name in whole)]
    if kind == "8bit":
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for every call in bfloat16
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )
    return {"quantization_config": config}


def keep_gradients(model: nn.Module) -> None:
    """Let 4-bit layers on a CPU stay as they are. Where it has AVX512-BF16, bitsandbytes would pack a layer anew as soon as it
    runs without a gradient: into a form that lets none through, rounds its scales, and fails for widths that 64 does not divide.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


# ---- the same base with other adapters ------------------------------------------------------------------------------------


class Beside:
    """A model with adapters as it would be with ``held`` in their place, or without adapters (``held`` None).

    It shares every weight with the model and changes it only for the length of a call, under ``no_grad``; what autograd has
    kept of the model's own passes is as before. It has what `vlm.backbone` and the engine ask of a model, and no more.
    """

    def __init__(self, model: Any, held: Mapping[str, Tensor] | None) -> None:
        self._model = model
        self.held = held
        self.followed = [parameter for parameter in model.parameters() if parameter.requires_grad]
        """The trained parameters of the model itself, in the order of ``held``."""

    @classmethod
    def base(cls, vlm: VLM) -> Beside:
        """The model without its adapters. No bytes of its own."""
        return cls(vlm.model, None)

    @classmethod
    def now(cls, vlm: VLM) -> Beside:
        """The model with its adapters as they are now, kept in fp32 whatever the model does later."""
        named = {name: one for name, one in vlm.model.named_parameters() if one.requires_grad}
        return cls(vlm.model, {name: one.detach().to(torch.float32, copy=True) for name, one in named.items()})

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        with torch.no_grad():
            if self.held is None:
                self._model.base_model.disable_adapter_layers()
                try:
                    yield
                finally:
                    self._model.base_model.enable_adapter_layers()
                return
            own = [parameter.data for parameter in self.followed]
            try:
                for parameter, other in zip(self.followed, self.held.values(), strict=True):
                    parameter.data = other.to(parameter.dtype)
                yield
            finally:
                for parameter, mine in zip(self.followed, own, strict=True):
                    parameter.data = mine

    @property
    def config(self) -> Any:
        return self._model.config

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._model.dtype
        return dtype

    def modules(self) -> Iterator[nn.Module]:
        return iter(self._model.modules())

    def parameters(self) -> Iterator[Tensor]:
        """What it holds of its own."""
        return iter((self.held or {}).values())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.held or {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises `ValueError` for a state of other adapters."""
        held = self.held or {}
        if state.keys() != held.keys():
            raise ValueError("teacher: saved with other adapters; go on with the model.lora of the run")
        for name, tensor in held.items():
            tensor.copy_(state[name])

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        with self._in_place():
            return self._model.get_image_features(*args, **kwargs)

    def get_input_embeddings(self) -> Any:
        return self._model.get_input_embeddings()  # never adapted

    def get_output_embeddings(self) -> Any:
        return self._model.get_output_embeddings()  # never adapted

    def get_decoder(self) -> _Decoder:
        return _Decoder(self._model.get_decoder(), self._in_place)


class _Decoder:
    def __init__(self, decoder: Any, in_place: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self.config = decoder.config
        self._decoder, self._in_place = decoder, in_place

    def __call__(self, **kwargs: Any) -> Any:
        with self._in_place():
            return self._decoder(**kwargs)
