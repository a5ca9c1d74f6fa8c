"""Staged recipes: what a file may say, where stages start, gates, rehearsal, and one resume for all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from foveate.run_folder import prepare
from foveate.runs import run_recipe
from foveate.train.config import RunConfig
from foveate.train.recipes import RecipeError, dump_recipe, load_any, load_recipe, parse_staged, recipe_schema
from foveate.train.recorder import RunFolderError
from foveate.train.run import Run
from foveate.train.staged import StagedConfig, merged, rehearsing
from foveate.train.stages import GateMissed, train_stages
from foveate.vlm.folder import LoadError, resolve
from foveate.vlm.load import VLM

TRAIN = {"synth": "detail", "n": 64, "seed": 5}
RECIPE: dict[str, Any] = {
    "name": "two",
    "model": "tiny",
    "threads": 1,
    "loggers": [],
    "student": "tiny.full",
    "prompts": 2,
    "rollouts": 2,
    "sampling": {"max_new_tokens": 8},
    "signals": [{"kind": "sft"}],
    "optimizer": {"lr": 1e-3},
    "eval": {"data": {"synth": "detail", "split": "dev", "n": 4}, "views": {"full": "tiny.full"}, "every": 2},
    "checkpoint": {"every": 2},
    "stages": [
        {"name": "look", "kind": "sft", "steps": 4, "data": TRAIN, "gate": {"view": "full"}},
        {"name": "think", "kind": "rl", "steps": 4, "data": {**TRAIN, "as_text": True}, "signals": [{"kind": "grpo"}]},
    ],
    "report": {"data": {"synth": "detail", "split": "test", "n": 4}, "views": {"full": "tiny.full"}},
}


def recipe(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(RECIPE)), **changes}


def with_stage(place: int, **changes: Any) -> dict[str, Any]:
    made = recipe()
    made["stages"][place] |= changes
    return made


def test_a_stages_keys_win_entry_by_entry_where_parts_are_merged() -> None:
    common = {"model": "tiny", "optimizer": {"lr": 1e-3, "clip_norm": 2.0}, "data": {"synth": "detail", "n": 9}}
    own = {"model": {"freeze": ["vision"]}, "optimizer": {"lr": 2e-3}, "data": {"path": "a.jsonl"}}
    assert merged(common, own) == {
        "model": {"name": "tiny", "freeze": ["vision"]},
        "optimizer": {"lr": 2e-3, "clip_norm": 2.0},
        "data": {"path": "a.jsonl"},
    }
    assert merged({"eval": {"every": 3}}, {"eval": None})["eval"] is None


def test_a_staged_recipe_survives_a_round_trip_and_gives_single_stages(tmp_path: Path) -> None:
    config = parse_staged(recipe())
    assert parse_staged(yaml.safe_load(dump_recipe(config))) == config
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe()))
    changed = load_any(path, ["stages.1.steps=7", "seed=3"])
    assert isinstance(changed, StagedConfig)
    assert [(stage.run.steps, stage.run.seed) for stage in changed.stages] == [(4, 3), (7, 3)]
    assert load_recipe(f"{path}#think").steps == 4
    with pytest.raises(RecipeError, match=r"it has the stages look, think, and here one is needed; write .*#look"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"has no stage thin; it has look, think"):
        load_recipe(f"{path}#thin")


def test_the_schema_knows_stages() -> None:
    plain, staged = recipe_schema()["anyOf"]
    assert set(plain["properties"]) == set(RunConfig.model_fields)
    own = staged["properties"]["stages"]["items"]["properties"]
    assert set(own) == set(RunConfig.model_fields) | {"kind", "start", "rehearse"}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (with_stage(1, kind="opd"), r"stages.1 \(think\).*kind opd has the signals distill, here are grpo"),
        (with_stage(1, stepps=3), r"stages.1 \(think\):\s+stepps: unknown key; did you mean steps"),
        (with_stage(1, name="look"), r"a name of its own"),
        (with_stage(0, start="best"), r"stage look: start: best means the stage before, and it is the first"),
        (with_stage(1, start="stage:later"), r"stage:later is not a stage before it \(look\)"),
        (with_stage(1, teacher={"path": "stage:think"}), r"stage:think is not a stage before it"),
        (with_stage(0, gate=None) | {}, None),
        (with_stage(0, gate={"view": "fulll"}), r"gate.view: 'fulll' is not one of eval.views"),
        (with_stage(0, gate={"view": "full"}, eval={"every": 0}), r"gate: .* set eval.every"),
        (
            with_stage(0, eval={"data": {"synth": "detail", "split": "test", "n": 4}}),
            r"gate.view: full is scored on the test split",
        ),
        (with_stage(0, rehearse=0.5), r"stage look: rehearse: there is no stage before it"),
        (with_stage(1, rehearse=0.5, student="full"), r"shows its samples in another view .*anchor"),
        (recipe(kind="rl"), r"kind belongs to a single stage"),
        (recipe(stages={}), r"stages is a list of mappings"),
        (
            recipe(report={"data": {"synth": "detail", "split": "dev", "n": 99}, "views": {"full": "tiny.full"}}),
            r"stage look: view full chooses its checkpoint on data that `report` measures",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(made: dict[str, Any], said: str | None) -> None:
    if said is None:
        assert parse_staged(made).source_of(1) == "stage:look/last"
        return
    with pytest.raises(RecipeError, match=r"(?s)" + said):
        parse_staged(made)


def test_where_stages_start() -> None:
    config = parse_staged(recipe())
    assert [config.source_of(place) for place in range(2)] == ["model", "stage:look/best"]
    for start, source in {"last": "stage:look/last", "stage:look": "stage:look/best", "model": "model", "a/b": "a/b"}.items():
        assert parse_staged(with_stage(1, start=start)).source_of(1) == source


def test_rehearsal_shares_are_those_asked_for() -> None:
    made = recipe()
    made["stages"][0]["data"] = {"mix": [{"data": TRAIN, "weight": 3}, {"data": {**TRAIN, "seed": 6}, "weight": 1}]}
    made["stages"][1] |= {"rehearse": 0.4}
    made["stages"].append({**made["stages"][1], "name": "both", "rehearse": 0.2, "data": {**TRAIN, "seed": 7}})
    second, third = rehearsing(parse_staged(made).stages)[1:]
    # of stage one's .4: .3 and .1; then .2 in two equal parts of .1, the first of them .075 and .025
    assert [part.weight for part in second.run.data.mix] == pytest.approx([0.6, 0.3, 0.1])
    assert [part.weight for part in third.run.data.mix] == pytest.approx([0.8, 0.075, 0.025, 0.1])
    assert [part.data.seed for part in third.run.data.mix] == [7, 5, 6, 5]


def gate_run(tmp_path: Path, values: list[float], **gate: Any) -> Run:
    config = parse_staged(with_stage(0, steps=50, gate={"view": "full", **gate})).stages[0].run
    scores = iter(values)

    def evaluator(vlm: VLM, step: int, whole: bool) -> dict[str, Any]:
        value = next(scores)
        found = {"accuracy": value, "right": [value], "ci95": [0, 1], "n": 1}
        return {"step": step, "whole": whole, "views": {"full": found}}

    run = Run(config, tmp_path, evaluator)
    for number in range(len(values)):
        run.progress.step = 2 * number
        run.evaluate(whole=False)
        if run.done:
            break
    run.recorder.close()
    return run


def test_a_gate_ends_a_run_when_it_is_reached(tmp_path: Path) -> None:
    run = gate_run(tmp_path, [0.95, 0.5, 0.91, 0.99], least=0.9)
    assert (run.progress.step, run.progress.ended) == (4, "full reached 0.910 (gate.least: 0.9)")  # not before the first step
    assert (run.progress.best_value, run.progress.best_step) == (0.95, 0)


def test_a_gate_may_wait_and_lose_patience(tmp_path: Path) -> None:
    assert gate_run(tmp_path / "a", [0.1, 0.9, 0.9, 0.9], least=0.9, least_steps=5).progress.step == 6
    assert not gate_run(tmp_path / "b", [0.1, 0.9, 0.8], least=0.9, stop_when_reached=False).progress.ended
    run = gate_run(tmp_path / "c", [0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.5], patience=2)
    assert (run.progress.step, run.progress.best_step) == (10, 6)
    assert run.progress.ended == "2 evaluations without a better full than 0.400"


def losses(folder: Path) -> list[tuple[str, list[Any]]]:
    """What every stage logged, seconds aside."""
    found = []
    for path in sorted(folder.glob("stages/*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found.append((path.parent.name, [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]))
    return found


REHEARSED = parse_staged(with_stage(1, rehearse=0.5))


class Killed(BaseException):
    """Stands for a kill that leaves no time for anything."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged run that nobody has disturbed."""
    folder = tmp_path_factory.mktemp("staged") / "whole"
    run_recipe(REHEARSED, folder, "")
    return folder


@pytest.mark.parametrize(("stage", "step"), [("look", 0), ("look", 2), ("look", 4), ("think", 2), ("think", 4), ("report", 1)])
def test_a_run_killed_in_any_stage_goes_on_with_the_same_numbers(
    stage: str, step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = [True]
    from foveate import runs

    made = runs.holdout_evaluator

    def deadly(recipe: RunConfig, images: Path | None = None) -> Any:
        evaluator = made(recipe, images)

        def evaluate(vlm: VLM, at: int, whole: bool) -> dict[str, Any]:
            assert evaluator is not None
            reporting = recipe.eval is not None and recipe.eval.data.split == "test"
            if waiting and at == step and (stage == "report" if reporting else stage == recipe.name):
                waiting.pop()
                raise Killed
            return evaluator(vlm, at, whole)

        return evaluate

    monkeypatch.setattr(runs, "holdout_evaluator", deadly)
    with pytest.raises(Killed):
        run_recipe(REHEARSED, tmp_path / "killed", "")
    run_recipe(REHEARSED, tmp_path / "killed", "")
    assert losses(tmp_path / "killed") == losses(whole)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, tmp_path / "killed")]
    for one in summaries:
        del one["seconds"], one["command"]
        for own in one["stages"]:
            del own["seconds"]
    assert summaries[0] == summaries[1]
    assert (whole / "report.html").is_file()
    assert resolve(whole).parent.parent.name == "02_think"


def test_a_missed_gate_says_which_number_and_what_to_change(tmp_path: Path) -> None:
    missed = with_stage(0, steps=2, gate={"view": "full", "least": 1.0})
    missed["eval"]["data"]["n"] = 64
    said = r"stage look missed its gate: the best accuracy in view full was 0\.\d+, at step \d of 2"
    with pytest.raises(GateMissed, match=said) as stop:
        run_recipe(parse_staged(missed), tmp_path, "")
    assert "stages.0.gate.on_miss=go_on" in str(stop.value)
    assert "--redo look" in str(stop.value)
    with pytest.raises(LoadError, match="not complete"):
        resolve(tmp_path)
    missed["stages"][0]["gate"]["on_miss"] = "go_on"  # what the message says, and nothing is trained twice
    going_on = parse_staged(missed)
    assert "after 1 of 2 stages" in prepare(tmp_path, going_on).note
    before = (tmp_path / "stages" / "01_look" / "metrics.jsonl").stat().st_mtime_ns
    run_recipe(going_on, tmp_path, "")
    assert (tmp_path / "stages" / "01_look" / "metrics.jsonl").stat().st_mtime_ns == before
    assert prepare(tmp_path, going_on).state == "complete"


def test_a_changed_stage_is_refused_and_may_be_done_again(tmp_path: Path) -> None:
    config = parse_staged(recipe())
    run_recipe(config, tmp_path, "")
    changed = parse_staged(with_stage(1, steps=2))
    with pytest.raises(RunFolderError, match=r"02_think holds a run of another recipe \(steps: 4 there, 2 now\).*--redo think"):
        prepare(tmp_path, changed)
    assert prepare(tmp_path, changed, redo="think").state == "unfinished"
    assert (tmp_path / "set_aside" / "1" / "stages" / "02_think" / "summary.json").is_file()
    summary = run_recipe(changed, tmp_path, "")
    assert [stage["steps"] for stage in summary["stages"]] == [4, 2]
    with pytest.raises(RunFolderError, match=r"--redo no: the recipe has the stages look, think"):
        prepare(tmp_path, changed, redo="no")


def test_a_stage_learns_from_what_an_earlier_one_has_left(tmp_path: Path) -> None:
    """The bridge's shape (2605.12483): one stage's model teaches the next, which starts from the recipe's own weights."""
    made = recipe(report=None)
    made["stages"][1] = {
        "name": "think",
        "kind": "opd",
        "steps": 1,
        "data": TRAIN,
        "start": "model",
        "teacher": {"path": "stage:look"},
        "signals": [{"kind": "distill", "teacher": "tiny.full", "divergence": "forward_kl"}],
    }
    config = parse_staged(made)
    seen: list[tuple[str | None, str | None]] = []
    from foveate.train import stages

    original = stages.train

    def spy(config: RunConfig, folder: Path, evaluator: Any, finish: Any, origin: Any) -> Any:
        seen.append((origin.model, origin.teacher))
        return original(config, folder, evaluator, finish, origin)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "train", spy)
        train_stages(config, tmp_path, lambda recipe, own: None if recipe.name == "think" else _four_right, lambda *_: {})
    best = json.loads((tmp_path / "stages" / "01_look" / "summary.json").read_text())["best_step"]
    assert seen == [("tiny", None), ("tiny", str(tmp_path / f"stages/01_look/checkpoints/step_{best:06d}"))]
    row = json.loads((tmp_path / "stages" / "02_think" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss/distill/divergence"] > 0  # the teacher has learned something that the student has not


def _four_right(vlm: VLM, step: int, whole: bool) -> dict[str, Any]:
    found = {"accuracy": step / 4, "right": [step / 4], "ci95": [0.0, 1.0], "n": 1}
    return {"step": step, "whole": whole, "views": {"full": found}}


@pytest.mark.parametrize("name", ["see_then_think", "see_then_think_merged"])
@pytest.mark.filterwarnings("ignore:step .*gradient norm")
def test_the_shipped_recipes_run(name: str, tmp_path: Path) -> None:
    small = ["prompts=2", "rollouts=2", "threads=1", "loggers=[]", "eval.every=1", "checkpoint.every=5"]
    small += [f"{part}.{data}.n=4" for part in ("eval", "report") for data in ("data", "extra.text", "extra.visual")]
    places = range(len(load_any(name).stages))  # type: ignore[union-attr]
    small += [f"stages.{place}.{change}" for place in places for change in ("steps=2", "gate.least=null")]
    summary = run_recipe(load_any(name, small), tmp_path, "")
    assert [stage["steps"] for stage in summary["stages"]] == [2] * len(places)
    assert summary["rollouts"] == 2 * 2 * 2 * len(places)
    assert set(summary["n"]) == {"letter", "text", "visual"}
