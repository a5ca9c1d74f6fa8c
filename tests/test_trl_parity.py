"""A second opinion: TRL's GRPO trainer computes loss and gradients of the same model on the same rollouts.

Rollouts have 0, 1 and 3 tool turns (observations are text here, masked out in TRL by ``tool_mask``) and differ in length. TRL
sees them padded, one row each; foveate packed behind their shared prompts, and cut into micro-batches.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import turn, view_of

from foveate.train.batch import make_batches
from foveate.train.config import GrpoSignal
from foveate.train.measure import sampled_logprobs
from foveate.train.signals.base import constant_NK
from foveate.train.signals.grpo import Grpo
from foveate.train.update import accumulate
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Rollout, Signal, StopReason

trl = pytest.importorskip("trl")

MAX_COMPLETION = 97  # TRL's constant length; any number does
BETA = 0.3
ADVANTAGES = (1.2, -0.7, -0.4, 0.9, -1.1, 0.6)
SHIFTS = (-0.1, -0.1, 0.1, 0.1, 0.1, -0.1)  # of a rollout's sampled log-probs, so that sequence ratios leave the clip range too
SEQUENCE = {"importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.06}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (TRL's settings, ours)
    "grpo": ({"loss_type": "grpo"}, {"reduction": "sequence"}),
    "bnpo": ({"loss_type": "bnpo"}, {"reduction": "token"}),
    "dapo, higher": ({"loss_type": "dapo", "epsilon_high": 0.28}, {"reduction": "token", "clip_high": 0.28}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"reduction": "constant", "constant_tokens": MAX_COMPLETION}),
    "dual clip": ({"loss_type": "grpo", "delta": 1.5}, {"reduction": "sequence", "dual_clip": 1.5}),
    "k3": ({"loss_type": "grpo", "beta": BETA}, {"reduction": "sequence", "kl": "k3", "kl_weight": BETA}),
    "k3, constant": (
        {"loss_type": "dr_grpo", "beta": BETA},
        {"reduction": "constant", "constant_tokens": MAX_COMPLETION, "kl": "k3", "kl_weight": BETA},
    ),
    "gspo": (
        {"loss_type": "grpo", **SEQUENCE},
        {"reduction": "sequence", "ratio": "sequence", "clip_low": 0.05, "clip_high": 0.06},
    ),
    "gspo, k3": (
        {"loss_type": "grpo", **SEQUENCE, "beta": BETA},
        {"reduction": "sequence", "ratio": "sequence", "clip_low": 0.05, "clip_high": 0.06, "kl": "k3", "kl_weight": BETA},
    ),
    # LUSPO sums a rollout's tokens and takes the mean over rollouts: a constant length of 1.
    "luspo": (
        {"loss_type": "luspo", **SEQUENCE},
        {"reduction": "constant", "constant_tokens": 1, "ratio": "sequence", "clip_low": 0.05, "clip_high": 0.06},
    ),
    # TRL's epsilon_high is the bound itself for cispo; ours is its distance from 1, as everywhere.
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.3}, {"policy": "cispo", "clip_high": 0.3}),
}
# With a correction both sides start their ratios from the trainer's own log-probs of now.
CORRECTIONS = [(mode, level) for mode in ("truncate", "mask") for level in ("token", "sequence")]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    made = tiny_random("qwen3_vl", seed=1, initializer_range=0.1)
    made.renderer.banned_ids = ()  # TRL bans nothing
    return made


@pytest.fixture(scope="module")
def signals(vlm: VLM) -> list[Signal]:
    """Three groups of two; the sampler's log-probs are those of the model and some noise, so that ratios leave the clip range."""
    made = []
    for place in range(len(ADVANTAGES)):
        view = view_of(f"question {'word ' * (place // 2)}?")
        turns = [turn(vlm, f"look {n} {place}", Message.user(f"seen {n}")) for n in range((0, 1, 3)[place // 2])]
        turns.append(turn(vlm, f"the answer is {'K ' * (1 + place % 3)}"))
        made.append(Rollout("s", f"g{place // 2}", place % 2, view, tuple(turns), StopReason.ANSWERED))
    noise = torch.Generator().manual_seed(3)
    scores = sampled_logprobs(vlm, [(one, one.view) for one in made], micro_tokens=10_000, temperature=1.0)
    signals = []
    for one, own, advantage, shift in zip(made, scores, ADVANTAGES, SHIFTS, strict=True):
        turns = [
            dataclasses.replace(part, action_logprobs_K=_noisy(row, noise, shift))
            for part, row in zip(one.turns, own, strict=True)
        ]
        rollout = dataclasses.replace(one, turns=tuple(turns))
        reference = tuple(_noisy(row, noise) for row in own)
        signals.append(
            Signal(rollout, advantages_NK=constant_NK(rollout, advantage), teacher_logprobs_NK=reference, stream="grpo")
        )
    return signals


def _noisy(row: tuple[float, ...], noise: torch.Generator, shift: float = 0.0) -> tuple[float, ...]:
    return tuple((torch.tensor(row) + shift + 0.4 * torch.randn(len(row), generator=noise)).tolist())


def padded(vlm: VLM, signals: list[Signal]) -> dict[str, torch.Tensor]:
    """The rollouts as TRL wants them: prompts padded on the left, completions on the right, observations masked out."""
    rendered = [vlm.renderer.render(one.rollout.view, one.rollout.turns, "s") for one in signals]
    prompt, completion = max(len(one.prompt) for one in rendered), max(len(one.suffix) for one in rendered)
    size = len(signals)
    inputs = {name: torch.zeros(size, prompt).long() for name in ("prompt_ids", "prompt_mask")}
    inputs |= {name: torch.zeros(size, completion).long() for name in ("completion_ids", "completion_mask", "tool_mask")}
    inputs |= {name: torch.zeros(size, completion) for name in ("old_per_token_logps", "ref_per_token_logps")}
    for b, (one, signal) in enumerate(zip(rendered, signals, strict=True)):
        inputs["prompt_ids"][b, prompt - len(one.prompt) :] = torch.from_numpy(one.prompt.ids_T)
        inputs["prompt_mask"][b, prompt - len(one.prompt) :] = 1
        inputs["completion_ids"][b, : len(one.suffix)] = torch.from_numpy(one.suffix.ids_T)
        inputs["completion_mask"][b, : len(one.suffix)] = 1
        assert signal.teacher_logprobs_NK is not None
        for span, part, row in zip(one.action_spans, signal.rollout.turns, signal.teacher_logprobs_NK, strict=True):
            places = list(span)
            inputs["tool_mask"][b, places] = 1
            inputs["old_per_token_logps"][b, places] = torch.tensor(part.action_logprobs_K)
            inputs["ref_per_token_logps"][b, places] = torch.tensor(row)
    inputs["advantages"] = torch.tensor([one.advantages_NK[0][0] for one in signals if one.advantages_NK is not None])
    inputs["num_items_in_batch"] = inputs["tool_mask"].sum()
    return inputs


def trainer_of(vlm: VLM, folder: Path, settings: dict[str, Any]) -> Any:
    """A GRPOTrainer around a copy of the model with transformers' own attention."""
    from datasets import Dataset

    model = tiny_random("qwen3_vl", attention="eager").model
    model.load_state_dict(vlm.model.state_dict())
    beta = settings.get("beta", 0.0)
    arguments = {"use_bias_correction_kl": False} | settings
    arguments.pop("beta", None)  # it would look for a reference model on the hub
    config = trl.GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", num_generations=2, temperature=1.0,
        per_device_train_batch_size=len(ADVANTAGES), max_completion_length=MAX_COMPLETION, **arguments,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * len(ADVANTAGES)}), processing_class=vlm.tokenizer,
    )  # fmt: skip
    trainer.beta = beta
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def ours(vlm: VLM, signals: list[Signal], settings: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    (stream,) = Grpo(GrpoSignal(kind="grpo", **settings)).streams()
    batches = make_batches(signals, {"grpo": stream}, vlm.renderer, micro_tokens=1)
    assert len(batches) == 3
    vlm.model.zero_grad(set_to_none=True)
    found = accumulate(vlm, None, batches, 1.0)
    return found.loss, _gradients(vlm.model), found.tally.means()


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def compare(loss: float, gradients: dict[str, torch.Tensor], trainer: Any, inputs: dict[str, torch.Tensor]) -> None:
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), abs=1e-5)
    wanted = _gradients(trainer.model)
    largest = max(float(one.abs().max()) for one in wanted.values())
    assert largest > 1e-2
    for name, value in wanted.items():
        if name in gradients:
            torch.testing.assert_close(gradients[name], value, atol=1e-5 * max(1.0, largest), rtol=1e-4)
        else:
            assert not value.any(), name
    assert len(gradients) > 10


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_loss_and_gradients_equal_trls(vlm: VLM, signals: list[Signal], case: str, tmp_path: Path) -> None:
    theirs, mine = CASES[case]
    loss, gradients, means = ours(vlm, signals, mine)
    trainer = trainer_of(vlm, tmp_path, theirs)
    compare(loss, gradients, trainer, padded(vlm, signals))
    assert 0 < means["loss/grpo/clipped_frac"] < 1, "some rows must be clipped, some not"
    if "beta" in theirs:
        assert means["loss/grpo/kl"] == pytest.approx(trainer._metrics["train"]["kl"][0], rel=1e-4)


@pytest.mark.parametrize(("mode", "level"), CORRECTIONS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_corrections_equal_trls(vlm: VLM, signals: list[Signal], mode: str, level: str, tmp_path: Path) -> None:
    cap = 1.2
    settings = {"reduction": "sequence", "correction": mode, "correction_level": level, "correction_cap": cap}
    loss, gradients, means = ours(vlm, signals, settings)
    trainer = trainer_of(vlm, tmp_path, {"loss_type": "grpo"})
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    inputs = padded(vlm, signals)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        now, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, inputs["completion_ids"].size(1))
    gap = (now - inputs.pop("old_per_token_logps")) * inputs["tool_mask"]
    weight = (gap.sum(1, keepdim=True) if level == "sequence" else gap).exp()
    over = weight > cap
    inputs["importance_sampling_ratio"] = weight.clamp(max=cap) if mode == "truncate" else weight.masked_fill(over, 0)
    compare(loss, gradients, trainer, inputs)
    share = (over.expand_as(gap) & inputs["tool_mask"].bool()).sum() / inputs["tool_mask"].sum()
    assert 0 < share < 1
    assert means[f"loss/grpo/{'truncated' if mode == 'truncate' else 'masked'}_frac"] == pytest.approx(share.item())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trls_corrected_k3_has_the_gradient_of_k2(vlm: VLM, signals: list[Signal], tmp_path: Path) -> None:
    """TRL's default multiplies k3 by the ratio (DeepSeek-V3.2, 2512.02556): on policy that is the gradient of k2."""
    silent = [dataclasses.replace(one, advantages_NK=constant_NK(one.rollout, 0.0)) for one in signals]
    _, gradients, _ = ours(vlm, silent, {"reduction": "sequence", "kl": "k2", "kl_weight": BETA})
    trainer = trainer_of(vlm, tmp_path, {"loss_type": "grpo", "beta": BETA, "use_bias_correction_kl": True})
    inputs = padded(vlm, silent)
    del inputs["old_per_token_logps"]  # on policy
    trainer._compute_loss(trainer.model, inputs).backward()
    wanted = _gradients(trainer.model)
    assert max(float(one.abs().max()) for one in wanted.values()) > 1e-2
    for name in gradients:
        torch.testing.assert_close(gradients[name], wanted[name], atol=1e-5, rtol=1e-4)
