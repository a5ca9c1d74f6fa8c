"""vLLM in this process against the trainer: tokens, log-probs, tool turns with pictures, changing weights (laws 7 and 8)."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers import picture
from test_generate import contexts_of
from wide_models import disturb, play_tools, sampled, trained, wide_random

from foveate.doctor import logprob_difference
from foveate.train.engine_settings import VLLMEnginePart
from foveate.train.sync import build_engine, merged_weights, resting, sync
from foveate.vlm.engine_vllm import VLLMEngine
from foveate.vlm.engines import EngineError
from foveate.vlm.generate import HFEngine, Sampling
from foveate.vlm.load import VLM
from foveate.vlm.messages import Message
from foveate.vlm.records import StopReason
from foveate.vlm.segments import Segment

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here; make test-vllm has an environment for it"
)
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
SEEDS = [[1, 2, 3], [4], [5, 6]]


@dataclasses.dataclass
class Pair:
    vlm: VLM
    engine: VLLMEngine


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    vlm = wide_random(request.param)
    with pytest.warns(UserWarning, match="cannot sleep on a CPU"):
        engine = build_engine(VLLMEnginePart(max_tokens=1024, max_pictures=4), vlm, None)
    assert isinstance(engine, VLLMEngine)
    yield Pair(vlm, engine)
    engine.close()


def long_contexts(vlm: VLM) -> list[Segment]:
    """Longer than several blocks of keys and values, so that there is something to find again."""
    words = "Which letter is on the red triangle, and where is it? " * 12
    return [vlm.renderer.prompt([Message.user(words, picture(seed, 200, 200), words)]) for seed in (1, 2)]


def gap(pair: Pair, contexts: list[Segment], sampling: Sampling) -> float:
    """Largest difference to the trainer's log-probs, in nats."""
    done = pair.engine.generate(contexts, [[7, 8] for _ in contexts], sampling)
    return float((sampled(done) - trained(pair.vlm, contexts, done, sampling.temperature or 1.0)).abs().max())


def test_greedy_tokens_and_logprobs_are_hugging_faces(pair: Pair) -> None:
    contexts, sampling = contexts_of(pair.vlm), Sampling(temperature=0, max_new_tokens=16)
    mine = pair.engine.generate(contexts, [[0], [0], [0]], sampling)
    theirs = HFEngine(pair.vlm).generate(contexts, [[0], [0], [0]], sampling)
    assert [[one.ids for one in own] for own in mine] == [[one.ids for one in own] for own in theirs]
    torch.testing.assert_close(sampled(mine), sampled(theirs), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=24),
        Sampling(temperature=0.7, max_new_tokens=24),
        Sampling(top_p=0.9, max_new_tokens=24),
        Sampling(temperature=0.7, top_p=0.9, top_k=40, max_new_tokens=24),
        Sampling(temperature=1.3, top_k=5, max_new_tokens=24),
    ],
    ids=lambda one: f"T{one.temperature}-p{one.top_p}-k{one.top_k}",
)
def test_law_7_logprobs_are_the_trainers_whatever_the_cut(pair: Pair, sampling: Sampling) -> None:
    contexts = contexts_of(pair.vlm)
    done = pair.engine.generate(contexts, SEEDS, sampling)
    assert [len(own) for own in done] == [3, 1, 2]
    assert len({one.ids for own in done for one in own}) == 6
    torch.testing.assert_close(sampled(done), trained(pair.vlm, contexts, done, sampling.temperature), atol=1e-4, rtol=0)


def test_top_k_cuts(pair: Pair) -> None:
    """With one token left to choose from, sampling is greedy; its log-prob is not 0 all the same."""
    contexts = contexts_of(pair.vlm)
    greedy = pair.engine.generate(contexts, [[0], [0], [0]], Sampling(temperature=0, max_new_tokens=8))
    one_left = pair.engine.generate(contexts, [[1], [2], [3]], Sampling(top_k=1, max_new_tokens=8))
    assert [own[0].ids for own in greedy] == [own[0].ids for own in one_left]
    assert sampled(one_left).min() < -0.01


def test_a_completion_depends_on_its_context_and_seed_alone(pair: Pair) -> None:
    contexts, sampling = contexts_of(pair.vlm), Sampling(max_new_tokens=20, top_p=0.9)
    together = pair.engine.generate(contexts, SEEDS, sampling)
    alone = pair.engine.generate(contexts[2:], [[9, 6]], sampling)
    assert alone[0][1].ids == together[2][1].ids
    assert alone[0][0].ids != together[2][0].ids


def test_stops_limits_and_banned_tokens(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, sampling = pair.vlm.renderer, Sampling(temperature=2.0, max_new_tokens=120)
    monkeypatch.setattr(renderer, "stop_ids", (*renderer.stop_ids, *range(300, 305)))
    done = pair.engine.generate(contexts_of(pair.vlm), [list(range(1, 41)), [], [100]], sampling)
    assert [len(own) for own in done] == [40, 0, 1]
    for one in (one for own in done for one in own):
        ended = [i for i, token in enumerate(one.ids) if token in renderer.stop_ids]
        assert one.stop is (StopReason.ANSWERED if ended else StopReason.TURN_TOKENS)
        assert len(one.ids) == (ended[0] + 1 if ended else 120)
        assert not set(one.ids) & set(renderer.banned_ids)
    assert {one.stop for one in done[0]} == {StopReason.ANSWERED, StopReason.TURN_TOKENS}


def test_law_7_through_tool_turns_with_pictures(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts, scored = play_tools(pair.vlm, pair.engine, monkeypatch)
    assert max(len(one.turns) for one in rollouts) == 4
    assert max(len(one.pictures) for one in rollouts) == 4
    for one, rows in zip(rollouts, scored, strict=True):
        for turn, row in zip(one.turns, rows, strict=True):
            assert turn.action_logprobs_K == pytest.approx(row, abs=1e-4)


def test_the_doctor_measures_it(pair: Pair) -> None:
    largest, mean, tokens = logprob_difference(pair.vlm, pair.engine)
    assert largest < 1e-4
    assert mean > 0
    assert tokens > 100


def test_law_8_a_changed_vision_tower_is_seen_in_the_same_pictures(pair: Pair) -> None:
    sampling = Sampling(max_new_tokens=12)
    for contexts in (contexts_of(pair.vlm), long_contexts(pair.vlm)):
        assert gap(pair, contexts, sampling) < 1e-4
        disturb(pair.vlm, "visual", seed=len(contexts))
        assert gap(pair, contexts, sampling) > 0.1  # nothing has told the engine
        assert sync(pair.engine, pair.vlm, 1) > 0
        assert gap(pair, contexts, sampling) < 1e-4


def test_law_8_a_changed_language_model_reads_the_same_prompts_anew(pair: Pair) -> None:
    contexts, sampling = long_contexts(pair.vlm), Sampling(max_new_tokens=12)
    assert gap(pair, contexts, sampling) < 1e-4
    disturb(pair.vlm, "language_model", seed=3)
    sync(pair.engine, pair.vlm, 2)
    assert gap(pair, contexts, sampling) < 1e-4


@pytest.mark.parametrize("kept", ["prefix", "encoder"])
def test_law_8_cannot_hold_by_luck(pair: Pair, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that survives a sync is seen: keys and values of a prompt, or what the tower made of a picture."""
    core = pair.engine._engine
    runner = core.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    contexts = long_contexts(pair.vlm) if kept == "prefix" else contexts_of(pair.vlm)
    sampling = Sampling(max_new_tokens=12)
    assert gap(pair, contexts, sampling) < 1e-4
    disturb(pair.vlm, "visual", seed=5)
    with monkeypatch.context() as fault:
        if kept == "prefix":
            fault.setattr(core, "reset_prefix_cache", lambda: True)
        else:  # vLLM's reload empties the runner's cache by itself; reset_encoder_cache empties the scheduler's side as well
            fault.setattr(runner, "reset_encoder_cache", lambda: None)
            fault.setattr(core, "reset_encoder_cache", lambda: None)
        sync(pair.engine, pair.vlm, 3)
        assert gap(pair, contexts, sampling) > 0.01
    sync(pair.engine, pair.vlm, 4)
    assert gap(pair, contexts, sampling) < 1e-4


def test_lora_is_merged_once_and_nothing_trained_is_touched(pair: Pair) -> None:
    peft = pytest.importorskip("peft")
    contexts, sampling = contexts_of(pair.vlm), Sampling(max_new_tokens=12)
    plain = pair.vlm.model
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "qkv"], use_rslora=True)
    adapted = dataclasses.replace(pair.vlm, model=peft.get_peft_model(plain, config).base_model.model)
    try:
        disturb(adapted, "lora_", seed=7, scale=0.2)
        before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
        both = Pair(adapted, pair.engine)
        assert gap(both, contexts, sampling) > 0.1
        sync(pair.engine, adapted, 5)
        assert gap(both, contexts, sampling) < 1e-4
        sync(pair.engine, adapted, 6)  # a second time adds nothing
        assert gap(both, contexts, sampling) < 1e-4
        assert all(torch.equal(before[name], value) for name, value in adapted.model.state_dict().items())
        for module in adapted.model.modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                module.merge()
        sync(pair.engine, adapted, 7)  # merged by the trainer already
        assert gap(both, contexts, sampling) < 1e-4
    finally:
        pair.vlm.model = _without_adapters(adapted.model)
        sync(pair.engine, pair.vlm, 8)


def _without_adapters(model: torch.nn.Module) -> torch.nn.Module:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in [(name, one) for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)]:
        if module.merged:
            module.unmerge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module.get_base_layer())
    return model


def test_a_sync_that_fails_half_way_leaves_no_engine_that_samples(pair: Pair) -> None:
    contexts, sampling = contexts_of(pair.vlm), Sampling(max_new_tokens=4)

    def broken():  # type: ignore[no-untyped-def]
        for place, one in enumerate(merged_weights(pair.vlm.model)):
            if place == 5:
                raise RuntimeError("the trainer ran out of memory")
            yield one

    with pytest.raises(EngineError, match=r"version 9 failed half-way .*ran out of memory.* refuses to generate"):
        pair.engine.sync(broken(), 9)
    with pytest.raises(EngineError, match=r"cannot generate, because the sync to version 9 failed half-way; call sync first"):
        pair.engine.generate(contexts, SEEDS, sampling)
    sync(pair.engine, pair.vlm, 10)
    assert gap(pair, contexts, sampling) < 1e-4


def test_a_weight_that_is_not_brought_is_an_error(pair: Pair) -> None:
    some = (one for one in merged_weights(pair.vlm.model) if "blocks.1.mlp" not in one[0])
    with pytest.raises(EngineError, match=r"no weights came for \d+ of its parameters, such as visual.blocks.1.mlp"):
        pair.engine.sync(some, 11)
    with pytest.raises(EngineError, match="the sync to version 11 failed half-way"):
        pair.engine.generate([], [], Sampling())
    sync(pair.engine, pair.vlm, 12)
    assert gap(pair, contexts_of(pair.vlm), Sampling(max_new_tokens=4)) < 1e-4


def test_a_slow_engine_is_an_error_and_can_be_used_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts, sampling = contexts_of(pair.vlm), Sampling(max_new_tokens=200)
    monkeypatch.setattr(pair.engine, "seconds", 0.0)
    with pytest.raises(
        EngineError, match=r"vLLM \(colocated\): 6 of 6 completions were not done after 0 s; raise engine.seconds"
    ):
        pair.engine.generate(contexts, SEEDS, sampling)
    monkeypatch.undo()
    assert gap(pair, contexts, Sampling(max_new_tokens=4)) < 1e-4


def test_a_context_that_cannot_be_served_is_named(pair: Pair) -> None:
    vlm, sampling = pair.vlm, Sampling(max_new_tokens=1000)
    with pytest.raises(EngineError, match=r"context 0 has \d+ tokens and may get 1000 more, .* started for 1024"):
        pair.engine.generate(contexts_of(vlm), SEEDS, sampling)
    many = vlm.renderer.prompt([Message.user(*[picture(seed) for seed in range(5)])])
    with pytest.raises(EngineError, match=r"context 0 has 5 pictures, but the engine was started for 4"):
        pair.engine.generate([many], [[0]], Sampling(max_new_tokens=1))
    assert gap(pair, contexts_of(vlm), Sampling(max_new_tokens=4)) < 1e-4


def test_the_trainers_process_does_not_depend_on_the_engine(pair: Pair) -> None:
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"
    torch.manual_seed(5)
    np.random.seed(5)
    want = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    pair.engine.generate(contexts_of(pair.vlm), SEEDS, Sampling(max_new_tokens=4))
    with resting(pair.engine):
        pass
    torch.testing.assert_close(torch.rand(3), want[0], atol=0, rtol=0)
    assert np.array_equal(np.random.rand(3), want[1])
