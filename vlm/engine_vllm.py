"""vLLM in this process (colocated): the trainer's patches go in as they are, token ids and log-probs come out.

Nothing of vLLM's own preprocessing is used: no chat template, no image processor, no second widening of image tokens. One engine
on one device; several ranks have one each. A model that needs several devices is served by servers (`engine_server`).
"""

from __future__ import annotations

import contextlib
import os
import random
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .engine_worker import NAME
from .engines import CopyEngine, EngineError
from .generate import Completion, Sampling
from .segments import Segment, VisualItem

if TYPE_CHECKING:
    from .load import VLM

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over as tensors
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one that engine_worker is written for
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are not to be bound to vLLM's cores
}


class VLLMEngine(CopyEngine):
    """vLLM beside the trainer, on the trainer's device.

    ``folder`` holds config, processor files and weights to start from; they are not used before a `sync`. ``seconds`` bounds one
    call of `generate`. ``memory_frac`` is vLLM's share of the GPU; ``kv_cache_gib`` fixes the cache in place of it (1 on a CPU).
    ``max_pictures`` bounds a context's pictures, ``max_tokens`` its tokens with the new ones; ``settings`` go to vLLM as they
    are.
    """

    def __init__(
        self,
        vlm: VLM,
        folder: Path,
        *,
        dtype: str = "auto",
        max_tokens: int = 16384,
        max_pictures: int = 8,
        memory_frac: float = 0.4,
        kv_cache_gib: float | None = None,
        seconds: float = 1800.0,
        eager: bool = False,
        sleeps: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(vlm.renderer, int(vlm.model.config.image_token_id))
        self.max_tokens, self.max_pictures, self.seconds = max_tokens, max_pictures, seconds
        on_cpu = vlm.device.type == "cpu"
        self._sleeps = sleeps and not on_cpu
        if sleeps and on_cpu:
            warnings.warn("vLLM cannot sleep on a CPU: the engine keeps its memory while the trainer updates", stacklevel=2)
        if on_cpu and kv_cache_gib is None:
            kv_cache_gib = 1.0
        os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
        try:
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise EngineError(
                f"vLLM cannot be imported ({error}); install foveate[vllm] with CUDA, or see docs/vllm.md for a CPU"
            ) from error
        self._is_guest = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        with _process_as_it_was():
            self._engine = LLMEngine.from_engine_args(
                EngineArgs(
                    model=str(folder),
                    dtype=dtype,
                    max_model_len=max_tokens,
                    limit_mm_per_prompt={"image": max_pictures, "video": 0},
                    gpu_memory_utilization=memory_frac,
                    kv_cache_memory_bytes=None if kv_cache_gib is None else int(kv_cache_gib * 2**30),
                    enforce_eager=eager or on_cpu,
                    enable_sleep_mode=self._sleeps,
                    enable_prefix_caching=True,
                    mm_device_do_normalize=False,  # our patches are normalised
                    logprobs_mode="processed_logprobs",
                    worker_extension_cls=NAME,
                    distributed_executor_backend="external_launcher" if self._is_guest else None,
                    disable_log_stats=True,
                    **settings,
                )
            )
        self._engine.collective_rpc("report_logprobs_before_cut")
        self._dtype: torch.dtype = self._engine.model_config.dtype
        self._calls = 0

    def __str__(self) -> str:
        return "vLLM (colocated)"

    def generate(
        self,
        contexts: Sequence[Segment],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keep: bool = False,
        after: Sequence[Completion | None] | None = None,
    ) -> list[list[Completion]]:
        """See `CopyEngine.generate`. What was read in earlier turns is found in vLLM's prefix cache."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._check(contexts, seeds)
        self._calls += 1
        asked: list[list[str]] = []
        with _process_as_it_was(), self._aborting(asked):
            for place, (context, own) in enumerate(zip(contexts, seeds, strict=True)):
                self._fits(context, sampling, place)
                prompt = self._prompt(context) if own else {}
                asked.append([])
                for i, seed in enumerate(own):
                    asked[-1].append(f"{self._calls}/{place}/{i}")
                    fields = self._fields(sampling, seed) | {"output_kind": RequestOutputKind.FINAL_ONLY}
                    self._engine.add_request(asked[-1][-1], prompt, SamplingParams(**fields))
            done = self._run(sum(map(len, asked)))
        return [[self._read(done[name]) for name in names] for names in asked]

    def _fits(self, context: Segment, sampling: Sampling, place: int) -> None:
        if len(context) + sampling.max_new_tokens > self.max_tokens:
            raise EngineError(
                f"{self}: context {place} has {len(context)} tokens and may get {sampling.max_new_tokens} more, but the engine "
                f"was started for {self.max_tokens}; raise engine.max_tokens, or lower model.max_pixels or "
                "sampling.max_new_tokens"
            )
        if len(context.visuals) > self.max_pictures:
            raise EngineError(
                f"{self}: context {place} has {len(context.visuals)} pictures, but the engine was started for "
                f"{self.max_pictures}; raise engine.max_pictures or set limits.pictures"
            )

    def _prompt(self, context: Segment) -> Any:
        from vllm.inputs import mm_input, tokens_input
        from vllm.multimodal.inputs import PlaceholderRange

        ids = context.ids_T.tolist()
        if not context.visuals:
            return tokens_input(ids)
        return mm_input(
            ids,
            self._pictures([span.item for span in context.visuals]),
            {"image": [span.item.key for span in context.visuals]},
            {"image": [PlaceholderRange(span.start, span.length) for span in context.visuals]},
        )

    def _pictures(self, items: Sequence[VisualItem]) -> Any:
        from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

        patches_PD = torch.cat([self.renderer.patches(item).to(self._dtype) for item in items])
        grids = torch.tensor([item.grid_thw for item in items])
        return MultiModalKwargsItems.from_hf_inputs(
            {"pixel_values": patches_PD, "image_grid_thw": grids},
            {
                "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", grids.prod(-1)),
                "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            },
        )

    def _run(self, num: int) -> dict[str, Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        done: dict[str, Any] = {}
        start = time.monotonic()
        while len(done) < num:
            if time.monotonic() - start > self.seconds:
                raise EngineError(
                    f"{self}: {num - len(done)} of {num} completions were not done after {self.seconds:g} s; raise "
                    "engine.seconds, or lower prompts, rollouts or sampling.max_new_tokens"
                )
            try:
                outputs = self._engine.step()
            except (EngineDeadError, RuntimeError, AssertionError) as error:
                self._unusable = f"it died while sampling ({type(error).__name__}: {error})"
                raise EngineError(f"{self}: died while sampling: {type(error).__name__}: {error}; start the run again") from error
            done.update((one.request_id, one) for one in outputs if one.finished)
        return done

    @contextlib.contextmanager
    def _aborting(self, asked: list[list[str]]) -> Iterator[None]:
        """A call that fails leaves no request behind."""
        whole = False
        try:
            yield
            whole = True
        finally:
            if not whole and not self._unusable:
                self._engine.abort_request([name for names in asked for name in names])

    def _read(self, output: Any) -> Completion:
        (one,) = output.outputs
        ids = list(one.token_ids)
        return self._completion(
            ids, [step[token].logprob for token, step in zip(ids, one.logprobs, strict=True)], one.finish_reason
        )

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `CopyEngine.sync`. The tensors are copied on the device, one by one."""
        self._unusable = f"the sync to version {version} failed half-way"
        try:
            if self._sleeps and self._engine.is_sleeping():
                self._engine.wake_up(["weights"])
            missing = self._engine.collective_rpc("take_weights", kwargs={"weights_iterator": iter(weights)})
            self._all_came(missing, str(self))
            if self._sleeps and self._engine.is_sleeping():
                self._engine.wake_up(["kv_cache"])
            self._forget()
        except EngineError:
            raise
        except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
            raise EngineError(
                f"{self}: the sync to version {version} failed half-way ({type(error).__name__}: {error}); the engine holds a "
                "mixture of weights and refuses to generate until a sync goes through"
            ) from error
        self._unusable = ""

    def _forget(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset: requests are still running")
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()

    def sleep(self) -> None:
        """Give the GPU's memory to the trainer: keys and values and the weights, which the next `sync` brings anew."""
        if self._sleeps and not self._engine.is_sleeping():
            self._engine.sleep(level=2)
            self._unusable = "it sleeps, and its weights were given up"

    def close(self) -> None:
        """Shut vLLM down. The process group of several ranks stays."""
        self._unusable = "it was closed"
        with _group_spared() if self._is_guest else contextlib.nullcontext():
            self._engine.engine_core.shutdown()


@contextlib.contextmanager
def _group_spared() -> Iterator[None]:
    """vLLM ends the process's own group together with its engine; ranks go on with theirs, as in a next stage."""
    end = torch.distributed.destroy_process_group

    def end_others(group: Any = None) -> None:
        if group is not None:
            end(group)

    vars(torch.distributed)["destroy_process_group"] = end_others
    try:
        yield
    finally:
        vars(torch.distributed)["destroy_process_group"] = end


@contextlib.contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Undoes what vLLM does to the trainer: it seeds and draws from its generators, and on a CPU stops ``set_num_threads``."""
    python, numpy_state, set_threads = random.getstate(), np.random.get_state(), torch.set_num_threads
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
            vars(torch)["set_num_threads"] = set_threads
