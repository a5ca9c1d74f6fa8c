"""We-Math: problems of two or three steps, each asked whole and step by step, so that knowing is told from guessing
(2407.01284)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ...datasets.raw_rows import RowError
from ..readers import Row
from ..records import Item
from .base import LETTER_ONLY, LETTERS, ScoredRow, TableBenchmark, letter_of, mean_by, options_of, plain_item, replaced

_KEY = re.compile(r"([23])steps_(1|2|3|multi)")


def inline_options(text: str) -> tuple[str, ...]:
    """The options of a line "A. 3 cm; B. 4 cm; C. No correct answer", without their letters.

    >>> inline_options("A. 3.5 cm; B. 4 cm")
    ('3.5 cm', '4 cm')
    """
    starts: list[tuple[int, int]] = []
    for letter in LETTERS:
        found = re.compile(rf"(?:^|[;；,，\s])\s*{letter}\s*[.．:：、)]\s*").search(text, starts[-1][1] if starts else 0)
        if found is None:
            break
        starts.append(found.span())
    ends = [*(start for start, _ in starts[1:]), len(text)]
    return tuple(text[start:end].strip(" ;；,，\n") for (_, start), end in zip(starts, ends, strict=False))


def _item(row: Row, of: TableBenchmark) -> Item:
    key = row.text("key")
    step = _KEY.fullmatch(key)
    if step is None:
        raise RowError(f"{row.place}: the key {key!r}", "expected 2steps_1, 2steps_multi, 3steps_1 ...")
    item, options = plain_item(row, of), options_of(row) or inline_options(row.text("option"))
    if len(options) < 2:
        raise RowError(f"{row.place}: no options in {row.text('option')[:80]!r}", "expected A. ...; B. ...")
    answer, problem = letter_of(row.text("answer"), options, row.place), row.text("ID")
    item = replaced(item, id=f"{problem}-{key}", options=options, answer=answer)
    steps = {"multi": {"2": "two steps", "3": "three steps"}[step[1]]}.get(step[2], "one step")
    return replace(item, group=f"{step[1]}steps {problem}", kind="choice", categories={"key": key, "steps": steps})


def four_ways(rows: Sequence[ScoredRow]) -> dict[str, float]:
    """The scores of We-Math, section 3.3, over the problems of which all questions are there (525 in testmini).

    A problem is IK (insufficient knowledge) when it is wrong and a step of it is wrong, IG (inadequate generalization) when it is
    wrong with all steps right. A problem that is right is RM (rote memorization) when, strict, any step or, loose, every step is
    wrong, else CM (complete mastery). The score is the share of CM plus half the share of IG: strict is the headline.
    RM is told as in the paper's tables, as a share of the problems that are right (RM + CM); IK, IG and CM are shares of all.
    """
    problems: dict[str, dict[str, bool]] = {}
    for row in rows:
        if "key" in row["categories"]:  # a row that could not be read has none
            problems.setdefault(row["group"], {})[str(row["categories"]["key"]).split("_")[1]] = float(row["score"]) >= 0.5
    whole = [found for group, found in problems.items() if len(found) == int(group[0]) + 1]
    cases = [(found["multi"], [right for step, right in found.items() if step != "multi"]) for found in whole]
    share = 1 / len(cases) if cases else 0.0
    unknown = share * sum(not right and not all(steps) for right, steps in cases)
    unable = share * sum(not right and all(steps) for right, steps in cases)
    solved = share * sum(right for right, _ in cases)
    totals = {"overall": 0.0, "strict": 0.0, "loose": 0.0, "IK": unknown, "IG": unable}
    for name, learnt in (("strict", all), ("loose", any)):
        mastered = share * sum(right and learnt(steps) for right, steps in cases)
        totals |= {name: mastered + unable / 2, f"CM {name}": mastered, f"RM {name}": 1 - mastered / solved if solved else 0.0}
    return totals | {"overall": totals["strict"]} | mean_by(rows, "steps")


WEMATH = TableBenchmark(
    name="wemath",
    title="We-Math",
    source_note="We-Math/We-Math testmini (parquet, or testmini.json beside its pictures), WeMath.tsv",
    files=("WeMath.tsv", "testmini.json"),
    tail=LETTER_ONLY,  # the official prompt asks for "<Answer>: <<your option>>", a form of its own
    make=_item,
    total=four_ways,
)
