"""The report: made from the files of a run folder alone, complete in itself, and true to the numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import fake_run
import numpy as np
import pytest

from foveate.train.charts import Band, Change, Series, before_after, line_chart, smoothed, ticks
from foveate.train.pages import embedded, heat, prepared, signed
from foveate.train.recorder import IMAGES, Recorder, RunFolderError
from foveate.train.report import cases, view_changes, write_report
from foveate.train.run_files import RunFiles
from foveate.vlm.images import Picture


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vision_opd"
    fake_run.write(folder, steps=80)
    return folder


def test_the_report_needs_only_the_folder_and_nothing_from_outside(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "elsewhere")
    page = write_report(moved).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("http-equiv", "")
    assert str(run) not in page
    assert page.count('<article class="case">') == 10
    for part in (
        "Before and after",
        "Held-out accuracy",
        "Divergence to the teacher",
        "What student and teacher saw",
        "name: vision_opd",
        "1 min 44 s",
    ):
        assert part in page


def test_before_and_after_count_single_items(run: Path) -> None:
    full = view_changes(RunFiles(run))[0]
    first = json.loads((run / "evaluations/step_000000.json").read_text(encoding="utf-8"))["views"]["full"]["right"]
    last = json.loads((run / "evaluations/step_000080.json").read_text(encoding="utf-8"))["views"]["full"]["right"]
    assert full["fixed"] == sum(b > a for a, b in zip(first, last, strict=True))
    assert full["broken"] == sum(b < a for a, b in zip(first, last, strict=True))
    assert full["fixed"] + full["broken"] + full["kept"] + full["missed"] == len(first)
    assert full["points"] == pytest.approx(100 * (sum(last) - sum(first)) / len(first))
    assert full["gain_ci95"] == pytest.approx([11.2, 15.8])
    assert full["verdict"] == "up"
    assert view_changes(RunFiles(run))[1]["verdict"] == "level", "an interval around zero is no change"


def test_cases_show_the_changed_ones_first_with_both_views(run: Path) -> None:
    shown = cases(RunFiles(run))
    kinds = [case["kind"] for case in shown]
    changed = [kind for kind in kinds if kind in ("fixed", "broken")]
    assert changed
    assert kinds[: len(changed)] == changed
    for case in shown:
        assert [view["name"] for view in case["views"]] == ["full", "crop"]
        assert (case["before"]["outcome"], case["after"]["outcome"]) == {
            "fixed": ("wrong", "right"), "broken": ("right", "wrong"), "kept": ("right", "right"), "missed": ("wrong", "wrong"),
        }[case["kind"]]  # fmt: skip


def test_a_run_that_is_not_complete_has_a_report(tmp_path: Path) -> None:
    fake_run.write(tmp_path / "run", steps=5, complete=False)
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "not complete: step 5 of 200" in page
    assert "Before and after" not in page
    bare = Recorder(tmp_path / "bare", fake_run.CONFIG, loggers=())
    bare.close()
    assert "not complete: step 0" in write_report(tmp_path / "bare").read_text(encoding="utf-8")


def test_text_of_a_model_cannot_become_markup(tmp_path: Path) -> None:
    fake_run.write(tmp_path / "run", steps=2)
    path = tmp_path / "run/evaluations/step_000002.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<answer>", "<script>alert(1)</script>"), encoding="utf-8")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_folders_that_hold_no_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no config\.yaml"):
        write_report(tmp_path)
    fake_run.write(tmp_path / "run", steps=1)
    (tmp_path / "run/config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(RunFolderError, match="not readable as YAML"):
        write_report(tmp_path / "run")


def test_what_cannot_be_read_is_left_out_and_said(tmp_path: Path) -> None:
    fake_run.write(tmp_path / "run", steps=2)
    (tmp_path / "run/evaluations/step_000002.json").write_text("{", encoding="utf-8")
    with (tmp_path / "run/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "loss/to')
    rollouts = tmp_path / "run/rollouts/step_000001.jsonl"
    whole = rollouts.read_text(encoding="utf-8").splitlines(keepends=True)
    broken = json.dumps({**json.loads(whole[0]), "turns": [{"tokens": ["a"], "divergence": [1, 2]}]}) + "\n"
    rollouts.write_text("[1]\n" + broken + whole[0], encoding="utf-8")
    for picture in (tmp_path / "run" / IMAGES).glob("*.png"):
        picture.write_bytes(picture.read_bytes()[:40])  # cut short by a kill
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    for part in (
        "step_000002.json: not JSON",
        "metrics.jsonl, line 5: the last line, torn by a kill or still being written",
        "step_000001.jsonl, line 1: expected an object with turns",
        "turn 1 has 1 tokens but 2 of divergence",
        "is not in images/",
    ):
        assert part in page, part
    assert page.count('<article class="rollout">') == 1 + 3


def test_every_token_has_its_colour_its_numbers_and_what_else_could_have_been_said(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count('style="--heat:1.0" tabindex="-1"') == 3, "0.6 nats at the first step's second tokens"
    row = prepared(json.loads((run / "rollouts/step_000001.jsonl").read_text(encoding="utf-8").splitlines()[0]))
    (turn,) = row["turns"]
    data = json.loads(turn["data"])
    assert data["s"][1] == [["K", 0.75], ["<b>", 0.2], ["Z", 0.05]]
    assert data["t"][1] == [["Z", 0.9], ["K", 0.1]]
    assert data["l"] == [-0.01, -1.4, -0.02, -0.01]
    assert [text for text, _ in turn["tokens"]] == ["<answer>", "K", "</answer>", "<|im_end|>"]
    assert turn["tokens"][0][1] == pytest.approx((0.001 / 0.5) ** 0.5, abs=5e-4)
    assert row["measure"].startswith("Jensen-Shannon divergence; the teacher reads")
    assert "&lt;b&gt;" in page
    assert "<b>&#34;" not in page


def test_a_call_is_a_box_on_the_picture_that_it_was_cut_from(tmp_path: Path) -> None:
    fake_run.write_tools(tmp_path / "run", (1,))
    row = prepared(json.loads((tmp_path / "run/rollouts/step_000001.jsonl").read_text(encoding="utf-8").splitlines()[1]))
    (picture,) = (part for message in row["student"] for part in message["content"] if part["type"] == "image")
    side = picture["size_px"][0]
    assert picture["marks"] == [{"x": 0.0, "y": 0.0, "width": side / 2, "height": side / 2, "number": 1}]
    shown = row["turns"][0]["observation"]["content"][1]
    assert (shown["size_px"], shown["marks"]) == ([side // 2, side // 2], [])
    assert row["turns"][0]["calls"][0] | {"arguments": ""} == {
        "number": 1, "name": "zoom", "arguments": "", "box": f"0, 0, {side // 2}, {side // 2}", "times": "", "error": "",
    }  # fmt: skip
    assert (row["advantage"], row["mean_nats"], row["measure"]) == ("\u22120.800", None, "")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert f'<rect x="0.0" y="0.0" width="{side / 2}" height="{side / 2}"/>' in page
    assert "this run has no teacher and no reference" in page


def test_a_second_call_into_a_tools_picture_is_marked_there_and_a_clip_counts_once() -> None:
    def part(name: str) -> dict[str, object]:
        return {"type": "image", "image": name, "size_px": [10, 10]}

    def turn(image: int) -> dict[str, object]:
        call = {"name": "zoom", "image": image, "box_px_xyxy": [1, 2, 3, 5]}
        return {"text": "", "calls": [call], "observation": {"role": "tool", "content": [part(f"{image}.png")]}}

    clip = {"type": "video", "frames": ["f.png", "g.png"], "times_s": [0, 1]}
    student = [{"role": "user", "content": [clip, part("a.png")]}]
    row = prepared({"student": student, "teacher": student, "turns": [turn(1), turn(2), turn(9)]})
    assert [[mark["number"] for mark in one["marks"]] for one in row["student"][0]["content"]] == [[], [1]]
    seen = [one["observation"]["content"][0]["marks"] for one in row["turns"]]
    assert seen == [[{"x": 1.0, "y": 2.0, "width": 2.0, "height": 3.0, "number": 2}], [], []]
    assert not any(one["marks"] for one in row["teacher"][0]["content"])


def test_stages_are_one_run_whose_steps_count_on(tmp_path: Path) -> None:
    fake_run.write_staged(tmp_path / "run", complete=False)
    run = RunFiles(tmp_path / "run")
    assert [(one.name, one.after, one.last) for one in run.stages] == [("look", 0, 5), ("tools", 5, 15)]
    assert [row["step"] for row in run.metrics] == list(range(1, 16))
    assert (run.metrics[5]["stage"], run.metrics[5]["stage_step"]) == ("tools", 1)
    assert [(one.step, one.stage) for one in run.rollout_files] == [
        (1, "look"), (5, "look"), (6, "tools"), (10, "tools"), (15, "tools"),
    ]  # fmt: skip
    assert [one["step"] for one in run.evaluations] == [0, 5]
    assert (run.step, run.steps, run.name) == (15, 35, "staged")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    for part in ("not complete: step 15 of 35", ">tools</text>", "Step 6, stage tools", "2 stages: look, then tools"):
        assert part in page, part
    assert 'class="stage"' in page
    loss = page.partition("<b>Loss</b>")[2].partition("</figure>")[0].partition('<path class="line c1" d="')[2].partition('"')[0]
    assert [part.count(",") for part in loss.split("M")[1:]] == [5, 10], "no line leads from one stage's loss to the next one's"
    assert RunFiles(tmp_path / "run/stages/02_tools").metrics[0]["step"] == 1, "a stage alone is a run as any other"


def test_a_stage_that_does_not_say_its_steps_leaves_their_number_open(tmp_path: Path) -> None:
    fake_run.write_staged(tmp_path / "run", complete=False)
    (tmp_path / "run/config.yaml").write_text("name: staged\nstages: [look, tools]\n", encoding="utf-8")
    run = RunFiles(tmp_path / "run")
    assert (run.step, run.steps) == (15, None)
    assert "not complete: step 15<" in write_report(tmp_path / "run").read_text(encoding="utf-8")


def test_what_was_measured_before_and_after_the_stages_is_the_runs_before_and_after(tmp_path: Path) -> None:
    fake_run.write_staged(tmp_path / "run")
    run = RunFiles(tmp_path / "run")
    assert [(one["step"], one["views"]["full"]["accuracy"]) for one in run.whole] == [(0, 0.5), (5, 0.625), (15, 0.75)]
    (full,) = view_changes(run)
    assert full["points"] == 25.0
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Accuracy before and after the stages" in page
    assert "accuracy went from 50.0 % to" in page
    assert "full 62.5 % after it" in page


def test_stages_with_other_held_out_items_are_not_compared(tmp_path: Path) -> None:
    fake_run.write(tmp_path / "run", steps=2)
    path = tmp_path / "run/evaluations/step_000002.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["views"]["full"]["ids"] = ["others"]
    path.write_text(json.dumps(found), encoding="utf-8")
    assert [one["name"] for one in view_changes(RunFiles(tmp_path / "run"))] == ["crop", "tools"]


def test_large_pictures_are_embedded_small_and_missing_ones_are_said(tmp_path: Path) -> None:
    photo = Picture.of(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8))
    name = photo.save_png(tmp_path / IMAGES)
    found = embedded(tmp_path / IMAGES / name)
    assert found["uri"].startswith("data:image/jpeg;base64,")
    assert len(found["uri"]) < (tmp_path / IMAGES / name).stat().st_size / 4
    assert not found["small"]
    assert embedded(tmp_path / IMAGES / "gone.png") == {"uri": "", "small": False}


def test_no_picture_outside_the_folder_is_embedded(tmp_path: Path) -> None:
    fake_run.write(tmp_path / "run", steps=1)
    run = RunFiles(tmp_path / "run")
    name = next((tmp_path / "run" / IMAGES).glob("*.png")).name
    shutil.copy(tmp_path / "run" / IMAGES / name, tmp_path / "secret.png")
    (tmp_path / "run" / IMAGES / "link.png").symlink_to(tmp_path / "secret.png")
    assert run.picture(name) is not None
    for hidden in (".hidden.png", "notes.yaml"):
        (tmp_path / "run" / IMAGES / hidden).write_text("not for you", encoding="utf-8")
    for wrong in (
        "../config.yaml",
        "notes.yaml",
        "../../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        ".hidden.png",
        "..",
        "",
        "a.jpg",
        name + "\n",
    ):
        assert run.picture(wrong) is None, wrong


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 0.93, [0, 0.25, 0.5, 0.75, 1]),
        (1.0, 1.0, [1, 1.25, 1.5, 1.75, 2]),
        (-3.0, 5.0, [-4, -2, 0, 2, 4, 6]),
        (0, 2e-5, [0, 5e-6, 1e-5, 1.5e-5, 2e-5]),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_charts_put_values_where_they_belong() -> None:
    chart = line_chart("A & B", [Series("x", [0, 10], [0.0, 1.0])])
    assert 'd="M46.0,182.0L406.0,12.0"' in chart  # lower left to upper right of the box
    assert "A &amp; B" in chart
    assert line_chart("empty", [Series("x", [], [])]) == ""
    for flat in ([1.0, 1.0], [0.0, 0.0]):
        assert "<path" in line_chart("shares that do not move", [Series("x", [1, 2], flat)], percent=True)
    staged = line_chart("x", [Series("x", [1, 10], [0.0, 1.0])], bands=[Band("a <b>", 0, 5), Band("later", 5, 10)])
    assert 'd="M82.0,182.0L406.0,12.0"' in staged  # the axis starts where the first stage does: step 0 at 46, 10 at 406
    assert '<rect class="stage" x="226.0" width="180.0"' in staged
    assert "a &lt;b&gt;</text>" in staged
    moved = before_after([Change("full", 0.5, (0.4, 0.6), 0.7, (0.6, 0.8))])
    assert ">50.0<" in moved
    assert ">70.0<" in moved


def test_smoothing_does_not_lag_and_keeps_a_constant() -> None:
    assert smoothed([2.0] * 100) == [2.0] * 100
    line = [float(x) for x in range(200)]
    assert smoothed(line)[100] == 100.0


def test_heat_and_signs() -> None:
    assert heat([0.0, 0.125, 0.5, 9.0]) == [0.0, 0.5, 1.0, 1.0]
    assert [signed(points) for points in (12.34, -0.26, -0.04, 0.0)] == ["+12.3", "\u22120.3", "0.0", "0.0"]
    assert signed(-0.0004, 3) == "0.000"
    assert signed(-0.0006, 3) == "\u22120.001"


def test_tiny_and_constant_values_have_axes() -> None:
    assert ticks(1e-13, 1e-13)[0] < ticks(1e-13, 1e-13)[-1]
    assert ticks(0.0, 3e-14) == [0.0, 1e-14, 2e-14, 3e-14]
    assert line_chart("lr", [Series("lr", [1, 2], [1e-13, 1e-13])])
    assert line_chart("constant", [Series("x", list(range(100)), [0.98] * 100)]), "its smoothed values differ by rounding"
