"""The demo as it is served: what may be sent and read over HTTP, and fifty visitors at once. Needs Gradio, no browser."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the demo's page needs Gradio: pip install 'foveate[demo]'")

import httpx
from gradio_client import Client, handle_file
from PIL import Image
from test_demo import SAID, bad_files

from foveate.demo.limits import Limits
from foveate.demo.players import Local, open_local
from foveate.demo.serve import Address, serving
from foveate.demo.sources import draw_scene

ASK = {"way": "tools", "model": "tiny", "compare": False, "way_b": "direct", "model_b": "tiny", "temperature": 0, "seed": 0}


@pytest.fixture(scope="module")
def tiny() -> Local:
    return open_local("tiny")


@pytest.fixture(scope="module")
def served(tiny: Local) -> Iterator[Address]:
    with serving([tiny], Limits(upload_mb=2, queue=100), port=None) as address:
        yield address


def visitor(address: Address, folder: Path) -> Client:
    return Client(address.url, verbose=False, download_files=str(folder), analytics_enabled=False)


def asked(client: Client, question: str, **changes: Any) -> str:
    """The first panel, as HTML."""
    return str(client.predict(**{**ASK, "box": "", "question": question, **changes}, api_name="/ask")[0])


def said(client: Client, path: Path) -> str:
    """The problem that an upload has."""
    return str(client.predict(path=handle_file(str(path)), api_name="/upload")[-1])


def test_it_listens_on_this_machine_alone_and_phones_nobody(served: Address) -> None:
    assert served.host == "127.0.0.1"
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    config = httpx.get(f"{served.url}config").json()
    assert config["analytics_enabled"] is False
    page = httpx.get(served.url).text
    fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//([^/"]+)', page)
    assert set(fetched) <= {f"127.0.0.1:{served.port}"}
    assert httpx.get(served.url, headers={"Host": "evil.example"}).status_code == 421


def test_bad_uploads_and_questions_are_answered_in_a_sentence(served: Address, tmp_path: Path) -> None:
    client = visitor(served, tmp_path)
    assert "There is no picture yet" in asked(client, "What?")
    for what, path in bad_files(tmp_path).items():
        assert SAID[what].split(";")[0] in said(client, path), what
    too_much = httpx.post(f"{served.url}gradio_api/upload", files={"files": ("big.bmp", b"x" * (3 << 20))})
    assert too_much.status_code == 413
    assert "exceeds" in too_much.text or "maximum" in too_much.text
    client.predict(world="place", api_name="/draw")
    assert "The question is empty" in asked(client, " \n")
    assert "4,001 characters" in asked(client, "a" * 4001)
    with pytest.raises((httpx.HTTPStatusError, ValueError), match=r"413|too large"):
        asked(client, "a" * (10 << 20))
    assert "four numbers" in asked(client, "What?", way="evidence", box="1, 2")
    assert "Mark the evidence first" in asked(client, "What?", way="evidence")
    assert "What letter" in str(client.predict(world="detail", api_name="/draw")[-2]), "it is still there"


def post(address: Address, data: list[Any], name: str = "upload") -> httpx.Response:
    return httpx.post(f"{address.url}gradio_api/call/{name}", json={"data": data}, timeout=60)


def events(address: Address, reply: httpx.Response, name: str = "upload") -> str:
    return httpx.get(f"{address.url}gradio_api/call/{name}/{reply.json()['event_id']}", timeout=30).text


def test_no_other_file_can_be_read(served: Address, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "secret.png")
    Image.new("RGB", (8, 8), (255, 0, 0)).save("/tmp/foveate-secret.png")
    try:
        for path in (tmp_path / "secret.png", Path("/tmp/foveate-secret.png"), Path(__file__), Path("/etc/passwd")):
            reply = post(served, [{"path": str(path), "meta": {"_type": "gradio.FileData"}}])
            assert "event: error" in events(served, reply), path
            for door in ("file=", "file/"):
                assert httpx.get(f"{served.url}gradio_api/{door}{path}").status_code in (403, 404), path
    finally:
        os.unlink("/tmp/foveate-secret.png")
    for name in ("../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "pyproject.toml"):
        assert httpx.get(f"{served.url}gradio_api/file={name}").status_code in (403, 404)


def test_no_remote_file_is_fetched(served: Address) -> None:
    url = "http://127.0.0.1:9/picture.png"
    for name, data in (("upload", [{"path": url, "meta": {"_type": "gradio.FileData"}}]), ("draw", [{"path": url}])):
        reply = post(served, data, name)
        assert reply.status_code == 403
        assert "No file is fetched" in reply.text
    assert "No picture is fetched from the network here" in events(served, post(served, [url], "fetch"), "fetch")
    assert httpx.get(f"{served.url}gradio_api/proxy={url}").status_code == 404


def test_allowed_remote_pictures_come_from_public_addresses_only(tmp_path: Path) -> None:
    from foveate.demo.limits import DemoError
    from foveate.demo.sources import fetch

    for address in ("http://127.0.0.1:9/a.png", "http://localhost/a.png", "http://169.254.169.254/a.png"):
        with pytest.raises(DemoError, match="cannot be fetched"):
            fetch(address, Limits(), tmp_path)
    for address in ("file:///etc/passwd", "/etc/passwd.png", "ftp://example.org/a.png", "http://example.org/a.html"):
        with pytest.raises(DemoError, match="Give the address of a picture"):
            fetch(address, Limits(), tmp_path)


def test_fifty_visitors_at_once_lose_nothing(served: Address, tiny: Local, tmp_path: Path) -> None:
    """Each with a scene of his own; answers are those that he would have got alone."""
    visitors = 50
    clients = [visitor(served, tmp_path) for _ in range(visitors)]
    tiny.together.biggest = 0
    ready, results, errors = threading.Barrier(visitors), {}, []

    def ask(number: int) -> None:
        try:
            drawn = clients[number].predict(world="place", api_name="/draw")
            question, known = drawn[-2], [choice[0] for choice in drawn[-3]["choices"]]
            assert question in known
            ready.wait(300)
            results[number] = question, asked(clients[number], question)
        except (OSError, ValueError, RuntimeError, AssertionError, threading.BrokenBarrierError) as error:
            errors.append(f"{number}: {type(error).__name__}: {error}")
            ready.abort()

    start = time.monotonic()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(400)
    assert not errors, errors[:3]
    assert len(results) == visitors
    for question, page in results.values():
        assert 'data-state="done"' in page, question
        assert ">zoom<" in page
    right = sum("✓ right" in page for _, page in results.values())
    assert right >= 40, "the embedded model reads 96 of 100"
    assert tiny.together.biggest > 1
    assert time.monotonic() - start < 300


def test_a_full_queue_says_so(tiny: Local, tmp_path: Path) -> None:
    with serving([tiny], Limits(queue=1, together=1), port=None) as address, ThreadPoolExecutor(40) as crowd:
        replies = list(crowd.map(lambda _: post(address, ["place"], "draw"), range(80)))
    full = [reply for reply in replies if reply.status_code == 503]
    assert full, [reply.status_code for reply in replies]
    assert "ueue is full" in json.dumps(full[0].json())


def test_uploads_are_gone_when_it_ends(tiny: Local, tmp_path: Path) -> None:
    draw_scene("place", 1).visual(1).rgb().save(tmp_path / "scene.png")  # type: ignore[union-attr]
    with serving([tiny], Limits(), port=None) as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        client = visitor(address, tmp_path)
        assert said(client, tmp_path / "scene.png").strip() == ""
        assert list(folder.rglob("scene.png"))
        assert ">zoom<" in asked(client, next(iter(draw_scene("place", 1).answers)))
    assert not folder.exists()
