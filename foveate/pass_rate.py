"""`foveate data pass-rate`: how often a model is right about each sample, in K rollouts, before it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .asking import Model
from .data_source import Source, view_of
from .datasets.builders.journal import Journal
from .datasets.leaks import check_student_view
from .datasets.pass_rates import Summary, summarize
from .datasets.views import ViewSpec, make_view
from .eval.chat import ServerError
from .eval.engines import Task
from .eval.records import Item, Mode, Played
from .rewards.combine import RewardSpec, score_groups
from .train.config import LimitsPart, SamplingPart
from .train.protocols import TAG, Protocols
from .visual_tools.boxes import Coords
from .visual_tools.spec import ToolsSpec
from .vlm.families.registry import family_of
from .vlm.generate import HFEngine, Sampling
from .vlm.records import Group, Rollout, Sample, StopReason, ToolCall, Turn, View
from .vlm.render import Renderer
from .vlm.rollout import Limits, rollout

Show = Callable[[int, int, int], None]
"""Told how many samples are done, out of how many, and how many were done when it started."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides the numbers: how a sample is shown, played and judged.

    ``k`` rollouts at ``sampling``. Their random numbers come from ``seed`` and the sample's id, not from where it stands.
    """

    view: ViewSpec
    k: int
    sampling: SamplingPart
    tools: ToolsSpec = field(default_factory=ToolsSpec)
    protocols: Mapping[str, ToolsSpec] = field(default_factory=dict)
    limits: LimitsPart = field(default_factory=LimitsPart)
    reward: RewardSpec = field(default_factory=RewardSpec)
    seed: int = 0
    leak_check: bool = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"pass-rate: k is {self.k}; at least one rollout of each sample")
        if self.k > 1 and self.sampling.temperature == 0:
            raise ValueError(f"pass-rate: {self.k} greedy rollouts are all the same; give a temperature above 0, or k 1")

    def settings(self) -> dict[str, Any]:
        """The plan as JSON."""
        told = ("view", "sampling", "tools", "limits", "reward")
        return {
            "k": self.k,
            "seed": self.seed,
            **{name: self.__dict__[name].model_dump(mode="json") for name in told},
            "protocols": {name: spec.model_dump(mode="json") for name, spec in self.protocols.items()},
        }


def plan_of(
    source: Source, model: str, *, k: int, temperature: float, view: str | None, max_new_tokens: int | None, seed: int | None
) -> Plan:
    """The plan of a recipe, or that of plain questions: one action, no tools, the answer by rule."""
    config = source.config
    changes: dict[str, Any] = {"temperature": temperature}
    if max_new_tokens is not None:
        changes["max_new_tokens"] = max_new_tokens
    if config is None:
        tiny = model == "tiny"
        sampling = SamplingPart.model_validate({"max_new_tokens": 80 if tiny else 1024, **changes})
        shown = view_of(view or ("tiny.full" if tiny else "answer"))
        return Plan(view=shown, k=k, sampling=sampling, seed=seed or 0)
    reward = config.grpo.reward if config.grpo is not None else RewardSpec()
    sampling = SamplingPart.model_validate({**config.sampling.model_dump(), **changes})
    return Plan(
        view=config.student if view is None else view_of(view), k=k, sampling=sampling, tools=config.tools,
        protocols=config.protocols, limits=config.limits, reward=_deciding(reward),
        seed=config.seed if seed is None else seed, leak_check=config.leak_check,
    )  # fmt: skip


def _deciding(reward: RewardSpec) -> RewardSpec:
    """What decides right or wrong, without the terms that only add to the total."""
    others = {name: _deciding(one) for name, one in reward.by_source.items()}
    return RewardSpec(terms={"answer": reward.deciding}, total="answer", by_source=others)


def measure(
    source: Source,
    plan: Plan,
    model: Model,
    target: Path,
    *,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    at_once: int = 8,
    show: Show | None = None,
) -> Summary:
    """Play ``plan.k`` rollouts of each of the first ``limit`` samples (of these every n-th from i, for ``shard`` (i, n)), and
    write a row for each, in order, to ``target``; what they are is in a file beside it.

    Killed at any moment and called again it goes on, and the file is the one of a run that was not disturbed. `ValueError` for a
    file of other settings, a sample without an answer, a sample that cannot be shown, or a server that does not answer.
    """
    number, shards = shard
    if not 0 <= number < shards:
        raise ValueError(f"pass-rate: shard {number} of {shards}; expected 0 to {shards - 1}")
    places = range(number, min(len(source.samples), limit or len(source.samples)), shards)
    settings = {"model": model.about, **plan.settings(), "data": source.identity(), "shard": f"{number}/{shards}"}
    player = _Server(plan, model) if model.server is not None else _Here(plan, model)
    with Journal(target, settings) as journal:
        done = len(journal.rows)
        if done < len(places):
            done -= done % at_once  # samples are played in the company in which they would have been played
            journal.cut(done)
        rows = list(journal.rows)
        for row, place in zip(rows, places, strict=False):
            if row.get("index") != place:
                raise ValueError(f"{target}: row of index {row.get('index')} where {place} was expected; move the file away")
        before = {str(row["id"]): int(row["index"]) for row in rows}
        started = len(rows)
        while len(rows) < len(places):
            chunk = [(place, source.samples[place]) for place in places[len(rows) : len(rows) + at_once]]
            for place, sample in chunk:
                _check(sample, place, before)
            groups = player.play([sample for _, sample in chunk])
            made = [_row(place, group, plan) for (place, _), group in zip(chunk, groups, strict=True)]
            journal.add(*made)
            rows += made
            if show is not None:
                show(len(rows), len(places), started)
    return summarize(rows[: len(places)])


def _check(sample: Sample, place: int, before: dict[str, int]) -> None:
    if sample.answer is None:
        raise ValueError(f"sample {sample.id} (index {place}) has no answer; nothing is right or wrong then: give it one")
    first = before.setdefault(sample.id, place)
    if first != place:
        raise ValueError(
            f"sample {sample.id} stands at index {first} and at {place}: either two samples of a mixture have one id, or the "
            "picture of one is broken and its neighbour takes its place (foveate data check names it; verify: full leaves it out)"
        )


@dataclass(frozen=True)
class _Group:
    """The rollouts of a sample, and what each cost, which a server counts for itself."""

    group: Group
    tokens: tuple[int, ...]
    failed: int = 0


def _row(place: int, played: _Group, plan: Plan) -> dict[str, Any]:
    (group,) = score_groups([played.group], plan.reward)
    outcomes = [one.reward.outcome for one in group.rollouts if one.reward is not None]
    right = outcomes.count("right")
    return {
        "id": group.sample.id,
        "index": place,
        "k": plan.k,
        "right": right,
        "pass_rate": right / plan.k,
        "unparsed": outcomes.count("unparsed") - played.failed,
        "truncated": sum(one.stop.truncated for one in group.rollouts),
        "failed": played.failed,
        "tokens_mean": round(sum(played.tokens) / plan.k, 3),
    }


def _protocols(plan: Plan, coords: Coords) -> Protocols:
    return Protocols(plan.tools, plan.protocols, Limits(turns=plan.sampling.max_turns, **plan.limits.model_dump()), coords)


def _view_of(sample: Sample, plan: Plan, protocols: Protocols) -> View:
    """What training would show; refuses what training would refuse."""
    view = make_view(sample, plan.view, "student", protocols.prompt(sample))
    if plan.leak_check:
        check_student_view(sample, view, plan.view)
    return view


class _Here:
    """Plays with a model in this process, as training does."""

    def __init__(self, plan: Plan, model: Model) -> None:
        self.plan, self.model = plan, model

    def play(self, samples: Sequence[Sample]) -> list[_Group]:
        """The groups of these samples. `ValueError` names a sample that cannot be shown."""
        own, vlm = self.plan.sampling, self.model.vlm
        protocols = _protocols(self.plan, vlm.family.coords)
        old = vlm.renderer  # a renderer keeps the pictures that it has written: a new one for each chunk bounds the memory
        renderer = Renderer(old.family, old.tokenizer, old.image, old.chat_template, old.template_kwargs)
        groups = rollout(
            [(sample, _view_of(sample, self.plan, protocols)) for sample in samples],
            HFEngine(replace(vlm, renderer=renderer)),
            renderer,
            n=self.plan.k,
            sampling=Sampling(own.temperature, own.top_p, own.top_k, own.max_new_tokens),
            seed=self.plan.seed,
            rules=protocols.rules,
        )
        return [_Group(group, tuple(one.num_actions for one in group.rollouts)) for group in groups]


class _Server:
    """Plays with a served model."""

    def __init__(self, plan: Plan, model: Model) -> None:
        assert model.server is not None
        if plan.limits != LimitsPart():
            raise ValueError("pass-rate: a server's rollouts know no limits but turns and tokens; take limits out of the recipe")
        own = plan.sampling
        extra = {**({"top_p": own.top_p} if own.top_p < 1 else {}), **({"top_k": own.top_k} if own.top_k else {})}
        self.plan, self.server = plan, replace(model.server, extra={**model.server.extra, **extra})
        self._protocols = _protocols(plan, "norm1000" if self.server.family is None else family_of(self.server.family).coords)

    def play(self, samples: Sequence[Sample]) -> list[_Group]:
        """The groups of these samples. `ValueError` when the server gives no answer; what it refuses is a failed rollout."""
        for sample in samples:
            _view_of(sample, self.plan, self._protocols)
        tasks = {
            f"{sample.id}/{number}": Task(Item(sample), self._mode(sample), number, f"{sample.id}/{number}", self.plan.seed)
            for sample in samples
            for number in range(self.plan.k)
        }
        found: dict[str, Played] = {}

        def done(task: Task, played: Played) -> None:
            if played.stop == "failed" and not played.error.startswith("Refused"):
                raise ValueError(f"sample {task.item.id}: {played.error}; what is finished is kept, run the same command again")
            found[task.key] = played

        try:
            self.server.play(tasks.values(), done)
        except ServerError as error:
            raise ValueError(f"{error} What is finished is kept: run the same command again.") from error
        return [self._group(sample, [found[f"{sample.id}/{number}"] for number in range(self.plan.k)]) for sample in samples]

    def _mode(self, sample: Sample) -> Mode:
        own = self.plan.sampling
        tools = self.plan.protocols.get(sample.tags.get(TAG, ""), self.plan.tools)
        bare = self._protocols.toolbox(sample) is None
        return Mode(
            "pass-rate", self.plan.view, None if bare else tools, own.max_turns, own.max_new_tokens, own.temperature
        )  # fmt: skip

    def _group(self, sample: Sample, played: Sequence[Played]) -> _Group:
        return _Group(
            Group(sample, tuple(_rollout(sample, number, one) for number, one in enumerate(played))),
            tuple(one.tokens_out for one in played),
            sum(one.stop == "failed" for one in played),
        )


def _rollout(sample: Sample, number: int, played: Played) -> Rollout:
    """What a server said, as the rewards read it: texts and calls, no tokens."""
    stop = StopReason.ERRORS if played.stop == "failed" else StopReason(played.stop)
    calls: dict[int, list[ToolCall]] = {}
    for call in played.calls:
        told = {name: value for name, value in call.items() if name != "turn"}
        calls.setdefault(call["turn"], []).append(ToolCall(**told))
    turns = tuple(Turn((), (), text, stop, calls=tuple(calls.get(place, ()))) for place, text in enumerate(played.texts))
    return Rollout(sample.id, f"{sample.id}/0", number, View("student", ()), turns, stop)
