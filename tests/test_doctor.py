"""The doctor finds planted faults and names the mend: versions, processors, engines, tokenizers, data, machines."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from foveate.checkup import data, tokens, tools, versions
from foveate.checkup.agreement import Probe, engine_findings
from foveate.checkup.findings import Finding
from foveate.checkup.machine import Gpu, Machine
from foveate.checkup.model import known
from foveate.doctor import recipe_findings
from foveate.train.config import ModelPart, RunConfig
from foveate.train.recipes import load_recipe, parse_recipe
from foveate.vlm.folder import TINY_FOLDER
from foveate.vlm.generate import Completion, HFEngine, Sampling, _Picker, cut
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, load, save, tiny_random
from foveate.vlm.segments import Segment, VisualSpan

Run = Callable[..., tuple[int, str, str]]
ROOMY = Machine(8, 500 << 30, 500 << 30, (), lambda folder: 1000 << 30)


def the(findings: Sequence[Finding], topic: str) -> Finding:
    """The one finding of a topic, with a mend where it is not green."""
    (found,) = [one for one in findings if one.topic == topic]
    assert found.level in ("green", "note") or (found.mend and found.expected)
    return found


# ---- versions -------------------------------------------------------------------------------------------------------------

GOOD = {
    "torch": "2.13.0+cu130", "torchvision": "0.28.0", "transformers": "5.23.0", "vllm": "0.30.0", "deepspeed": "0.19.8",
    "accelerate": "1.15.0", "peft": "0.21.2", "pillow": "12.3.0", "gradio": "6.31.0", "datasets": "5.2.0",
}  # fmt: skip


def judged(**changes: str | None) -> list[Finding]:
    here = {**GOOD, **changes}
    return list(versions.versions(lambda name: here.get(name)))


def test_versions_that_fit_are_green() -> None:
    found = judged()
    assert not [one for one in found if one.level in ("yellow", "red")]
    assert the(found, "torch").text == "2.13.0+cu130, fits foveate, vllm 0.30.0"


@pytest.mark.parametrize(
    ("changes", "topic", "level", "says", "mend"),
    [
        ({"torch": "2.14.0", "torchvision": "0.29.0"}, "torch", "red", "does not fit vllm 0.30.0", "torch==2.13.*"),
        ({"vllm": "0.33.0"}, "torch", "red", "does not fit vllm 0.33.0", "torch==2.14.*"),
        ({"vllm": "0.32.0"}, "transformers", "red", "does not fit vllm 0.32.0", "transformers>=5.10.4,<5.20"),
        ({"vllm": "0.31.0"}, "vllm", "yellow", "model runner", "vllm==0.30.*"),
        ({"torch": "2.10.0", "vllm": None}, "torch", "red", "2.10.0 does not fit foveate", "torch>=2.11"),
        ({"transformers": "4.57.0", "vllm": None}, "transformers", "red", "does not fit foveate", "transformers>=5.17"),
        ({"torchvision": "0.27.1", "vllm": None}, "torchvision", "red", "does not fit torch 2.13.0", "torchvision==0.28.*"),
        ({"pillow": "13.0.0"}, "pillow", "yellow", "does not fit gradio", "pillow<13"),
        ({"deepspeed": "0.18.0"}, "deepspeed", "yellow", "ZeRO", "deepspeed==0.19.8"),
        ({"accelerate": "1.10.0"}, "accelerate", "red", "does not fit deepspeed", "accelerate>=1.15,<2"),
        ({"peft": "0.19.0"}, "peft", "yellow", "adapters", "peft>=0.21,<1"),
        ({"torch": "nightly"}, "torch", "red", "does not fit", "torch>=2.11"),
        ({"transformers": None}, "transformers", "red", "not installed", "transformers>=5.17"),
    ],
)
def test_versions_that_do_not_fit(changes: dict[str, str | None], topic: str, level: str, says: str, mend: str) -> None:
    found = the(judged(**changes), topic)
    assert found.level == level
    assert says in found.text
    assert mend in found.mend


@pytest.mark.parametrize(
    ("builds", "level", "says"),
    [
        (versions.Builds("13.0", "13.0"), "green", "loads beside torch for CUDA 13.0"),
        (versions.Builds("13.0", "12.8"), "red", "built for CUDA 12.8 beside torch for CUDA 13.0"),
        (versions.Builds("13.0", None), "yellow", "built for a CPU beside torch for CUDA 13.0"),
        (versions.Builds(None, "13.0"), "green", "foveate declares the operators it lacks"),
        (versions.Builds(None, None, "operator torchvision::nms does not exist"), "red", "nms does not exist"),
    ],
)
def test_builds_of_torchvision(builds: versions.Builds, level: str, says: str) -> None:
    found = versions.torchvision(builds, lambda name: GOOD[name])
    assert (found.level, says in found.text) == (level, True)
    assert level == "green" or "torch==2.13.0 torchvision==0.28.0 together" in found.mend


def test_a_torchaudio_that_breaks_transformers() -> None:
    (found,) = versions.audio(lambda name: "2.11.0", None)
    assert "uninstall torchaudio" in found.mend
    assert not list(versions.audio(lambda name: "2.11.0+cpu", None))
    assert not list(versions.audio(lambda name: "2.11.0", "13.0"))


# ---- processors -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("doctor") / "model"
    save(tiny_random("qwen3_vl"), target)
    return target


def test_a_processor_with_another_pixel_budget(folder: Path) -> None:
    from transformers import AutoProcessor

    model = known(ModelPart(name=str(folder)))
    processor = AutoProcessor.from_pretrained(folder).image_processor
    assert tokens.image_tokens(model.renderer, processor, "it").ok
    processor.size = {"shortest_edge": 1024, "longest_edge": 32 * 1024}
    found = tokens.image_tokens(model.renderer, processor, "it", ((640, 480), (64, 64)))
    assert found.level == "red"
    # 640 x 480: 20 x 15 tokens of 32 px are 300; a budget of 256 here and of 32 there, 64 x 64 px fits both
    assert "another pixel budget (1,024 to 32,768 px): 640 x 480 px: 234 here, 24 there" in found.text
    assert "64 x 64" not in found.text
    assert "max_pixels: 32768" in found.mend


def test_a_recipe_with_a_pixel_budget_of_its_own(folder: Path) -> None:
    """It is the recipe's right; who plays the model must have it too, and checkpoints carry it."""
    found = list(tokens.token_findings(known(ModelPart(name=str(folder), min_pixels=1024, max_pixels=65536)), chosen=True))
    assert the(found, "image tokens").level == "yellow"
    assert "checkpoint of the run" in the(found, "image tokens").mend
    assert the(found, "chat template").ok


def test_a_chat_template_that_differs_from_the_processors(folder: Path, tmp_path: Path) -> None:
    """As in older folders: one in tokenizer_config.json, another in chat_template.json."""
    target = tmp_path / "model"
    shutil.copytree(folder, target)
    assert the(list(tokens.token_findings(known(ModelPart(name=str(target))))), "chat template").ok
    template = (target / "chat_template.jinja").read_text(encoding="utf-8")
    (target / "chat_template.jinja").unlink()
    config = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    (target / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}), encoding="utf-8")
    other = template.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    (target / "chat_template.json").write_text(json.dumps({"chat_template": other}), encoding="utf-8")
    found = the(list(tokens.token_findings(known(ModelPart(name=str(target))))), "chat template")
    assert found.level == "red"
    assert "the first that differs" in found.text
    assert "<think>" in found.text
    assert "chat_template.json" in found.mend


# ---- engines --------------------------------------------------------------------------------------------------------------


class Blind(HFEngine):
    """Pictures are lost on the way: a grey one of the same size is in the place of each."""

    def generate(self, contexts: Sequence[Segment], *args: Any, **more: Any) -> list[list[Completion]]:
        bare = [dataclasses.replace(one, visuals=tuple(map(_greyed, one.visuals))) for one in contexts]
        return super().generate(bare, *args, **more)


def _greyed(span: VisualSpan) -> VisualSpan:
    item = span.item
    grey = Picture.of(np.full((item.height_px, item.width_px, 3), 128, np.uint8))
    return dataclasses.replace(span, item=dataclasses.replace(item, key=f"grey:{item.grid_thw}", source=grey))


class Copying(HFEngine):
    """Holds a copy of the weights, as engines do that are given them: ``takes`` says which parameters arrive."""

    def __init__(self, vlm: VLM, takes: Callable[[str], bool] = lambda name: True, keeps_features: bool = False) -> None:
        super().__init__(dataclasses.replace(vlm, model=copy.deepcopy(vlm.model)))
        self.trained, self.takes = vlm, takes
        if keeps_features:
            model: Any = self.vlm.model
            see, seen = model.get_image_features, {}

            def remembered(patches_PD: torch.Tensor, *args: Any, **more: Any) -> Any:
                key = patches_PD.numpy().tobytes()
                if key not in seen:
                    seen[key] = see(patches_PD, *args, **more)
                return seen[key]

            model.get_image_features = remembered

    def push(self, version: int) -> None:
        given = self.trained.model.state_dict()
        own = self.vlm.model.state_dict()
        self.vlm.model.load_state_dict({name: given[name] if self.takes(name) else own[name] for name in own})


class Cut(HFEngine):
    """Samples with a top-p that nobody asked for, and reports the log-probs of what is left of the distribution."""

    def generate(self, *args: Any, **more: Any) -> list[list[Completion]]:
        def cut_first(picker: Any, logits_BV: torch.Tensor, row_B: np.ndarray, step: int) -> Any:
            banned_BV = logits_BV.float().index_fill_(1, picker.banned, float("-inf"))
            return whole(picker, cut(banned_BV, 0, 0.7), row_B, step)

        whole = _Picker.__call__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Picker, "__call__", cut_first)
            return super().generate(*args, **more)


class Lukewarm(HFEngine):
    """Ignores the temperature."""

    def generate(self, contexts: Any, seeds: Any, sampling: Sampling, **more: Any) -> list[list[Completion]]:
        return super().generate(contexts, seeds, dataclasses.replace(sampling, temperature=1.0), **more)


class Shifted(HFEngine):
    """Log-probs are those of the token before."""

    def generate(self, *args: Any, **more: Any) -> list[list[Completion]]:
        return [
            [Completion(one.ids, (one.logprobs[-1], *one.logprobs[:-1]), one.stop) for one in own]
            for own in super().generate(*args, **more)
        ]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen3_vl")


def examined(vlm: VLM, engine: HFEngine, push: Callable[[int], object] = lambda version: None, **more: Any) -> list[Finding]:
    sampling = Sampling(more.pop("temperature", 1.0), more.pop("top_p", 1.0), max_new_tokens=8)
    return list(engine_findings(vlm, engine, Probe(sampling, prompts=2, n=2, **more), push))


def test_an_engine_that_agrees_is_green(vlm: VLM) -> None:
    before = {name: one.clone() for name, one in vlm.model.state_dict().items()}
    found = examined(vlm, HFEngine(vlm))
    assert [one.topic for one in found] == ["pictures", "log-probs", "at temperature 0.7", "after an update"]
    assert all(one.ok for one in found)
    # the weights are as they were
    assert all(torch.equal(before[name], one) for name, one in vlm.model.state_dict().items())


def test_an_engine_that_drops_pictures(vlm: VLM) -> None:
    found = examined(vlm, Blind(vlm))
    assert the(found, "pictures").ok is False
    assert "drops pictures" in the(found, "pictures").text
    assert "multi_modal_data" in the(found, "pictures").mend
    assert the(found, "log-probs").ok is False


def test_an_engine_with_a_stale_encoder(vlm: VLM) -> None:
    engine = Copying(vlm, keeps_features=True)
    found = examined(vlm, engine, engine.push)
    assert the(found, "log-probs").ok
    update = the(found, "after an update")
    assert update.level == "red"
    assert "stale" in update.text
    assert "reset_encoder_cache()" in update.mend
    # frozen towers make no old features
    assert the(examined(vlm, engine, engine.push, vision=False), "after an update").ok


def test_an_engine_that_takes_all_new_weights_is_green(vlm: VLM) -> None:
    engine = Copying(vlm)
    assert all(one.ok for one in examined(vlm, engine, engine.push))


@pytest.mark.parametrize(("part", "named"), [("visual", "vision tower"), ("language_model", "language model (text)")])
def test_an_engine_that_new_weights_do_not_reach(vlm: VLM, part: str, named: str) -> None:
    engine = Copying(vlm, takes=lambda name: part not in name)
    update = the(examined(vlm, engine, engine.push), "after an update")
    assert update.level == "red"
    assert f"new weights of the {named} have not arrived" in update.text
    assert "merged_weights" in update.mend


def test_log_probs_biased_by_top_p(vlm: VLM) -> None:
    found = the(examined(vlm, Cut(vlm)), "log-probs")
    assert found.level == "red"
    assert "top-p or top-k is in them" in found.text
    assert "before the cut" in found.mend
    # a recipe that asks for top-p and an engine that reports what was there before it agree
    assert the(examined(vlm, HFEngine(vlm), top_p=0.7), "log-probs").level == "green"


def test_an_engine_that_ignores_the_temperature(vlm: VLM) -> None:
    found = the(examined(vlm, Lukewarm(vlm), temperature=0.6), "log-probs")
    assert found.level == "red"
    assert "ignores temperature 0.6" in found.text
    assert "sampling.temperature" in found.mend
    # a recipe at temperature 1 is not hurt, and warned
    at_one = examined(vlm, Lukewarm(vlm))
    assert the(at_one, "log-probs").ok
    assert the(at_one, "at temperature 0.7").level == "yellow"


def test_log_probs_of_other_tokens(vlm: VLM) -> None:
    found = the(examined(vlm, Shifted(vlm)), "log-probs")
    assert found.level == "red"
    assert "shifted tokens" in found.text


# ---- tools ----------------------------------------------------------------------------------------------------------------


def tool_recipe(**changes: Any) -> RunConfig:
    config = load_recipe("tool_opd")
    return parse_recipe({**config.model_dump(mode="json"), **changes})


def test_a_tokenizer_without_the_dialects_tokens(tmp_path: Path) -> None:
    shutil.copytree(TINY_FOLDER, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace('"<tool_call>"', '"<tool_other>"').replace('"</tool_call>"', '"</tool_other>"'), encoding="utf-8"
    )
    config = tool_recipe()
    good = list(tools.dialect_findings(config, known(config.model).renderer))
    assert the(good, "tool dialect").ok
    found = list(tools.dialect_findings(config, known(ModelPart(name=str(tmp_path / "model"))).renderer))
    assert the(found, "tool dialect").level == "yellow"
    assert "<tool_call> is " in the(found, "tool dialect").text
    assert "sft stage" in the(found, "tool dialect").mend


def test_a_template_of_another_dialect() -> None:
    config = tool_recipe()
    renderer = known(config.model).renderer
    assert the(list(tools.dialect_findings(config, renderer)), "template's tools").ok
    renderer.chat_template += "{# <function=name> #}"
    other = the(list(tools.dialect_findings(config, renderer)), "template's tools")
    assert (other.level, other.mend) == ("yellow", "tools.dialect=qwen3_coder")
    renderer.chat_template = "{{ messages }}"
    assert "offers no tools" in the(list(tools.dialect_findings(config, renderer)), "template's tools").text


def test_a_greedy_turn_is_read(vlm: VLM) -> None:
    """The embedded model was trained to call the zoom; a random one was not."""
    config = tool_recipe()
    tiny = load("tiny", device="cpu")
    rows = data.look_at_data(config, tiny.family, 1)
    sample, view = rows.samples[0], rows.students[0]
    found = tools.call_finding(config, tiny.family, HFEngine(tiny), tiny.renderer, sample, view)
    assert (found.level, "calls zoom" in found.text) == ("green", True)
    none = tools.call_finding(config, vlm.family, HFEngine(vlm), vlm.renderer, sample, view, 8)
    assert (none.level, "no call" in none.text) == ("yellow", True)
    assert none.mend


# ---- data -----------------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, boxes: Sequence[Sequence[float]], size_px: tuple[int, int] = (400, 300), **more: Any) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size_px[1], size_px[0], 3), np.uint8)).save(folder / "a.png")
    rows = [
        {"image": "a.png", "question": f"What is there? {n}", "answer": "seven cats", "boxes": [list(box)], **more}
        for n, box in enumerate(boxes)
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def data_recipe(file: Path, **changes: Any) -> RunConfig:
    own = {"path": str(file), **changes.pop("data", {})}
    return parse_recipe({**load_recipe("tiny/vision_opd").model_dump(mode="json"), "eval": None, "gate": None, "checkpoint": {},
                         "student": "full", "data": own, **changes})  # fmt: skip


def looked_at(config: RunConfig) -> list[Finding]:
    return data.look_at_data(config, known(config.model).family, 16).findings


def test_data_that_is_right_is_green(tmp_path: Path) -> None:
    found = looked_at(data_recipe(write_rows(tmp_path, [(10, 10, 60, 60), (100, 100, 390, 290)])))
    assert {one.topic: one.level for one in found} == dict.fromkeys(("data", "boxes", "views", "leaks"), "green")


def test_boxes_in_another_unit(tmp_path: Path) -> None:
    """0 to 1000 of each side, read as pixels of a picture of 400 x 300: two of the three are outside."""
    file = write_rows(tmp_path, [(100, 100, 300, 200), (600, 500, 900, 900), (500, 400, 800, 990)])
    found = the(looked_at(data_recipe(file)), "boxes")
    assert found.level == "red"
    assert "2 of 3 rows have boxes that are not inside their pictures" in found.text
    assert "data.box_format=k1000_xyxy" in found.mend
    assert the(looked_at(data_recipe(file, data={"box_format": "k1000_xyxy"})), "boxes").ok


def test_boxes_that_look_like_another_unit(tmp_path: Path) -> None:
    """All inside a picture of 4000 x 3000 px, and none beyond 1000."""
    boxes = [(100 * n, 80 * n, 100 * n + 90, 80 * n + 190) for n in range(1, 10)]
    found = the(looked_at(data_recipe(write_rows(tmp_path, boxes, (4000, 3000)))), "boxes")
    assert found.level == "yellow"
    assert "k1000_xyxy" in found.mend
    # boxes all over the picture are pixels
    spread = [(400 * n, 300 * n, 400 * n + 90, 300 * n + 190) for n in range(9)]
    assert the(looked_at(data_recipe(write_rows(tmp_path, spread, (4000, 3000)))), "boxes").ok


def test_a_student_view_that_leaks(tmp_path: Path) -> None:
    file = write_rows(tmp_path, [(10, 10, 60, 60)])
    student = {"preset": "full", "answer": "\nIt is {answer}."}
    found = the(looked_at(data_recipe(file, student=student)), "leaks")
    assert found.level == "red"
    assert "the answer 'seven cats'" in found.text


def test_rows_that_are_left_out_and_files_that_are_not_there(tmp_path: Path) -> None:
    file = write_rows(tmp_path, [(10, 10, 60, 60)] * 4, image="gone.png")
    assert the(looked_at(data_recipe(file)), "data").level == "red"
    missing = the(looked_at(data_recipe(tmp_path / "none.jsonl")), "data")
    assert missing.level == "red"
    assert "none.jsonl" in missing.text


def test_a_teacher_view_that_the_data_cannot_serve(tmp_path: Path) -> None:
    file = write_rows(tmp_path, [(10, 10, 60, 60)])
    signals = [{"kind": "distill", "teacher": "given.teacher_images"}]
    found = the(looked_at(data_recipe(file, signals=signals, anchors=[])), "views")
    assert found.level == "red"
    assert "rows-0" in found.text


# ---- the command ----------------------------------------------------------------------------------------------------------


def small(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "recipe.yaml"
    recipe = {**load_recipe("tiny/vision_opd").model_dump(mode="json"), "data": {"synth": "detail", "n": 16}, **changes}
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return file


def test_the_command_on_a_recipe(foveate: Run, tmp_path: Path) -> None:
    status, shown, _ = foveate("doctor", str(small(tmp_path)), "--rows", "4", "--run", str(tmp_path / "run"), "--device", "cpu")
    assert status == 0, shown
    for topic in ("data", "tokens", "step", "disk", "image tokens", "chat template", "log-probs", "after an update"):
        assert f" {topic} " in shown
    assert "✗" not in shown
    assert "random qwen2_vl" not in shown


def test_the_command_names_the_mend_and_fails(foveate: Run, tmp_path: Path) -> None:
    file = small(tmp_path, data={"path": str(write_rows(tmp_path, [(600, 500, 900, 900), (500, 400, 800, 990)]))}, student="full")
    status, shown, _ = foveate("doctor", str(file), "--device", "cpu")
    assert status == 1
    assert "mend: data.box_format=k1000_xyxy" in shown


def test_a_model_that_is_not_here(tmp_path: Path) -> None:
    config = load_recipe(str(small(tmp_path, model={"name": str(tmp_path / "none")})))
    found = list(recipe_findings(config, ROOMY))
    assert the(found, "model").level == "red"


def test_what_a_recipe_needs_and_a_machine_lacks(tmp_path: Path) -> None:
    """A disk of 1 MiB, a GPU of 10 MiB, and no wandb."""
    config = load_recipe(str(small(tmp_path, loggers=["wandb"])))
    poor = Machine(2, 1 << 30, 1 << 30, (Gpu("fake", 10 << 20, 10 << 20),), lambda folder: 1 << 20)
    found = list(recipe_findings(config, poor, device="cpu", rows=2, version=lambda name: None))
    assert the(found, "disk").level == "red"
    assert "--run a folder on a larger disk" in the(found, "disk").mend
    assert the(found, "GPU memory").level == "red"
    assert "ZeRO-3" in the(found, "GPU memory").mend
    assert the(found, "wandb").level == "red"
    assert "pip install wandb" in the(found, "wandb").mend
    assert not [one for one in found if one.topic == "bitsandbytes"]
    lora = load_recipe("tiny/sft", ["model.lora.quantize=4bit", "optimizer.name=adamw"])
    found = list(recipe_findings(lora, ROOMY, device="cpu", rows=1, version=lambda name: None))
    assert "pip install 'foveate[qlora]'" in the(found, "bitsandbytes").mend


def test_weights_that_are_not_here_or_do_not_fit(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    config = load_recipe(str(small(tmp_path, model={"name": str(tmp_path / "model")}, student="full", anchors=[], signals=[
        {"kind": "grpo", "reward": {"answer": 1.0}}], rollouts=2, eval=None, checkpoint={})))  # fmt: skip
    crowded = dataclasses.replace(ROOMY, ram_free_bytes=1 << 20)
    found = the(list(recipe_findings(config, crowded, rows=1)), "log-probs")
    assert (found.level, "not measured: about" in found.text) == ("yellow", True)
    (tmp_path / "model" / "model.safetensors").unlink()
    found = the(list(recipe_findings(config, ROOMY, rows=1)), "log-probs")
    assert (found.level, "are not here" in found.text) == ("yellow", True)


def test_every_stage_is_looked_at(foveate: Run, tmp_path: Path) -> None:
    status, shown, _ = foveate("doctor", "see_then_think", "--rows", "2", "--run", str(tmp_path / "run"), "--device", "cpu")
    assert status == 0, shown
    for stage in ("perception", "text", "visual"):
        assert f"{stage}: data" in shown
        assert f"{stage}: step" in shown
    # the disk holds what the stages before keep
    (line,) = [line for line in shown.splitlines() if "text: disk" in line]
    assert "of the stages before" in line
