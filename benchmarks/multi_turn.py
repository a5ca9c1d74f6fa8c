"""Tool turns with keys and values kept, against reading the whole conversation again at every turn.

    python benchmarks/multi_turn.py [--rounds 3] [--json results.json]

Rollouts of random Qwen3-VL models: a prompt with a picture, then tool turns that each show a further picture, then an answer.
The two sides sample the same tokens (checked, but for rounding) and take turns in one process, so that a slow minute of the
machine hits both. One token in 24 of the vocabulary ends an action, so that actions have about 24 tokens and differ in length.
The printed numbers are turns per second, and their ratio (median over rounds) in wall clock and in processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import foveate  # noqa: F401 - lets torchvision load beside a CPU torch
from foveate.vlm.generate import Completion, HFEngine, Sampling
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Group, Reply, Sample, Shown, ToolCall, View
from foveate.vlm.rollout import Limits, Rules, rollout
from foveate.vlm.segments import Segment

ACTION_TOKENS = 24
QUESTION = "What letter is on the red triangle at the top left of the picture, and what is to the right of it?"


@dataclass(frozen=True)
class Case:
    name: str
    hidden: int
    layers: int
    picture_px: int
    crop_px: int
    tools: int
    prompts: int = 4
    rollouts: int = 8


CASES = (
    Case("two tool turns, 196 image tokens", 128, 4, 448, 192, 2),
    Case("two tool turns, 784 image tokens", 128, 4, 896, 192, 2),
    Case("two tool turns, 1,764 image tokens", 128, 4, 1344, 192, 2),
    Case("four tool turns, 784 image tokens", 128, 4, 896, 192, 4),
    Case("two tool turns, 784, larger model", 256, 6, 896, 192, 2),
)
"""The prompt's picture, which is read once or at every turn; a crop of 192 px has 36 tokens. V* has pictures of 3,000."""


class Rereads:
    """The same engine without a memory."""

    def __init__(self, engine: HFEngine) -> None:
        self.engine = engine

    def generate(
        self, contexts: Sequence[Segment], seeds: Sequence[Sequence[int]], sampling: Sampling, *, keep: bool = False,
        after: Sequence[Completion | None] | None = None,
    ) -> list[list[Completion]]:  # fmt: skip
        return self.engine.generate(contexts, seeds, sampling)


class Looks:
    """A picture for each of the first ``turns`` actions."""

    def __init__(self, turns: int, side_px: int) -> None:
        self.turns, self.side_px = turns, side_px

    def act(self, text: str, shown: Shown) -> Reply | None:
        if shown.turn >= self.turns:
            return None
        made = noise(len(text) + 100 * shown.turn, self.side_px)
        return Reply(Message.user("<tool_response>", made, "</tool_response>"), (ToolCall(name="look"),))


def noise(seed: int, side_px: int) -> Picture:
    return Picture.of(np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), np.uint8))


def play(vlm: VLM, engine: HFEngine | Rereads, case: Case, seed: int) -> tuple[list[Group], float, float]:
    pairs = []
    for k in range(case.prompts):
        shown = Message.user(noise(seed * 100 + k, case.picture_px), QUESTION)
        pairs.append((Sample(id=f"s{k}", question=QUESTION), View("student", (shown,))))
    sampling = Sampling(max_new_tokens=3 * ACTION_TOKENS)
    rules = Rules(Looks(case.tools, case.crop_px), Limits(turns=case.tools + 1))
    wall, busy = time.perf_counter(), time.process_time()
    groups = rollout(pairs, engine, vlm.renderer, n=case.rollouts, sampling=sampling, seed=seed, rules=rules)
    return groups, time.perf_counter() - wall, time.process_time() - busy


def measure(case: Case, rounds: int) -> dict[str, object]:
    vlm = tiny_random(
        "qwen3_vl", hidden=case.hidden, layers=case.layers, vision_hidden=case.hidden // 2, max_pixels=2048 * 2048,
        initializer_range=0.02, seed=0,
    )  # fmt: skip
    vlm.renderer.stop_ids = (*vlm.renderer.stop_ids, *range(0, vlm.renderer.tokenizer.vocab_size, ACTION_TOKENS))
    kept_engine, again_engine = HFEngine(vlm), Rereads(HFEngine(vlm))
    rows = []
    for number in range(rounds + 1):
        kept, kept_s, kept_cpu_s = play(vlm, kept_engine, case, number)
        again, again_s, again_cpu_s = play(vlm, again_engine, case, number)
        same = [
            [turn.action_ids_K for turn in one.turns] == [turn.action_ids_K for turn in other.turns]
            for a, b in zip(kept, again, strict=True)
            for one, other in zip(a.rollouts, b.rollouts, strict=True)
        ]
        # a sum in another order tips the draw of a token about once in ten thousand: random weights give near-equal chances
        assert sum(same) >= 0.9 * len(same), "the two sides must sample the same tokens"
        turns = sum(len(one.turns) for group in kept for one in group.rollouts)
        if number:  # the first round warms up
            rows.append((kept_s / turns, again_s / turns, kept_cpu_s, again_cpu_s))
    return {
        "case": case.name,
        "kept_turns_per_s": 1 / statistics.median(row[0] for row in rows),
        "reread_turns_per_s": 1 / statistics.median(row[1] for row in rows),
        "ratio": statistics.median(row[1] / row[0] for row in rows),
        "ratio_low": min(row[1] / row[0] for row in rows),
        "ratio_high": max(row[1] / row[0] for row in rows),
        "cpu_ratio": statistics.median(row[3] / row[2] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    print(f"{'case':<36} {'kept':>9} {'read again':>11}   ratio (range over rounds)   processor time")
    for case in (one for one in CASES if arguments.only in one.name):
        row = measure(case, arguments.rounds)
        found.append(row)
        print(
            f"{row['case']:<36} {row['kept_turns_per_s']:>7.1f}/s {row['reread_turns_per_s']:>9.1f}/s   "
            f"{row['ratio']:.2f}x ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})   {row['cpu_ratio']:.2f}x",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
