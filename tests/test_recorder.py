"""The run folder: what is written, what a resumed run keeps, and that nothing torn or mixed goes unnoticed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_run import CONFIG, TEXTS, look_of, signal

from foveate.datasets.scenes import samples
from foveate.train.progress import ProgressBar, duration
from foveate.train.recorder import Recorder, RunFolderError, check_same_recipe, parse_rows, write_atomically
from foveate.train.showing import Look


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def result(step: int, accuracy: float, whole: bool = True) -> dict[str, Any]:
    return {
        "step": step,
        "whole": whole,
        "views": {"full": {"accuracy": accuracy, "ci95": [0.0, 1.0], "n": 4, "right": [1, 0, 0, 0]}},
    }


def test_metrics_keep_full_precision_and_say_null_for_nan(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, CONFIG, loggers=())
    recorder.metrics(1, {"loss/total": 1 / 3, "optim/grad_norm": float("nan")})
    assert rows(tmp_path) == [{"step": 1, "loss/total": 1 / 3, "optim/grad_norm": None}]
    assert recorder.last["loss/total"] == 1 / 3
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == CONFIG


def test_rewind_leaves_what_an_undisturbed_run_would_have(tmp_path: Path) -> None:
    """Checkpoint at step 2, killed in the middle of writing step 4, gone on from 2: the same rows as never killed."""

    def step(recorder: Recorder, number: int) -> None:
        recorder.metrics(number, {"loss/total": 1.0 / number})
        recorder.rollouts(number, [])
        if number % 2 == 0:
            recorder.evaluation(number, result(number, number / 10, whole=False))

    def start(folder: Path, step_number: int) -> Recorder:
        recorder = Recorder(folder, CONFIG, loggers=())
        recorder.rewind(step_number)
        return recorder

    straight = start(tmp_path / "straight", 0)
    killed = start(tmp_path / "killed", 0)
    for recorder in (straight, killed):
        recorder.evaluation(0, result(0, 0.1))
        for number in (1, 2, 3, 4):
            step(recorder, number)
    with (tmp_path / "killed" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss/to')
    (tmp_path / "killed" / "summary.json").write_text("{}", encoding="utf-8")
    again = start(tmp_path / "killed", 2)
    assert [row["step"] for row in rows(tmp_path / "killed")] == [0, 1, 2, 2]
    assert sorted(path.name for path in (tmp_path / "killed" / "evaluations").iterdir()) == [
        "step_000000.json",
        "step_000002_part.json",
    ]
    assert sorted(path.name for path in (tmp_path / "killed" / "rollouts").iterdir()) == [
        "step_000001.jsonl",
        "step_000002.jsonl",
    ]
    assert not (tmp_path / "killed" / "summary.json").exists()
    for number in (3, 4, 5):
        step(again, number)
    step(straight, 5)
    assert rows(tmp_path / "killed") == rows(tmp_path / "straight")
    starts = (tmp_path / "killed" / "starts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["after_step"] for line in starts] == [0, 2]


def test_an_evaluation_made_twice_is_recorded_once(tmp_path: Path) -> None:
    """Killed between the last evaluation and the summary, a run evaluates its last step again."""
    recorder = Recorder(tmp_path, CONFIG, loggers=())
    recorder.metrics(8, {"loss/total": 0.5})
    recorder.evaluation(8, result(8, 0.25, whole=False))
    recorder.evaluation(8, result(8, 0.5))
    recorder.evaluation(8, result(8, 0.5))
    assert [(row["step"], row.get("eval/full/accuracy")) for row in rows(tmp_path)] == [(8, None), (8, 0.25), (8, 0.5)]


def test_a_torn_line_is_forgiven_only_at_the_end() -> None:
    assert parse_rows('{"step": 1}\n{"st') == [{"step": 1}]
    with pytest.raises(RunFolderError, match="line 1"):
        parse_rows('{"st\n{"step": 2}\n')


def test_a_line_separator_in_a_models_text_ends_no_line() -> None:
    row = {"text": "one\u2028two\x85three"}
    assert parse_rows(json.dumps(row, ensure_ascii=False) + "\n" + '{"step": 2}\n') == [row, {"step": 2}]


def test_another_recipe_in_the_folder_is_refused(tmp_path: Path) -> None:
    Recorder(tmp_path, CONFIG, loggers=())
    check_same_recipe(tmp_path, CONFIG + "threads: 2\nlog_rollouts: 1\n")
    with pytest.raises(RunFolderError, match="seed: 0 there, 1 now"):
        Recorder(tmp_path, CONFIG.replace("seed: 0", "seed: 1"), loggers=())
    with pytest.raises(RunFolderError, match="anchors"):
        check_same_recipe(tmp_path, CONFIG.replace("prompts: 12", "prompts: 13"))


def test_rollouts_hold_both_views_and_every_picture_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, CONFIG, loggers=(), token_text=TEXTS.__getitem__)
    sample = next(iter(samples("detail", "train", 1)))
    made = [signal(sample, 0), signal(sample, 1)]
    recorder.rollouts(3, made, [look_of(made[0], 0.5), Look([[((2, 1.0),)] * 4])])
    recorder.first_batch(made)
    first, second = parse_rows((tmp_path / "rollouts" / "step_000003.jsonl").read_text(encoding="utf-8"))
    assert first["turns"][0]["divergence"] == [0.001, 0.5, 0.001, 0.001]
    assert first["turns"][0]["top_student"][1] == [["K", 0.75], ["<b>", 0.2], ["Z", 0.05]]
    assert first["turns"][0]["top_teacher"][1] == [["Z", 0.9], ["K", 0.1]]
    assert first["measure"] == {"divergence": "jsd", "beta": 0.5, "view": "teacher"}
    assert second["turns"][0].keys().isdisjoint({"divergence", "top_teacher"}), "a run without a teacher"
    assert second["turns"][0]["top_student"] == [[["K", 1.0]]] * 4
    assert second["measure"] is None
    assert first["turns"][0]["tokens"] == ["<answer>", "K", "</answer>", "<|im_end|>"]
    assert first["turns"][0]["ids"] == [1, 2, 3, 4]
    named = {
        part["image"]
        for side in ("student", "teacher")
        for message in first[side]
        for part in message["content"]
        if part["type"] == "image"
    }
    assert named == {path.name for path in (tmp_path / "images").iterdir()}
    assert len(named) == 2, "the student's picture and the crop"
    page = (tmp_path / "first_batch.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert sample.question in page


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    write_atomically(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "new \ud800")
    assert target.read_text(encoding="utf-8") == "old"


def test_tensorboard_purges_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed_after, steps in ((0, (1, 2, 3, 4)), (2, (3,))):
        recorder = Recorder(tmp_path, CONFIG, loggers=("tensorboard",))
        recorder.rewind(resumed_after)
        for step in steps:
            recorder.metrics(step, {"loss/total": 10.0 * resumed_after + step, "bad": float("inf")})
        recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(1, 1.0), (2, 2.0), (3, 23.0)]
    assert events.Tags()["scalars"] == ["loss/total"], "a value that is not finite has no place on a curve"


class FakeTracker(ModuleType):
    """Stands for wandb or trackio: notes what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[Any, ...]] = []

    def init(self, **settings: Any) -> SimpleNamespace:
        self.calls.append(("init", settings["project"], settings["config"]["name"], settings.get("id"), settings["resume"]))
        return SimpleNamespace(
            log=lambda values: self.calls.append(("log", values)),
            define_metric=lambda name, step_metric=None: None,
            finish=lambda: self.calls.append(("finish",)),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", {"step": step, **values}))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_optional_loggers_get_every_step_and_one_run_per_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = FakeTracker(name)
    monkeypatch.setitem(sys.modules, name, tracker)
    for resumed_after in (0, 1):
        recorder = Recorder(tmp_path, CONFIG, loggers=(name,))
        recorder.rewind(resumed_after)
        recorder.metrics(resumed_after + 1, {"loss/total": 0.5, "bad": float("nan")})
        recorder.close()
    starts = [call for call in tracker.calls if call[0] == "init"]
    assert starts[0] == starts[1], "a resumed run goes on in the same one"
    assert starts[0][1:3] == ("foveate", "vision_opd")
    assert [call[1] for call in tracker.calls if call[0] == "log"] == [
        {"step": 1, "loss/total": 0.5},
        {"step": 2, "loss/total": 0.5},
    ]
    assert sum(call == ("finish",) for call in tracker.calls) == 2


def test_a_logger_that_is_not_there_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        Recorder(tmp_path / "run", CONFIG, loggers=("wandb",))
    assert not (tmp_path / "run").exists()


def test_progress_says_how_long_it_still_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    text = io.StringIO()
    with ProgressBar("run", 10, 40, Console(file=text, force_terminal=False, width=200)) as bar:
        for step in (11, 12, 13):
            now[0] += 20.0
            bar.show(step, {"loss/total": 0.25})
    assert "going on after step 10 of 40" in text.getvalue()
    assert "step 13 of 40  loss 0.25  20.00 s/step  9 min 00 s left" in text.getvalue()  # 27 steps of 20 s
    assert [duration(seconds) for seconds in (59.4, 60, 7500)] == ["59 s", "1 min 00 s", "2 h 05 min"]


def test_the_difference_to_another_recipe_names_the_place_in_a_list(tmp_path: Path) -> None:
    Recorder(tmp_path, "anchors:\n- {name: crop, pool: 8}\n", loggers=())
    with pytest.raises(RunFolderError, match=r"anchors\.0\.pool: 8 there, 512 now"):
        Recorder(tmp_path, "anchors:\n- {name: crop, pool: 512}\n", loggers=())
