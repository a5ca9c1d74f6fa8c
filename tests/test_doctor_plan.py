"""The doctor's plan: parameters, steps, memory and disk by numbers worked out by hand, activations against what torch keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture

from foveate.checkup import plan
from foveate.checkup.machine import Gpu, Machine, free_disk, look
from foveate.checkup.model import Sizes, Tower, known, sizes
from foveate.train.config import ModelPart, RunConfig
from foveate.train.lora_settings import LoraPart
from foveate.train.recipes import parse_recipe
from foveate.vlm.backbone import encode, hidden_rows
from foveate.vlm.load import save, tiny_random
from foveate.vlm.lora import adapter_config, add_adapter
from foveate.vlm.messages import Message
from foveate.vlm.packing import pack
from foveate.vlm.segments import Segment

MILLION = 1_000_000
SIZES = Sizes(
    {"language": 3000 * MILLION, "vision": 800 * MILLION, "projector": 200 * MILLION},
    {"language": 2000 * MILLION, "vision": 700 * MILLION, "projector": 200 * MILLION},
    Tower(layers=10, d=1000, kv=500, kept=20_000),
    Tower(layers=5, d=400, kv=400, kept=8_000),
    {"language": 5 * MILLION, "vision": 2 * MILLION, "projector": MILLION},
)
SEEN = plan.Prompts((100, 300, 200), (40, 240, 140), (250, 350, 150))


def recipe(**changes: Any) -> RunConfig:
    return parse_recipe(
        {
            "name": "x",
            "steps": 2,
            "data": {"synth": "detail"},
            "student": "full",
            "prompts": 8,
            "rollouts": 4,
            "sampling": {"max_new_tokens": 50},
            "signals": [{"kind": "grpo", "reward": {"answer": 1.0}}],
            "optimizer": {"lr": 1e-6},
            "micro_tokens": 1000,
            **changes,
        }
    )


def machine(gpu_gib: float = 0.0, disk_gib: float = 1000.0, ram_gib: float = 500.0) -> Machine:
    gpus = (Gpu("fake", round(gpu_gib * 2**30), round(gpu_gib * 2**30)),) if gpu_gib else ()
    return Machine(8, round(ram_gib * 2**30), round(ram_gib * 2**30), gpus, lambda folder: round(disk_gib * 2**30))


def test_the_shape_of_a_step() -> None:
    step = plan.step_of(recipe(), SEEN, plan.Sharing())
    # one turn: 50 tokens; the longest prompt is a teacher's of 350: 350 + 4 * 50; the median prompt is 200: 8 * (200 + 4 * 50)
    assert (step.longest, step.group, step.packed) == (50, 550, 3200)
    # two groups of 400 fit 1000 tokens, so 8 prompts take 4 passes; two pictures of up to 240 tokens, 4 patches each
    assert (step.micro, step.peak, step.patches) == (4, 1000, 1920)


def test_the_shape_of_a_step_with_tools() -> None:
    config = recipe(sampling={"max_new_tokens": 50, "max_turns": 3}, limits={"total_tokens": 400}, micro_tokens=500)
    step = plan.step_of(config, SEEN, plan.Sharing(ranks=4))
    # 3 turns of 50, two replies of 16 and a picture of 140 tokens: 462, cut at 400; 8 prompts over 4 processes
    assert (step.prompts, step.longest, step.group, step.peak) == (2, 400, 350 + 1600, 1950)
    free = plan.step_of(config.model_copy(update={"limits": recipe().limits}), SEEN, plan.Sharing())
    assert free.longest == 3 * 50 + 2 * (16 + 140)


def test_memory_by_hand() -> None:
    """Weights of 4 billion parameters in float32, computed in bfloat16 on a GPU."""
    step = plan.step_of(recipe(), SEEN, plan.Sharing())
    found = plan.memory(recipe(), SIZES, step, plan.Sharing(), True, 80 << 30)
    billion = 1000 * MILLION
    assert found["weights"] == 16 * billion
    assert found["bfloat16 copies"] == 8 * billion
    assert found["gradients"] == 16 * billion
    assert found["optimizer"] == 32 * billion
    assert "teacher" not in found
    # 1000 tokens x 10 layers x (20,000 numbers of 2 bytes and 2 x 1000 of 4)
    assert found["activations"] == 1000 * 10 * 48_000
    assert found["vision activations"] == 1920 * 5 * (16_000 + 3_200)


ALONE = plan.Sharing()


def test_memory_of_other_settings() -> None:
    def memory(sharing: plan.Sharing = ALONE, **changes: Any) -> dict[str, int]:
        config = recipe(**changes)
        return plan.memory(config, SIZES, plan.step_of(config, SEEN, sharing), sharing, True, 80 << 30)

    billion = 1000 * MILLION
    checkpointed = memory(model={"gradient_checkpointing": True})
    assert checkpointed["activations"] == 1000 * (10 * 1000 * 4 + 48_000)
    frozen = memory(model={"freeze": ["vision", "projector"]})
    assert "vision activations" not in frozen
    assert frozen["gradients"] == 12 * billion
    assert frozen["optimizer"] == 24 * billion
    # Muon: one number for the 2.9 billion of its matrices, two for the other 1.1
    assert memory(optimizer={"name": "muon", "lr": 1e-4})["optimizer"] == 4 * (2900 + 2 * 1100) * MILLION
    # bfloat16 weights have float32 copies in the optimizer
    narrow = memory(model={"dtype": "bfloat16"})
    assert (narrow["weights"], narrow["gradients"], narrow["optimizer"]) == (8 * billion, 8 * billion, 48 * billion)
    distill = [{"kind": "distill", "teacher": "crop"}]
    assert memory(signals=distill, teacher={"weights": "ema"})["teacher"] == 16 * billion
    assert memory(plan.Sharing(ranks=4, zero=3), signals=distill)["teacher"] == 16 * billion, "ZeRO does not share it"
    third = memory(plan.Sharing(ranks=4, zero=3))
    assert (third["weights"], third["optimizer"]) == (4 * billion, 8 * billion)
    second = memory(plan.Sharing(ranks=4, zero=2))
    assert (second["weights"], second["gradients"], second["optimizer"]) == (16 * billion, 4 * billion, 8 * billion)


def test_adapters_by_hand() -> None:
    """Rank 10 on 5 million edges of the language model is 50 million numbers; on all parts 80 million."""

    def memory(lora: dict[str, Any], **changes: Any) -> dict[str, int]:
        config = recipe(model={"lora": lora}, **changes)
        return plan.memory(config, SIZES, plan.step_of(config, SEEN, ALONE), ALONE, True, 80 << 30)

    found = memory({"rank": 10, "targets": ["language"]}, signals=[{"kind": "distill", "teacher": "crop"}])
    assert (found["weights"], found["gradients"], found["optimizer"]) == (16_000 * MILLION, 200 * MILLION, 400 * MILLION)
    assert "teacher" not in found, "the base itself"
    assert "vision activations" not in found
    whole = memory({"rank": 10})
    assert whole["gradients"] == 320 * MILLION
    assert whole["vision activations"]
    assert memory({"rank": 10, "dora": True})["gradients"] == 352 * MILLION
    moving = {"signals": [{"kind": "distill", "teacher": "crop"}], "teacher": {"weights": "ema"}}
    assert memory({"rank": 10}, **moving)["teacher"] == 320 * MILLION
    assert memory({"rank": 10}, **moving | {"teacher": {"path": "x"}})["teacher"] == 16_000 * MILLION
    # 2.9 billion in 4.127 bits and 1.1 billion in float32
    four = memory({"rank": 10, "quantize": "4bit"})
    assert four["weights"] == pytest.approx(2_900 * MILLION * 4.127 / 8 + 4_400 * MILLION)
    assert "bfloat16 copies" not in four
    assert memory({"rank": 10, "quantize": "8bit"})["weights"] == 7_300 * MILLION
    saved = recipe(model={"lora": {"rank": 10}})
    assert plan.checkpoint_bytes(saved, SIZES) == 960 * MILLION, "the adapter and its two moments"
    assert plan.checkpoint_bytes(recipe(model={"lora": {"rank": 10}}, **moving), SIZES) == 1280 * MILLION


def test_a_teacher_in_the_hosts_memory() -> None:
    """Two of ten layers of 2 billion numbers and the other billion of the language model pass through the device, in bfloat16."""
    distill, billion = [{"kind": "distill", "teacher": "crop"}], 1000 * MILLION

    def hosted(cuda: bool = True, **teacher: Any) -> int:
        config = recipe(signals=distill, teacher={"offload": "host", **teacher})
        return plan.memory(config, SIZES, plan.step_of(config, SEEN, ALONE), ALONE, cuda, 80 << 30)["teacher"]

    assert hosted() == hosted(weights="ema") == (2 * 200 + 1000) * MILLION * 2
    # without a GPU it is the same memory: float32 once, and no narrower copy where the arithmetic is float32
    assert hosted(cuda=False) == 16 * billion
    moving = recipe(signals=distill, teacher={"weights": "ema", "offload": "host"})
    assert plan.teacher_host_bytes(moving, SIZES, 2) == 24 * billion
    resting = recipe(signals=distill, teacher={"offload": "host"})
    # 2.9 billion in matrices in bfloat16 alone, the other 1.1 in both
    assert plan.teacher_host_bytes(resting, SIZES, 2) == (2900 * 2 + 1100 * 6) * MILLION


def test_the_plan_says_what_a_teacher_needs_of_the_host() -> None:
    distill = [{"kind": "distill", "teacher": "crop"}]
    small = findings(recipe(signals=distill, teacher={"weights": "ema"}), machine(gpu_gib=60))
    assert "teacher.offload=host" in small["GPU memory"].mend
    assert "host memory" not in small
    hosted = recipe(signals=distill, teacher={"weights": "ema", "offload": "host"})
    found = findings(hosted, machine(gpu_gib=60))
    assert "teacher.offload" not in found["GPU memory"].mend
    assert found["host memory"].ok
    assert "22.4 GiB of the host's memory" in found["host memory"].text
    full = findings(hosted, machine(gpu_gib=60, ram_gib=20))["host memory"]
    assert full.level == "red"
    assert "teacher.offload=none" in full.mend
    assert "teacher.offload" not in findings(recipe(), machine(gpu_gib=40))["GPU memory"].mend, "there is no teacher"
    assert "host memory" not in findings(hosted, machine()), "it is the one memory there is"
    kept = recipe(signals=distill, sampling={"max_new_tokens": 50, "player": "teacher"})
    assert "teacher.offload" not in findings(kept, machine(gpu_gib=40))["GPU memory"].mend


def test_checkpoints_by_hand() -> None:
    """Weights 16 GB, Adam's two moments 32 GB, a moving teacher 16 GB."""
    assert plan.checkpoint_bytes(recipe(), SIZES) == 48_000 * MILLION
    moving = recipe(signals=[{"kind": "distill", "teacher": "crop"}], teacher={"weights": "ema"})
    assert plan.checkpoint_bytes(moving, SIZES) == 64_000 * MILLION


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_sizes_come_without_weights(family: str, tmp_path: Path) -> None:
    vlm = tiny_random(family)
    save(vlm, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    found = known(ModelPart(name=str(tmp_path / "model")))
    counted = sizes(found)
    assert not found.has_weights
    assert counted.total == sum(one.numel() for one in vlm.model.parameters())
    assert counted.parameters["vision"] == sum(
        one.numel() for name, one in vlm.model.named_parameters() if vlm.family.group_of(name) == "vision"
    )


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_adapters_are_counted_as_peft_makes_them(family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed (pip install 'foveate[train]')")
    vlm = tiny_random(family)
    save(vlm, tmp_path)
    counted = sizes(known(ModelPart(name=str(tmp_path))))
    add_adapter(vlm, adapter_config(vlm, LoraPart(rank=4), ("language", "vision", "projector")), seed=0)
    assert 4 * sum(counted.edges.values()) == sum(one.numel() for one in vlm.model.parameters() if one.requires_grad)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("tower", ["language", "vision"])
def test_activations_are_about_what_torch_keeps(family: str, tower: str, tmp_path: Path) -> None:
    """Bytes of all tensors that autograd saves, in float32 and without recomputation."""
    vlm = tiny_random(family, hidden=256, layers=4, vision_hidden=64, vision_layers=4)
    save(vlm, tmp_path / "model")
    counted = sizes(known(ModelPart(name=str(tmp_path / "model"))))
    own = {one.untyped_storage().data_ptr() for one in vlm.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    prompt = vlm.renderer.prompt((Message.user("some words " * 100),))
    suffix = Segment(np.full(400, 65), np.tile(np.arange(400), (3, 1)), 400)
    packed = pack([(prompt, [suffix, suffix])])
    item = vlm.renderer.item(picture(0, 448, 448))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = hidden_rows(vlm, packed) if tower == "language" else encode(vlm, [item]).rows_FD
    found = sum(one.untyped_storage().nbytes() for one in kept.values())
    assert result.requires_grad
    if tower == "language":
        guess = plan.activations(counted.language, packed.num_tokens, 4, 4, recompute=False)
    else:
        guess = plan.activations(counted.vision, 4 * item.num_tokens, 4, 4, recompute=False)
    assert 0.7 * found < guess < 1.3 * found


def findings(config: RunConfig, here: Machine, **more: Any) -> dict[str, Any]:
    return {one.topic: one for one in plan.plan_findings(config, SIZES, SEEN, here, Path("runs/x"), **more)}


def test_a_plan_that_fits_and_one_that_does_not() -> None:
    """4 billion parameters in float32 with Adam: 72 GB and the activations."""
    fits = findings(recipe(), machine(gpu_gib=140))
    assert fits["GPU memory"].ok
    assert fits["disk"].ok
    assert "8 prompts x 4 rollouts" in fits["step"].text
    large = findings(recipe(), machine(gpu_gib=40))["GPU memory"]
    assert large.ok is False
    assert "optimizer 29.8 GiB" in large.text
    assert "model.gradient_checkpointing=true" in large.mend
    assert "ZeRO-3" in large.mend


def test_a_tight_plan_is_yellow() -> None:
    need = sum(
        plan.memory(recipe(), SIZES, plan.step_of(recipe(), SEEN, plan.Sharing()), plan.Sharing(), True, 80 << 30).values()
    )
    assert findings(recipe(), machine(gpu_gib=need / 2**30))["GPU memory"].level == "yellow"


def test_not_enough_disk() -> None:
    """Two checkpoints of 48 GB are kept and one is being written: 134.1 GiB."""
    full = findings(recipe(), machine(gpu_gib=140, disk_gib=130))["disk"]
    assert full.ok is False
    assert "3 checkpoints of 44.7 GiB need 134 GiB; 130 GiB free" in full.text
    assert "checkpoint.keep_last=1" in full.mend
    assert findings(recipe(), machine(gpu_gib=140, disk_gib=160))["disk"].ok
    # a stage before it has kept 90 GiB
    assert findings(recipe(), machine(gpu_gib=140, disk_gib=160), before=90 << 30)["disk"].ok is False


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    here = look()
    assert 0 < here.ram_free_bytes <= here.ram_bytes
    assert here.cores >= 1
    assert here.free_disk(tmp_path / "not" / "there" / "yet") > 0
    assert free_disk(tmp_path) > 0
