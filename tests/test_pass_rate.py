"""`foveate data pass-rate`: what training would play, counted; killed anywhere, it ends with the file of an undisturbed run."""

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

import pytest
from faulty_server import FaultyServer, colour_items

from foveate.asking import Model, Serving
from foveate.data_source import Source, open_source
from foveate.datasets.pass_rates import read_pass_rates
from foveate.datasets.spec import DataSpec
from foveate.datasets.views import make_view
from foveate.pass_rate import measure, plan_of
from foveate.rewards.combine import RewardSpec, score_groups
from foveate.train.config import LimitsPart
from foveate.train.protocols import Protocols
from foveate.vlm.generate import HFEngine, Sampling
from foveate.vlm.load import load
from foveate.vlm.records import Sample
from foveate.vlm.rollout import Limits, rollout

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parent.parent


def plan(source: Source, model: str = "tiny", **changes: Any) -> Any:
    given: dict[str, Any] = {"k": 4, "temperature": 0.7, "view": None, "max_new_tokens": None, "seed": None, **changes}
    return plan_of(source, model, **given)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_rows_are_what_training_would_play(tmp_path: Path) -> None:
    """A recipe with tools, against rollouts played here by hand with the recipe's own parts."""
    source = open_source("grpo")
    found = measure(source, plan(source), Model("tiny"), tmp_path / "r.jsonl", limit=5, at_once=2)
    rows = lines(tmp_path / "r.jsonl")
    config, vlm = source.config, load("tiny")
    assert config is not None
    protocols = Protocols(config.tools, config.protocols, Limits(turns=2, **LimitsPart().model_dump()), vlm.family.coords)
    for index, row in enumerate(rows):
        sample = source.samples[index]
        view = make_view(sample, config.student, "student", protocols.prompt(sample))
        (group,) = rollout(
            [(sample, view)], HFEngine(vlm), vlm.renderer, n=4, sampling=Sampling(0.7, max_new_tokens=60), seed=config.seed,
            rules=protocols.rules,
        )  # fmt: skip
        outcomes = [one.reward.outcome for one in score_groups([group])[0].rollouts if one.reward is not None]
        assert any(one.calls for one in group.rollouts), "it zooms"
        assert row == {
            "id": sample.id, "index": index, "k": 4, "right": outcomes.count("right"),
            "pass_rate": outcomes.count("right") / 4, "unparsed": outcomes.count("unparsed"),
            "truncated": sum(one.stop.truncated for one in group.rollouts), "failed": 0,
            "tokens_mean": sum(one.num_actions for one in group.rollouts) / 4,
        }  # fmt: skip
    assert len(rows) == found.samples == 5
    assert 0 < found.mean < 1
    read = read_pass_rates(tmp_path / "r.jsonl")
    assert read.by_index[3] == (rows[3]["id"], rows[3]["pass_rate"])
    meta = json.loads((tmp_path / "r.meta.json").read_text())
    assert meta["sampling"]["temperature"] == 0.7
    assert meta["data"]["samples"] == 20000


def source_of(*samples: Sample) -> Source:
    return Source(DataSpec(synth="detail"), samples)


def synth(n: int = 12) -> Source:
    return open_source("{synth: detail}", [f"n={n}"])


def test_stopped_after_any_row_and_gone_on_with(tmp_path: Path) -> None:
    """Whatever a kill leaves of the file, whole lines, half of one or nothing, the end is the same, to the byte."""
    source, model = synth(), Model("tiny")
    measure(source, plan(source), model, tmp_path / "whole.jsonl", at_once=3)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for cut in (0, 10, ends[0], ends[3] + 40, ends[5], ends[10], len(whole) - 1, len(whole)):
        target = tmp_path / f"{cut}.jsonl"
        target.write_bytes(whole[:cut])
        target.with_suffix(".meta.json").write_bytes((tmp_path / "whole.meta.json").read_bytes())
        measure(source, plan(source), model, target, at_once=3)
        assert target.read_bytes() == whole, cut


def test_a_limit_may_grow_and_a_finished_file_is_not_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = synth(), tmp_path / "r.jsonl"
    measure(source, plan(source), Model("tiny"), target, limit=5, at_once=3)
    five = target.read_bytes()
    found = measure(source, plan(source), Model("tiny"), target, at_once=3)
    assert target.read_bytes().startswith(five)
    assert found.samples == 12

    def played(*_: Any) -> None:
        raise AssertionError("played again")

    monkeypatch.setattr("foveate.asking.load", played)
    assert measure(source, plan(source), Model("tiny"), target, at_once=3) == found
    assert measure(source, plan(source), Model("tiny"), target, limit=5).samples == 5
    assert len(lines(target)) == 12


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    source, target = synth(4), tmp_path / "r.jsonl"
    measure(source, plan(source), Model("tiny"), target)
    before = target.read_bytes()
    changed: list[tuple[Source, dict[str, Any], str]] = [
        (source, {"k": 8}, "k was 4, is 8"),
        (source, {"temperature": 1.0}, "sampling was"),
        (source, {"view": "tiny.crop"}, "view was"),
        (source, {"seed": 3}, "seed was 0, is 3"),
        (synth(5), {}, "data was"),
    ]
    for data, changes, said in changed:
        with pytest.raises(ValueError, match=said) as error:
            measure(data, plan(data, **changes), Model("tiny"), target)
        assert "go on with the same, or give another name" in str(error.value)
    with pytest.raises(ValueError, match="shard was"):
        measure(source, plan(source), Model("tiny"), target, shard=(0, 2))
    with pytest.raises(ValueError, match="model was"):
        measure(source, plan(source), Model("tiny", max_pixels=10_000), target)
    assert target.read_bytes() == before


def test_a_changed_file_is_other_data(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"question": "What letter?", "answer": "K"}\n')
    source = open_source(str(file))
    measure(source, plan(source), Model("tiny"), tmp_path / "r.jsonl")
    file.write_text('{"question": "What letter?", "answer": "C"}\n')
    source = open_source(str(file))
    with pytest.raises(ValueError, match="data was"):
        measure(source, plan(source), Model("tiny"), tmp_path / "r.jsonl")


def test_shards_together_are_the_whole(tmp_path: Path) -> None:
    source, model = synth(7), Model("tiny")
    measure(source, plan(source), model, tmp_path / "whole.jsonl", at_once=2)
    for number in range(3):
        measure(source, plan(source), model, tmp_path / f"{number}.jsonl", shard=(number, 3), at_once=2)
    together = b"".join((tmp_path / f"{number}.jsonl").read_bytes() for number in range(3))
    (tmp_path / "all.jsonl").write_bytes(together)
    assert read_pass_rates(tmp_path / "all.jsonl") == read_pass_rates(tmp_path / "whole.jsonl")
    with pytest.raises(ValueError, match="4 samples are missing"):
        read_pass_rates(tmp_path / "0.jsonl")


def test_samples_that_have_no_pass_rate(tmp_path: Path) -> None:
    plain = Sample(id="a", question="What letter?", answer="K")
    source = source_of(plain, Sample(id="b", question="What letter?"))
    with pytest.raises(ValueError, match=r"sample b \(index 1\) has no answer"):
        measure(source, plan(source), Model("tiny"), tmp_path / "r.jsonl", at_once=1)
    assert [row["id"] for row in lines(tmp_path / "r.jsonl")] == ["a"], "what was finished is kept"
    source = source_of(plain, plain)
    with pytest.raises(ValueError, match="sample a stands at index 0 and at 1"):
        measure(source, plan(source), Model("tiny"), tmp_path / "s.jsonl")
    with pytest.raises(ValueError, match="4 greedy rollouts are all the same"):
        plan(source, temperature=0.0)


# --- served models --------------------------------------------------------------------------------------------------------------


def served(url: str, **changes: Any) -> Model:
    return Model(f"{url}=colours", Serving(pause_s=0.01, timeout_s=1.0, workers=8, **changes))


def colours(*numbers: int) -> Source:
    items = colour_items(12)
    return source_of(*(items[number].sample for number in numbers))


def measured(source: Source, model: Model, target: Path, **changes: Any) -> Any:
    return measure(source, plan(source, model="colours", view="full", **changes), model, target, at_once=2)


def test_a_faulty_server_gives_the_same_rows(tmp_path: Path) -> None:
    source = colours(0, 1, 2, 3, 4)  # every fourth is hard, and answered wrongly
    with FaultyServer(faults=()) as server:
        found = measured(source, served(server.url), tmp_path / "good.jsonl")
    assert [row["right"] for row in lines(tmp_path / "good.jsonl")] == [0, 4, 4, 4, 0]
    assert (found.all_right_frac, found.all_wrong_frac, found.tokens_mean) == (0.6, 0.4, 1.0)
    with FaultyServer(most=2, late_s=1.2) as server:
        measured(source, served(server.url), tmp_path / "bad.jsonl")
        assert server.happened.total() > 5
    assert (tmp_path / "bad.jsonl").read_bytes() == (tmp_path / "good.jsonl").read_bytes()


def test_what_a_server_refuses_is_counted_and_what_is_lost_stops(tmp_path: Path) -> None:
    with FaultyServer(faults=()) as server:
        found = measured(colours(1, 5), served(server.url), tmp_path / "refused.jsonl")
        assert found.failed == 4
        refused = lines(tmp_path / "refused.jsonl")[1]
        assert (refused["right"], refused["failed"], refused["unparsed"], refused["k"]) == (0, 4, 0, 4)
        target = tmp_path / "lost.jsonl"
        with pytest.raises(ValueError, match=r"sample item-9: Lost: .*run the same command again"):
            measured(colours(1, 2, 3, 9), served(server.url, retries=1), target)
        assert [row["id"] for row in lines(target)] == ["item-1", "item-2"]
    with (
        FaultyServer(plan=("401",)) as server,
        pytest.raises(ValueError, match=r"refuses with HTTP 401.*run the same command again"),
    ):
        measured(colours(1), served(server.url), tmp_path / "key.jsonl")


def test_a_served_model_with_tools(tmp_path: Path) -> None:
    source = open_source("grpo", ["student={system: tools}", "sampling.max_turns=3", "leak_check=false"])
    data = Source(source.spec, colours(1, 2).samples, source.config)
    with FaultyServer(faults=()) as server:
        measured_plan = plan(data, model="colours", k=2)
        measure(data, measured_plan, served(server.url), tmp_path / "r.jsonl")
        assert server.answered.total() == 2 * 2 * 2, "a zoom and an answer each"
    assert [row["right"] for row in lines(tmp_path / "r.jsonl")] == [2, 2]
    limited = open_source("grpo", ["limits.pictures=2"])
    with pytest.raises(ValueError, match="take limits out of the recipe"):
        measure(limited, plan(limited), served("http://localhost:1/v1"), tmp_path / "s.jsonl")


def test_a_view_that_leaks_is_refused_for_a_server_too(tmp_path: Path) -> None:
    source = open_source("grpo", ["student=tiny.tools_teacher_crop"])
    with pytest.raises(ValueError, match=r"the student view .* shows"):
        measure(source, plan(source), served("http://localhost:1/v1"), tmp_path / "r.jsonl")


def test_a_stage_of_a_recipe_has_its_own_data() -> None:
    source = open_source("see_then_think#text")
    assert source.config is not None
    assert source.spec.as_text
    assert plan(source).view.name == "tiny.full"


def test_only_what_decides_is_scored() -> None:
    """Terms that add to the total may need what a measurement has not: a judge server, a model to ask."""
    preset = 'signals.0.reward={terms: {acc: {term: answer, kind: exact}, same: {term: consistency}}, total: "acc + same"}'
    found = plan(open_source("grpo", [preset]))
    assert list(found.reward.terms) == ["answer"]
    assert found.reward.terms["answer"].model_dump()["kind"] == "exact"
    assert RewardSpec.model_validate(found.reward.model_dump()) == found.reward


# --- the command ----------------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_histogram(foveate: Run, tmp_path: Path) -> None:
    target = tmp_path / "r.jsonl"
    status, said, _ = foveate("data", "pass-rate", "grpo", str(target), "seed=5", "--k", "2", "--limit", "4", "--at-once", "2")
    assert status == 0, said
    assert "right of 2" in said
    assert "4 samples, mean pass rate" in said
    assert json.loads(target.with_suffix(".meta.json").read_text())["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{synth: detail}", "r.jsonl"), "names no model; say which with --model"),
        (("tiny/vision_op", "r.jsonl"), "did you mean tiny/vision_opd"),
        (("{synth: detail", "r.jsonl"), "not a mapping"),
        (("{synth: detail}", "r.jsonl", "--model", "tiny", "--shard", "2/2"), "--shard 2/2"),
        (("{synth: detail}", "r.json", "--model", "tiny"), "ends in .jsonl"),
        (("{synth: detail}", "r.jsonl", "--model", "tiny", "--temperature", "0"), "all the same"),
        (("nowhere.jsonl", "r.jsonl", "--model", "tiny"), "nowhere.jsonl: no such file"),
    ],
)
def test_mistakes_are_said_in_one_paragraph(
    foveate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, shown = foveate("data", "pass-rate", *arguments)
    assert status == 2
    assert said in " ".join(shown.split())
    assert "Traceback" not in shown


def test_killed_by_the_system_and_run_again(tmp_path: Path) -> None:
    """SIGKILL, twice, whenever some rows more are there."""
    command = [sys.executable, "-m", "foveate", "data", "pass-rate", "{synth: detail, n: 60}", "", "--model", "tiny", "--k", "8"]
    command += ["--at-once", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    target = tmp_path / "killed.jsonl"
    command[6] = str(target)
    seen = 0
    for _ in range(2):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            count = target.read_bytes().count(b"\n") if target.exists() else 0
            if count >= seen + 8:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, "it was at work when it was killed"
        seen = target.read_bytes().count(b"\n")
    assert 16 <= seen < 60
    source = open_source("{synth: detail, n: 60}")
    measure(source, plan(source, k=8), Model("tiny"), target, at_once=4)
    measure(source, plan(source, k=8), Model("tiny"), tmp_path / "whole.jsonl", at_once=4)
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
