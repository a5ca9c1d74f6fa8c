"""The loop: views -> rollouts -> rewards -> signals -> batches -> update. Nothing here knows a method."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from ..vlm.records import Signal
from . import distributed, experience, metrics, showing
from .batch import make_batches
from .config import RunConfig, SftSignal
from .experience import Played
from .lockstep import in_step
from .progress import ProgressBar
from .run import Evaluator, Origin, Run
from .signals.mix import mixed
from .streams import denominators
from .sync import resting
from .update import Gradients, Tally, accumulate, remember_start

Finish = Callable[[dict[str, Any], dict[str, Any]], Mapping[str, Any]]


class Interrupted(RuntimeError):
    """The run was asked to stop (SIGTERM or Ctrl-C), has saved a checkpoint and can be resumed."""


def train(
    config: RunConfig,
    folder: Path,
    evaluator: Evaluator | None = None,
    finish: Finish | None = None,
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Train, or go on where a run in ``folder`` stopped; return the summary that is written to ``summary.json``.

    ``finish(before, after)`` adds to the summary what the caller knows to say about the two whole evaluations; ``origin`` says
    where weights come from that the recipe cannot name.
    Raises `Interrupted` after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    run = Run(config, folder, evaluator, origin)
    try:
        summary = _train(run, finish)
        run.optimizer.close()  # not after a failure: it waits for the device, where other ranks may never come
        return summary
    finally:
        run.close()


def _train(run: Run, finish: Finish | None) -> dict[str, Any]:
    config = run.config
    if not run.restore():
        run.progress.before = run.evaluate(whole=True)
        run.save()
    quiet = not run.ranks.is_first
    with ProgressBar(config.name, run.progress.step, config.steps, quiet=quiet) as bar, _StopAsked() as stop:
        while not run.done:
            step(run)
            stopping = run.ranks.any(stop.asked)  # one who asks meanwhile is heard after the next step
            bar.show(run.progress.step, run.recorder.last)
            if not run.done and config.eval is not None and config.eval.every and run.progress.step % config.eval.every == 0:
                run.evaluate(whole=False)
            best = run.progress.best_step == run.progress.step
            if run.done or stopping or best or run.progress.step % config.checkpoint.every == 0:
                run.save()
            if stopping and not run.done:
                raise Interrupted(
                    f"stopped after step {run.progress.step} of {config.steps}; run the same command again to go on"
                )
    after = run.evaluate(whole=True)
    budget = run.vlm.renderer.budget
    extra = {
        "min_pixels": budget.min_pixels,
        "max_pixels": budget.max_pixels,
        **(finish(run.progress.before, after) if finish else {}),
    }
    summary = metrics.summary(config, run.progress, after, extra)
    run.recorder.summary(summary)
    run.ranks.wait()
    return summary


def step(run: Run) -> None:
    """Experience, update, teacher, records."""
    start, number = time.perf_counter(), run.progress.step + 1
    with run.spread.whole():
        experienced, signals = collect(run, number - 1)
        if number == 1:
            run.recorder.first_batch(signals)
        sampled_s = time.perf_counter() - start
        shown = showing.shown(run.config, signals, number) if run.ranks.is_first else []
        looks = showing.looks(run.vlm, run.teacher, shown, run.streams, run.config)
    played = experienced.played
    with resting(run.engine):
        found, values = learn(run, signals)
    if run.teacher is not None and run.teacher.changes:
        with run.spread.whole():
            run.teacher.follow(run.vlm, number)
    run.progress.step = number
    values |= run.sync()
    run.progress.seconds += time.perf_counter() - start
    run.progress.rollouts += sum(len(group.rollouts) for group in played)
    run.progress.action_tokens += sum(one.num_actions for group in played for one in group.rollouts)
    values |= found.tally.means() | metrics.of_groups(played)  # as they were played, before any transform
    values |= metrics.of_filters(experienced.groups, run.config) | run.counts()
    values |= {"time/step_s": time.perf_counter() - start, "time/sample_s": sampled_s}
    if run.exposure is not None:
        with run.spread.whole():
            run.exposure.observe(number - 1, values)
    run.recorder.metrics(number, values)
    if shown:
        run.recorder.rollouts(number, shown, looks)


def collect(run: Run, number: int) -> tuple[Played, list[Signal]]:
    """Rollouts of step ``number`` (from 0), rewarded where a signal wants it, and what they and the anchors teach."""
    first, renderer = run.config.signals[0], run.vlm.renderer
    if isinstance(first, SftSignal):
        found = experience.whole(run.main.script(number, first, run.scripts, renderer))
    else:
        found = experience.play(run.main, number, run.player, renderer, run.config.grpo, run.changed)
        for one in run.config.signals:
            if one.kind == "distill" and one.reward is not None:  # in a run without grpo
                found = experience.whole(run.scored(found.groups, one.reward))
        run.main.sampler.update(number, found.played)
    made = [signal for one in run.builders for signal in one.build(found.groups, run.context)]
    signals = mixed(made, run.config.signals, number)
    if run.replay is not None:
        signals = run.replay.merge(signals, number)
    for task, anchor in run.anchors:
        signals += anchor.build(task.play(number, run.engine, renderer), run.context)
    return found, signals


def learn(run: Run, signals: list[Signal]) -> tuple[Gradients, dict[str, float]]:
    """One or more optimizer steps on the step's signals."""
    config, parameters = run.config, list(run.vlm.model.named_parameters())
    longest = config.sampling.max_new_tokens * config.sampling.max_turns
    totals = denominators(signals, run.streams, longest)
    level = in_step(run.ranks, run.vlm.renderer) if run.spread.in_step else None
    mine = distributed.my_share(signals, run.ranks) if run.ranks.size > 1 else signals
    batches = make_batches(mine, run.streams, run.vlm.renderer, config.micro_tokens, totals, level=level)
    learns = run.ranks.any(bool(batches))
    found, norm, applied = Gradients(0.0, Tally(), {}), 0.0, False  # what stays when filters have left nothing to learn
    if config.updates_per_step > 1:
        with run.spread.whole():
            remember_start(run.vlm, batches, config.sampling.temperature, config.model.compute)
    for _ in range(config.updates_per_step if learns else 0):
        run.optimizer.zero_grad()
        found = accumulate(run.vlm, run.teacher, batches, config.sampling.temperature, config.model.compute, run.spread.through)
        found = distributed.summed(found, run.ranks)
        norm, applied = run.guard.check(found.loss, parameters, config.optimizer.clip_norm, run.spread.norm())
        if applied:
            run.optimizer.step()
        if run.guard.message:
            warnings.warn(f"step {run.progress.step + 1}: {run.guard.message}", stacklevel=2)
    values = {
        "loss/total": found.loss,
        "optim/grad_norm": norm,
        "optim/lr": run.optimizer.lr,
        "optim/skipped": float(not applied),
        "optim/warned": float(bool(learns and run.guard.message)),
    }
    return found, values


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
