"""`foveate eval` as a person uses it: a table, a page, a second start, a comparison, clear mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from foveate.datasets.scenes import samples

Run = Callable[..., tuple[int, str, str]]


def test_four_modes_in_one_table(foveate: Run, tmp_path: Path) -> None:
    status, said, _ = foveate(
        "eval", "tiny", "--bench", "synth=detail:test:24", "--mode", "direct,crop,imagine,tools", "--to", str(tmp_path)
    )
    assert status == 0
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.split()[:2][1:] == ["24"]}
    assert list(rows) == ["direct", "crop", "imagine", "tools"]
    found = json.loads((tmp_path / "summary.json").read_text())
    for name, mode in found["modes"].items():
        assert rows[name][2] == f"{100 * mode['overall']['value']:.1f}"
        assert mode["cost"]["tokens_out"] > 0
        assert mode["cost"]["seconds"] > 0
    assert found["modes"]["crop"]["overall"]["value"] >= 0.9
    assert found["modes"]["tools"]["cost"]["calls"] == 1
    assert "From the whole picture to its evidence" in said
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 4 * 24


def test_somebodys_own_questions_and_a_comparison(foveate: Run, tmp_path: Path) -> None:
    made = samples("detail", "dev", 6)
    lines = []
    for k, sample in enumerate(made):
        sample.images[0].rgb().save(tmp_path / f"{k}.png")
        lines.append({"id": f"q{k}", "image": f"{k}.png", "question": sample.question, "answer": sample.answer})
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bench = f"custom={tmp_path / 'mine.jsonl'}"
    assert foveate("eval", "tiny", "--bench", bench, "--to", str(tmp_path / "a"))[0] == 0
    assert foveate("eval", "tiny", "--bench", bench, "--to", str(tmp_path / "b"), "--seed", "1")[0] == 0
    status, said, _ = foveate("eval", "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert status == 0
    assert "direct" in said
    assert "McNemar" in said
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["meta"]["source"]["num_rows"] == 6
    assert len(summary["meta"]["source"]["sha256"]) == 64


def test_what_tools_and_pictures_are_worth(foveate: Run, tmp_path: Path) -> None:
    status, said, _ = foveate(
        "eval", "tiny", "--bench", "synth=place:test:24", "--mode", "direct,tools,tools-grey", "--corrupt", "blank_image",
        "--to", str(tmp_path),
    )  # fmt: skip
    assert status == 0
    assert "What the tools' pictures are worth" in said
    assert "Clean minus corrupted" in said
    modes = json.loads((tmp_path / "summary.json").read_text())["modes"]
    assert modes["tools"]["overall"]["value"] - modes["tools-grey"]["overall"]["value"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bench", "vstarr=x"), "did you mean vstar"),
        (("--bench", "vstar=nowhere.tsv"), "nowhere.tsv"),
        (("--bench", "synth", "--mode", "dirct"), "direct"),
        (("--bench", "synth", "--shard", "4/4"), "expected i/n"),
        (("--bench", "synth", "--options", "random"), "expected shuffled"),
        (("--bench", "synth", "--corrupt", "noise"), "blank_image"),
        (("--bench", "synth", "--server", "localhost"), "http://"),
        (("--bench", "synth=nowhere"), "expected WORLD"),
    ],
)
def test_mistakes_are_said_in_one_paragraph(foveate: Run, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    status, _, shown = foveate("eval", "tiny", *arguments, "--to", str(tmp_path / "out"))
    assert status == 2
    assert said in " ".join(shown.split())
    assert "Traceback" not in shown


def test_benchmarks_are_listed(foveate: Run) -> None:
    status, said, _ = foveate("eval", "tiny", "--bench", "list")
    assert status == 0
    names = {line.split()[0] for line in said.splitlines()}
    assert {"vstar", "hrbench-4k", "treebench", "mathvista", "video-mme", "synth"} <= names


def test_killed_and_started_again_it_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "foveate", "eval", "tiny", "--bench", "synth=detail:test:160", "--mode", "direct,imagine"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    target = tmp_path / "killed"
    deaths = 0
    for _ in range(4):
        process = subprocess.Popen([*command, "--to", str(target)], env=environment, stderr=subprocess.DEVNULL)
        before = _lines(target)
        deadline = time.monotonic() + 60
        while process.poll() is None and _lines(target) <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            deaths += 1
        process.wait()
    assert deaths >= 2
    for folder in (target, tmp_path / "whole"):
        subprocess.run([*command, "--to", str(folder)], env=environment, check=True, capture_output=True)
    killed, whole = (
        {(row["mode"], row["item"]): (row["outcome"], row["texts"]) for row in map(json.loads, _text(folder).splitlines())}
        for folder in (target, tmp_path / "whole")
    )
    assert killed == whole
    assert len(_text(target).splitlines()) == 320


def _text(folder: Path) -> str:
    path = folder / "rows.jsonl"
    return path.read_text() if path.exists() else ""


def _lines(folder: Path) -> int:
    return _text(folder).count("\n")


def test_a_picture_that_is_gone_is_named_before_anything_is_asked(foveate: Run, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows = [{"id": "here", "image": "a.png"}, {"id": "gone", "image": "gone.png"}]
    text = "".join(json.dumps({**row, "question": "What letter is on the red circle?", "answer": "K"}) + "\n" for row in rows)
    (tmp_path / "mine.jsonl").write_text(text)
    status, _, shown = foveate("eval", "tiny", "--bench", f"custom={tmp_path / 'mine.jsonl'}", "--to", str(tmp_path / "out"))
    assert status == 2
    assert "mine.jsonl, line 2: no picture 'gone.png'" in " ".join(shown.split())
