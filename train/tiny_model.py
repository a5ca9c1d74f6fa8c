"""A fast forward of the tiny model for its own training: pictures of one size go through the vision tower as one batch.

Numbers equal those of the stock forward (a test holds it); only the loop over pictures inside the vision attention is gone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..vlm.tiny.create import MERGE, PATCH_PX
from .tiny_data import BOILERPLATE_WEIGHT, Row


def patches(pictures_BCHW: Tensor) -> Tensor:
    """uint8 ``[B, 3, H, W]`` to normalised patches ``[B, P, D]`` in the stock processor's order (two equal frames)."""
    batch, channels, height, width = pictures_BCHW.shape
    rows, columns, block = height // PATCH_PX // MERGE, width // PATCH_PX // MERGE, PATCH_PX
    values = (pictures_BCHW.float() / 255 - 0.5) / 0.5
    values = values.reshape(batch, channels, rows, MERGE, block, columns, MERGE, block).permute(0, 2, 5, 3, 6, 1, 4, 7)
    values = values.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    return values.reshape(batch, rows * columns * MERGE * MERGE, channels * 2 * block * block)


@functools.lru_cache(16)
def _geometry(visual_side: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    from transformers.models.qwen3_vl import modeling_qwen3_vl as stock

    grid = torch.tensor([[1, rows, columns]])
    indices, weights = stock.get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=visual_side, mode="bilinear", align_corners=True, spatial_merge_size=MERGE, kwargs={}
    )
    return indices, weights, stock.get_vision_position_ids(grid, MERGE, kwargs={})


def encode(model: Any, pictures_BCHW: Tensor) -> Tensor:
    """Merged vision tokens ``[B, n, D]`` of pictures of one size."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

    visual = model.model.visual
    batch, _, height, width = pictures_BCHW.shape
    indices, weights, position_ids = _geometry(visual.num_grid_per_side, height // PATCH_PX, width // PATCH_PX)
    flat = patches(pictures_BCHW)
    kernel = visual.patch_embed.proj.weight.flatten(1)
    hidden = F.linear(flat, kernel, visual.patch_embed.proj.bias)
    hidden = hidden + (visual.pos_embed(indices) * weights[:, :, None]).sum(1)
    cos, sin = visual.rotary_pos_emb(hidden[0], position_ids)
    for block in visual.blocks:
        attention = block.attn
        query, key, value = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        turned = apply_rotary_pos_emb_vision(query.flatten(0, 1), key.flatten(0, 1), cos.repeat(batch, 1), sin.repeat(batch, 1))
        query, key = (part.unflatten(0, (batch, -1)).transpose(1, 2) for part in turned)
        mixed = F.scaled_dot_product_attention(query, key, value.transpose(1, 2))
        hidden = hidden + attention.proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: Tensor = visual.merger(hidden.flatten(0, 1)).unflatten(0, (batch, -1))
    return merged


@dataclass
class Rows:
    """Tokenized rows, right padded. ``weights_BT`` is the loss weight of each token as a target."""

    ids_BT: Tensor
    positions_3BT: Tensor
    weights_BT: Tensor
    lengths_B: Tensor
    pictures: list[Tensor]
    """Distinct pictures in the order of first use."""
    uses: list[int]
    """Which picture every image run of the batch shows, row by row."""
    classes: dict[int, np.ndarray]
    asked: list[tuple[int, int, int, int]]
    """(row, token, vision token, letter) for every token that names the object in question."""
    told: list[tuple[int, int, int]]
    """(row, token, colour) for every letter of a scene in words."""


def positions(ids_T: np.ndarray, grids: Sequence[tuple[int, int]], image_id: int) -> np.ndarray:
    """M-RoPE positions ``[3, T]``; ``grids`` are (rows, columns) after merging, one per image run."""
    out = np.zeros((3, len(ids_T)), np.int64)
    place, start, remaining = 0, 0, list(grids)
    while place < len(ids_T):
        if ids_T[place] == image_id:
            rows, columns = remaining.pop(0)
            run = slice(place, place + rows * columns)
            out[0, run] = start
            out[1, run] = start + np.repeat(np.arange(rows), columns)
            out[2, run] = start + np.tile(np.arange(columns), rows)
            place, start = run.stop, start + max(rows, columns)
        else:
            out[:, place], place, start = start, place + 1, start + 1
    return out


def _overlaps(start: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(start < stop and first < end for first, stop in spans)


def picture_grid(picture: Tensor) -> tuple[int, int]:
    return picture.shape[1] // (PATCH_PX * MERGE), picture.shape[2] // (PATCH_PX * MERGE)


def expand(ids: Sequence[int], grids: Sequence[tuple[int, int]], image_id: int) -> list[int]:
    """Repeat each picture placeholder once per image token."""
    runs, out = iter(grids), []
    for token in ids:
        if token == image_id:
            rows, columns = next(runs)
            out += [image_id] * (rows * columns)
        else:
            out.append(token)
    return out


class Tokens:
    """Text to ids with a cache, since the rows of a build repeat a few hundred prompts and replies."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.image_id = int(tokenizer.convert_tokens_to_ids("<|image_pad|>"))
        self.stop_id = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        self._cache: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        if text not in self._cache:
            made = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
            if len(self._cache) > 200_000:
                self._cache.clear()
            self._cache[text] = (made["input_ids"], made["offset_mapping"])
        return self._cache[text]

    def row(self, row: Row) -> tuple[list[int], list[float]]:
        """Ids (pictures expanded) and target weights. World-written text inside the reply (a tool's answer) weighs nothing."""
        grids = [picture_grid(picture) for picture in row.pictures]
        prompt, _ = self.encode(row.prompt)
        reply, offsets = self.encode(row.reply)
        stop = row.reply.find("<|im_end|>\n<|im_start|>user")
        quiet = range(stop + len("<|im_end|>"), row.reply.rfind("assistant\n") + len("assistant\n")) if stop >= 0 else range(0)
        weights = [
            0.0
            if start in quiet or _overlaps(start, end, row.skip_spans)
            else 1.0
            if _overlaps(start, end, row.key_spans)
            else BOILERPLATE_WEIGHT
            for start, end in offsets
        ]
        ids = expand(list(prompt) + list(reply), grids, self.image_id)
        full_weights = [0.0] * (len(ids) - len(expand(reply, grids[prompt.count(self.image_id) :], self.image_id)))
        for token, weight in zip(reply, weights, strict=True):
            if token == self.image_id:
                rows, columns = grids[-1]
                full_weights += [0.0] * (rows * columns)
            else:
                full_weights.append(weight)
        return ids, full_weights

    def batch(self, rows: Sequence[Row]) -> Rows:
        made = [self.row(row) for row in rows]
        length = max(len(ids) for ids, _ in made)
        ids_BT = np.zeros((len(rows), length), np.int64)
        positions_3BT = np.zeros((3, len(rows), length), np.int64)
        weights_BT = np.zeros((len(rows), length), np.float32)
        pictures: dict[int, tuple[int, Tensor]] = {}
        uses, classes, asked, told = [], {}, [], []
        for index, (row, (ids, weights)) in enumerate(zip(rows, made, strict=True)):
            ids_BT[index, : len(ids)], weights_BT[index, : len(ids)] = ids, weights
            asked += [(index, place, *row.asked[1:]) for place in self.named(row)] if row.asked else []
            for start, end, colour in row.told:
                told += [(index, k, colour) for k, (a, b) in enumerate(self.encode(row.prompt)[1]) if a < end and b > start]
            grids = [picture_grid(picture) for picture in row.pictures]
            positions_3BT[:, index, : len(ids)] = positions(np.array(ids), grids, self.image_id)
            for number, picture in enumerate(row.pictures):
                place, _ = pictures.setdefault(id(picture), (len(pictures), picture))
                uses.append(place)
                if number == 0 and row.patch_classes is not None:
                    classes[place] = row.patch_classes
        lengths = torch.tensor([len(ids) for ids, _ in made])
        tensors = (torch.from_numpy(ids_BT), torch.from_numpy(positions_3BT), torch.from_numpy(weights_BT))
        return Rows(*tensors, lengths, [picture for _, picture in pictures.values()], uses, classes, asked, told)

    def named(self, row: Row) -> list[int]:
        """Places of the tokens that name the object in the question of the prompt, which comes last in it."""
        assert row.asked is not None
        ids, offsets = self.encode(row.prompt)
        start = row.prompt.rindex(row.asked[0])
        end = start + len(row.asked[0])
        rows, columns = picture_grid(row.pictures[0]) if self.image_id in ids else (1, 1)
        return [k + rows * columns - 1 for k, (a, b) in enumerate(offsets) if a < end and b > start]


def embed(model: Any, batch: Rows, image_id: int) -> tuple[Tensor, list[Tensor]]:
    """Token embeddings ``[B, T, D]`` with the pictures in place, and the vision tokens ``[n, D]`` of every distinct picture."""
    embeds = model.model.language_model.embed_tokens(batch.ids_BT)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(batch.pictures):
        by_size.setdefault(tuple(picture.shape), []).append(index)
    features: list[Tensor] = [embeds] * len(batch.pictures)
    for members in by_size.values():
        encoded = encode(model, torch.stack([batch.pictures[index] for index in members]))
        for index, rows in zip(members, encoded, strict=True):
            features[index] = rows
    if batch.uses:
        mask = (batch.ids_BT == image_id).unsqueeze(-1).expand_as(embeds)
        embeds = embeds.masked_scatter(mask, torch.cat([features[index] for index in batch.uses]))
    return embeds, features


def hidden(model: Any, embeds: Tensor, positions_3BT: Tensor, cache: Any = None, early: list[Tensor] | None = None) -> Tensor:
    """Final hidden states; causal, no padding mask: rows are padded on the right, where nothing looks at it.

    The output of the first layer is appended to ``early`` if given.
    """
    watch = None
    if early is not None:
        watch = model.model.language_model.layers[0].register_forward_hook(lambda layer, given, out: early.append(out))
    out = model.model.language_model(
        inputs_embeds=embeds, position_ids=positions_3BT, attention_mask=None, past_key_values=cache, use_cache=cache is not None
    )
    if watch is not None:
        watch.remove()
    states: Tensor = out.last_hidden_state
    return states


def loss(
    model: Any, batch: Rows, image_id: int, aux_head: torch.nn.Linear | None = None, word_ids: Tensor | None = None
) -> tuple[Tensor, float, Tensor]:
    """Weighted cross-entropy over the reply (sum / sum of key weights), its key-token accuracy, and the auxiliary loss.

    The auxiliary loss (zero without ``aux_head``) is thrown away with its head when the model is built. ``word_ids`` are the
    tokens of the colour words in the order of `COLOURS`.
    """
    embeds, features = embed(model, batch, image_id)
    early: list[Tensor] = []
    states = hidden(model, embeds, batch.positions_3BT, early=early)
    picked = batch.weights_BT[:, 1:] > 0
    logits = F.linear(states[:, :-1][picked], model.lm_head.weight)
    targets, weights = batch.ids_BT[:, 1:][picked], batch.weights_BT[:, 1:][picked]
    key = weights == 1
    value = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / key.sum()
    accuracy = float((logits.detach().argmax(-1) == targets)[key].float().mean())
    aux = states.new_zeros(())
    if aux_head is not None and word_ids is not None:
        words_CD = model.model.language_model.embed_tokens(word_ids)
        aux = _asked_loss(aux_head, states, batch)
        if batch.told:
            rows, places, colours = torch.tensor(batch.told).T
            aux = aux + F.cross_entropy(early[0][rows, places] @ words_CD.T, colours)
        if batch.classes:
            aux = aux + _vision_loss(aux_head, batch, features, words_CD)
    return value, accuracy, aux


def _asked_loss(aux_head: torch.nn.Linear, states: Tensor, batch: Rows) -> Tensor:
    """Where the question names the object, its place and letter must be readable: retrieval is learned there first."""
    table = torch.tensor(batch.asked)
    predicted = aux_head(states[table[:, 0], table[:, 1]])
    total = states.new_zeros(())
    for start, stop, truth in ((52, 68, table[:, 2]), (68, 78, table[:, 3])):
        if (truth >= 0).any():
            total = total + F.cross_entropy(predicted[:, start:stop], truth)
    return total


def _vision_loss(aux_head: torch.nn.Linear, batch: Rows, features: list[Tensor], words_CD: Tensor) -> Tensor:
    """Every vision token of a full view tells the colours of its patches and its own index, and resembles its colour's word."""
    pictures = list(batch.classes)
    rows = torch.cat([features[index] for index in pictures])
    predicted = aux_head(rows)
    truth = torch.from_numpy(np.concatenate([batch.classes[index] for index in pictures]))
    own = torch.arange(len(features[pictures[0]])).repeat(len(pictures))
    aux = F.cross_entropy(predicted[:, :36].reshape(-1, 9), truth) + F.cross_entropy(predicted[:, 36:52], own)
    shares = F.one_hot(truth, 9).reshape(-1, 4, 9).sum(1)[:, :8].float()
    coloured = shares.sum(1) > 0
    wanted = shares[coloured] / shares[coloured].sum(1, keepdim=True)
    return aux + F.cross_entropy(rows[coloured] @ words_CD.T, wanted)
