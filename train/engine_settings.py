"""What a recipe may say about who samples: `engine`. Torch-free; `sync.build_engine` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from ..datasets.crops import Part


class HFEnginePart(Part):
    """The model that is trained samples as well, in this process: nothing to install, nothing to sync."""

    kind: Literal["hf"] = "hf"
    max_tokens: int = pydantic.Field(131072, ge=1)
    """Tokens whose keys and values are held at once, contexts and all that may be sampled."""


class VLLMEnginePart(Part):
    """vLLM in the trainer's process and on its device; it sleeps while the weights are updated (on a GPU)."""

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the engine's weights; auto: bfloat16 on a GPU, and on a CPU that of the trained ones."""
    max_tokens: int = pydantic.Field(16384, ge=1)
    """Longest context with what may be sampled behind it."""
    max_pictures: int = pydantic.Field(8, ge=0)
    """Most pictures in a context, those of tools included."""
    memory_frac: float = pydantic.Field(0.4, gt=0, lt=1)
    """Share of the GPU's memory for weights, keys and values of the engine."""
    kv_cache_gib: float | None = pydantic.Field(None, gt=0)
    """Memory for keys and values in place of what `memory_frac` leaves; on a CPU 1 when it is not given."""
    seconds: float = pydantic.Field(1800.0, gt=0)
    """Time for all completions of one turn, after which the run stops with an error."""
    eager: bool = False
    """No CUDA graphs and no compilation: starts faster, samples slower."""
    sleeps: bool = True
    """Give up weights, keys and values of the engine during the update."""
    settings: Mapping[str, Any] = pydantic.Field(default_factory=dict)
    """Further arguments of vLLM's ``EngineArgs``, as they are called there."""


class ServersEnginePart(Part):
    """vLLM servers that were started apart (``python -m foveate.vlm.serve_vllm MODEL``); prompts are spread over them."""

    kind: Literal["vllm-server"] = "vllm-server"
    urls: tuple[str, ...] = pydantic.Field(min_length=1)
    """Such as http://node1:8000, one a server."""
    folder: str
    """Where new weights are written for the servers to read: a folder that the trainer and all servers see under this name."""
    seconds: float = pydantic.Field(600.0, gt=0)
    """Time for one completion, waiting included, after which the run stops with an error that names the server."""
    sync_seconds: float = pydantic.Field(600.0, gt=0)
    """Time for a server to load new weights, or to come up."""
    requests: int = pydantic.Field(64, ge=1)
    """Requests that are on their way to one server at a time, those of all ranks together."""


EnginePart = Annotated[HFEnginePart | VLLMEnginePart | ServersEnginePart, pydantic.Field(discriminator="kind")]
