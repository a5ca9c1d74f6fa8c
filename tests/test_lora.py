"""Adapters: on the layers asked for, counted once, exact under resume, and a base that is its own teacher."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import picture, scripted, view_of
from test_resume import Killed, evaluator, logged

from foveate.train.config import RunConfig
from foveate.train.loop import train
from foveate.train.lora import load_student
from foveate.train.lora_settings import LoraPart
from foveate.train.measure import sampled_logprobs
from foveate.train.optim import build_optimizer
from foveate.train.recipes import load_recipe
from foveate.train.run import Run
from foveate.train.teacher import Teacher
from foveate.train.teacher_settings import TeacherPart
from foveate.train.update import checkpoint_layers
from foveate.vlm.backbone import hidden_rows
from foveate.vlm.folder import LoadError
from foveate.vlm.load import VLM, load, save, tiny_random
from foveate.vlm.lora import LearningDropout, adapter_config, add_adapter, read_adapter, target_names
from foveate.vlm.packing import pack

peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install 'foveate[train]'")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"dora": True}, "rslora": {"rslora": True}}
ALL = ("language", "vision", "projector")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small random model of a family, written once."""
    root = tmp_path_factory.mktemp("bases")

    def base(family: str) -> Path:
        if not (root / family).exists():
            # a recurrent state makes much of small roundings; wide weights would hide 1e-5 behind them
            save(tiny_random(family, seed=3, initializer_range=0.1 if family == "qwen3_5" else 0.2), root / family)
        return root / family

    return base


def adapted(base: Path, parts: tuple[str, ...] = ALL, seed: int = 0, **settings: Any) -> VLM:
    """A model with new adapters."""
    vlm = load(base)
    add_adapter(vlm, adapter_config(vlm, LoraPart(**{"rank": 4, **settings}), parts), seed)
    return vlm


def trained(vlm: VLM, seed: int = 5) -> VLM:
    """All that is trained, moved as optimizer steps would move it."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in vlm.model.parameters():
            if one.requires_grad:
                one.add_(0.05 * torch.randn(one.shape, generator=draw))
    return vlm


def hidden(vlm: VLM) -> torch.Tensor:
    """Hidden states behind a picture and a tool's picture: the tower, the projector and the language model all speak."""
    rolled = scripted(vlm, view_of(picture(1, 84, 56), "Which letter?"), 1)
    rendered = vlm.renderer.render(rolled.view, rolled.turns, "s")
    return hidden_rows(vlm, pack([(rendered.prompt, [rendered.suffix])]))


def logits(vlm: VLM) -> torch.Tensor:
    with torch.no_grad():
        return hidden(vlm) @ vlm.head_weight.t()


def agree(have: torch.Tensor, want: torch.Tensor) -> None:
    """Equal but for the rounding of fp32: to 1e-5 of the largest logit."""
    assert float((have - want).abs().max()) <= 1e-5 * float(want.abs().max())


def trainable(vlm: VLM) -> dict[str, torch.Tensor]:
    return {name: one for name, one in vlm.model.named_parameters() if one.requires_grad}


def tuned(vlm: VLM) -> list[str]:
    """Names of the layers that carry an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = [name for name, module in vlm.model.named_modules() if isinstance(module, BaseTunerLayer)]
    return [name.removeprefix("base_model.model.") for name in names]


# ---- where adapters go ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_sit_on_the_linear_layers_of_the_parts_asked_for(family: str, bases: Callable[[str], Path]) -> None:
    plain = load(bases(family))
    of_a_part = {part: target_names(plain.model, plain.family, (part,)) for part in ALL}
    assert all("lm_head" not in name for names in of_a_part.values() for name in names)
    assert any(name.endswith("layers.1.self_attn.o_proj") for name in of_a_part["language"])
    assert any(name.endswith("blocks.1.attn.qkv") for name in of_a_part["vision"])
    assert all("merger" in name for name in of_a_part["projector"])
    if family == "qwen3_vl":
        assert any("deepstack_merger_list.0.linear_fc1" in name for name in of_a_part["projector"])
    if family == "qwen3_5":
        assert any("linear_attn.in_proj_qkv" in name for name in of_a_part["language"])
    for part, names in of_a_part.items():
        vlm = adapted(bases(family), (part,))
        assert sorted(tuned(vlm)) == sorted(names)
        assert {vlm.family.group_of(name) for name in trainable(vlm)} == {part}
        assert all("lora_" in name for name in trainable(vlm))


def test_a_part_without_linear_layers_is_an_error(bases: Callable[[str], Path]) -> None:
    vlm = load(bases("qwen2_vl"))
    del vlm.model.model.visual
    with pytest.raises(LoadError, match=r"no linear layer of this qwen2-vl model belongs to vision, projector; parts are"):
        adapter_config(vlm, LoraPart(), ALL)


def test_modules_trained_as_a_whole(bases: Callable[[str], Path], tmp_path: Path) -> None:
    vlm = trained(adapted(bases("qwen2_5_vl"), ("language",), modules_to_save=("merger",)))
    assert {vlm.family.group_of(name) for name in trainable(vlm)} == {"language", "projector"}
    save(vlm, tmp_path / "a")
    assert torch.equal(logits(load(tmp_path / "a")), logits(vlm))
    agree(logits(load(tmp_path / "a", merged=True)), logits(vlm))
    before = logits(load(bases("qwen2_5_vl")))
    assert torch.equal(logits(Teacher(vlm, TeacherPart()).vlm), before), "the base's own projector too"
    for name, said in (("lm_head", "cannot be trained beside"), ("nose", "no module of this qwen2.5-vl model is called nose")):
        with pytest.raises(LoadError, match=said):
            adapted(bases("qwen2_5_vl"), ("language",), modules_to_save=(name,))
    with pytest.raises(LoadError, match=r"merger has layers that model\.lora\.targets give adapters"):
        adapted(bases("qwen2_5_vl"), ALL, modules_to_save=("merger",))


def test_new_adapters_change_nothing_and_depend_on_their_seed_alone(bases: Callable[[str], Path]) -> None:
    torch.manual_seed(1)
    one = adapted(bases("qwen3_vl"), seed=7)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after), "the global random state was used"
    torch.manual_seed(2)
    two, other = adapted(bases("qwen3_vl"), seed=7), adapted(bases("qwen3_vl"), seed=8)
    assert all(torch.equal(mine, trainable(two)[name]) for name, mine in trainable(one).items())
    assert not all(torch.equal(mine, trainable(other)[name]) for name, mine in trainable(one).items())
    assert torch.equal(logits(one), logits(load(bases("qwen3_vl"))))


# ---- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_loaded_and_merged_say_the_same(family: str, kind: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    vlm = trained(adapted(bases(family), **KINDS[kind]))
    want, base = logits(vlm), logits(load(bases(family)))
    assert float((want - base).abs().max()) > 0.05, "the adapters must matter for this test to mean anything"
    save(vlm, tmp_path / "once")
    save(load(tmp_path / "once"), tmp_path / "twice")
    again = load(tmp_path / "twice")
    assert torch.equal(logits(again), want), "loaded twice, counted twice"
    assert tuned(again) == tuned(vlm)
    assert {name: one.shape for name, one in again.model.named_parameters()} == {
        n: p.shape for n, p in vlm.model.named_parameters()
    }
    assert not trainable(again)
    merged = load(tmp_path / "twice", merged=True)
    assert not tuned(merged)
    agree(logits(merged), want)
    assert merged.model.state_dict().keys() == load(bases(family)).model.state_dict().keys()


def test_the_folder_is_pefts_own(bases: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoProcessor

    vlm = trained(adapted(bases("qwen2_5_vl")))
    save(vlm, tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    }
    assert not (tmp_path / "a" / "config.json").exists()
    assert not (tmp_path / "a" / "README.md").exists()
    theirs = load(bases("qwen2_5_vl"))
    theirs.model = peft.PeftModel.from_pretrained(theirs.model, tmp_path / "a")
    assert torch.equal(logits(theirs), logits(vlm))
    AutoProcessor.from_pretrained(tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "a")  # replaced like any other model folder
    assert torch.equal(logits(load(tmp_path / "a")), logits(vlm))


def test_an_adapter_of_pefts_own_making_loads(bases: Callable[[str], Path], tmp_path: Path) -> None:
    vlm = load(bases("qwen2_vl"))
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    vlm.model = peft.get_peft_model(vlm.model, settings).eval()
    vlm.model.save_pretrained(tmp_path / "theirs")
    assert torch.equal(logits(load(tmp_path / "theirs")), logits(vlm)), "the processor's files are those of the base"


def test_adapters_that_cannot_be_loaded(bases: Callable[[str], Path], tmp_path: Path) -> None:
    save(adapted(bases("qwen2_vl")), tmp_path / "a")
    settings = tmp_path / "a" / "adapter_config.json"
    data = json.loads(settings.read_text())

    def based_on(name: Any) -> None:
        settings.write_text(json.dumps({**data, "base_model_name_or_path": name}))

    based_on(None)
    with pytest.raises(LoadError, match="no base_model_name_or_path"):
        load(tmp_path / "a")
    based_on("/nowhere/model")
    with pytest.raises(LoadError, match=r"base model cannot be found: /nowhere/model: no such folder"):
        load(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    based_on(str(tmp_path / "b"))
    with pytest.raises(LoadError, match=r"its base .*b is an adapter itself; merge that first"):
        load(tmp_path / "a")
    save(tiny_random("qwen2_vl", hidden=96), tmp_path / "wide")
    based_on(str(tmp_path / "wide"))
    with pytest.raises(LoadError, match="the adapter does not fit"):
        load(tmp_path / "a")


# ---- the teacher ------------------------------------------------------------------------------------------------------------


def own_bytes(teacher: Teacher, student: VLM) -> int:
    """Bytes of a teacher's tensors that are not the student's."""
    shared = {one.data_ptr() for one in student.model.parameters()}
    return sum(one.nbytes for one in teacher.vlm.model.parameters() if one.data_ptr() not in shared)


def test_the_base_is_its_own_teacher(bases: Callable[[str], Path]) -> None:
    vlm = adapted(bases("qwen3_vl"))
    teacher = Teacher(vlm, TeacherPart())
    trained(vlm)
    pairs = [(scripted(vlm, view_of(picture(2, 84, 84), "Which?"), 1), view_of(picture(2, 84, 84), "Which?"))]
    base = load(bases("qwen3_vl"))
    want, have, student = (sampled_logprobs(one, pairs, micro_tokens=9999, temperature=1.0) for one in (base, teacher.vlm, vlm))
    assert have == want, "exactly the base's, not merely close"
    assert student != want
    assert own_bytes(teacher, vlm) == 0
    whole = Teacher(base, TeacherPart())
    assert own_bytes(whole, base) == sum(one.nbytes for one in base.model.parameters()), "what a second copy would have cost"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("weights", ["frozen", "ema"])
def test_the_teacher_leaves_the_students_gradients_alone(weights: Any, checkpointing: bool, bases: Callable[[str], Path]) -> None:
    vlm = trained(adapted(bases("qwen3_5")))
    teacher = Teacher(vlm, TeacherPart(weights=weights))
    trained(vlm, seed=6)
    if checkpointing:
        checkpoint_layers(vlm)

    def gradients(also: Callable[[], object]) -> list[torch.Tensor]:
        vlm.model.zero_grad()
        loss = hidden(vlm).square().sum()
        also()  # between forward and backward, where a changed weight would do most harm
        loss.backward()
        return [one.grad.clone() for one in trainable(vlm).values() if one.grad is not None]

    before = {name: one.clone() for name, one in trainable(vlm).items()}
    want = gradients(lambda: None)
    have = gradients(lambda: hidden(teacher.vlm))
    assert len(want) == len(have) == len(before) > 20
    assert all(torch.equal(one, other) for one, other in zip(want, have, strict=True))
    assert all(torch.equal(one, before[name]) for name, one in trainable(vlm).items())
    assert not hidden(teacher.vlm).requires_grad


def test_an_ema_teacher_holds_adapters_alone(bases: Callable[[str], Path]) -> None:
    vlm = trained(adapted(bases("qwen2_5_vl"), dora=True))
    teacher = Teacher(vlm, TeacherPart(weights="ema", rate=0.25))
    start = {name: one.detach().clone() for name, one in trainable(vlm).items()}
    assert own_bytes(teacher, vlm) == sum(one.nbytes for one in start.values())
    trained(vlm, seed=9)
    teacher.follow(vlm, 1)
    twin = dataclasses.replace(vlm, model=copy.deepcopy(vlm.model))  # a whole second model with the weights computed by hand
    with torch.no_grad():
        for name, one in trainable(twin).items():
            one.copy_(0.75 * start[name] + 0.25 * one)
    agree(logits(teacher.vlm), logits(twin))
    assert float((logits(teacher.vlm) - logits(vlm)).abs().max()) > 0.01
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    other = Teacher(vlm, TeacherPart(weights="ema", rate=0.25))
    other.load_state_dict(state)
    assert torch.equal(logits(other.vlm), logits(teacher.vlm))
    with pytest.raises(ValueError, match="saved with other adapters"):
        Teacher(adapted(bases("qwen2_5_vl")), TeacherPart(weights="ema")).load_state_dict(state)


def test_the_teacher_of_a_run_that_goes_on_is_the_adapter_it_began_with(bases: Callable[[str], Path], tmp_path: Path) -> None:
    save(trained(adapted(bases("qwen2_vl"))), tmp_path / "first")
    vlm = load(tmp_path / "first", trainable=True)
    teacher, began = Teacher(vlm, TeacherPart()), logits(vlm)
    trained(vlm, seed=8)
    assert torch.equal(logits(teacher.vlm), began)
    assert not torch.equal(logits(vlm), began)


def test_a_second_teacher_from_an_adapter_folder_is_merged(bases: Callable[[str], Path], tmp_path: Path) -> None:
    other = trained(adapted(bases("qwen2_vl")))
    save(other, tmp_path / "other")
    vlm = adapted(bases("qwen2_vl"))
    teacher = Teacher(vlm, TeacherPart(path=str(tmp_path / "other")))
    agree(logits(teacher.vlm), logits(other))


# ---- dropout, optimizer, recipes ----------------------------------------------------------------------------------------------


def test_dropout_is_seen_by_gradients_alone(bases: Callable[[str], Path]) -> None:
    vlm = trained(adapted(bases("qwen2_vl"), dropout=0.5))
    assert any(isinstance(module, LearningDropout) for module in vlm.model.modules())
    plain = trained(adapted(bases("qwen2_vl")))
    assert torch.equal(logits(vlm), logits(plain))
    vlm.model.train()
    assert torch.equal(logits(vlm), logits(plain)), "scoring between two updates"
    assert not torch.equal(hidden(vlm).detach(), hidden(vlm).detach())


def test_the_optimizer_sees_the_adapters_alone(bases: Callable[[str], Path]) -> None:
    vlm = adapted(bases("qwen2_vl"), dora=True)
    part = RunConfig.model_validate({**RECIPE, "optimizer": {"lr": 0.1}}).optimizer
    optimizer = build_optimizer(vlm.model.named_parameters(), part, 10)
    held = [one for group in optimizer.param_groups for one in group["params"]]
    assert {id(one) for one in held} == {id(one) for one in trainable(vlm).values()}
    assert sum(one.numel() for one in held) < 0.2 * sum(one.numel() for one in vlm.model.parameters())


RECIPE: dict[str, Any] = {
    "name": "x", "model": "tiny", "steps": 4, "data": {"synth": "detail", "split": "train", "n": 64}, "student": "tiny.full",
    "prompts": 3, "sampling": {"max_new_tokens": 8}, "signals": [{"kind": "distill", "teacher": "tiny.full"}],
    "optimizer": {"lr": 2e-3}, "threads": 1, "loggers": [], "log_rollouts": 0,
}  # fmt: skip


def recipe(lora: dict[str, Any] | None, model: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    return RunConfig.model_validate({**RECIPE, "model": {"name": "tiny", "lora": lora, **(model or {})}, **changes})


GRPO = [{"kind": "grpo", "reward": {"answer": 1.0}}]


@pytest.mark.parametrize(
    ("lora", "changes", "said"),
    [
        ({"targets": ["vision"]}, {"model": {"freeze": ["vision"]}}, "freeze and model.lora.targets both name vision"),
        ({}, {"model": {"freeze": list(ALL)}}, "freeze names every part"),
        ({}, {"optimizer": {"name": "muon", "lr": 1e-3}}, "evens out the update of a whole hidden matrix"),
        ({"dropout": 0.1}, {"signals": GRPO, "rollouts": 2}, "sampling, which sees no dropout"),
        ({"rank": 0}, {}, "greater than or equal to 1"),
        ({"rnak": 4}, {}, "rnak"),
    ],
)
def test_recipes_that_contradict_themselves(lora: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(lora, **changes)


def test_adapters_go_on_what_is_not_frozen(tmp_path: Path) -> None:
    vlm = load_student(recipe({}, {"freeze": ["vision"]}), tmp_path)
    assert {vlm.family.group_of(name) for name in trainable(vlm)} == {"language", "projector"}


# ---- runs -------------------------------------------------------------------------------------------------------------------

LORA = ["model.lora.rank=4", "model.lora.dora=true", "optimizer.lr=2e-2", "optimizer.name=adamw"]
SMALL = ["steps=4", "prompts=2", "threads=1", "checkpoint.every=2", "eval.every=1", "loggers=[]"]
ANCHORS = ["anchors.0.prompts=1", "anchors.1.prompts=1", "anchors.1.pool=2", "anchors.1.max_new_tokens=12"]
CASES = {
    "tiny/vision_opd": ["teacher.weights=ema", "teacher.rate=0.3", "model.gradient_checkpointing=true", *ANCHORS],
    "tiny/sft": ["model.lora.dropout=0.2", *ANCHORS],
}


@pytest.mark.parametrize("name", CASES)
def test_a_killed_and_resumed_run_logs_the_same_numbers(name: str, tmp_path: Path) -> None:
    config = load_recipe(name, [*SMALL, *LORA, *CASES[name]])
    train(config, tmp_path / "whole", evaluator())
    evaluate = evaluator((1, 3))
    for _ in range(2):
        with pytest.raises(Killed):
            train(config, tmp_path / "killed", evaluate)
    train(config, tmp_path / "killed", evaluate)
    want, have = logged(tmp_path / "whole"), logged(tmp_path / "killed")
    assert have == want
    assert len({row["loss/total"] for row in want if "loss/total" in row}) == 4, "the run must learn something at every step"
    last = tmp_path / "killed" / "checkpoints" / "step_000004"
    assert sum(path.stat().st_size for path in last.glob("*.safetensors")) < 2e6
    fresh = load_student(config, tmp_path)
    assert len(tuned(load(tmp_path / "killed"))) == len(tuned(fresh))
    assert torch.equal(logits(load(tmp_path / "killed")), logits(load(tmp_path / "whole")))


def test_an_adapter_of_other_settings_is_not_taken_over(bases: Callable[[str], Path], tmp_path: Path) -> None:
    save(adapted(bases("qwen2_vl")), tmp_path / "a")
    for settings in ({"rank": 5}, {"dora": True}, {"parts": ("language",)}):
        with pytest.raises(ValueError, match="an adapter of other settings"):
            read_adapter(adapted(bases("qwen2_vl"), **settings), tmp_path / "a")


def test_a_run_goes_on_with_an_adapter_or_merges_it_and_never_both(tmp_path: Path) -> None:
    first = Run(recipe({"rank": 2}), tmp_path / "first")
    trained(first.vlm)
    first.save()
    want = logits(first.vlm)
    start = {"name": str(tmp_path / "first")}

    same = load_student(recipe({"rank": 2}, start), tmp_path / "same")
    assert (same.adapter, tuned(same)) == ("loaded", tuned(first.vlm))
    assert torch.equal(logits(same), want)
    assert trainable(same).keys() == trainable(first.vlm).keys()
    assert not (tmp_path / "same" / "base").exists()

    other = Run(recipe({"rank": 3, "targets": ["language"]}, start), tmp_path / "other")
    assert other.vlm.adapter == "new"
    assert {one.shape[0] for name, one in trainable(other.vlm).items() if "lora_A" in name} == {3}
    agree(logits(other.vlm), want)
    assert not tuned(load(tmp_path / "other" / "base"))
    assert other.teacher is not None
    agree(logits(other.teacher.vlm), want)
    trained(other.vlm)
    other.save()
    shutil.rmtree(tmp_path / "first")  # its own base is all that a run needs to go on, also elsewhere
    shutil.move(tmp_path / "other", tmp_path / "moved")
    again = Run(recipe({"rank": 3, "targets": ["language"]}, start), tmp_path / "moved")
    assert again.restore()
    assert torch.equal(logits(again.vlm), logits(other.vlm))
    assert torch.equal(logits(load(tmp_path / "moved")), logits(other.vlm))


def test_a_run_without_adapters_that_starts_from_one_trains_whole_weights(tmp_path: Path) -> None:
    first = Run(recipe({"rank": 2}), tmp_path / "first")
    trained(first.vlm)
    first.save()
    vlm = load_student(recipe(None, {"name": str(tmp_path / "first"), "freeze": ["vision"]}), tmp_path / "whole")
    assert (vlm.adapter, tuned(vlm)) == ("", [])
    assert {vlm.family.group_of(name) for name in trainable(vlm)} == {"language", "projector"}
    agree(logits(vlm), logits(first.vlm))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    run = Run(recipe({"rank": 2}), tmp_path / "run")
    trained(run.vlm)
    run.save()
    return tmp_path / "run"


def test_merge_writes_a_plain_model(run_folder: Path, tmp_path: Path, foveate: Callable[..., tuple[int, str, str]]) -> None:
    from transformers import AutoModelForImageTextToText

    want = logits(load(run_folder))
    status, shown, _ = foveate("merge", str(run_folder), str(tmp_path / "out"), "--dtype", "float32")
    assert (status, "(float32)" in shown) == (0, True)
    agree(logits(load(tmp_path / "out")), want)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    status, _, said = foveate("merge", str(run_folder), str(tmp_path / "out"))
    assert status == 2
    assert "exists already" in " ".join(said.split())
    status, _, said = foveate("merge", str(tmp_path / "out"), str(tmp_path / "more"))
    assert status == 2
    assert "nothing to merge" in " ".join(said.split())


def test_eval_reads_a_run_with_adapters(run_folder: Path, tmp_path: Path, foveate: Callable[..., tuple[int, str, str]]) -> None:
    status, _, said = foveate("merge", str(run_folder), str(tmp_path / "out"))
    assert status == 0, said
    found = []
    for model, to in ((run_folder, "a"), (tmp_path / "out", "b")):
        status, _, said = foveate("eval", str(model), "--bench", "synth=detail:test:16", "--to", str(tmp_path / to))
        assert status == 0, said
        found.append(sorted(path.name for path in (tmp_path / to).iterdir()))
    assert found[0] == found[1]
    assert "summary.json" in found[0]
