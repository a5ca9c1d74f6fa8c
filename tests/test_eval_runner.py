"""Evaluations that are killed, cut, sharded and shuffled; and the ways of asking, on the embedded model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FaultyServer, colour_items
from PIL import Image

from foveate.datasets.scenes import samples
from foveate.eval.engines import InProcess, Task
from foveate.eval.ledger import Ledger, LedgerError, key_of
from foveate.eval.modes import MODES, describe, mode
from foveate.eval.records import Item, Played, Row
from foveate.eval.runner import Progress, evaluate, load_rows
from foveate.eval.server import Server
from foveate.vlm.images import PictureError
from foveate.vlm.load import VLM, load
from foveate.vlm.records import Sample

HERE = Path(__file__).parent
RUDE = {"workers": 64, "retries": 14, "pause_s": 0.002, "max_pause_s": 0.05, "timeout_s": 1.0}


def plain(rows: Sequence[Row]) -> list[Row]:
    """Rows without what no two runs share, in a fixed order."""
    return sorted(({k: v for k, v in row.items() if k != "seconds"} for row in rows), key=key_of)


def lines(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]


class Echo:
    """Answers with what a function says; keeps the keys that it was asked for."""

    def __init__(self, say: Callable[[Task], str] = lambda task: f"<answer>{task.item.sample.answer}</answer>") -> None:
        self.say, self.asked = say, list[str]()

    def play(self, tasks: Iterable[Task], done: Callable[[Task, Played], None]) -> None:
        for task in tasks:
            self.asked.append(task.key)
            done(task, Played((self.say(task),), "answered", tokens_in=3, tokens_out=1))


# ---- killed -------------------------------------------------------------------------------------------------------------------

ITEMS = 120
KILLED = """
import os, signal, sys, time, random
from pathlib import Path
sys.path.insert(0, {here!r})
from faulty_server import colour_items
from foveate.eval.modes import mode
from foveate.eval.runner import evaluate
from foveate.eval.server import Server

folder, items = Path({folder!r}), colour_items({items})
engine = Server(url={url!r}, model="colours", **{rude!r})

def run():
    evaluate("colours", items, [mode("direct"), mode("tools")], engine, folder, seed=3)

def written():
    path = folder / "rows.jsonl"
    return path.read_bytes().count(b"\\n") if path.exists() else 0

rng, kills = random.Random(0), 0
for number in range(10):
    aim = written() + rng.randrange(1, 2 * {items} // 11)
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    while written() < aim and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    time.sleep(rng.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
sys.stdout.write(f"{{kills}} {{written()}}")
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The rows of the same evaluation by few workers, of a server without faults."""
    with FaultyServer(faults=()) as server:
        engine = Server(url=server.url, model="colours", **{**RUDE, "workers": 3, "timeout_s": 20.0})
        folder = tmp_path_factory.mktemp("undisturbed")
        return evaluate("colours", colour_items(ITEMS), [mode("direct"), mode("tools")], engine, folder, seed=3)


def check(folder: Path, rows: Sequence[Row], undisturbed: Sequence[Row]) -> None:
    assert plain(rows) == plain(undisturbed)
    assert plain(lines(folder)) == plain(undisturbed)  # in the file too: nothing twice, nothing missing
    assert Counter(map(key_of, lines(folder))) == Counter({(m, i, 0): 1 for m in ("direct", "tools") for i in range(ITEMS)})
    # 5 is refused, 9 never answered; of the others every fourth is hard, and wrong
    wrong = {number for number in range(ITEMS) if number % 4 == 0}
    outcomes = {number: "failed" if number in (5, 9) else "wrong" if number in wrong else "right" for number in range(ITEMS)}
    assert {(row["mode"], row["index"]): row["outcome"] for row in rows} == {
        (name, number): outcome for name in ("direct", "tools") for number, outcome in outcomes.items()
    }
    assert all(row["tokens_in"] == (207 if row["mode"] == "tools" else 107) for row in rows if row["outcome"] != "failed")


def test_ten_kills_change_nothing(tmp_path: Path, undisturbed: list[Row]) -> None:
    with FaultyServer() as server:
        code = KILLED.format(here=str(HERE), folder=str(tmp_path), items=ITEMS, url=server.url, rude=RUDE)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=HERE.parent)
        assert done.returncode == 0, done.stderr
        kills, written = map(int, done.stdout.split())
        assert kills == 10
        assert 10 <= written < 2 * ITEMS  # it was never finished in between
        engine = Server(url=server.url, model="colours", **RUDE)
        rows = evaluate("colours", colour_items(ITEMS), [mode("direct"), mode("tools")], engine, tmp_path, seed=3)
        assert len(server.happened) >= 10  # nearly every kind of fault was met
    check(tmp_path, rows, undisturbed)


def test_ten_errors_and_torn_lines_change_nothing(tmp_path: Path, undisturbed: list[Row]) -> None:
    class Pulled(Exception):
        pass

    rng, pulled = random.Random(1), 0
    rows: list[Row] | None = None
    with FaultyServer() as server:
        engine = Server(url=server.url, model="colours", **RUDE)
        while rows is None:
            fuse = rng.randrange(1, 2 * ITEMS // 11) if pulled < 10 else 10**9

            def pull(at: Progress, fuse: int = fuse) -> None:
                if at.done - at.before >= fuse:
                    raise Pulled

            items, modes = colour_items(ITEMS), [mode("direct"), mode("tools")]
            try:
                rows = evaluate("colours", items, modes, engine, tmp_path, seed=3, progress=pull)
            except Pulled:
                pulled += 1
                if pulled % 2:
                    with (tmp_path / "rows.jsonl").open("ab") as file:
                        file.write(b'{"mode": "direct", "item": "ite' if pulled % 4 == 1 else b"\0\0\0\0")
    assert pulled == 10
    check(tmp_path, rows, undisturbed)


# ---- the ledger ---------------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_asked_again_and_more_items_and_modes_can_follow(tmp_path: Path) -> None:
    items, direct, crop = colour_items(6), mode("direct"), mode("crop")
    first, second, third, fourth = Echo(), Echo(), Echo(), Echo()
    assert len(evaluate("colours", items, [direct], first, tmp_path, limit=2)) == 2
    rows = evaluate("colours", items, [direct], second, tmp_path)
    assert (len(rows), len(first.asked), len(second.asked)) == (6, 2, 4)
    assert not set(first.asked) & set(second.asked)
    rows = evaluate("colours", items, [crop, direct], third, tmp_path)
    assert [row["mode"] for row in rows] == ["crop"] * 6 + ["direct"] * 6
    assert len(third.asked) == 6
    assert evaluate("colours", items, [direct, crop], fourth, tmp_path, limit=3) == rows[6:9] + rows[:3]
    assert fourth.asked == []
    assert load_rows(tmp_path) == rows[6:] + rows[:6]  # modes in the order in which the folder was given them


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"shuffle": False}, "shuffle was True, is False"),
        ({"shard": (0, 2)}, "shard"),
        ({"about": {"model": "b"}}, "model was a, is b"),
        ({"about": {}}, "model was a, is None"),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    items, modes = colour_items(2), [mode("direct")]
    evaluate("colours", items, modes, Echo(), tmp_path, about={"model": "a"})
    before = (tmp_path / "rows.jsonl").read_bytes(), (tmp_path / "run.json").read_bytes()
    with pytest.raises(LedgerError, match=f"another evaluation .*{named}.*take another folder"):
        evaluate("colours", items, modes, Echo(), tmp_path, **{"about": {"model": "a"}, **changes})
    with pytest.raises(LedgerError, match="direct was"):
        evaluate("colours", items, [mode("direct", max_new_tokens=7)], Echo(), tmp_path, about={"model": "a"})
    assert before == ((tmp_path / "rows.jsonl").read_bytes(), (tmp_path / "run.json").read_bytes())


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    evaluate("colours", colour_items(3), [mode("direct")], Echo(), tmp_path)
    path = tmp_path / "rows.jsonl"
    one, two, three = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(one + two[:40] + b"\n" + three)
    with pytest.raises(LedgerError, match=r"rows.jsonl, line 2: not a row"):
        evaluate("colours", colour_items(3), [mode("direct")], Echo(), tmp_path)
    path.write_bytes(one + two + three[:-30])
    again = Echo()
    assert len(evaluate("colours", colour_items(3), [mode("direct")], again, tmp_path)) == 3
    assert again.asked == ["direct/2/item-2/0"]
    (tmp_path / "run.json").unlink()
    with pytest.raises(LedgerError, match=r"rows.jsonl without the run.json"):
        evaluate("colours", colour_items(3), [mode("direct")], Echo(), tmp_path)


def test_one_process_at_a_time_and_no_row_twice(tmp_path: Path) -> None:
    row = {"mode": "direct", "index": 0, "draw": 0, "outcome": "right", "texts": ["half a pair: \ud800"]}
    with Ledger(tmp_path, {"modes": {}}) as ledger:
        with pytest.raises(LedgerError, match="another process"):
            Ledger(tmp_path, {"modes": {}})
        ledger.add(row)
        with pytest.raises(LedgerError, match="done already"):
            ledger.add(row)
    with Ledger(tmp_path, {"modes": {}}) as ledger:
        assert [one["texts"] for one in ledger.rows] == [["half a pair: ?"]]


def test_failures_can_be_tried_again(tmp_path: Path) -> None:
    items = colour_items(4)

    class Dead:
        def play(self, tasks: Iterable[Task], done: Callable[[Task, Played], None]) -> None:
            for task in tasks:
                done(task, task.failed("dead") if task.item.id == "item-2" else Played(("<answer>A</answer>",), "answered"))

    assert [row["outcome"] == "failed" for row in evaluate("c", items, [mode("direct")], Dead(), tmp_path)] == [0, 0, 1, 0]
    untouched, again = Echo(), Echo()
    evaluate("c", items, [mode("direct")], untouched, tmp_path)
    rows = evaluate("c", items, [mode("direct")], again, tmp_path, retry_failed=True)
    assert (untouched.asked, again.asked) == ([], ["direct/2/item-2/0"])
    assert rows[2]["outcome"] == "right"
    assert len(lines(tmp_path)) == 4


def test_an_engine_that_forgets_a_task_is_caught(tmp_path: Path) -> None:
    class Lazy:
        def play(self, tasks: Iterable[Task], done: Callable[[Task, Played], None]) -> None:
            for _ in tasks:
                pass

    with pytest.raises(RuntimeError, match="left 2 tasks"):
        evaluate("c", colour_items(2), [mode("direct")], Lazy(), tmp_path)


# ---- the plan -----------------------------------------------------------------------------------------------------------------


def test_shards_are_a_partition_with_the_same_rows(tmp_path: Path) -> None:
    items, modes = colour_items(10), [mode("direct"), mode("consistency", n=2)]
    say: Callable[[Task], str] = lambda task: f"<answer>{'AB'[task.draw]}</answer>"  # noqa: E731
    whole = evaluate("c", items, modes, Echo(say), tmp_path / "whole", limit=8, seed=5)
    parts = [evaluate("c", items, modes, Echo(say), tmp_path / str(n), limit=8, seed=5, shard=(n, 3)) for n in range(3)]
    assert [sorted({row["index"] for row in part}) for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert plain([row for part in parts for row in part]) == plain(whole)
    assert [(row["mode"], row["index"], row["draw"]) for row in whole[:9]] == [("direct", n, 0) for n in range(8)] + [
        ("consistency", 0, 0)
    ]
    assert len(whole) == 8 + 16
    for shard in ((3, 3), (-1, 3)):
        with pytest.raises(ValueError, match="expected 0 <= number < 3"):
            evaluate("c", items, modes, Echo(), tmp_path / "no", shard=shard)


def test_options_move_with_the_seed_and_the_order_is_kept(tmp_path: Path) -> None:
    items = [replace(item, sample=replace(item.sample, answer="A")) for item in colour_items(40)]
    always_a = Echo(lambda task: "<answer>A</answer>")
    rows = evaluate("c", items, [mode("direct")], always_a, tmp_path / "seed", seed=2)
    share = sum(row["outcome"] == "right" for row in rows) / len(rows)
    assert 0.05 < share < 0.5  # A is no longer always right
    for row, item in zip(rows, items, strict=True):
        assert [item.sample.options[place] for place in row["order"]] == row["options"]
        assert row["options"]["ABCD".index(row["gold"])] == item.sample.options[0]
        assert row["choice"] == row["order"][0]
        assert row["boxes_px_xyxy"] == [[12, 12, 36, 36]]
    unmoved = evaluate("c", items, [mode("direct")], always_a, tmp_path / "own", shuffle=False)
    assert {row["outcome"] for row in unmoved} == {"right"}


def test_circular_asks_every_rotation_and_wants_all(tmp_path: Path) -> None:
    items = colour_items(2)
    engine = Echo(lambda task: f"<answer>{task.item.sample.answer if task.item.id == 'item-0' else 'B'}</answer>")
    seen: list[Progress] = []
    rows = evaluate("c", items, [mode("direct")], engine, tmp_path, shuffle="circular", progress=seen.append)
    assert [(row["outcome"], row["draws"], row["votes"]) for row in rows] == [("right", 4, 4), ("wrong", 4, 1)]
    assert [row["tokens_in"] for row in rows] == [12, 12]
    assert len(engine.asked) == 8
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, 8, 8)
    assert load_rows(tmp_path) == rows
    with pytest.raises(ValueError, match="choose one of the two"):
        evaluate("c", items, [mode("consistency")], engine, tmp_path, shuffle="circular")


def test_an_item_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    class Items(Sequence[Item]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: Any) -> Any:
            if index == 1:
                raise PictureError("row 2: no picture")
            return colour_items(3)[index]

    engine = Echo()
    rows = evaluate("c", Items(), [mode("direct")], engine, tmp_path)
    assert [row["item"] for row in rows] == ["item-0", "#1", "item-2"]
    assert (rows[1]["outcome"], rows[1]["error"]) == ("failed", "PictureError: row 2: no picture")
    assert rows[1].keys() == rows[0].keys()
    assert evaluate("c", Items(), [mode("direct")], Echo(), tmp_path) == rows


def test_progress_has_a_rate_without_what_was_done_before() -> None:
    assert Progress("direct", done=30, total=100, before=10, right=5, failed=0, seconds=4.0).per_second == 5.0


def test_the_tail_is_asked_for_only_in_modes_that_want_it(tmp_path: Path) -> None:
    tails: dict[str, str] = {}

    def say(task: Task) -> str:
        tails[task.mode.name] = task.view().messages[-1].text
        return ""

    evaluate("c", colour_items(1), [mode("direct"), mode("imagine")], Echo(say), tmp_path, tail=lambda item: "Say a letter.")
    assert tails["direct"].endswith("\nSay a letter.")
    assert "Say a letter." not in tails["imagine"]


# ---- modes --------------------------------------------------------------------------------------------------------------------


def test_modes_by_name_with_overrides() -> None:
    assert set(MODES) == {"direct", "imagine", "tools", "crop", "consistency"}
    assert mode("consistency").n == 5
    assert (mode("tools", True).view.name, mode("tools").view.system) == ("tiny.tools", "tools")
    assert mode("direct", view={"preset": "full", "hint": "Look."}).view.hint == "Look."
    made = mode("tools", tools={"dialect": "mini_o3", "tools": ["zoom"]}, max_turns=4)
    assert (made.tools.dialect if made.tools else None, made.max_turns) == ("mini_o3", 4)
    assert json.loads(json.dumps(describe(made)))["tools"]["dialect"] == "mini_o3"
    assert describe(made) != describe(mode("tools"))
    for name, changes, said in (
        ("driect", {}, "did you mean direct"),
        ("direct", {"turns": 2}, "did you mean max_turns"),
        ("direct", {"n": 3}, "greedy"),
        ("direct", {"max_turns": 0}, "expected n, max_turns"),
    ):
        with pytest.raises(ValueError, match=said):
            mode(name, **changes)


@pytest.fixture(scope="module")
def tiny() -> VLM:
    return load("tiny")


@pytest.fixture(scope="module")
def scenes() -> list[Item]:
    return [Item(sample, {"kind": sample.kind}) for sample in samples("detail", "test", 4, seed=3, questions_per_scene=2)]


def test_four_modes_on_the_embedded_model(tiny: VLM, scenes: list[Item], tmp_path: Path) -> None:
    modes = [mode(name, True) for name in ("direct", "crop", "imagine", "tools")]
    engine = InProcess(tiny, at_once=3)
    rows = evaluate("synth", scenes, modes, engine, tmp_path, about=engine.about, gallery=1)
    by_mode: dict[str, list[Row]] = {}
    for row in rows:
        by_mode.setdefault(row["mode"], []).append(row)
    assert {name: len(own) for name, own in by_mode.items()} == {"direct": 4, "crop": 4, "imagine": 4, "tools": 4}
    assert sum(row["outcome"] == "right" for row in by_mode["crop"]) >= 3  # it reads crops, and guesses at small letters
    assert all(row["stop"] == "answered" and row["error"] == "" and row["seconds"] > 0 for row in rows)
    assert all("I zoom in on" in row["texts"][0] for row in by_mode["imagine"])
    picture = tiny.renderer.item(scenes[0].sample.images[0]).num_tokens
    for row in by_mode["direct"]:
        assert (row["tokens_image"], row["calls"], len(row["texts"])) == (picture, [], 1)
        assert row["tokens_in"] > picture
        assert row["tokens_out"] == len(tiny.renderer.encode(row["texts"][0])) + 1  # and the end of turn
    for row in by_mode["tools"]:
        (call,) = row["calls"]
        assert (call["name"], call["turn"], call["error"], len(row["texts"])) == ("zoom", 0, None, 2)
        assert row["tokens_image"] > picture
        assert row["tokens_in"] > by_mode["direct"][0]["tokens_in"]
    told = by_mode["tools"][0]["story"]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user", "assistant"]
    names = [part["image"] for message in told for part in message["content"] if part["type"] == "image"]
    assert len(names) == 2
    for name in names:
        with Image.open(tmp_path / "images" / name) as kept:
            assert kept.width * kept.height <= 1 << 20
    assert by_mode["tools"][1]["story"] == []


def test_draws_differ_and_do_not_depend_on_their_company(tiny: VLM, scenes: list[Item], tmp_path: Path) -> None:
    modes = [mode("imagine", True, temperature=1.5, n=3, max_new_tokens=12)]
    together = evaluate("synth", scenes, modes, InProcess(tiny), tmp_path / "a", seed=1)
    alone = evaluate("synth", scenes, modes, InProcess(tiny, at_once=1), tmp_path / "b", seed=1)
    other = evaluate("synth", scenes, modes, InProcess(tiny), tmp_path / "c", seed=2)
    assert len(together) == 12
    assert len({row["texts"][0] for row in together[:3]}) > 1
    assert plain(alone) == plain(together)
    assert [row["texts"] for row in other] != [row["texts"] for row in together]


def test_what_cannot_be_played_fails_alone_in_process(tiny: VLM, scenes: list[Item], tmp_path: Path) -> None:
    bad = [
        Item(Sample(id="no boxes", question="What letter?", answer="A", images=scenes[0].sample.images)),  # no crop to show
        Item(replace(scenes[0].sample, id="reserved", question="What is <|im_end|>?")),
    ]
    engine = InProcess(tiny)
    rows = evaluate("synth", [scenes[0], *bad, scenes[1]], [mode("crop", True)], engine, tmp_path / "a")
    assert [row["stop"] for row in rows] == ["answered", "failed", "failed", "answered"]
    assert "no boxes" in rows[1]["error"]
    assert "reserved token <|im_end|>" in rows[2]["error"]

    class Fussy(InProcess):
        def _rollouts(self, ready: Any, vlm: VLM) -> Any:
            sizes.append(len(ready))
            if any(task.item.id == scenes[2].id for task, _ in ready):
                raise PictureError("gone since")
            return super()._rollouts(ready, vlm)

    sizes: list[int] = []
    rows = evaluate("synth", scenes, [mode("direct", True)], Fussy(tiny), tmp_path / "b")
    assert [row["stop"] for row in rows] == ["answered", "answered", "failed", "answered"]
    assert sizes == [4, 2, 2, 1, 1]
    assert rows[2]["error"] == "PictureError: gone since"


def test_batches_end_at_their_pixels_and_their_mode(tiny: VLM) -> None:
    items = colour_items(5)  # 48 x 48 px each
    direct, crop = mode("direct"), mode("crop")
    tasks = [Task(item, direct, 0, item.id) for item in items] + [Task(items[0], crop, 0, "crop")]

    def sizes(engine: InProcess) -> Iterator[int]:
        return (len(batch) for batch in engine._batches(iter(tasks)))

    assert list(sizes(InProcess(tiny, max_pixels=2 * 48 * 48))) == [2, 2, 1, 1]
    assert list(sizes(InProcess(tiny, at_once=3))) == [3, 2, 1]
    assert list(sizes(InProcess(tiny, max_pixels=1))) == [1] * 6


def test_the_model_is_known_by_its_weights(tiny: VLM) -> None:
    about = InProcess(tiny).about
    assert about["model"] == "tiny"
    assert len(about["weights"]) == 16
    assert InProcess(replace(tiny, folder=None)).about["weights"] is None
