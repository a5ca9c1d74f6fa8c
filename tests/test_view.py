"""The run viewer without a browser: what it reads, what it finds, what it refuses, how it follows a run that grows."""

from __future__ import annotations

import http.client
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_run
import pytest

from foveate.train.recorder import RunFolderError
from foveate.view import Server, Site
from foveate.view_data import Filter, RunView, recipe_differences


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vision_opd"
    fake_run.write(folder, steps=30)
    return folder


@pytest.fixture(scope="module")
def zoomed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "deepeyes"
    fake_run.write_tools(folder)
    return folder


@pytest.fixture
def copied(zoomed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(zoomed, tmp_path / "copied")


def ids(view: RunView, sort: str = "newest", limit: int = 100, **asked: str) -> list[str]:
    return [row["id"] for row in view.search(Filter.parse(asked), sort, limit)["rows"]]


def ask(site: Site, path: str, **query: str) -> tuple[int, Any]:
    status, kind, body = site.answer(path, query)
    return status, json.loads(body) if kind == "application/json" else body


# ---------------------------------------------------------------- what is found


def test_every_filter_finds_what_it_says(zoomed: Path) -> None:
    """Three steps of four rollouts each; those at even places are right and have 1.2, the others 0.1."""
    view = RunView(zoomed)
    assert len(ids(view)) == 12
    assert ids(view, step_from="2", step_to="9") == ["-.5.0", "-.5.1", "-.5.2", "-.5.3"]
    assert ids(view, step_from="10", outcome="wrong") == ["-.10.1", "-.10.3"]
    assert ids(view, step_to="1", reward_from="1.2") == ["-.1.0", "-.1.2"]
    assert ids(view, step_to="1", reward_to="1") == ["-.1.1", "-.1.3"]
    assert ids(view, stream="grpo", stop="answered", step_to="1", reward_from="0.05", reward_to="0.2") == ["-.1.1", "-.1.3"]
    assert ids(view, stream="distill") == ids(view, stop="turns") == ids(view, sample="nothing like it") == []
    assert len(ids(view, sample="DETAIL-train")) == 12
    assert len(ids(view, text="ZOOM(0.25)")) == len(ids(view, text="tool_response")) == len(ids(view, text="what letter")) == 12
    assert ids(view, text="never said") == []


def test_the_list_is_ordered_cut_and_says_what_can_be_asked(zoomed: Path, distilled: Path) -> None:
    view = RunView(zoomed)
    assert ids(view, "oldest", limit=2) == ["-.1.0", "-.1.1"]
    assert ids(view, "newest", limit=1) == ["-.10.0"]
    assert ids(view, "-reward", limit=3) == ["-.1.1", "-.1.3", "-.5.1"]
    assert ids(view, "reward", limit=3) == ["-.1.0", "-.1.2", "-.5.0"]
    found = view.search(Filter(outcome="right"), limit=2)
    assert (len(found["rows"]), found["matched"], found["total"]) == (2, 6, 12)
    assert found["options"] == {"stream": ["grpo"], "stop": ["answered"], "outcome": ["right", "wrong"], "stage": []}
    row = found["rows"][0]
    assert {key: row[key] for key in ("step", "turns", "calls", "tokens", "reward", "divergence", "said")} == {
        "step": 10, "turns": 2, "calls": 1, "tokens": 7, "reward": 1.2, "divergence": None, "said": "<answer>K</answer>",
    }  # fmt: skip
    other = RunView(distilled)
    first = ids(other, "divergence", limit=1)[0]
    assert other.entries[first].row["step"] == 1, "0.61 nats at step 1, less at step 30"
    mean = (3 * 0.001 + 0.6 * math.exp(-1 / 60) + 0.02) / 4
    assert other.entries[first].row["divergence"] == pytest.approx(mean, rel=1e-3)

    with pytest.raises(ValueError, match="sort 'x' is unknown"):
        ids(view, "x")
    with pytest.raises(ValueError, match="step from: 'many' is not a number"):
        Filter.parse({"step_from": "many"})


def test_a_rollout_without_a_reward_is_in_no_range_of_rewards(distilled: Path) -> None:
    view = RunView(distilled)
    assert len(ids(view)) == 12
    assert len(ids(view, reward_from="-100")) == len(ids(view, reward_to="100")) == 2, "one of each step's has one"


def test_an_opened_rollout_has_both_views_the_box_the_colours_and_the_candidates(distilled: Path, zoomed: Path) -> None:
    site = Site([distilled])
    status, found = ask(site, "/api/rollout", run="a", id="-.1.0")
    assert status == 200
    html = found["html"]
    assert html.count("<img") == 2
    assert 'src="picture/a/' in html
    assert "--heat:1.0" in html
    assert "[[&#34;Z&#34;, 0.9], [&#34;K&#34;, 0.1]]" in html
    assert [one["step"] for one in found["same"]] == [30]
    status, found = ask(Site([zoomed]), "/api/rollout", run="a", id="-.5.1")
    assert found["html"].count("<rect") == 2, "a box and its halo"
    for part in ("reward 0.1", "advantage \u22120.800", "term of the reward", "turn 2 of 2", "this run has no teacher"):
        assert part in found["html"], part
    assert "--heat" not in found["html"]
    assert "Colour:" not in found["html"]


def test_charts_show_every_panel(zoomed: Path, distilled: Path) -> None:
    _, found = ask(Site([zoomed]), "/api/overview")
    titles = [chart.partition("<b>")[2].partition("</b>")[0] for chart in found["charts"]]
    assert titles == ["Loss", "Reward", "Terms of the reward", "Tool use per rollout", "How rollouts ended"]
    _, found = ask(Site([distilled]), "/api/overview")
    titles = [chart.partition("<b>")[2].partition("</b>")[0] for chart in found["charts"]]
    for title in (
        "Held-out accuracy",
        "Loss",
        "Divergence to the teacher, nats per token",
        "Tokens per rollout",
        "Gradient norm",
    ):
        assert title in titles
    run = found["runs"][0]
    assert (run["status"], run["step"], run["steps"], run["model"]) == ("complete", 30, 200, "tiny")
    assert run["accuracy"]["full"]["step"] == 30
    assert run["gains"][0]["name"] == "full"


def test_a_long_curve_is_drawn_as_means_and_says_so(tmp_path: Path) -> None:
    fake_run.write_tools(tmp_path / "run", (1,))
    rows = [json.dumps({"step": step, "loss/total": float(step)}) for step in range(1, 1301)]
    (tmp_path / "run/metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    _, found = ask(Site([tmp_path / "run"]), "/api/overview")
    assert found["note"] == "A point is the mean of 3 steps."
    chart = json.loads(found["charts"][0].partition('data-series="')[2].partition('"')[0].replace("&quot;", '"'))
    assert len(chart["series"][0]["xs"]) == 434
    assert chart["series"][0]["xs"][:2] == chart["series"][0]["ys"][:2] == [2, 5]


# ---------------------------------------------------------------- stages, and two runs


def test_stages_are_one_run_with_bands_and_a_filter(tmp_path: Path) -> None:
    fake_run.write_staged(tmp_path / "staged", complete=False)
    site = Site([tmp_path / "staged"])
    _, found = ask(site, "/api/overview")
    assert [(one["name"], one["first"], one["last"], one["complete"]) for one in found["runs"][0]["stages"]] == [
        ("look", 1, 5, True), ("tools", 6, 15, False),
    ]  # fmt: skip
    assert all(">look</text>" in chart and 'class="stage"' in chart for chart in found["charts"])
    view = site.views["a"]
    assert ids(view, "oldest", stage="tools", limit=2) == ["tools.6.0", "tools.6.1"]
    assert view.search(Filter())["options"]["stage"] == ["look", "tools"]
    status, found = ask(site, "/api/rollout", run="a", id="tools.6.0")
    assert status == 200
    assert "is not in images/" not in found["html"], "its pictures lie in the stage's own folder"
    name = found["html"].partition('src="picture/a/')[2].partition('"')[0]
    assert ask(site, f"/picture/a/{name}")[0] == 200


def test_a_stage_that_begins_is_noticed(tmp_path: Path) -> None:
    fake_run.write_staged(tmp_path / "staged", complete=False)
    shutil.move(tmp_path / "staged/stages/02_tools", tmp_path / "later")
    view = RunView(tmp_path / "staged")
    before = view.refresh()
    assert [stage.name for stage in view.run.stages] == ["look"]
    shutil.move(tmp_path / "later", tmp_path / "staged/stages/02_tools")
    assert view.refresh() != before
    assert [stage.name for stage in view.run.stages] == ["look", "tools"]
    assert len(ids(view, stage="tools")) == 12


def test_two_runs_share_charts_and_say_how_their_recipes_differ(zoomed: Path, tmp_path: Path) -> None:
    fake_run.write_tools(tmp_path / "second", config=fake_run.TOOLS_CONFIG.replace("seed: 0", "seed: 7"))
    site = Site([zoomed, tmp_path / "second"])
    _, found = ask(site, "/api/overview")
    assert found["differences"] == [["seed", "0", "7"]]
    assert "loss · A</span>" in found["charts"][0]
    assert 'class="line c2 dashed"' in found["charts"][0]
    status, opened = ask(site, "/api/rollout", run="b", id="-.5.1")
    assert status == 200
    assert {"run": "a", "id": "-.5.1", "step": 5, "stream": "grpo", "index": 1, "outcome": "wrong"} in opened["same"]
    assert ask(site, "/api/rollouts", run="b")[1]["total"] == 12
    assert recipe_differences(site.views["a"].run, site.views["a"].run) == []
    with pytest.raises(ValueError, match="3 run folders"):
        Site([zoomed] * 3)


# ---------------------------------------------------------------- a run that grows, and one that is broken


def test_what_is_added_appears_and_what_is_open_keeps_its_name(copied: Path) -> None:
    view = RunView(copied)
    before = view.refresh()
    assert view.refresh() == before
    assert len(ids(view)) == 12
    row = json.loads((copied / "rollouts/step_000010.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (copied / "rollouts/step_000011.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with (copied / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 11, "loss/total": 0.125}\n')
    assert view.refresh() != before
    assert ids(view, limit=2) == ["-.11.0", "-.10.0"]
    assert view.overview()["step"] == 11
    assert view.row("-.10.3")[1]["index"] == 3
    (copied / "rollouts/step_000011.jsonl").unlink()  # the run was rewound
    lines = (copied / "rollouts/step_000010.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (copied / "rollouts/step_000010.jsonl").write_text("".join(lines[:1]).replace("answered", "turn_tokens"), encoding="utf-8")
    assert ids(view, step_from="10") == ids(view, stop="turn_tokens") == ["-.10.0"], "a resumed run has written the step again"
    with pytest.raises(KeyError):
        view.row("-.11.0")
    assert "-.11.0" not in ids(view)


def test_a_long_run_is_listed_before_all_of_it_was_read(copied: Path) -> None:
    view = RunView(copied)
    found = view.search(Filter(), within_s=0)
    assert (found["total"], found["unread"], found["rows"][0]["id"]) == (4, 2, "-.10.0"), "the newest file first"
    assert view.row("-.1.2")[1]["index"] == 2, "what an address names is looked for"
    found = view.search(Filter(), within_s=0)
    assert (found["total"], found["unread"]) == (12, 0)
    assert ids(view, "oldest", limit=1) == ["-.1.0"]


def test_training_complete_and_stopped_are_told_apart(copied: Path) -> None:
    assert RunView(copied).overview()["status"] == "training"
    for path in copied.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 3600,) * 2)
    assert RunView(copied).overview()["status"] == "stopped"
    (copied / "summary.json").write_text('{"seconds": 3}', encoding="utf-8")
    assert RunView(copied).overview()["status"] == "complete"


def test_a_torn_line_is_said_and_hides_nothing_else(copied: Path) -> None:
    with (copied / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 11, "loss/to')
    path = copied / "rollouts/step_000005.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        lines[0][:200] + b"\n" + lines[1] + b'{"turns": [{"text": 3, "calls": 7}]}\n' + b"\xff\xfe\n" + lines[2][:300]
    )
    site = Site([copied])
    _, found = ask(site, "/api/overview")
    assert found["runs"][0]["problems"] == [
        "metrics.jsonl, line 11: the last line, torn by a kill or still being written; left out"
    ]
    problems = "\n".join(ask(site, "/api/rollouts")[1]["problems"])
    for part in (
        "step_000005.jsonl, line 1: not JSON",
        "step_000005.jsonl, rollout 2: not a rollout",
        "step_000005.jsonl, line 4: not JSON",
        "step_000005.jsonl, line 5: the last line",
    ):
        assert part in problems, part
    view = site.views["a"]
    assert ids(view, step_from="5", step_to="5") == ["-.5.0"]
    assert view.row("-.5.0")[1]["index"] == 1, "the line that can be read"
    assert found["runs"][0]["step"] == 10


def test_a_rollout_that_cannot_be_shown_says_why(copied: Path) -> None:
    path = copied / "rollouts/step_000005.jsonl"
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    row["turns"][0]["tokens"] = ["one"]
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    status, found = ask(Site([copied]), "/api/rollout", run="a", id="-.5.0")
    assert status == 400
    assert "step_000005.jsonl, rollout 1: cannot be shown" in found["error"]
    assert "1 tokens but 3 of logprobs" in found["error"]


def test_missing_and_broken_pictures_are_said(copied: Path) -> None:
    first, second = sorted((copied / "images").glob("*.png"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:50])
    site = Site([copied])
    _, found = ask(site, "/api/rollout", run="a", id="-.5.0")
    assert f"picture {first.name[:8]} is not in images/" in found["html"]
    status, found = ask(site, f"/picture/a/{second.name}")
    assert status == 404
    assert "cannot be read" in found["error"]


def test_a_header_that_claims_a_huge_picture_is_refused(copied: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    (copied / "images/bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    status, found = ask(Site([copied]), "/picture/a/bomb.png")
    assert status == 404
    assert "cannot be read" in found["error"]


def test_folders_that_are_no_runs_are_named(tmp_path: Path, foveate: Callable[..., tuple[int, str, str]]) -> None:
    with pytest.raises(RunFolderError, match=r"no config\.yaml"):
        RunView(tmp_path)
    status, _, err = foveate("view", str(tmp_path), "--no-open")
    assert status == 2
    assert "not a run folder" in err
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RunFolderError, match="UTF-8"):
        RunView(tmp_path)
    (tmp_path / "config.yaml").write_text("- a list", encoding="utf-8")
    with pytest.raises(RunFolderError, match="holds a list"):
        RunView(tmp_path)


def test_a_run_that_is_moved_away_meanwhile_is_said(copied: Path) -> None:
    site = Site([copied])
    shutil.move(copied, copied.with_name("elsewhere"))
    status, found = ask(site, "/api/overview")
    assert status == 400
    assert "not a run folder" in found["error"]


# ---------------------------------------------------------------- what is refused


@contextmanager
def served(*folders: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    server = Server(Site(folders), host)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(server: Server, path: str, host: str | None = None, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """A request with the address exactly as written: nothing on the way makes it decent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, dict(reply.getheaders()), body


def test_nothing_outside_the_run_is_served(copied: Path) -> None:
    secret = copied.parent / "secret.png"
    shutil.copy(next((copied / "images").glob("*.png")), secret)
    (copied / "images/link.png").symlink_to(secret)
    (copied / "rollouts/step_000007.jsonl").symlink_to(copied.parent / "secret.jsonl")
    row = (copied / "rollouts/step_000005.jsonl").read_text(encoding="utf-8")
    (copied.parent / "secret.jsonl").write_text(row, encoding="utf-8")
    (copied / "summary.json").symlink_to(copied.parent / "summary.json")
    (copied.parent / "summary.json").write_text('{"seconds": 1, "token": "hush"}', encoding="utf-8")
    with served(copied) as server:
        for path in (
            "/picture/a/../../secret.png",
            "/picture/a/..%2f..%2fsecret.png",
            "/picture/a/%2e%2e%2f%2e%2e%2fsecret.png",
            "/picture/a/..%252f..%252fsecret.png",
            "/picture/a/..%5c..%5csecret.png",
            f"/picture/a/{secret}",
            f"/picture/a/%2f{str(secret)[1:].replace('/', '%2f')}",
            "/picture/a/link.png",
            "/picture/a/link.png?full=1",
            "/picture/a/%00.png",
            "/picture/b/link.png",
            "/picture/a/config.yaml",
            "/config.yaml",
            "/../secret.png",
            "/images/link.png",
            "/api/rollout?run=a&id=../../secret.7.0",
            "/api/rollout?run=a&id=-.7.0",
            "/api/rollout?run=../x&id=-.5.0",
        ):
            status, headers, body = get(server, path)
            assert (status, headers["Content-Type"]) == (404, "application/json"), path
            assert "error" in json.loads(body)
        overview = json.loads(get(server, "/api/overview")[2])["runs"][0]
    assert "step_000007.jsonl: a link that leads out of the run folder; not read" in overview["problems"]
    assert "summary.json: a link that leads out of the run folder; not read" in overview["problems"]
    assert overview["status"] == "training"


def test_a_page_elsewhere_cannot_read_a_run_under_a_name_of_its_own(zoomed: Path) -> None:
    with served(zoomed) as server:
        port = server.server_port
        for host, status in (
            ("127.0.0.1", 200), (f"127.0.0.1:{port}", 200), (f"localhost:{port}", 200), (f"[::1]:{port}", 200),
            (f"evil.example:{port}", 403), ("evil.example", 403), ("", 403), ("127.0.0.1.evil.example", 403),
        ):  # fmt: skip
            assert get(server, "/api/state", host)[0] == status, host
        assert get(server, "/", "evil.example")[0] == 403
        assert get(server, "/api/state", "LOCALHOST")[0] == 200
    with served(zoomed, host="0.0.0.0") as server:
        assert get(server, "/api/state", "this-machine.example")[0] == 200, "whoever serves to others is called by any name"


def test_pages_may_load_nothing_from_elsewhere_and_run_no_script_but_their_own(zoomed: Path) -> None:
    with served(zoomed) as server:
        status, headers, body = get(server, "/")
        assert status == 200
        policy = headers["Content-Security-Policy"]
        nonce = policy.partition("'nonce-")[2].partition("'")[0]
        assert f'<script nonce="{nonce}">' in body.decode()
        assert policy.startswith("default-src 'none'")
        assert "unsafe-eval" not in policy
        assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
        assert nonce not in get(server, "/")[1]["Content-Security-Policy"], "a new one each time"
        assert b"http://" not in body
        assert b"https://" not in body
        name = next((zoomed / "images").glob("*.png")).name
        status, headers, body = get(server, f"/picture/a/{name}")
        assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, "image/png", "nosniff")
        assert body == (zoomed / "images" / name).read_bytes()
        status, headers, body = get(server, f"/picture/a/{name}", method="HEAD")
        assert (status, body, int(headers["Content-Length"]) > 0) == (200, b"", True)
        assert get(server, "/", method="POST")[0] == 501


def test_text_of_a_model_cannot_become_markup(copied: Path) -> None:
    path = copied / "rollouts/step_000005.jsonl"
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    row["sample"] = row["stream"] = row["turns"][0]["tokens"][0] = row["turns"][1]["text"] = attack
    row["turns"][0]["calls"][0] |= {"name": attack, "arguments": attack, "error": attack}
    row["student"][-1]["content"].append({"type": "text", "text": attack})
    row["student"][-1]["content"].append({"type": "image", "image": attack, "size_px": [1, 1]})
    row["turns"][0]["top_student"][0][0][0] = attack
    row["reward"]["terms"][attack] = 1.0
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    status, found = ask(Site([copied]), "/api/rollout", run="a", id="-.5.0")
    assert status == 200
    assert "<script" not in found["html"]
    assert "<img src=x" not in found["html"]
    assert found["html"].count("&lt;script&gt;alert(1)") >= 8
    with (copied / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 11, f"reward/{attack}": 1.0}) + "\n")
    _, found = ask(Site([copied]), "/api/overview")
    assert "<script" not in "".join(found["charts"] + found["other_charts"])


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"limit": "-1"}, "limit: '-1' is not a number"),
        ({"reward_from": "high"}, "reward from: 'high' is not a number"),
        ({"sort": "price"}, "sort 'price' is unknown"),
    ],
)
def test_questions_that_mean_nothing_are_answered(zoomed: Path, query: dict[str, str], said: str) -> None:
    status, found = ask(Site([zoomed]), "/api/rollouts", **query)
    assert status == 400
    assert said in found["error"]


def test_a_port_that_is_taken_is_said(zoomed: Path) -> None:
    with served(zoomed) as server, pytest.raises(ValueError, match="choose another --port"):
        Server(server.site, port=server.server_port)


def test_many_readers_are_all_answered(zoomed: Path) -> None:
    with served(zoomed) as server:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(get(server, "/api/overview")[0])) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [200] * 50


def test_the_command_serves_until_it_is_ended(
    zoomed: Path, monkeypatch: pytest.MonkeyPatch, foveate: Callable[..., tuple[int, str, str]]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def serve(server: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", serve)
    status, out, _ = foveate("view", str(zoomed), "--port", "0")
    assert status == 0
    assert opened == [out.split()[0]]
    assert opened[0].startswith("http://127.0.0.1:")
    foveate("view", str(zoomed), "--port", "0", "--no-open")
    assert len(opened) == 1
    _, out, _ = foveate("view", str(zoomed), "--port", "0", "--no-open", "--host", "0.0.0.0")
    assert "no password" in out
