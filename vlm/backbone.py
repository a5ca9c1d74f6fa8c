"""Hidden states: pictures are encoded once, prompts are read once, and the rows that predict an action come back.

Nothing here touches the head: no tokens x vocabulary tensor exists (see `vlm.logprobs` and `train.losses`).

The parts of the model are called through their public names (``get_input_embeddings``, ``get_image_features``, ``get_decoder``),
which adapters forward, rather than through the model's own forward: that one would want pictures in token order and once per
mention.

Legend: T packed tokens, R suffix tokens kept, D width, F feature rows of all distinct pictures, L deepstack levels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import NAME, Prefill, PrefixLayout
from .packing import Packed, describe
from .segments import VisualItem, VisualSpan

if TYPE_CHECKING:
    from .load import VLM


@dataclass(frozen=True)
class Features:
    """What the vision tower said about every distinct picture and clip of a batch.

    ``rows_FD`` are all feature rows, item after item; ``deepstack`` holds further rows of the same shape for families that add
    them to the first layers; ``places[key]`` is where an item's rows are. ``features[key]`` is one item's ``[n, D]``.
    """

    rows_FD: Tensor
    deepstack: tuple[Tensor, ...]
    places: Mapping[str, range]

    def __getitem__(self, key: str) -> Tensor:
        place = self.places[key]
        return self.rows_FD[place.start : place.stop]

    def __contains__(self, key: object) -> bool:
        return key in self.places

    def __len__(self) -> int:
        return len(self.places)

    def detach(self) -> Features:
        """The same rows without a gradient, for sampling and scoring."""
        return Features(self.rows_FD.detach(), tuple(level.detach() for level in self.deepstack), self.places)

    def index(self, spans: Sequence[VisualSpan]) -> Tensor:
        """Feature row of each image token of ``spans``, in order. Raises `ValueError` for a picture that was not encoded."""
        rows = []
        for span in spans:
            if span.item.key not in self.places:
                raise ValueError(
                    f"{describe(span.item)} was not encoded; pass the features of all pictures of the batch, or none"
                )
            start = self.places[span.item.key].start + span.offset
            rows.append(np.arange(start, start + span.length))
        return torch.from_numpy(np.concatenate(rows)).to(self.rows_FD.device)


class PatchProjection(torch.nn.Conv3d):
    """A convolution whose one window is the whole patch, which is a matrix product: 3 to 5 times as fast on a CPU, forward and
    backward, and free of the slow 3-D convolutions of some CUDA versions. Weights, names and files stay those of the convolution.
    """

    def forward(self, patches_PCFHW: Tensor) -> Tensor:
        """``[P, C, F, H, W]`` -> ``[P, D, 1, 1, 1]``."""
        return F.linear(patches_PCFHW.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def project_patches_by_matmul(model: torch.nn.Module) -> None:
    """Let the patch embedding of a vision tower run as `PatchProjection`. Harmless when done twice."""
    for module in model.modules():
        if type(module) is torch.nn.Conv3d and module.kernel_size == module.stride and module.groups == 1:
            module.__class__ = PatchProjection


def encode(vlm: VLM, items: Sequence[VisualItem]) -> Features:
    """Run the vision tower once over all distinct ``items``; pictures and clips share the one call.

    Gradients flow into the tower unless it is frozen or the caller is under ``torch.no_grad``. Raises `ValueError` naming the
    picture whose features are not as many as its tokens.
    """
    distinct = list({item.key: item for item in items}.values())
    if not distinct:
        return Features(torch.zeros(0, 0, device=vlm.device), (), {})
    patches = torch.cat([vlm.renderer.patches(item) for item in distinct]).to(vlm.device)
    grids = torch.tensor([item.grid_thw for item in distinct], device=vlm.device)
    model: Any = vlm.model  # get_image_features is of the four families, not of every pretrained model
    out = model.get_image_features(patches, grids, return_dict=True)
    places, at = {}, 0
    for item, rows in zip(distinct, out.pooler_output, strict=True):
        if len(rows) != item.num_tokens:
            raise ValueError(
                f"{describe(item)} was rendered as {item.num_tokens} image tokens but the model made {len(rows)} features of it"
            )
        places[item.key] = range(at, at + len(rows))
        at += len(rows)
    # transformers 5.17 gives a deepstack level as one tensor, 5.23 picture by picture
    given = out.get("deepstack_features") or ()
    levels = tuple(level if isinstance(level, Tensor) else torch.cat(tuple(level)) for level in given)
    return Features(torch.cat(tuple(out.pooler_output)), levels, places)


def hidden_rows(vlm: VLM, packed: Packed, keep_R: Tensor | None = None, features: Features | None = None) -> Tensor:
    """``[R, D]``: the last hidden state that predicts each suffix token of ``keep_R`` (indices into the loss side; default all).

    ``features``: from `encode`, when pictures were encoded before; it must hold every picture of the pack. The rows of an
    action's first token come from the shared last row of its prompt, which adds up the gradients of all rollouts.

    Families that cannot share a prefix (linear attention) run sequence by sequence; that is said once.
    """
    if features is None:
        features = encode(vlm, packed.items)
    keep_R = torch.arange(len(packed.predictors_R)) if keep_R is None else keep_R.cpu()
    if not vlm.family.can_share_prefix:
        return _one_by_one(vlm, packed, keep_R, features)
    hidden_TD = forward_packed(vlm, packed, features, packed.layout)
    return hidden_TD.index_select(0, packed.predictors_R[keep_R].to(hidden_TD.device))


def forward_packed(vlm: VLM, packed: Packed, features: Features, layout: PrefixLayout | Prefill) -> Tensor:
    """``[T, D]``: the last hidden states of a packed row. ``layout`` must describe it; a `Prefill` keeps keys and values."""
    decoder = vlm.model.get_decoder()
    if decoder.config._attn_implementation != NAME:
        raise ValueError(
            f"the model runs attention {decoder.config._attn_implementation!r}, which would mix the rollouts of a packed row; "
            f"load it with attention={NAME!r}"
        )
    if packed.num_tokens == 0:
        raise ValueError("nothing to run: the pack holds no tokens")
    return run_decoder(vlm, packed.ids_T[None], packed.positions_3T[:, None], [packed.spans], features, prefix_layout=layout)[0]


def run_decoder(
    vlm: VLM, ids_BT: Tensor, positions_3BT: Tensor, spans_B: Sequence[Sequence[VisualSpan]], features: Features, **kwargs: Any
) -> Tensor:
    """``[B, T, D]``: last hidden states of rows whose image tokens are replaced by features. ``spans_B`` are per row."""
    ids_BT = ids_BT.to(vlm.device)
    rows, length = ids_BT.shape
    embeds = vlm.model.get_input_embeddings()(ids_BT)
    spans = [
        VisualSpan(span.start + row * length, span.length, span.item, span.offset)
        for row, one in enumerate(spans_B)
        for span in one
    ]
    _check_image_tokens(vlm, ids_BT, spans)
    if spans:
        places = torch.from_numpy(np.concatenate([np.arange(span.start, span.start + span.length) for span in spans])).to(
            vlm.device
        )
        index = features.index(spans)
        flat = embeds.reshape(rows * length, -1)
        flat = flat.index_copy(0, places, features.rows_FD.index_select(0, index).to(flat.dtype))
        embeds = flat.view(rows, length, -1)
        if features.deepstack:
            mask = torch.zeros(rows * length, dtype=torch.bool, device=vlm.device).index_fill_(0, places, True)
            kwargs["visual_pos_masks"] = mask.view(rows, length)
            kwargs["deepstack_visual_embeds"] = [level.index_select(0, index) for level in features.deepstack]
    kwargs.setdefault("use_cache", False)
    hidden: Tensor = vlm.model.get_decoder()(
        inputs_embeds=embeds, position_ids=positions_3BT.to(vlm.device), **kwargs
    ).last_hidden_state
    return hidden


def _check_image_tokens(vlm: VLM, ids_BT: Tensor, spans: Sequence[VisualSpan]) -> None:
    """Image tokens are exactly those of the spans: none outside, none missing."""
    config = vlm.model.config
    is_visual = (ids_BT == config.image_token_id) | (ids_BT == config.video_token_id)
    have, want = int(is_visual.sum()), sum(span.length for span in spans)
    if have == want:
        return
    flat = is_visual.flatten().cpu()
    for span in spans:
        found = int(flat[span.start : span.start + span.length].sum())
        if found != span.length:
            raise ValueError(f"{describe(span.item)}: {span.length} features for {found} image tokens at {span.start}")
    raise ValueError(
        f"the tokens hold {have} image tokens but the pictures have {want} features: "
        "an action or a text holds image tokens; ban them while sampling"
    )


_SAID: set[str] = set()


def _one_by_one(vlm: VLM, packed: Packed, keep_R: Tensor, features: Features) -> Tensor:
    if vlm.family.name not in _SAID:
        _SAID.add(vlm.family.name)
        warnings.warn(f"{vlm.family.name} has layers that cannot share a prefix: its sequences run one by one", stacklevel=3)
    out = []
    kept = set(packed.sequence_R[keep_R].tolist())
    index_R = torch.zeros(len(packed.predictors_R), dtype=torch.long)
    at = 0
    for suffix, (rows, prompt_length) in enumerate(sequences(packed)):
        if suffix not in kept:
            continue
        here = {row: place for place, row in enumerate(rows.tolist())}
        spans = [VisualSpan(here[span.start], span.length, span.item, span.offset) for span in packed.spans if span.start in here]
        hidden_TD = run_decoder(vlm, packed.ids_T[rows][None], packed.positions_3T[:, rows][:, None], [spans], features)[0]
        out.append(hidden_TD[prompt_length - 1 : -1])
        start, stop = packed.suffix_starts[suffix], packed.suffix_starts[suffix + 1]
        index_R[start:stop] = torch.arange(at, at + stop - start)
        at += stop - start
    if not out:
        return torch.zeros(0, vlm.head_weight.shape[1], device=vlm.device)
    hidden_RD = torch.cat(out)
    return hidden_RD.index_select(0, index_R[keep_R].to(hidden_RD.device))


def sequences(packed: Packed) -> Iterator[tuple[Tensor, int]]:
    """For each suffix: the packed rows of its whole sequence (prompt, then suffix), and the length of the prompt."""
    at = 0
    for prompt, suffixes in packed.layout.groups:
        start = at + prompt
        for length in suffixes:
            yield torch.cat([torch.arange(at, at + prompt), torch.arange(start, start + length)]), prompt
            start += length
        at = start
