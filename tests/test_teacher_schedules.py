"""Whose weights the teacher has and when: by hand, exact under resume, and never a student pulled to what was left behind."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.train import run as run_module
from foveate.train.config import RunConfig, TeacherPart
from foveate.train.loop import collect, learn, step, train
from foveate.train.measure import sampled_logprobs
from foveate.train.recipes import load_any, load_recipe
from foveate.train.run import Run
from foveate.train.signals.schedule import Schedule, rises
from foveate.train.staged import StagedConfig
from foveate.train.stages import train_stages
from foveate.train.teacher import Teacher
from foveate.train.teacher_settings import brake, check_stages, copy_steps
from foveate.vlm.load import VLM, tiny_random

DISTILL = {"kind": "distill", "teacher": "tiny.full"}
GRPO = {"kind": "grpo", "reward": {"answer": 1.0}}
SMALL: dict[str, Any] = {
    "name": "x", "model": "tiny", "steps": 4, "data": {"synth": "detail", "split": "train", "n": 64}, "student": "tiny.full",
    "prompts": 3, "rollouts": 2, "sampling": {"max_new_tokens": 8}, "signals": [DISTILL], "optimizer": {"lr": 2e-3},
    "threads": 1, "loggers": [], "log_rollouts": 0,
}  # fmt: skip


def recipe(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({**SMALL, **changes})


# ---- by hand ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen3_vl", seed=1)


def moved(vlm: VLM, by: float) -> VLM:
    student = dataclasses.replace(vlm, model=copy.deepcopy(vlm.model))
    with torch.no_grad():
        for one in student.model.parameters():
            one.add_(by)
    return student


def share_taken(vlm: VLM, teacher: Teacher, by: float = 1.0) -> float:
    """How far the teacher has come towards a student that is ``by`` away in every weight."""
    gaps = [
        (mine - start).detach().double().flatten()
        for mine, start in zip(teacher.vlm.model.parameters(), vlm.model.parameters(), strict=True)
    ]
    found = torch.cat(gaps) / by
    assert (found - found.mean()).abs().max() < 1e-4, "every weight alike"
    return found.mean().item()


def path(vlm: VLM, teacher: Teacher, steps: int) -> list[float]:
    student, taken = moved(vlm, 1.0), []
    for number in range(1, steps + 1):
        teacher.follow(student, number)
        taken.append(share_taken(vlm, teacher))
    return taken


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"weights": "frozen"}, [0, 0, 0, 0, 0, 0]),
        ({"weights": "ema", "rate": 0.25}, [0.25, 0.4375, 0.578125, 0.68359375]),
        ({"weights": "ema", "rate": 0.25, "every": 2}, [0, 0.25, 0.25, 0.4375, 0.4375, 0.578125]),
        ({"weights": "ema", "rate": 0.25, "every": 2, "reset_every": 5}, [0, 0.25, 0.25, 0.4375, 1, 1]),
        ({"weights": "ema", "rate": 0.25, "every": 2, "reset_every": 4}, [0, 0.25, 0.25, 1]),
        ({"weights": "sync", "every": 3}, [0, 0, 1, 1, 1, 1]),
        ({"weights": "trust_region"}, [0, 0]),
    ],
)
def test_the_schedules_by_hand(vlm: VLM, settings: dict[str, Any], wanted: list[float]) -> None:
    teacher = Teacher(vlm, TeacherPart(**settings))
    assert path(vlm, teacher, len(wanted)) == pytest.approx(wanted, abs=1e-5)


def test_ages(vlm: VLM) -> None:
    teacher = Teacher(vlm, TeacherPart(weights="sync", every=3))
    path(vlm, teacher, 5)
    assert (teacher.moved_at, teacher.metrics(5)) == (3, {"teacher/age_steps": 2.0})
    assert Teacher(vlm, TeacherPart()).metrics(5) == {}


def test_it_follows_only_the_best_that_was_evaluated(vlm: VLM) -> None:
    teacher = Teacher(vlm, TeacherPart(weights="ema", rate=0.25, only_if_better=True))
    assert path(vlm, teacher, 2) == [0, 0], "two steps are due, and wait"
    teacher.judged(moved(vlm, 1.0), 2, best=True)
    assert share_taken(vlm, teacher) == pytest.approx(0.4375, abs=1e-5)
    assert teacher.moved_at == 2
    teacher.follow(moved(vlm, 9.0), 3)
    teacher.judged(moved(vlm, 9.0), 3, best=False)
    teacher.judged(moved(vlm, 9.0), 3, best=True)
    assert share_taken(vlm, teacher) == pytest.approx(0.4375, abs=1e-5), "what was not better is left out for good"
    synced = Teacher(vlm, TeacherPart(weights="sync", every=2, only_if_better=True))
    path(vlm, synced, 3)
    synced.judged(moved(vlm, 0.5), 3, best=True)
    assert share_taken(vlm, synced) == pytest.approx(0.5, abs=1e-5), "the weights that were evaluated"
    plain = Teacher(vlm, TeacherPart(weights="ema", rate=0.25))
    path(vlm, plain, 1)
    plain.judged(moved(vlm, 9.0), 1, best=True)
    assert share_taken(vlm, plain) == pytest.approx(0.25, abs=1e-5), "nobody asked for a judgement"


def test_the_state_holds_weights_and_what_is_due(vlm: VLM, tmp_path: Path) -> None:
    part = TeacherPart(weights="ema", rate=0.25, reset_every=4, only_if_better=True)
    first = Teacher(vlm, part)
    path(vlm, first, 3)
    first.judged(moved(vlm, 1.0), 3, best=True)
    path(vlm, first, 2)
    torch.save(first.state_dict(), tmp_path / "teacher.pt")
    second = Teacher(vlm, part)
    second.load_state_dict(torch.load(tmp_path / "teacher.pt", weights_only=True))
    assert (second.ema_due, second.copy_due, second.moved_at) == (2, 0, 3)
    for one in (first, second):
        one.judged(moved(vlm, 2.0), 5, best=True)
    assert all(torch.equal(a, b) for a, b in zip(first.vlm.model.parameters(), second.vlm.model.parameters(), strict=True))
    assert share_taken(vlm, first) == pytest.approx(2 - (2 - 0.578125) * 0.75**2, abs=1e-4)


# ---- exact under resume -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill that leaves no time for anything."""


def evaluator(die_at: tuple[int, ...] = ()) -> Any:
    waiting, right = list(die_at), [1, 2, 1, 3, 2, 4, 4]

    def evaluate(vlm: VLM, number: int, whole: bool) -> dict[str, Any]:
        if number in waiting:
            waiting.remove(number)
            raise Killed
        hits = [1] * right[number] + [0] * (4 - right[number])
        return {
            "step": number,
            "whole": whole,
            "views": {"full": {"accuracy": sum(hits) / 4, "right": hits, "ci95": [0, 1], "n": 4}},
        }

    return evaluate


def logged(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
def test_a_killed_and_resumed_run_logs_the_same_numbers(tmp_path: Path) -> None:
    """Evaluations: best at 1, 3 and 5. Checkpoints at 1, 3 and 5 too, and at 2 and 4, where the teacher has steps due."""
    part = {"weights": "ema", "rate": 0.3, "every": 1, "reset_every": 5, "only_if_better": True}
    held_out = {"data": {"synth": "detail", "split": "dev", "n": 4}, "views": {"full": "tiny.full"}, "every": 1}
    config = recipe(
        steps=6, teacher=part, eval=held_out, checkpoint={"every": 2, "best_view": "full"},
        signals=[{**DISTILL, "teacher": "tiny.crop"}],
    )  # fmt: skip
    train(config, tmp_path / "whole", evaluator())
    evaluate = evaluator((2, 4, 5))
    for _ in range(3):
        with pytest.raises(Killed):
            train(config, tmp_path / "killed", evaluate)
    train(config, tmp_path / "killed", evaluate)
    want = logged(tmp_path / "whole")
    assert logged(tmp_path / "killed") == want
    ages = [row["teacher/age_steps"] for row in want if "teacher/age_steps" in row]
    assert ages == [1, 1, 2, 1, 2, 1], "it moves in the evaluations that are the best so far, those after steps 1, 3 and 5"
    with pytest.raises(ValueError, match=r"teacher.only_if_better: .* set eval.every, and checkpoint.best_view or a gate"):
        recipe(teacher=part)


# ---- the teacher that is the student ------------------------------------------------------------------------------------

FADING = {**DISTILL, "weight": {"start": 0.5, "over_steps": 2}}
HELD = {**GRPO, "kl": "k3", "kl_weight": 0.1}


def test_current_needs_another_brake() -> None:
    current = {"weights": "current"}
    ways = (
        r"frozen, ema or trust_region; or give it a brake: a KL to frozen initial weights .* reaches 0 before the last step; "
        "or set teacher.accept_collapse: true"
    )
    for signals in ([DISTILL], [GRPO, DISTILL], [GRPO, {**DISTILL, "weight": {"start": 0.5, "end": 0.1, "over_steps": 2}}]):
        with pytest.raises(ValueError, match=ways):
            recipe(teacher=current, signals=signals)
    assert brake(recipe(teacher=current, signals=[HELD, DISTILL])) == "grpo.kl: k3"
    assert brake(recipe(teacher=current, signals=[GRPO, FADING])) == "distill.weight ends at 0"
    assert brake(recipe(teacher={**current, "accept_collapse": True})) is None
    with pytest.raises(ValueError, match="drift together"):  # off only after the last step
        recipe(teacher=current, signals=[GRPO, {**FADING, "weight": {"start": 0.5, "over_steps": 4}}])
    anchor = {"name": "crop", "view": "tiny.crop", "prompts": 1}
    with pytest.raises(ValueError, match=r"teacher's weights, which with .*: current are its own"):
        recipe(teacher=current, signals=[HELD, DISTILL], anchors=[anchor])


def test_an_average_is_not_kept_in_a_type_that_loses_it() -> None:
    narrow = {"name": "tiny", "dtype": "bfloat16"}
    with pytest.raises(ValueError, match=r"small steps vanish; use model.dtype: float32"):
        recipe(model=narrow, teacher={"weights": "ema"})
    for part in ({"weights": "sync"}, {"weights": "frozen"}, {"weights": "ema", "path": "elsewhere"}):  # read in float32
        recipe(model=narrow, teacher=part)
    small, theirs = torch.tensor(1.0), torch.tensor(1.001)
    assert small.bfloat16().lerp_(theirs.bfloat16(), 0.05) == 1 < small.lerp_(theirs, 0.05)


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
def test_the_brake_holds_to_weights_that_stay(tmp_path: Path) -> None:
    """A KL to the student's own weights would be 0 at every step."""
    train(recipe(teacher={"weights": "current"}, signals=[HELD, {**DISTILL, "teacher": "tiny.crop"}], steps=3), tmp_path)
    kl = [row["loss/grpo/kl"] for row in logged(tmp_path)]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert min(kl[1:]) > 1e-3


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"weights": "current", "path": "x"}, "remove one"),
        ({"every": 5}, "every belongs to weights: ema and sync"),
        ({"only_if_better": True}, "only_if_better belongs to weights: ema and sync"),
        ({"weights": "sync", "reset_every": 5}, "reset_every belongs to weights: ema"),
    ],
)
def test_settings_of_a_teacher_that_mean_nothing_are_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherPart(**part)
    assert [TeacherPart(weights=kind).steps_between for kind in ("ema", "sync")] == [1, 50]


# ---- never onto a stale teacher -----------------------------------------------------------------------------------------

LATE = {**DISTILL, "weight": {"off_steps": 2, "start": 0.5, "over_steps": 1, "end": 0.5}}


def test_a_coefficient_that_comes_late() -> None:
    late = Schedule(off_steps=3, start=0.2, hold_steps=2, over_steps=4, end=0.6)
    assert [late.at(number) for number in range(11)] == pytest.approx([0, 0, 0, 0.2, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6])
    assert rises(late, 11) == [3]
    assert rises(late, 3) == [], "the run ends before"
    assert rises(0.5, 9) == rises(0.0, 9) == rises(Schedule(start=0.5, over_steps=3), 9) == []
    assert rises(Schedule(start=0.1, over_steps=3, end=0.5), 9) == [], "up from above 0 is up with the teacher in use"


@pytest.mark.parametrize("weights", ["frozen", "trust_region"])
def test_no_coefficient_rises_from_0_onto_a_teacher_that_was_left_behind(weights: str) -> None:
    """v31 of TT-OPD's post-mortems."""
    with pytest.raises(ValueError, match=f"may not rise onto a teacher that was left behind.*: {weights} forbids; use ema"):
        recipe(teacher={"weights": weights}, signals=[GRPO, LATE])
    for follows in ("ema", "sync"):
        assert copy_steps(recipe(teacher={"weights": follows}, signals=[GRPO, LATE])) == {2}
    assert copy_steps(recipe(signals=[GRPO, FADING])) == set()


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
@pytest.mark.parametrize("part", [{"weights": "ema", "rate": 0.001}, {"weights": "sync", "every": 100}])
def test_the_teacher_is_brought_up_to_date_before_it_is_switched_on(
    part: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees what the student sees: with the student's weights there is nothing to learn from it, with old ones there is."""
    config = recipe(teacher=part, signals=[GRPO, LATE], prompts=6, rollouts=4, optimizer={"lr": 2e-3})
    train(config, tmp_path / "new")
    found = [row.get("loss/distill/divergence") for row in logged(tmp_path / "new")]
    assert found[:2] == [None, None], "off: the teacher is not run"
    assert found[2] == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr(run_module, "copy_steps", lambda config: frozenset())
    train(config, tmp_path / "old")
    assert logged(tmp_path / "old")[2]["loss/distill/divergence"] > 1e-3


def test_a_stage_does_not_go_back_to_a_teacher_it_has_left() -> None:
    def stages(*kinds: str, starts: tuple[str, ...] | None = None, path: str | None) -> None:
        """r: rl; d: distils; a stage that distils last takes the teacher at ``path``, the others their own start."""
        runs = []
        for place, kind in enumerate(kinds):
            last = place == len(kinds) - 1
            signals = {"r": [GRPO], "d": [DISTILL], "f": [GRPO, FADING]}[kind]
            runs.append(recipe(signals=signals, teacher={"path": path} if last and path else {}))
        begins = starts or ("model", *(f"stage:{place}/best" for place in range(len(kinds) - 1)))
        check_stages([str(place) for place in range(len(kinds))], begins, runs)

    stages("d", "r", "d", path=None)  # made anew from the weights that the stage starts from
    stages("d", "r", "d", path="stage:1")  # the same
    stages("d", "r", "d", path="somewhere/else")
    stages("r", "r", "d", starts=("model", "model", "stage:1/last"), path="stage:0")  # not its own past: the bridge
    stages("d", "d", path="tiny")  # the first stage was held to the very same weights
    for kinds, older in ((("d", "r", "d"), "stage:0"), (("r", "d"), "tiny"), (("d", "r", "d"), "tiny"), (("f", "d"), "tiny")):
        with pytest.raises(ValueError, match=r"older weights of its own student, which stage .* remove teacher.path"):
            stages(*kinds, path=older)
    with pytest.raises(ValueError, match="which stage 1 has moved away"):
        stages("d", "r", "d", path="stage:0/best")


# ---- rollouts of the teacher --------------------------------------------------------------------------------------------

OFF_POLICY = {"max_new_tokens": 8, "player": "teacher"}
WARM_UP = {**DISTILL, "divergence": "forward_kl"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signals": [GRPO]}, "grpo learns from the student's own tokens"),
        ({"signals": [GRPO, WARM_UP]}, "grpo learns from the student's own tokens"),
        ({"signals": [{"kind": "sft"}]}, "needs a distill signal"),
        ({"signals": [{**DISTILL, "divergence": "reverse_kl", "support": "sampled"}]}, "the student's own tokens"),
        ({"signals": [{**DISTILL, "divergence": "reverse_kl", "support": "sampled", "estimator": "k2"}]}, "own tokens"),
        ({"signals": [WARM_UP], "teacher": {"weights": "current", "accept_collapse": True}}, "that is the student"),
    ],
)
def test_what_makes_no_sense_on_the_teachers_tokens_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(sampling=OFF_POLICY, **changes)


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
def test_with_equal_weights_off_policy_is_on_policy(tmp_path: Path) -> None:
    """A teacher that is synced after every step plays what the student would have played."""
    rows = []
    for player in ("student", "teacher"):
        signals = [{**WARM_UP, "teacher": "tiny.crop"}]
        config = recipe(sampling={**OFF_POLICY, "player": player}, teacher={"weights": "sync", "every": 1}, signals=signals)
        train(config, tmp_path / player)
        rows.append(logged(tmp_path / player))
    assert [row.pop("rollout/by_teacher", None) for row in rows[0]] == [None] * 4
    assert [row.pop("rollout/by_teacher", None) for row in rows[1]] == [1.0] * 4
    assert rows[0] == rows[1]
    assert min(row["optim/grad_norm"] for row in rows[0]) > 0


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
@pytest.mark.parametrize(("part", "versions"), [({}, [0, 0, 0]), ({"weights": "sync", "every": 2}, [0, 0, 2])])
def test_the_rollouts_are_the_teachers(part: dict[str, Any], versions: list[int], tmp_path: Path) -> None:
    anchor = {"name": "crop", "view": "tiny.crop", "prompts": 2, "max_new_tokens": 8}
    run = Run(
        recipe(sampling=OFF_POLICY, teacher=part, signals=[{**WARM_UP, "teacher": "tiny.crop"}], anchors=[anchor]), tmp_path
    )
    assert run.teacher is not None
    for number, version in enumerate(versions):
        found, signals = collect(run, number)
        groups = found.groups
        turns = [(turn, one) for group in groups for one in group.rollouts for turn in one.turns]
        assert {turn.policy_version for turn, _ in turns} == {version}
        played = [one for group in groups for one in group.rollouts]
        by = {name: scored(vlm, played) for name, vlm in (("teacher", run.teacher.vlm), ("student", run.vlm))}
        said = [value for one in played for turn in one.turns for value in turn.action_logprobs_K]
        assert by["teacher"] == pytest.approx(said, abs=1e-4), "law 7, for the model that plays"
        if number and version != number:
            assert by["student"] != pytest.approx(said, abs=1e-3)
        anchors = [one.rollout for one in signals if one.stream == "anchor:crop"]
        assert scored(run.vlm, anchors) == pytest.approx([v for one in anchors for v in one.turns[0].action_logprobs_K], abs=1e-4)
        assert {one.turns[0].policy_version for one in anchors} == {number}
        learn(run, signals)
        run.progress.step = number + 1
        run.teacher.follow(run.vlm, number + 1)


def scored(vlm: VLM, rollouts: list[Any]) -> list[float]:
    rows = sampled_logprobs(vlm, [(one, one.view) for one in rollouts], micro_tokens=8192, temperature=1.0)
    return [value for rollout in rows for turn in rollout for value in turn]


# ---- recipes ------------------------------------------------------------------------------------------------------------

TWO = ["steps=2", "prompts=4", "eval=null", "checkpoint.best_view=null", "loggers=[]", "threads=1", "log_rollouts=0"]


@pytest.mark.parametrize("name", ["atesd", "tt_opd", "trace", "kdrl"])
@pytest.mark.filterwarnings("ignore:step .*gradient norm")
def test_a_recipe_trains_as_it_stands(name: str, tmp_path: Path) -> None:
    config = load_recipe(f"tiny/{name}")
    fewer = [f"anchors.{place}.{key}" for place in range(len(config.anchors)) for key in ("prompts=1", "pool=0")]
    train(load_recipe(f"tiny/{name}", [*TWO, *fewer]), tmp_path)
    rows = logged(tmp_path)
    assert len(rows) == 2
    assert all(0 < row["optim/grad_norm"] < float("inf") and "loss/distill/divergence" in row for row in rows)


def test_trace_runs_no_teacher_after_its_phase_out(tmp_path: Path) -> None:
    run = Run(load_recipe("tiny/trace", [*TWO, "steps=50"]), tmp_path)
    for at, kinds in ((0, {"grpo", "distill"}), (39, {"grpo", "distill"}), (40, {"grpo"}), (49, {"grpo"})):
        run.progress.step = at
        _, signals = collect(run, at)
        assert {one.stream for one in signals} == kinds


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
def test_the_bridge_runs_its_four_stages(tmp_path: Path) -> None:
    fewer = [f"stages.{place}.{key}" for place in range(4) for key in ("steps=2", "prompts=3")]
    config = load_any("tiny/bridge", [*fewer, "threads=1", "loggers=[]", "report=null", "log_rollouts=0"])
    assert isinstance(config, StagedConfig)
    starts = [config.source_of(place) for place in range(4)]
    check_stages([one.name for one in config.stages], starts, [one.run for one in config.stages])
    train_stages(config, tmp_path, lambda config, folder: None, lambda before, after: {})
    rows = [logged(folder) for folder in sorted((tmp_path / "stages").iterdir())]
    assert [len(one) for one in rows] == [2] * 4
    assert [["rollout/by_teacher" in row for row in one] for one in rows] == [[False] * 2, [True] * 2, [False] * 2, [False] * 2]
    assert rows[1][0]["loss/distill/divergence"] > 0, "the teacher is the one that was trained in the first stage"


def test_a_step_follows_the_teacher(tmp_path: Path) -> None:
    """The loop asks the teacher to follow once a step, whatever the number of updates."""
    run = Run(recipe(teacher={"weights": "sync", "every": 1}, updates_per_step=2), tmp_path)
    step(run)
    assert run.teacher is not None
    assert run.teacher.moved_at == 1
    pairs = zip(run.teacher.vlm.model.parameters(), run.vlm.model.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
