"""Whether packing and the sampler agree with the plain way on this device, with pictures.

Legend: R rows of the loss, T tokens, B sequences.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..doctor import RANDOM_FAMILIES, logprob_difference
from ..vlm.backbone import encode, hidden_rows, run_decoder
from ..vlm.generate import HFEngine
from ..vlm.images import Picture
from ..vlm.load import VLM, tiny_random
from ..vlm.messages import Message
from ..vlm.packing import Packed, pack
from ..vlm.records import StopReason, Turn, View
from ..vlm.segments import Segment, VisualSpan, join
from .measure import fresh
from .models import moved, random_model
from .spec import Notes, Settings

Groups = list[tuple[Segment, list[Segment]]]


def noise(seed: int, width_px: int, height_px: int) -> Picture:
    return Picture.of(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8))


def groups_of(vlm: VLM, scale: int) -> Groups:
    """Three prompts with eight rollouts of unequal length: two pictures, none, and tools that show pictures."""

    def turn(seed: int, length: int, observation: Message | None = None) -> Turn:
        allowed = np.setdiff1d(np.arange(200), [*vlm.renderer.banned_ids, *vlm.renderer.stop_ids])
        ids = (*np.random.default_rng(seed).choice(allowed, length).tolist(), vlm.renderer.stop_ids[0])
        return Turn(ids, (0.0,) * len(ids), "", StopReason.TOOL_CALL if observation else StopReason.ANSWERED, observation)

    def suffix(*turns: Turn) -> Segment:
        return vlm.renderer.render(View("student", (Message.user("x"),)), turns).suffix

    one, two, crop = noise(1, 90 * scale, 60 * scale), noise(2, 56 * scale, 120 * scale), noise(3, 70, 84)
    shown = Message.user("<tool_response>", crop, "</tool_response>")
    prompt = vlm.renderer.prompt
    return [
        (prompt([Message.user(one, two, "Which letter?")]), [suffix(turn(n, 5 + 9 * n)) for n in range(4)]),
        (prompt([Message.user("No picture here.")]), [suffix(turn(4, 7)), suffix(turn(5, 1))]),
        (prompt([Message.user(one, "Zoom.")]), [suffix(turn(6, 4, shown), turn(7, 6)), suffix(turn(8, 30))]),
    ]


def one_by_one(vlm: VLM, groups: Groups) -> Tensor:
    """``[R, D]``: every sequence alone."""
    return torch.cat([padded(vlm, [(prompt, [one])]) for prompt, suffixes in groups for one in suffixes])


def padded(vlm: VLM, groups: Groups) -> Tensor:
    """``[R, D]``: all sequences in one batch padded on the left, with a mask."""
    wholes = [(len(prompt), join((prompt, one))) for prompt, suffixes in groups for one in suffixes]
    longest = max(len(whole) for _, whole in wholes)
    ids_BT, mask_BT = (torch.zeros(len(wholes), longest, dtype=torch.long) for _ in range(2))
    positions_3BT = torch.zeros(3, len(wholes), longest, dtype=torch.long)
    spans_B = []
    for b, (_, whole) in enumerate(wholes):
        at = longest - len(whole)
        ids_BT[b, at:], mask_BT[b, at:] = torch.from_numpy(whole.ids_T), 1
        positions_3BT[:, b, at:] = torch.from_numpy(whole.positions_3T)
        spans_B.append([VisualSpan(span.start + at, span.length, span.item, span.offset) for span in whole.visuals])
    features = encode(vlm, [span.item for spans in spans_B for span in spans])
    # without padding no mask is given, as in training
    more = {} if bool(mask_BT.all()) else {"attention_mask": mask_BT.to(vlm.device)}
    hidden_BTD = run_decoder(vlm, ids_BT, positions_3BT, spans_B, features, **more)
    ends = [longest - len(whole) + prompt - 1 for prompt, whole in wholes]
    return torch.cat([hidden_BTD[b, end:-1] for b, end in enumerate(ends)])


def logprobs(vlm: VLM, packed: Packed, hidden_RD: Tensor) -> Tensor:
    logits_RV = (hidden_RD @ vlm.head_weight.to(hidden_RD.dtype).t()).float()
    return logits_RV.log_softmax(-1).gather(1, packed.targets_R[:, None].to(hidden_RD.device))[:, 0]


def gradients(vlm: VLM, values_R: Tensor) -> dict[str, Tensor]:
    vlm.model.zero_grad()
    (values_R * torch.linspace(-1, 1, len(values_R), device=values_R.device)).sum().backward()
    return {name: one.grad.clone() for name, one in vlm.model.named_parameters() if one.grad is not None}


def largest_share(found: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Largest gradient difference of any parameter, over that parameter's largest gradient or 1, whichever is more."""
    assert found.keys() == want.keys()
    gaps = [(found[name] - one).abs().max() / one.abs().max().clamp(min=1.0) for name, one in want.items()]
    return float(torch.stack(gaps).max())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Qwen3.5 says that its sequences run one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*cannot share a prefix")
        yield


def families(settings: Settings, notes: Notes) -> None:
    """Packed, padded and one by one: log-probs, and gradients in float32."""
    device = torch.device(settings.device)
    for family in RANDOM_FAMILIES:
        hidden, vision = (64, 32) if settings.quick else (256, 128)
        vlm = moved(tiny_random(family, hidden=hidden, vision_hidden=vision), device)
        groups = groups_of(vlm, 1 if settings.quick else 3)
        packed = pack(groups)
        with quiet():
            ways = {"packed": hidden_rows(vlm, packed), "padded": padded(vlm, groups), "one": one_by_one(vlm, groups)}
            values = {name: logprobs(vlm, packed, rows) for name, rows in ways.items()}
            grads = {name: gradients(vlm, one) for name, one in values.items()}
            found = {f"{name}_nats": float((values[name] - values["one"]).abs().max().detach()) for name in ("packed", "padded")}
            found["packed_gradients"] = largest_share(grads["packed"], grads["one"])
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                rows = {"packed": hidden_rows(vlm, packed), "one": one_by_one(vlm, groups)}
                low = {name: logprobs(vlm, packed, one) for name, one in rows.items()}
        found["packed_bf16_nats"] = float((low["packed"] - low["one"]).abs().mean())
        found["bf16_nats"] = float((low["one"] - values["one"]).abs().mean().detach())
        notes.put(family, **found)
        notes.expect(found["packed_nats"] <= 1e-3, f"{family}: packed and one by one differ by {found['packed_nats']:.1e} nats")
        notes.expect(found["packed_gradients"] <= 5e-3, f"{family}: their gradients differ by {found['packed_gradients']:.1e}")
        # rounding may fall elsewhere in a pack, but it is not more rounding
        most = 2 * found["bf16_nats"] + 1e-3
        notes.expect(found["packed_bf16_nats"] <= most, f"{family}: packing costs more in bfloat16 than bfloat16 itself")


# ---------------------------------------------------------------- sampler and trainer


@dataclass(frozen=True)
class Arithmetic:
    """How a model is held and computed with, and how far two log-probs of one token may then be apart: at most, on average."""

    weights: torch.dtype
    autocast: torch.dtype | None
    most: float
    mean: float


ARITHMETICS = {
    "float32": Arithmetic(torch.float32, None, 1e-3, 1e-4),
    "autocast": Arithmetic(torch.float32, torch.bfloat16, 0.25, 0.02),
    "bfloat16": Arithmetic(torch.bfloat16, None, 0.25, 0.02),
}


def sampler(settings: Settings, notes: Notes) -> None:
    """Log-probs of sampled tokens: the engine's, and those of the packed forward pass of an update (law 7)."""
    device = torch.device(settings.device)
    for family in RANDOM_FAMILIES:
        for name, how in ARITHMETICS.items():
            vlm = moved(tiny_random(family, hidden=64 if settings.quick else 256, initializer_range=0.05), device, how.weights)
            compare(notes, f"{family}/{name}", vlm, how, 2 if settings.quick else 3)
    sizes: Sequence[str] = ("float32", "autocast")
    big = random_model("qwen3_vl", device, settings.quick)
    for name in sizes:
        compare(notes, f"large/{name}", big, ARITHMETICS[name], 1)
    fresh(device)


def compare(notes: Notes, row: str, vlm: VLM, how: Arithmetic, num_prompts: int) -> None:
    with quiet(), torch.autocast(vlm.device.type, how.autocast, enabled=how.autocast is not None):
        engine = HFEngine(vlm, autocast=how.autocast)
        most, mean, tokens = logprob_difference(vlm, engine, num_prompts=num_prompts)
    notes.put(row, most_nats=most, mean_nats=mean, tokens=tokens)
    right = most <= how.most and mean <= how.mean
    notes.expect(right, f"{row}: the log-probs differ by {most:.1e} nats at most and {mean:.1e} on average")
