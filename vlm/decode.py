"""What is kept between tokens and between turns: keys and values of each context once, those of each rollout beside them.

Legend: C contexts, N completions per context, B = C * N rows being decoded, J key heads, P prompt tokens, K columns behind the
prompt, Q new tokens of a row, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Decode, Prefill
from .backbone import encode, forward_packed, run_decoder
from .packing import check_spans, pack
from .segments import Segment, VisualSpan

if TYPE_CHECKING:
    from .load import VLM


class State(Protocol):
    """Rows in the middle of being written."""

    def forward(self, embeds_B1D: Tensor, positions_3B1: Tensor) -> Tensor:
        """``[B, D]``: the hidden states after one more token per row."""
        ...

    def keep(self, contexts_C: np.ndarray, rows_B: np.ndarray, num: int) -> None:
        """Go on with these contexts and rows only, ``num`` rows for each context."""
        ...


@dataclass(frozen=True)
class Rows:
    """Keys and values that some rows have read behind their prompts: ``[rows, J, K, D]`` a layer, and which columns count."""

    keys: list[Tensor]
    values: list[Tensor]
    mask_BK: np.ndarray


@dataclass(frozen=True)
class Held:
    """Where a finished completion's keys and values are: row ``row`` of ``rows``, behind prompt ``context`` of ``prompts``.

    ``num_tokens`` of its context and its own ids have been read: all but its last token, which nothing has followed yet.
    """

    prompts: Prompts
    context: int
    rows: Rows
    row: int
    num_tokens: int


@dataclass(frozen=True)
class Prompts:
    """Keys and values of prompts, ``[C, J, P, D]`` a layer; ``mask_CP`` is False at the padding of shorter ones."""

    keys: list[Tensor]
    values: list[Tensor]
    mask_CP: Tensor | None
    lengths_C: np.ndarray

    def chosen(self, contexts_C: np.ndarray) -> Prompts:
        """Some of the prompts, in this order."""
        if np.array_equal(contexts_C, np.arange(len(self.lengths_C))):
            return self
        index = torch.from_numpy(contexts_C).to(self.keys[0].device)
        keys, values = ([x.index_select(0, index) for x in xs] for xs in (self.keys, self.values))
        mask = None if self.mask_CP is None else self.mask_CP.index_select(0, index)
        return Prompts(keys, values, mask, self.lengths_C[contexts_C])


class Shared:
    """Rows whose prompts are held once for all of their completions."""

    def __init__(self, vlm: VLM, prompts: Prompts, own: Decode, origin: Prompts, context_C: np.ndarray) -> None:
        self.vlm, self.prompts, self.own = vlm, prompts, own
        self.origin, self.context_C = origin, context_C
        """Where the prompts came from: a held row names its prompt there, however the rows were thinned out since."""

    @classmethod
    def prefill(cls, vlm: VLM, contexts: Sequence[Segment], num: int, steps: int) -> tuple[Shared, Tensor]:
        """Read the contexts once; the second result is ``[B, D]``, the hidden state that predicts each row's first token."""
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

        prompts = Prompts(per_context(captured.keys), per_context(captured.values), mask, lengths.numpy())
        columns = max(1, steps - 1)
        empty = [x.new_zeros(len(contexts) * num, x.shape[1], columns, x.shape[3]) for x in prompts.keys]
        own = Decode(prompts.keys, prompts.values, empty, [torch.zeros_like(x) for x in empty], num, mask)
        state = cls(vlm, prompts, own, prompts, np.arange(len(contexts)))
        return state, hidden_TD[(ends - 1).to(vlm.device)].repeat_interleave(num, 0)

    @classmethod
    def resume(
        cls, vlm: VLM, held_CN: Sequence[Sequence[Held]], contexts_CN: Sequence[Sequence[Segment]], steps: int
    ) -> tuple[Shared, Tensor]:
        """Go on from held rows, reading only what is new: ``held_CN[c][i]`` continues in ``contexts_CN[c][i]``.

        All rows of entry c must be of one prompt, and all of one `Prompts`. A shorter entry is filled up with its first row.
        """
        num = max(len(own) for own in held_CN)
        fill = [list(range(len(own))) + [0] * (num - len(own)) for own in held_CN]
        held = [own[i] for own, places in zip(held_CN, fill, strict=True) for i in places]
        contexts = [own[i] for own, places in zip(contexts_CN, fill, strict=True) for i in places]
        origin, context_C = held[0].prompts, np.array([own[0].context for own in held_CN])
        prompts = origin.chosen(context_C)
        fresh = [_after(context, one.num_tokens) for context, one in zip(contexts, held, strict=True)]
        width = max(len(segment) for segment in fresh)
        keys, values, mask_BK = _gathered(held, width + steps - 1)
        history = mask_BK.shape[1]
        lengths_B = np.array([len(segment) for segment in fresh])
        real_BQ = np.arange(width) < lengths_B[:, None]
        columns = keys[0].shape[2]
        mask = np.concatenate([mask_BK, real_BQ, np.ones((len(held), columns - history - width), bool)], 1)
        own = Decode(
            prompts.keys, prompts.values, keys, values, num, prompts.mask_CP,
            None if mask.all() else torch.from_numpy(mask).to(vlm.device), history,
        )  # fmt: skip
        state = cls(vlm, prompts, own, origin, context_C)
        return state, state._read(fresh, lengths_B, width)

    def _read(self, fresh: Sequence[Segment], lengths_B: np.ndarray, width: int) -> Tensor:
        """``[B, D]``: the hidden states of each row's last new token."""
        vlm, rows = self.vlm, len(fresh)
        ids, positions = torch.zeros(rows, width, dtype=torch.long), torch.zeros(3, rows, width, dtype=torch.long)
        for b, segment in enumerate(fresh):
            ids[b, : len(segment)] = torch.from_numpy(segment.ids_T)
            positions[:, b, : len(segment)] = torch.from_numpy(segment.positions_3T)
        spans = [segment.visuals for segment in fresh]
        features = encode(vlm, [span.item for one in spans for span in one])
        hidden_BQD = run_decoder(vlm, ids, positions, spans, features, prefix_layout=self.own)
        self.own.column += width
        return hidden_BQD[torch.arange(rows, device=vlm.device), torch.from_numpy(lengths_B - 1).to(vlm.device)]

    def forward(self, embeds_B1D: Tensor, positions_3B1: Tensor) -> Tensor:
        decoder = self.vlm.model.get_decoder()
        hidden: Tensor = decoder(
            inputs_embeds=embeds_B1D, position_ids=positions_3B1, use_cache=False, prefix_layout=self.own
        ).last_hidden_state
        self.own.column += 1
        return hidden[:, 0]

    def keep(self, contexts_C: np.ndarray, rows_B: np.ndarray, num: int) -> None:
        own = self.own
        rows = torch.from_numpy(rows_B).to(self.vlm.device)
        own.own_keys, own.own_values = ([x.index_select(0, rows) for x in xs] for xs in (own.own_keys, own.own_values))
        own.own_mask_BK = None if own.own_mask_BK is None else own.own_mask_BK.index_select(0, rows)
        own.num_rollouts = num
        self.prompts, self.context_C = self.prompts.chosen(contexts_C), self.context_C[contexts_C]
        own.prompt_keys, own.prompt_values, own.prompt_mask_CP = self.prompts.keys, self.prompts.values, self.prompts.mask_CP

    def hold(self, rows_B: np.ndarray, start: int, read_B: np.ndarray) -> list[Held]:
        """Put rows away for a later turn. Their completions begin at column ``start``; ``read_B`` tokens of each were read."""
        own, used = self.own, self.own.column
        everything = len(rows_B) == len(own.own_keys[0])
        index = torch.from_numpy(rows_B).to(self.vlm.device)
        keys, values = (
            [x[:, :, :used] if everything else x[:, :, :used].index_select(0, index) for x in xs]
            for xs in (own.own_keys, own.own_values)
        )
        mask = np.ones((len(own.own_keys[0]), used), bool)
        if own.own_mask_BK is not None:
            mask = own.own_mask_BK[:, :used].cpu().numpy()
        mask = mask[rows_B] & ((np.arange(used) < start) | (np.arange(used) < start + read_B[:, None]))
        rows = Rows(keys, values, mask)
        contexts = self.context_C[rows_B // own.num_rollouts]
        lengths = self.origin.lengths_C[contexts] + mask.sum(1)
        pairs = zip(contexts.tolist(), lengths.tolist(), strict=True)
        return [Held(self.origin, context, rows, place, length) for place, (context, length) in enumerate(pairs)]


def _after(context: Segment, start: int) -> Segment:
    """The part of a context from token ``start`` on, with positions as they are in the whole."""
    inside = tuple(
        VisualSpan(span.start - start, span.length, span.item, span.offset) for span in context.visuals if span.start >= start
    )
    rest = Segment(context.ids_T[start:], context.positions_3T[:, start:], context.next_position, inside)
    check_spans(rest, "a continued rollout")
    return rest


def _gathered(held: Sequence[Held], room: int) -> tuple[list[Tensor], list[Tensor], np.ndarray]:
    """Keys and values of held rows side by side, moved to the left, with ``room`` further columns; and which columns count."""
    lengths = np.array([int(one.rows.mask_BK[one.row].sum()) for one in held])
    longest = int(lengths.max(initial=0))
    mask_BK = np.arange(longest) < lengths[:, None]
    sources: dict[int, tuple[Rows, list[int]]] = {}
    for b, one in enumerate(held):
        sources.setdefault(id(one.rows), (one.rows, []))[1].append(b)
    like = held[0].rows.keys
    made = [[x.new_zeros(len(held), x.shape[1], longest + room, x.shape[3]) for x in like] for _ in range(2)]
    for rows, places in sources.values():
        most = int(lengths[places].max())
        index_BK = np.zeros((len(places), most), np.int64)
        for i, b in enumerate(places):
            index_BK[i, : lengths[b]] = np.flatnonzero(rows.mask_BK[held[b].row])
        device = like[0].device
        to, source = (torch.tensor(x, device=device) for x in (places, [held[b].row for b in places]))
        columns = torch.from_numpy(index_BK).to(device)
        for new, old in zip(made, (rows.keys, rows.values), strict=True):
            for layer, x in enumerate(old):
                picked = x.index_select(0, source).gather(2, columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
                new[layer][to, :, :most] = picked
    return made[0], made[1], mask_BK


class Cached:
    """For families with linear layers: transformers' own cache, contexts padded on the left and read once each."""

    def __init__(self, vlm: VLM, mask_BT: Tensor) -> None:
        from transformers import DynamicCache

        self.vlm = vlm
        self.mask_BT = mask_BT
        self.cache = DynamicCache(config=vlm.model.config.get_text_config())

    @classmethod
    def prefill(cls, vlm: VLM, contexts: Sequence[Segment], num: int, steps: int) -> tuple[Cached, Tensor]:
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
        return state, hidden[:, -1].index_select(0, rows)

    def _select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]
        self.mask_BT = self.mask_BT.index_select(0, rows)

    def forward(self, embeds_B1D: Tensor, positions_3B1: Tensor) -> Tensor:
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
