"""What a recipe will need, told from its numbers and the model's config: tokens, memory of a GPU, disk.

Estimates: weights, gradients and optimizer are counted; activations come from the shapes and the longest rollouts that the recipe
allows, and are upper bounds where rollouts end earlier.

Legend: T tokens.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..train.config import RunConfig
from ..train.engine_settings import ServersEnginePart, VLLMEnginePart
from ..train.lora_settings import lora_targets
from ..vlm.records import View
from ..vlm.render import Renderer
from .findings import Finding, gib
from .machine import Machine
from .model import Sizes, Tower

_HEAD_BYTES = 512 << 20
"""Chunks of logits with their gradients, and what the allocator rounds up."""


@dataclass(frozen=True)
class Sharing:
    """Over how many processes a run is spread, and what they share: ZeRO's stage, 0 for nothing."""

    ranks: int = 1
    zero: int = 0
    offload: bool = False


def sharing_of(config: RunConfig, ranks: int) -> Sharing:
    """From the recipe's ``distributed`` part."""
    return Sharing(ranks, config.distributed.zero, config.distributed.offload != "none")


# ---- tokens ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Tokens of the student's prompts and of the teachers' in rows of the real data; ``images``: of which image tokens."""

    tokens: tuple[int, ...]
    images: tuple[int, ...]
    teacher_tokens: tuple[int, ...] = ()


def look_at(renderer: Renderer, students: Sequence[View], teachers: Sequence[View] = ()) -> Prompts:
    """Render views. Raises `RenderError` for one that cannot be written."""
    made = [renderer.prompt(view.messages) for view in students]
    images = tuple(sum(span.length for span in one.visuals) for one in made)
    return Prompts(tuple(map(len, made)), images, tuple(len(renderer.prompt(view.messages)) for view in teachers))


@dataclass(frozen=True)
class Step:
    """One optimizer step of one process. ``longest`` is the longest rollout behind its prompt, ``group`` the largest prompt with
    all its rollouts, ``packed`` all tokens of the step, ``micro`` the forward passes; ``peak`` and ``patches`` are the tokens and
    the image patches of the largest of them."""

    prompts: int
    rollouts: int
    longest: int
    group: int
    packed: int
    micro: int
    peak: int
    patches: int


def step_of(config: RunConfig, seen: Prompts, sharing: Sharing) -> Step:
    """The shape of a step, if every rollout is as long as the recipe allows."""
    sampling, limits = config.sampling, config.limits
    sft = config.signals[0].kind == "sft"
    picture = round(statistics.median(seen.images)) if seen.images else 0
    shown = sampling.max_turns - 1 if limits.pictures is None else min(limits.pictures, sampling.max_turns - 1)
    longest = sampling.max_turns * (sampling.max_new_tokens + 16) - 16 + shown * picture
    longest = min(longest, limits.total_tokens or longest)
    own = 1 if sft else config.rollouts
    prompts = math.ceil(config.prompts / sharing.ranks)
    middle = round(statistics.median(seen.tokens))
    group = max((*seen.tokens, *seen.teacher_tokens)) + own * longest
    usual = middle + own * longest
    packed = prompts * usual
    per_pass = max(1, config.micro_tokens // usual)
    peak = max(group, min(config.micro_tokens, packed))
    patches = min(per_pass * max(seen.images, default=0), peak) * 4  # 2 x 2 patches make a token in all families
    return Step(prompts, own, longest, group, packed, math.ceil(prompts / per_pass), peak, patches)


# ---- memory ---------------------------------------------------------------------------------------------------------------


def activations(tower: Tower, tokens: int, narrow: int, wide: int, recompute: bool) -> int:
    """Bytes kept for backward by a tower over ``tokens``; ``narrow`` bytes of the arithmetic, ``wide`` of the residual stream."""
    layer = tower.kept * narrow + 2 * tower.d * wide
    if not recompute:
        return tokens * tower.layers * layer
    return tokens * (tower.layers * tower.d * wide + layer)


def memory(config: RunConfig, sizes: Sizes, step: Step, sharing: Sharing, cuda: bool, gpu_bytes: int) -> dict[str, int]:
    """Bytes on one GPU by what they are for (without one: of memory)."""
    part = config.model
    held = 4 if part.dtype == "float32" else 2
    narrow = _narrow(config, cuda)
    learning = _trained(config, sizes)
    trained = sum(learning.values())
    matrices = sum(number for group, number in sizes.matrices.items() if group in learning)
    quantized = part.lora is not None and part.lora.quantize != "none"
    all_share = sharing.ranks if sharing.zero >= 3 else 1
    update_share = sharing.ranks if sharing.zero >= 2 else 1
    states = (matrices + 2 * (trained - matrices)) if config.optimizer.name == "muon" else 2 * trained
    masters = trained if held == 2 and part.lora is None else 0  # float32 copies that the optimizer steps on
    found = {
        "weights": _weights(config, sizes, held) // all_share,
        "bfloat16 copies": sizes.total * 2 // all_share if narrow < held and not quantized else 0,
        "gradients": trained * (4 if part.lora is not None else held) // update_share,
        "optimizer": 0 if sharing.offload else 4 * (states + masters) // update_share,
    }
    if _has_copy(config):  # whole on every rank, whatever ZeRO shares
        hosted = config.teacher.offload == "host"
        on_device = _passing(sizes, narrow) if cuda else teacher_host_bytes(config, sizes, narrow)
        found["teacher"] = on_device if hosted else sizes.total * (4 if config.teacher.path else held)
    elif config.teacher.follows and config.needs_teacher:
        found["teacher"] = 4 * trained  # adapters beside the student's base
    vision_rests = learning.keys() <= {"language"}
    found["activations"] = activations(sizes.language, step.peak, narrow, held, part.gradient_checkpointing)
    if not vision_rests:
        found["vision activations"] = activations(sizes.vision, step.patches, narrow, held, part.gradient_checkpointing)
    found["head and loss"] = _HEAD_BYTES if cuda else 0
    update = sum(found.values())
    found["engine"] = max(0, _engine(config, sizes, narrow, gpu_bytes, step, update, found))
    return {name: size for name, size in found.items() if size}


def _narrow(config: RunConfig, cuda: bool) -> int:
    """Bytes of a number in the arithmetic."""
    part = config.model
    return 2 if part.dtype == "bfloat16" or part.compute == "bfloat16" or (cuda and part.compute == "auto") else 4


def _trained(config: RunConfig, sizes: Sizes) -> dict[str, int]:
    """Numbers that are trained, by group; of adapters without ``modules_to_save``."""
    lora = config.model.lora
    if lora is not None:
        return {group: sizes.edges[group] * (lora.rank + lora.dora) for group in lora_targets(config)}
    return {group: number for group, number in sizes.parameters.items() if group not in config.model.freeze}


def _weights(config: RunConfig, sizes: Sizes, held: int) -> int:
    """Bytes of the model itself. NF4, doubly quantised, takes 4.127 bits (QLoRA, 2305.14314, section 3)."""
    lora = config.model.lora
    share = {"4bit": 4.127 / 8, "8bit": 1.0}.get(lora.quantize if lora is not None else "none", held)
    matrices = sum(sizes.matrices.values())
    return round(matrices * share) + (sizes.total - matrices) * held


def _has_copy(config: RunConfig) -> bool:
    """Whether there are whole weights besides the student's: a teacher's, or those of a reference."""
    if config.model.lora is not None and config.teacher.path is None:
        return False  # the base itself
    own_teacher = config.needs_teacher and config.teacher.weights != "current"
    reference = config.grpo is not None and config.grpo.kl != "none" and config.teacher.weights == "current"
    return own_teacher or reference


def _passing(sizes: Sizes, narrow: int) -> int:
    """What of a teacher in the host's memory is on the device at once: two layers of the language model, and its head."""
    matrices = sizes.matrices["language"]
    return (2 * matrices // sizes.language.layers + sizes.parameters["language"] - matrices) * narrow


def teacher_host_bytes(config: RunConfig, sizes: Sizes, narrow: int) -> int:
    """What a teacher with ``offload: host`` holds of a machine's memory, all ranks together: matrices in the type of the
    arithmetic; the rest, and all weights of one that moves, in full width too."""
    held = 4 if config.model.dtype == "float32" or config.teacher.path else 2
    copies = sizes.total * narrow if narrow < held else 0
    matrices = sum(sizes.matrices.values()) if narrow < held and not config.teacher.follows else 0
    return copies + (sizes.total - matrices) * held


def _engine(
    config: RunConfig, sizes: Sizes, narrow: int, gpu_bytes: int, step: Step, update: int, found: Mapping[str, int]
) -> int:
    """What sampling needs beyond the update: activations are free while it samples."""
    part = config.engine
    idle = sum(size for name, size in found.items() if "activations" in name or name == "head and loss")
    if isinstance(part, ServersEnginePart) or config.signals[0].kind == "sft":
        return 0
    if isinstance(part, VLLMEnginePart):
        return round(part.memory_frac * gpu_bytes) - (idle if part.sleeps else 0)
    per_token = 2 * sizes.language.layers * sizes.language.kv * narrow
    return min(part.max_tokens, step.packed) * per_token - idle


def checkpoint_bytes(config: RunConfig, sizes: Sizes) -> int:
    """One checkpoint on disk: weights (of a student with adapters these alone), optimizer, and a teacher that changes."""
    held = 4 if config.model.dtype == "float32" else 2
    trained = sum(_trained(config, sizes).values())
    if config.model.lora is not None:
        follows = config.needs_teacher and config.teacher.follows
        return trained * (12 + 4 * follows) if config.teacher.path is None else trained * 12 + follows * sizes.total * 4
    teacher = sizes.total * held if config.needs_teacher and config.teacher.follows else 0
    return sizes.total * held + trained * (8 if held == 4 else 12) + teacher


def kept_checkpoints(config: RunConfig) -> int:
    """How many stay when the run is over."""
    return config.checkpoint.keep_last + (config.best_view is not None)


# ---- findings -------------------------------------------------------------------------------------------------------------


def plan_findings(
    config: RunConfig, sizes: Sizes, seen: Prompts, machine: Machine, run: Path, before: int = 0, ranks: int | None = None
) -> Iterator[Finding]:
    """Tokens, the step's shape, memory of the device, disk; each against what there is."""
    on_gpu = bool(machine.gpus) and config.model.device != "cpu"
    sharing = sharing_of(config, ranks or (len(machine.gpus) if on_gpu and config.distributed.zero else 1) or 1)
    step = step_of(config, seen, sharing)
    millions = sizes.total / 1e6
    yield Finding(
        "model",
        f"{millions / 1e3:.1f} billion parameters" if millions >= 1e3 else f"{millions:.2f} million parameters",
    )
    low, middle, high = min(seen.tokens), round(statistics.median(seen.tokens)), max(seen.tokens)
    text = f"prompts of {low:,} / {middle:,} / {high:,} tokens (least, median, most of {len(seen.tokens)} rows)"
    text += f", {round(statistics.median(seen.images)):,} / {max(seen.images):,} of them image tokens (median, most)"
    if seen.teacher_tokens:
        text += f"; the teacher's {round(statistics.median(seen.teacher_tokens)):,} / {max(seen.teacher_tokens):,}"
    yield Finding("tokens", f"{text}; a rollout up to {step.longest:,}")
    yield _shape(config, step, sharing)
    engine = config.engine
    if isinstance(engine, VLLMEnginePart) and config.signals[0].kind != "sft" and high + step.longest > engine.max_tokens:
        yield Finding(
            "engine", f"contexts of up to {high + step.longest:,} tokens, the engine is started for {engine.max_tokens:,}", "red",
            f"engine.max_tokens of {high + step.longest:,} or more",
            f"engine.max_tokens={high + step.longest}, or lower model.max_pixels or sampling.max_new_tokens",
        )  # fmt: skip
    gpu = min((one.total_bytes for one in machine.gpus), default=0)
    found = memory(config, sizes, step, sharing, on_gpu, gpu)
    yield _memory(config, found, machine, on_gpu)
    if on_gpu and config.teacher.offload == "host" and _has_copy(config):
        yield _host_memory(teacher_host_bytes(config, sizes, _narrow(config, on_gpu)), machine)
    yield disk(config, sizes, machine, run, before)


def _shape(config: RunConfig, step: Step, sharing: Sharing) -> Finding:
    each = f" on each of {sharing.ranks} processes" if sharing.ranks > 1 else ""
    text = (
        f"{step.prompts} prompts x {step.rollouts} rollouts{each}: up to {step.packed:,} packed tokens in about {step.micro} "
        f"micro-batches of {config.micro_tokens:,}"
    )
    if step.group > 2 * config.micro_tokens:
        return Finding(
            "step", f"{text}; a prompt with its rollouts may have {step.group:,}, and is never cut", "yellow",
            f"groups of at most {config.micro_tokens:,} tokens (micro_tokens)",
            "nothing, if the memory below is enough; else fewer rollouts, a lower sampling.max_new_tokens or limits.total_tokens",
        )  # fmt: skip
    return Finding("step", text)


def _memory(config: RunConfig, found: Mapping[str, int], machine: Machine, on_gpu: bool) -> Finding:
    total = sum(found.values())
    parts = ", ".join(f"{name} {gib(size)}" for name, size in sorted(found.items(), key=lambda one: -one[1]))
    if on_gpu:
        smallest = min(machine.gpus, key=lambda gpu: gpu.free_bytes)
        free, where = smallest.free_bytes, f"free on {smallest.name}"
    else:
        free, where = machine.ram_free_bytes, "free memory of this machine, which has no GPU that is used"
    topic = "GPU memory" if on_gpu else "memory"
    text = f"about {gib(total)} ({parts}) of {gib(free)} {where}"
    if total <= 0.9 * free:
        return Finding(topic, text, "green")
    return Finding(
        topic, text, "red" if total > 1.1 * free else "yellow", f"at most {gib(0.9 * free)}", mends(config, found, on_gpu)
    )


def _host_memory(need: int, machine: Machine) -> Finding:
    free = machine.ram_free_bytes
    text = f"the teacher needs about {gib(need)} of the host's memory, once for all its ranks; {gib(free)} free"
    if need <= 0.9 * free:
        return Finding("host memory", text, "green")
    return Finding(
        "host memory", text, "red", f"at most {gib(0.9 * free)}", "teacher.offload=none, or a machine with more memory"
    )


def mends(config: RunConfig, found: Mapping[str, int], on_gpu: bool) -> str:
    """What lowers the memory, the cheapest first."""
    ways = []
    shown = found.get("activations", 0) + found.get("vision activations", 0)
    if not config.model.gradient_checkpointing:
        ways.append("model.gradient_checkpointing=true")
    if shown > sum(found.values()) / 4:
        ways.append("smaller micro_tokens, fewer rollouts, or a lower model.max_pixels or sampling.max_new_tokens")
    if found.get("engine", 0) > sum(found.values()) / 4:
        ways.append("a smaller engine.memory_frac or engine.max_tokens, or vLLM servers on GPUs of their own")
    if "vision" not in config.model.freeze:
        ways.append("model.freeze=[vision]")
    if found.get("teacher") and on_gpu and _can_offload(config):
        ways.append("teacher.offload=host (its weights rest in the host's memory; each pass fetches them)")
    if found.get("teacher") and config.model.lora is None:
        ways.append("model.lora with a frozen base as the teacher of adapters (no second copy)")
    ways.append("more GPUs with ZeRO-3 (launch/eight_gpus.sh)" if on_gpu else "a machine with a GPU")
    return "; ".join(ways)


def _can_offload(config: RunConfig) -> bool:
    return _has_copy(config) and config.teacher.offload == "none" and config.sampling.player == "student"


def disk(config: RunConfig, sizes: Sizes, machine: Machine, run: Path, before: int = 0) -> Finding:
    """Room for the checkpoints that are kept, the best one, and the one being written; ``before``: bytes of the stages before."""
    one = checkpoint_bytes(config, sizes)
    kept = kept_checkpoints(config) + 1
    need, free = one * kept + before, machine.free_disk(run)
    stages = f" ({gib(before)} of the stages before)" if before else ""
    text = f"{kept} checkpoints of {gib(one)} need {gib(need)}{stages}; {gib(free)} free in {run}"
    if need <= 0.9 * free:
        return Finding("disk", text, "green")
    return Finding(
        "disk", text, "red", f"{gib(need / 0.9)} free (the kept ones, and the one being written)",
        "--run a folder on a larger disk, or checkpoint.keep_last=1",
    )  # fmt: skip
