"""Engines of a run, and how new weights reach those that hold a copy. One that samples from the trained model needs nothing.

A model with adapters is handed over merged: the engine sees plain weights under a checkpoint's names, so that nothing can be
counted twice, and the trained tensors themselves are not touched (no rounding from merging and unmerging).

Of several ranks each has an engine of its own, or all share servers: those are given new weights by rank 0 while the others wait.
"""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..vlm.engine_server import ServerEngine
from ..vlm.engines import CopyEngine
from ..vlm.folder import copy_processor, save_processor
from ..vlm.generate import Engine, HFEngine
from ..vlm.load import VLM
from .engine_settings import EnginePart, HFEnginePart, ServersEnginePart, VLLMEnginePart
from .ranks import ALONE, Ranks

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer


def build_engine(part: EnginePart, vlm: VLM, autocast: torch.dtype | None, ranks: Ranks = ALONE) -> Engine:
    """The engine that a recipe asks for; one with a copy of the weights has those of ``vlm``. Raises `EngineError`."""
    if isinstance(part, HFEnginePart):
        return HFEngine(vlm, max_tokens=part.max_tokens, autocast=autocast)
    engine: CopyEngine
    if isinstance(part, ServersEnginePart):
        engine = ServerEngine(
            vlm,
            part.urls,
            Path(part.folder),
            seconds=part.seconds,
            sync_seconds=part.sync_seconds,
            requests=part.requests,
            client=ranks.rank,
            clients=ranks.size,
        )
    else:
        engine = ranks.agreed(lambda: _colocated(part, vlm))
    sync(engine, vlm, 0, ranks)
    return engine


def _colocated(part: VLLMEnginePart, vlm: VLM) -> CopyEngine:
    from ..vlm.engine_vllm import VLLMEngine

    given = part.model_dump(exclude={"kind", "settings", "dtype"})
    own = "float32" if vlm.device.type == "cpu" else "bfloat16"
    folder = Path(tempfile.mkdtemp(prefix="foveate-engine-"))
    try:
        describe_model(vlm, folder)
        return VLLMEngine(
            vlm, folder, dtype=own if part.dtype == "auto" else part.dtype, load_format="dummy", **given, **part.settings
        )
    finally:
        shutil.rmtree(folder)


def sync(engine: Engine, vlm: VLM, version: int, ranks: Ranks = ALONE) -> float:
    """Hand the weights of now to an engine that holds a copy; return the seconds that it took, 0 for one that needs nothing.

    To be called after every optimizer step and after a checkpoint was restored, by all ``ranks``, with all weights on each
    (`Spread.whole`). A failure on one rank stops all.
    """
    if not isinstance(engine, CopyEngine):
        return 0.0
    start = time.perf_counter()

    def give() -> str:
        engine.sync(merged_weights(vlm.model), version)
        return engine.weights if isinstance(engine, ServerEngine) else ""

    if isinstance(engine, ServerEngine):
        ranks.wait()  # for requests on their way, which a sync aborts
        engine.adopt(ranks.first(give))
    else:
        ranks.agreed(give)
    return time.perf_counter() - start


@contextmanager
def resting(engine: Engine) -> Iterator[None]:
    """The engine's memory is the trainer's in here; `sync` is due afterwards, also when no optimizer step was made."""
    if isinstance(engine, CopyEngine):
        engine.sleep()
    yield


def describe_model(vlm: VLM, folder: Path) -> None:
    """What an engine must know of a model besides its weights: config, tokenizer, processor with the pixel budget in use."""
    model: Any = vlm.model
    config = copy.deepcopy(model.config)
    config.architectures = config.architectures or [type(_base(model)).__name__]  # a model from scratch has none yet
    config.save_pretrained(folder)
    if vlm.folder is None:
        save_processor(vlm.renderer, folder)
    else:
        copy_processor(vlm.renderer, vlm.folder, folder)


# ---- weights --------------------------------------------------------------------------------------------------------------


def merged_weights(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """``(name in a checkpoint, tensor)`` of all weights, adapters merged into copies of the layers that they sit on.

    Adapters that are merged into their layers already are taken as they are. Raises `ValueError` for a quantised base, whose
    merged weights have no plain form.
    """
    adapted, replaced = _adapted(model)
    # a head that is the embedding comes under both names: engines differ in which they ask for
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.is_floating_point():
            raise ValueError(
                f"{name}: its base weights are quantised ({parameter.dtype}); an engine with a copy of the weights needs plain "
                "ones: train with a base in bfloat16, or sample with engine.kind: hf"
            )
        owner = next((place for place in _owners(name) if place in adapted), None)
        copies = next((place for place in _owners(name) if place in replaced), None)
        if owner is not None:
            inner = name.removeprefix(owner + ".")
            if inner.startswith("base_layer."):  # the rest are the adapter's own
                inner = inner.removeprefix("base_layer.")
                value = _merged(adapted[owner]) if inner == "weight" else parameter
                yield _plain(f"{owner}.{inner}"), value.detach()
        elif copies is not None:
            inner = name.removeprefix(copies + ".")
            kept = f"modules_to_save.{replaced[copies]}."
            if inner.startswith(kept):
                yield _plain(f"{copies}.{inner.removeprefix(kept)}"), parameter.detach()
        else:
            yield _plain(name), parameter.detach()


def _adapted(model: torch.nn.Module) -> tuple[dict[str, BaseTunerLayer], dict[str, str]]:
    """Layers with adapters, and modules trained as a whole beside them with the name of the active copy."""
    if "peft" not in sys.modules:  # nothing can have been adapted
        return {}, {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    adapted: dict[str, BaseTunerLayer] = {}
    replaced: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            adapted[name] = module
        elif isinstance(module, ModulesToSaveWrapper):
            replaced[name] = module.active_adapters[0]
    return adapted, replaced


def _merged(layer: BaseTunerLayer) -> Tensor:
    base: Any = layer.get_base_layer()
    if not layer.merged:
        own: Any = copy.deepcopy(layer)
        own.merge(safe_merge=True)
        base = own.get_base_layer()
    weight: Tensor = base.weight
    return weight


def _base(model: torch.nn.Module) -> torch.nn.Module:
    if "peft" in sys.modules:
        from peft import PeftModel

        if isinstance(model, PeftModel):
            base: torch.nn.Module = model.get_base_model()
            return base
    return model


def _owners(name: str) -> Iterator[str]:
    pieces = name.split(".")
    return (".".join(pieces[:length]) for length in range(len(pieces) - 1, 0, -1))


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")
