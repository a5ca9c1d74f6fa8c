"""Rejection sampling: every filter on cases made by hand, and a file that can be killed anywhere."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import picture, view_of

from foveate.datasets.scene_questions import TOOLS_SYSTEM
from foveate.datasets.scenes import samples
from foveate.datasets.trajectories import Trajectory, read_trajectories
from foveate.datasets.views import ViewSpec, make_view
from foveate.train.rejection import Filters, reflective, reject, sample_and_filter
from foveate.train.script import play_script
from foveate.visual_tools.spec import ToolsSpec, build_toolbox
from foveate.vlm.generate import HFEngine, Sampling
from foveate.vlm.load import load
from foveate.vlm.messages import Message
from foveate.vlm.records import Group, Reward, Rollout, Sample, StopReason, ToolCall, Turn
from foveate.vlm.rollout import Limits, Rules
from foveate.vlm.rollout import rollout as play_rollouts

VIEW = view_of("q")


def zoom(box: Sequence[float], label: str = "", error: str | None = None) -> ToolCall:
    arguments = {"box": list(box), **({"label": label} if label else {})}
    return ToolCall(name="zoom", arguments=json.dumps(arguments), error=error)


def rollout(
    *calls: Sequence[ToolCall],
    sample: str = "s",
    index: int = 0,
    outcome: str | None = "right",
    form: float | None = 1.0,
    stop: StopReason = StopReason.ANSWERED,
    answer: str = "K",
    tokens: int = 1,
    texts: Sequence[str] = (),
) -> Rollout:
    """One turn a list of calls, then an answer of ``tokens`` tokens."""
    said = texts or [f"{index} look {n}" for n in range(len(calls))]
    turns = [
        Turn((1,), (0.0,), text, StopReason.TOOL_CALL, Message.user(picture(n)), calls=tuple(own))
        for n, (text, own) in enumerate(zip(said, calls, strict=True))
    ]
    turns.append(Turn((1,) * tokens, (0.0,) * tokens, answer, stop))
    reward = None
    if outcome is not None:
        terms = {"answer": 1.0} if form is None else {"answer": 1.0, "format": form}
        reward = Reward(1.0, terms, outcome)  # type: ignore[arg-type]
    return Rollout(sample, sample, index, VIEW, tuple(turns), stop, reward=reward)


def group(*rollouts: Rollout, sample: str = "s") -> Group:
    return Group(Sample(id=sample, question="q", answer="K"), rollouts)


def only(filters: dict[str, Any], *rollouts: Rollout) -> tuple[list[int], dict[str, int]]:
    """The indices that stay, and the counts."""
    kept, counts = reject([group(*rollouts)], Filters.model_validate(filters))
    assert sum(counts.values()) == len(rollouts)
    assert counts["kept"] == len(kept)
    return [one.index for _, one in kept], {name: number for name, number in counts.items() if name != "kept"}


# --- each filter --------------------------------------------------------------------------------------------------------------


def test_correct() -> None:
    rollouts = [
        rollout(index=n, outcome=outcome, answer=str(n)) for n, outcome in enumerate(("right", "wrong", "unparsed", "unscored"))
    ]
    assert only({}, *rollouts) == ([0], {"wrong": 1, "unparsed": 1, "unscored": 1})
    assert only({"correct": False}, *rollouts) == ([0, 1, 2, 3], {})


def test_valid() -> None:
    rollouts = [
        rollout([zoom((0, 0, 5, 5))], index=0),
        rollout([zoom((0, 0, 5, 5)), zoom((0, 0, 0, 0), error="empty")], index=1),
        rollout(index=2, stop=StopReason.TURN_TOKENS, answer="2"),
        rollout(index=3, form=0.0, answer="3"),
        rollout(index=4, form=None, answer="4"),
        rollout(index=5, stop=StopReason.TURNS, answer="5"),
    ]
    assert only({}, *rollouts) == ([0, 4], {"call_error": 1, "unfinished": 2, "format": 1})
    assert only({"valid": False}, *rollouts) == ([0, 1, 2, 3, 4, 5], {})
    deepeyes = [rollout(index=0, form=0.0), rollout(index=1, form=-1.0, answer="b")]
    assert only({"format_least": 0}, *deepeyes) == ([0], {"format": 1})
    assert only({"format_term": "other"}, *deepeyes) == ([0, 1], {})


def test_min_turns() -> None:
    rollouts = [rollout(*[[zoom((0, 0, n, 5))] for n in range(1, turns)], index=turns) for turns in (1, 2, 3, 4)]
    assert only({"min_turns": 3}, *rollouts) == ([3, 4], {"too_short": 2})


A, B = (0, 0, 5, 5), (1, 0, 5, 5)
BOXES = json.dumps({"boxes": [{"box": A, "label": "cat"}, {"box": B, "label": "dog"}]})
CASES: list[tuple[str, list[list[ToolCall]], bool, bool]] = [
    ("one look", [[zoom(A, "cat")]], False, False),
    ("the same again", [[zoom(A, "cat")], [zoom(A, "cat")]], False, False),
    ("elsewhere", [[zoom(A, "cat")], [zoom(B, "cat")]], True, True),
    ("case and space of a label", [[zoom(A, "Red  cat")], [zoom(B, "red cat ")]], True, True),
    ("another label", [[zoom(A, "cat")], [zoom(B, "dog")]], False, False),
    ("in one turn", [[zoom(A, "cat"), zoom(B, "cat")]], False, False),
    ("two of a label, one again", [[zoom(A, "cat"), zoom(B, "cat")], [zoom(A, "cat")]], False, False),
    ("a turn in between", [[zoom(A, "cat")], [zoom(A, "dog")], [zoom(B, "cat")]], True, True),
    ("the first look failed", [[zoom(A, "cat", error="no")], [zoom(B, "cat")]], False, False),
    ("the second look failed", [[zoom(A, "cat")], [zoom(B, "cat", error="no")]], False, False),
    ("no label", [[zoom(A)], [zoom(B)]], False, True),
    ("no label, the same", [[zoom(A)], [zoom(A)]], False, False),
    ("drawn, then redrawn", [[ToolCall(name="draw_box", arguments=BOXES)], [
        ToolCall(name="draw_box", arguments=json.dumps({"boxes": [{"box": A, "label": "dog"}]}))]], True, True),
    ("drawn the same", [[ToolCall(name="draw_box", arguments=BOXES)], [
        ToolCall(name="draw_box", arguments=json.dumps({"boxes": [{"box": [0.0, 0, 5, 5], "label": "cat"}]}))]], False, False),
    ("another tool", [[zoom(A, "cat")], [
        ToolCall(name="draw_box", arguments=json.dumps({"boxes": [{"box": B, "label": "cat"}]}))]], False, False),
    ("lines", [
        [ToolCall(name="draw_line", arguments=json.dumps({"lines": [{"start": [0, 0], "end": [5, y], "label": "path"}]}))]
        for y in (5, 6)], True, True),
    ("points of one label", [
        [ToolCall(name="draw_point", arguments=json.dumps({"points": [[0, y]], "label": "tip"}))] for y in (5, 6)], True, True),
    ("no coordinates", [[ToolCall(name="rotate", arguments=json.dumps({"angle": angle}))] for angle in (90, 180)], False, False),
    ("not read", [[ToolCall(name="zoom", arguments="{")], [ToolCall(name="zoom", arguments="[1]")]], False, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "calls", "labelled", "region"), CASES, ids=[case[0] for case in CASES])
def test_reflective(name: str, calls: list[list[ToolCall]], labelled: bool, region: bool) -> None:
    one = rollout(*calls)
    assert reflective(one) is labelled
    assert reflective(one, labelled=False) is region
    for setting, wanted in (("label", labelled), ("region", region)):
        assert only({"reflective": setting, "valid": False}, one) == (([0], {}) if wanted else ([], {"not_reflective": 1}))


def test_dedupe() -> None:
    same = [rollout([zoom(A)], index=n, texts=("look",)) for n in range(3)]
    other = rollout([zoom(A)], index=3, texts=("look",), answer="k")
    assert only({}, same[0], other, *same[1:]) == ([0, 3], {"duplicate": 2})
    assert only({"dedupe": False}, *same, other) == ([0, 1, 2, 3], {})
    kept, counts = reject([group(same[0]), group(rollout([zoom(A)], sample="t", texts=("look",)), sample="t")], Filters())
    assert len(kept) == 2, "another sample may be told the same"
    assert counts == {"kept": 2}


def test_max_per_sample() -> None:
    rollouts = [rollout(index=n, tokens=tokens, answer=str(n)) for n, tokens in enumerate((5, 3, 4, 3))]
    assert only({"max_per_sample": 2}, *rollouts) == ([0, 1], {"surplus": 2})
    assert only({"max_per_sample": 2, "choose": "shortest"}, *rollouts) == ([1, 3], {"surplus": 2})
    assert only({"max_per_sample": 4, "choose": "shortest"}, *rollouts) == ([0, 1, 2, 3], {})
    drawn = [only({"max_per_sample": 1, "choose": "random", "seed": seed}, *rollouts)[0] for seed in range(40)]
    assert {tuple(one) for one in drawn} == {(0,), (1,), (2,), (3,)}
    assert drawn == [only({"max_per_sample": 1, "choose": "random", "seed": seed}, *rollouts)[0] for seed in range(40)]
    split = [group(rollouts[0]), group(rollouts[1]), group(rollout(sample="t"), sample="t")]
    kept, counts = reject(split, Filters(max_per_sample=1))
    assert [(sample.id, one.index) for sample, one in kept] == [("s", 0), ("t", 0)]
    assert counts == {"kept": 2, "surplus": 1}


def test_the_first_reason_counts_and_the_order_is_kept() -> None:
    bad = rollout(index=0, outcome="wrong", form=0.0, stop=StopReason.TURN_TOKENS)
    empty = rollout([zoom(A)], index=1, texts=("",))
    assert only({"min_turns": 5}, bad, empty) == ([], {"wrong": 1, "empty": 1})
    groups = [group(rollout(sample=name, index=n), sample=name) for n, name in enumerate("bab")]
    assert [one.index for _, one in reject(groups, Filters(dedupe=False))[0]] == [0, 1, 2]


def test_a_rollout_without_a_reward() -> None:
    with pytest.raises(ValueError, match=r"rollout s/0 has no reward.*score_group"):
        only({}, rollout(outcome=None))
    assert only({"correct": False, "valid": False}, rollout(outcome=None)) == ([0], {})


@pytest.mark.parametrize("given", [{"min_turns": 0}, {"max_per_sample": 0}, {"reflective": "yes"}, {"corect": True}])
def test_filters_that_make_no_sense(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Filters.model_validate(given)


# --- into a file --------------------------------------------------------------------------------------------------------------


def judged(sample: Sample, one: Rollout) -> Rollout:
    right = one.text == f"<answer>{sample.answer}</answer>"
    return dataclasses.replace(one, reward=Reward(float(right), {"format": 1.0}, "right" if right else "wrong"))


def test_the_models_own_zooms_are_kept_and_can_be_taught(tmp_path: Path) -> None:
    """Sampled, filtered, written, read, and played again with the tools: the very rollouts that were sampled."""
    vlm = load("tiny")
    view, rules = ViewSpec(system=TOOLS_SYSTEM), Rules(build_toolbox(ToolsSpec(), "norm1000"), Limits(turns=4))
    sampled: dict[tuple[str, int], Rollout] = {}

    def play_zooms(drawn: Sequence[Sample]) -> list[Group]:
        pairs = [(sample, make_view(sample, view, "student")) for sample in drawn]
        sampling = Sampling(temperature=1.0, max_new_tokens=64)
        groups = play_rollouts(pairs, HFEngine(vlm), vlm.renderer, n=2, sampling=sampling, seed=0, rules=rules)
        groups = [Group(each.sample, tuple(judged(each.sample, one) for one in each.rollouts)) for each in groups]
        sampled.update({(one.sample_id, one.index): one for each in groups for one in each.rollouts})
        return groups

    drawn = samples("place", "train", 8, seed=3)
    report = sample_and_filter(drawn, play_zooms, Filters(min_turns=2), tmp_path / "kept.jsonl", samples_at_once=4)
    assert report.num_samples == 8
    assert sum(report.counts.values()) == 16
    assert report.counts["kept"] >= 8, report.text()
    rows = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = read_trajectories(str(tmp_path / "kept.jsonl")).trajectories
    for row, one in zip(rows, kept, strict=True):
        was = sampled[row["id"], row["rollout"]]
        stored = play_script(one, was.view, None, vlm.renderer)
        replayed = play_script(Trajectory(one.sample, one.actions), was.view, rules.toolbox, vlm.renderer)
        for again in (stored, replayed):
            assert [turn.text for turn in again.turns] == [turn.text for turn in was.turns]
            assert [turn.observation for turn in again.turns] == [turn.observation for turn in was.turns]
            assert again.calls == was.calls
            assert (again.view, again.stop) == (was.view, was.stop)


SAMPLES = [Sample(id=f"n{n}", question="q", answer="K", images=(picture(n),)) for n in range(10)]
FILTERS = Filters(max_per_sample=2)


class Killed(RuntimeError):
    pass


def play(samples: Sequence[Sample]) -> list[Group]:
    """Three rollouts a sample: right in one turn, right in two turns, wrong."""
    return [
        Group(
            sample,
            (
                rollout(sample=sample.id, index=0),
                rollout([zoom(A)], sample=sample.id, index=1),
                rollout(sample=sample.id, index=2, outcome="wrong", answer="Z"),
            ),
        )
        for sample in samples
    ]


def run(target: Path, **changes: Any) -> Any:
    given = {"samples": SAMPLES, "play": play, "filters": FILTERS, "target": target, "samples_at_once": 3, **changes}
    return sample_and_filter(**given)


def test_kept_trajectories_can_be_read(tmp_path: Path) -> None:
    report = run(tmp_path / "out" / "kept.jsonl")
    assert (report.num_samples, report.counts) == (10, {"kept": 20, "wrong": 10})
    assert report.text().endswith("kept.jsonl: 10 samples, 20 kept, dropped: wrong 10")
    read = read_trajectories({"path": str(tmp_path / "out" / "kept.jsonl"), "verify": "full"})
    assert read.problems == []
    wanted = [Trajectory.of(one.sample, made) for one in play(SAMPLES) for made in one.rollouts[:2]]
    assert [(one.sample.id, one.sample.images, one.actions, one.observations, one.calls) for one in read.trajectories] == [
        (one.sample.id, one.sample.images, one.actions, one.observations, one.calls) for one in wanted
    ]
    rows = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["rollout"], row["reward"]) for row in rows[:2]] == [(0, 1.0), (1, 1.0)]


def test_killed_at_every_sample_and_run_again(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    run(whole)
    for after in range(4):
        calls = itertools.count()

        def some(samples: Sequence[Sample], calls: Any = calls, after: int = after) -> list[Group]:
            if next(calls) == after:
                raise Killed
            return play(samples)

        target = tmp_path / f"{after}.jsonl"
        with pytest.raises(Killed):
            run(target, play=some)
        assert run(target).counts == {"kept": 20, "wrong": 10}
        assert target.read_bytes() == whole.read_bytes()
        assert run(target, play=None).num_samples == 10, "nothing is played again"


def test_killed_at_any_byte(tmp_path: Path) -> None:
    """Rows are on the disk before the line that knows of them, so a kill leaves more rows, or a line cut short."""
    whole, lines = tmp_path / "whole.jsonl", tmp_path / "whole.progress.jsonl"
    run(whole)
    ledger = lines.read_bytes()
    ends = [n + 1 for n, byte in enumerate(ledger) if byte == 10]
    sizes = [0, *(json.loads(line)["bytes"] for line in ledger.splitlines()[1:])]
    rng = random.Random(0)
    cuts = [*ends, 0, 1, *(rng.randrange(len(ledger)) for _ in range(25))]
    for number, cut in enumerate(cuts):
        known = sum(end <= cut for end in ends)
        least, most = (sizes[known - 1], sizes[min(known, len(sizes) - 1)]) if known else (0, 0)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "whole.progress.jsonl").write_bytes(ledger[:cut])
        if known:
            (folder / "whole.jsonl").write_bytes(whole.read_bytes()[: rng.randint(least, most)])
        shutil.copytree(tmp_path / "images", folder / "images")
        assert run(folder / "whole.jsonl").counts == {"kept": 20, "wrong": 10}, cut
        assert (folder / "whole.jsonl").read_bytes() == whole.read_bytes(), cut
        assert (folder / "whole.progress.jsonl").read_bytes() == ledger, cut


def test_more_samples_are_added_and_known_ones_passed_over(tmp_path: Path) -> None:
    target = tmp_path / "kept.jsonl"
    assert run(target, samples=SAMPLES[:4]).num_samples == 4
    seen: list[str] = []

    def noted(samples: Sequence[Sample]) -> list[Group]:
        seen.extend(sample.id for sample in samples)
        return play(samples)

    assert run(target, samples=[*SAMPLES, SAMPLES[7]], play=noted).counts["kept"] == 20
    assert seen == [f"n{n}" for n in range(4, 10)]


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    target = tmp_path / "kept.jsonl"
    run(target, about={"model": "a"})
    with pytest.raises(ValueError, match="was begun with another filters, model; go on with the same"):
        run(target, about={"model": "b"}, filters=Filters())
    target.write_bytes(target.read_bytes()[:10])
    with pytest.raises(ValueError, match="do not belong together"):
        run(target, about={"model": "a"})
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"foreign\.jsonl and foreign\.progress\.jsonl do not belong together"):
        run(foreign)
    assert foreign.read_text(encoding="utf-8") == "{}\n"
    with pytest.raises(ValueError, match=r"ends in \.jsonl"):
        run(tmp_path / "kept.json")
