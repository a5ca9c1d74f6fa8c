"""What a training run holds: model, teacher, optimizer, prompts, signals, records. The loop moves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..datasets.spec import load_data
from ..vlm.generate import HFEngine
from ..vlm.images import Picture
from ..vlm.load import VLM, load
from ..vlm.records import Sample
from ..vlm.rollout import Toolbox
from . import checkpoint
from .collect import Task
from .config import Anchor, RunConfig
from .optim import GradGuard, build_optimizer
from .recipes import dump_recipe
from .recorder import Recorder
from .signals.anchor import AnchorSignal
from .signals.base import Context, SignalBuilder
from .signals.registry import builder
from .teacher import Teacher
from .update import checkpoint_layers, compute_dtype, streams_by_name

Evaluator = Callable[[VLM, int, bool], dict[str, Any]]
"""``(model, step, whole) -> result``: scores the held-out split; ``whole`` is False during training."""


class Run:
    """Built from a recipe; `restore` brings it to where it stopped.

    Raises `ValueError` (and its subclasses) for a model, data or settings that cannot be used, before anything is trained.
    """

    def __init__(
        self, config: RunConfig, folder: Path, evaluator: Evaluator | None = None, toolbox: Toolbox | None = None
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.folder, self.evaluator, self.toolbox = config, folder, evaluator, toolbox
        self.vlm = _load(config)
        self.teacher = Teacher(self.vlm, config.teacher) if config.needs_teacher else None
        self.engine = HFEngine(self.vlm, autocast=compute_dtype(self.vlm, config.model.compute))
        total_updates = config.steps * config.updates_per_step
        self.optimizer = build_optimizer(self.vlm.model.named_parameters(), config.optimizer, total_updates)
        self.guard = GradGuard(config.optimizer.spike_factor, config.optimizer.on_spike)
        samples = load_data(config.data)
        self.main = Task(
            "main", samples, config.student, config.prompts, config.rollouts, config.sampling, config.seed,
            self._tools(config.sampling.max_turns), config.leak_check,
        )  # fmt: skip
        self.builders: list[SignalBuilder] = [builder(one) for one in config.signals]
        self.anchors = [self._anchor(anchor, place, samples) for place, anchor in enumerate(config.anchors)]
        owners: list[SignalBuilder] = [*self.builders, *(made for _, made in self.anchors)]
        self.streams = streams_by_name([stream for one in owners for stream in one.streams()])
        self.progress = checkpoint.Progress()
        self.recorder = Recorder(folder, dump_recipe(config), config.loggers, self._token_text, self._seen_px)

    def _token_text(self, token: int) -> str:
        return str(self.vlm.tokenizer.decode([token]))

    def _seen_px(self, picture: Picture) -> tuple[int, int]:
        item = self.vlm.renderer.item(picture)
        return item.width_px, item.height_px

    def _anchor(self, anchor: Anchor, place: int, samples: Sequence[Sample]) -> tuple[Task, AnchorSignal]:
        limits = {"max_turns": anchor.max_turns, "max_new_tokens": anchor.max_new_tokens or self.config.sampling.max_new_tokens}
        sampling = self.config.sampling.model_copy(update=limits)
        data = samples if anchor.data is None else load_data(anchor.data)
        seed = self.config.seed + 7919 * (place + 1)  # no two tasks of a run draw the same prompts in step
        task = Task(f"anchor:{anchor.name}", data, anchor.view, anchor.prompts, 1, sampling, seed, self._tools(anchor.max_turns))
        if anchor.pool:
            task = task.pooled(anchor.pool, self.engine, self.vlm.renderer)
        return task, AnchorSignal(anchor)

    def _tools(self, max_turns: int) -> Toolbox | None:
        if max_turns > 1 and self.toolbox is None:
            raise ValueError("max_turns > 1 plays rollouts with tools, and no tools were given to this run")
        return self.toolbox if max_turns > 1 else None

    @property
    def context(self) -> Context:
        """What signals may ask for."""

        def score(pairs):  # type: ignore[no-untyped-def]
            assert self.teacher is not None
            dtype = compute_dtype(self.vlm, self.config.model.compute)
            with torch.autocast(self.vlm.device.type, dtype, enabled=dtype is not None):
                return self.teacher.score(pairs, self.config.micro_tokens, self.config.sampling.temperature)

        return Context(score)

    def restore(self) -> bool:
        """Go to the last checkpoint and drop what was logged after it; False when there is none."""
        found = checkpoint.restore(self.folder, self.vlm, self.optimizer, self.teacher, self.guard)
        self.progress = found or self.progress
        self.recorder.rewind(self.progress.step)
        return found is not None

    def evaluate(self, whole: bool) -> dict[str, Any]:
        """Score the held-out split now, record it, and remember the best step."""
        if self.evaluator is None:
            return {}
        result = self.evaluator(self.vlm, self.progress.step, whole)
        self.recorder.evaluation(self.progress.step, result)
        view = self.config.checkpoint.best_view
        if view is not None and self.config.eval is not None:
            right = result["views"][view]["right"][: self.config.eval.during]  # the same items every time
            value = sum(right) / max(1, len(right))
            if self.progress.best_value is None or value > self.progress.best_value:
                self.progress.best_value, self.progress.best_step = value, self.progress.step
        return result

    def save(self) -> None:
        """Write a checkpoint and remove those that are neither recent nor the best."""
        checkpoint.write(self.folder, self.vlm, self.optimizer, self.teacher, self.guard, self.progress)
        checkpoint.prune(self.folder, self.config.checkpoint.keep_last, self.progress.best_step)


def _load(config: RunConfig) -> VLM:
    part = config.model
    vlm = load(
        part.name,
        dtype=part.dtype,
        device=part.device,
        min_pixels=part.min_pixels,
        max_pixels=part.max_pixels,
        freeze=part.freeze,
    )
    if part.gradient_checkpointing:
        checkpoint_layers(vlm)
    return vlm
