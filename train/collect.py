"""One step's experience: which samples, seen how, played how often, and what the rollouts are worth."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..datasets.curriculum import Pick, Sampler
from ..datasets.leaks import check_student_view
from ..datasets.mix import draw
from ..datasets.trajectories import Trajectory, drop_thoughts
from ..datasets.views import ViewSpec, make_view
from ..vlm.generate import Engine, Sampling
from ..vlm.records import Group, Sample, View
from ..vlm.render import Renderer
from ..vlm.rollout import derive_seed, rollout
from .config import SamplingPart
from .protocols import Protocols
from .ranks import ALONE, Ranks
from .script import play_script
from .signals.settings import SftSignal


@dataclass(frozen=True)
class Task:
    """A stream of prompts: samples as the sampler draws them, the view they are shown in, and how they are played.

    ``samples`` serve `script` alone, which draws them in a seeded order.
    """

    name: str
    samples: Sequence[Sample]
    sampler: Sampler
    view: ViewSpec
    prompts: int
    rollouts: int
    sampling: SamplingPart
    seed: int
    protocols: Protocols
    leak_check: bool = False
    pool: tuple[Group, ...] = ()
    """Groups played beforehand, used in turn in place of new ones."""
    version: Callable[[int], int] = int
    """The policy version of the weights that play in a step: the step itself, where they are the student's."""
    ranks: Ranks = ALONE
    """Who plays: each rank its share of the prompts."""

    def pooled(self, size: int, engine: Engine, renderer: Renderer) -> Task:
        """This task with at least ``size`` groups played now, with the weights that the engine has now."""
        groups = [group for step in range(-(-size // self.prompts)) for group in self.play(step, engine, renderer)]
        return dataclasses.replace(self, pool=tuple(groups))

    def play(
        self,
        step: int,
        engine: Engine,
        renderer: Renderer,
        places: range | None = None,
        then: Callable[[list[Group]], list[Group]] = list,
    ) -> list[Group]:
        """The step's rollouts: sampled now, or the pool's next. ``places``: the draws of the step that are played, the first
        ``prompts`` unless given. ``then`` is done to each rank's groups before all ranks have them."""
        places = places or range(self.prompts)
        if self.pool:
            return [_named(self.pool[(step * self.prompts + place) % len(self.pool)], self.name, step, place) for place in places]
        sampling = Sampling(self.sampling.temperature, self.sampling.top_p, self.sampling.top_k, self.sampling.max_new_tokens)
        seed = self.seed * 1_000_003 + step
        seed = derive_seed(seed, places.start) if places.start else seed  # a sample met again in a later round is played anew
        met = Counter[str]()
        draws = []
        for place, pick in zip(places, self.sampler.pick(step, places), strict=True):
            draws.append((place, pick, met[pick.sample.id]))
            met[pick.sample.id] += 1

        def played(mine: list[tuple[int, Pick, int]]) -> list[Group]:
            groups = rollout(
                [(pick.sample, self.view_of(pick.sample, pick.hint)) for _, pick, _ in mine],
                engine,
                renderer,
                n=[self.rollouts if pick.rollouts is None else pick.rollouts for _, pick, _ in mine],
                sampling=sampling,
                seed=seed,
                policy_version=self.version(step),
                rules=self.protocols.rules,
                earlier=[earlier for _, _, earlier in mine],
            )
            return then(
                [
                    dataclasses.replace(_named(group, self.name, step, place), weight=pick.weight)
                    for (place, pick, _), group in zip(mine, groups, strict=True)
                ]
            )

        return self.ranks.each(draws, played)

    def script(self, step: int, signal: SftSignal, scripts: Sequence[Trajectory], renderer: Renderer) -> list[Group]:
        """The step's trajectories as if the model had said them, or without any, the signal's target text for each sample."""
        played = []
        for place in range(self.prompts):
            at = step * self.prompts + place
            if scripts:
                drawn = draw(scripts, at, self.seed)
                script = drop_thoughts(drawn, signal.thought_dropout, derive_seed(self.seed, at))
            else:
                sample = draw(self.samples, at, self.seed)
                script = Trajectory(sample, (fill(signal.target, sample),))
            toolbox = self.protocols.toolbox(script.sample) if len(script.actions) > 1 else None
            one = play_script(script, self.view_of(script.sample), toolbox, renderer, policy_version=step)
            played.append(_named(Group(script.sample, (one,)), self.name, step, place))
        return played

    def view_of(self, sample: Sample, hint: int = 0) -> View:
        """What the student is shown of a sample, with its first ``hint`` hints. Raises `ValueError` for a view that tells
        something privileged."""
        view = make_view(sample, self.view, "student", self.protocols.prompt(sample), hint)
        if self.leak_check:
            check_student_view(sample, view, self.view)
        return view


def _named(group: Group, task: str, step: int, place: int) -> Group:
    # A sample may be drawn twice in a step by two tasks; its groups must not be mistaken for one.
    group_id = f"{task}/{step}/{place}"
    return dataclasses.replace(group, rollouts=tuple(dataclasses.replace(one, group_id=group_id) for one in group.rollouts))


def fill(target: str, sample: Sample, what: str = "sft target") -> str:
    """``target`` with {answer} and {rationale} of the sample. Raises `ValueError` where it lacks one; ``what`` names the text."""
    values: Mapping[str, str | None] = {"answer": sample.answer, "rationale": sample.privileged.rationale}
    text = target
    for name, value in values.items():
        if "{" + name + "}" in text:
            if value is None:
                raise ValueError(
                    f"sample {sample.id}: the {what} {target!r} needs {name}, which the sample lacks; remove the "
                    "sample or change the text"
                )
            text = text.replace("{" + name + "}", value)
    return text
