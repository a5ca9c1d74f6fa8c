"""Engines that hold a copy of the weights: what they share, and what a trainer may ask of them.

Their log-probs are defined as the trainer computes them: of the model's logits divided by the temperature, with the banned
tokens at minus infinity, over the whole remaining vocabulary. Top-k and top-p change which tokens are drawn and never a log-prob,
so that the ratio of a token's probability under new and old weights is 1 while the weights are the same. At temperature 0 they
are those of temperature 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .generate import Completion, Sampling
from .images import Picture
from .packing import describe
from .records import StopReason
from .render import Renderer
from .segments import Segment

_BANNED = -1e9
"""Added to a banned token's logit: its probability is 0 in float32, and JSON can carry the number."""


class EngineError(RuntimeError):
    """An engine that died, is too slow, or cannot take what it was given. Says which one and what to do."""


class CopyEngine(ABC):
    """An engine with its own copy of the weights: it samples from what the last `sync` brought, and refuses to without one."""

    def __init__(self, renderer: Renderer, image_token_id: int) -> None:
        self.renderer = renderer
        self._image_token_id = image_token_id
        self._unusable = "it has not been given any weights yet"

    @abstractmethod
    def generate(
        self,
        contexts: Sequence[Segment],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keep: bool = False,
        after: Sequence[Completion | None] | None = None,
    ) -> list[list[Completion]]:
        """See `generate.Engine`; tokens differ from those of another engine with the same seed. Raises `EngineError`."""

    @abstractmethod
    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over all weights, by their names in a checkpoint, and forget everything computed with others (law 8).

        That is keys and values of prompts, prepared pictures and what the vision tower made of them. All or nothing: after an
        error the engine refuses to generate until a sync has gone through. ``version`` names the weights. Raises `EngineError`.
        """

    def sleep(self) -> None:  # noqa: B027 - an engine with memory of its own has nothing to give up
        """Give up memory that the trainer needs; the weights are gone, and the next `sync` wakes the engine."""

    @abstractmethod
    def close(self) -> None:
        """End it and free what it holds."""

    def _check(self, contexts: Sequence[Segment], seeds: Sequence[Sequence[int]]) -> None:
        if self._unusable:
            raise EngineError(f"{self}: cannot generate, because {self._unusable}; call sync first")
        if len(contexts) != len(seeds):
            raise ValueError(f"generate: {len(contexts)} contexts but {len(seeds)} lists of seeds")
        for place, context in enumerate(contexts):
            check_pictures(context, self._image_token_id, f"context {place}")

    def _fields(self, sampling: Sampling, seed: int) -> dict[str, Any]:
        """vLLM's ``SamplingParams``: our stop tokens and no others, vision tokens banned, the sampled token's log-prob."""
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": seed,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(self.renderer.stop_ids),
            "ignore_eos": True,  # what the model's generation_config calls an end is not asked
            "logit_bias": dict.fromkeys(self.renderer.banned_ids, _BANNED),
            "logprobs": 0,
            "detokenize": False,
        }

    def _all_came(self, missing: Iterable[Sequence[str]], who: str) -> None:
        """``missing``: what each worker of an engine has not been given. Raises `EngineError` that names a parameter."""
        names = sorted({name for one in missing for name in one})
        if names:
            raise EngineError(
                f"{who}: no weights came for {len(names)} of its parameters, such as {names[0]}: the model that it was started "
                "with is not the one that is trained"
            )

    def _completion(
        self, ids: Sequence[int], logprobs: Sequence[float], reason: str | None, held: object | None = None
    ) -> Completion:
        if reason not in ("stop", "length") or not ids or len(ids) != len(logprobs):
            raise EngineError(
                f"{self}: a completion ended with {reason!r}, {len(ids)} tokens and {len(logprobs)} log-probs; its log says why"
            )
        stop = StopReason.ANSWERED if ids[-1] in self.renderer.stop_ids else StopReason.TURN_TOKENS
        return Completion(tuple(ids), tuple(logprobs), stop, held)


def check_pictures(context: Segment, image_token_id: int, where: str) -> None:
    """Law 4 before anything is sent: image tokens are exactly those of the pictures, else a `ValueError` names one."""
    is_image_T = context.ids_T == image_token_id
    for number, span in enumerate(context.visuals):
        name = f"{where}, picture {number + 1} ({describe(span.item)})"
        if not isinstance(span.item.source, Picture):
            raise ValueError(f"{name}: this engine takes pictures only; play videos with engine.kind: hf")
        found = int(is_image_T[span.start : span.start + span.length].sum())
        if not found == span.length == span.item.num_tokens:
            raise ValueError(f"{name}: {span.item.num_tokens} features for {found} image tokens at {span.start}")
    outside = int(np.count_nonzero(is_image_T)) - sum(span.length for span in context.visuals)
    if outside:
        raise ValueError(f"{where}: {outside} image tokens belong to no picture; ban vision tokens while sampling")
