"""Sampling: every context is read once, however many completions are drawn from it.

`HFEngine` packs all contexts into one row, keeps the keys and values of each once, and decodes all completions together. A
completion depends on its context and its seed alone: its random numbers are drawn from the seed before the first token,
whatever else is in the batch.

Legend: C contexts, N completions per context, B = C * N rows being decoded, V vocabulary, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .decode import Cached, Held, Shared, State
from .records import StopReason
from .segments import Segment

if TYPE_CHECKING:
    from .load import VLM

_COMPACT_BELOW = 0.75
"""Finished rows are dropped once this share of the batch, or less, is still being written."""
OnToken = Callable[[int, int, int], None]
"""Told of each id as it is drawn: place of its context, number of the completion, id."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature, then top-k, then top-p, as in vLLM.

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 mean no cut.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(f"sampling: expected temperature >= 0, 0 < top_p <= 1, top_k >= 0, max_new_tokens >= 1; got {self}")


@dataclass(frozen=True)
class Completion:
    """Sampled ids with the stop token if one was sampled, and their log-probs at the sampling temperature.

    Vision tokens are banned. Top-k and top-p decide what is drawn and change no log-prob: the trainer computes the same ones, so
    that a policy ratio is 1 as long as the weights are the same. (At temperature 0 they are those of temperature 1.)
    ``stop`` is ANSWERED after a stop token and TURN_TOKENS at the limit.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: StopReason
    held: object | None = field(default=None, compare=False, repr=False)
    """What the engine keeps of it for a next turn; its memory is free when the completion is forgotten."""


class Engine(Protocol):
    """Whatever can continue contexts."""

    def generate(
        self,
        contexts: Sequence[Segment],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keep: bool = False,
        after: Sequence[Completion | None] | None = None,
    ) -> list[list[Completion]]:
        """``len(seeds[i])`` completions of ``contexts[i]``, in the order of their seeds.

        ``keep``: the completions may be gone on from. ``after[i]``: the completion that ``contexts[i]`` goes on from (its
        context, its ids, then more), with one seed each; an engine that kept what it had read of it reads the rest alone.
        Both change the cost and nothing else, so an engine may ignore them.
        """
        ...


class HFEngine:
    """Samples from a transformers model in this process; always the current weights, nothing to sync.

    ``max_tokens`` bounds the tokens whose keys and values are held at once (contexts, and all that may be sampled); more contexts
    run in turns. ``autocast`` is the arithmetic on a device whose weights are kept in a wider type; give the trainer's.
    """

    def __init__(self, vlm: VLM, *, max_tokens: int = 131072, autocast: torch.dtype | None = None) -> None:
        self.vlm = vlm
        self.max_tokens = max_tokens
        self.autocast = autocast

    def generate(
        self,
        contexts: Sequence[Segment],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keep: bool = False,
        after: Sequence[Completion | None] | None = None,
        on_token: OnToken | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Vision tokens are never sampled. ``on_token`` is for those who watch."""
        if len(contexts) != len(seeds) or (after is not None and len(after) != len(contexts)):
            raise ValueError(f"generate: {len(contexts)} contexts but {len(seeds)} lists of seeds")
        held = [None if one is None or not isinstance(one.held, Held) else one.held for one in after or [None] * len(contexts)]
        anew = [i for i, one in enumerate(held) if one is None]
        done: dict[int, list[Completion]] = {}
        with self._evaluating(), torch.autocast(self.vlm.device.type, self.autocast, enabled=self.autocast is not None):
            for part in self._parts(anew, contexts, seeds, sampling):
                found = self._start([contexts[i] for i in part], [seeds[i] for i in part], sampling, keep, _at(part, on_token))
                done.update(zip(part, found, strict=True))
            for part in self._parts([i for i, one in enumerate(held) if one is not None], contexts, seeds, sampling):
                done.update(self._go_on(part, held, contexts, seeds, sampling, keep, on_token))
        return [done[i] for i in range(len(contexts))]

    def _parts(
        self, chosen: Sequence[int], contexts: Sequence[Segment], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[list[int]]:
        part: list[int] = []
        tokens = 0
        for i in chosen:
            need = len(contexts[i]) + len(seeds[i]) * sampling.max_new_tokens
            if part and tokens + need > self.max_tokens:
                yield part
                part, tokens = [], 0
            part.append(i)
            tokens += need
        if part:
            yield part

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = [module for module in self.vlm.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _start(
        self,
        contexts: Sequence[Segment],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        keep: bool,
        on_token: OnToken | None,
    ) -> list[list[Completion]]:
        num = max((len(own) for own in seeds), default=0)
        if num == 0:
            return [[] for _ in contexts]
        state: State
        # not inference_mode: patches and indices made here are cached and used in training
        with torch.no_grad():
            make = Shared if self.vlm.family.can_share_prefix else Cached
            state, hidden_BD = make.prefill(self.vlm, contexts, num, sampling.max_new_tokens)
        start_B = torch.tensor([context.next_position for context in contexts], device=self.vlm.device).repeat_interleave(num)
        with torch.inference_mode():
            return _decode_all(self.vlm, state, hidden_BD, start_B, seeds, sampling, keep, on_token)

    def _go_on(
        self,
        part: Sequence[int],
        held: Sequence[Held | None],
        contexts: Sequence[Segment],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        keep: bool,
        on_token: OnToken | None,
    ) -> dict[int, list[Completion]]:
        """Continuations of held rows: those of one prompt side by side, one call for each set of prompts read together."""
        origins: dict[int, dict[int, list[int]]] = {}
        for i in part:
            one = held[i]
            assert one is not None
            if len(seeds[i]) != 1:
                raise ValueError(f"generate: a continued context takes one seed, got {len(seeds[i])}")
            origins.setdefault(id(one.prompts), {}).setdefault(one.context, []).append(i)
        done: dict[int, list[Completion]] = {}
        for by_context in origins.values():
            groups = list(by_context.values())
            rows = [[one for i in own if (one := held[i]) is not None] for own in groups]
            with torch.no_grad():
                state, hidden_BD = Shared.resume(
                    self.vlm, rows, [[contexts[i] for i in own] for own in groups], sampling.max_new_tokens
                )
            num = max(len(own) for own in groups)
            filled = [own + own[:1] * (num - len(own)) for own in groups]
            start_B = torch.tensor([contexts[i].next_position for own in filled for i in own], device=self.vlm.device)
            with torch.inference_mode():
                found = _decode_all(
                    self.vlm, state, hidden_BD, start_B, [[seeds[i][0] for i in own] for own in groups], sampling, keep,
                    _at_rows(groups, on_token),
                )  # fmt: skip
            done.update((i, [one]) for own, ones in zip(groups, found, strict=True) for i, one in zip(own, ones, strict=True))
        return done


def _at(part: Sequence[int], on_token: OnToken | None) -> OnToken | None:
    """``on_token`` for those contexts alone, by their places among all."""
    return None if on_token is None else lambda c, n, token: on_token(part[c], n, token)


def _at_rows(groups: Sequence[Sequence[int]], on_token: OnToken | None) -> OnToken | None:
    """The same where each row of a group is a context with one completion."""
    return None if on_token is None else lambda c, n, token: on_token(groups[c][n], 0, token)


def _decode_all(
    vlm: VLM,
    state: State,
    hidden_BD: Tensor,
    start_B: Tensor,
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    keep: bool,
    on_token: OnToken | None = None,
) -> list[list[Completion]]:
    """Sample until every row has stopped. Row ``c * num + i`` is drawn with ``seeds[c][i]``; rows beyond those are idle."""
    num = width = max(len(own) for own in seeds)
    steps, total = sampling.max_new_tokens, len(seeds) * num
    picker = _Picker(sampling, seeds, num, vlm.renderer.banned_ids, vlm.device)
    stop_ids = torch.tensor(vlm.renderer.stop_ids, device=vlm.device)
    alive_B = np.array([i < len(own) for own in seeds for i in range(num)])
    row_B = np.arange(total)  # which completion each row of the batch is
    ids, logprobs, lengths, stopped = (
        np.zeros((total, steps), np.int64),
        np.zeros((total, steps)),
        np.zeros(total, np.int64),
        np.zeros(total, bool),
    )
    shelf = _Shelf(state, lengths, stopped) if keep and isinstance(state, Shared) else None
    embed, head = vlm.model.get_input_embeddings(), vlm.head_weight
    for step in range(steps):
        ids_B, logprobs_B = picker(F.linear(hidden_BD, head), row_B, step)
        ended_B = (ids_B[:, None] == stop_ids).any(1).cpu().numpy()
        live = row_B[alive_B]
        ids[live, step], logprobs[live, step] = ids_B.cpu().numpy()[alive_B], logprobs_B.cpu().numpy()[alive_B]
        lengths[live], stopped[live] = step + 1, ended_B[alive_B]
        if on_token is not None:
            for row in live.tolist():
                on_token(row // width, row % width, int(ids[row, step]))
        alive_B &= ~ended_B
        if step == steps - 1 or not alive_B.any():
            break
        kept = _survivors(alive_B, num)
        if kept is not None:
            contexts_C, rows_B, num = kept
            if shelf is not None:
                shelf.put(row_B, np.setdiff1d(np.arange(len(row_B)), rows_B))
            state.keep(contexts_C, rows_B, num)
            rows = torch.from_numpy(rows_B).to(vlm.device)
            ids_B, start_B, row_B, alive_B = ids_B[rows], start_B[rows], row_B[rows_B], alive_B[rows_B]
        hidden_BD = state.forward(embed(ids_B)[:, None], (start_B + step).view(1, -1, 1).expand(3, -1, 1))
    if shelf is not None:
        shelf.put(row_B, np.arange(len(row_B)))
    held = {} if shelf is None else shelf.held
    texts = [
        Completion(
            tuple(ids[i, : lengths[i]].tolist()),
            tuple(logprobs[i, : lengths[i]].tolist()),
            StopReason.ANSWERED if stopped[i] else StopReason.TURN_TOKENS,
            held.get(i),
        )
        for i in range(total)
    ]
    return [texts[c * width : c * width + len(own)] for c, own in enumerate(seeds)]


class _Shelf:
    """Where finished rows are put away for a later turn, just before their memory is given up."""

    def __init__(self, state: Shared, lengths: np.ndarray, stopped: np.ndarray) -> None:
        self.state, self.lengths, self.stopped = state, lengths, stopped
        self.start = state.own.column
        self.held: dict[int, Held] = {}

    def put(self, row_B: np.ndarray, places: np.ndarray) -> None:
        """Keep those of the rows at ``places`` that have ended by themselves; ``row_B`` says which completions they are."""
        places = places[self.stopped[row_B[places]]]
        rows = row_B[places]
        if len(rows):
            # the token that ended a row has not been read
            self.held.update(zip(rows.tolist(), self.state.hold(places, self.start, self.lengths[rows] - 1), strict=True))


def _survivors(alive_B: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Contexts and rows to go on with, still N' rows for each context; None while dropping rows is not worth a copy.

    A context with fewer live rows than another is filled up with its finished ones.
    """
    alive_CN = alive_B.reshape(-1, num)
    live_C = alive_CN.sum(1)
    width, contexts_C = int(live_C.max()), np.flatnonzero(live_C)
    if width * len(contexts_C) > _COMPACT_BELOW * alive_B.size:
        return None
    order_CN = np.argsort(~alive_CN[contexts_C], axis=1, kind="stable")[:, :width]
    return contexts_C, (contexts_C[:, None] * num + order_CN).ravel(), width


class _Picker:
    """Draws one token per row by inverting the cumulative distribution at the row's own random number."""

    def __init__(
        self, sampling: Sampling, seeds: Sequence[Sequence[int]], num: int, banned_ids: Sequence[int], device: torch.device
    ) -> None:
        self.sampling = sampling
        self.banned = torch.tensor(banned_ids, dtype=torch.long, device=device)
        self.device = device
        self.uniforms = np.zeros((len(seeds) * num, sampling.max_new_tokens))
        if sampling.temperature > 0:
            for c, own in enumerate(seeds):
                for i, seed in enumerate(own):
                    self.uniforms[c * num + i] = np.random.Generator(np.random.Philox(key=seed)).random(sampling.max_new_tokens)

    def __call__(self, logits_BV: Tensor, row_B: np.ndarray, step: int) -> tuple[Tensor, Tensor]:
        """Ids ``[B]`` and their log-probs ``[B]``; ``row_B`` are the completions that the rows belong to."""
        sampling = self.sampling
        logits_BV = logits_BV.float().index_fill_(1, self.banned, float("-inf"))
        if sampling.temperature == 0:
            ids_B = logits_BV.argmax(-1)
            return ids_B, logits_BV.gather(1, ids_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
        if sampling.temperature != 1:
            logits_BV = logits_BV / sampling.temperature
        whole_BV = logits_BV.log_softmax(-1)
        # float64: a float32 sum over a large vocabulary would shift the thresholds
        cumulative_BV = cut(logits_BV, sampling.top_k, sampling.top_p).softmax(-1).cumsum(-1, dtype=torch.float64)
        total_B1 = cumulative_BV[:, -1:].contiguous()
        at_B1 = torch.from_numpy(self.uniforms[row_B, step]).to(self.device)[:, None] * total_B1
        # the first id beyond the threshold; rounding up to the total must not pick an id behind the last possible one
        ids_B1 = torch.minimum(torch.searchsorted(cumulative_BV, at_B1, right=True), torch.searchsorted(cumulative_BV, total_B1))
        return ids_B1[:, 0], whole_BV.gather(1, ids_B1)[:, 0]


def cut(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with minus infinity outside the ``top_k`` largest, then outside the smallest set holding ``top_p`` of the rest."""
    if 0 < top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k, -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    if top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(-1, descending=True)
        before_BV = sorted_BV.softmax(-1).cumsum(-1) - sorted_BV.softmax(-1)
        drop_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter_(1, order_BV, before_BV >= top_p)
        logits_BV = logits_BV.masked_fill(drop_BV, float("-inf"))
    return logits_BV
