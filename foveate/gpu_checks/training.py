"""Training steps of random models of real sizes: time, memory, and the same gradient from every attention.

Each rollout has the same number of random tokens; sampling is measured elsewhere. The learning rate is 0, so that every attention
starts from the same weights; the optimizer does all of its work nevertheless.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..train.batch import Batch, make_batches
from ..train.optim import GradGuard, Optimizer, build_optimizer
from ..train.streams import Stream
from ..train.update import accumulate, checkpoint_layers
from ..vlm.attention_backends import Backend, using, why_not
from ..vlm.load import VLM
from ..vlm.messages import Message
from ..vlm.records import Rollout, Signal, StopReason, Turn, View
from .agreement import noise
from .measure import cells, fresh, peak_gib, wait
from .models import random_model
from .spec import Notes, Settings

if TYPE_CHECKING:
    from ..train.teacher import Teacher

BACKENDS: tuple[Backend, ...] = ("sdpa", "varlen", "xformers")
STREAMS = {
    "grpo": Stream("grpo", clip_low=0.2, clip_high=0.2),
    "distill": Stream("distill", divergence="jsd", beta=0.5, support="full"),
}
QUESTION = "What letter is on the red triangle at the top left of the picture, and what is to the right of it?"


@dataclass(frozen=True)
class Rate:
    """An optimizer's settings as a recipe would give them."""

    name: str = "adamw"
    lr: float = 0.0
    muon_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: str = "constant"
    final_frac: float = 1.0


def batches_of(vlm: VLM, method: str, quick: bool) -> list[Batch]:
    """The batches of `signals_of`."""
    return make_batches(signals_of(vlm, method, quick), STREAMS, vlm.renderer, 16_384)


def signals_of(vlm: VLM, method: str, quick: bool) -> list[Signal]:
    """A prompt with a picture of 2,000 x 2,000 px and eight rollouts: about 8,000 tokens. A teacher is shown a crop."""
    side_px, num, length = (112, 3, 8) if quick else (2000, 8, 480)
    prompt = (Message.user(noise(0, side_px, side_px), QUESTION),)
    crop = View("teacher", (Message.user(noise(1, side_px // 4, side_px // 4), QUESTION),))
    draw = np.random.default_rng(0)
    allowed = np.setdiff1d(np.arange(200), [*vlm.renderer.banned_ids, *vlm.renderer.stop_ids])
    old = -float(np.log(len(vlm.head_weight)))  # about what a random model gives
    signals = []
    for index in range(num):
        ids = (*draw.choice(allowed, length - 1).tolist(), vlm.renderer.stop_ids[0])
        turn = Turn(ids, (old,) * length, "", StopReason.ANSWERED)
        rollout = Rollout("s", "g", index, View("student", prompt), (turn,), StopReason.ANSWERED)
        if method == "grpo":
            advantage = 2 * index / (num - 1) - 1
            signals.append(Signal(rollout, advantages_NK=((advantage,) * length,), stream="grpo"))
        else:
            signals.append(Signal(rollout, kd_weights_NK=((1.0,) * length,), teacher_view=crop, stream="distill"))
    return signals


def one_step(
    vlm: VLM, teacher: Teacher | None, batches: list[Batch], optimizer: Optimizer, guard: GradGuard
) -> tuple[float, float, float]:
    """``(seconds, loss, gradient norm)`` of forward, backward, clipping and update."""
    wait(vlm.device)
    start = time.perf_counter()
    optimizer.zero_grad()
    found = accumulate(vlm, teacher, batches, 1.0)
    norm, applied = guard.check(found.loss, vlm.model.named_parameters(), 1.0)
    assert applied, guard.message
    optimizer.step()
    wait(vlm.device)
    return time.perf_counter() - start, found.loss, norm


def itself(vlm: VLM) -> Teacher:
    """A teacher with the student's own weights: no second copy of them."""
    from ..train.teacher import Teacher
    from ..train.teacher_settings import TeacherPart

    return Teacher(vlm, TeacherPart(weights="current", accept_collapse=True))


def steps(settings: Settings, notes: Notes) -> None:
    """GRPO and distillation on Qwen3-VL-2B's sizes, GRPO on Qwen2.5-VL-3B's, with every attention that runs here."""
    device = torch.device(settings.device)
    for family, methods in (("qwen3_vl", ("grpo", "distill")), ("qwen2_5_vl", ("grpo",))):
        vlm = random_model(family, device, settings.quick)
        checkpoint_layers(vlm)
        optimizer = build_optimizer(vlm.model.named_parameters(), Rate(), 1000)
        for method in methods:
            try:
                teacher = itself(vlm) if method == "distill" else None
            except ModuleNotFoundError as error:
                for backend in BACKENDS:
                    notes.put(f"{family}/{method}/{backend}", note=f"{error.name} is not installed")
                continue
            batches = batches_of(vlm, method, settings.quick)
            plain: float | None = None
            for backend in BACKENDS:
                norm = attention_steps(notes, f"{family}/{method}/{backend}", vlm, teacher, batches, optimizer, backend)
                if norm is None:
                    continue
                plain = norm if plain is None else plain
                apart = abs(norm - plain) / plain
                notes.put(f"{family}/{method}/{backend}", norm_share=apart)
                notes.expect(
                    apart <= 0.05, f"{family}, {method}: the gradient on {backend} differs from that on sdpa by {apart:.0%}"
                )
        del vlm, optimizer, batches, teacher
        fresh(device)


def attention_steps(
    notes: Notes, row: str, vlm: VLM, teacher: Teacher | None, batches: list[Batch], optimizer: Optimizer, backend: Backend
) -> float | None:
    """Time and memory of steps on one back end; the gradient's norm, or None where it cannot run."""
    compute = torch.bfloat16 if vlm.device.type == "cuda" else torch.float32
    why = why_not(backend, vlm.device, compute, 128) or why_not(backend, vlm.device, compute, 80)
    if why is not None:
        notes.put(row, note=why)
        return None
    guard = GradGuard()
    tokens = sum(batch.packed.num_tokens + (batch.teacher.num_tokens if batch.teacher else 0) for batch in batches)
    try:
        with using(backend):
            one_step(vlm, teacher, batches, optimizer, guard)  # warm
            fresh(vlm.device)
            found = [one_step(vlm, teacher, batches, optimizer, guard) for _ in range(2)]
    except torch.OutOfMemoryError:
        notes.put(row, note="out of memory")
        optimizer.zero_grad()
        fresh(vlm.device)
        return None
    seconds = statistics.median(one[0] for one in found)
    notes.put(
        row,
        **cells(step_s=seconds, tokens=tokens, tokens_per_s=tokens / seconds, peak_gib=peak_gib(vlm.device), loss=found[-1][1]),
    )
    return found[-1][2]


def lora(settings: Settings, notes: Notes) -> None:
    """A GRPO step of LoRA adapters on the language model of Qwen3-VL-2B's sizes."""
    from peft import LoraConfig, get_peft_model

    device = torch.device(settings.device)
    vlm = random_model("qwen3_vl", device, settings.quick)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(vlm.model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets))
    whole: Any = model  # to the rest of foveate a model with adapters is a model
    adapted = dataclasses.replace(vlm, model=whole)
    batches = batches_of(adapted, "grpo", settings.quick)
    optimizer = build_optimizer(model.named_parameters(), Rate(), 1000)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    guard = GradGuard()
    one_step(adapted, None, batches, optimizer, guard)
    fresh(device)
    seconds, loss, norm = one_step(adapted, None, batches, optimizer, guard)
    tokens = sum(batch.packed.num_tokens for batch in batches)
    notes.put(
        "grpo", **cells(step_s=seconds, tokens_per_s=tokens / seconds, peak_gib=peak_gib(device), trained=trained, loss=loss)
    )
    with_gradient = {name for name, one in model.named_parameters() if one.grad is not None}
    notes.expect(norm > 0, "no gradient reaches the adapters")
    notes.expect(all("lora_" in name for name in with_gradient), "a frozen weight got a gradient")
    notes.expect(any(".lora_B." in name for name in with_gradient), "lora_B has no gradient")
