"""Adaptive teacher exposure (ATESD): what the teacher is shown, the controller's numbers by hand, and that it learns."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.datasets.scenes import samples
from foveate.datasets.views import make_view, opening, resolve_view
from foveate.train.config import DistillSignal
from foveate.train.exposure import FEATURES, Exposure, answer_pairs, mean_logprob
from foveate.train.loop import train
from foveate.train.measure import sampled_logprobs
from foveate.train.recipes import load_recipe
from foveate.train.signals.base import Context
from foveate.train.signals.distill import Distill
from foveate.train.signals.distill_settings import ExposureSpec
from foveate.vlm.load import VLM, load
from foveate.vlm.records import Group, Privileged, Rollout, Sample, StopReason, Turn

PROBE = {"synth": "detail", "split": "dev", "n": 4}


def spec(**changes: Any) -> ExposureSpec:
    return ExposureSpec.model_validate({"probe": PROBE, **changes})


def told(sample: Sample, frac: float) -> str:
    view = resolve_view({"rationale": "\nBecause: {rationale}", "answer": "\nAnswer: {answer}", "rationale_frac": frac})
    return make_view(sample, view, "teacher").messages[0].text


# ---- what is shown ------------------------------------------------------------------------------------------------------


def test_a_rationale_is_cut_between_words() -> None:
    text = "One  two\nthree four."
    assert [opening(text, frac) for frac in (0.0, 0.12, 0.125, 0.5, 0.62, 0.63, 0.874, 0.875, 1.0)] == [
        "", "", "One", "One  two", "One  two", "One  two\nthree", "One  two\nthree", text, text,
    ]  # fmt: skip
    assert opening("", 0.5) == ""


def test_the_answer_is_told_whatever_is_left_of_the_rationale() -> None:
    sample = Sample(id="s", question="What?", answer="K", privileged=Privileged(rationale="It is at the top."))
    assert told(sample, 1.0) == "What?\nBecause: It is at the top.\nAnswer: K"
    assert told(sample, 0.4) == "What?\nBecause: It is\nAnswer: K"
    assert told(sample, 0.0) == "What?\nAnswer: K"
    with pytest.raises(ValueError, match="sample s: this view tells a rationale and the sample has none"):
        told(dataclasses.replace(sample, privileged=Privileged()), 0.0)


def test_the_teacher_of_a_step_sees_the_share_that_was_drawn() -> None:
    (sample,) = samples("detail", "dev", 1)
    student = make_view(sample, resolve_view("tiny.full"), "student")
    rollout = Rollout(sample.id, "g", 0, student, (Turn((1, 2), (-1.0, -1.0), "x", StopReason.ANSWERED),), StopReason.ANSWERED)
    config = DistillSignal.model_validate({"kind": "distill", "teacher": "tiny.solved_teacher", "exposure": {"probe": PROBE}})
    exposure = Exposure(config.exposure or spec(), 0, lambda: -1.0)
    build = Distill(config, exposure=exposure).build
    seen = set()
    for step in range(0, 100, 5):
        (signal,) = build([Group(sample, (rollout,))], Context(lambda pairs: [], step))
        assert signal.teacher_view is not None
        rationale = sample.privileged.rationale or ""
        begun = opening(rationale, exposure.alpha(step))
        shown = f" {begun} " if begun else " "
        assert signal.teacher_view.messages[0].text == f"{sample.question}{shown}Ground-truth answer: {sample.answer}"
        seen.add(begun)
    assert len(seen) >= 4, "an exposure that never changes would pass as well"
    assert build([Group(sample, (rollout,))], Context(lambda pairs: [], 100)) != build(
        [Group(sample, (rollout,))], Context(lambda pairs: [], 200)
    )


# ---- the controller by hand ---------------------------------------------------------------------------------------------


def test_reinforce_by_hand() -> None:
    """At a = 2, b = 3, x = .25: d log p / da = ln .25 + psi(5) - psi(2), d/db = ln .75 + psi(5) - psi(3)."""
    exposure = Exposure(spec(start_mean=0.4, start_concentration=5.0, lr=0.1), 0, lambda: 0.0)
    features = [0.3, 0.1, 0.7, 0.2]
    assert [one.item() for one in exposure.beta(features)] == pytest.approx([2.0, 3.0]), "whatever the features say at first"
    by_a = math.log(0.25) + (1 / 2 + 1 / 3 + 1 / 4)
    by_b = math.log(0.75) + (1 / 3 + 1 / 4)
    before = {name: one.detach().clone() for name, one in exposure._weights.items()}
    exposure.reinforce(features, 0.25, 2.0)
    moved = {name: one.detach() - before[name] for name, one in exposure._weights.items()}
    # a = 1 + softplus(z), so da/dz = 1 - exp(-(a - 1))
    wanted = [0.1 * 2.0 * (1 - math.exp(-1)) * by_a, 0.1 * 2.0 * (1 - math.exp(-2)) * by_b]
    assert moved["out_2"].tolist() == pytest.approx(wanted)
    assert wanted == pytest.approx([-0.0383018, 0.0511277], abs=1e-6)
    hidden = torch.tanh(before["in_HF"] @ torch.tensor(features, dtype=torch.float64))
    torch.testing.assert_close(moved["out_2H"], torch.outer(torch.tensor(wanted, dtype=torch.float64), hidden))
    assert not moved["in_HF"].any(), "nothing comes through output weights of 0"
    exposure.reinforce(features, 0.25, 2.0)
    assert (exposure._weights["in_HF"] - before["in_HF"]).abs().max() > 0


def script(losses: list[float], probes: list[float], **changes: Any) -> tuple[Exposure, list[tuple[float, float, float]]]:
    """Play losses; what the controller is taught: (alpha, advantage, reward)."""
    waiting = iter(probes)
    exposure = Exposure(spec(hold_steps=2, horizon_steps=3, probe_every=2, discount=0.5, **changes), 3, lambda: next(waiting))
    taught: list[tuple[float, float, float]] = []
    exposure.reinforce = lambda features, alpha, advantage: taught.append(  # type: ignore[method-assign]
        (alpha, advantage, exposure._judged["reward"])
    )
    for step, loss in enumerate(losses):
        exposure.alpha(step)
        exposure.observe(step, {"loss/distill/divergence": loss, "policy/entropy": 0.1})
    return exposure, taught


def test_the_reward_by_hand() -> None:
    """Windows of 2 steps, judged over 3. Gains: 0; 2 x .2 + 3 x 1 = 3.4; 0 (another alpha, no probe); 2 x .4 + 3 x .5; 0."""
    weights = {"loss_weight": 2.0, "probe_weight": 3.0}
    exposure, taught = script([1.0, 0.8, 0.9, 0.5, 7.0], [-3.0, -2.0, -1.5], **weights)
    (alpha, advantage, reward) = taught[0]
    assert len(taught) == 1, "the first reward, 1.7, is the baseline"
    assert reward == pytest.approx(0.5 * 2.3)
    assert advantage == pytest.approx(-1.0), "the only gap there was is its own unit"
    assert exposure.metrics()["exposure/baseline"] == pytest.approx(1.7 + 0.1 * (1.15 - 1.7))
    assert exposure.metrics()["exposure/probe_logprob"] == -1.5
    assert alpha == exposure_at(2, exposure)
    _, taught = script([1.0, 0.8, 0.9, 0.5, 7.0, 6.0, 0.0], [-3.0, -2.0, -1.5, -1.5], **weights)
    # third window: gain 0 at step 4, 2 x 1 + 0 at step 5, another alpha at step 6: 0.5 x 2 = 1
    gap, square = 1.0 - 1.645, 0.9 * (0.1 * 0.55**2) + 0.1 * (1.0 - 1.645) ** 2
    assert taught[1][1:] == pytest.approx((gap / math.sqrt(square / (1 - 0.9**2)), 1.0))


def exposure_at(start: int, exposure: Exposure) -> float:
    """What was drawn at ``start`` while the policy is untouched (it starts as Beta(2, 2))."""
    return float(np.random.default_rng([exposure.seed, start, 2605]).beta(2.0, 2.0))


def test_an_exposure_is_held_and_asking_changes_nothing() -> None:
    exposure = Exposure(spec(hold_steps=3), 0, lambda: -1.0)
    drawn = [[exposure.alpha(step) for _ in range(2)] for step in range(9)]
    assert all(one == other for one, other in drawn)
    alphas = [one for one, _ in drawn]
    assert alphas[0] == alphas[1] == alphas[2] != alphas[3] == alphas[5] != alphas[6] == alphas[8]
    assert alphas[0] == pytest.approx(exposure_at(0, exposure))
    other = Exposure(spec(hold_steps=3), 1, lambda: -1.0)
    assert other.alpha(0) != alphas[0]


def test_statistics_and_steps_without_distillation() -> None:
    asked: list[int] = []

    def probe() -> float:
        asked.append(1)
        return -2.0

    exposure = Exposure(spec(hold_steps=2, probe_every=1), 0, probe)
    exposure.observe(0, {"loss/total": 1.0})
    assert exposure.metrics() == {}
    assert not asked, "before the first exposure there is nothing to judge"
    exposure.alpha(0)
    exposure.observe(0, {"loss/distill/advantage": -0.5, "policy/entropy": math.log(2)})
    exposure.observe(1, {"loss/total": 9.0})
    assert len(asked) == 2
    exposure.observe(2, {"loss/distill/advantage": -0.3, "policy/entropy": 0.0})
    assert dict(zip(FEATURES, exposure._features(), strict=True)) == pytest.approx(
        {
            "loss": math.log1p(0.3),
            "mismatch": math.log1p(0.5 - 0.1 * 0.2),
            "probe_nll": math.log1p(2.0),
            "confidence": math.log1p(0.5 + 0.1 * 0.5),
        }
    )


# ---- it learns ----------------------------------------------------------------------------------------------------------


class World:
    """A student that learns fastest when the teacher sees .4 of the rationale, and is further from a teacher who sees more."""

    def __init__(self, seed: int) -> None:
        self.rng, self.skill = np.random.default_rng(seed), 0.0

    def probe(self) -> float:
        return -10 * math.exp(-self.skill / 3)

    def step(self, alpha: float) -> dict[str, float]:
        loss = 0.1 + 0.5 * alpha + 0.3 * math.exp(-self.skill / 3) + 0.01 * self.rng.standard_normal()
        self.skill += 0.01 * math.exp(-(((alpha - 0.4) / 0.2) ** 2))
        return {"loss/distill/divergence": loss, "policy/entropy": 0.3 * math.exp(-self.skill)}


def live(seed: int, steps: int = 800, **changes: Any) -> tuple[float, list[float]]:
    world = World(seed)
    settings = {"hold_steps": 4, "horizon_steps": 4, "probe_every": 4, "start_mean": 0.8, "start_concentration": 8.0, **changes}
    exposure, alphas = Exposure(spec(**settings), seed, world.probe), []
    for step in range(steps):
        alphas.append(exposure.alpha(step))
        exposure.observe(step, world.step(alphas[-1]))
    return world.skill, alphas


def test_the_controller_finds_the_best_exposure() -> None:
    fixed = World(0)
    for _ in range(800):
        fixed.step(1.0)
    for seed in range(3):
        skill, alphas = live(seed)
        assert np.mean(alphas[:40]) > 0.6, "it starts from seeing nearly all"
        assert np.mean(alphas[-100:]) == pytest.approx(0.4, abs=0.1)
        assert skill > 4.5 > fixed.skill + 4
    untaught, alphas = live(0, lr=1e-9)
    assert np.mean(alphas[-100:]) > 0.6
    assert untaught < 3.5


# ---- state --------------------------------------------------------------------------------------------------------------


def go(exposure: Exposure, steps: range, losses: Callable[[int], float]) -> list[dict[str, float]]:
    found = []
    for step in steps:
        exposure.alpha(step)
        exposure.observe(step, {"loss/distill/divergence": losses(step), "policy/entropy": 0.1 * losses(step)})
        found.append(exposure.metrics())
    return found


@pytest.mark.parametrize("stop", [1, 7, 16, 29])
def test_saved_and_restored_it_goes_on_with_the_same_numbers(stop: int, tmp_path: Path) -> None:
    def losses(step: int) -> float:
        return 1 / (1 + step) + 0.05 * math.sin(7 * step)

    def probe_of(done: list[int]) -> Callable[[], float]:
        def probe() -> float:
            done[0] += 1
            return -3 + 0.1 * math.cos(5 * done[0]) + 0.2 * done[0]

        return probe

    config = spec(hold_steps=3, horizon_steps=5, probe_every=2)
    whole = go(Exposure(config, 5, probe_of([0])), range(40), losses)
    done = [0]
    first = Exposure(config, 5, probe_of(done))
    begun = go(first, range(stop), losses)
    first.save(tmp_path)
    second = Exposure(config, 5, probe_of(done))
    second.load(tmp_path)
    assert begun + go(second, range(stop, 40), losses) == whole
    assert len({row["exposure/mean"] for row in whole}) > 5, "it must have learned something meanwhile"
    with pytest.raises(OSError, match=r"exposure.pt"):
        second.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": {"synth": "detail", "split": "test"}}, "what steers cannot be reported"),
        ({"probe_every": 9, "horizon_steps": 5}, "set probe_every to horizon_steps or less"),
        ({"loss_weight": 0, "probe_weight": 0}, "nothing is progress"),
        ({"start_mean": 0.9, "start_concentration": 4}, "no peak between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec(**changes)


@pytest.mark.parametrize("teacher", [{"rationale": " {rationale}"}, {"answer": " {answer}"}, "crop"])
def test_an_exposure_needs_a_rationale_and_an_answer_to_tell(teacher: Any) -> None:
    with pytest.raises(ValueError, match=r"give its view the templates rationale: .* and answer"):
        DistillSignal.model_validate({"kind": "distill", "teacher": teacher, "exposure": {"probe": PROBE}})


# ---- in a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> VLM:
    return load("tiny")


def test_the_probe_is_the_log_prob_of_the_true_answer(tiny: VLM) -> None:
    assert mean_logprob([[[-1.0, -2.0], [-0.5]], [[-4.0]]]) == -3.75
    drawn = samples("detail", "dev", 6)

    def view_of(sample: Sample) -> Any:
        return make_view(sample, resolve_view("tiny.full"), "student")

    pairs = answer_pairs(drawn, "<answer>{answer}</answer>", view_of, tiny.renderer)
    found = [sum(map(sum, one)) for one in sampled_logprobs(tiny, pairs, micro_tokens=4096, temperature=1.0)]
    wrong = [dataclasses.replace(one, answer="X" if one.answer != "X" else "Z") for one in drawn]
    others = sampled_logprobs(tiny, answer_pairs(wrong, "<answer>{answer}</answer>", view_of, tiny.renderer),
                              micro_tokens=4096, temperature=1.0)  # fmt: skip
    assert sum(value > sum(map(sum, other)) for value, other in zip(found, others, strict=True)) >= 5
    assert all(pair[0].turns[0].text == f"<answer>{one.answer}</answer>" for pair, one in zip(pairs, drawn, strict=True))
    with pytest.raises(ValueError, match=r"the exposure.probe_answer .* needs answer, which the sample lacks"):
        answer_pairs([dataclasses.replace(drawn[0], answer=None)], "{answer}", view_of, tiny.renderer)


SMALL = [
    "steps=6", "prompts=3", "threads=1", "eval=null", "checkpoint.best_view=null", "checkpoint.every=2", "loggers=[]",
    "anchors=[]", "signals.0.exposure.hold_steps=1", "signals.0.exposure.horizon_steps=2", "signals.0.exposure.probe_every=1",
    "signals.0.exposure.probe.n=2", "optimizer.warmup_steps=0",
]  # fmt: skip


def logged(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


class Killed(BaseException):
    """Stands for a kill that leaves no time for anything."""


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
def test_a_killed_and_resumed_run_logs_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_recipe("tiny/atesd", SMALL)
    train(config, tmp_path / "whole")
    waiting = [1, 2, 5]
    observe = Exposure.observe

    def dying(self: Exposure, step: int, values: Any) -> None:
        if step in waiting:
            waiting.remove(step)
            raise Killed
        observe(self, step, values)

    monkeypatch.setattr(Exposure, "observe", dying)
    for _ in range(3):
        with pytest.raises(Killed):
            train(config, tmp_path / "killed")
    train(config, tmp_path / "killed")
    want = logged(tmp_path / "whole")
    assert logged(tmp_path / "killed") == want
    assert len({row["exposure/alpha"] for row in want}) == 6
    assert len({row["exposure/mean"] for row in want}) >= 3
    assert len({row["exposure/probe_logprob"] for row in want}) >= 5, "the student that is trained is the one that is probed"
