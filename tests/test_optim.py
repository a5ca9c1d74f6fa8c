"""Optimizer, schedule and guard: numbers by hand, exact resume, fp32 copies, and messages that name the parameter."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from foveate.train.optim import (
    GradGuard,
    NotFiniteError,
    Optimizer,
    SpikeError,
    build_optimizer,
    clip_gradients,
    lr_scale,
)


@dataclass(frozen=True)
class Settings:
    name: str = "adamw"
    lr: float = 0.01
    muon_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    warmup_steps: int = 0
    schedule: str = "constant"
    final_frac: float = 0.1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 4)
        self.patch_embed = nn.Linear(4, 4)
        self.mlp = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(self.mlp(self.patch_embed(self.embed_tokens(ids)))))  # type: ignore[no-any-return]


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def learn(model: Net, optimizer: Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        ids = torch.randint(0, 7, (16,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(ids).float(), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_schedule_by_hand() -> None:
    def scales(total: int, **change: Any) -> list[float]:
        return [lr_scale(step, total, replace(Settings(), **change)) for step in range(total)]

    assert scales(4) == [1, 1, 1, 1]
    assert scales(4, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0]
    assert scales(7, warmup_steps=2, schedule="linear", final_frac=0.2) == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert scales(5, schedule="cosine", final_frac=0.0) == pytest.approx(
        [1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5), 0]
    )
    assert lr_scale(99, 7, replace(Settings(), schedule="linear")) == pytest.approx(0.1)
    assert lr_scale(0, 1, replace(Settings(), schedule="linear")) == 1
    with pytest.raises(ValueError, match="use constant, linear or cosine"):
        lr_scale(0, 1, replace(Settings(), schedule="step"))


def test_muon_has_the_hidden_matrices_and_nothing_else() -> None:
    model = net()
    optimizer = build_optimizer(model.named_parameters(), Settings(name="muon"), 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [({names[id(p)] for p in group["params"]}, group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [
        ({"mlp.weight"}, 0.02, 0.1),
        ({"embed_tokens.weight", "patch_embed.weight", "lm_head.weight"}, 0.01, 0.1),
        ({"patch_embed.bias", "mlp.bias", "norm.weight", "norm.bias"}, 0.01, 0.0),
    ]
    groups_adamw = build_optimizer(model.named_parameters(), Settings(), 10).param_groups
    assert [len(group["params"]) for group in groups_adamw] == [4, 4]


def test_first_adamw_step_by_hand() -> None:
    weight, bias = nn.Parameter(torch.tensor([[2.0]])), nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer([("weight", weight), ("bias", bias)], Settings(warmup_steps=2), 10)
    weight.grad, bias.grad = torch.tensor([[-3.0]]), torch.tensor([-3.0])
    assert optimizer.lr == pytest.approx(0.005)
    optimizer.step()  # lr .005; the first step of Adam has size lr; decay .005 x .1 x 2 on the matrix only
    assert weight.item() == pytest.approx(2 - 0.001 + 0.005)
    assert bias.item() == pytest.approx(2.005)
    optimizer.step()
    assert optimizer.lr == pytest.approx(0.01)


def test_frozen_and_shared_parameters() -> None:
    model = net()
    model.mlp.requires_grad_(False)
    named = list(model.named_parameters())
    shared = [*named, ("tied", named[0][1])]
    optimizer = build_optimizer(shared, Settings(), 10)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"model\.freeze"):
        build_optimizer(model.named_parameters(), Settings(), 10)
    with pytest.raises(ValueError, match="use adamw or muon"):
        build_optimizer(net().named_parameters(), Settings(name="sgd"), 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_resume_is_exact(name: str, dtype: torch.dtype) -> None:
    """Law 9 for the optimizer: saved to bytes and loaded elsewhere, the rest of the run is the same to the last bit."""
    settings = Settings(name=name, warmup_steps=2, schedule="cosine")
    model = net(0, dtype)
    optimizer = build_optimizer(model.named_parameters(), settings, 8)
    learn(model, optimizer, 0, 4)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    rate_when_saved = optimizer.lr
    want = learn(model, optimizer, 4, 8)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = net(1, dtype)
    other.load_state_dict(saved["model"])
    resumed = build_optimizer(other.named_parameters(), settings, 8)
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.lr == rate_when_saved, "a step that learns nothing logs the rate of the one before it"
    assert learn(other, resumed, 4, 8) == want
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    fresh = net(1, dtype)  # and the state matters: without it the run is another one
    fresh.load_state_dict(saved["model"])
    assert learn(fresh, build_optimizer(fresh.named_parameters(), settings, 8), 4, 8) != want


def test_a_resumed_run_has_the_rates_of_its_own_recipe() -> None:
    model = net()
    optimizer = build_optimizer(model.named_parameters(), Settings(), 8)
    learn(model, optimizer, 0, 1)
    changed = build_optimizer(model.named_parameters(), Settings(lr=0.5, weight_decay=0.0), 8)
    changed.load_state_dict(optimizer.state_dict())
    assert changed.lr == 0.5
    assert [group["weight_decay"] for group in changed.param_groups] == [0, 0]
    assert changed.steps_done == 1


def test_state_of_another_run_is_refused() -> None:
    model = net()
    state = build_optimizer(model.named_parameters(), Settings(), 8).state_dict()
    with pytest.raises(ValueError, match=r"use the same optimizer\.name"):
        build_optimizer(model.named_parameters(), Settings(name="muon"), 8).load_state_dict(state)
    model.lm_head.requires_grad_(False)
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        build_optimizer(model.named_parameters(), Settings(), 8).load_state_dict(state)


def test_small_steps_of_half_weights_are_not_lost() -> None:
    """256 steps of 1e-4 move a bf16 weight of 1 by .0256; without an fp32 copy each rounds to nothing (half a ulp is .0039)."""
    weight = nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    optimizer = build_optimizer([("weight", weight)], Settings(lr=1e-4, weight_decay=0.0), 256)
    for _ in range(256):
        weight.grad = torch.full_like(weight, -2.0)
        optimizer.step()
    assert weight.item() == pytest.approx(1.0256, abs=0.004)
    assert weight.dtype == torch.bfloat16


def test_clipping_by_hand() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients([a, b, nn.Parameter(torch.zeros(1))], 10.0) == pytest.approx(5.0)
    assert a.grad.tolist() == [3, 0]
    assert clip_gradients([a, b], 0.5) == pytest.approx(5.0)
    assert a.grad.tolist() == pytest.approx([0.3, 0], abs=1e-5)
    assert b.grad.tolist() == pytest.approx([0.4], abs=1e-5)


def one(gradient: float, name: str = "layer.weight") -> Iterator[tuple[str, nn.Parameter]]:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([gradient])
    fine = nn.Parameter(torch.zeros(1))
    fine.grad = torch.zeros(1)
    yield from [("fine", fine), ("unused", nn.Parameter(torch.zeros(1))), (name, parameter)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_guard_names_the_first_gradient_that_is_not_finite(bad: float) -> None:
    guard = GradGuard(patience=3)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"that of layer\.weight; this update is skipped"):
            norm, applied = guard.check(1.0, one(bad), 1.0)
        assert not applied
        assert not math.isfinite(norm)
    assert guard.check(1.0, one(1.0), 1.0) == (1.0, True)
    assert guard.message == ""
    with pytest.warns(UserWarning, match="loss nan, gradient norm 1: all gradients are finite"):
        assert guard.check(math.nan, one(1.0), 1.0) == (1.0, False)
    with pytest.warns(UserWarning, match="skipped"):
        guard.check(1.0, one(bad), 1.0)
    with pytest.raises(NotFiniteError, match=r"layer\.weight \(3 in a row\)"):
        guard.check(1.0, one(bad), 1.0)
    with pytest.raises(NotFiniteError, match="1 in a row"):
        GradGuard(on_spike="stop").check(1.0, one(bad), 1.0)


def test_guard_sees_spikes_against_the_running_median() -> None:
    def warm(on_spike: str) -> GradGuard:
        guard = GradGuard(10.0, on_spike, window=9, warm=4)
        assert all(guard.check(1.0, one(norm), 1.0)[1] for norm in (500.0, 1.0, 2.0, 3.0, 2.0))  # the start is never a spike
        return guard

    assert warm("clip").check(1.0, one(19.5), 1.0) == (19.5, True)
    clip, skip = warm("clip"), warm("skip")
    parameters = list(one(21.0))
    norm, applied = clip.check(1.0, parameters, 1.0)
    grad = parameters[2][1].grad
    assert applied
    assert norm == pytest.approx(21)
    assert grad is not None
    assert grad.item() == pytest.approx(1, abs=1e-5)
    assert clip.message == "gradient norm 21 is more than 10 times the running median 2"
    assert skip.check(1.0, one(21.0), 1.0) == (21.0, False)
    with pytest.raises(SpikeError, match="running median 2"):
        warm("stop").check(1.0, one(21.0), 1.0)
    for _ in range(4):
        skip.check(1.0, one(21.0), 1.0)
    assert skip.check(1.0, one(21.0), 1.0)[1]  # a new level is not a spike for ever
    assert len(skip.norms) == 9
    with pytest.raises(ValueError, match="use clip, skip or stop"):
        GradGuard(on_spike="ignore")


def test_guard_resumes() -> None:
    guard = GradGuard(10.0, "skip", warm=3)
    for norm in (1.0, 2.0, 3.0):
        guard.check(1.0, one(norm), 1.0)
    other = GradGuard(10.0, "skip", warm=3)
    other.load_state_dict(guard.state_dict())
    assert other.check(1.0, one(21.0), 1.0) == guard.check(1.0, one(21.0), 1.0) == (21.0, False)
