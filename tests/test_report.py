"""The report: made from the files of a run folder alone, complete in itself, and true to the numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import fake_run
import numpy as np
import pytest

from foveate.train.charts import Change, Series, before_after, line_chart, smoothed, ticks
from foveate.train.recorder import IMAGES, Recorder, RunFolderError
from foveate.train.report import RunFiles, cases, data_uri, heat, signed, view_changes, write_report
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
    (tmp_path / "run/evaluations/step_000001.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"step_000001\.json"):
        write_report(tmp_path / "run")


def test_large_pictures_are_embedded_small_and_missing_ones_are_said(tmp_path: Path) -> None:
    photo = Picture.of(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8))
    name = photo.save_png(tmp_path / IMAGES)
    found = data_uri(tmp_path / IMAGES, name)
    assert found["uri"].startswith("data:image/jpeg;base64,")
    assert len(found["uri"]) < (tmp_path / IMAGES / name).stat().st_size / 4
    assert not found["small"]
    assert data_uri(tmp_path / IMAGES, "gone.png") == {"uri": "", "small": False}


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


def test_tiny_and_constant_values_have_axes() -> None:
    assert ticks(1e-13, 1e-13)[0] < ticks(1e-13, 1e-13)[-1]
    assert ticks(0.0, 3e-14) == [0.0, 1e-14, 2e-14, 3e-14]
    assert line_chart("lr", [Series("lr", [1, 2], [1e-13, 1e-13])])
