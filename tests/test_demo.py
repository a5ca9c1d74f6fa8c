"""The demo without its page: what is refused and how it is said, batches of visitors, both engines, and the code that repeats."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import FaultyServer
from PIL import Image
from video_files import greys, write_video

from foveate.demo.asks import Ask, box_text, read_box
from foveate.demo.gate import Gate, names_remote_file
from foveate.demo.limits import DemoError, Limits
from foveate.demo.players import Local, Player, Remote, _Stream, knows_tiny_words, open_local, start
from foveate.demo.reproduce import command, python
from foveate.demo.show import answer_html, preview, problem_html
from foveate.demo.sources import Source, draw_scene, open_upload
from foveate.demo.story import ShownTurn, Story, Writer
from foveate.demo.together import Together
from foveate.eval.server import Server
from foveate.vlm.folder import LoadError
from foveate.vlm.generate import HFEngine, Sampling
from foveate.vlm.images import Picture
from foveate.vlm.load import load, save, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Reply, ToolCall

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tiny() -> Local:
    return open_local("tiny")


def last_story(player: Player, ask: Ask) -> Story:
    return list(start(player, ask).stories())[-1]


def scene_ask(way: str, number: int = 3, world: str = "place", **more: Any) -> Ask:
    source = draw_scene(world, number)
    return Ask(source, next(iter(source.answers)), way, **more)


# ---- what is refused -------------------------------------------------------------------------------------------------------


def bomb(path: Path, side: int = 50_000) -> Path:
    """A PNG whose header promises ``side`` x ``side`` pixels, in 60 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def bad_files(folder: Path) -> dict[str, Path]:
    """Uploads that are no pictures, by what is wrong with them."""
    (folder / "text.png").write_text("not a picture")
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "ps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    (folder / "text.mp4").write_text("not a video")
    return {
        "text": folder / "text.png", "bomb": bomb(folder / "bomb.png"), "large": bomb(folder / "large.png", 9000),
        "cut": folder / "cut.jpg", "postscript": folder / "ps.png", "video": folder / "text.mp4",
    }  # fmt: skip


SAID = {
    "text": "text.png is not a picture that can be read here, whatever its name says",
    "bomb": "bomb.png has 50,000 x 50,000 pixels, 2,500.0 megapixels; at most 50 megapixels",
    "large": "large.png has 9,000 x 9,000 pixels, 81.0 megapixels",
    "cut": "cut.jpg cannot be read: not a readable picture (image file is truncated",
    "postscript": "ps.png is not a picture that can be read here",
    "video": "text.mp4 cannot be read",
}


@pytest.mark.parametrize("what", SAID)
def test_a_bad_upload_is_refused_in_a_sentence_without_its_path(tmp_path: Path, what: str) -> None:
    path = bad_files(tmp_path)[what]
    with pytest.raises(DemoError) as caught:
        open_upload(str(path), Limits(), tmp_path)
    assert SAID[what] in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_only_uploads_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (tmp_path / "secret.png", folder / ".." / "secret.png", folder / "link.png", folder / "none.png", folder):
        with pytest.raises(DemoError, match="was not uploaded here"):
            open_upload(str(path), Limits(), folder)


def test_size_and_duration_are_bounded(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    with pytest.raises(DemoError, match=r"noise.png has 1.\d MB; at most 1 MB are taken here"):
        open_upload(str(tmp_path / "noise.png"), Limits(upload_mb=1), tmp_path)
    write_video(tmp_path / "clip.mp4", greys(20))
    whole = open_upload(str(tmp_path / "clip.mp4"), Limits(), tmp_path)
    assert whole.is_video
    assert whole.duration_s is not None
    with pytest.raises(DemoError, match=r"clip\.mp4 lasts"):
        open_upload(str(tmp_path / "clip.mp4"), Limits(video_s=whole.duration_s / 2), tmp_path)
    with pytest.raises(DemoError, match="has frames of"):
        open_upload(str(tmp_path / "clip.mp4"), Limits(frame_megapixels=1e-6), tmp_path)


def test_questions_are_bounded() -> None:
    limits = Limits()
    assert limits.check_question("  What? \n") == "What?"
    for blank in ("", " \n\t"):
        with pytest.raises(DemoError, match="The question is empty"):
            limits.check_question(blank)
    with pytest.raises(DemoError, match=r"10,485,760 characters; at most 4,000"):
        limits.check_question("a" * (10 << 20))


def test_a_model_without_weights_is_refused(foveate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny_random("qwen3_vl"), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"no weights \(\*\.safetensors\) beside config.json"):
        open_local(str(tmp_path / "model"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    status, _, said = foveate("demo", str(tmp_path / "model"))
    assert status == 2
    assert "no weights" in said
    status, _, said = foveate("demo", str(tmp_path / "nowhere"))
    assert status == 2
    assert "no such folder" in said


def test_without_gradio_the_command_says_what_to_install(foveate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, said = foveate("demo")
    assert status == 2
    assert "pip install 'foveate[demo]'" in said


# ---- boxes and questions ---------------------------------------------------------------------------------------------------


def test_boxes_by_hand() -> None:
    assert read_box("") is None
    assert read_box("40, 10; 20, 30") == (20.0, 10.0, 40.0, 30.0)
    assert box_text(((90.0, -3.0), (10.6, 120.0)), (100, 100)) == "11, 0, 90, 100"
    with pytest.raises(DemoError, match="four numbers"):
        read_box("1, 2, 3")
    with pytest.raises(DemoError, match="Mark the evidence first"):
        scene_ask("evidence")
    with pytest.raises(DemoError, match="no way 'shout'"):
        scene_ask("shout")
    with pytest.raises(DemoError, match="less than a pixel inside"):
        scene_ask("evidence", box_px_xyxy=(500.0, 500.0, 600.0, 600.0)).sample()


def test_the_evidence_view_is_the_padded_crop() -> None:
    ask = scene_ask("evidence", box_px_xyxy=(100.0, 40.0, 180.0, 80.0))
    view = ask.view(ask.sample(), ask.mode(tiny=True), None)
    (crop,) = view.pictures
    # a quarter of 80 x 40 on each side
    assert np.array_equal(np.asarray(crop.rgb()), np.asarray(draw_scene("place", 3).visual(1).rgb())[30:90, 80:200])  # type: ignore[union-attr]


def test_scenes_are_of_the_test_split_and_know_their_answers() -> None:
    source = draw_scene("detail", 7)
    assert source.scene == ("detail", 2 * 10**12 + 7)
    assert source.answers["What letter is on the " + next(iter(source.answers))[22:]] in "ACEHKLPTXZ"
    assert any(question.startswith("Where is") for question in source.answers)
    with pytest.raises(DemoError, match="no world 'moon'"):
        draw_scene("moon")


def test_the_preview_shows_the_box_and_its_first_corner() -> None:
    picture = Picture.of(np.zeros((100, 2048, 3), np.uint8))
    image = preview(picture, box=(200.0, 20.0, 400.0, 60.0))
    assert image.size == (1024, 50)
    assert image.getpixel((100, 20)) == (255, 0, 90)
    assert image.getpixel((150, 20)) == (0, 0, 0)
    assert preview(picture, corner=(300.0, 40.0)).getpixel((150, 20)) == (255, 0, 90)


# ---- answers ---------------------------------------------------------------------------------------------------------------


def test_tools_stream_and_show_the_zoom(tiny: Local) -> None:
    ask = scene_ask("tools")
    stories = list(start(tiny, ask).stories(every_s=0.0))
    last = stories[-1]
    assert last.state == "done"
    assert [len(turn.calls) for turn in last.turns] == [1, 0]
    assert last.text == f"<answer>{ask.source.answers[ask.question]}</answer>"
    x1, y1, x2, y2 = last.turns[0].calls[0].box_px_xyxy or (0, 0, 0, 0)
    (crop,) = last.turns[0].visuals
    assert isinstance(crop, Picture)
    assert crop.size_px == (x2 - x1, y2 - y1)
    assert last.tokens == stories[-2].tokens, "every token was told"
    assert len({story.tokens for story in stories}) > 5, "and one after the other"
    grown = [story.turns[0].text for story in stories if story.turns and story.state == "playing"]
    assert all(last.turns[0].text.startswith(text) for text in grown)
    page = answer_html(last, ask, tiny)
    assert page.count("<img") == 2
    assert "✓ right" in page
    assert f"left:{100 * x1 / 400:.2f}%;top:{100 * y1 / 400:.2f}%" in page


@pytest.mark.parametrize("way", ["direct", "imagine", "evidence"])
def test_other_ways_show_no_tools(tiny: Local, way: str) -> None:
    ask = scene_ask(way, 11, "detail", box_px_xyxy=(10.0, 10.0, 60.0, 60.0))
    story = last_story(tiny, ask)
    assert (story.state, story.calls, len(story.turns)) == ("done", 0, 1)
    assert story.text.startswith("I zoom in" if way == "imagine" else "<answer>")
    page = answer_html(story, ask, tiny)
    assert page.count("<img") == (2 if way == "evidence" else 1)
    assert ("fv-box" in page) == (way == "evidence")


def test_a_video_is_asked_about(tiny: Local, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", greys(20))
    source = open_upload(str(tmp_path / "clip.mp4"), Limits(), tmp_path)
    story = last_story(tiny, Ask(source, "What letter is on the red circle?", "direct", frames=4))
    assert story.state == "done"
    assert answer_html(story, Ask(source, "What?", "direct", frames=4), tiny).count("<img") == 4
    assert preview(source.visual(4)).width > preview(source.visual(4)).height
    with pytest.raises(DemoError, match="on a picture only"):
        Ask(source, "What?", "evidence", (0.0, 0.0, 5.0, 5.0))


def test_what_cannot_be_asked_is_told_without_paths(tiny: Local, tmp_path: Path) -> None:
    Image.new("RGB", (8, 2000)).save(tmp_path / "sliver.png")
    source = open_upload(str(tmp_path / "sliver.png"), Limits(), tmp_path)
    for ask, said in (
        (Ask(source, "What?", "direct"), "factor of 200"),
        (Ask(draw_scene("place", 1), "<|im_end|>", "direct"), "reserved token <|im_end|>"),
    ):
        story = last_story(tiny, ask)
        assert story.state == "failed"
        assert said in story.error
        assert str(tmp_path) not in story.error


def test_nothing_a_model_or_visitor_writes_is_markup(tiny: Local) -> None:
    ask = scene_ask("direct")
    evil = "<script>alert(1)</script>"
    call = ToolCall(name=evil, error=evil)
    page = answer_html(Story("done", turns=(ShownTurn(evil, (call,)),), error=evil), ask, tiny)
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 3
    assert "<script>" not in problem_html(evil)


def test_an_abandoned_answer_ends_at_its_next_turn(tiny: Local) -> None:
    writer = Writer(tiny.renderer.decode)
    writer.abandoned = True
    with pytest.raises(RuntimeError):
        tiny.play(scene_ask("tools"), writer)


# ---- many visitors ---------------------------------------------------------------------------------------------------------


def test_visitors_share_batches_and_get_the_answers_they_would_get_alone(tiny: Local) -> None:
    asks = [scene_ask("tools" if n % 2 else "imagine", n) for n in range(12)]
    alone = [last_story(tiny, ask) for ask in asks]
    tiny.together.biggest = 0
    writers = [start(tiny, ask) for ask in asks]
    with ThreadPoolExecutor(len(asks)) as readers:
        watched = list(readers.map(lambda writer: list(writer.stories(every_s=0.0)), writers))
    together = [stories[-1] for stories in watched]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert tiny.together.biggest > 1
    for stories in watched:  # nobody hears another's tokens
        assert len(stories) > 5
        for story in stories:
            for early, late in zip(story.turns, stories[-1].turns, strict=False):
                assert late.text.startswith(early.text)


def test_a_fault_leaves_nobody_waiting(tiny: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    monkeypatch.setattr(Local, "play", lambda self, ask, writer: {}["nothing"])
    story = last_story(tiny, scene_ask("direct"))
    assert story.state == "failed"
    assert "broke off" in story.error


def test_a_visitor_whose_turn_fails_fails_alone() -> None:
    vlm = load("tiny")

    class Picky(HFEngine):
        def generate(self, contexts: Any, seeds: Any, sampling: Any, **more: Any) -> Any:
            if any(one.ids_T[0] == 7 for one in contexts):
                raise RuntimeError("sevens are refused")
            return super().generate(contexts, seeds, sampling, **more)

    together = Together(vlm)
    together.engine = Picky(vlm)
    source = draw_scene("place", 1)
    good = vlm.renderer.prompt((Message.user(source.visual(1), "What letter is on the red circle?"),))
    bad = type(good)(np.full(3, 7), np.tile(np.arange(3), (3, 1)), 3)
    heard: list[int] = []
    results: dict[int, object] = {}
    gate = threading.Barrier(6)

    def ask(n: int) -> None:
        gate.wait()
        try:
            results[n] = together.ear(heard.append if n == 0 else lambda token: None).generate(
                [bad if n == 3 else good], [[n]], Sampling(temperature=0.0, max_new_tokens=4)
            )
        except RuntimeError as error:
            results[n] = str(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[3] == "sevens are refused"
    rest = [results[n] for n in range(6) if n != 3]
    assert all(one == rest[0] for one in rest)
    first = rest[0][0][0].ids  # type: ignore[index]
    assert tuple(heard[-len(first) :]) == first


# ---- behind a server -------------------------------------------------------------------------------------------------------


def colours(folder: Path) -> Source:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    pixels[12:36, 12:36] = (20, 200, 20)
    Image.fromarray(pixels).save(folder / "noise.png")
    return open_upload(str(folder / "noise.png"), Limits(), folder)


QUESTION = "Which colour is in the middle?\nA. red\nB. green\nC. blue"


def test_a_server_answers_with_tools_that_run_here(tmp_path: Path) -> None:
    with FaultyServer(plan=("500", "half")) as server:
        player = Remote(Server(url=server.url, model="peer", stream=True, retries=3, pause_s=0.01))
        stories = list(start(player, Ask(colours(tmp_path), QUESTION, "tools")).stories(every_s=0.0))
    last = stories[-1]
    assert last.state == "done"
    assert [len(turn.calls) for turn in last.turns] == [1, 0]
    assert last.turns[0].calls[0].box_px_xyxy == (12, 12, 36, 36)
    (crop,) = last.turns[0].visuals
    assert isinstance(crop, Picture)
    assert crop.size_px == (24, 24)
    assert last.text == "<answer>B</answer>"
    assert "48 × 48 px</figcaption>" in answer_html(last, Ask(colours(tmp_path), QUESTION, "tools"), player)


def test_a_server_that_refuses_is_told(tmp_path: Path) -> None:
    with FaultyServer(plan=("401",) * 9) as server:
        story = last_story(
            Remote(Server(url=server.url, model="peer", stream=True, retries=0)), Ask(colours(tmp_path), QUESTION, "direct")
        )
    assert story.state == "failed"
    assert "check the key" in story.error


def test_text_is_read_out_of_a_stream_cut_anywhere() -> None:
    events = [{"choices": [{"delta": {"content": text}}]} for text in ("Grün", "er ", "Ball")]
    data = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"
    for size in (1, 3, 1000):
        writer = Writer()
        stream = _Stream(writer)
        stream.heard(b"data: broken\n")
        stream.heard(b"")
        for at in range(0, len(data), size):
            stream.heard(data[at : at + size])
        writer.called(Reply(Message.user("seen"), (ToolCall(name="zoom"),)))
        story = writer._now()
        assert story.turns[0].text == "Grüner Ball"
        assert story.tokens == 3


# ---- the code that does the same -------------------------------------------------------------------------------------------


def executed(code: list[str], folder: Path) -> str:
    done = subprocess.run(code, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_lines_give_the_same_answer(
    tiny: Local, foveate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for way, world in (("tools", "place"), ("imagine", "detail"), ("direct", "detail")):
        ask = scene_ask(way, 5, world)
        story = last_story(tiny, ask)
        draw, line = (shlex.split(one) for one in command(ask, tiny).splitlines())
        assert draw[:2] == ["python", "-c"]
        if not (tmp_path / ask.source.name).exists():
            executed([sys.executable, *draw[1:]], tmp_path)
        status, said, shown = foveate(*line[1:])
        assert status == 0, shown
        for turn in story.turns:
            assert turn.text in said
        assert f"{story.tokens} tokens, {story.calls} calls" in said


def test_the_python_gives_the_same_answers(tiny: Local, tmp_path: Path) -> None:
    draw_scene("place", 8).visual(1).rgb().save(tmp_path / "it's.png")  # type: ignore[union-attr]
    upload = open_upload(str(tmp_path / "it's.png"), Limits(), tmp_path)
    question = next(iter(draw_scene("place", 8).answers))
    pairs: list[tuple[Ask, Player]] = [
        (scene_ask("tools", 6), tiny),
        (Ask(upload, question, "evidence", (40.0, 60.0, 200.0, 220.0)), tiny),
        (Ask(upload, question, "tools", temperature=1.5, seed=4), tiny),
    ]
    (tmp_path / "same.py").write_text(python(pairs))
    said = executed([sys.executable, "same.py"], tmp_path)
    told = "\n".join(turn.text for ask, player in pairs for turn in last_story(player, ask).turns)
    assert [line for line in said.splitlines() if line] == [line for line in told.splitlines() if line]


def test_a_command_is_quoted_and_says_where_it_has_no_words(tiny: Local, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "-x y$.png")
    source = open_upload(str(tmp_path / "-x y$.png"), Limits(), tmp_path)
    words = shlex.split(command(Ask(source, "--what 'is' $(it)?", "direct"), tiny))
    assert words[:2] == ["foveate", "rollout"]
    assert words[words.index("--") :] == ["--", "tiny", "-x y$.png", "--what 'is' $(it)?"]
    assert words[words.index("--system") + 1] == ""
    assert "use the Python" in command(scene_ask("evidence", box_px_xyxy=(1.0, 1.0, 9.0, 9.0)), tiny)
    remote = Remote(Server(url="http://127.0.0.1:1/v1", model="m", family="qwen2.5-vl"))
    assert "use the Python" in command(scene_ask("direct"), remote)
    script = python([(scene_ask("direct"), remote)])
    assert "Server(url='http://127.0.0.1:1/v1', model='m', family='qwen2.5-vl')" in script
    compile(script, "same.py", "exec")


def test_runs_from_the_tiny_model_speak_its_words(tmp_path: Path) -> None:
    save(load("tiny"), tmp_path / "run" / "checkpoints" / "step_3")
    save(tiny_random("qwen3_vl"), tmp_path / "other")
    assert knows_tiny_words(tmp_path / "run" / "checkpoints" / "step_3")
    assert not knows_tiny_words(tmp_path / "other")
    player = open_local(str(tmp_path / "run"))
    assert player.tiny
    assert "step_3" in player.about
    words = shlex.split(command(scene_ask("tools"), player).splitlines()[1])
    assert words[words.index("--system") + 1] == "Zoom with image_zoom_in_tool."


# ---- the gate --------------------------------------------------------------------------------------------------------------


def through(gate: Gate, path: str, body: bytes = b"", host: str = "127.0.0.1:7860", method: str = "POST") -> tuple[int, bytes]:
    """Status and body of a request; 200 and the body that was sent when it is let through."""
    sent: list[Any] = []
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]

    async def receive() -> Any:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"Host", host.encode())]}
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"] if scope["method"] == "POST" else b""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_the_gate_bounds_requests_and_refuses_remote_files() -> None:
    gate = Gate(echo, max_json_bytes=5000, hosts=("127.0.0.1", "localhost"))
    join = "/gradio_api/queue/join"
    fine = json.dumps({"data": ["What about http://x?", {"path": "/tmp/a.png"}]}).encode()
    assert through(gate, join, fine) == (200, fine)
    status, said = through(gate, join, b"x" * 5001)
    assert status == 413
    assert b"too large" in said
    nested = {"data": [{"a": [{"path": " HTTPS://example.org/a.png", "meta": {}}]}]}
    assert through(gate, join, json.dumps(nested).encode())[0] == 403
    assert through(gate, "/gradio_api/proxy=http://x/y", method="GET")[0] == 404
    assert through(gate, "/gradio_api/file=https://x/y.png", method="GET")[0] == 404
    assert through(gate, "/gradio_api/file=/tmp/a.png", method="GET")[0] == 200
    assert through(gate, join, fine, host="evil.example:7860")[0] == 421
    assert through(gate, join, fine, host="localhost")[0] == 200
    assert through(Gate(echo, max_json_bytes=5000), join, fine, host="evil.example")[0] == 200
    assert not names_remote_file(b"not json")
    assert not names_remote_file(b"[" * 100_000)


def test_the_page_names_no_other_machine() -> None:
    for path in (ROOT / "demo" / "templates").iterdir():
        assert not re.findall(r"(?:https?:)?//[a-z]", path.read_text(encoding="utf-8")), path.name
