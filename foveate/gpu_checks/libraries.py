"""DeepSpeed's ZeRO and vLLM on this device, against what foveate does without them."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from ..train.batch import Batch
from ..train.distributed import Spread
from ..train.engine_settings import VLLMEnginePart
from ..train.optim import GradGuard, build_optimizer
from ..train.ranks import Ranks
from ..train.recipes import load_recipe
from ..train.sync import build_engine, sync
from ..train.update import accumulate, checkpoint_layers
from ..train.zero import Zero, ZeroOptimizer
from ..vlm.engines import CopyEngine
from ..vlm.generate import Engine, HFEngine, Sampling
from ..vlm.load import VLM
from ..vlm.messages import Message
from ..vlm.segments import Segment
from .agreement import ARITHMETICS, logprob_difference, noise
from .measure import cells, fresh, peak_gib, wait
from .models import random_model, served_model
from .spec import Notes, Settings
from .training import QUESTION, batches_of

STAGES = {"plain": 0, "zero2": 2, "zero3": 3}


# ---------------------------------------------------------------- DeepSpeed


@contextlib.contextmanager
def one_rank(device: torch.device) -> Iterator[Ranks]:
    """A process group with this process alone in it."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(names)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()
        for name in names:
            del os.environ[name]
        os.environ.update(before)


def spread_of(vlm: VLM, stage: int, ranks: Ranks) -> Spread:
    """The optimizer, under ZeRO where ``stage`` is not 0."""
    config = load_recipe("tiny/grpo", [f"distributed.zero={stage}", "optimizer.name=adamw"])
    plain = build_optimizer(vlm.model.named_parameters(), config.optimizer, 1000)
    if not stage:
        return Spread(ranks, vlm, plain)
    return Zero(ranks, vlm, ZeroOptimizer(config, vlm, plain, ranks))


def shared_step(spread: Spread, batches: Sequence[Batch], guard: GradGuard) -> tuple[float, float, float]:
    """``(seconds, loss, gradient norm)`` of forward, backward, clipping and update."""
    wait(spread.vlm.device)
    start = time.perf_counter()
    spread.optimizer.zero_grad()
    found = accumulate(spread.vlm, None, batches, 1.0, through=spread.through)
    norm, applied = guard.check(found.loss, list(spread.vlm.model.named_parameters()), 1.0, spread.norm())
    assert applied, guard.message
    spread.optimizer.step()
    wait(spread.vlm.device)
    return time.perf_counter() - start, found.loss, norm


def zero(settings: Settings, notes: Notes) -> None:
    """A GRPO step on Qwen3-VL-2B's sizes, plain and in a DeepSpeed engine of one rank."""
    import deepspeed

    del deepspeed  # missing: a reason to skip
    device = torch.device(settings.device)
    first: tuple[float, float] | None = None
    with one_rank(device) as ranks:
        for row, stage in STAGES.items():
            before = fresh(device)
            vlm = random_model("qwen3_vl", device, settings.quick)
            checkpoint_layers(vlm)
            spread, guard = spread_of(vlm, stage, ranks), GradGuard()
            batches = batches_of(vlm, "grpo", settings.quick)
            _, loss, norm = shared_step(spread, batches, guard)  # every stage from the same weights
            first = first or (loss, norm)
            seconds = statistics.median(shared_step(spread, batches, guard)[0] for _ in range(2))
            tokens = sum(batch.packed.num_tokens for batch in batches)
            apart = abs(norm - first[1]) / first[1]
            notes.put(
                row,
                **cells(
                    step_s=seconds, tokens_per_s=tokens / seconds, peak_gib=peak_gib(device, before), loss=loss, norm_share=apart
                ),
            )
            notes.expect(apart <= 0.01, f"{row}: the gradient differs from that of the plain step by {apart:.0%}")
            notes.expect(abs(loss - first[0]) <= 1e-3 * max(1.0, abs(first[0])), f"{row}: the loss is {loss}, plain {first[0]}")
            del vlm, spread, batches


# ---------------------------------------------------------------- vLLM


def vllm(settings: Settings, notes: Notes) -> None:
    """vLLM beside the trainer: its log-probs and greedy tokens before and after a sync, and how fast it samples."""
    import vllm as library

    del library  # missing: a reason to skip
    device = torch.device(settings.device)
    kind = "float32" if device.type == "cpu" else "bfloat16"
    vlm = served_model(device, settings.quick, ARITHMETICS[kind].weights)
    part = VLLMEnginePart(max_tokens=4096, max_pictures=4, eager=True, sleeps=device.type == "cuda")
    engine = build_engine(part, vlm, None)
    assert isinstance(engine, CopyEngine)
    plain = HFEngine(vlm)
    try:
        agree(notes, "fresh", vlm, engine, kind)
        changed(vlm)
        stale = logprob_difference(vlm, engine)[1]
        notes.put("stale", mean_nats=stale)
        notes.put("synced", sync_s=sync(engine, vlm, 1))
        agree(notes, "synced", vlm, engine, kind)
        mean = float(notes.values["synced"]["mean_nats"])
        notes.expect(stale > 4 * mean, f"other weights changed the log-probs by {stale:.1e} nats only: the sync proves nothing")
        small = settings.quick
        for row, one in (("vllm", engine), ("hf", plain)):
            speed = tokens_per_s(vlm, one, 2 if small else 8, 2 if small else 8, 8 if small else 128)
            notes.put(row, tokens_per_s=speed)
        notes.put("ratio", tokens_per_s=float(notes.values["vllm"]["tokens_per_s"]) / float(notes.values["hf"]["tokens_per_s"]))
    finally:
        engine.close()


def agree(notes: Notes, row: str, vlm: VLM, engine: Engine, kind: str) -> None:
    """Log-probs against the packed forward pass of an update, and greedy tokens against the Hugging Face engine's."""
    most, mean, _ = logprob_difference(vlm, engine)
    contexts = prompts_of(vlm, 3)
    sampling = Sampling(temperature=0, max_new_tokens=16)
    mine, theirs = (one.generate(contexts, [[0]] * len(contexts), sampling) for one in (engine, HFEngine(vlm)))
    shares = [same_beginning(a[0].ids, b[0].ids) for a, b in zip(mine, theirs, strict=True)]
    greedy = sum(shares) / len(shares)
    notes.put(row, most_nats=most, mean_nats=mean, greedy=greedy)
    how = ARITHMETICS[kind]
    right = most <= how.most and mean <= how.mean
    notes.expect(right, f"{row}: the log-probs differ by {most:.1e} nats at most and {mean:.1e} on average")
    if kind == "float32":  # in bfloat16 two tokens may be level
        notes.expect(greedy == 1.0, f"{row}: only {greedy:.0%} of the greedy tokens are those of the Hugging Face engine")


def same_beginning(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of tokens up to the first that differs: what comes after it answers another text."""
    count = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return count / max(len(one), len(other))


def prompts_of(vlm: VLM, count: int) -> list[Segment]:
    """Prompts with a picture each."""
    return [vlm.renderer.prompt([Message.user(noise(seed, 224 + 32 * seed, 224), QUESTION)]) for seed in range(count)]


def changed(vlm: VLM) -> None:
    """All matrices, by a third of their spread, as if an optimizer had gone far."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * parameter.float().std().to(parameter.dtype) / 3)


def tokens_per_s(vlm: VLM, engine: Engine, prompts: int, rollouts: int, length: int) -> float:
    """New tokens a second, prompts with a picture included."""
    contexts = prompts_of(vlm, prompts)
    rates = []
    for number in range(3):  # the first round warms up
        seeds = [[1000 * number + 100 * place + index for index in range(rollouts)] for place in range(prompts)]
        wait(vlm.device)
        start = time.perf_counter()
        done = engine.generate(contexts, seeds, Sampling(max_new_tokens=length))
        wait(vlm.device)
        rates.append(sum(len(one.ids) for own in done for one in own) / (time.perf_counter() - start))
    return statistics.median(rates[1:])
