"""What a recipe's ``model.lora`` may say: small matrices beside frozen weights, and on which parts of the model.

Sources: LoRA (2106.09685), DoRA (2402.09353), rsLoRA (2312.03732), QLoRA (2305.14314).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pydantic

from ..datasets.crops import Part

if TYPE_CHECKING:
    from .config import RunConfig

PARTS = ("language", "vision", "projector")


class LoraPart(Part):
    """Adapters on the linear layers of the chosen parts; everything else of the model stays as it is."""

    rank: int = pydantic.Field(16, ge=1)
    """Width of the two small matrices."""
    alpha: float = pydantic.Field(32.0, gt=0)
    """The adapter's output is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank))."""
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """On the adapter's input, in passes that make gradients only: sampling and scoring see none."""
    targets: tuple[Literal["language", "vision", "projector"], ...] | None = pydantic.Field(None, min_length=1)
    """Parts whose linear layers get adapters; None: all that `model.freeze` does not name."""
    dora: bool = False
    """A trained length for each row of the adapted weight besides its direction."""
    rslora: bool = False
    modules_to_save: tuple[str, ...] = ()
    """Modules trained as a whole beside the adapters, by the last part of their name, such as ``merger``."""
    quantize: Literal["none", "4bit", "8bit"] = "none"
    """The frozen linear layers in 4 bits (NF4, doubly quantised) or 8, by bitsandbytes; all but the head and modules_to_save."""


def lora_targets(run: RunConfig) -> tuple[str, ...]:
    """The parts of the model that get adapters."""
    lora, freeze = run.model.lora, run.model.freeze
    assert lora is not None
    return lora.targets or tuple(part for part in PARTS if part not in freeze)


def check_lora(run: RunConfig) -> None:
    """Raise `ValueError` for a recipe whose adapters contradict something else in it."""
    lora = run.model.lora
    if lora is None:
        return
    twice = [part for part in lora.targets or () if part in run.model.freeze]
    if twice:
        raise ValueError(
            f"model.freeze and model.lora.targets both name {', '.join(twice)}: adapters would train what is to stay as it is; "
            "remove it from one of the two (without targets, adapters go on all that freeze does not name)"
        )
    if not lora_targets(run):
        raise ValueError("model.lora: model.freeze names every part, so no adapter is left; take a part out of model.freeze")
    if run.optimizer.name == "muon":
        raise ValueError(
            "optimizer.name: muon evens out the update of a whole hidden matrix; with model.lora there are only its two factors, "
            "whose evened-out updates do not make an even update of the product: use adamw"
        )
    if lora.quantize != "none" and run.engine.kind != "hf":
        raise ValueError(
            f"model.lora.quantize: {lora.quantize} has no merged weights that engine.kind: {run.engine.kind} could copy; use "
            "quantize: none, or engine.kind: hf"
        )
    if lora.dropout and run.grpo is not None:
        raise ValueError(
            "model.lora.dropout: grpo compares log-probs of training with those of sampling, which sees no dropout; the ratios "
            "would be noise: use dropout: 0"
        )
