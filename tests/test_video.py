"""Video files of many kinds: the right frames at the right times, from threads too, and errors that help where there are none."""

from __future__ import annotations

import re
import shutil
import sys
import types
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from video_files import greys, numbers_of, turned, write_video

from foveate.vlm import video
from foveate.vlm.frames import SlowFast, grid_tokens, slow_fast_parts, slow_fast_sizes, slow_frames, timed_parts
from foveate.vlm.images import Picture
from foveate.vlm.load import tiny_random
from foveate.vlm.messages import Clip, Message
from foveate.vlm.video import VideoError, fingerprint, frame_size, open_video, read_clip

H264 = {"g": "12", "bf": "3"}


# ---- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("h264.mp4", "libx264", H264),
        ("open.mp4", "libx264", {**H264, "x264-params": "open-gop=1"}),
        ("h264.mkv", "libx264", H264),
        ("h264.ts", "libx264", H264),
        ("order.avi", "libx264", H264),  # its container gives frames no times of their own
        ("vp9.webm", "libvpx-vp9", {"g": "12"}),
        ("av1.mp4", "libsvtav1", {"g": "12", "svtav1-params": "log-level=0"}),
        ("mpeg4.avi", "mpeg4", {"b": "2000000"}),
    ],
)
def test_any_frame_of_any_file(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    file = open_video(write_video(tmp_path / name, greys(60), codec=codec, options=options))
    assert (file.num_frames, file.fps, file.duration_s, file.width_px, file.height_px) == (60, 10.0, 5.9, 64, 48)
    asked = (4.1, 0.32, 5.9, 4.1, 2.38, 77.0, -1.0)
    found = file.frames_at(asked)
    assert found.times_s == (4.1, 0.3, 5.9, 4.1, 2.4, 5.9, 0.0)
    assert numbers_of(found.frames) == [41, 3, 59, 41, 24, 59, 0]
    assert found.source is file


def test_a_stream_without_times_is_counted(tmp_path: Path) -> None:
    file = open_video(write_video(tmp_path / "raw.h264", greys(20, 8), codec="libx264", options=H264))
    assert (file.num_frames, file.fps, file.duration_s) == (20, 25.0, 0.76)
    assert numbers_of(file.frames_at([0.4, 0.04]).frames, 8) == [10, 1]


def test_opencv_files(tmp_path: Path) -> None:
    import cv2

    for name, code in (("cv.mp4", "mp4v"), ("cv.avi", "XVID"), ("motion.avi", "MJPG")):
        writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter_fourcc(*code), 10, (64, 48))  # type: ignore[attr-defined]
        for frame in greys(30, 8):
            writer.write(frame)
        writer.release()
        clip = read_clip(tmp_path / name, fps=2.0)
        assert clip.times_s == (0.0, 0.6, 1.2, 1.7, 2.3, 2.9)
        assert numbers_of(clip.frames, 8) == [0, 6, 12, 17, 23, 29]


def test_a_far_frame_is_sought_and_what_lies_before_it_is_not_decoded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(60)]
    path = write_video(tmp_path / "v.mp4", noise, codec="libx264", options={**H264, "crf": "10"})
    good = open_video(path).frames_at([5.8])
    data = bytearray(path.read_bytes())
    media = data.index(b"mdat")
    middle = media + (len(data) - media) // 3
    data[middle : middle + 20_000] = bytes(20_000)  # the second fifth is gone; the headers are whole
    path.write_bytes(data)
    damaged = open_video(path)
    assert damaged.frames_at([5.8]).frames == good.frames
    with pytest.raises(VideoError, match=r"v.mp4: not a readable video"):
        damaged.frames_at([2.4])


def test_frames_are_evenly_spread_in_time_where_the_rate_varies(tmp_path: Path) -> None:
    times_ms = [0, 100, 200, 1200, 1300, 3000]
    path = write_video(tmp_path / "v.mp4", greys(6, 20), codec="libx264", times_ms=times_ms)
    file = open_video(path)
    assert (file.num_frames, file.duration_s, file.fps) == (6, 3.0, pytest.approx(5 / 3))
    # six times from 0 to 3.0 by 0.6 s; 1.8 is nearest to 1.3, 2.4 and 3.0 to the last
    clip = file.clip(fps=2.0)
    assert clip.times_s == (0.0, 0.2, 1.2, 1.3, 3.0)
    assert numbers_of(clip.frames, 20) == [0, 2, 3, 4, 5]
    assert file.frames_at([0.8, 0.6]).times_s == (1.2, 0.2)


@pytest.mark.parametrize(
    ("matrix", "size", "bright"),
    [((0, 1, -1, 0), (48, 64), "right"), ((-1, 0, 0, -1), (64, 48), "bottom"), ((0, -1, 1, 0), (48, 64), "left")],
)
def test_turned_videos_are_seen_as_a_player_shows_them(
    tmp_path: Path, matrix: tuple[int, int, int, int], size: tuple[int, int], bright: str
) -> None:
    import cv2

    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24] = 255  # the upper half
    path = turned(write_video(tmp_path / "v.mp4", [frame] * 4, codec="libx264"), tmp_path / "t.mp4", matrix)
    file = open_video(path)
    assert (file.width_px, file.height_px) == frame_size(path) == size
    pixels = np.asarray(file.frames_at([0.0]).frames[0].rgb(), np.float32)
    height, width = pixels.shape[:2]
    halves = {"right": pixels[:, width // 2 :], "left": pixels[:, : width // 2], "bottom": pixels[height // 2 :]}
    assert halves[bright].mean() > 250
    assert pixels.mean() == pytest.approx(127.5, abs=2)
    _, opencv = cv2.VideoCapture(str(path)).read()
    assert np.abs(opencv.astype(np.float32) - pixels).mean() < 2


def test_kept_frames_may_be_small_and_the_source_stays_whole(tmp_path: Path) -> None:
    clip = read_clip(write_video(tmp_path / "v.mp4", greys(40)), max_frames=5, max_pixels=32 * 24)
    assert {frame.size_px for frame in clip.frames} == {(32, 24)}
    assert clip.source is not None
    assert clip.source.frames_at([1.0]).frames[0].size_px == (64, 48)


def test_a_video_file_is_known_by_path_size_and_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", greys(8))
    file, again = open_video(path), open_video(str(path))
    assert file == again
    assert len({file, again}) == 1
    shutil.copy(path, tmp_path / "copy.mp4")
    assert open_video(tmp_path / "copy.mp4") != file
    assert fingerprint(tmp_path / "copy.mp4") == fingerprint(path)
    write_video(path, greys(9))
    assert fingerprint(tmp_path / "copy.mp4") != fingerprint(path)
    with pytest.raises(VideoError, match=r"v.mp4: changed since it was opened"):
        file.frames_at([0.0])


def test_threads_share_a_video_file(tmp_path: Path) -> None:
    file = open_video(write_video(tmp_path / "v.mp4", greys(60), codec="libx264", options=H264))
    asked = [[0.1 * number, 5.9 - 0.1 * number] for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(file.frames_at, asked))
    assert [numbers_of(clip.frames) for clip in found] == [[number, 59 - number] for number in range(60)]


# ---- what cannot be read ----------------------------------------------------------------------------------------------------


def cut(path: Path, frac: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(frac * len(data))])
    return path


def test_files_cut_short_say_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(100)]
    options = {"codec": "libx264", "options": H264}
    matroska = cut(write_video(tmp_path / "a.mkv", noise, **options), 0.5)  # type: ignore[arg-type]
    with pytest.raises(VideoError, match=r"a.mkv: cut short \(the header promises 10.0 s and [45]\.\d s are there\); copy"):
        read_clip(matroska)
    front = cut(write_video(tmp_path / "b.mp4", noise, container={"movflags": "faststart"}, **options), 0.5)  # type: ignore[arg-type]
    with pytest.raises(VideoError, match=r"b.mp4: cut short"):
        read_clip(front)
    # a loss too small for the header to tell: the frames that are whole can be had, the last cannot
    little = open_video(cut(write_video(tmp_path / "c.mp4", noise, container={"movflags": "faststart"}, **options), 0.97))  # type: ignore[arg-type]
    assert little.frames_at([0.0]).times_s == (0.0,)
    with pytest.raises(VideoError, match=r"c.mp4: .*copy it again"):
        little.frames_at([little.duration_s])
    end = cut(write_video(tmp_path / "d.mp4", noise, **options), 0.5)  # type: ignore[arg-type] # its index stood at the end
    with pytest.raises(VideoError, match=r"d.mp4: not a readable video .*copy it again"):
        read_clip(end)


def test_what_is_no_video(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    with pytest.raises(VideoError, match=r"sound.wav: holds no video stream"):
        open_video(tmp_path / "sound.wav")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty.mp4: not a readable video"):
        frame_size(tmp_path / "empty.mp4")
    with pytest.raises(VideoError, match=r"no such file"):
        fingerprint(tmp_path / "gone.mp4")
    file = open_video(write_video(tmp_path / "v.mp4", greys(8)))
    for times_s in ([], [0.0, float("nan")]):
        with pytest.raises(VideoError, match=r"finite seconds"):
            file.frames_at(times_s)


# ---- readers ----------------------------------------------------------------------------------------------------------------


class FakeDecord(types.ModuleType):
    """decord as it is used: its frame n is frame 50 + n of `greys`; ``total`` None: a codec that it does not know."""

    class DECORDError(Exception):
        pass

    def __init__(self, total: int | None) -> None:
        super().__init__("decord")
        self.total = total

    def VideoReader(self, path: str) -> Sequence[object]:
        if self.total is None:
            raise self.DECORDError("unknown codec")
        return [types.SimpleNamespace(asnumpy=lambda n=n: greys(60)[50 + n]) for n in range(self.total)]


def test_decord_is_taken_where_it_can_and_pyav_where_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mp4", greys(8), codec="libx264")

    def greys_by(reader: video.Reader) -> list[int]:
        return numbers_of(open_video(path, reader).frames_at([0.0, 0.5]).frames)

    monkeypatch.setitem(sys.modules, "decord", FakeDecord(8))
    assert (greys_by("auto"), greys_by("decord"), greys_by("av")) == ([50, 55], [50, 55], [0, 5])
    for unable in (FakeDecord(None), FakeDecord(7)):
        monkeypatch.setitem(sys.modules, "decord", unable)
        assert greys_by("auto") == [0, 5]
        with pytest.raises(VideoError, match=r"v.mp4: decord cannot read it .*reader='av'"):
            greys_by("decord")
    monkeypatch.setitem(sys.modules, "decord", None)  # as when it is not installed
    assert greys_by("auto") == [0, 5]
    with pytest.raises(VideoError, match=r"pip install decord, or use reader='av'"):
        greys_by("decord")


def test_the_real_decord_gives_the_frames_of_pyav(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    path = write_video(tmp_path / "v.mp4", greys(60), codec="libx264", options=H264)
    by_decord, by_av = (open_video(path, reader).frames_at([4.1, 0.3, 2.4]) for reader in ("decord", "av"))  # type: ignore[arg-type]
    assert numbers_of(by_decord.frames) == numbers_of(by_av.frames) == [41, 3, 24]
    assert by_decord.times_s == by_av.times_s


# ---- slow and fast frames ---------------------------------------------------------------------------------------------------


def flat(grey: int, changed_patches: int = 0, side: int = 64) -> Picture:
    """Grey, with some of its 8 x 8 patches white."""
    pixels = np.full((side, side, 3), grey, np.uint8)
    for patch in range(changed_patches):
        row, column = divmod(patch, 8)
        pixels[row * side // 8 : (row + 1) * side // 8, column * side // 8 : (column + 1) * side // 8] = 255
    return Picture.of(pixels)


def test_a_frame_is_slow_when_it_differs_from_the_latest_slow_one() -> None:
    settings = SlowFast()
    # 61 of 64 patches are .953 > .95, 60 are .938
    assert slow_frames([flat(100), flat(100, 3), flat(100, 4), flat(100, 4), flat(100)], settings) == (1, 0, 1, 0, 1)
    # each step is small, yet the third frame is 12 levels from the first
    assert slow_frames([flat(100), flat(106), flat(112), flat(118), flat(121)], settings) == (1, 0, 1, 0, 1)
    assert slow_frames([flat(100), flat(106)], SlowFast(tolerance=5)) == (1, 1)


def test_the_cosine_of_patches_does_not_see_a_flat_patch_grow_brighter() -> None:
    cosine = SlowFast(similarity="cosine")
    assert slow_frames([flat(50), flat(200)], cosine) == (1, 0)
    half = np.full((64, 64, 3), 200, np.uint8)
    half[:, ::2] = 0  # cosine of (0, 200, 0, 200 ...) and (50, 50 ...): 1 / sqrt 2
    assert slow_frames([flat(50), Picture.of(half)], cosine) == (1, 1)
    assert slow_frames([flat(50), Picture.of(half)], SlowFast(similarity="cosine", similarity_min=0.7)) == (1, 0)


def test_sizes_of_slow_and_fast_frames_by_hand() -> None:
    tokens = grid_tokens(28)
    assert (tokens(280, 280), tokens(280, 140), tokens(5, 5)) == (100, 50, 1)
    # Squares of 28 px: 1, 4, 9, 16 ... tokens. 2 x 49 + 2 x 16 = 130 keeps to the budget and 2 x 64 + 2 x 16 = 160 does not.
    # 209 / 28 rounds to 7, and 126 / 28 = 4.5 to 4 (half to even).
    settings = SlowFast(budget_tokens=130)
    assert slow_fast_sizes((True, False, True, False), (280, 280), tokens, settings) == ((209, 209), (126, 126))
    large, small = slow_fast_sizes((True, False), (280, 280), tokens, SlowFast())
    assert (large, tokens(*small)) == ((280, 280), 25)  # room for all: 100 tokens, and 25 of at most 30
    with pytest.raises(ValueError, match=r"4 frames cost at least 4 tokens and the budget is 3; take fewer frames"):
        slow_fast_sizes((True,) * 4, (280, 280), tokens, SlowFast(budget_tokens=3))
    with pytest.raises(ValueError, match=r"0 < fast_share <= 1"):
        SlowFast(fast_share=0)


def test_slow_fast_parts_tell_times_and_keep_to_the_budget() -> None:
    frames = (flat(100, side=280), flat(101, side=280), flat(200, side=280))
    clip = Clip(frames, (0.0, 0.5, 12.25))
    parts = slow_fast_parts(clip, grid_tokens(28), SlowFast(budget_tokens=107))
    assert [part if isinstance(part, str) else part.size_px for part in parts] == [
        "<0.0 seconds>", (209, 209), "<0.5 seconds>", (97, 97), "<12.2 seconds>", (209, 209),
    ]  # fmt: skip
    assert slow_fast_parts(clip, grid_tokens(28), SlowFast(budget_tokens=107)) == parts
    assert [part.size_px for part in slow_fast_parts(clip, grid_tokens(28), timestamps=False) if isinstance(part, Picture)] == [
        (280, 280), (153, 153), (280, 280),
    ]  # fmt: skip


# ---- what the model gets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl"])
def test_a_clip_of_a_file_is_rendered_like_any_other(tmp_path: Path, family: str) -> None:
    renderer = tiny_random(family, attention="sdpa").renderer
    clip = read_clip(write_video(tmp_path / "v.mp4", greys(40)), fps=2.0)
    bare = Clip(clip.frames, clip.times_s)
    segments = [renderer.prompt([Message.user(one, "What moves?")]) for one in (clip, bare)]
    assert segments[0].ids_T.tolist() == segments[1].ids_T.tolist()
    assert segments[0].visuals[0].item.key == segments[1].visuals[0].item.key
    told = re.findall(r"<([\d.]+) seconds>", str(renderer.tokenizer.decode(segments[0].ids_T)))
    # 8 frames at 0, .6, 1.1, 1.7 ... 3.9 s, two to a temporal patch; Qwen2-VL tells time by position alone
    assert told == (["0.3", "1.4", "2.5", "3.6"] if family == "qwen3-vl" else [])
    timed = renderer.prompt([Message.user(*timed_parts(clip), "What moves?")])
    assert re.findall(r"<([\d.]+) seconds>", str(renderer.tokenizer.decode(timed.ids_T)))[:3] == ["0.0", "0.6", "1.1"]
