"""The judge, against a chat server of the test's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from reward_helpers import case, rollout, sample

from foveate.rewards.base import Case
from foveate.rewards.combine import RewardSpec, score_text
from foveate.rewards.endpoint import Endpoint, EndpointError
from foveate.rewards.terms.judge import Judge, verdict_in

# --- judge -------------------------------------------------------------------------------------------------------------------


class Server:
    """A chat server that says what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.replies: list[tuple[int, str]] = []
        self.default = (200, json.dumps({"choices": [{"message": {"content": "1"}}]}))
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                server.keys.append(self.headers["Authorization"])
                code, reply = server.replies.pop(0) if server.replies else server.default
                self.send_response(code)
                self.end_headers()
                self.wfile.write(reply.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def says(self, text: str) -> None:
        self.replies.append((200, json.dumps({"choices": [{"message": {"content": text}}]})))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


def judged(server: Server, **more: Any) -> Judge:
    return Judge(endpoint=Endpoint(url=server.url, model="m", wait_s=0.0, **more))


def test_the_judge_is_asked_once_and_remembers(server: Server, tmp_path: Path) -> None:
    server.says("Judgement: 0.5")
    one = judged(server, cache=str(tmp_path))
    asked = Case(sample("a blue car", "What is it?"), rollout("<think>hm</think><answer>blue {question} car</answer>"))
    assert one.values([asked]) == [0.5]
    prompt = server.asked[0]["messages"][0]["content"]
    assert "What is it?" in prompt
    assert "blue {question} car" in prompt
    assert "hm" not in prompt
    assert judged(server, cache=str(tmp_path)).values([asked, asked]) == [0.5, 0.5]
    assert len(server.asked) == 1
    next(tmp_path.rglob("*.json")).write_text("{", encoding="utf-8")  # a broken file is asked again
    assert one.values([asked]) == [1.0]


def test_the_judge_decides_the_outcome_and_unparsed_stays(server: Server) -> None:
    one = RewardSpec(terms={"acc": judged(server)}, total="acc")
    server.says("0")
    assert score_text(sample("K"), "<answer>P</answer>", one).outcome == "wrong"
    server.says("1")
    assert score_text(sample("K"), "It is a long sentence with the letter K.", one).outcome == "right"
    assert score_text(sample("K"), "<think>K</think>", one).outcome == "unparsed"
    assert score_text(sample("K"), "<answer>I don't know</answer>", one).outcome == "unparsed"
    assert score_text(sample("K"), "<answer>" + "K" * 1000 + "</answer>", one).outcome == "wrong"
    assert score_text(sample(None), "<answer>K</answer>", one).outcome == "unscored"
    assert len(server.asked) == 2


def test_the_judge_is_asked_by_many_threads(server: Server) -> None:
    cases = [Case(sample("K"), rollout(f"<answer>{number}</answer>")) for number in range(20)]
    assert judged(server).values(cases) == [1.0] * 20
    assert len(server.asked) == 20


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    judged(server, key_env="MY_KEY").values([case("<answer>x</answer>", sample("K"))])
    judged(server).values([case("<answer>x</answer>", sample("K"))])
    assert server.keys == ["Bearer secret", None]


def test_a_failing_server_is_tried_again_and_named(server: Server) -> None:
    endpoint = Endpoint(url=server.url, model="m", wait_s=0.0, retries=1)
    server.replies = [(500, "busy")]
    assert endpoint.complete("hi") == "1"
    server.replies = [(500, "busy"), (503, "busy")]
    with pytest.raises(EndpointError, match="cannot be reached after 2 tries"):
        endpoint.complete("hi")
    server.replies = [(401, "no")]
    with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
        endpoint.complete("hi")
    server.replies = [(200, "<html>")]
    with pytest.raises(EndpointError, match="JSON"):
        endpoint.complete("hi")
    server.replies = [(200, '{"choices": []}')]
    with pytest.raises(EndpointError, match="chat completion"):
        endpoint.complete("hi")
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:1/v1 cannot be reached.*start a server"):
        Endpoint(url="http://127.0.0.1:1/v1", model="m", retries=0).complete("hi")
    with pytest.raises(ValueError, match="http://"):
        Endpoint(url="file:///etc/passwd", model="m")


def test_a_judge_that_does_not_judge_is_an_error(server: Server) -> None:
    server.says("It depends.")
    asked = case("<answer>x</answer>", sample("K"))
    with pytest.raises(EndpointError, match=r"sample s: the judge m .*'It depends\.'"):
        judged(server).values([asked])
    server.says("It depends.")
    lenient = Judge(endpoint=Endpoint(url=server.url, model="m"), unreadable=0.0)
    assert lenient.values([asked]) == [0.0]
    said = {"1": 1.0, "Judgement: 0": 0.0, "because\n0.75": 0.75, "1/10": None, "7": None, "-1": None, "": None, "0 or 1": None}
    assert {text: verdict_in(text) for text in said} == said
    with pytest.raises(ValueError, match=r"lacks \{answer\}"):
        Judge(endpoint=Endpoint(url=server.url, model="m"), prompt="{question} {reference}")
