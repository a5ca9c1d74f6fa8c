"""Whether what samples and what learns agree on the log-probs of sampled tokens (law 7), with pictures, also after a change of
the weights (law 8); and where they do not, why.

An engine is a black box here: it is asked for completions, and what it says of them is compared with the packed forward pass of
the update. Each cause leaves a trace of its own, which `explain` reads.

Legend: R sampled tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..vlm.backbone import hidden_rows
from ..vlm.engines import CopyEngine
from ..vlm.generate import Engine, HFEngine, Sampling
from ..vlm.images import Picture
from ..vlm.load import VLM
from ..vlm.logprobs import token_logprobs
from ..vlm.messages import Message
from ..vlm.packing import pack
from ..vlm.records import Sample, View
from ..vlm.rollout import rollout
from ..vlm.segments import Segment
from .findings import Finding, Level

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference of a token's two log-probs that is arithmetic and not a mistake."""
_COPY_TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.25}
"""The same for an engine with kernels of its own."""
_PROBE_TEMPERATURE = 0.7
_QUESTION = "What is in the pictures?"


@dataclass(frozen=True)
class Measured:
    """Log-probs of sampled tokens in nats: what the engine said, what the trainer computes at the same temperature and at 1."""

    sampled_R: Tensor
    trained_R: Tensor
    plain_R: Tensor

    @property
    def largest(self) -> float:
        return float((self.trained_R - self.sampled_R).abs().max())

    @property
    def mean(self) -> float:
        return float((self.trained_R - self.sampled_R).abs().mean())


@dataclass(frozen=True)
class Probe:
    """What an engine is asked. ``limit`` is the largest difference in nats that counts as arithmetic; ``vision``: the recipe
    trains the vision tower or the projector."""

    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=24))
    autocast: torch.dtype | None = None
    limit: float = 1e-4
    vision: bool = True
    prompts: int = 3
    n: int = 4


def limit_of(vlm: VLM, engine: Engine, autocast: torch.dtype | None) -> float:
    """What counts as arithmetic for this engine and this type."""
    table = _COPY_TOLERANCE if isinstance(engine, CopyEngine) else TOLERANCE
    return table.get(autocast or vlm.dtype, 0.1)


def prompts(num: int, *, pictures: bool = True, seed: int = 0) -> list[tuple[Sample, View]]:
    """Questions with one to ``num`` pictures of noise, all of different sizes, or without any."""
    draw = np.random.default_rng(seed)
    pairs = []
    for index in range(num):
        shown = [
            Picture.of(draw.integers(0, 256, (96 + 32 * place, 160 - 32 * index, 3), np.uint8)) for place in range(index + 1)
        ]
        shown = shown if pictures else []
        view = View("student", (Message.user(*shown, f"What is in the pictures? {index}" if not pictures else _QUESTION),))
        pairs.append((Sample(id=f"doctor-{index}", question="", images=tuple(shown)), view))
    return pairs


def measure(
    vlm: VLM, engine: Engine, pairs: Sequence[tuple[Sample, View]], sampling: Sampling, *, n: int = 4,
    autocast: torch.dtype | None = None,
) -> Measured:  # fmt: skip
    """``n`` completions of each prompt by the engine, read again by the packed forward pass of the update."""
    groups = rollout(pairs, engine, vlm.renderer, n=n, sampling=sampling, seed=0)
    rendered = [[vlm.renderer.render(one.view, one.turns, one.sample_id) for one in group.rollouts] for group in groups]
    packed = pack([(own[0].prompt, [one.suffix for one in own]) for own in rendered])
    places = [
        packed.suffix_starts[index] + place
        for index, one in enumerate(one for own in rendered for one in own)
        for span in one.action_spans
        for place in span
    ]
    keep_R = torch.tensor(places)
    with torch.no_grad(), _autocast(vlm, autocast):
        hidden_RD = hidden_rows(vlm, packed, keep_R)
        targets_R = packed.targets_R[keep_R].to(hidden_RD.device)
        banned = vlm.renderer.banned_ids
        trained_R, plain_R = (
            token_logprobs(hidden_RD, vlm.head_weight, targets_R, temperature=heat, banned_ids=banned).cpu().double()
            for heat in (sampling.temperature or 1.0, 1.0)
        )
    sampled = [value for group in groups for one in group.rollouts for turn in one.turns for value in turn.action_logprobs_K]
    return Measured(torch.tensor(sampled, dtype=torch.double), trained_R, plain_R)


def _autocast(vlm: VLM, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """That of a caller stays on where no type is given."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(vlm.device.type, dtype)


def logprob_difference(
    vlm: VLM, engine: Engine | None = None, *, num_prompts: int = 3, n: int = 4, max_new_tokens: int = 24
) -> tuple[float, float, int]:
    """``(largest, mean, tokens)``: how far the engine's log-probs of its own tokens lie from the trainer's, in nats.

    Prompts with one to ``num_prompts`` pictures of different sizes; the trainer's side is the packed forward of the update.
    """
    found = measure(vlm, engine or HFEngine(vlm), prompts(num_prompts), Sampling(max_new_tokens=max_new_tokens), n=n)
    return found.largest, found.mean, len(found.sampled_R)


# ---- the checks -----------------------------------------------------------------------------------------------------------


def engine_findings(vlm: VLM, engine: Engine, probe: Probe, push: Callable[[int], object]) -> Iterator[Finding]:
    """Pictures, log-probs, temperature, and weights that change; ``push`` gives the engine the weights of now (law 8)."""
    seen = sees_pictures(vlm, engine, probe)
    yield seen
    found = measure(vlm, engine, prompts(probe.prompts), probe.sampling, n=probe.n, autocast=probe.autocast)
    yield _logprobs("log-probs", found, probe, bool(seen.ok))
    if probe.sampling.temperature == 1:
        cold = Sampling(_PROBE_TEMPERATURE, max_new_tokens=probe.sampling.max_new_tokens)
        other = measure(vlm, engine, prompts(probe.prompts), cold, n=probe.n, autocast=probe.autocast)
        finding = _logprobs(
            f"at temperature {_PROBE_TEMPERATURE:g}", other, Probe(cold, probe.autocast, probe.limit), bool(seen.ok)
        )
        # this recipe samples at 1: what is wrong elsewhere is a warning
        yield Finding(finding.topic, finding.text, "yellow", finding.expected, finding.mend) if finding.ok is False else finding
    if found.largest <= probe.limit:
        yield from after_update(vlm, engine, probe, push)


def sees_pictures(vlm: VLM, engine: Engine, probe: Probe) -> Finding:
    """Two pictures of one size and the same seeds: an engine that sees them gives other log-probs."""
    sampling = Sampling(0.0, max_new_tokens=4)
    pairs = [prompts(1, seed=seed)[0] for seed in (1, 2)]
    first, second = (engine.generate([vlm.renderer.prompt(view.messages)], [[0]], sampling)[0][0].logprobs for _, view in pairs)
    if first == second:
        return Finding(
            "pictures", "two different pictures give the same log-probs to the last digit: the engine drops pictures", "red",
            "other pictures, other log-probs", "send the picture with the ids (multi_modal_data and its placeholders), once for "
            "each image token run; see docs/vllm.md for versions that do",
        )  # fmt: skip
    return Finding("pictures", "another picture gives other log-probs: they reach the engine", "green")


def _logprobs(topic: str, found: Measured, probe: Probe, sees: bool) -> Finding:
    text = (
        f"engine and trainer differ by at most {found.largest:.1e} nats, {found.mean:.1e} on average, "
        f"over {len(found.sampled_R)} tokens"
    )
    expected = f"at most {probe.limit:.0e} nats, which is arithmetic"
    if found.largest <= probe.limit:
        return Finding(topic, f"{text} (up to {probe.limit:.0e} is arithmetic)", "green")
    level, why, mend = explain(found, probe, sees)
    return Finding(topic, f"{text}: {why}", level, expected, mend)


def explain(found: Measured, probe: Probe, sees: bool) -> tuple[Level, str, str]:
    """``(level, why, mend)`` of log-probs that differ."""
    raised_R = found.sampled_R - found.trained_R
    if not sees:
        return "red", "the engine drops pictures", "see the line above"
    if probe.sampling.temperature != 1 and float((found.sampled_R - found.plain_R).abs().max()) <= probe.limit:
        return (
            "red", f"they are those of temperature 1: the engine ignores temperature {probe.sampling.temperature:g}",
            "hand sampling.temperature to the engine, and let it report log-probs after it (vLLM: logprobs_mode; docs/vllm.md)",
        )  # fmt: skip
    if float(raised_R.min()) >= -probe.limit:
        kept = float((-raised_R).exp().mean())
        why = f"the engine's are never lower, as if {100 * kept:.0f} % of the probability were all: top-p or top-k is in them"
        return "red", why, "let the engine report log-probs before the cut, and ask it for top_p 1 and top_k 0 (-1 in some)"
    if found.largest <= 10 * probe.limit:
        return (
            "yellow", "more than arithmetic usually makes",
            "give engine and trainer one type (engine.dtype, model.compute), or look at attention kernels",
        )  # fmt: skip
    return (
        "red", "other weights, other positions or shifted tokens",
        "sync the weights (foveate.train.sync.sync) and compare versions (vLLM 0.30 with transformers 5.23 is tested); "
        "else play with engine: {kind: hf}",
    )  # fmt: skip


# ---- after an update ------------------------------------------------------------------------------------------------------


def after_update(vlm: VLM, engine: Engine, probe: Probe, push: Callable[[int], object]) -> Iterator[Finding]:
    """Change the vision tower, then the language model, hand the weights over as training does, and measure again.

    The weights are put back in the end, whatever happens.
    """
    topic = "after an update"
    kept = {name: one.detach().clone() for name, one in vlm.model.named_parameters() if _is_changed(vlm, name, one)}
    groups = {name: vlm.family.group_of(name) for name in kept}
    seen, unseen = prompts(probe.prompts), prompts(probe.prompts, seed=9)

    def differs(pairs: Sequence[tuple[Sample, View]]) -> float:
        sampling = Sampling(probe.sampling.temperature or 1.0, max_new_tokens=probe.sampling.max_new_tokens)
        return measure(vlm, engine, pairs, sampling, n=probe.n, autocast=probe.autocast).largest

    with _put_back(vlm, kept, push):
        if probe.vision:
            before = _shown(vlm, seen, probe)
            _shake(vlm, [name for name, group in groups.items() if group != "language"])
            if float((_shown(vlm, seen, probe) - before).abs().max()) <= 3 * probe.limit:
                yield Finding(topic, "a change of the vision tower cannot be seen in the log-probs of this model", "yellow")
                return
            push(1)
            largest = differs(seen)
            if largest > probe.limit:
                fresh = differs(unseen)
                yield _stale(topic, largest) if fresh <= probe.limit else _not_arrived(topic, "vision tower", fresh)
                return
        _shake(vlm, [name for name, group in groups.items() if group == "language"])
        push(2)
        for what, pairs in (("text", prompts(probe.prompts, pictures=False)), ("pictures", seen)):
            largest = differs(pairs)
            if largest > probe.limit:
                yield _not_arrived(topic, f"language model ({what})", largest)
                return
    parts = "vision tower and language model" if probe.vision else "language model"
    yield Finding(topic, f"new weights of {parts} are the engine's at once, for pictures seen before too", "green")


def _stale(topic: str, largest: float) -> Finding:
    return Finding(
        topic,
        f"after a change of the vision tower, pictures seen before differ by {largest:.1e} nats and new ones do not: the encoder "
        "is stale (features of old weights are kept)", "red", "no features of old weights (law 8)",
        "reset the encoder cache with every sync: reset_encoder_cache() besides reset_mm_cache() and reset_prefix_cache(); until "
        "then freeze the tower (model.freeze=[vision, projector])",
    )  # fmt: skip


def _not_arrived(topic: str, part: str, largest: float) -> Finding:
    return Finding(
        topic, f"new weights of the {part} have not arrived: engine and trainer differ by {largest:.1e} nats", "red",
        "the engine's weights are the trainer's after a sync",
        "look at the names that the sync hands over (foveate.train.sync.merged_weights), and at what the engine keeps of prompts "
        "(reset_prefix_cache)",
    )  # fmt: skip


def _is_changed(vlm: VLM, name: str, parameter: Tensor) -> bool:
    """The whole tower, and of the language model the norms, which cost no memory to put back."""
    return parameter.is_floating_point() and (vlm.family.group_of(name) != "language" or parameter.ndim == 1)


@torch.no_grad()
def _shake(vlm: VLM, names: Sequence[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = dict(vlm.model.named_parameters())
    for name in names:
        one = parameters[name]
        spread = float(one.float().std()) if one.numel() > 1 else 0.0
        noise = torch.randn(one.shape, generator=generator) * (0.5 * spread + 0.1 * float(one.float().abs().mean()))
        one.add_(noise.to(one.device, one.dtype))


@torch.no_grad()
def _shown(vlm: VLM, pairs: Sequence[tuple[Sample, View]], probe: Probe) -> Tensor:
    """The trainer's log-probs of one and the same token behind each prompt, ``[R]``."""
    token = np.asarray([vlm.renderer.stop_ids[0]])
    suffix = Segment(token, np.zeros((3, 1), np.int64), 1)
    packed = pack([(vlm.renderer.prompt(view.messages), [suffix]) for _, view in pairs])
    with _autocast(vlm, probe.autocast):
        hidden_RD = hidden_rows(vlm, packed)
        return token_logprobs(hidden_RD, vlm.head_weight, packed.targets_R.to(hidden_RD.device)).cpu().double()


@contextlib.contextmanager
def _put_back(vlm: VLM, kept: dict[str, Tensor], push: Callable[[int], object]) -> Iterator[None]:
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in vlm.model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
        push(3)
