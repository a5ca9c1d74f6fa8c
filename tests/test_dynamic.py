"""Dynamic sampling and filters over whole steps and runs: which prompts are drawn, what is counted, exact resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from foveate.datasets.curriculum import Shuffled
from foveate.datasets.scenes import samples as scenes
from foveate.datasets.views import resolve_view
from foveate.train import experience, metrics
from foveate.train.collect import Task
from foveate.train.config import GrpoSignal, SamplingPart
from foveate.train.loop import train
from foveate.train.recipes import load_recipe
from foveate.train.signals.filters import counts, reasons
from foveate.vlm.load import VLM
from foveate.vlm.records import Group, Reward, Rollout, Sample, StopReason, Turn, View


def group_of(*said: str) -> Group:
    """Rollouts that gave these answers to a question whose answer is K; "" is no answer at all."""
    rollouts = []
    for index, answer in enumerate(said):
        text = f"<answer>{answer}</answer>" if answer else "well"
        turn = Turn((5, 6), (-1.0, -1.0), text, StopReason.ANSWERED)
        rollouts.append(Rollout("s", "g", index, View("student", ()), (turn,), StopReason.ANSWERED))
    return Group(Sample(id="s", question="q", answer="K"), tuple(rollouts))


class Played:
    """Stands for a task: which places were asked for, and groups of which only every third has variance."""

    prompts = 4
    sampler = Shuffled((), 0, 4)

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def play(self, step: int, engine: object, renderer: object, places: range, then: Any) -> list[Group]:
        self.asked.append(list(places))
        return then([group_of("K", "no") if place % 3 == 0 else group_of("K", "K") for place in places])


@pytest.mark.parametrize(
    ("rounds", "asked"),
    [
        (0, [[0, 1, 2, 3]]),
        (1, [[0, 1, 2, 3], [4, 5]]),  # 0 and 3 have variance: two are missing
        (9, [[0, 1, 2, 3], [4, 5], [6, 7], [8]  , [9]]),
    ],
)  # fmt: skip
def test_prompts_are_drawn_until_enough_groups_have_variance(rounds: int, asked: list[list[int]]) -> None:
    task, settings = Played(), GrpoSignal(kind="grpo", filter_zero_variance=True, extra_rounds=rounds)
    groups = experience.play(task, 0, None, None, settings).groups  # type: ignore[arg-type]
    assert task.asked == asked
    taught = [None in reasons(group, settings) for group in groups]
    assert taught == [place % 3 == 0 for places in asked for place in places]
    found = counts(groups, settings, task.prompts)
    assert found["grpo/filtered_zero_variance"] == 2 * taught.count(False)
    assert found.get("grpo/extra_prompts", 0) == len(groups) - 4


class NoTools:
    """The protocols of a run without tools."""

    def prompt(self, sample: Sample) -> None:
        return None

    def rules(self, sample: Sample) -> None:
        return None


def test_a_step_owns_its_draws() -> None:
    """Steps never share a draw, whatever they needed of theirs; with one round the draws are those of a plain run."""
    pool = tuple(scenes("detail", "train", 40))

    def drawn(rounds: int, step: int, places: range | None = None) -> list[str]:
        return [pick.sample.id for pick in Shuffled(pool, 0, 2 * rounds).pick(step, places or range(2))]

    plain = [one for step in range(6) for one in drawn(1, step)]
    assert len(set(plain)) == 12
    wide = [drawn(3, step, range(6)) for step in range(2)]
    assert wide == [plain[:6], plain[6:]]
    assert drawn(3, 1) == plain[6:8]
    assert drawn(3, 1, range(2, 3)) == plain[8:9]


def test_a_sample_met_again_in_a_later_round_is_played_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set smaller than the draws of a step: the same rollouts again would teach nothing new."""
    seeds: list[int] = []

    def fake_rollout(drawn: list[Any], *_: Any, seed: int, **__: Any) -> list[Group]:
        seeds.append(seed)
        return [group_of("K", "K") for _ in drawn]

    monkeypatch.setattr("foveate.train.collect.rollout", fake_rollout)
    pool = tuple(scenes("detail", "train", 2))
    task = Task("main", pool, Shuffled(pool, 3, 4), resolve_view("tiny.full"), 2, 2, SamplingPart(), 3, NoTools())  # type: ignore[arg-type]
    first, again = (task.play(1, None, None, places) for places in (None, range(2, 4)))  # type: ignore[arg-type]
    assert len({*seeds}) == 2
    assert [group.rollouts[0].group_id for group in (*first, *again)] == ["main/1/0", "main/1/1", "main/1/2", "main/1/3"]


SMALL = [
    "steps=4",
    "prompts=3",
    "threads=1",
    "checkpoint.every=1",
    "eval.every=1",
    "loggers=[]",
    "anchors=[]",
    "signals.0.advantage=rloo",
]
DYNAMIC = ["signals.0.filter_zero_variance=true", "signals.0.extra_rounds=2", "signals.0.kl=k3", "signals.0.kl_weight=0.01"]


class Killed(BaseException):
    """Stands for a kill that leaves no time for anything."""


def logged(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows if "loss/total" in row]


def test_a_run_with_dynamic_sampling_and_a_reference_resumes_exactly(tmp_path: Path) -> None:
    config = load_recipe("tiny/grpo", [*SMALL, *DYNAMIC, "updates_per_step=2", "signals.0.correction=truncate"])
    assert config.needs_teacher
    waiting = [2, 3]

    def evaluate(_: VLM, step: int, whole: bool) -> dict[str, Any]:
        if step in waiting:
            waiting.remove(step)
            raise Killed
        views = {name: {"accuracy": 0.5, "right": [1], "ci95": [0, 1], "n": 1} for name in ("full", "crop", "zoom")}
        return {"step": step, "whole": whole, "views": views}

    for _ in range(2):
        with pytest.raises(Killed):
            train(config, tmp_path / "killed", evaluate)
    train(config, tmp_path / "killed", evaluate)
    train(config, tmp_path / "whole", evaluate)
    rows = logged(tmp_path / "whole")
    assert logged(tmp_path / "killed") == rows
    assert len(rows) == 4
    assert all(row["grpo/filtered_zero_variance"] > 0 for row in rows)
    assert 0 < max(row["grpo/extra_prompts"] for row in rows) <= 6
    assert rows[0]["loss/grpo/mismatch_kl"] < 1e-5, "our own engine samples from the weights that learn"
    assert rows[-1]["loss/grpo/kl"] > rows[0]["loss/grpo/kl"]


def test_a_step_with_nothing_to_learn_changes_nothing(tmp_path: Path) -> None:
    """Every rollout earns the same: no update, no weight decay, and the run goes on."""
    sums: list[float] = []

    def evaluate(model: VLM, step: int, whole: bool) -> dict[str, Any]:
        sums.append(float(sum(one.detach().double().abs().sum() for one in model.model.parameters())))
        views = {name: {"accuracy": 0.5, "right": [1], "ci95": [0, 1], "n": 1} for name in ("full", "crop", "zoom")}
        return {"step": step, "whole": whole, "views": views}

    dull = ["steps=2", "sampling.max_new_tokens=1", "signals.0.filter_zero_variance=true"]  # one token is never an answer
    train(load_recipe("tiny/grpo", [*SMALL, *dull, "optimizer.weight_decay=0.1"]), tmp_path, evaluate)
    rows = logged(tmp_path)
    assert [row["optim/skipped"] for row in rows] == [1.0, 1.0]
    assert [row["grpo/filtered_zero_variance"] for row in rows] == [12.0, 12.0]
    assert len(set(sums)) == 1


def test_metrics_name_the_filters_of_grpo_runs_only() -> None:
    config = load_recipe("tiny/grpo", ["signals.0.filter_void=true"])
    group = group_of("K", "")
    scored = Group(
        group.sample,
        tuple(
            dataclasses.replace(one, reward=Reward(0.0, outcome=outcome))
            for one, outcome in zip(group.rollouts, ("right", "unparsed"), strict=True)
        ),
    )
    assert metrics.of_filters([scored], config) == {"grpo/filtered_void": 1.0}
    assert metrics.of_filters([], load_recipe("tiny/vision_opd")) == {}
