"""What a training run holds: model, teacher, optimizer, prompts, signals, records. The loop moves it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..datasets.curriculum import Shuffled, build_sampler
from ..datasets.experts import ExpertTrajectories
from ..datasets.spec import load_data
from ..datasets.trajectories import Trajectory, read_trajectories
from ..rewards.combine import RewardSpec, score_group
from ..visual_tools.dialects.registry import dialect
from ..visual_tools.spec import build_toolbox
from ..vlm.engines import CopyEngine
from ..vlm.generate import Engine, Sampling
from ..vlm.images import Picture
from ..vlm.load import VLM
from ..vlm.records import Group, Rollout, Sample, View
from ..vlm.rollout import Limits
from . import checkpoint
from .collect import Task
from .config import Anchor, RunConfig
from .distributed import build_spread
from .experience import Change
from .exposure import Exposure, answer_pairs, mean_logprob
from .lora import load_student
from .measure import sampled_logprobs, token_values
from .optim import GradGuard
from .protocols import Protocols
from .ranks import joined
from .recipes import dump_recipe
from .recorder import QuietRecorder, Recorder
from .replay import Replay
from .signals.anchor import AnchorSignal
from .signals.base import Context, SignalBuilder
from .signals.distill_settings import DistillSignal, ExposureSpec
from .signals.registry import builder
from .signals.settings import SftSignal
from .sync import build_engine, sync
from .teacher import Teacher
from .teacher_settings import TeacherPart, copy_steps
from .transforms.base import Tools
from .transforms.registry import transform
from .update import compute_dtype, streams_by_name

Evaluator = Callable[[VLM, int, bool], dict[str, Any]]
"""``(model, step, whole) -> result``: scores the held-out split; ``whole`` is False during training."""


@dataclass(frozen=True)
class Origin:
    """Where a stage's weights come from, in place of what its recipe names."""

    model: str | None = None
    teacher: str | None = None


class Run:
    """Built from a recipe; `restore` brings it to where it stopped.

    Raises `ValueError` (and its subclasses) for a model, data or settings that cannot be used, before anything is trained.
    """

    def __init__(self, config: RunConfig, folder: Path, evaluator: Evaluator | None = None, origin: Origin | None = None) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.ranks = joined(config.distributed.minutes)
        self.config, self.folder, self.evaluator = config, folder, evaluator
        found = origin or Origin()
        self.vlm = load_student(config, folder, found.model, self.ranks)
        taught_by = config.teacher if found.teacher is None else config.teacher.model_copy(update={"path": found.teacher})
        narrow = compute_dtype(self.vlm, config.model.compute)
        self.teacher = Teacher(self.vlm, taught_by, copy_steps(config), self.ranks, narrow) if config.needs_teacher else None
        held = config.grpo is not None and config.grpo.kl != "none" and config.teacher.weights == "current"
        initial = TeacherPart(offload=config.teacher.offload)  # a KL to the student itself would be 0
        self.reference = Teacher(self.vlm, initial, ranks=self.ranks, narrow=narrow) if held else self.teacher
        self.engine = self.player = self._engine(self.vlm)
        if config.sampling.player == "teacher" and self.teacher is not None:
            self.player = self._engine(self.teacher.vlm)
        total_updates = config.steps * config.updates_per_step
        self.spread = build_spread(config, self.vlm, self.ranks, total_updates)
        self.optimizer = self.spread.optimizer
        self.guard = GradGuard(config.optimizer.spike_factor, config.optimizer.on_spike)
        samples, self.scripts = self._data()
        draws = config.prompts * (1 + (config.grpo.extra_rounds if config.grpo else 0))
        sampler = build_sampler(config.curriculum, samples, config.seed, draws, config.rollouts)
        self.main = Task(
            "main", samples, sampler, config.student, config.prompts, config.rollouts, config.sampling, config.seed,
            self.protocols(config.sampling.max_turns), config.leak_check, version=self._version, ranks=self.ranks,
        )  # fmt: skip
        self.transforms = [transform(one) for one in config.transforms]
        self.replay = None if config.replay is None else Replay(config.replay, config.seed)
        spec = next((one.exposure for one in config.signals if isinstance(one, DistillSignal) and one.exposure), None)
        self.exposure = None if spec is None else Exposure(spec, config.seed, self._probe(spec))
        self.builders: list[SignalBuilder] = [builder(one, self.exposure) for one in config.signals]
        self.anchors = [self._anchor(anchor, place, samples) for place, anchor in enumerate(config.anchors)]
        owners: list[SignalBuilder] = [*self.builders, *(made for _, made in self.anchors)]
        self.streams = streams_by_name([stream for one in owners for stream in one.streams()])
        self.progress = checkpoint.Progress()
        writer = Recorder if self.ranks.is_first else QuietRecorder
        self.recorder = writer(folder, dump_recipe(config), config.loggers, self._token_text, self._seen_px)

    def _engine(self, vlm: VLM) -> Engine:
        return build_engine(self.config.engine, vlm, compute_dtype(vlm, self.config.model.compute), self.ranks)

    def _version(self, step: int) -> int:
        """The step at which the weights that play in step ``step`` came to be."""
        return step if self.teacher is None or self.config.sampling.player == "student" else self.teacher.moved_at

    def _probe(self, spec: ExposureSpec) -> Callable[[], float]:
        pairs = answer_pairs(load_data(spec.probe), spec.probe_answer, self.main.view_of, self.vlm.renderer)
        return lambda: mean_logprob(self.logprobs(self.vlm, pairs))

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
        task = Task(
            f"anchor:{anchor.name}", data, Shuffled(data, seed, anchor.prompts), anchor.view, anchor.prompts, 1, sampling, seed,
            self.protocols(anchor.max_turns), ranks=self.ranks,
        )  # fmt: skip
        if anchor.pool:
            task = task.pooled(anchor.pool, self.engine, self.vlm.renderer)
        return task, AnchorSignal(anchor)

    def _data(self) -> tuple[Sequence[Sample], Sequence[Trajectory]]:
        """The run's samples, and the trajectories of an sft signal that learns some."""
        config, first = self.config, self.config.signals[0]
        if not isinstance(first, SftSignal) or first.source == "target":
            return load_data(config.data), ()
        if first.source == "trajectories":
            read = read_trajectories(config.data)
            if read.problems:
                shown = "".join(f"\n  {problem}" for problem in read.problems[:5])
                warnings.warn(f"{config.data.path}: {len(read.problems)} rows are left out{shown}", stacklevel=3)
            return (), read.trajectories
        samples = load_data(config.data)
        coords = build_toolbox(config.tools, self.vlm.family.coords).settings.coords
        spoken = dialect(config.tools.dialect)
        return samples, ExpertTrajectories(samples, spoken, first.expert, coords, self._seen_px)

    def protocols(self, max_turns: int) -> Protocols:
        """How this run's samples are played, with at most ``max_turns`` actions."""
        config = self.config
        limits = Limits(turns=max_turns, **config.limits.model_dump())
        return Protocols(config.tools, config.protocols, limits, self.vlm.family.coords)

    @property
    def context(self) -> Context:
        """What signals may ask for."""

        def score(pairs):  # type: ignore[no-untyped-def]
            assert self.teacher is not None
            return self.logprobs(self.teacher.vlm, pairs)

        def refer(pairs):  # type: ignore[no-untyped-def]
            assert self.reference is not None
            return self.logprobs(self.reference.vlm, pairs)

        def measure(pairs, stream, what):  # type: ignore[no-untyped-def]
            def values(mine):  # type: ignore[no-untyped-def]
                with self._autocast():
                    return token_values(
                        self.vlm, self.teacher, mine, stream, what,
                        micro_tokens=self.config.micro_tokens, temperature=self.config.sampling.temperature,
                    )  # fmt: skip

            return self.ranks.each_group(pairs, _group_of, values)

        return Context(score, self.progress.step, self.main.protocols.prompt, self.vlm.renderer.token_bytes, measure, refer)

    def logprobs(self, vlm: VLM, pairs: Sequence[tuple[Rollout, View]]) -> list[tuple[tuple[float, ...], ...]]:
        """A model's log-probs ``[N][K]`` of rollouts read under views, at the sampling temperature; ranks share the work."""
        return self.ranks.each_group(pairs, _group_of, lambda mine: self._logprobs(vlm, mine))

    def _logprobs(self, vlm: VLM, pairs: Sequence[tuple[Rollout, View]]) -> list[tuple[tuple[float, ...], ...]]:
        with self._autocast():
            return sampled_logprobs(
                vlm, pairs, micro_tokens=self.config.micro_tokens, temperature=self.config.sampling.temperature
            )

    def _autocast(self) -> torch.autocast:
        dtype = compute_dtype(self.vlm, self.config.model.compute)
        return torch.autocast(self.vlm.device.type, dtype, enabled=dtype is not None)

    def changed(self, groups: list[Group], score: Change) -> list[Group]:
        """What the recipe's transforms make of groups; rank 0 applies them, for they may sample."""
        return self.ranks.first(lambda: self._changed(groups, score)) if self.transforms else groups

    def _changed(self, groups: list[Group], score: Change) -> list[Group]:
        sampling, vlm = self.config.sampling, self.vlm
        tools = Tools(
            step=self.progress.step,
            seed=self.config.seed,
            engine=self.engine,
            renderer=vlm.renderer,
            sampling=Sampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens),
            rules=self.main.protocols.rules,
            score=score,
            logprobs=lambda pairs: self._logprobs(vlm, pairs),
        )
        for one in self.transforms:
            groups = one.apply(groups, tools)
        return groups

    def scored(self, groups: list[Group], reward: RewardSpec) -> list[Group]:
        """The groups with rewards; ranks share the work."""
        return self.ranks.each(groups, lambda mine: [score_group(group, reward) for group in mine])

    def counts(self) -> dict[str, float]:
        """What samplers, transforms and the like say about the step."""
        values = dict(self.main.sampler.metrics())
        values |= {} if self.teacher is None else self.teacher.metrics(self.progress.step)
        values |= {} if self.config.sampling.player == "student" else {"rollout/by_teacher": 1.0}
        for one in (*self.transforms, *(part for part in (self.replay, self.exposure) if part is not None)):
            values |= one.metrics()
        return values

    @property
    def parts(self) -> dict[str, checkpoint.Keeps]:
        """What has a state of its own."""
        kept: dict[str, checkpoint.Keeps | None] = {
            "sampler": self.main.sampler, "replay": self.replay, "exposure": self.exposure,
        }  # fmt: skip
        return {name: part for name, part in kept.items() if part is not None}

    def restore(self) -> bool:
        """Go to the last checkpoint and drop what was logged after it; False when there is none."""
        found = checkpoint.restore(self.folder, self.vlm, self.optimizer, self.teacher, self.guard, self.parts)
        self.ranks.wait()  # a rank that comes late must not find the checkpoint that another writes next
        self.progress = found or self.progress
        self.recorder.rewind(self.progress.step)
        if found is not None:
            self.sync()
        return found is not None

    def sync(self) -> dict[str, float]:
        """Hand the weights of now to an engine that holds a copy; the seconds that it took, as a metric."""
        if not isinstance(self.engine, CopyEngine):
            return {}
        with self.spread.whole():
            return {"time/sync_s": sync(self.engine, self.vlm, self.progress.step, self.ranks)}

    def close(self) -> None:
        """Let go of files and of an engine's processes and memory."""
        self.recorder.close()
        if isinstance(self.engine, CopyEngine):
            self.engine.close()

    def evaluate(self, whole: bool) -> dict[str, Any]:
        """Score the held-out split now, record it, and remember the best step."""
        if self.evaluator is None:
            return {}
        evaluator = self.evaluator
        with self.spread.whole():
            result = self.ranks.first(lambda: evaluator(self.vlm, self.progress.step, whole))
        self.recorder.evaluation(self.progress.step, result)
        view, part = self.config.best_view, self.config.eval
        if view is not None and part is not None:
            right = result["views"][view]["right"][: part.during]  # the same items every time
            self._remember(sum(right) / max(1, len(right)))
        return result

    def _remember(self, value: float) -> None:
        progress, gate = self.progress, self.config.gate
        best = progress.best_value is None or value > progress.best_value
        if self.teacher is not None:
            with self.spread.whole():
                self.teacher.judged(self.vlm, progress.step, best)
        if best:
            progress.best_value, progress.best_step, progress.stale = value, progress.step, 0
        elif progress.best_step != progress.step:  # not the same evaluation again
            progress.stale += 1
        if gate is None or progress.ended or not gate.least_steps <= progress.step < self.config.steps or not progress.step:
            return
        if gate.least is not None and gate.stop_when_reached and value >= gate.least:
            progress.ended = f"{gate.view} reached {value:.3f} (gate.least: {gate.least:g})"
        elif gate.patience and progress.stale >= gate.patience:
            progress.ended = f"{progress.stale} evaluations without a better {gate.view} than {progress.best_value:.3f}"

    @property
    def done(self) -> bool:
        """No step is left, or the gate has ended the run."""
        return self.progress.step >= self.config.steps or bool(self.progress.ended)

    def save(self) -> None:
        """Write a checkpoint and remove those that are neither recent nor the best."""
        with self.spread.whole():
            if self.ranks.is_first:
                checkpoint.write(self.folder, self.vlm, self.optimizer, self.teacher, self.guard, self.parts, self.progress)
                checkpoint.prune(self.folder, self.config.checkpoint.keep_last, self.progress.best_step)
            else:
                self.optimizer.state_dict()  # every rank gives its share
        self.ranks.wait()


def _group_of(pair: tuple[Rollout, View]) -> str:
    return pair[0].group_id
