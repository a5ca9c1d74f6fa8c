"""Rows that name a video: every format's way to name one, the plans, the errors, and what is told of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from video_files import greys, numbers_of, write_video

from foveate.datasets.check import check
from foveate.datasets.read import ReadResult, read
from foveate.datasets.spec import DataSpec, load_data
from foveate.datasets.views import ViewSpec, make_view
from foveate.vlm.images import Picture
from foveate.vlm.messages import Clip
from foveate.vlm.records import Sample
from foveate.vlm.video import VideoFile

QUESTION = "What moves?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "v.mp4", greys(40, width=96), codec="libx264")
    Picture.of(greys(1)[0]).rgb().save(tmp_path / "p.png")
    return tmp_path


def rows(folder: Path, *given: dict[str, Any], **fields: Any) -> ReadResult:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return read(DataSpec(path=str(file), video_dir=str(folder / "videos"), **fields))


def only(result: ReadResult) -> Sample:
    assert result.problems == []
    (sample,) = result.samples
    return sample


def said(parts: Sequence[object]) -> list[object]:
    return ["video" if isinstance(part, Clip) else "picture" if isinstance(part, Picture) else part for part in parts]


@pytest.mark.parametrize(
    ("row", "format_name", "text"),
    [
        ({"question": QUESTION, "video": "v.mp4"}, "plain", QUESTION),
        ({"question": QUESTION, "video_path": "v.mp4"}, "plain", QUESTION),
        ({"question": QUESTION, "video": {"path": "v.mp4", "bytes": None}}, "plain", QUESTION),
        ({"problem": f"<video>{QUESTION}", "videos": ["v.mp4"], "answer": "it"}, "easyr1", QUESTION),
        ({"messages": [{"role": "user", "content": f"<video>\n{QUESTION}"}], "videos": ["v.mp4"]}, "ms_swift", f"\n{QUESTION}"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": QUESTION}]}]},
            "trl",
            QUESTION,
        ),
    ],
)
def test_every_way_to_name_a_video(folder: Path, row: dict[str, Any], format_name: str, text: str) -> None:
    result = rows(folder, row)
    sample = only(result)
    assert (result.format, sample.question, sample.images) == (format_name, text, ())
    assert sample.video is not None
    assert sample.video.times_s == (0.0, 0.6, 1.1, 1.7, 2.2, 2.8, 3.3, 3.9)
    assert numbers_of(sample.video.frames) == [0, 6, 11, 17, 22, 28, 33, 39]
    assert isinstance(sample.video.source, VideoFile)
    assert said(make_view(sample, ViewSpec(), "student").messages[0].parts) == ["video", text]


def test_video_mme(folder: Path) -> None:
    row = {
        "video_id": "001", "videoID": "v", "duration": "short", "domain": "Knowledge", "sub_category": "Humanity",
        "task_type": "Counting Problem", "question_id": "001-1", "question": QUESTION, "answer": "C",
        "options": ["A. One.", "B. Two: B. or so.", "C. Three.", "D. None."],
    }  # fmt: skip
    sample = only(rows(folder, row))
    assert (sample.id, sample.answer, sample.kind) == ("001-1", "C", "Counting Problem")
    assert sample.options == ("One.", "Two: B. or so.", "Three.", "None.")
    assert sample.tags == {"duration": "short", "domain": "Knowledge", "sub_category": "Humanity"}
    assert sample.video is not None
    assert only(rows(folder, {**row, "options": ["A. One.", "Two."]})).options == ("A. One.", "Two.")  # no letters of theirs


@pytest.mark.parametrize(
    "given", [{"candidates": ["a", "b"]}, {"option0": "a", "option1": "b", "option2": "N/A", "option3": None}]
)
def test_longvideobench(folder: Path, given: dict[str, Any]) -> None:
    row = {"video_path": "v.mp4", "question": QUESTION, "correct_choice": 1, "duration_group": 15, "question_category": "S2E"}
    result = rows(folder, {**row, **given})
    sample = only(result)
    assert (result.format, sample.options, sample.answer, sample.kind) == ("longvideobench", ("a", "b"), "B", "S2E")
    assert sample.tags == {"duration_group": "15"}
    assert only(rows(folder, {"video_path": "v.mp4", "question": QUESTION, **given})).answer is None  # the test split has none
    for wrong in (2, "b"):
        problem = rows(folder, {**row, **given, "correct_choice": wrong}).problems[0]
        assert f"correct_choice {wrong!r} of 2 options; it counts the options from 0" in str(problem)


def test_settings_say_which_frames_are_kept_and_how_large(folder: Path) -> None:
    row = {"question": QUESTION, "video": "v.mp4"}
    sample = only(rows(folder, row, video_fps=4, video_max_frames=5, video_max_pixels=24 * 12))
    assert sample.video is not None
    assert numbers_of(sample.video.frames) == [0, 10, 20, 29, 39]
    assert {frame.size_px for frame in sample.video.frames} == {(24, 12)}
    assert sample.video.source is not None
    assert sample.video.source.frames_at([1.0]).frames[0].size_px == (96, 48)


def test_frames_as_pictures_behind_their_times(folder: Path) -> None:
    row = {"question": QUESTION, "video": "v.mp4"}
    sample = only(rows(folder, row, video_plan="pictures", video_max_frames=4))
    assert sample.video is None
    assert numbers_of(sample.images) == [0, 13, 26, 39]
    parts = make_view(sample, ViewSpec(), "student").messages[0].parts
    assert said(parts) == [
        "<0.0 seconds>", "picture", "<1.3 seconds>", "picture", "<2.6 seconds>", "picture", "<3.9 seconds>", "picture",
        f"\n{QUESTION}",
    ]  # fmt: skip
    with_picture = {**row, "image": str(folder / "p.png")}
    own = only(rows(folder, with_picture, video_plan="pictures", video_max_frames=1, video_timestamps=False))
    assert said(make_view(own, ViewSpec(), "student").messages[0].parts) == ["picture", "\n", "picture", QUESTION]


def test_slow_fast_rows_keep_to_the_budget(folder: Path) -> None:
    row = {"question": QUESTION, "video": "v.mp4"}
    fields = {"video_plan": "slow_fast", "video_fps": 3.5, "video_token_px": 8}
    # Frames 0, 3, 6 ... 39 differ by 12 grey levels: all are slow, 12 x 6 tokens each.
    assert {picture.size_px for picture in only(rows(folder, row, **fields)).images} == {(96, 48)}
    sample = only(rows(folder, row, **fields, video_budget_tokens=14 * 18))
    assert {picture.size_px for picture in sample.images} == {(52, 26)}  # 6 x 3 tokens: 52 / 8 = 6.5 rounds to 6, half to even
    refused = rows(folder, row, **fields, video_budget_tokens=13, strict=True)
    with pytest.raises(
        ValueError, match=r"line 1: slow-fast: 14 frames cost at least 14 tokens and the budget is 13.*data.video_max"
    ):
        _ = refused.samples[0]


def test_a_row_with_a_video_and_a_picture(folder: Path) -> None:
    sample = only(rows(folder, {"question": "<video>Is <image> in it?", "video": "v.mp4", "image": str(folder / "p.png")}))
    assert said(make_view(sample, ViewSpec(), "student").messages[0].parts) == ["video", "Is ", "picture", " in it?"]


def test_boxes_of_a_video_are_in_pixels_of_its_frames(folder: Path) -> None:
    row = {"question": QUESTION, "video": "v.mp4", "boxes_frac_xyxy": [[0.25, 0.0, 0.5, 0.5]]}
    assert only(rows(folder, row, video_max_pixels=100)).privileged.boxes_px_xyxy == ((24.0, 0.0, 48.0, 24.0),)
    problem = rows(folder, row, video_plan="pictures").problems[0]
    assert "boxes in a row whose video is shown as pictures; use video_plan: uniform" in str(problem)


def test_bad_rows_are_named_and_the_rest_is_read(folder: Path) -> None:
    (folder / "videos" / "broken.mp4").write_text("no video")
    good = {"question": QUESTION, "video": "v.mp4"}
    result = rows(
        folder,
        good,
        {**good, "video": "gone.mp4"},
        {**good, "video": "broken.mp4"},
        {**good, "video": "https://x.org/v.mp4"},
        {**good, "video": ["v.mp4", "v.mp4"]},
        {**good, "video": {"bytes": "AAAA", "path": None}},
        {"question": f"Look: <video> {QUESTION}", "video": "v.mp4"},
        {"question": f"<video>{QUESTION}"},
    )
    assert len(result.samples) == 1
    told = [(problem.place, problem.what.removeprefix(str(folder / "videos") + "/"), problem.mend) for problem in result.problems]
    assert [place for place, _, _ in told] == [f"line {number}" for number in range(2, 9)]
    assert told[0][1:] == (
        "gone.mp4: no such video",
        f"set data.video_dir to the folder that the paths in {folder}/rows.jsonl start from",
    )
    assert told[1][1].startswith("broken.mp4: not a readable video")
    assert told[2][1].endswith("v.mp4: videos are not fetched from the net")
    assert told[3][1] == "a row with 2 videos"
    assert told[4][1].startswith("a video given as NoneType")
    assert told[5][1:] == ("<video> inside the question, or twice", "the video is shown first: put one <video> at the start")
    assert told[6][1] == "<video> in the question and no video"


def test_frames_are_decoded_when_a_sample_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate.datasets import videos

    decoded: list[str] = []
    read_clip = videos.read_clip

    def counting(path: Path, *given: Any, **named: Any) -> Clip:
        decoded.append(Path(path).name)
        return read_clip(path, *given, **named)

    monkeypatch.setattr(videos, "read_clip", counting)
    result = rows(folder, *[{"question": f"{QUESTION} {number}", "video": "v.mp4"} for number in range(5)])
    assert (len(result.samples), decoded) == (5, [])
    assert result.samples[3].question == "What moves? 3"
    assert decoded == ["v.mp4"]


def test_a_video_is_never_in_two_splits(folder: Path) -> None:
    for number in range(6):
        write_video(folder / "videos" / f"{number}.mp4", greys(4, step=10 + number))
    (folder / "videos" / "copy of 0.mp4").write_bytes((folder / "videos" / "0.mp4").read_bytes())
    names = ["copy of 0", *map(str, range(6)), *map(str, range(6))]
    given = [{"id": f"{row} {name}", "question": QUESTION, "video": f"{name}.mp4"} for row, name in enumerate(names)]
    held = {}
    for split in ("train", "test"):
        result = rows(folder, *given, holdout_frac=0.5, split=split)
        held[split] = {sample.id.split()[-1] for sample in result.samples}
    assert held["train"] | held["test"] == set("012345")
    assert not held["train"] & held["test"]
    assert held["train"]
    assert held["test"]


def test_check_tells_of_videos(folder: Path) -> None:
    row = {"question": QUESTION, "video": "v.mp4", "answer": "it", "boxes_px_xyxy": [[0, 0, 9, 9]]}
    file = folder / "rows.jsonl"
    rows(folder, row, {**row, "question": "Who?"}, row)
    report = check({"path": str(file), "video_dir": str(folder / "videos")}, sheet=folder / "sheet.html")
    assert "videos     3, least / median / most: 8 / 8 / 8 frames kept, 3.9 / 3.9 / 3.9 s" in report.text()
    assert (report.num_samples, report.num_pictures, report.num_repeated_rows) == (3, 0, 1)
    assert (folder / "sheet.html").read_text().count("<img") == 3 * 4
    assert load_data({"path": str(file), "video_dir": str(folder / "videos")})[0].video is not None
