"""QLoRA: adapters beside weights in 4 or 8 bits, really run where bitsandbytes is installed; and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lora import ALL, agree, hidden, logits, recipe, trainable, trained
from test_resume import logged
from torch import nn

from foveate.train import checkpoint
from foveate.train.config import RunConfig
from foveate.train.loop import train
from foveate.train.lora import load_student
from foveate.train.lora_settings import LoraPart
from foveate.train.recipes import load_recipe
from foveate.train.run import Run
from foveate.train.sync import merged_weights
from foveate.vlm.folder import LoadError
from foveate.vlm.load import VLM, load, save, tiny_random
from foveate.vlm.lora import adapter_config, add_adapter, merge

pytest.importorskip("peft", reason="PEFT is not installed: pip install 'foveate[train]'")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (pip install 'foveate[qlora]')"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small random model of a family. Its widths are 64, 96 and others that blocks of 64 do not fill."""
    root = tmp_path_factory.mktemp("bases")

    def base(family: str) -> Path:
        if not (root / family).exists():
            save(tiny_random(family, seed=3, hidden=96, initializer_range=0.1), root / family)
        return root / family

    return base


def quantised(vlm: VLM) -> dict[str, nn.Module]:
    return {name: one for name, one in vlm.model.named_modules() if type(one).__name__ in ("Linear4bit", "Linear8bitLt")}


def with_adapters(vlm: VLM, **settings: Any) -> VLM:
    add_adapter(vlm, adapter_config(vlm, LoraPart(rank=4, **settings), ALL), 0)
    return trained(vlm)


@needs_bitsandbytes
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5"])
def test_four_bits_say_and_teach_what_the_weights_they_stand_for_do(
    family: str, dora: bool, bases: Callable[[str], Path]
) -> None:
    """Against plain fp32 weights that hold the same sixteen levels: logits, then gradients, then logits again."""
    from bitsandbytes.functional import dequantize_4bit

    vlm, plain = load(bases(family), quantize="4bit", device="cpu"), load(bases(family))
    rounded = 0.0
    for name, module in quantised(vlm).items():
        own: Any = plain.model.get_submodule(name)
        packed: Any = module.weight
        levels = dequantize_4bit(packed.data, packed.quant_state)
        rounded = max(rounded, float((own.weight.detach() - levels).abs().max()))
        own.weight.data = levels
    assert rounded > 0.01, "nothing was quantised"
    kept = set(dict(plain.model.named_modules())) - set(quantised(vlm))
    assert [name for name in kept if isinstance(plain.model.get_submodule(name), nn.Linear)] == ["lm_head"]
    student, twin = with_adapters(vlm, dora=dora), with_adapters(plain, dora=dora)
    agree(logits(student), logits(twin))
    for one in (student, twin):
        hidden(one).square().sum().backward()
    for name, want in trainable(twin).items():
        have = trainable(student)[name].grad
        assert (have is None) == (want.grad is None)
        if want.grad is not None:
            assert float(want.grad.abs().max()) > 0
            agree(have, want.grad)
    agree(logits(student), logits(twin))


@needs_bitsandbytes
def test_modules_trained_as_a_whole_are_not_quantised(tmp_path: Path) -> None:
    vlm = load_student(recipe({"quantize": "4bit", "targets": ["language"], "modules_to_save": ["merger"]}), tmp_path)
    names = quantised(vlm)
    assert any("visual.blocks" in name for name in names)
    assert not [name for name in names if ".merger." in name]
    assert any(".merger." in name and one.is_floating_point() for name, one in trainable(vlm).items())


SMALL = [
    "steps=2", "prompts=2", "threads=1", "checkpoint.every=1", "checkpoint.keep_last=9", "eval=null", "checkpoint.best_view=null",
    "loggers=[]", "anchors=[]", "optimizer.name=adamw", "optimizer.warmup_steps=0", "optimizer.lr=0.005", "model.lora.rank=2",
]  # fmt: skip


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("kind", "teacher", "changes"),
    [
        ("4bit", "frozen", ["model.lora.dora=true"]),
        ("4bit", "ema", ["model.lora.targets=[language]", "model.lora.modules_to_save=[merger]", "model.dtype=bfloat16"]),
        ("8bit", "frozen", ["model.lora.rslora=true", "model.dtype=bfloat16"]),
    ],
)
def test_a_quantised_run_learns_and_resumes(kind: str, teacher: str, changes: list[str], tmp_path: Path) -> None:
    own = [f"model.lora.quantize={kind}", f"teacher.weights={teacher}", *changes]
    config = load_recipe("tiny/vision_opd", [*SMALL, *own])
    train(config, tmp_path / "run")
    (first, second) = logged(tmp_path / "run")
    assert first["loss/total"] > 0
    assert first["loss/total"] != second["loss/total"]
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    shutil.rmtree(checkpoint.folder_of(tmp_path / "killed", 2))
    train(config, tmp_path / "killed")
    assert logged(tmp_path / "killed") == [first, second]

    run = Run(config, tmp_path / "run")
    before, start = dict(run.vlm.model.named_parameters()), {name: one.clone() for name, one in trainable(run.vlm).items()}
    frozen = {name: one.clone() for name, one in before.items() if name not in start}
    said = logits(run.vlm)
    assert run.restore()
    assert all(torch.equal(before[name], one) for name, one in frozen.items())
    assert any(one.dtype in (torch.uint8, torch.int8) for one in frozen.values())
    assert sum(not torch.equal(before[name], one) for name, one in start.items()) > len(start) / 2
    assert not torch.equal(logits(run.vlm), said)
    if teacher == "frozen":
        assert run.teacher is not None
        assert torch.equal(logits(run.teacher.vlm), said), "the teacher is the quantised base"
        assert not list(run.teacher.vlm.model.parameters()), "without a byte of its own"


@needs_bitsandbytes
def test_what_a_quantised_base_cannot_do(bases: Callable[[str], Path], tmp_path: Path) -> None:
    for kind in ("4bit", "8bit"):
        vlm = with_adapters(load(bases("qwen2_5_vl"), quantize=kind, device="cpu"))
        with pytest.raises(LoadError, match="merge: the base weights are quantised; load the base without quantisation"):
            merge(vlm)
        with pytest.raises(ValueError, match=r"its base weights are quantised \(torch\.u?int8\); an engine with a copy"):
            list(merged_weights(vlm.model))
    save(vlm, tmp_path / "a")  # what merges is the base as it was before
    assert not quantised(load(tmp_path / "a", merged=True))
    with pytest.raises(LoadError, match="on a CPU the row lengths of dora cannot be read from 8-bit weights"):
        load_student(recipe({"quantize": "8bit", "dora": True}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": {"kind": "vllm"}}, r"quantize: 4bit has no merged weights that engine\.kind: vllm could copy"),
        ({"distributed": {"zero": 3}}, r"zero: 3 would cut up weights that bitsandbytes keeps packed.* use zero: 2"),
    ],
)
def test_recipes_that_a_quantised_base_cannot_follow(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe({"quantize": "4bit"}, **changes)
    assert isinstance(recipe({"quantize": "4bit"}, distributed={"zero": 2}), RunConfig)
    assert isinstance(recipe({}, **changes), RunConfig)


def test_without_bitsandbytes_it_says_what_to_install(bases: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else found(name, *more))
    for kind in ("4bit", "8bit"):
        with pytest.raises(LoadError, match=rf"{kind} needs bitsandbytes, which is not installed: .*'foveate\[qlora\]'"):
            load(bases("qwen2_vl"), quantize=kind)
