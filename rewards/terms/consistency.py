"""Consistency: does the same reasoning lead to the same option when the options stand in another order?

GeoReason (2601.04118) rewards this; its formula and its number of orders are not published. This version asks for the letter
again with the model's own reasoning, cut off before its answer and with its letters blanked, under permuted options.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal

import pydantic

from ...vlm.messages import Message
from ...vlm.records import Sample
from .. import answer as answers
from ..base import Case, Query, Term
from ..choices import blank_letters, option_spans, options_in, read_choice
from ..marks import answer_start, unwrap


class Consistency(Term):
    """Share of ``permutations`` orders of the options under which the same option is chosen, 0 to 1; 0 for an unparsed answer.

    Needs a model to ask (`ScoreContext.ask`), and a view whose text lists the options as "A. ..." or "(A) ...". Gate it by the
    answer in the combiner: consistent wrong answers are no aim.
    """

    term: Literal["consistency"] = "consistency"
    permutations: int = pydantic.Field(default=2, ge=1)
    max_new_tokens: int = pydantic.Field(default=8, ge=1)

    def values(self, cases: Sequence[Case]) -> list[float]:
        if not cases:
            return []
        ask = cases[0].context.ask
        if ask is None:
            raise ValueError(
                f"sample {cases[0].sample.id}: the term consistency needs a model to ask; pass ScoreContext(ask=...), "
                "or leave the term out"
            )
        asked = [self._queries(case) for case in cases]
        queries = [query for own in asked for query, _ in own]
        replies = iter(ask(queries) if queries else ())
        return [sum(_same(next(replies), *wanted) for _, wanted in own) / self.permutations for own in asked]

    def value(self, case: Case) -> float:
        return self.values([case])[0]

    def _queries(self, case: Case) -> list[tuple[Query, tuple[tuple[str, ...], str]]]:
        """What to ask, each with the options in their new order and the text of the one that was chosen."""
        sample, text = case.sample, case.rollout.text
        options = sample.options or options_in(sample.question)
        if len(options) < 2:
            raise ValueError(f"sample {sample.id}: the term consistency needs options, and it has {len(options)}")
        letter = answers.extract(text, options).text
        start = answer_start(text)
        if letter is None or start is None:
            return []
        reasoning, opener = _split(text, start, len(options))
        found = []
        for order in orders(sample, len(options), self.permutations):
            shuffled = tuple(options[index] for index in order)
            messages = _chat(case, shuffled)
            query = Query(messages, reasoning + opener, self.max_new_tokens)
            found.append((query, (shuffled, options[ord(letter) - ord("A")])))
        return found


def orders(sample: Sample, count: int, num: int) -> list[list[int]]:
    """``num`` orders of the options that are not their own, the same for all rollouts of a sample."""
    draw = random.Random(f"consistency:{sample.id}")
    found: list[list[int]] = []
    while len(found) < num:
        order = draw.sample(range(count), count)
        if order != list(range(count)):
            found.append(order)
    return found


def _split(text: str, start: int, count: int) -> tuple[str, str]:
    opener = re.search(r"(?:<answer[^<>]{0,40}>|\\boxed\s*\{|[^\n.]{0,60})\s*$", text[:start])
    cut = opener.start() if opener else start
    return blank_letters(text[:cut], count), text[cut:start]


def _chat(case: Case, options: Sequence[str]) -> tuple[Message, ...]:
    """The view with the options in another order, and all turns but the last."""
    messages = [_reordered(message, options) for message in case.rollout.view.messages]
    if messages == list(case.rollout.view.messages):
        raise ValueError(
            f"sample {case.sample.id}: the term consistency found no list of {len(options)} options in what the model was shown; "
            'list them in the question as "A. ..." on lines of their own'
        )
    for turn in case.rollout.turns[:-1]:
        messages.append(Message.assistant(blank_letters(turn.text, len(options))))
        if turn.observation is not None:
            messages.append(turn.observation)
    return tuple(messages)


def _reordered(message: Message, options: Sequence[str]) -> Message:
    return Message(message.role, tuple(_with(part, options) if isinstance(part, str) else part for part in message.parts))


def _with(text: str, options: Sequence[str]) -> str:
    spans = option_spans(text)
    if len(spans) != len(options):
        return text
    for (start, end), option in zip(reversed(spans), reversed(options), strict=True):
        text = text[:start] + option + text[end:]
    return text


def _same(reply: str, options: Sequence[str], chosen: str) -> bool:
    said = unwrap(re.split(r"</answer>|\}|\n|<\|", reply, maxsplit=1)[0])
    choice = read_choice(said, options, len(options)) if said else None
    return choice is not None and options[ord(choice.letter) - ord("A")] == chosen
