"""What this machine can do, and whether sampling and training agree on it (law 7), measured with pictures."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util

import numpy as np
import torch

from . import __version__
from .vlm.backbone import hidden_rows
from .vlm.generate import Engine, HFEngine, Sampling
from .vlm.images import Picture
from .vlm.load import VLM, load, tiny_random
from .vlm.logprobs import token_logprobs
from .vlm.messages import Message
from .vlm.packing import pack
from .vlm.records import Sample, View
from .vlm.rollout import rollout

RANDOM_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
LEAST = {"torch": "2.11", "transformers": "5.17"}
OPTIONAL = ("vllm", "deepspeed", "peft", "accelerate", "xformers", "decord", "wandb", "trackio", "gradio", "trl")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference of a token's two log-probs that is arithmetic and not a mistake."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``ok`` None: nothing to judge."""

    topic: str
    text: str
    ok: bool | None = None


def versions() -> Iterator[Finding]:
    """Python, our code, the libraries it stands on, and those it can use."""
    yield Finding("foveate", f"{__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, least in LEAST.items():
        version = metadata.version(name)
        yield Finding(name, version + f" (needs {least} or newer)", _numbers(version) >= _numbers(least))
    module = importlib.import_module("datasets")
    yield Finding("datasets", f"{metadata.version('datasets')} in {module.__path__[0]}", "load_dataset" in vars(module))
    found = {name: _version(name) for name in OPTIONAL}
    yield Finding("optional", ", ".join(f"{name} {version}" for name, version in found.items() if version) or "none")
    absent = [name for name, version in found.items() if not version]
    if absent:
        yield Finding("not installed", ", ".join(absent))


def torchvision() -> Finding:
    """Whether pictures and videos of transformers' processors work here."""
    version = _version("torchvision")
    if version is None:
        return Finding("torchvision", "not installed: Qwen's processors cannot be loaded; pip install torchvision==0.28.0", False)
    built_for = "CPU" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
    try:
        importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError, OSError) as error:
        return Finding("torchvision", f"{version} does not load beside torch for {built_for}: {error}", False)
    return Finding("torchvision", f"{version} loads beside torch for {built_for}", True)


def devices() -> Iterator[Finding]:
    """CPU cores and GPUs."""
    cores = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count()
    yield Finding("CPU", f"{cores} cores, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding("GPU", "none that torch can use")
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield Finding(f"GPU {index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB, {bf16}")


def logprob_difference(
    vlm: VLM, engine: Engine | None = None, *, num_prompts: int = 3, n: int = 4, max_new_tokens: int = 24
) -> tuple[float, float, int]:
    """``(largest, mean, tokens)``: how far the engine's log-probs of its own tokens lie from the trainer's, in nats.

    Prompts with one to ``num_prompts`` pictures of different sizes; the trainer's side is the packed forward of the update.
    """
    draw = np.random.default_rng(0)
    pairs = []
    for index in range(num_prompts):
        pictures = [
            Picture.of(draw.integers(0, 256, (96 + 32 * place, 160 - 32 * index, 3), np.uint8)) for place in range(index + 1)
        ]
        view = View("student", (Message.user(*pictures, "What is in the pictures?"),))
        pairs.append((Sample(id=f"doctor-{index}", question="", images=tuple(pictures)), view))
    engine = engine or HFEngine(vlm)
    groups = rollout(pairs, engine, vlm.renderer, n=n, sampling=Sampling(max_new_tokens=max_new_tokens), seed=0)
    rendered = [[vlm.renderer.render(one.view, one.turns, one.sample_id) for one in group.rollouts] for group in groups]
    packed = pack([(own[0].prompt, [one.suffix for one in own]) for own in rendered])
    places = [
        packed.suffix_starts[index] + place
        for index, one in enumerate(one for own in rendered for one in own)
        for span in one.action_spans
        for place in span
    ]
    keep_R = torch.tensor(places)
    with torch.no_grad():
        hidden = hidden_rows(vlm, packed, keep_R)
    targets = packed.targets_R[keep_R].to(hidden.device)
    trained = token_logprobs(hidden, vlm.head_weight, targets, banned_ids=vlm.renderer.banned_ids).cpu().double()
    sampled = torch.tensor(
        [value for group in groups for one in group.rollouts for turn in one.turns for value in turn.action_logprobs_K]
    )
    difference = (trained - sampled.double()).abs()
    return float(difference.max()), float(difference.mean()), len(difference)


def agreement(model: str | None, device: str) -> Iterator[Finding]:
    """Law 7 on a model, or on the embedded one and on random ones of every family."""
    names = [model] if model else ["tiny", *RANDOM_FAMILIES]
    for name in names:
        vlm = tiny_random(name) if name in RANDOM_FAMILIES else load(name, device=device)
        largest, mean, tokens = logprob_difference(vlm)
        limit = TOLERANCE.get(vlm.dtype, 0.1)
        text = f"rollout and trainer differ by at most {largest:.1e} nats, {mean:.1e} on average, over {tokens} tokens"
        label = f"random {name}" if name in RANDOM_FAMILIES else name
        yield Finding(
            label,
            f"{text} ({str(vlm.dtype).removeprefix('torch.')} on {vlm.device}; up to {limit:.0e} is arithmetic)",
            largest <= limit,
        )


def _version(name: str) -> str | None:
    if util.find_spec(name) is None:
        return None
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(piece) for piece in version.partition("+")[0].split(".")[:2] if piece.isdigit())
