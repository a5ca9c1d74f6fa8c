"""Random models whose heads are 64 wide, as vLLM's attention wants them, and the trainer's log-probs of what an engine wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from helpers import picture
from test_turns import Looks

from foveate.vlm import load as loading
from foveate.vlm.backbone import hidden_rows
from foveate.vlm.families.base import TinySizes
from foveate.vlm.generate import Completion, Engine, Sampling
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.logprobs import token_logprobs
from foveate.vlm.messages import Message
from foveate.vlm.packing import pack
from foveate.vlm.records import Rollout, Sample, View
from foveate.vlm.rollout import Limits, Rules, _as_segment, rollout
from foveate.vlm.segments import Segment


@dataclass(frozen=True, kw_only=True)
class _Wide(TinySizes):
    @property
    def heads(self) -> int:
        return self.hidden // 64


@dataclass(frozen=True, kw_only=True)
class _Tied(_Wide):
    tie_word_embeddings: bool = True


def wide_random(family: str, seed: int = 1) -> VLM:
    """Two heads of 64, two layers; pictures of up to 64 tokens. Qwen3-VL's head is its embedding, as in small released ones."""
    side = 32 if family.startswith("qwen3") else 28
    with mock.patch.object(loading, "TinySizes", _Tied if family == "qwen3_vl" else _Wide):
        return tiny_random(family, seed=seed, hidden=128, initializer_range=0.1, max_pixels=64 * side * side)


def trained(
    vlm: VLM, contexts: Sequence[Segment], done: Sequence[Sequence[Completion]], temperature: float = 1.0
) -> torch.Tensor:
    """What the trainer's packed forward says of the sampled tokens, in the order of `sampled`."""
    pairs = [(context, own) for context, own in zip(contexts, done, strict=True) if own]
    packed = pack([(context, [_as_segment(one.ids) for one in own]) for context, own in pairs])
    with torch.no_grad():
        hidden = hidden_rows(vlm, packed)
    return token_logprobs(hidden, vlm.head_weight, packed.targets_R, temperature=temperature, banned_ids=vlm.renderer.banned_ids)


def sampled(done: Sequence[Sequence[Completion]]) -> torch.Tensor:
    """The engine's own log-probs."""
    return torch.tensor([value for own in done for one in own for value in one.logprobs])


def disturb(vlm: VLM, what: str, seed: int, scale: float = 0.05) -> None:
    """Change all weights with ``what`` in their names, as an optimizer step would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vlm.model.named_parameters():
            if what in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=draw))


def play_tools(vlm: VLM, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Rollout], list[list[list[float]]]]:
    """Rollouts of up to three tool turns with a picture each, and the trainer's log-probs of their tokens ``[N][K]``.

    A quarter of the vocabulary ends a turn, so that a random model takes several.
    """
    renderer = vlm.renderer
    monkeypatch.setattr(renderer, "stop_ids", (*renderer.stop_ids, *range(0, renderer.tokenizer.vocab_size, 4)))
    pairs = [
        (Sample(id=f"s{n}", question=""), View("student", (Message.user(picture(50 + n, 56 + 28 * n, 84), "look " * (1 + n)),)))
        for n in range(2)
    ]
    groups = rollout(
        pairs, engine, renderer, n=3, sampling=Sampling(max_new_tokens=24), seed=11, rules=Rules(Looks(3), Limits(turns=4))
    )
    rollouts = [one for group in groups for one in group.rollouts]
    return rollouts, [_scored(vlm, one) for one in rollouts]


def _scored(vlm: VLM, one: Rollout) -> list[list[float]]:
    rendered = vlm.renderer.render(one.view, one.turns, one.sample_id)
    packed = pack([(rendered.prompt, [rendered.suffix])])
    with torch.no_grad():
        hidden = hidden_rows(vlm, packed)
    values = token_logprobs(hidden, vlm.head_weight, packed.targets_R, banned_ids=vlm.renderer.banned_ids).tolist()
    return [[values[place] for place in span] for span in rendered.action_spans]
