"""Tables and the page of an evaluation: numbers by hand, every rate on its own, nothing from outside the page."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from eval_rows import MeanOfMeans, Pairs, Plain, row, rows

from foveate.eval.charts import Point, curves, round_ticks, scatter
from foveate.eval.gallery import chosen_items, cut_short, gallery
from foveate.eval.report import Extra, embedded, write_report
from foveate.eval.resample import estimate, intervals, mean_interval
from foveate.eval.tables import accuracy_within, equal_cost, one_per_item, render, render_categories, signed, summary
from foveate.vlm.images import Picture


def test_one_mode_by_hand() -> None:
    """8 right of 10 has Wilson's interval 0.4902 to 0.9433 (Brown, Cai and DasGupta 2001, eq. 4, z = 1.96)."""
    answers = rows("rrrrrrrrut")
    for place, one in enumerate(answers):
        one |= {"tokens_out": 10 * (place + 1), "seconds": 0.25, "calls": [{"name": "zoom"}] * (place % 2)}
    answers[9]["runaway"] = True
    found = summary(answers, Plain(), {"model": "tiny"})
    mode = found["modes"]["direct"]
    assert found["title"] == "Made up"
    assert found["meta"] == {"model": "tiny"}
    assert mode["overall"] == mode["accuracy"]
    assert mode["overall"]["value"] == 0.8
    assert mode["overall"]["how"] == "wilson"
    assert mode["overall"]["ci95"] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert mode["rates"] == {"unparsed": 0.1, "truncated": 0.1, "failed": 0.0, "runaway": 0.1, "unscored": 0.0}
    assert mode["stops"] == {"answered": 9, "turn_tokens": 1}
    assert mode["cost"] == {"tokens_in": 100, "tokens_out": 55, "tokens_image": 64, "calls": 0.5, "seconds": 0.25}
    assert mode["totals"]["tokens_out"] == 550
    assert mode["right_per_1k_tokens_out"] == pytest.approx(8 / 0.55)
    assert json.loads(json.dumps(found)) == found, "plain JSON"


def test_the_terminal_table() -> None:
    found = summary([*rows("rw"), *rows("rf", "tools", tokens_out=0)], Plain())
    header, direct, tools = render(found)
    assert direct == [
        "direct",
        "2",
        "50.0",
        "9.5 to 90.5",
        "0.0",
        "0.0",
        "0.0",
        "0.0",
        "100",
        "10",
        "64",
        "0.00",
        "0.50",
        "50.00",
    ]
    assert tools[0] == "tools"
    assert tools[header.index("failed %")] == "50.0"
    assert tools[-1] == "–", "nothing written, nothing to divide by"
    assert render_categories(found) == []


def test_categories_with_intervals() -> None:
    answers = [
        row(str(place), state, categories={"kind": kind, "size": "big"})
        for place, (state, kind) in enumerate(zip("rrwr", "aabb", strict=True))
    ]
    mode = summary(answers, Plain())["modes"]["direct"]
    assert {name: (one["value"], one["n"]) for name, one in mode["categories"]["kind"].items()} == {"a": (1.0, 2), "b": (0.5, 2)}
    assert mode["categories"]["size"]["big"]["value"] == 0.75
    assert mode["categories"]["kind"]["a"]["ci95"] == pytest.approx([0.3424, 1.0], abs=1e-4)  # Wilson, 2 of 2: 2 / (2 + 1.96^2)
    assert render_categories(summary(answers, Plain()))[1:3] == [["kind", "a", "2", "100.0"], ["kind", "b", "2", "50.0"]]


def test_a_mean_of_means_has_a_bootstrap_interval_even_where_it_equals_the_mean() -> None:
    answers = [row(str(place), "rw"[place % 2], categories={"kind": "ab"[place // 20]}) for place in range(40)]
    numbers = summary(answers, MeanOfMeans())["modes"]["direct"]["numbers"]
    assert {name: one["value"] for name, one in numbers.items()} == {"overall": 0.5, "a": 0.5, "b": 0.5}
    assert numbers["overall"]["how"] == "bootstrap"
    # standard errors: sqrt(1/4/40) = 0.079 over all, sqrt(1/4/20) = 0.112 in a category
    assert numbers["overall"]["ci95"] == pytest.approx([0.5 - 1.96 * 0.079, 0.5 + 1.96 * 0.079], abs=0.03)
    assert numbers["a"]["ci95"] == pytest.approx([0.5 - 1.96 * 0.112, 0.5 + 1.96 * 0.112], abs=0.04)


def test_pairs_are_drawn_as_pairs() -> None:
    """20 pairs, half of them right: were a pair that is drawn twice taken for one of four, its score would not count twice."""
    answers = [row(f"{pair}{side}", "r" if pair < 10 else side, group=str(pair)) for pair in range(20) for side in "rw"]
    overall = summary(answers, Pairs())["modes"]["direct"]["overall"]
    assert overall["value"] == 0.5
    assert overall["how"] == "bootstrap"
    assert overall["ci95"] == pytest.approx([0.5 - 1.96 * 0.112, 0.5 + 1.96 * 0.112], abs=0.04)
    drawn: list[int] = []

    def count(sides: object) -> dict[str, float]:
        drawn.append(len({one["group"] for one in sides[0]}))  # type: ignore[index]
        return {}

    intervals([answers], count)
    assert set(drawn) == {20}


def test_all_right_in_groups_is_not_certainty() -> None:
    answers = [row(f"{pair}{side}", group=str(pair)) for pair in range(3) for side in "ab"]
    found = estimate(answers)
    assert found["how"] == "bootstrap"
    assert found["ci95"] == pytest.approx([3 / (3 + 1.959964**2), 1.0], abs=1e-5), "Wilson's for three of three"


def test_the_bootstrap_of_a_mean() -> None:
    values = [0.0, 1.0] * 200
    low, high = mean_interval(values, [str(place) for place in range(400)])
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)
    # the same values as 4 units of 100: the spread is that of 4 draws, ten times as wide
    wide = mean_interval(sorted(values), [str(place // 100) for place in range(400)])
    assert wide == (0.0, 1.0)
    assert mean_interval([], []) == (0.0, 0.0)
    with pytest.raises(ValueError, match="2 values but 1 units"):
        mean_interval([1.0, 2.0], ["a"])


def test_draws_are_voted_on_and_their_costs_added() -> None:
    said = {"0": "rrw", "1": "wwr", "2": "uru"}
    answers = [
        row(item, state, "consistency", draw=draw, calls=[{}])
        for item, states in said.items()
        for draw, state in enumerate(states)
    ]
    mode = summary(answers, Plain())["modes"]["consistency"]
    assert mode["overall"]["value"] == pytest.approx(2 / 3)
    assert (mode["n"], mode["draws"]) == (3, 3)
    assert mode["single"]["value"] == pytest.approx(4 / 9)
    assert mode["single"]["n"] == 3
    assert mode["cost"]["tokens_out"] == 30
    assert mode["cost"]["calls"] == 3
    assert mode["rates"]["unparsed"] == pytest.approx(2 / 9)
    assert render(summary(answers, Plain()))[1][1] == "3 × 3"


def test_a_row_that_is_there_twice_is_an_error() -> None:
    assert len(one_per_item([row("0", index=0), row("0", index=1)])) == 2, "a file may repeat an id"
    with pytest.raises(ValueError, match="item 0, draw 0: two rows of the mode direct"):
        one_per_item([row("0"), row("0", "w")])


def test_accuracy_at_equal_cost() -> None:
    """Ten items a mode: direct is right on half at 10 tokens each, tools on all at 100 but one at 500."""
    direct = rows("rrrrrwwwww")
    tools = rows("r" * 10, "tools", tokens_out=100)
    tools[0]["tokens_out"] = 500
    found = equal_cost([*direct, *tools])
    assert found["budgets"] == [10, 100]
    assert found["accuracy"] == {"direct": [0.5, 0.5], "tools": [0.0, 0.9]}
    assert found["curves"]["tools"] == [[100, 0.9], [500, 1.0]]
    assert accuracy_within(tools, 499) == 0.9


# --- the page ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


def told(folder: Path) -> tuple[list[dict[str, object]], dict[str, str]]:
    """One item in three modes: a picture of 400 x 300 px with its evidence, a crop given, and a crop that a tool cut."""
    rng = np.random.default_rng(0)
    whole, crop = (Picture.of(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((300, 400), (40, 60)))
    names = {"whole": whole.save_png(folder / "images"), "crop": crop.save_png(folder / "images")}

    def image(name: str) -> dict[str, object]:
        return {"type": "image", "image": names[name], "size_px": [400, 300] if name == "whole" else [60, 40]}

    def text(words: str) -> dict[str, object]:
        return {"type": "text", "text": words}

    evidence = {"boxes_px_xyxy": [[100, 50, 160, 90]], "box_image": 0}
    call = {"name": "zoom", "image": 0, "box_px_xyxy": [90, 40, 170, 100], "times_s": [], "error": None}
    system = {"role": "system", "content": [text("There is a tool.")]}
    user = {"role": "user", "content": [image("whole"), text("What <b>colour</b>?")]}
    story = [
        system,
        user,
        {"role": "assistant", "content": [text("look")]},
        {"role": "tool", "content": [text("here:"), image("crop")]},
    ]
    answers = [
        row("0", "w", question="What <b>colour</b>?", story=[user], **evidence),
        row("0", "r", "crop", story=[{"role": "user", "content": [image("crop"), text("What?")]}], **evidence),
        row(
            "0",
            "r",
            "tools",
            story=[*story, {"role": "assistant", "content": [text("A")]}],
            texts=["look", "A"],
            calls=[call],
            **evidence,
        ),
    ]
    return answers, names


def test_an_item_is_shown_with_its_evidence_and_what_tools_were_used_on(folder: Path) -> None:
    answers, names = told(folder)
    (item,) = gallery(answers, 5)
    (shown,) = item["pictures"]
    assert shown["name"] == names["whole"]
    assert [(mark["box"], mark["mode"]) for mark in shown["marks"]] == [((100, 50, 160, 90), ""), ((90, 40, 170, 100), "tools")]
    direct, crop, tools = item["answers"]
    assert direct["pictures"] == []
    assert crop["pictures"] == [names["crop"]]
    assert [turn["text"] for turn in tools["turns"]] == ["look", "A"]
    assert tools["turns"][0]["pictures"] == [names["crop"]]
    assert tools["turns"][0]["reply"] == "here:"
    assert tools["turns"][1]["pictures"] == []
    assert [part["text"] for part in tools["prompt"]] == ["There is a tool.", "What <b>colour</b>?"]
    assert tools["calls"] == ["zoom (90, 40, 170, 100) px"]
    assert (direct["parsed"], direct["gold"], direct["score"]) == ("B · blue", "A · red", 0.0)


def test_the_page_is_complete_in_itself(folder: Path) -> None:
    answers, _ = told(folder)
    answers += [row("1", "f", error="HTTP 500 <script>alert(1)</script>")]
    extra = Extra("Clean minus corrupted", "What the picture is worth.", [["how", "points"], ["blank", "+20.0"]])
    source = {"path": "v.tsv", "sha256": "ab" * 32, "num_rows": 191}
    meta = {"model": "a model", "source": source, "seed": 7}
    page = write_report(folder, answers, summary(answers, Plain(), meta), [extra]).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http:" not in page
    assert "https:" not in page
    assert str(folder) not in page
    assert page.count("<script") == 1, "what a model or a server said is text"
    assert "&lt;b&gt;colour" in page
    for part in (
        "a model",
        "191 rows",
        "abababababababab",
        "Clean minus corrupted",
        "+20.0",
        "Accuracy against output tokens",
        '"seed": 7',
    ):
        assert part in html.unescape(page)
    assert 'x="100" y="50" width="60" height="40"' in page
    assert 'viewBox="0 0 400 300"' in page
    assert page.count('<article class="item">') == 2
    assert re.findall(r'data-mode="(\w+)" data-outcome="(\w+)"', page) == [
        ("direct", "wrong"),
        ("crop", "right"),
        ("tools", "right"),
        ("direct", "failed"),
    ]
    assert re.findall(r'data-kind="outcome" data-value="(\w+)"', page) == ["right", "wrong", "failed"]
    assert sorted(path.name for path in folder.iterdir()) == ["images", "report.html"], "nothing half-written is left"


def test_pictures_are_embedded_small_and_lost_ones_are_said_to_be_lost(tmp_path: Path) -> None:
    large = Picture.of(np.full((1500, 3000, 3), 200, np.uint8)).save_png(tmp_path / "images")
    found = embedded(tmp_path / "images", large)
    assert found["size_px"] == (3000, 1500)
    assert found["uri"].startswith("data:image/jpeg;base64,")
    assert len(found["uri"]) < 20_000
    (tmp_path / "images" / "torn.png").write_bytes(b"\x89PNG half of a file")
    outside = tmp_path / "secret.png"
    outside.write_bytes((tmp_path / "images" / large).read_bytes())
    for gone in ("gone.png", "../secret.png", "torn.png"):
        assert embedded(tmp_path / "images", gone)["uri"] == ""
    story = [{"role": "user", "content": [{"type": "image", "image": "gone.png", "size_px": [10, 10]}]}]
    answers = [row("0", story=story)]
    assert "is not in images/" in write_report(tmp_path, answers, summary(answers, Plain())).read_text(encoding="utf-8")


def test_chosen_items_show_every_combination_the_disagreements_first() -> None:
    a, b = rows("rrrrwru"), rows("rrrrwwr", "tools")
    assert chosen_items([*a, *b], 4) == ["5", "6", "0", "4"]
    assert chosen_items([*a, *b], 100) == ["5", "6", "0", "4", "1", "2", "3"]
    a[2]["story"] = [{"role": "user", "content": []}]
    assert chosen_items([*a, *b], 3) == ["2", "5", "6"], "what can be looked at comes first"


def test_long_texts_are_cut_in_the_middle() -> None:
    assert cut_short("abc", 10) == "abc"
    assert cut_short("a" * 50 + "b" * 50, 20) == "a" * 10 + " … 80 characters left out … " + "b" * 10


def test_charts_place_points_and_name_them() -> None:
    chart = scatter("T", [Point("<a>", 10, 0.5, (0.4, 0.6)), Point("bcd", 10, 0.5, (0.4, 0.6), "c2")], "tokens")
    assert "&lt;a&gt;" in chart
    heights = re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', chart)
    assert abs(float(heights[0]) - float(heights[1])) >= 14, "names of points at one place do not cover each other"
    assert scatter("T", [], "tokens") == ""
    assert curves("T", [], "tokens") == ""
    assert round_ticks(0.0, 0.93) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (signed(0.0421), signed(-0.1), signed(-0.0001)) == ("+4.2", "\u221210.0", "0.0")
