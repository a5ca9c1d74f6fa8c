"""``foveate doctor``: what this machine can do, what a recipe will need of it, and whether everything that must agree does.

Without a recipe: versions, devices, and law 7 on the embedded model and on random ones of every family. With one, also its data,
plan, processor, tools and engine, stage by stage. Each line is green, yellow or red, and says how to mend what is not green.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .checkup.agreement import (
    TOLERANCE,
    Probe,
    engine_findings,
    limit_of,
    logprob_difference,
)
from .checkup.data import Rows, look_at_data
from .checkup.findings import Finding, gib
from .checkup.machine import Machine, devices, look
from .checkup.model import Known, known, sizes
from .checkup.plan import checkpoint_bytes, kept_checkpoints, look_at, plan_findings
from .checkup.tokens import token_findings
from .checkup.tools import call_finding, dialect_findings, uses_tools
from .checkup.versions import Version, audio, installed, needed, torchvision, versions
from .train.config import RunConfig
from .train.engine_settings import HFEnginePart, ServersEnginePart, VLLMEnginePart
from .train.staged import StagedConfig, rehearsing
from .train.sync import build_engine, sync
from .train.update import compute_dtype
from .vlm.engines import CopyEngine, EngineError
from .vlm.folder import LoadError
from .vlm.generate import Sampling
from .vlm.load import VLM, load, tiny_random
from .vlm.render import RenderError

__all__ = [
    "RANDOM_FAMILIES", "TOLERANCE", "Finding", "agreement", "devices", "examine", "logprob_difference", "recipe_findings",
    "torchvision", "versions",
]  # fmt: skip


@dataclass
class Heard:
    """What is known from the stages before: what was checked of a model, and how much of the disk they keep."""

    checked: set[tuple[object, ...]] = field(default_factory=set)
    disk_bytes: int = 0


RANDOM_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


def examine(
    config: RunConfig | StagedConfig | None,
    *,
    model: str | None = None,
    device: str = "auto",
    run: Path = Path("runs"),
    rows: int = 32,
) -> Iterator[Finding]:
    """All lines, one after the other as they are found."""
    yield from versions()
    yield torchvision()
    yield from audio()
    machine = look()
    yield from devices(machine)
    if config is None or model is not None:
        yield from agreement(model, device)
    if config is None:
        return
    stages = {"": config} if isinstance(config, RunConfig) else {one.name: one.run for one in rehearsing(config.stages)}
    heard = Heard()
    for name, stage in stages.items():
        for finding in recipe_findings(stage, machine, device=device, run=run, rows=rows, heard=heard):
            topic = f"{name}: {finding.topic}" if name else finding.topic
            yield Finding(topic, finding.text, finding.level, finding.expected, finding.mend)


def recipe_findings(
    config: RunConfig,
    machine: Machine,
    *,
    device: str = "auto",
    run: Path = Path("runs"),
    rows: int = 32,
    version: Version = installed,
    heard: Heard | None = None,
) -> Iterator[Finding]:
    """One recipe, or one stage. ``heard`` remembers the stages before."""
    heard = heard or Heard()
    yield from _libraries(config, version)
    try:
        model = known(config.model)
    except LoadError as error:
        yield Finding("model", str(error), "red", "a model's folder or name", "see the line itself; a local folder always works")
        return
    data = look_at_data(config, model.family, rows)
    yield from data.findings
    yield from _plan(config, model, data, machine, run, heard)
    yield from dialect_findings(config, model.renderer) if uses_tools(config) else ()
    once = (config.model.name, config.model.min_pixels, config.model.max_pixels)
    if once not in heard.checked:
        yield from token_findings(model, chosen=bool(config.model.min_pixels or config.model.max_pixels))
    played = (*once, config.model.freeze, repr(config.engine), config.sampling.temperature, config.sampling.top_p)
    if config.signals[0].kind != "sft" and played not in heard.checked:
        yield from _played(config, model, data, machine, device)
    heard.checked |= {once, played}


def _libraries(config: RunConfig, version: Version) -> Iterator[Finding]:
    if isinstance(config.engine, VLLMEnginePart):
        yield from needed("vllm", "the recipe samples with it", "pip install 'foveate[vllm]', or engine={kind: hf}", version)
    if config.distributed.zero:
        yield from needed("deepspeed", "the recipe uses ZeRO", "pip install 'foveate[train]'", version)
    if config.model.lora is not None:
        yield from needed("peft", "the recipe trains adapters", "pip install 'foveate[train]'", version)
        if config.model.lora.quantize != "none":
            yield from needed("bitsandbytes", "the base is quantised", "pip install 'foveate[qlora]', or quantize: none", version)
    for name in ("wandb", "trackio"):
        if name in config.loggers:
            yield from needed(name, "the recipe logs to it", f"pip install {name}, or loggers=[tensorboard]", version)


def _plan(config: RunConfig, model: Known, data: Rows, machine: Machine, run: Path, heard: Heard) -> Iterator[Finding]:
    if not data.students:
        yield Finding("plan", "not made: no sample can be shown", "yellow", "samples", "mend the data first")
        return
    try:
        seen = look_at(model.renderer, data.students, data.teachers)
    except RenderError as error:
        yield Finding("plan", str(error), "red", "views that can be written as tokens", "see the line itself")
        return
    counted = sizes(model)
    yield from plan_findings(config, counted, seen, machine, run, heard.disk_bytes)
    heard.disk_bytes += kept_checkpoints(config) * checkpoint_bytes(config, counted)


def _played(config: RunConfig, model: Known, data: Rows, machine: Machine, device: str) -> Iterator[Finding]:
    """The checks that need the weights: they are made where the weights are here and fit."""
    topic = "log-probs"
    if not model.has_weights:
        yield Finding(
            topic, f"not measured: the weights of {model.name} are not here", "yellow", "the weights on this machine",
            f"hf download {model.name}, then again",
        )  # fmt: skip
        return
    target = config.model.device if device == "auto" else device
    need = sum(path.stat().st_size for path in model.folder.glob("*.safetensors")) * (2 if config.model.dtype == "float32" else 1)
    on_gpu = bool(machine.gpus) and not target.startswith("cpu")
    free = machine.gpus[0].free_bytes if on_gpu else machine.ram_free_bytes
    if 1.3 * need > free:
        yield Finding(
            topic, f"not measured: about {gib(1.3 * need)} are needed and {gib(free)} free", "yellow", "room for the weights",
            "run the doctor on the machine that trains",
        )  # fmt: skip
        return
    try:
        part = config.model
        vlm = load(
            part.name, dtype=part.dtype, device=target, min_pixels=part.min_pixels, max_pixels=part.max_pixels,
            freeze=part.freeze, template_kwargs=part.template,
        )  # fmt: skip
        yield from _engine(config, vlm, data)
    except (EngineError, LoadError) as error:
        yield Finding(topic, str(error), "red", "an engine that answers", "see the line itself, and docs/vllm.md")


def _engine(config: RunConfig, vlm: VLM, data: Rows) -> Iterator[Finding]:
    part, sampling = config.engine, config.sampling
    autocast = compute_dtype(vlm, config.model.compute)
    engine = build_engine(part, vlm, autocast)
    try:
        probe = Probe(
            Sampling(sampling.temperature or 1.0, sampling.top_p, sampling.top_k, min(24, sampling.max_new_tokens)),
            autocast,
            limit_of(vlm, engine, autocast),
            vision=not {"vision", "projector"} <= set(config.model.freeze),
        )
        yield from engine_findings(vlm, engine, probe, lambda version: sync(engine, vlm, version))
        if sampling.max_turns > 1 and data.students:
            yield call_finding(config, vlm.family, engine, vlm.renderer, data.samples[0], data.students[0])
    finally:
        if isinstance(engine, CopyEngine) and not isinstance(part, HFEnginePart | ServersEnginePart):
            engine.close()


def agreement(model: str | None, device: str) -> Iterator[Finding]:
    """Law 7 on a model, or on the embedded one and on random ones of every family."""
    names = [model] if model else ["tiny", *RANDOM_FAMILIES]
    for name in names:
        vlm = tiny_random(name) if name in RANDOM_FAMILIES else load(name, device=device)
        largest, mean, tokens = logprob_difference(vlm)
        limit = TOLERANCE.get(vlm.dtype, 0.1)
        text = f"rollout and trainer differ by at most {largest:.1e} nats, {mean:.1e} on average, over {tokens} tokens"
        right = largest <= limit
        yield Finding(
            f"random {name}" if name in RANDOM_FAMILIES else name,
            f"{text} ({str(vlm.dtype).removeprefix('torch.')} on {vlm.device}; up to {limit:.0e} is arithmetic)",
            "green" if right else "red",
            "" if right else "arithmetic only",
            "" if right else f"torch {torch.__version__} computes something else here: try the tested versions",
        )
