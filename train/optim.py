"""Optimizer, schedule, clipping, and a guard that says what went wrong with a gradient.

`build_optimizer` makes AdamW for everything, or Muon (Jordan et al. 2024, torch.optim.Muon) for the hidden matrices and AdamW for
embeddings, heads, patch embeddings, norms and biases. Weights in half precision get an fp32 copy that is what is really updated:
with a step of 1e-6 most updates of a bf16 weight would round to nothing. All state is saved, so a resumed run is the same run.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class OptimizerSettings(Protocol):
    """What is read from a recipe's ``optimizer`` part."""

    @property
    def name(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def muon_lr(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def schedule(self) -> str: ...
    @property
    def final_frac(self) -> float: ...


class NotFiniteError(ValueError):
    """The loss or a gradient is NaN or infinite, and the run must not go on."""


class SpikeError(ValueError):
    """The gradient norm jumped, and the recipe says to stop then."""


def lr_scale(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Share of the full learning rate at ``step`` (0-based): linear warm-up, then constant, linear or cosine.

    The last step of a decaying schedule has ``final_frac``; steps beyond it keep that.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    done = min(1.0, (step - settings.warmup_steps) / max(1, total_steps - 1 - settings.warmup_steps))
    if settings.schedule == "linear":
        return 1.0 - (1.0 - settings.final_frac) * done
    if settings.schedule == "cosine":
        return settings.final_frac + (1.0 - settings.final_frac) * 0.5 * (1.0 + math.cos(math.pi * done))
    raise ValueError(f"schedule {settings.schedule!r} is unknown; use constant, linear or cosine")


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon is meant for it: a 2-D weight between hidden states, no embedding (patch, position, token) and no head."""
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


class Optimizer:
    """One or two torch optimizers as one, with the schedule inside: each ``step`` sets the learning rate of its own number."""

    def __init__(
        self,
        parts: Sequence[torch.optim.Optimizer],
        named: Sequence[tuple[str, nn.Parameter]],
        masters: dict[str, Tensor],
        settings: OptimizerSettings,
        total_steps: int,
    ) -> None:
        self._parts, self._named, self._masters = list(parts), list(named), masters
        self._settings, self._total_steps = settings, total_steps
        self._full_lrs = [group["lr"] for group in self.param_groups]
        self.steps_done = 0
        self._set_lr(0)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    @property
    def lr(self) -> float:
        """AdamW's learning rate in the last step (before the first: of the first)."""
        return self._settings.lr * self._scale

    def _set_lr(self, step: int) -> None:
        self._scale = lr_scale(step, self._total_steps, self._settings)
        for group, full in zip(self.param_groups, self._full_lrs, strict=True):
            group["lr"] = full * self._scale

    def step(self) -> None:
        """Update the weights from their gradients; parameters without one stay as they are."""
        self._set_lr(self.steps_done)
        for name, parameter in self._named:
            if name in self._masters:
                self._masters[name].grad = None if parameter.grad is None else parameter.grad.float()
        for part in self._parts:
            part.step()
        with torch.no_grad():
            for name, parameter in self._named:
                if name in self._masters:
                    parameter.copy_(self._masters[name])
                    self._masters[name].grad = None
        self.steps_done += 1

    def zero_grad(self) -> None:
        for _, parameter in self._named:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only (``torch.load(weights_only=True)`` reads it)."""
        return {
            "steps_done": self.steps_done,
            "names": [name for name, _ in self._named],
            "parts": [part.state_dict() for part in self._parts],
            "masters": {name: master.detach() for name, master in self._masters.items()},
        }

    def close(self) -> None:
        """Let go of what keeps the weights alive besides the model; it steps no more."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over momenta, fp32 weights and the step count; rates and decays stay those of this run's recipe.

        Raises ValueError when the state was saved for other parameters or another kind of optimizer.
        """
        self._check(state)
        own = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        for group, settings in zip(self.param_groups, own, strict=True):
            group.update(settings)
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(state["masters"][name])
        self.steps_done = int(state["steps_done"])
        self._set_lr(max(0, self.steps_done - 1))  # as `lr` was when the state was saved

    def _check(self, state: dict[str, Any]) -> None:
        names = [name for name, _ in self._named]
        if state["names"] != names:
            odd = sorted(set(names) ^ set(state["names"]))[:3] or "in another order"
            raise ValueError(f"optimizer state: saved for other parameters ({odd}); resume with the same model and freeze")
        if len(state["parts"]) != len(self._parts) or set(state["masters"]) != set(self._masters):
            raise ValueError(
                "optimizer state: saved by another optimizer or for another dtype; use the same optimizer.name and model.dtype"
            )


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings, total_steps: int
) -> Optimizer:
    """An `Optimizer` for the parameters that require a gradient; shared ones count once. Weights of less than two dimensions
    (norms, biases) are not decayed.

    Raises ValueError for an unknown name and when everything is frozen.
    """
    if settings.name not in ("adamw", "muon"):
        raise ValueError(f"optimizer {settings.name!r} is unknown; use adamw or muon")
    lr_scale(0, total_steps, settings)
    named = list(
        {
            id(parameter): (name, parameter) for name, parameter in reversed(list(named_parameters)) if parameter.requires_grad
        }.values()
    )[::-1]
    if not named:
        raise ValueError("optimizer: no parameter requires a gradient; take something out of model.freeze")
    masters = {name: p.detach().float().requires_grad_() for name, p in named if p.dtype in (torch.float16, torch.bfloat16)}
    hidden: list[Tensor] = []
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in named:
        target = masters.get(name, parameter)
        if settings.name == "muon" and is_hidden_matrix(name, parameter):
            hidden.append(target)
        else:
            (decayed if parameter.ndim >= 2 else plain).append(target)
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        parts.append(torch.optim.Muon(hidden, lr=settings.muon_lr, weight_decay=settings.weight_decay))
    groups = [
        {"params": found, "weight_decay": decay} for found, decay in ((decayed, settings.weight_decay), (plain, 0.0)) if found
    ]
    if groups:
        fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in named)  # 3 to 5 times faster on a CPU too
        parts.append(torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused))
    return Optimizer(parts, named, masters, settings, total_steps)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients so that their common 2-norm is at most ``max_norm``; the norm before is returned.

    A norm that is not finite leaves the gradients as they are, so that one can still see whose it is.
    """
    having = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in having if parameter.grad is not None])
    if torch.isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_(having, max_norm, norm)
    return float(norm)


class GradGuard:
    """Looks at every gradient before it is applied, and says what is wrong with it.

    NaN or inf in the loss or a gradient: the update is skipped (``on_spike="stop"``: `NotFiniteError`), and after ``patience`` of
    them in a row `NotFiniteError` is raised, because weights do not heal. A spike is a norm above ``spike_factor`` running
    medians of the last ``window`` norms, after ``warm`` of them: it is clipped like every gradient, skipped, or stops the run
    (`SpikeError`). ``message`` is what the last check had to say, "" when nothing.
    """

    def __init__(
        self, spike_factor: float = 20.0, on_spike: str = "clip", *, window: int = 64, warm: int = 8, patience: int = 5
    ) -> None:
        if on_spike not in ("clip", "skip", "stop"):
            raise ValueError(f"on_spike {on_spike!r} is unknown; use clip, skip or stop")
        self.spike_factor, self.on_spike, self.window, self.warm, self.patience = spike_factor, on_spike, window, warm, patience
        self.norms: list[float] = []
        self.broken_in_a_row = 0
        self.message = ""

    def check(
        self,
        loss: float,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        clip_norm: float,
        norm: float | None = None,
    ) -> tuple[float, bool]:
        """Clip; return (norm before clipping, whether the update may be applied). Raises `NotFiniteError`, `SpikeError`.

        ``norm``: that of gradients which do not lie in ``.grad`` (ZeRO), and which their optimizer clips.
        """
        named = [(name, parameter) for name, parameter in named_parameters if parameter.grad is not None]
        if norm is None:
            norm = clip_gradients((parameter for _, parameter in named), clip_norm)
        self.message = ""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return norm, self._not_finite(loss, norm, named)
        self.broken_in_a_row = 0
        median = statistics.median(self.norms) if len(self.norms) >= self.warm else math.inf
        self.norms = [*self.norms, norm][-self.window :]  # spikes too: a new level of norms is soon the usual one
        if norm <= self.spike_factor * median:
            return norm, True
        self.message = f"gradient norm {norm:.3g} is more than {self.spike_factor:g} times the running median {median:.3g}"
        if self.on_spike == "stop":
            raise SpikeError(f"{self.message}; optimizer.on_spike: clip or skip would have gone on")
        return norm, self.on_spike == "clip"

    def _not_finite(self, loss: float, norm: float, named: Sequence[tuple[str, nn.Parameter]]) -> bool:
        first = next((name for name, p in named if p.grad is not None and not torch.isfinite(p.grad).all()), None)
        where = "all gradients are finite" if first is None else f"the first gradient that is not finite is that of {first}"
        self.message = f"loss {loss:.6g}, gradient norm {norm:.6g}: {where}"
        self.broken_in_a_row += 1
        if self.on_spike == "stop" or self.broken_in_a_row >= self.patience:
            raise NotFiniteError(
                f"{self.message} ({self.broken_in_a_row} in a row); lower optimizer.lr, or start from an earlier checkpoint"
            )
        warnings.warn(f"{self.message}; this update is skipped", stacklevel=3)
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self.norms), "broken_in_a_row": self.broken_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms, self.broken_in_a_row = list(state["norms"]), int(state["broken_in_a_row"])
