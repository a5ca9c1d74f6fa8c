"""Progressive hints (Keye-VL 1.5): level by level, privileged, only where a view reveals them, and never in an evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.datasets.curriculum import Pick, Shuffled
from foveate.datasets.leaks import LeakError, check_student_view, find_leaks
from foveate.datasets.read import read
from foveate.datasets.scenes import samples
from foveate.datasets.spec import load_data
from foveate.datasets.trajectories import Trajectory, read_trajectories, write_trajectories
from foveate.datasets.views import ViewSpec, make_view, resolve_view
from foveate.eval.holdout import HeldOut, HoldoutEvaluator
from foveate.train.collect import Task
from foveate.train.config import SamplingPart
from foveate.train.protocols import Protocols
from foveate.visual_tools.spec import ToolsSpec
from foveate.vlm.generate import HFEngine
from foveate.vlm.load import VLM, load
from foveate.vlm.messages import to_json
from foveate.vlm.records import Privileged, Sample
from foveate.vlm.rollout import Limits

HINTS = ("Shapes show letters.", "Look at the triangle.", "It shows K.")
SHOWS = ViewSpec(name="shows", hints="\nHint: {hints}", reveals=("hints",))


def sample(**changes: Any) -> Sample:
    return Sample(id="s", question="Which letter?", answer="K", privileged=Privileged(hints=HINTS, **changes))


def said(level: int, spec: ViewSpec = SHOWS, of: Sample | None = None) -> str:
    return make_view(of or sample(), spec, "student", None, level).messages[0].text


# ---- levels -------------------------------------------------------------------------------------------------------------


def test_levels_by_hand() -> None:
    assert said(0) == "Which letter?"
    assert said(1) == "Which letter?\nHint: Shapes show letters."
    assert said(2) == "Which letter?\nHint: Shapes show letters. Look at the triangle."
    assert said(3) == said(4) == said(99) == "Which letter?\nHint: Shapes show letters. Look at the triangle. It shows K."
    assert said(2, of=Sample(id="none", question="Which letter?")) == "Which letter?", "a sample without hints has none to show"
    whole = ViewSpec(prefix="Q. ", suffix=" End.", hints=" [{hints}]", rationale=" ({rationale})", answer=" = {answer}")
    assert said(1, whole, sample(rationale="Why.")) == "Q. Which letter? [Shapes show letters.] (Why.) = K End."


def test_level_0_is_the_view_without_hints() -> None:
    (made,) = samples("detail", "dev", 1)
    for name, plain in (("tiny.hinted", "tiny.full"), ("hinted", "full")):
        hinted, without = (make_view(made, resolve_view(one), "student").messages for one in (name, plain))
        assert hinted == without
        assert make_view(made, resolve_view(name), "student", None, 1).messages != without


def test_a_view_that_shows_no_hints_cannot_be_asked_for_them() -> None:
    with pytest.raises(ValueError, match=r"sample s: asked for hint level 2, and the view full shows no hints; give it hints:"):
        said(2, resolve_view("full"))
    with pytest.raises(ValueError, match=r"lacks \{hints\}"):
        ViewSpec(hints="Hint!")


# ---- leaks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_hint_that_is_not_revealed_is_a_leak(level: int) -> None:
    hidden = SHOWS.model_copy(update={"reveals": ()})
    view = make_view(sample(), hidden, "student", None, level)
    found = [str(leak) for leak in find_leaks(sample(), view, hidden)]
    assert [f"hint {number} in the text" for number in range(1, level + 1)] == [leak for leak in found if "hint" in leak]
    assert ("the answer 'K' in text that is not the question's" in found) == (level == 3)
    with pytest.raises(LeakError, match=f"sample s: the student view shows shows .*hint {level} in the text"):
        check_student_view(sample(), view, hidden)
    check_student_view(sample(), make_view(sample(), SHOWS, "student", None, level), SHOWS)
    check_student_view(sample(), make_view(sample(), hidden, "student", None, 0), hidden)


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        (" shapes show letters.", "hint 1"),
        ("\nHint: Shapes show letters.\nHint: Shapes show letters.", "hint 1"),
        ("\nHint: Shapes show letters. Look at the triangle.", "hint 2"),
        (" {answer}", "the answer 'K'"),
        ("\nHint: It shows K.", "hint 3"),
    ],
)
def test_what_is_revealed_hides_nothing_else(text: str, leak: str) -> None:
    """Hints told once, in the template's words, are meant; told twice, or besides, they are not."""
    view = make_view(sample(), SHOWS, "student", None, 2)
    more = dataclasses.replace(view.messages[0], parts=(*view.messages[0].parts, text.replace("{answer}", "K")))
    found = find_leaks(sample(), dataclasses.replace(view, messages=(more,)), SHOWS)
    assert any(leak in str(one) for one in found)


def test_a_hint_that_everybody_is_told_is_no_leak() -> None:
    alike = ViewSpec(suffix=" Shapes show letters.")
    assert find_leaks(sample(), make_view(sample(), alike, "student"), alike) == []
    openly = dataclasses.replace(sample(), question="Which letter? Shapes show letters.")
    assert find_leaks(openly, make_view(openly, ViewSpec(), "student"), ViewSpec()) == []


@pytest.mark.parametrize(("frac", "leaks"), [(0.0, False), (0.5, True), (0.75, True), (1.0, True)])
def test_a_part_of_the_rationale_is_a_leak_too(frac: float, leaks: bool) -> None:
    made = sample(rationale="It stands below the  circle, left.")
    spec = ViewSpec(rationale=" {rationale}", rationale_frac=frac)
    assert bool(find_leaks(made, make_view(made, spec, "student"), spec)) == leaks
    shown = spec.model_copy(update={"reveals": ("rationale",)})
    assert find_leaks(made, make_view(made, shown, "student"), shown) == []


# ---- where hints come from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("kind", ["letter", "earlier"])
def test_synthetic_questions_have_five_levels(kind: str, as_text: bool) -> None:
    for made in samples("detail", "dev", 20, kinds=(kind,), as_text=as_text):
        hints = made.privileged.hints
        assert len(hints) == 5
        assert made.answer is not None
        tells = [f"shows {made.answer}" in hint for hint in hints]
        assert tells == [False] * 4 + [True], "only the full solution tells"
        names = made.question.rpartition("Scene: ")[2].rpartition("letter ")[2]
        assert all(word in names for word in hints[1].rstrip(";").replace(" and ", " ").split())
        view = make_view(made, resolve_view("tiny.hinted"), "student", None, 5)
        check_student_view(made, view, resolve_view("tiny.hinted"))
        hidden = resolve_view({"preset": "tiny.hinted", "reveals": []})
        assert len([leak for leak in find_leaks(made, view, hidden) if leak.what.startswith("hint")]) >= 4
    assert samples("detail", "dev", 1, kinds=("where",))[0].privileged.hints == ()


def test_hints_by_hand() -> None:
    for kind in ("letter", "earlier"):
        (one,) = samples("detail", "dev", 1, kinds=(kind,))
        rationale = [text.removeprefix("The ") for text in (one.privileged.rationale or "").rstrip(".").split(". ")]
        where = ", ".join(text.rpartition(" shows ")[0] for text in rationale)
        assert one.privileged.hints[2:4] == (f"{where};", f"zoom in on {where};")
        ending = f"; {one.answer} is earlier." if kind == "earlier" else "."
        assert one.privileged.hints[4] == "; ".join(rationale) + ending


def test_hints_from_a_file(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    rows: list[dict[str, Any]] = [
        {"id": "a", "question": "q", "image": "a.png", "hints": list(HINTS)},
        {"id": "b", "question": "q", "image": "a.png", "hints": "One alone."},
        {"id": "c", "question": "q", "image": "a.png"},
        {"id": "d", "messages": [{"role": "user", "content": "<image>q"}], "images": ["a.png"], "hints": list(HINTS)},
        {"id": "bad", "question": "q", "image": "a.png", "hints": ["", 3]},
    ]
    for name, chosen in (("plain.jsonl", rows[:3] + rows[4:]), ("chat.jsonl", rows[3:4])):
        (tmp_path / name).write_text("\n".join(map(json.dumps, chosen)))
    found = read(_spec(tmp_path / "plain.jsonl"))
    assert [one.privileged.hints for one in found.samples] == [HINTS, ("One alone.",), ()]
    (problem,) = found.problems
    assert "line 4" in str(problem)
    assert "hints ['', 3]; a list of texts, each helping more" in str(problem)
    assert "hints" not in found.unused
    (chat,) = read(_spec(tmp_path / "chat.jsonl")).samples
    assert chat.privileged.hints == HINTS


def _spec(path: Path) -> Any:
    from foveate.datasets.spec import DataSpec

    return DataSpec(path=str(path))


def test_hints_survive_being_written(tmp_path: Path) -> None:
    (made,) = samples("detail", "dev", 1)
    write_trajectories([Trajectory(made, ("<answer>K</answer>",))], tmp_path / "t.jsonl")
    (back,) = read_trajectories(str(tmp_path / "t.jsonl")).trajectories
    assert back.sample.privileged.hints == made.privileged.hints != ()


# ---- in use -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> VLM:
    return load("tiny")


def test_an_evaluation_shows_none(tiny: VLM) -> None:
    drawn = samples("detail", "dev", 3)
    views = {name: HeldOut(drawn, resolve_view(name)) for name in ("tiny.full", "tiny.hinted")}
    found = HoldoutEvaluator(views, 8, store=lambda picture: picture.key)(tiny, 0, True)["views"]
    asked = [[case["messages"] for case in found[name]["cases"]] for name in views]
    assert asked[0] == asked[1]
    assert asked[0] != [
        to_json(make_view(one, resolve_view("tiny.hinted"), "student", None, 1).messages, lambda picture: picture.key)
        for one in drawn
    ]


class Levels(Shuffled):
    """Helps the prompts of a step more and more."""

    def pick(self, step: int, places: range) -> list[Pick]:
        return [dataclasses.replace(pick, hint=place) for pick, place in zip(super().pick(step, places), places, strict=True)]


def task(tiny: VLM, drawn: Sequence[Sample], view: str | dict[str, Any]) -> Task:
    protocols = Protocols(ToolsSpec(), {}, Limits(turns=1), tiny.family.coords)
    sampling = SamplingPart(max_new_tokens=4)
    return Task("main", drawn, Levels(drawn, 0, 4), resolve_view(view), 4, 1, sampling, 0, protocols, True)


def test_a_sampler_decides_how_much_help_a_prompt_gets(tiny: VLM) -> None:
    drawn = load_data({"synth": "detail", "split": "train", "n": 8})
    groups = task(tiny, drawn, "tiny.hinted").play(0, HFEngine(tiny), tiny.renderer)
    for level, group in enumerate(groups):
        shown = " ".join(group.sample.privileged.hints[:level])
        wanted = f"{group.sample.question}\nHint: {shown}" if level else group.sample.question
        assert group.rollouts[0].view.messages[0].text == wanted
    with pytest.raises(LeakError, match="hint 1 in the text"):
        task(tiny, drawn, {"preset": "tiny.hinted", "reveals": []}).play(0, HFEngine(tiny), tiny.renderer)
    with pytest.raises(ValueError, match=r"the view tiny.full shows no hints"):
        task(tiny, drawn, "tiny.full").play(0, HFEngine(tiny), tiny.renderer)
