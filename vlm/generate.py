"""Sampling: every context is read once, however many completions are drawn from it.

`HFEngine` packs all contexts into one row, keeps the keys and values of each once, and decodes all completions together. A
completion depends on its context and its seed alone: its random numbers are drawn from the seed before the first token,
whatever else is in the batch.

Legend: C contexts, N completions per context, B = C * N rows being decoded, V vocabulary, D width, P prompt tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Decode, Prefill
from .backbone import encode, forward_packed, run_decoder
from .packing import pack
from .records import StopReason
from .segments import Segment, VisualSpan

if TYPE_CHECKING:
    from .load import VLM

_COMPACT_BELOW = 0.75
"""Finished rows are dropped once this share of the batch, or less, is still being written."""


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
    """Sampled ids with the stop token if one was sampled, and their log-probs under the distribution that was sampled from.

    (At temperature 0 that distribution is a point; the log-probs are those of temperature 1, so that they can be compared.)
    ``stop`` is ANSWERED after a stop token and TURN_TOKENS at the limit.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: StopReason


class Engine(Protocol):
    """Whatever can continue contexts."""

    def generate(self, contexts: Sequence[Segment], seeds: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        """``len(seeds[i])`` completions of ``contexts[i]``, in the order of their seeds."""
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

    def generate(self, contexts: Sequence[Segment], seeds: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        """See `Engine.generate`. Vision tokens are never sampled."""
        if len(contexts) != len(seeds):
            raise ValueError(f"generate: {len(contexts)} contexts but {len(seeds)} lists of seeds")
        done: list[list[Completion]] = []
        with self._evaluating(), torch.autocast(self.vlm.device.type, self.autocast, enabled=self.autocast is not None):
            for part in self._parts(contexts, seeds, sampling):
                done += self._generate(contexts[part.start : part.stop], seeds[part.start : part.stop], sampling)
        return done

    def _parts(self, contexts: Sequence[Segment], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[range]:
        start = tokens = 0
        for i, (context, own) in enumerate(zip(contexts, seeds, strict=True)):
            need = len(context) + len(own) * sampling.max_new_tokens
            if i > start and tokens + need > self.max_tokens:
                yield range(start, i)
                start, tokens = i, 0
            tokens += need
        if start < len(contexts):
            yield range(start, len(contexts))

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

    def _generate(
        self, contexts: Sequence[Segment], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[list[Completion]]:
        num = max((len(own) for own in seeds), default=0)
        if num == 0:
            return [[] for _ in contexts]
        state: _State
        # not inference_mode: patches and indices made here are cached and used in training
        with torch.no_grad():
            make = _Shared if self.vlm.family.can_share_prefix else _Cached
            state, hidden_CD = make.prefill(self.vlm, contexts, num, sampling.max_new_tokens)
        with torch.inference_mode():
            return _decode_all(self.vlm, state, hidden_CD, contexts, seeds, num, sampling)


def _decode_all(
    vlm: VLM,
    state: _State,
    hidden_CD: Tensor,
    contexts: Sequence[Segment],
    seeds: Sequence[Sequence[int]],
    num: int,
    sampling: Sampling,
) -> list[list[Completion]]:
    steps, total = sampling.max_new_tokens, len(contexts) * num
    picker = _Picker(sampling, seeds, num, vlm.renderer.banned_ids, vlm.device)
    stop_ids = torch.tensor(vlm.renderer.stop_ids, device=vlm.device)
    start_B = torch.tensor([context.next_position for context in contexts], device=vlm.device).repeat_interleave(num)
    alive_B = np.array([i < len(own) for own in seeds for i in range(num)])
    row_B = np.arange(total)  # which completion each row of the batch is
    ids, logprobs, lengths, stopped = (
        np.zeros((total, steps), np.int64),
        np.zeros((total, steps)),
        np.zeros(total, np.int64),
        np.zeros(total, bool),
    )
    hidden_BD = hidden_CD.repeat_interleave(num, 0)
    embed, head = vlm.model.get_input_embeddings(), vlm.head_weight
    for step in range(steps):
        ids_B, logprobs_B = picker(F.linear(hidden_BD, head), row_B, step)
        ended_B = (ids_B[:, None] == stop_ids).any(1).cpu().numpy()
        live = row_B[alive_B]
        ids[live, step], logprobs[live, step] = ids_B.cpu().numpy()[alive_B], logprobs_B.cpu().numpy()[alive_B]
        lengths[live], stopped[live] = step + 1, ended_B[alive_B]
        alive_B &= ~ended_B
        if step == steps - 1 or not alive_B.any():
            break
        kept = _survivors(alive_B, num)
        if kept is not None:
            contexts_C, rows_B, num = kept
            state.keep(contexts_C, rows_B, num)
            rows = torch.from_numpy(rows_B).to(vlm.device)
            ids_B, start_B, row_B, alive_B = ids_B[rows], start_B[rows], row_B[rows_B], alive_B[rows_B]
        hidden_BD = state.forward(embed(ids_B)[:, None], (start_B + step).view(1, -1, 1).expand(3, -1, 1), step)
    texts = [_completion(ids[i, : lengths[i]], logprobs[i, : lengths[i]], bool(stopped[i])) for i in range(total)]
    width = total // len(contexts)
    return [texts[c * width : c * width + len(own)] for c, own in enumerate(seeds)]


def _completion(ids: np.ndarray, logprobs: np.ndarray, stopped: bool) -> Completion:
    return Completion(tuple(ids.tolist()), tuple(logprobs.tolist()), StopReason.ANSWERED if stopped else StopReason.TURN_TOKENS)


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
        logits_BV = cut(logits_BV, sampling.top_k, sampling.top_p)
        logprobs_BV = logits_BV.log_softmax(-1)
        # float64: a float32 sum over a large vocabulary would shift the thresholds
        cumulative_BV = logprobs_BV.exp().cumsum(-1, dtype=torch.float64)
        total_B1 = cumulative_BV[:, -1:].contiguous()
        at_B1 = torch.from_numpy(self.uniforms[row_B, step]).to(self.device)[:, None] * total_B1
        # the first id beyond the threshold; rounding up to the total must not pick an id behind the last possible one
        ids_B1 = torch.minimum(torch.searchsorted(cumulative_BV, at_B1, right=True), torch.searchsorted(cumulative_BV, total_B1))
        return ids_B1[:, 0], logprobs_BV.gather(1, ids_B1)[:, 0]


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


# ---------------------------------------------------------------- what is kept between tokens


class _State(Protocol):
    def forward(self, embeds_B1D: Tensor, positions_3B1: Tensor, step: int) -> Tensor:
        """``[B, D]``: the hidden states after one more token per row."""
        ...

    def keep(self, contexts_C: np.ndarray, rows_B: np.ndarray, num: int) -> None:
        """Go on with these contexts and rows only, ``num`` rows for each context."""
        ...


@dataclass
class _Shared:
    """Keys and values of each context once, those of each completion beside them."""

    vlm: VLM
    decode: Decode

    @classmethod
    def prefill(cls, vlm: VLM, contexts: Sequence[Segment], num: int, steps: int) -> tuple[_Shared, Tensor]:
        packed = pack([(context, ()) for context in contexts])
        captured = Prefill(packed.layout)
        hidden_TD = forward_packed(vlm, packed, encode(vlm, packed.items), captured)
        lengths = torch.tensor([len(context) for context in contexts])
        ends = lengths.cumsum(0)
        longest = int(lengths.max())
        place_CP = torch.arange(longest) + (ends - lengths)[:, None]
        real_CP = torch.arange(longest) < lengths[:, None]
        index = torch.where(real_CP, place_CP, 0).flatten().to(vlm.device)
        mask = None if bool(real_CP.all()) else real_CP.to(vlm.device)

        def per_context(kept: dict[int, Tensor]) -> list[Tensor]:
            split = []
            for layer in sorted(kept):
                heads, _, width = kept[layer].shape
                rows = kept.pop(layer).index_select(1, index)  # popped: the packed copy is freed layer by layer
                split.append(rows.view(heads, len(contexts), longest, width).transpose(0, 1).contiguous())
            return split

        def empty(prompt: list[Tensor]) -> list[Tensor]:
            return [x.new_zeros(len(contexts) * num, x.shape[1], max(1, steps - 1), x.shape[3]) for x in prompt]

        keys, values = per_context(captured.keys), per_context(captured.values)
        return cls(vlm, Decode(keys, values, empty(keys), empty(values), num, mask)), hidden_TD[(ends - 1).to(vlm.device)]

    def forward(self, embeds_B1D: Tensor, positions_3B1: Tensor, step: int) -> Tensor:
        self.decode.step = step
        decoder = self.vlm.model.get_decoder()
        hidden: Tensor = decoder(
            inputs_embeds=embeds_B1D, position_ids=positions_3B1, use_cache=False, prefix_layout=self.decode
        ).last_hidden_state
        return hidden[:, 0]

    def keep(self, contexts_C: np.ndarray, rows_B: np.ndarray, num: int) -> None:
        state = self.decode
        rows = torch.from_numpy(rows_B).to(self.vlm.device)
        state.own_keys, state.own_values = ([x.index_select(0, rows) for x in xs] for xs in (state.own_keys, state.own_values))
        state.num_rollouts = num
        if len(contexts_C) == len(state.prompt_keys[0]):
            return
        contexts = torch.from_numpy(contexts_C).to(self.vlm.device)
        state.prompt_keys, state.prompt_values = (
            [x.index_select(0, contexts) for x in xs] for xs in (state.prompt_keys, state.prompt_values)
        )
        if state.prompt_mask_CP is not None:
            state.prompt_mask_CP = state.prompt_mask_CP.index_select(0, contexts)


class _Cached:
    """For families with linear layers: transformers' own cache, contexts padded on the left and read once each."""

    def __init__(self, vlm: VLM, mask_BT: Tensor) -> None:
        from transformers import DynamicCache

        self.vlm = vlm
        self.mask_BT = mask_BT
        self.cache = DynamicCache(config=vlm.model.config.get_text_config())

    @classmethod
    def prefill(cls, vlm: VLM, contexts: Sequence[Segment], num: int, steps: int) -> tuple[_Cached, Tensor]:
        longest = max(len(context) for context in contexts)
        ids, mask = (torch.zeros(len(contexts), longest, dtype=torch.long) for _ in range(2))
        positions = torch.zeros(3, len(contexts), longest, dtype=torch.long)
        spans: list[list[VisualSpan]] = []
        for c, context in enumerate(contexts):
            at = longest - len(context)
            ids[c, at:], mask[c, at:] = torch.from_numpy(context.ids_T), 1
            positions[:, c, at:] = torch.from_numpy(context.positions_3T)
            spans.append([VisualSpan(span.start + at, span.length, span.item, span.offset) for span in context.visuals])
        features = encode(vlm, [span.item for one in spans for span in one])
        state = cls(vlm, mask.to(vlm.device))
        hidden = run_decoder(
            vlm, ids, positions, spans, features, attention_mask=state.mask_BT, past_key_values=state.cache, use_cache=True
        )
        rows = torch.arange(len(contexts), device=vlm.device).repeat_interleave(num)
        state._select(rows)
        return state, hidden[:, -1]

    def _select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]
        self.mask_BT = self.mask_BT.index_select(0, rows)

    def forward(self, embeds_B1D: Tensor, positions_3B1: Tensor, step: int) -> Tensor:
        self.mask_BT = F.pad(self.mask_BT, (0, 1), value=1)
        decoder = self.vlm.model.get_decoder()
        out = decoder(
            inputs_embeds=embeds_B1D,
            position_ids=positions_3B1,
            attention_mask=self.mask_BT,
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden[:, 0]

    def keep(self, contexts_C: np.ndarray, rows_B: np.ndarray, num: int) -> None:
        self._select(torch.from_numpy(rows_B).to(self.vlm.device))
