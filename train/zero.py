"""DeepSpeed's ZeRO, where the state of an update is too much for each rank: shards of moments, gradients, weights.

DeepSpeed is called directly: Accelerate would step in the same call as it goes backward, where `optim.GradGuard` looks at the
norm in between, and it sets up no process group for DeepSpeed on a CPU.

Parts of a model are called one by one (see `vlm.backbone`), so each micro-batch's forward pass, head and loss included, runs as
the forward of one module: that is where ZeRO-3 starts to gather, and whose own weight the head is.

Of a model with adapters ZeRO-3 cuts up the frozen base; the adapters stay whole on every rank, and only their gradients and
moments are cut up. They are small, and a teacher that shares the base puts others in their place in the midst of an update
(`vlm.lora.Beside`), which needs them to lie still.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..vlm.load import VLM
from .config import RunConfig
from .distributed import Spread
from .optim import Optimizer
from .ranks import Ranks

_MOMENTS = ("exp_avg", "exp_avg_sq")
_HOLDER = "held"


class _Whole(nn.Module):
    """A model whose forward is whatever it is given to run. The head's weight counts as its own: it is used outside the head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        return work()


class Zero(Spread):
    """The ranks of a DeepSpeed engine. It starts at the first update: until then every rank holds the model as it was loaded."""

    optimizer: ZeroOptimizer

    @property
    def in_step(self) -> bool:
        return True

    def through(self, forward: Callable[[], Tensor], last: bool) -> Tensor:
        engine = self.optimizer.started()
        engine.set_gradient_accumulation_boundary(last)
        loss: Tensor = engine(forward)
        engine.backward(loss * self.ranks.size, scale_wrt_gas=False)  # DeepSpeed takes the mean over ranks
        return loss.detach()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        sharded = self.optimizer.shards
        if sharded is None or self.optimizer.gathered:
            yield
            return
        import deepspeed

        offload = sharded.parameter_offload
        # With its hooks ZeRO-3 would give up each layer's weights behind its forward pass.
        offload._remove_module_hooks()
        offload.forward_hooks, offload.backward_hooks = [], []
        parameters: list[Any] = list(self.vlm.model.parameters())
        for parameter in parameters:
            parameter.ds_active_sub_modules.clear()
        self.optimizer.gathered = True
        try:
            with deepspeed.zero.GatheredParameters(parameters):
                yield
        finally:
            self.optimizer.gathered = False
            offload.setup_zero_stage3_hooks()
            self.optimizer.hold_adapters()

    def norm(self) -> float:
        return self.optimizer.norm()


class ZeroOptimizer(Optimizer):
    """AdamW whose state, gradients or weights DeepSpeed keeps in shards. ``gathered``: all weights are whole right now."""

    gathered = False

    def __init__(self, config: RunConfig, vlm: VLM, plain: Optimizer, ranks: Ranks) -> None:
        super().__init__(plain._parts, plain._named, plain._masters, config.optimizer, plain._total_steps)
        self._config, self._vlm, self._ranks = config, vlm, ranks
        self._engine: Any = None
        self._fresh = super().state_dict()
        self._kept: dict[str, Any] | None = None
        name_of = {id(self._masters.get(name, one)): name for name, one in self._named}
        self._groups = [[name_of[id(one)] for one in group["params"]] for group in self.param_groups]
        self._parameter = dict(self._named)

    @property
    def shards(self) -> Any:
        """DeepSpeed's optimizer where weights lie in shards (ZeRO-3, started), else None."""
        return self._engine.optimizer if self._engine is not None and self._config.distributed.zero == 3 else None

    def started(self) -> Any:
        """DeepSpeed's engine, made when it is first asked for."""
        if self._engine is None:
            self._start()
        return self._engine

    def _start(self) -> None:
        deepspeed = _deepspeed(self._vlm.device)
        groups: list[dict[str, Any]] = [
            {**group, "params": [self._parameter[name] for name in names]}
            for group, names in zip(self.param_groups, self._groups, strict=True)
        ]
        settings = self._config.optimizer
        adamw = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
        whole = _Whole(self._vlm.model)
        if self._config.distributed.zero == 3:
            deepspeed.zero.register_external_parameter(whole, self._vlm.head_weight)
        self._engine = deepspeed.initialize(model=whole, optimizer=adamw, config=self._engine_config())[0]
        self._parts, self._masters = [adamw], {}
        self._scatter(self._kept or self._fresh)
        self._kept = None
        self.hold_adapters()

    def hold_adapters(self) -> None:
        """Gather the adapters under ZeRO-3 and keep them: no module that has run gives up what another is said to use."""
        if self.shards is None or not self._vlm.adapter:
            return
        adapters: list[Any] = list(self._parameter.values())
        adapters[0].all_gather(adapters)
        for one in adapters:
            one.ds_active_sub_modules.add(_HOLDER)

    def _engine_config(self) -> dict[str, Any]:
        part = self._config.distributed
        zero: dict[str, Any] = {"stage": part.zero, "contiguous_gradients": True, **part.settings}
        for name in ("optimizer", "param"):
            if part.offload == "all" or (part.offload == "optimizer" and name == "optimizer"):
                zero.setdefault(f"offload_{name}", {"device": "cpu", "pin_memory": self._vlm.device.type == "cuda"})
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": self._config.optimizer.clip_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": all(one.dtype == torch.bfloat16 for _, one in self._named)},  # adapters are fp32 on any base
            "zero_optimization": zero,
        }

    @property
    def _flats(self) -> Sequence[Tensor]:
        inner = self._engine.optimizer
        flats: Sequence[Tensor] = (
            inner.fp32_partitioned_groups_flat if self.shards is not None else inner.single_partition_of_fp32_groups
        )
        return flats

    def norm(self) -> float:
        """The norm of the step's gradient, of which every rank has a share; NaN when it is not finite."""
        inner = self._engine.optimizer
        norms = [inner.scaled_global_norm()] if self.shards is None else inner._get_norm_groups()
        found = [float(one) for one in norms]
        return math.hypot(*found) if min(found) >= 0 else math.nan  # DeepSpeed's -1: not finite

    def step(self) -> None:
        """See `Optimizer.step`; DeepSpeed clips."""
        self._set_lr(self.steps_done)
        self._engine.step()
        self.hold_adapters()
        self.steps_done += 1

    def close(self) -> None:
        """See `Optimizer.close`: DeepSpeed's hooks, and a list of its module's, hold the model."""
        if self._engine is not None:
            self._engine.destroy()
            sys.modules["deepspeed.runtime.zero.parameter_offload"].__dict__["FWD_MODULE_STACK"].clear()

    def zero_grad(self) -> None:
        """Forget gradients, those of an update that was not applied too.

        DeepSpeed writes new ones over them, and so would apply the last one of a weight that has none this time, such as the
        vision tower's in a step without pictures.
        """
        if self._engine is None:
            return
        inner = self._engine.optimizer
        inner.zero_grad(set_to_none=True)
        for flat in self._flats:
            if flat.grad is not None:
                flat.grad.zero_()
        if self.shards is not None:
            inner._pre_step()
            inner._overflow_clean_up(1.0)
            inner.grad_partitions_flat_buffer.zero_()
            return
        inner.micro_step_id = -1
        if inner.cpu_offload:
            inner.reset_cpu_buffers()
        for place in inner.averaged_gradients:
            inner.averaged_gradients[place] = inner.all_grad_tensors[place] = None

    def state_dict(self) -> dict[str, Any]:
        """That of `Optimizer`, with whole tensors on the CPU of rank 0; the others take part and get numbers only."""
        if self._engine is None:
            return self._kept or self._fresh
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        step = next(iter(self._parts[0].state.values()))["step"]
        names = [name for group in self._groups for name in group]
        state: dict[int, dict[str, Tensor]] = {}
        for place, name in enumerate(names):
            moments = {key: safe_get_full_optimizer_state(self._parameter[name], key) for key in _MOMENTS}
            if self._ranks.is_first:
                state[place] = {"step": step.cpu().clone(), **{key: one.cpu().clone() for key, one in moments.items()}}
        masters = {}
        for name in self._fresh["masters"]:
            master = safe_get_full_fp32_param(self._parameter[name])
            if self._ranks.is_first:
                masters[name] = master.cpu().clone()
        part = {**self._fresh["parts"][0], "state": state}
        return {**self._fresh, "steps_done": self.steps_done, "parts": [part], "masters": masters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Optimizer.load_state_dict`. It waits on the CPU until the engine starts."""
        if self._engine is not None:
            raise RuntimeError("optimizer state: ZeRO takes it over before the first update only")
        self._check(state)
        self._kept, self.steps_done = state, int(state["steps_done"])
        self._set_lr(max(0, self.steps_done - 1))

    @torch.no_grad()
    def _scatter(self, state: dict[str, Any]) -> None:
        """Each rank takes its share of a whole state; its flat row has one step count, the largest.

        A fresh state is laid out too: DeepSpeed learns where all moments are when the first of several parameter groups has been
        updated, and those of the others would not be there yet.
        """
        saved = state["parts"][0]["state"]
        step = max((float(one["step"]) for one in saved.values()), default=0.0)
        inner, adamw = self._engine.optimizer, self._parts[0]
        for flat in self._flats:
            moments = {key: torch.zeros_like(flat) for key in _MOMENTS}
            adamw.state[flat] = {"step": torch.tensor(step, dtype=torch.float32, device=flat.device), **moments}
        if self.shards is None:
            inner._lazy_init_hp_params_optimizer_state()
        names = [name for group in self._groups for name in group]
        for place, name in enumerate(names):
            for key in _MOMENTS if place in saved else ():
                self._set(name, saved[place][key], key)
        for name, master in state["masters"].items():
            self._set(name, master, None)

    def _set(self, name: str, value: Tensor, key: str | None) -> None:
        from deepspeed import utils

        parameter: Any = self._parameter[name]
        value = value.to(self._vlm.device, torch.float32)
        if self.shards is None:
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        share = parameter.ds_tensor.numel()  # the last one is padded
        padded = value.new_zeros(share * self._ranks.size)
        padded[: value.numel()] = value.flatten()
        mine = padded[self._ranks.rank * share : (self._ranks.rank + 1) * share]
        if key is None:
            utils.safe_set_local_fp32_param(parameter, mine)
        else:
            utils.safe_set_local_optimizer_state(parameter, mine, key)


def _deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet. Raises `ValueError` where it is not installed."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError(f"distributed.zero: DeepSpeed is needed ({error}); install foveate[train], or use zero: 0") from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # Gloo will do: the kernels for shared memory would be compiled for most of a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
