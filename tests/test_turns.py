"""What is kept of one turn for the next: the same tokens and log-probs as reading everything again, for less reading."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from collections.abc import Sequence

import pytest
import torch
from helpers import picture

from foveate.train.measure import sampled_logprobs
from foveate.vlm import decode
from foveate.vlm.generate import Completion, HFEngine, Sampling
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Reply, Rollout, Sample, Shown, StopReason, ToolCall, View
from foveate.vlm.rollout import Limits, Rules, rollout
from foveate.vlm.segments import VisualItem

SAMPLING = Sampling(max_new_tokens=24)


@functools.cache
def model(family: str) -> VLM:
    """A random model that ends its turns after a few tokens: a quarter of the vocabulary stops it."""
    vlm = tiny_random(family, seed=3)
    vlm.renderer.stop_ids = (*vlm.renderer.stop_ids, *range(0, vlm.renderer.tokenizer.vocab_size, 4))
    return vlm


class Looks:
    """Answers the first ``turns`` actions with a picture whose size depends on the action, then lets the model answer."""

    def __init__(self, turns: int, pictures: int = 1) -> None:
        self.turns, self.pictures = turns, pictures

    def act(self, text: str, shown: Shown) -> Reply | None:
        if shown.turn >= self.turns:
            return None
        size = 28 * (1 + len(text) % 3)
        made = tuple(picture(len(text) + 7 * place, size, 56) for place in range(self.pictures))
        return Reply(Message.user("seen:", *made, f"turn {shown.turn}"), (ToolCall(name="look", arguments=str(len(text))),))


class Rereads(HFEngine):
    """Forgets everything between turns."""

    def generate(self, contexts, seeds, sampling, *, keep=False, after=None):  # type: ignore[no-untyped-def]
        return super().generate(contexts, seeds, sampling)


def play(engine: HFEngine, toolbox: Looks, num_prompts: int = 3, n: int = 4, prompt_pictures: int = 1) -> list[Rollout]:
    pairs = []
    for place in range(num_prompts):
        shown = tuple(picture(50 + place + 9 * k, 56 + 28 * place, 84) for k in range(prompt_pictures))
        words = "a longer question? " * (1 + place)
        pairs.append((Sample(id=f"s{place}", question=words), View("student", (Message.user(*shown, words),))))
    groups = rollout(
        pairs, engine, engine.vlm.renderer, n=n, sampling=SAMPLING, seed=11, rules=Rules(toolbox, Limits(turns=toolbox.turns + 1))
    )
    return [one for group in groups for one in group.rollouts]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("turns", "pictures", "prompt_pictures"), [(1, 1, 1), (3, 1, 1), (2, 2, 0), (3, 0, 2)])
def test_keeping_what_was_read_changes_no_token(family: str, turns: int, pictures: int, prompt_pictures: int) -> None:
    vlm, toolbox = model(family), Looks(turns, pictures)
    kept = play(HFEngine(vlm), toolbox, prompt_pictures=prompt_pictures)
    again = play(Rereads(vlm), toolbox, prompt_pictures=prompt_pictures)
    assert max(len(one.turns) for one in kept) == turns + 1
    assert len({len(turn.action_ids_K) for one in kept for turn in one.turns}) > 3, "actions must differ in length"
    for mine, theirs in zip(kept, again, strict=True):
        assert [turn.action_ids_K for turn in mine.turns] == [turn.action_ids_K for turn in theirs.turns]
        for one, other in zip(mine.turns, theirs.turns, strict=True):
            assert one.action_logprobs_K == pytest.approx(other.action_logprobs_K, abs=1e-4)


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
def test_law_7_sampled_logprobs_are_the_trainers_through_tool_turns_with_pictures(family: str, turns: int) -> None:
    vlm = model(family)
    rollouts = play(HFEngine(vlm), Looks(turns), num_prompts=2, n=3)
    assert max(len(one.turns) for one in rollouts) == turns + 1
    scored = sampled_logprobs(vlm, [(one, one.view) for one in rollouts], micro_tokens=100_000, temperature=1.0)
    for one, rows in zip(rollouts, scored, strict=True):
        for turn, row in zip(one.turns, rows, strict=True):
            assert turn.action_logprobs_K == pytest.approx(row, abs=1e-4)
    blind = dataclasses.replace(rollouts[0], view=View("student", (Message.user("no picture"),)))
    (wrong,) = sampled_logprobs(vlm, [(blind, blind.view)], micro_tokens=100_000, temperature=1.0)
    assert max(abs(a - b) for a, b in zip(rollouts[0].turns[0].action_logprobs_K, wrong[0], strict=True)) > 1e-3


def test_small_parts_give_the_same_rollouts() -> None:
    """A memory limit that splits the contexts of every turn over several calls."""
    vlm, toolbox = model("qwen2_5_vl"), Looks(2)
    whole, split = play(HFEngine(vlm), toolbox), play(HFEngine(vlm, max_tokens=200), toolbox)
    assert [[turn.action_ids_K for turn in one.turns] for one in whole] == [
        [turn.action_ids_K for turn in one.turns] for one in split
    ]


def test_only_new_pictures_are_encoded_and_only_new_tokens_read(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[list[str]] = []
    read: list[int] = []
    encode, run = decode.encode, decode.run_decoder

    def watched(vlm: VLM, items: Sequence[VisualItem]):  # type: ignore[no-untyped-def]
        encoded.append([item.key for item in items])
        return encode(vlm, items)

    def counted(vlm: VLM, ids_BT: torch.Tensor, *args, **kwargs):  # type: ignore[no-untyped-def]
        read.append(ids_BT.shape[1])
        return run(vlm, ids_BT, *args, **kwargs)

    monkeypatch.setattr(decode, "encode", watched)
    monkeypatch.setattr(decode, "run_decoder", counted)
    vlm = model("qwen2_5_vl")
    rollouts = play(HFEngine(vlm), Looks(2), num_prompts=1, n=2)
    prompt = rollouts[0].view.pictures[0]
    assert len(encoded) == 3
    assert encoded[0] == [vlm.renderer.item(prompt).key]
    assert all(vlm.renderer.item(prompt).key not in keys for keys in encoded[1:])
    longest = max(
        1 + len(vlm.renderer.observation(turn.observation, True))
        for one in rollouts
        for turn in one.turns
        if turn.observation is not None
    )
    assert len(read) == 2
    assert max(read) <= longest + len(vlm.renderer.encode("<|im_end|>"))


def test_what_was_kept_is_forgotten_with_the_completion() -> None:
    vlm = model("qwen2_5_vl")
    prompt = vlm.renderer.prompt((Message.user(picture(1), "Which?"),))
    ((one,),) = HFEngine(vlm).generate([prompt], [[5]], SAMPLING, keep=True)
    assert one.stop is StopReason.ANSWERED
    assert isinstance(one.held, decode.Held)
    keys = weakref.ref(one.held.rows.keys[0])
    prompts = weakref.ref(one.held.prompts.keys[0])
    del one
    gc.collect()
    assert keys() is None
    assert prompts() is None


def test_nothing_is_kept_unless_asked_for() -> None:
    vlm = model("qwen2_5_vl")
    prompt = vlm.renderer.prompt((Message.user(picture(1), "Which?"),))
    ((one,),) = HFEngine(vlm).generate([prompt], [[5]], SAMPLING)
    assert one.held is None


def test_one_seed_for_a_continued_context() -> None:
    vlm = model("qwen2_5_vl")
    prompt = vlm.renderer.prompt((Message.user(picture(1), "Which?"),))
    engine = HFEngine(vlm)
    ((one,),) = engine.generate([prompt], [[5]], SAMPLING, keep=True)
    with pytest.raises(ValueError, match="takes one seed"):
        engine.generate([prompt], [[1, 2]], SAMPLING, after=[one])


def test_families_that_cannot_share_read_again() -> None:
    vlm, toolbox = model("qwen3_5"), Looks(1)
    rollouts = play(HFEngine(vlm), toolbox, num_prompts=2, n=2)
    assert max(len(one.turns) for one in rollouts) == 2


def test_completions_are_equal_whatever_is_held() -> None:
    assert Completion((1,), (0.0,), StopReason.ANSWERED, held=object()) == Completion((1,), (0.0,), StopReason.ANSWERED)
