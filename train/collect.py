"""One step's experience: which samples, seen how, played how often, and what the rollouts are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..datasets.leaks import check_student_view
from ..datasets.mix import draw
from ..datasets.views import ViewSpec, make_view
from ..vlm.generate import Engine, Sampling
from ..vlm.records import Group, Rollout, Sample, StopReason, Turn, View
from ..vlm.render import Renderer
from ..vlm.rollout import Limits, Toolbox, rollout
from .config import SamplingPart


@dataclass(frozen=True)
class Task:
    """A stream of prompts: samples in a seeded order, the view they are shown in, and how they are played."""

    name: str
    samples: Sequence[Sample]
    view: ViewSpec
    prompts: int
    rollouts: int
    sampling: SamplingPart
    seed: int
    toolbox: Toolbox | None = None
    leak_check: bool = False
    pool: tuple[Group, ...] = ()
    """Groups played beforehand, used in turn in place of new ones."""

    def pooled(self, size: int, engine: Engine, renderer: Renderer) -> Task:
        """This task with at least ``size`` groups played now, with the weights that the engine has now."""
        groups = [group for step in range(-(-size // self.prompts)) for group in self.play(step, engine, renderer)]
        return dataclasses.replace(self, pool=tuple(groups))

    def draw(self, step: int) -> list[tuple[Sample, View]]:
        """The samples of a step with their student views: a function of seed and step alone, so a resumed run goes on exactly."""
        drawn = []
        for place in range(self.prompts):
            sample = draw(self.samples, step * self.prompts + place, self.seed)
            view = make_view(sample, self.view, "student")
            if self.leak_check:
                check_student_view(sample, view, self.view)
            drawn.append((sample, view))
        return drawn

    def play(self, step: int, engine: Engine, renderer: Renderer) -> list[Group]:
        """The step's rollouts: sampled now, or the pool's next."""
        if self.pool:
            return [
                _named(self.pool[(step * self.prompts + place) % len(self.pool)], self.name, step, place)
                for place in range(self.prompts)
            ]
        sampling = Sampling(self.sampling.temperature, self.sampling.top_p, self.sampling.top_k, self.sampling.max_new_tokens)
        groups = rollout(
            self.draw(step),
            engine,
            renderer,
            n=self.rollouts,
            sampling=sampling,
            seed=self.seed * 1_000_003 + step,
            policy_version=step,
            toolbox=self.toolbox,
            limits=Limits(turns=self.sampling.max_turns),
        )
        return [_named(group, self.name, step, place) for place, group in enumerate(groups)]

    def script(self, step: int, target: str, renderer: Renderer) -> list[Group]:
        """The step's samples with a target text in place of a sampled one (supervised fine-tuning)."""
        groups = []
        for place, (sample, view) in enumerate(self.draw(step)):
            text = _fill(target, sample)
            ids = (*renderer.encode(text), renderer.stop_ids[0])
            turn = Turn(ids, (0.0,) * len(ids), text, StopReason.ANSWERED, policy_version=step)
            groups.append(
                _named(
                    Group(sample, (Rollout(sample.id, sample.id, 0, view, (turn,), StopReason.ANSWERED),)), self.name, step, place
                )
            )
        return groups


def _named(group: Group, task: str, step: int, place: int) -> Group:
    # A sample may be drawn twice in a step by two tasks; its groups must not be mistaken for one.
    group_id = f"{task}/{step}/{place}"
    return Group(group.sample, tuple(dataclasses.replace(one, group_id=group_id) for one in group.rollouts))


def _fill(target: str, sample: Sample) -> str:
    values: Mapping[str, str | None] = {"answer": sample.answer, "rationale": sample.privileged.rationale}
    text = target
    for name, value in values.items():
        if "{" + name + "}" in text:
            if value is None:
                raise ValueError(
                    f"sample {sample.id}: the sft target {target!r} needs {name}, which the sample lacks; remove the "
                    "sample or change the target"
                )
            text = text.replace("{" + name + "}", value)
    return text
