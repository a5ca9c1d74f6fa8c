"""Sampling: law 7 (rollout log-probs equal the trainer's), greedy tokens equal Hugging Face's, and the distribution itself."""

from __future__ import annotations

import functools
import time
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from foveate.vlm.backbone import hidden_rows
from foveate.vlm.generate import Completion, HFEngine, Sampling, _Picker, _survivors, cut
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.packing import pack
from foveate.vlm.records import StopReason
from foveate.vlm.segments import Segment

ALL = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


@functools.cache
def tiny(family: str) -> VLM:
    vlm = tiny_random(family, seed=1)
    vlm.model.eval()
    return vlm


def picture(seed: int, width: int, height: int) -> Picture:
    return Picture.of(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def contexts_of(vlm: VLM) -> list[Segment]:
    """Three lengths, one without a picture."""
    prompt = vlm.renderer.prompt
    return [
        prompt([Message.user(picture(1, 90, 60), "Which letter is on the red triangle?")]),
        prompt([Message.user("No picture.")]),
        prompt([Message.user(picture(2, 60, 140), "and", picture(1, 90, 60), "?")]),
    ]


def as_segment(ids: tuple[int, ...]) -> Segment:
    return Segment(np.array(ids), np.tile(np.arange(len(ids)), (3, 1)), len(ids))


def trainer_logprobs(vlm: VLM, contexts: list[Segment], done: list[list[Completion]], temperature: float = 1.0) -> torch.Tensor:
    packed = pack([(context, [as_segment(one.ids) for one in own]) for context, own in zip(contexts, done, strict=True)])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits = hidden_rows(vlm, packed) @ vlm.head_weight.T
    logits[:, list(vlm.renderer.banned_ids)] = float("-inf")
    return (logits / temperature).log_softmax(-1).gather(1, packed.targets_R[:, None])[:, 0]


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_law_7_rollout_logprobs_equal_trainer_logprobs(family: str, temperature: float) -> None:
    vlm = tiny(family)
    contexts = contexts_of(vlm)
    done = HFEngine(vlm).generate(contexts, [[1, 2, 3], [4], [5, 6]], Sampling(temperature=temperature, max_new_tokens=24))
    assert [len(own) for own in done] == [3, 1, 2]
    sampled = torch.tensor([value for own in done for one in own for value in one.logprobs])
    torch.testing.assert_close(sampled, trainer_logprobs(vlm, contexts, done, temperature), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ALL)
def test_law_7_in_bfloat16_arithmetic(family: str) -> None:
    vlm = tiny_random(family, seed=1, initializer_range=0.05)
    contexts = contexts_of(vlm)
    sampling = Sampling(max_new_tokens=16)
    done = HFEngine(vlm, autocast=torch.bfloat16).generate(contexts, [[1, 2], [4], [5]], sampling)
    sampled = torch.tensor([value for own in done for one in own for value in one.logprobs])
    with torch.autocast("cpu", torch.bfloat16):
        scored = trainer_logprobs(vlm, contexts, done)
    assert (sampled - scored).abs().mean() < 0.02
    assert (sampled - trainer_logprobs(vlm, contexts, done)).abs().max() > 1e-4  # it was bfloat16 indeed


@pytest.mark.parametrize("family", ALL)
def test_greedy_tokens_equal_those_of_generate(family: str) -> None:
    vlm = tiny(family)
    contexts = contexts_of(vlm)
    done = HFEngine(vlm).generate(contexts, [[0, 1], [0], [0]], Sampling(temperature=0, max_new_tokens=16))
    assert done[0][0] == done[0][1]
    for context, own in zip(contexts, done, strict=True):
        ids = torch.from_numpy(context.ids_T)[None]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == vlm.model.config.image_token_id).int(),
        }
        if context.visuals:
            inputs["pixel_values"] = torch.cat([vlm.renderer.patches(span.item) for span in context.visuals])
            inputs["image_grid_thw"] = torch.tensor([span.item.grid_thw for span in context.visuals])
        out = vlm.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=16,
            suppress_tokens=list(vlm.renderer.banned_ids),
            eos_token_id=list(vlm.renderer.stop_ids),
            pad_token_id=0,
        )
        assert own[0].ids == tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5"])
def test_a_completion_depends_on_its_context_and_seed_alone(family: str) -> None:
    vlm = tiny(family)
    contexts = contexts_of(vlm)
    sampling = Sampling(max_new_tokens=20, top_p=0.9, top_k=50)
    together = HFEngine(vlm).generate(contexts, [[7, 8], [9], [10, 11, 12]], sampling)
    alone = HFEngine(vlm).generate(contexts[2:], [[11]], sampling)[0][0]
    in_turns = HFEngine(vlm, max_tokens=1).generate(contexts, [[7, 8], [9], [10, 11, 12]], sampling)
    assert together[2][1].ids == alone.ids
    assert [[one.ids for one in own] for own in together] == [[one.ids for one in own] for own in in_turns]
    assert len({one.ids for own in together for one in own}) == 6


@pytest.mark.parametrize("max_tokens", [1, 131072])
def test_those_who_watch_hear_every_token_of_every_row(max_tokens: int) -> None:
    vlm = tiny("qwen2_5_vl")
    heard: dict[tuple[int, int], list[int]] = {}
    done = HFEngine(vlm, max_tokens=max_tokens).generate(
        contexts_of(vlm),
        [[7, 8], [9], [10, 11, 12]],
        Sampling(temperature=3.0, max_new_tokens=40),
        on_token=lambda context, number, token: heard.setdefault((context, number), []).append(token),
    )
    assert heard == {(c, n): list(one.ids) for c, own in enumerate(done) for n, one in enumerate(own)}


def test_stops_limits_and_banned_tokens() -> None:
    vlm = tiny("qwen2_5_vl")
    contexts = contexts_of(vlm)
    done = HFEngine(vlm).generate(contexts, [list(range(40)), [], [100]], Sampling(temperature=3.0, max_new_tokens=120))
    assert [len(own) for own in done] == [40, 0, 1]
    for own in done:
        for one in own:
            ended = [i for i, token in enumerate(one.ids) if token in vlm.renderer.stop_ids]
            assert one.stop is (StopReason.ANSWERED if ended else StopReason.TURN_TOKENS)
            assert len(one.ids) == (ended[0] + 1 if ended else 120)
            assert not set(one.ids) & set(vlm.renderer.banned_ids)
    assert {one.stop for one in done[0]} == {StopReason.ANSWERED, StopReason.TURN_TOKENS}
    # rows were dropped on the way, and what was left still agrees with the trainer
    sampled = torch.tensor([value for own in done for one in own for value in one.logprobs])
    torch.testing.assert_close(sampled, trainer_logprobs(vlm, contexts, done, 3.0), atol=1e-4, rtol=0)


def test_the_model_is_left_as_it_was() -> None:
    vlm = tiny_random("qwen2_5_vl", seed=1)
    vlm.model.train()
    vlm.model.model.visual.eval()
    HFEngine(vlm).generate(contexts_of(vlm)[:1], [[0]], Sampling(max_new_tokens=2))
    assert vlm.model.training
    assert vlm.model.lm_head.training
    assert not vlm.model.model.visual.training
    packed = pack([(contexts_of(vlm)[0], [as_segment((5, 6))])])
    hidden_rows(vlm, packed).sum().backward()  # nothing cached while sampling is unusable in training


def test_tokens_are_drawn_from_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    picker = _Picker(Sampling(max_new_tokens=1), [list(range(4000))], 4000, (), torch.device("cpu"))
    ids, logprobs = picker(probabilities.log().expand(4000, 4).clone(), np.arange(4000), 0)
    counts = Counter(ids.tolist())
    assert counts[1] == 0
    assert all(abs(counts[i] / 4000 - p) < 0.025 for i, p in enumerate(probabilities.tolist()))
    torch.testing.assert_close(logprobs, probabilities.log()[ids])


def test_rounding_never_picks_an_impossible_token() -> None:
    picker = _Picker(Sampling(max_new_tokens=1), [[0, 1]], 2, (3,), torch.device("cpu"))
    picker.uniforms[:] = [[0.0], [1.0]]
    ids, _ = picker(torch.tensor([[float("-inf"), 1.0, 2.0, 9.0]] * 2), np.arange(2), 0)
    assert ids.tolist() == [1, 2]


def test_top_k_and_top_p_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    assert torch.isfinite(cut(logits, 2, 1.0)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(cut(logits, 0, 0.6)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(cut(logits, 0, 0.4)).tolist() == [[True, False, False, False]]
    # after top-k 3 the first two hold 0.75 / 0.9 = 0.83 of the rest
    assert torch.isfinite(cut(logits, 3, 0.8)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(cut(logits, 0, 1.0)).all()


def test_rows_are_dropped_by_context_and_slot() -> None:
    alive = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]], bool).ravel()
    kept = _survivors(alive, 3)
    assert kept is not None
    contexts, rows, num = kept
    assert contexts.tolist() == [0, 2, 3]
    assert rows.tolist() == [0, 7, 11]
    assert num == 1
    uneven = _survivors(np.array([[1, 1, 0, 0], [0, 0, 0, 1]], bool).ravel(), 4)
    assert uneven is not None
    assert uneven[1].tolist() == [0, 1, 7, 4]
    assert uneven[2] == 2
    assert _survivors(np.array([True, True, False]), 1) is not None
    assert _survivors(np.array([True] * 9 + [False]), 1) is None


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="top_p"):
        Sampling(top_p=0.0)
    with pytest.raises(ValueError, match="1 contexts but 2 lists"):
        HFEngine(tiny("qwen2_5_vl")).generate(contexts_of(tiny("qwen2_5_vl"))[:1], [[0], [1]], Sampling())


def test_sampling_a_tiny_model_is_quick() -> None:
    vlm = tiny_random("qwen2_5_vl", hidden=64, vocab_size=512, min_pixels=56 * 56, max_pixels=56 * 56)
    contexts = [vlm.renderer.prompt([Message.user(picture(n, 56, 56), "Which letter?")]) for n in range(48)]
    engine, sampling = HFEngine(vlm), Sampling(max_new_tokens=5)
    engine.generate(contexts, [[n] for n in range(48)], sampling)
    start = time.process_time()
    engine.generate(contexts, [[n] for n in range(48)], sampling)
    assert time.process_time() - start < 1.0  # about 0.04 s; the bound only catches a loop that went wrong
