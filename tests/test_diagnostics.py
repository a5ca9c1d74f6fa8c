"""What an accuracy rests on: corruptions change one thing and nothing else, and the numbers are right."""

from __future__ import annotations

import numpy as np
import pytest
from eval_rows import row, rows
from helpers import picture
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from foveate.datasets.views import ViewSpec, make_view
from foveate.eval.corrupt import corrupted, question_only
from foveate.eval.diagnostics import (
    ablated,
    calibration,
    clean_minus_corrupted,
    gap_modes,
    regional_gap,
    render_clean_minus_corrupted,
    tool_use,
)
from foveate.eval.records import Item, Mode
from foveate.visual_tools.spec import ToolsSpec
from foveate.vlm.messages import Clip
from foveate.vlm.records import Privileged, Sample

# --- corruptions ---------------------------------------------------------------------------------------------------------------


def items(count: int = 4, **changes: object) -> list[Item]:
    return [
        Item(
            Sample(
                **{
                    "id": str(place),
                    "question": "There are two cars. What is the left one?",
                    "answer": "B",
                    "options": ("red", "blue", "green"),
                    "images": (picture(place, 56 + place, 40),),
                    "privileged": Privileged(boxes_px_xyxy=((5, 5, 20, 20),), crops=(picture(100 + place, 9, 8),)),
                    **changes,
                }  # type: ignore[arg-type]
            )
        )
        for place in range(count)
    ]


def test_blank_and_random_pictures_leave_the_text_alone() -> None:
    """Law P4 of the method: the text is identical under BI and RI."""
    clean = items()
    for how in ("blank_image", "random_image"):
        for before, after in zip(clean, corrupted(clean, how), strict=True):  # type: ignore[arg-type]
            assert (after.sample.question, after.sample.options, after.sample.answer, after.id) == (
                before.sample.question,
                before.sample.options,
                before.sample.answer,
                before.id,
            )
            assert after.sample.images[0].key != before.sample.images[0].key


def test_a_blank_picture_has_the_same_size_and_one_colour_in_evidence_too() -> None:
    after = corrupted(items(), "blank_image")[2].sample
    assert after.images[0].size_px == (58, 40)
    assert after.privileged.crops[0].size_px == (9, 8)
    for one in (*after.images, *after.privileged.crops):
        assert len(np.unique(np.asarray(one.rgb()).reshape(-1, 3), axis=0)) == 1
    assert after.privileged.boxes_px_xyxy == ((5, 5, 20, 20),)


@given(seed=st.integers(0, 10_000))
def test_a_random_picture_is_never_the_same_whatever_file_it_is_in(seed: int) -> None:
    """Six questions about one picture and one about another: those six get the other one, and it gets theirs."""
    shared = [*items(6, images=(picture(7),)), *items(1, id="odd", images=(picture(8),))]
    after = corrupted(shared, "random_image", seed)
    assert {one.sample.images[0].key for one in after[:6]} == {picture(8).key}
    assert after[6].sample.images[0].key == picture(7).key
    assert after[0].sample.privileged == Privileged()


def test_random_pictures_vary_and_follow_the_seed() -> None:
    many = items(30)
    first, again, other = ([one.sample.images[0].key for one in corrupted(many, "random_image", seed)] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(set(first)) > 10


def test_a_random_picture_needs_another_one() -> None:
    with pytest.raises(ValueError, match="item 0: there is no other picture among the 3 items"):
        corrupted(items(3, images=(picture(7),)), "random_image")[0]
    with pytest.raises(ValueError, match="there is no corruption 'blank'; there are blank_image, random_image"):
        corrupted(items(), "blank")  # type: ignore[arg-type]


def test_several_pictures_are_all_replaced() -> None:
    pairs = items(5, images=())
    pairs = [Item(Sample(id=str(place), question="?", images=(picture(2 * place), picture(2 * place + 1)))) for place in range(5)]
    for place, one in enumerate(corrupted(pairs, "random_image")):
        keys = {picture(2 * place).key, picture(2 * place + 1).key}
        assert len(one.sample.images) == 2
        assert not keys & {shown.key for shown in one.sample.images}


def test_videos_are_blanked_and_swapped() -> None:
    clips = [Clip((picture(place), picture(place + 50)), (0.0, 1.5)) for place in range(2)]
    films = [Item(Sample(id=str(place), question="?", video=clip)) for place, clip in enumerate(clips)]
    assert corrupted(films, "random_image")[0].sample.video == clips[1]
    blanked = corrupted(films, "blank_image")[0].sample.video
    assert blanked is not None
    assert blanked.times_s == (0.0, 1.5)
    assert blanked.frames[0] == blanked.frames[1]


def test_conditions_go_and_pictures_options_and_boxes_stay() -> None:
    clean = items()
    after = corrupted(clean, "no_conditions")
    assert len(after) == 4
    assert after[0].sample.question == "What is the left one?"
    for before, now in zip(clean, after, strict=True):
        assert now.sample.images == before.sample.images
        assert (now.sample.options, now.sample.answer, now.sample.privileged) == (
            before.sample.options,
            before.sample.answer,
            before.sample.privileged,
        )


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("In triangle ABC, AB = 3. The angle at B is 90 degrees. If BC = 4, what is AC?", "What is AC?"),
        ("AB is tangent to the circle with centre O. Find r.", "Find r."),
        ("As shown in Fig. 2, AB = 3.5 cm, find the area of the square.", "Find the area of the square."),
        ("What is y if x = 3?", "What is y?"),
        ("Can you tell if the light is on?", "Can you tell if the light is on?"),
        ("What is given to the man?", "What is given to the man?"),
        ("What is near the U.S. flag?", "What is near the U.S. flag?"),
        ("<image>\nTom has 3 apples. How many are red?\nA. 1\nB. 2", "<image>\nHow many are red?\nA. 1\nB. 2"),
        ("A car is parked. Is it red?\nOptions:\n(A) yes\n(B) no", "Is it red?\n(A) yes\n(B) no"),
        ("The lamp is on. The colour is\nChoices:\nA. red\nB. blue", "The colour is\nA. red\nB. blue"),
        ("矩形的长是3。宽是4。面积是多少？", "面积是多少？"),
        ("Look.", "Look."),
        ("", ""),
    ],
)
def test_what_is_left_of_a_text(text: str, kept: str) -> None:
    assert question_only(text) == kept


@given(text=st.text(max_size=200))
def test_a_text_is_never_emptied(text: str) -> None:
    assert bool(question_only(text).strip()) == bool(text.strip())


def test_permuted_options_move_every_option_and_the_reference_follows() -> None:
    for seed in range(6):
        after = corrupted(items(), "permuted_options", seed)[1].sample
        assert after.options in (("blue", "green", "red"), ("green", "red", "blue"))
        assert after.answer is not None
        assert after.options["ABC".index(after.answer)] == "blue"
    assert {corrupted(items(), "permuted_options", seed)[1].sample.answer for seed in range(20)} == {"A", "C"}
    written = Item(Sample(id="w", question="Which?\nA. red\nB. blue", answer="A"))
    moved = corrupted([written], "permuted_options")[0].sample
    assert (moved.question, moved.answer) == ("Which?\nA. blue\nB. red", "B")
    plain = Item(Sample(id="p", question="Which?", answer="red"))
    assert corrupted([plain], "permuted_options")[0] == plain


def test_corrupted_items_are_lazy_and_behave_like_a_list() -> None:
    asked: list[int] = []

    class Counting(list[Item]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            asked.append(index)
            return super().__getitem__(index)

    after = corrupted(Counting(items()), "blank_image")
    assert (len(after), asked) == (4, [])
    assert after[-1].id == "3"
    assert [one.id for one in after[1:3]] == ["1", "2"]
    assert asked == [-1, 1, 2]
    with pytest.raises(IndexError):
        after[4]


# --- the gap, corruption tables, tools -----------------------------------------------------------------------------------------


def test_gap_modes_differ_in_pixels_only() -> None:
    base = Mode(
        "direct", ViewSpec(system="Look closely.", suffix="\nAnswer with a letter."), max_new_tokens=7, official_tail=True
    )
    sample = items()[0].sample
    full, crop, boxed = gap_modes(base)
    assert [one.name for one in (full, crop, boxed)] == ["full", "crop", "boxed"]
    views = [make_view(sample, one.view, "student") for one in (full, crop, boxed)]
    assert len({tuple(message.text for message in view.messages) for view in views}) == 1
    assert views[0].pictures == sample.images
    assert views[1].pictures == sample.privileged.crops
    assert views[2].pictures[0].size_px == sample.images[0].size_px
    assert len({view.pictures[0].key for view in views}) == 3
    assert {(one.max_new_tokens, one.official_tail) for one in (full, crop, boxed)} == {(7, True)}


def test_the_regional_gap_by_hand() -> None:
    """10 items: full 4, boxed 6, crop 9 right; the gap of 0.5 is a hint of 0.2 and a rest of 0.3."""
    answers = [*rows("rrrrwwwwww", "full"), *rows("rrrrrrwwww", "boxed"), *rows("rrrrrrrrrw", "crop")]
    found = regional_gap(answers)
    assert [found[name]["value"] for name in ("full", "boxed", "crop")] == [0.4, 0.6, 0.9]
    assert [found[name]["difference"] for name in ("gap", "hint", "rest")] == pytest.approx([0.5, 0.2, 0.3])
    assert found["gap"]["p_value"] == pytest.approx(2 / 2**5)
    assert found["n"] == 10
    without = regional_gap([one for one in answers if one["mode"] != "boxed"])
    assert (without["boxed"], without["hint"], without["rest"]) == (None, None, None)
    with pytest.raises(ValueError, match="no rows of the mode 'crop'; there are full"):
        regional_gap(rows("r", "full"))


def test_clean_minus_corrupted_in_one_table() -> None:
    """Of 4 items 3 are right; blind 1 of them is left (and needed no picture), with permuted options 3 again."""
    clean, blind = rows("rrrw"), rows("wwrw")
    permuted = [one | {"question": "Other?"} for one in rows("rrrw")]
    found = clean_minus_corrupted(
        {
            "base": {"clean": clean, "blank_image": blind, "permuted_options": permuted},
            "trained": {"clean": rows("rrrr"), "blank_image": blind},
        }
    )
    assert [(one["model"], one["how"], one["clean"], one["corrupted"], one["difference"]) for one in found] == [
        ("base", "blank_image", 0.75, 0.25, 0.5),
        ("base", "permuted_options", 0.75, 0.75, 0.0),
        ("trained", "blank_image", 1.0, 0.25, 0.75),
    ]
    assert [one["num_questions_differ"] for one in found] == [0, 4, 0]
    assert render_clean_minus_corrupted(found)[1][:7] == ["base", "blank image", "direct", "4", "75.0", "25.0", "+50.0"]
    with pytest.raises(ValueError, match="base: no rows under 'clean'; there are blank_image"):
        clean_minus_corrupted({"base": {"blank_image": blind}})
    with pytest.raises(ValueError, match="the mode tools was evaluated under blank_image and not under clean"):
        clean_minus_corrupted({"base": {"clean": clean, "blank_image": rows("w", "tools")}})


def test_ablated_tools() -> None:
    tools = Mode("tools", ViewSpec(system="tools"), tools=ToolsSpec(tools={"zoom": {}}), max_turns=3)
    grey = ablated(tools)
    assert grey.name == "tools-grey"
    assert grey.tools is not None
    assert grey.tools.ablate == "grey"
    assert grey.max_turns == 3
    assert ablated(tools, "other").name == "tools-other"
    frames = Mode("tools", ViewSpec(system="tools"), tools=ToolsSpec(tools={"select_frames": {}}))
    with pytest.raises(ValueError, match="knows no other frames"):
        ablated(frames, "other")
    with pytest.raises(ValueError, match="the mode direct has no tools"):
        ablated(Mode("direct", ViewSpec()))


def test_what_tools_are_worth() -> None:
    answers = [*rows("rrrw", "tools"), *rows("wwrw", "tools-grey"), *rows("rrww")]
    found = tool_use(answers)
    assert {name: one["difference"] for name, one in found.items()} == {"tools-grey": 0.5, "direct": 0.25}
    assert found["tools-grey"]["b"]["value"] == 0.75
    with pytest.raises(ValueError, match="there are direct"):
        tool_use(rows("rr"))


# --- calibration ---------------------------------------------------------------------------------------------------------------


def sure(item: str, state: str, confidence: float | str | None) -> dict[str, object]:
    tail = "" if confidence is None else f"<confidence>{confidence}</confidence>"
    return row(item, state, texts=["first", f"<answer>A</answer>{tail}"])


def test_calibration_by_hand() -> None:
    """0.9 right, 0.9 wrong (bin 0.8-0.9: accuracy 0.5), 0.2 wrong, 0.6 right: ECE = (2 * 0.4 + 0.2 + 0.4) / 4 = 0.35; Brier =
    (0.01 + 0.81 + 0.04 + 0.16) / 4 = 0.255; right against wrong: 0.9 over 0.2, 0.9 = 0.9, 0.6 over 0.2, under 0.9: 2.5 of 4."""
    answers = [sure("0", "r", 0.9), sure("1", "w", "90%"), sure("2", "w", 0.2), sure("3", "r", 0.6), sure("4", "r", None)]
    found = calibration(answers)
    assert (found["n"], found["stated_frac"]) == (4, 0.8)
    assert found["accuracy"] == 0.5
    assert found["confidence"] == pytest.approx(0.65)
    assert found["ece"] == pytest.approx(0.35)
    assert found["brier"] == pytest.approx(0.255)
    assert found["auroc"] == pytest.approx(0.625)
    assert [(round(one["low"], 1), one["n"], one["accuracy"]) for one in found["bins"]] == [
        (0.1, 1, 0.0),
        (0.5, 1, 1.0),
        (0.8, 2, 0.5),
    ]


def test_calibration_at_the_ends() -> None:
    always = calibration([sure("0", "r", 1), sure("1", "r", 1.0), sure("2", "r", 0)])
    assert always["ece"] == pytest.approx(1 / 3)
    assert always["auroc"] is None
    assert [(one["low"], one["high"]) for one in always["bins"]] == [(0.0, 0.1), (0.9, 1.0)]
    silent = calibration([sure("0", "r", None), sure("1", "r", 1.5)])
    assert silent == {
        "n": 0,
        "stated_frac": 0.0,
        "bins": [],
        "accuracy": None,
        "confidence": None,
        "ece": None,
        "brier": None,
        "auroc": None,
    }


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_scikit_learns(pairs: list[tuple[float, bool]]) -> None:
    found = calibration([sure(str(place), "r" if right else "w", value) for place, (value, right) in enumerate(pairs)])
    if len({right for _, right in pairs}) == 1:
        assert found["auroc"] is None
    else:
        assert found["auroc"] == pytest.approx(roc_auc_score([right for _, right in pairs], [value for value, _ in pairs]))
