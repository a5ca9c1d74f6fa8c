"""Data made with models, from the source file to the rows: every row is kept or dropped for one counted reason, a kill loses
nothing, and nothing is asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faulty_server
import numpy as np
import pytest
from faulty_server import COLOURS

from foveate.asking import Model, Serving
from foveate.data_jobs import Report, Thoughts, hindsight_job, thoughts_job
from foveate.data_source import Source, open_source
from foveate.datasets.builders.perception import CAPTION_TEMPLATE
from foveate.datasets.crop_files import crops_command
from foveate.datasets.read import read
from foveate.datasets.scenes import scene_of
from foveate.datasets.trajectories import Trajectory, read_trajectories, write_trajectories
from foveate.datasets.views import resolve_view
from foveate.perception_job import Perception, perception_job
from foveate.vlm.images import Picture
from foveate.vlm.messages import Message
from foveate.vlm.records import Sample

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parent.parent
NAMES = tuple(COLOURS)


class FaultyServer(faulty_server.FaultyServer):
    """Does not take a prompt's own "never" for the sign to fail."""

    def fault(self, body: bytes) -> str | None:
        return super().fault(body.replace(b"never mention", b"").replace(b"never say", b""))


def model(url: str, name: str = "m", **changes: Any) -> Model:
    return Model(f"{url}={name}", Serving(**{"pause_s": 0.01, "timeout_s": 1.0, "workers": 4, "retries": 6, **changes}))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- perception: a writer and judges played by a server -----------------------------------------------------------------------


def captions(folder: Path, count: int) -> Path:
    """Pictures with a colour in the middle, and captions that name it. Row n's caption begins with "Sign n:"."""
    folder.mkdir(exist_ok=True)
    rows = []
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        pixels[12:36, 12:36] = COLOURS[NAMES[n % 4]]
        Picture.of(pixels).rgb().save(folder / f"{n}.png")
        rows.append({"id": f"row-{n}", "picture": f"{n}.png", "caption": f"Sign {n}: «{NAMES[n % 4]}» in der Mitte, 中央."})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder / "captions.jsonl"


def reply(chat: dict[str, Any]) -> str:
    """A writer (told "Write one multiple-choice question") and judges, by the number of the sign.

    4: the writer adds a text; 5: it writes no JSON; 6: the judge does not understand the caption; 7: it says nothing readable
    about the caption; 0 and 8: the judge sees the picture; 9: it says nothing readable about it. Judge "two" sees 10 as well.
    """
    content = chat["messages"][-1]["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    number = int(text.partition("Sign ")[2].split(":")[0].split("?")[0])
    if "Write one multiple-choice question" in text:
        written = {
            "kind": "detail", "question": f"What is the colour of Sign {number}?", "options": [f"{name} ü" for name in NAMES],
            "answer": "ABCD"[number % 4],
        }  # fmt: skip
        said = json.dumps(written, ensure_ascii=False)
        return {4: f"{said}\nShall I go on?", 5: "I would rather not."}.get(number, said)
    letters = {line[3:]: line[0] for line in text.splitlines() if line[1:3] == ". "}
    right = letters[f"{NAMES[number % 4]} ü"]
    wrong = next(letter for letter in "ABCD" if letter != right)
    if "Description of a picture" in text:
        return {6: f"<answer>{wrong}</answer>", 7: "Hard to say."}.get(number, f"<answer>{right}</answer>")
    seen = {0, 8, 10} if chat["model"] == "two" else {0, 8}
    return "Hard to say." if number == 9 else f"<answer>{right if number in seen else wrong}</answer>"


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty_server, "answer_to", reply)


def opened(file: Path) -> Source:
    return open_source(str(file), ["format=plain", "columns.question=caption", "columns.images=picture"])


def plan(url: str, *judges: str, **changes: Any) -> Perception:
    own = {name: changes.pop(name) for name in ("retries", "workers") if name in changes}
    return Perception(writer=model(url, "w", **own), judges=[model(url, name, **own) for name in judges or ("one",)], **changes)


@pytest.mark.usefixtures("answering")
def test_kept_iff_the_caption_tells_and_the_picture_does_not(tmp_path: Path) -> None:
    file = captions(tmp_path / "data", 12)
    with FaultyServer(faults=()) as server:
        report = perception_job(opened(file), plan(server.url, "one", "two"), tmp_path / "out")
    wanted = {
        "kept": 4, "writer_text_around": 1, "writer_no_json": 1, "caption_wrong": 1, "caption_unparsed": 1, "image_right": 3,
        "image_unparsed": 1,
    }  # fmt: skip
    assert (report.total, dict(report.counts)) == (12, wanted)
    assert report.details["judge 1 (" + server.url + "=one)"] == {
        "asked": 10, "right from the caption": 8, "and missed in the picture": 5,
    }  # fmt: skip
    assert report.details["judge 2 (" + server.url + "=two)"] == {
        "asked": 5, "right from the caption": 5, "and missed in the picture": 4,
    }  # fmt: skip
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (told["total"], told["counts"], sum(told["splits"].values())) == (12, wanted, 4)
    rows = [row for split in ("train", "dev", "test") for row in lines(tmp_path / "out" / f"{split}.jsonl")]
    assert {row["id"] for row in rows} == {"row-1", "row-2", "row-3", "row-11"}
    for split in ("train", "dev", "test"):
        assert len(lines(tmp_path / "out" / f"{split}.jsonl")) == told["splits"][split]
    result = read(str(tmp_path / "out" / "train.jsonl"))
    assert not result.problems
    for sample in result.samples:
        number = int(sample.id.removeprefix("row-"))
        assert sample.answer is not None
        assert sample.options["ABCD".index(sample.answer)] == f"{NAMES[number % 4]} ü"
        assert sample.question == f"What is the colour of Sign {number}?"
        assert sample.images[0].key == Picture.open(file.parent / f"{number}.png").key
        assert sample.privileged.rationale is not None
        assert sample.privileged.rationale.endswith("中央.")
        assert sample.kind == "perception_detail"


@pytest.mark.usefixtures("answering")
def test_a_picture_that_no_answer_can_be_read_about_may_count_as_missed(tmp_path: Path) -> None:
    file = captions(tmp_path / "data", 12)
    with FaultyServer(faults=()) as server:
        report = perception_job(opened(file), plan(server.url, image_unparsed="missed"), tmp_path / "out")
        assert report.kept == 6, "row 10 of judge two and row 9 as well"
        asked = server.answered.total()
        both = perception_job(opened(file), plan(server.url, "one", "two", image_unparsed="missed"), tmp_path / "out")
        assert both.kept == 5
        assert server.answered.total() == asked + 6 + 6, "what judge one was asked before is known"


@pytest.mark.usefixtures("answering")
def test_a_judge_is_asked_in_several_orders(tmp_path: Path) -> None:
    file = captions(tmp_path / "data", 4)
    with FaultyServer(faults=()) as server:
        report = perception_job(opened(file), plan(server.url, orders=4), tmp_path / "out")
        assert server.answered.total() == 4 + 4 * 4 + 4 * 4
    assert dict(report.counts) == {"kept": 3, "image_right": 1}


@pytest.mark.usefixtures("answering")
def test_a_faulty_server_changes_nothing(tmp_path: Path) -> None:
    file = captions(tmp_path / "data", 12)
    with FaultyServer(faults=()) as server:
        good = perception_job(opened(file), plan(server.url), tmp_path / "good")
    with FaultyServer(most=2, late_s=1.2) as server:
        bad = perception_job(opened(file), plan(server.url), tmp_path / "bad")
        assert server.happened.total() > 5
    assert bad.counts == good.counts
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        assert (tmp_path / "bad" / name).read_bytes() == (tmp_path / "good" / name).read_bytes()


@pytest.mark.usefixtures("answering")
def test_what_failed_is_counted_and_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = captions(tmp_path / "data", 4)
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("Sign 1:", "refused Sign 1:").replace("Sign 2:", "never Sign 2:"), encoding="utf-8")
    with FaultyServer(faults=()) as server:
        report = perception_job(opened(file), plan(server.url, retries=1), tmp_path / "out")
        assert dict(report.counts) == {"kept": 1, "image_right": 1, "writer_failed": 2}
        assert len(lines(tmp_path / "out" / "answers.jsonl")) == 2 + 2 * 2
        monkeypatch.setattr(server, "fault", lambda body: None)
        again = perception_job(opened(file), plan(server.url, retries=1), tmp_path / "out")
    assert dict(again.counts) == {"kept": 3, "image_right": 1}
    with FaultyServer(plan=("401",) * 9) as server, pytest.raises(ValueError, match=r"the key.*What was answered is kept"):
        perception_job(opened(file), plan(server.url), tmp_path / "other")
    assert not (tmp_path / "other" / "train.jsonl").exists()


@pytest.mark.usefixtures("answering")
def test_bad_captions_pictures_and_ids(tmp_path: Path) -> None:
    file = captions(tmp_path / "data", 4)
    extra = [
        {"id": "row-1", "picture": "2.png", "caption": "Sign 2: «blue», an id that was used."},
        {"id": "blank", "picture": "1.png", "caption": " \n"},
        {"id": "none", "picture": "1.png", "caption": None},
        {"id": "list", "picture": "1.png", "caption": ["Sign 1: one", "Sign 1: two"]},
        {"id": "number", "picture": "1.png", "caption": 5},
        {"id": "gone", "picture": "gone.png", "caption": "Sign 1: it is gone."},
        {"id": "half", "picture": "half.png", "caption": "Sign 1: it is cut short."},
        {"id": "words", "caption": "Sign 1: no picture."},
        {"id": "again", "picture": "3.png", "caption": "Sign 3: «grey» in der Mitte, 中央."},
    ]
    whole = (tmp_path / "data" / "1.png").read_bytes()
    (tmp_path / "data" / "half.png").write_bytes(whole[: len(whole) // 2])
    with file.open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in extra) + "{broken\n")
    with FaultyServer(faults=()) as server, pytest.warns(UserWarning, match="problems"):
        report = perception_job(opened(file), plan(server.url), tmp_path / "out")
    assert report.total == 4 + len(extra) + 1
    # row 2 is met twice (with one caption that says more), and row 3 with the same one
    assert dict(report.counts) == {
        "kept": 3, "image_right": 1, "no_caption": 1, "no_picture": 1, "unreadable": 6, "duplicate": 2,
    }  # fmt: skip


def test_a_report_that_does_not_add_up_is_none() -> None:
    with pytest.raises(RuntimeError, match="do not add up to 3"):
        Report("x", 3, {"kept": 1, "wrong": 1})
    text = Report("x", 3, {"kept": 1, "wrong": 2}, {"splits": {"train": 1}}).text()
    assert text == "x: 3 rows, 1 kept, 2 dropped\n        2  wrong\n  splits: train 1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judges": []}, "at least one judge"),
        ({"orders": 5}, "expected 1 to 4"),
        ({"orders": 2, "open_ended": True}, "1 without options"),
        ({"caption_template": "{caption}"}, "lacks {caption} or {question}"),
    ],
)
def test_plans_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Perception(**{"writer": None, "judges": [Model("tiny")], **changes})
    with pytest.raises(ValueError, match="written URL=NAME"):
        Model("http://localhost:8000/v1")


def slow_reply(chat: dict[str, Any]) -> str:
    time.sleep(0.03)
    return reply(chat)


def test_killed_by_the_system_nothing_is_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while questions are in hand, twice; in the end every question was answered once, but for those in hand."""
    file = captions(tmp_path / "data", 60)
    monkeypatch.setattr(faulty_server, "answer_to", slow_reply)
    with FaultyServer(faults=()) as server:
        whole = perception_job(opened(file), plan(server.url), tmp_path / "whole")
    with FaultyServer(faults=()) as server:
        out = tmp_path / "out"
        command = [
            sys.executable, "-m", "foveate", "data", "perception", str(file), str(out), "--image", "picture", "--workers", "4",
            "--writer", f"{server.url}=w", "--judge", f"{server.url}=one",
        ]  # fmt: skip
        seen, workers = 0, 4
        for more in (20, 60):  # among the writer's replies, and among the judge's
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
            answers, deadline = out / "answers.jsonl", time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None and seen < more:
                seen = answers.read_bytes().count(b"\n") if answers.exists() else 0
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.returncode == -signal.SIGKILL
            assert not (out / "report.json").exists(), "nothing is written before all is known"
        done = perception_job(opened(file), plan(server.url), out)
        assert dict(done.counts) == dict(whole.counts)
        twice = sum(count - 1 for count in server.answered.values())
        assert twice <= 2 * (workers + 4), "only what was in hand"
        assert len(lines(out / "answers.jsonl")) == len(server.answered) > 150
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# --- perception: synthetic scenes, with the embedded model as judge -----------------------------------------------------------


def test_synthetic_scenes_are_filtered_by_the_embedded_model(foveate: Run, tmp_path: Path) -> None:
    """What the tiny model is known for: all letters are read in the words, about three of four in the picture."""
    status, said, _ = foveate(
        "data", "perception", "{synth: detail, n: 48}", str(tmp_path / "out"), "--writer", "scenes", "--judge", "tiny", "--open"
    )
    assert status == 0, said
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    (judge,) = (table for name, table in told.items() if name.startswith("judge"))
    assert (told["total"], judge["asked"]) == (48, 48)
    assert judge["right from the caption"] >= 45
    assert 4 <= told["counts"]["kept"] <= 24
    assert told["counts"]["kept"] == judge["and missed in the picture"] == sum(told["splits"].values())
    result = read(str(tmp_path / "out" / "train.jsonl"))
    for sample in result.samples:
        assert sample.options == (), "judged without options, and written without"
        (item,) = (item for item in scene_of(sample).objects if item.name in sample.question)
        assert sample.answer == item.letter
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    assert foveate(
        "data", "perception", "{synth: detail, n: 48}", str(tmp_path / "out"), "--writer", "scenes", "--judge", "tiny", "--open"
    )[0] == 0  # fmt: skip
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say who writes"),
        (("--writer", "scenes"), "say who writes"),
        (("--writer", "scenes", "--judge", "tiny"), "add --open"),
        (("--writer", "scenes", "--judge", "tiny", "--open", "--unparsed", "guess"), "--unparsed guess: expected drop or missed"),
        (("--writer", "scenes", "--judge", "tiny", "--open", "--writer-sees", "all"), "expected caption or both"),
        (("--writer", "nowhere", "--judge", "tiny", "--open"), "nowhere: no such folder"),
    ],
)
def test_mistakes_are_said_in_one_paragraph(foveate: Run, tmp_path: Path, arguments: Sequence[str], said: str) -> None:
    status, _, shown = foveate("data", "perception", "{synth: detail, n: 2}", str(tmp_path / "out"), *arguments)
    assert status == 2
    assert said in " ".join(shown.split())


# --- thoughts -----------------------------------------------------------------------------------------------------------------


def test_the_embedded_model_writes_thoughts(foveate: Run, tmp_path: Path) -> None:
    target = tmp_path / "thoughts.jsonl"
    command = (
        "data", "thoughts", "{synth: detail}", str(target), "n=12", "--model", "tiny", "--view",
        "{preset: tiny.imagine, answer: ' {answer}'}", "--dropout", "0.5",
    )  # fmt: skip
    status, said, _ = foveate(*command)
    assert status == 0, said
    found = read_trajectories(str(target)).trajectories
    told = json.loads((tmp_path / "thoughts.report.json").read_text())
    assert told["total"] == 12
    assert sum(told["counts"].values()) == 12
    assert len(found) == told["counts"]["kept"] >= 6
    emptied = [one for one in found if one.actions == (f"<think>\n\n</think><answer>{one.sample.answer}</answer>",)]
    assert 0 < len(emptied) == told["emptied"] < len(found)
    for one in found:
        if one not in emptied:
            assert one.actions[0].startswith("<think>I zoom in on the ")
            assert one.actions[0].endswith(f"</think><answer>{one.sample.answer}</answer>")
    before = target.read_bytes()
    assert foveate(*command)[0] == 0
    assert target.read_bytes() == before


def test_thoughts_of_a_served_model_are_filtered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = {
        "q0": "I look at the sign in the middle. It shows K.",
        "q1": "K.",
        "q2": "As given, the provided answer is K, so it is K.",
        "q3": "It is a K that I see there.",
        "q4": "I look at it all. </think> It is K.",
        "q5": "Ich sehe genau hin. 字は K。",
        "q6": "I look at the sign in the middle. It shows E. <answer>E</answer>",
    }

    def said(chat: dict[str, Any]) -> str:
        assert chat["messages"][0]["role"] == "system"
        asked = chat["messages"][-1]["content"]
        assert "The right answer is: K" in asked
        return replies[asked[:2]]

    monkeypatch.setattr(faulty_server, "answer_to", said)
    file = tmp_path / "d.jsonl"
    rows = [{"id": f"s{n}", "question": f"q{n}", "answer": "K"} for n in range(7)] + [{"id": "n", "question": "q0"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with FaultyServer(faults=()) as server:
        report = thoughts_job(open_source(str(file)), Thoughts(writer=model(server.url)), tmp_path / "t.jsonl")
    assert dict(report.counts) == {
        "kept": 2, "too_short": 1, "leak": 1, "answer_first": 1, "markup": 1, "other_answer": 1, "no_answer": 1,
    }  # fmt: skip
    assert [one.actions for one in read_trajectories(str(tmp_path / "t.jsonl")).trajectories] == [
        ("<think>I look at the sign in the middle. It shows K.</think><answer>K</answer>",),
        ("<think>Ich sehe genau hin. 字は K。</think><answer>K</answer>",),
    ]
    with pytest.raises(ValueError, match="does not tell the answer"):
        Thoughts(writer=Model("tiny"), view=resolve_view("full"))


# --- hindsight ----------------------------------------------------------------------------------------------------------------


def test_a_trajectory_holds_when_its_evidence_is_enough(tmp_path: Path) -> None:
    """Crops of detail scenes, read by the embedded model: the right one, the one of another object, and none."""
    source = open_source("{synth: detail, n: 3, seed: 3}")
    made = []
    for sample in source.samples:
        side, objects = 128, scene_of(sample).objects
        (own,) = (item for item in objects if item.name in sample.question)
        other = next(item for item in objects if item.letter != own.letter)
        tries = {"none": Trajectory(sample, ("<answer>?</answer>",))}
        for name, item in (("right", own), ("other", other)):
            x, y = item.x_frac * side, item.y_frac * side
            box = (int(max(0, x - 26)), int(max(0, y - 26)), int(min(side, x + 26)), int(min(side, y + 26)))
            crop = Picture.of(sample.images[0].rgb().crop(box))
            tries[name] = Trajectory(sample, ("zoom", "<answer>?</answer>"), (Message.user(crop),))
        made.append(tries)
    names = ((0, "right"), (0, "right"), (1, "other"), (1, "none"), (1, "right"), (1, "right"), (2, "none"))
    order = [made[number][name] for number, name in names]
    write_trajectories(order, tmp_path / "all.jsonl")
    with (tmp_path / "all.jsonl").open("a") as stream:
        stream.write("{broken\n")
    target = tmp_path / "held.jsonl"
    found = read_trajectories(str(tmp_path / "all.jsonl"))
    report = hindsight_job(found, Model("tiny"), target, max_new_tokens=16, system="none")
    assert dict(report.counts) == {
        "kept": 2, "not_needed": 1, "wrong": 1, "no_evidence": 2, "further": 1, "unreadable": 1,
    }  # fmt: skip
    held = read_trajectories(str(target)).trajectories
    assert [(one.sample.id, one.observations) for one in held] == [
        (made[n]["right"].sample.id, made[n]["right"].observations) for n in (0, 1)
    ]


def test_the_hindsight_command(foveate: Run, tmp_path: Path) -> None:
    sample = Sample(id="a", question="Scene: red circle at top shows K. What letter is on the red circle?", answer="K")
    write_trajectories([Trajectory(sample, ("<caption>.</caption><answer>K</answer>",))], tmp_path / "all.jsonl")
    status, said, _ = foveate("data", "hindsight", str(tmp_path / "all.jsonl"), str(tmp_path / "held.jsonl"), "--judge", "tiny")
    assert status == 0, said
    assert "1 rows" in said
    status, _, said = foveate("data", "hindsight", str(tmp_path / "all.jsonl"), str(tmp_path / "held.jsonl"))
    assert status == 2
    assert "--judge" in said


# --- crops --------------------------------------------------------------------------------------------------------------------


def test_crops_go_on_where_they_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate.datasets import crop_files

    rows: list[dict[str, Any]] = []
    for n in range(6):
        Picture.of(np.random.default_rng(n).integers(0, 256, (80, 100, 3), dtype=np.uint8)).rgb().save(tmp_path / f"{n}.png")
        rows.append({"id": f"ü{n}", "image": f"{n}.png", "question": "Q", "bbox": [10, 20, 30 + n, 50]})
    del rows[4]["bbox"]
    source = tmp_path / "d.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = crops_command(str(source), tmp_path / "whole" / "c.jsonl")
    assert (whole.num_samples, whole.num_crops, len(whole.problems)) == (5, 5, 1)
    cut, calls = crop_files._cut, []

    def killed(result: Any, row: int, *others: Any) -> dict[str, Any]:
        calls.append(row)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return cut(result, row, *others)

    monkeypatch.setattr(crop_files, "_cut", killed)
    with pytest.raises(KeyboardInterrupt):
        crops_command(str(source), tmp_path / "out" / "c.jsonl")
    assert not (tmp_path / "out" / "c.jsonl").exists()
    with pytest.raises(ValueError, match="crop was"):
        crops_command(str(source), tmp_path / "out" / "c.jsonl", padding=0.5)
    again = crops_command(str(source), tmp_path / "out" / "c.jsonl")
    assert calls == [0, 1, 2, 3, 4, 5, 5], "what was cut is not cut again"
    assert (again.num_samples, again.num_crops, again.problems) == (whole.num_samples, whole.num_crops, whole.problems)
    assert (tmp_path / "out" / "c.jsonl").read_bytes().replace(b"/out/", b"/whole/") == (
        tmp_path / "whole" / "c.jsonl"
    ).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c.jsonl", "crops"]


def test_the_default_template_shows_caption_and_question() -> None:
    assert CAPTION_TEMPLATE.index("{caption}") < CAPTION_TEMPLATE.index("{question}")
