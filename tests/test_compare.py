"""Two evaluations of the same items."""

from __future__ import annotations

import pytest
from eval_rows import MeanOfMeans, row, rows

from foveate.eval.compare import DifferentItems, compare, compare_runs, paired, render_comparison


def test_paired_by_hand() -> None:
    """8 items: 5 mended, 1 broken, 1 right twice, 1 wrong twice. Exact McNemar: 2 (C(6,0) + C(6,1)) / 2^6 = 14/64."""
    before, after = rows("wwwwwrrw"), rows("rrrrrwrw")
    found = compare(before, after[::-1])
    assert found["n"] == 8
    assert (found["a"]["value"], found["b"]["value"]) == (0.25, 0.75)
    assert found["difference"] == 0.5
    assert found["p_value"] == pytest.approx(14 / 64)
    assert found["mended"] == ["0", "1", "2", "3", "4"]
    assert found["broken"] == ["5"]
    assert (found["num_both_right"], found["num_both_wrong"]) == (1, 1)
    assert (found["num_only_a"], found["num_only_b"], found["num_questions_differ"]) == (0, 0, 0)
    # steps: five 1, two 0, one -1: mean 0.5, variance 6/8 - 1/4 = 0.5, standard error sqrt(0.5 / 8) = 0.25
    assert found["ci95"] == pytest.approx([0.5 - 1.96 * 0.25, 0.5 + 1.96 * 0.25], abs=0.13)
    assert compare(after, before)["difference"] == -0.5


def test_the_interval_is_one_of_pairs() -> None:
    """All of 200 items are answered alike but for 2 mended: unpaired, the interval would be 0.14 wide on each side."""
    found = compare(rows("rw" * 99 + "ww"), rows("rw" * 99 + "rr"))
    assert found["difference"] == 0.01
    assert found["ci95"] == pytest.approx([0.0, 0.025], abs=0.006)
    assert found["p_value"] == 0.5


def test_the_same_answers_are_no_difference() -> None:
    found = compare(rows("rwrw"), rows("rwrw"))
    assert found["difference"] == 0.0
    assert found["ci95"] == [0.0, 0.0]
    assert found["p_value"] == 1.0


def test_other_items_are_an_error_that_counts_them_and_can_be_left_out() -> None:
    a, b = rows("rrrr"), [*rows("wr"), row("x"), row("y"), row("z")]
    with pytest.raises(DifferentItems, match=r"B lacks 2 \(2, 3\) of A's, A lacks 3 \(x, y, z\) of B's; .* the 2 that both have"):
        compare(a, b)
    found = compare(a, b, intersect=True)
    assert (found["n"], found["num_only_a"], found["num_only_b"], found["difference"]) == (2, 2, 3, -0.5)
    with pytest.raises(DifferentItems, match="B lacks 1"):
        compare(rows("r"), [row("x")], intersect=True)


def test_rows_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="A holds 2 modes"):
        compare([*rows("r"), *rows("r", "tools")], rows("r"))
    with pytest.raises(ValueError, match="B holds 0 modes"):
        compare(rows("r"), [])
    with pytest.raises(ValueError, match="A is of made-up and B of vstar"):
        compare(rows("r"), rows("r", benchmark="vstar"))


def test_by_category_and_official_numbers() -> None:
    kinds = [{"categories": {"kind": kind}} for kind in "aaab"]
    a = [row(str(place), state, **kinds[place]) for place, state in enumerate("wwrw")]
    b = [row(str(place), state, **kinds[place]) for place, state in enumerate("rrrw")]
    found = compare(a, b, benchmark=MeanOfMeans())
    assert found["categories"]["kind"]["a"] | {"ci95": 0} == {
        "n": 3,
        "a": pytest.approx(1 / 3),
        "b": 1.0,
        "difference": pytest.approx(2 / 3),
        "ci95": 0,
    }
    assert found["categories"]["kind"]["b"]["difference"] == 0.0
    assert found["difference"] == 0.5
    official = found["numbers"]["overall"]
    assert (official["a"], official["b"], official["difference"]) == pytest.approx((1 / 6, 1 / 2, 1 / 3))
    assert official["ci95"][0] <= 1 / 3 <= official["ci95"][1]
    assert compare(a, b)["numbers"] == {}


def test_groups_are_resampled_whole() -> None:
    """Four questions of one group all change together: with one group there is nothing to resample, with four there is."""
    together = paired(rows("wwww", group="g"), rows("rrww", group="g"))
    apart = paired(rows("wwww"), rows("rrww"))
    assert together["ci95"] == [0.5, 0.5]
    assert apart["ci95"] == [0.0, 1.0]


def test_several_draws_are_voted_on_first() -> None:
    several = [row("0", state, draw=draw) for draw, state in enumerate("rrw")]
    found = compare(rows("w"), several)
    assert found["mended"] == ["0"]


def test_runs_are_compared_mode_by_mode() -> None:
    a = [*rows("rw"), *rows("ww", "tools")]
    b = [*rows("rr", "tools"), *rows("rr"), *rows("rr", "imagine")]
    found = compare_runs(a, b)
    assert {name: one["difference"] for name, one in found.items()} == {"direct": 0.5, "tools": 1.0}
    assert compare_runs(rows("wr"), rows("rr", "tools"))["direct > tools"]["difference"] == 0.5
    with pytest.raises(ValueError, match="no mode is in both: A has direct, tools, B has imagine"):
        compare_runs(a, rows("rr", "imagine"))


def test_comparisons_as_a_table() -> None:
    kinds = [{"categories": {"kind": kind}} for kind in "ab"]
    a, b = ([row(str(place), state, **kinds[place]) for place, state in enumerate(states)] for states in ("ww", "rw"))
    header, whole, first, second = render_comparison({"direct": compare(a, b)})
    assert header[4] == "B − A, points"
    assert whole == ["direct", "2", "0.0", "50.0", "+50.0", "0.0 to +100.0", "1", "0", "1.0000"]
    assert first[:5] == ["  a", "1", "0.0", "100.0", "+100.0"]
    assert second[:5] == ["  b", "1", "0.0", "0.0", "0.0"]


def test_ids_that_a_file_repeats_are_told_apart_by_their_place() -> None:
    before = [row("same", state, index=place) for place, state in enumerate("wrw")]
    after = [row("same", state, index=place) for place, state in enumerate("wrr")]
    found = compare(before, after)
    assert (found["n"], found["mended"]) == (3, ["same (3)"])
