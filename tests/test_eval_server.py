"""The client of OpenAI-compatible servers, against one that is faulty on purpose."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import FAULTS, FaultyServer, colour_items
from PIL import Image

from foveate.eval.chat import Pacer, Refused, ServerError, TryAgain, data_url, read_answer
from foveate.eval.engines import Task
from foveate.eval.lazy_pictures import LazyPicture
from foveate.eval.modes import mode
from foveate.eval.records import Mode, Played
from foveate.eval.server import Server
from foveate.vlm.images import Picture
from foveate.vlm.messages import Clip

QUICK = {"pause_s": 0.002, "max_pause_s": 0.05, "timeout_s": 5.0}


def tasks(count: int, how: Mode | None = None, start: int = 0) -> list[Task]:
    chosen = colour_items(start + count)[start:]
    return [Task(item, how or mode("direct"), 0, f"direct/{item.id}") for item in chosen]


def played(server: Server, asked: list[Task]) -> dict[str, Played]:
    found: dict[str, Played] = {}

    def done(task: Task, one: Played) -> None:
        assert task.item.id not in found
        found[task.item.id] = one

    server.play(iter(asked), done)
    return found


def client(server: FaultyServer, **changes: Any) -> Server:
    return Server(url=server.url, model="colours", **{**QUICK, **changes})


# ---- faults ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_survived_and_costs_one_more_request(fault: str, stream: bool) -> None:
    with FaultyServer(plan=(fault,), late_s=1.2) as server:
        asking = client(server, workers=1, stream=stream, timeout_s=0.6 if fault == "late" else 20)
        found = played(asking, tasks(1, start=1))["item-1"]
        assert server.happened == {fault: 1}
        assert list(server.seen.values()) == [2]
        assert list(server.answered.values()) == [1]
    assert (found.texts, found.stop, found.error) == (("<answer>A</answer>",), "answered", "")
    assert (found.tokens_in, found.tokens_out) == (107, 1)  # one picture: 100, and 7


def test_retries_end_and_the_others_go_on() -> None:
    with FaultyServer(plan=()) as server:
        found = played(client(server, workers=4, retries=3), tasks(12))
        counts = sorted(server.seen.values())
    assert counts == [1] * 11 + [4]  # only "never" is asked again; "refused" is not
    failed = {name: one.error for name, one in found.items() if one.stop == "failed"}
    assert failed == {
        "item-5": 'Refused: HTTP 400: {"error": {"message": "on purpose: 400"}}',
        "item-9": 'Lost: no answer in 4 tries; the last: HTTP 500: {"error": {"message": "on purpose: 500"}}',
    }
    assert all(found[name].texts == () for name in failed)


@pytest.mark.parametrize("status", ["401", "404"])
def test_what_no_pause_mends_stops_the_evaluation(status: str) -> None:
    with (
        FaultyServer(plan=(status,) * 9) as server,
        pytest.raises(ServerError, match=rf"{server.url} refuses with HTTP {status}"),
    ):
        played(client(server, workers=2), tasks(4))


def test_a_dead_server_is_given_up() -> None:
    with FaultyServer() as server:
        url = server.url
    gone = Server(url=url, model="m", workers=2, retries=1, give_up_after=5, **{**QUICK, "timeout_s": 0.5})
    found: list[Played] = []
    with pytest.raises(ServerError, match=r"no answer to the last 5 questions .*another try for what has failed"):
        gone.play(tasks(30), lambda task, one: found.append(one))
    assert [one.stop for one in found] == ["failed"] * 5


def test_refusals_do_not_count_as_death() -> None:
    with FaultyServer(plan=("400",)) as server:
        found = played(client(server, workers=2, give_up_after=3), tasks(8))
    assert len(found) == 8
    assert all(one.stop == "failed" for one in found.values())


def test_retry_after_holds_every_worker() -> None:
    with FaultyServer(plan=("429",), after="0.4") as server:
        played(client(server, workers=1, max_pause_s=5.0), tasks(1, start=1))
        first, second = server.times_s
    assert 0.4 <= second - first < 5
    with FaultyServer(plan=("429",), after="3600") as server:  # a wish has its limit
        played(client(server, workers=1, max_pause_s=0.3), tasks(1, start=1))
        first, second = server.times_s
    assert 0.3 <= second - first < 60
    pacer, times = Pacer(None), []
    pacer.hold(0.2)
    start = time.monotonic()

    def ask() -> None:
        pacer.wait()
        times.append(time.monotonic() - start)

    others = [threading.Thread(target=ask) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert min(times) >= 0.19


def test_the_rate_is_that_of_all_workers_together() -> None:
    with FaultyServer(plan=()) as server:
        played(client(server, workers=8, per_minute=1200), tasks(8, start=10))
        gaps = np.diff(server.times_s)
    assert len(gaps) == 7
    assert server.times_s[-1] - server.times_s[0] >= 7 * 0.05 - 0.03


def test_64_workers_ask_at_once_and_no_more() -> None:
    with FaultyServer(plan=("late",), late_s=0.7) as server:
        found = played(client(server, workers=64, timeout_s=20, retries=0), tasks(100, start=10))
        assert 48 <= server.busiest <= 64
    assert len(found) == 100


def test_a_pacer_that_was_stopped_wakes_and_refuses() -> None:
    pacer = Pacer(None)
    pacer.hold(60)
    threading.Timer(0.05, pacer.stop).start()
    start = time.monotonic()
    with pytest.raises(Refused, match="stopped"):
        pacer.wait()
    assert time.monotonic() - start < 30


def test_workers_end_with_an_evaluation_that_is_broken_off() -> None:
    def some() -> Iterator[Task]:
        yield from tasks(3)
        raise KeyboardInterrupt

    gone = Server(url="http://127.0.0.1:1/v1", model="m", workers=3, pause_s=60.0, max_pause_s=60.0)
    with pytest.raises(KeyboardInterrupt):
        gone.play(some(), lambda task, one: None)
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("ask-")]
    for worker in workers:
        worker.join(5)
    assert not any(worker.is_alive() for worker in workers)  # though each was to wait for a minute


def test_a_broken_worker_is_told() -> None:
    class Broken(Server):
        def ask(self, *_: Any) -> Any:
            raise KeyError("a bug")

    errors: list[Any] = []
    before, threading.excepthook = threading.excepthook, errors.append
    try:
        with pytest.raises(RuntimeError, match="worker of the server's client broke"):
            Broken(url="http://127.0.0.1:1/v1", model="m", workers=1).play(tasks(1), lambda task, one: None)
    finally:
        threading.excepthook = before
    assert [error.exc_type for error in errors] == [KeyError]


# ---- what is sent ------------------------------------------------------------------------------------------------------------


def test_the_request_says_how_to_sample_and_the_key_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    how = mode("direct", temperature=0.7, max_new_tokens=33)
    with FaultyServer(plan=()) as server:
        monkeypatch.delenv("OUR_KEY", raising=False)
        played(client(server, key_env="OUR_KEY", extra={"top_p": 0.9}), tasks(1, how, start=1))
        body = server.last
        assert server.key is None
        monkeypatch.setenv("OUR_KEY", "secret")
        played(client(server, key_env="OUR_KEY"), tasks(1, how, start=1))
        assert server.key == "Bearer secret"
        played(client(server, stream=True), [replace(tasks(1, how, start=1)[0], seed=1)])
    expected = {"model": "colours", "temperature": 0.7, "max_tokens": 33, "top_p": 0.9}
    assert {name: body[name] for name in expected} == expected
    assert server.last["stream"] is True
    assert body["seed"] != server.last["seed"]
    user = body["messages"][0]
    assert user["role"] == "user"
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]


def test_the_tail_of_the_benchmark_stands_last() -> None:
    with FaultyServer(plan=()) as server:
        played(client(server), [replace(tasks(1, start=1)[0], tail="Answer with the letter.")])
        text = server.last["messages"][0]["content"][1]["text"]
    assert text.endswith("\nD. " + colour_items(2)[1].sample.options[3] + "\nAnswer with the letter.")


def test_tools_are_carried_out_here_turn_by_turn() -> None:
    with FaultyServer(faults=FAULTS, most=2, late_s=0.5) as server:
        asked = [replace(task, store=lambda picture: f"{picture.width_px}.png") for task in tasks(3, mode("tools"), start=1)]
        found = played(client(server, workers=3, timeout_s=0.3), asked)
        body = server.last
    one = found["item-1"]
    assert one.texts[0].endswith('"arguments": {"bbox_2d": [250, 250, 750, 750]}}\n</tool_call>')
    assert (one.texts[1:], one.stop) == (("<answer>A</answer>",), "answered")
    (call,) = one.calls
    assert (call["name"], call["turn"], call["image"], call["error"]) == ("zoom", 0, 0, None)
    assert tuple(call["box_px_xyxy"]) == (12, 12, 36, 36)
    first = len(one.texts[0].split())
    # the prompt of the second turn has two pictures (200 + 7) and what was written, which is output and not input
    assert (one.tokens_in, one.tokens_out) == (207, first + 1)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [message["role"] for message in one.story] == ["system", "user", "assistant", "user", "assistant"]
    assert [part["image"] for part in one.story[3]["content"] if part["type"] == "image"] == ["24.png"]


def test_the_last_turn_that_calls_a_tool_ends_by_its_limit() -> None:
    with FaultyServer(plan=()) as server:
        one = played(client(server), tasks(1, mode("tools", max_turns=1), start=1))["item-1"]
    assert (one.stop, len(one.texts), len(one.calls)) == ("turns", 1, 1)
    assert one.tokens_in == 107


def test_a_family_counts_tokens_and_makes_pictures_smaller() -> None:
    item = colour_items(2)[1]
    large = Picture.of(item.sample.images[0].rgb().resize((640, 320), Image.Resampling.NEAREST))
    asked = [Task(replace(item, sample=replace(item.sample, images=(large,))), mode("direct"), 0, "k")]
    with FaultyServer(plan=()) as server:
        one = played(client(server, family="qwen2.5-vl", max_pixels=28 * 28 * 50), asked)["item-1"]
        url = server.last["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as sent:
        assert sent.size == (280, 140)  # 10 x 5 tokens of 28 px
    assert one.tokens_image == 50
    assert one.texts == ("<answer>A</answer>",)


def test_frames_are_sent_with_their_seconds() -> None:
    item = colour_items(2)[1]
    clip = Clip((item.sample.images[0],) * 2, (0.0, 1.5))
    asked = [Task(replace(item, sample=replace(item.sample, images=(), video=clip)), mode("direct"), 0, "k")]
    with FaultyServer(plan=()) as server:
        played(client(server), asked)
        parts = server.last["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url", "text"]
    assert [parts[0]["text"], parts[2]["text"]] == ["<0.0 seconds>", "<1.5 seconds>"]


def test_a_file_is_sent_as_it_is_unless_readers_would_disagree(tmp_path: Path) -> None:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels.save(tmp_path / "plain.jpg")
    pixels.save(tmp_path / "turned.jpg", exif=turned)
    pixels.convert("RGBA").save(tmp_path / "alpha.png")

    def sent(picture: Picture) -> tuple[str, bytes]:
        head, data = data_url(picture, picture.size_px, "png").split(",")
        return head, base64.b64decode(data)

    plain = (tmp_path / "plain.jpg").read_bytes()
    assert sent(Picture.open(tmp_path / "plain.jpg")) == ("data:image/jpeg;base64", plain)
    assert sent(LazyPicture(lambda: plain, "a test", "a test of sending")) == ("data:image/jpeg;base64", plain)
    for name, size in (("turned.jpg", (20, 30)), ("alpha.png", (30, 20))):
        head, data = sent(Picture.open(tmp_path / name))
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(data)) as image:
            assert (image.size, image.mode) == (size, "RGB")
            assert np.array_equal(np.asarray(image), np.asarray(Picture.open(tmp_path / name).rgb()))


def test_a_broken_picture_fails_its_own_task_only(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good, bad = colour_items(3)[1:]
    lost = LazyPicture(lambda: tmp_path / "broken.png", "row 2", str(tmp_path))
    broken = replace(bad, sample=replace(bad.sample, images=(lost,)))
    asked = [Task(broken, mode("direct"), 0, "b"), Task(good, mode("direct"), 0, "g")]
    with FaultyServer(plan=()) as server:
        found = played(client(server, workers=1), asked)
        assert sum(server.seen.values()) == 1
    assert found["item-2"].stop == "failed"
    assert "broken.png" in found["item-2"].error
    assert found["item-1"].stop == "answered"


# ---- what comes back ---------------------------------------------------------------------------------------------------------


def reply(**message: Any) -> bytes:
    finish = message.pop("finish", "stop")
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()


def test_thoughts_and_cuts_are_told_apart() -> None:
    thought = read_answer(reply(content="B", reasoning_content="Hm."), 1.0, False)
    assert (thought.content, thought.text, thought.cut) == ("B", "<think>Hm.</think>\nB", False)
    cut = read_answer(reply(content=None, reasoning="Hm, A or", finish="length"), 1.0, False)
    assert (cut.content, cut.text, cut.cut) == ("", "<think>Hm, A or", True)
    assert read_answer(reply(content="", finish="length"), 1.0, False).cut
    counted = json.loads(reply(content="B"))
    counted["usage"] = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"image_tokens": 4}}
    read = read_answer(json.dumps(counted).encode(), 1.0, False)
    assert (read.tokens_in, read.tokens_out, read.tokens_image) == (9, 2, 4)


@pytest.mark.parametrize(
    "data",
    [
        reply(content=""), reply(content=None), reply(content=["B"]), b"", b"null", b"[]", b'{"choices": []}', b"\xff\xfe",
        b'{"choices": [{"message": null}]}', b"[" * 100_000, b'{"choices": [{"message": {"content": "B"}}], "usage": 3}',
    ],
)  # fmt: skip
def test_garbage_is_asked_again(data: bytes) -> None:
    with pytest.raises(TryAgain):
        read_answer(data, 1.0, False)


def test_a_stream_must_reach_its_end() -> None:
    event = b'data: {"choices": [{"delta": {"content": "B"}, "finish_reason": "stop"}]}\n\n'
    assert read_answer(b": ping\n\n" + event + b"data: [DONE]\n\n", 1.0, True).content == "B"
    for data in (event, event[:-10], b"data: [DONE]\n\n", b'data: {"error": "x"}\n\ndata: [DONE]\n\n'):
        with pytest.raises(TryAgain):
            read_answer(data, 1.0, True)


@pytest.mark.parametrize(
    "changes",
    [{"url": "localhost:8000"}, {"workers": 0}, {"workers": 65}, {"timeout_s": 0}, {"max_pixels": 1000}, {"per_minute": 0}],
)
def test_settings_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|like http|1 to 64|set family"):
        Server(**{"url": "http://localhost:8000/v1", "model": "m", **changes})
