"""The loop: views -> rollouts -> rewards -> signals -> batches -> update. Nothing here knows a method."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ..datasets.spec import load_data
from ..rewards.combine import score_group
from ..vlm.generate import HFEngine
from ..vlm.load import VLM, load
from ..vlm.records import Group, Signal
from ..vlm.rollout import Toolbox
from . import checkpoint, metrics
from .batch import make_batches
from .collect import Task
from .config import RunConfig, SftSignal, dump_recipe
from .optim import GradGuard, build_optimizer
from .progress import ProgressBar
from .recorder import Recorder
from .signals.anchor import AnchorSignal
from .signals.base import Context, SignalBuilder
from .signals.registry import builder
from .teacher import Teacher
from .update import Gradients, accumulate, checkpoint_layers, compute_dtype, streams_by_name

Evaluator = Callable[[VLM, int, bool], dict[str, Any]]
"""``(model, step, whole) -> result``: scores the held-out split; ``whole`` is False during training."""


class Interrupted(RuntimeError):
    """The run was asked to stop (SIGTERM or Ctrl-C), has saved a checkpoint and can be resumed."""


class Run:
    """Everything a training run holds, built from its recipe."""

    def __init__(
        self, config: RunConfig, folder: Path, evaluator: Evaluator | None = None, toolbox: Toolbox | None = None
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.folder, self.evaluator = config, folder, evaluator
        part = config.model
        self.vlm = load(
            part.name,
            dtype=part.dtype,
            device=part.device,
            min_pixels=part.min_pixels,
            max_pixels=part.max_pixels,
            freeze=part.freeze,
        )
        if part.gradient_checkpointing:
            checkpoint_layers(self.vlm)
        self.teacher = Teacher(self.vlm, config.teacher) if config.needs_teacher else None
        self.engine = HFEngine(self.vlm, autocast=compute_dtype(self.vlm, part.compute))
        self.optimizer = build_optimizer(
            self.vlm.model.named_parameters(), config.optimizer, config.steps * config.updates_per_step
        )
        self.guard = GradGuard(config.optimizer.spike_factor, config.optimizer.on_spike)
        samples = load_data(config.data)
        self.main = Task(
            "main",
            samples,
            config.student,
            config.prompts,
            config.rollouts,
            config.sampling,
            config.seed,
            _tools(config.sampling.max_turns, toolbox),
            config.leak_check,
        )
        self.builders: list[SignalBuilder] = [builder(one) for one in config.signals]
        self.anchors: list[tuple[Task, AnchorSignal]] = []
        for place, anchor in enumerate(config.anchors):
            sampling = config.sampling.model_copy(
                update={"max_turns": anchor.max_turns, "max_new_tokens": anchor.max_new_tokens or config.sampling.max_new_tokens}
            )
            data = samples if anchor.data is None else load_data(anchor.data)
            task = Task(
                f"anchor:{anchor.name}",
                data,
                anchor.view,
                anchor.prompts,
                1,
                sampling,
                config.seed + 7919 * (place + 1),
                _tools(anchor.max_turns, toolbox),
            )
            if anchor.pool:
                task = task.pooled(anchor.pool, self.engine, self.vlm.renderer)
            self.anchors.append((task, AnchorSignal(anchor)))
        self.streams = streams_by_name(
            [stream for one in (*self.builders, *(a for _, a in self.anchors)) for stream in one.streams()]
        )
        self.progress = checkpoint.Progress()
        self.recorder = Recorder(
            folder, dump_recipe(config), config.loggers, lambda token: str(self.vlm.tokenizer.decode([token]))
        )

    def collect(self, step: int) -> tuple[list[Group], list[Signal]]:
        """Rollouts of the step and what they teach."""
        first, renderer = self.config.signals[0], self.vlm.renderer
        if isinstance(first, SftSignal):
            groups = self.main.script(step, first.target, renderer)
        else:
            groups = self.main.play(step, self.engine, renderer)
            for one in self.config.signals:
                if one.kind == "grpo":
                    groups = [score_group(group, one.reward) for group in groups]
        signals = [made for one in self.builders for made in one.build(groups, self._context())]
        for task, anchor in self.anchors:
            signals += anchor.build(task.play(step, self.engine, renderer), self._context())
        return groups, signals

    def _context(self) -> Context:
        def score(pairs):
            assert self.teacher is not None
            return self.teacher.score(pairs, self.config.micro_tokens, self.config.sampling.temperature)

        return Context(score)

    def learn(self, signals: list[Signal]) -> tuple[Gradients, dict[str, float]]:
        """One or more optimizer steps on the step's signals."""
        batches = make_batches(signals, self.streams, self.vlm.renderer, self.config.micro_tokens)
        for _ in range(self.config.updates_per_step):
            self.optimizer.zero_grad()
            found = accumulate(self.vlm, self.teacher, batches, self.config.sampling.temperature, self.config.model.compute)
            norm, applied = self.guard.check(found.loss, self.vlm.model.named_parameters(), self.config.optimizer.clip_norm)
            if applied:
                self.optimizer.step()
            if self.guard.message:
                warnings.warn(f"step {self.progress.step + 1}: {self.guard.message}", stacklevel=2)
        return found, {
            "optim/grad_norm": norm,
            "optim/lr": self.optimizer.lr,
            "optim/skipped": float(not applied),
            "optim/warned": float(bool(self.guard.message)),
            "loss/total": found.loss,
        }

    def step(self) -> None:
        """Experience, update, teacher, records."""
        start, number = time.perf_counter(), self.progress.step + 1
        groups, signals = self.collect(number - 1)
        if number == 1:
            self.recorder.first_batch(signals)
        sampled_s = time.perf_counter() - start
        found, values = self.learn(signals)
        if self.teacher is not None:
            self.teacher.follow(self.vlm, number)
        self.progress.step = number
        self.progress.seconds += time.perf_counter() - start
        self.progress.rollouts += sum(len(group.rollouts) for group in groups)
        self.progress.action_tokens += sum(one.num_actions for group in groups for one in group.rollouts)
        values |= found.tally.means() | metrics.of_groups(groups)
        values |= {"time/step_s": time.perf_counter() - start, "time/sample_s": sampled_s}
        self.recorder.metrics(number, values)
        if number == 1 or number % self.config.log_rollouts_every == 0:
            self.recorder.rollouts(
                number,
                [one for one in signals if one.rollout.group_id.startswith("main/")][: self.config.log_rollouts],
                found.divergence_of,
            )

    def evaluate(self, whole: bool) -> dict[str, Any]:
        """Score the held-out split now, record it, and keep the best step."""
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
        checkpoint.write(self.folder, self.vlm, self.optimizer, self.teacher, self.guard, self.progress)
        checkpoint.prune(self.folder, self.config.checkpoint.keep_last, self.progress.best_step)


def train(
    config: RunConfig,
    folder: Path,
    evaluator: Evaluator | None = None,
    toolbox: Toolbox | None = None,
    finish: Callable[[dict[str, Any], dict[str, Any]], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train, or go on where a run in ``folder`` stopped; return the summary that is written to ``summary.json``.

    ``finish(before, after)`` adds to the summary what the caller knows to say about the two whole evaluations.
    Raises `Interrupted` after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    run = Run(config, folder, evaluator, toolbox)
    found = checkpoint.restore(folder, run.vlm, run.optimizer, run.teacher, run.guard)
    run.progress = found or run.progress
    run.recorder.rewind(run.progress.step)
    if found is None:
        run.progress.before = run.evaluate(whole=True)
        run.save()
    with ProgressBar(config.name, run.progress.step, config.steps) as bar, _StopAsked() as stop:
        while run.progress.step < config.steps:
            run.step()
            bar.show(run.progress.step, run.recorder.last)
            done = run.progress.step == config.steps
            if not done and config.eval is not None and config.eval.every and run.progress.step % config.eval.every == 0:
                run.evaluate(whole=False)
            if done or stop.asked or run.progress.step % config.checkpoint.every == 0:
                run.save()
            if stop.asked and not done:
                run.recorder.close()
                raise Interrupted(
                    f"stopped after step {run.progress.step} of {config.steps}; run the same command again to go on"
                )
    after = run.evaluate(whole=True)
    summary = metrics.summary(config, run.progress, after, finish(run.progress.before, after) if finish else {})
    run.recorder.summary(summary)
    run.recorder.close()
    return summary


def _tools(max_turns: int, toolbox: Toolbox | None) -> Toolbox | None:
    if max_turns > 1 and toolbox is None:
        raise ValueError("max_turns > 1 plays rollouts with tools, and no tools were given to this run")
    return toolbox if max_turns > 1 else None


class _StopAsked:
    """Turns SIGTERM and Ctrl-C into a flag that is read between two steps."""

    def __enter__(self) -> _StopAsked:
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
