"""The checks of the GPU: one that crashes or hangs costs itself alone, the page says what was measured and nothing else, and with
small sizes every check runs to its end on the CPU. Tests marked ``gpu`` are those that need the device itself.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.gpu_checks import agreement, kernels, others, teachers, training
from foveate.gpu_checks.harness import run_all
from foveate.gpu_checks.kernels import DTYPES, LIMITS, VARIANTS, Case, apart, errors, sizes
from foveate.gpu_checks.models import random_model
from foveate.gpu_checks.page import NOT_RUN, page
from foveate.gpu_checks.spec import Check, Notes, Settings, Skip, grid, named
from foveate.gpu_checks.table import CHECKS
from foveate.vlm import attention_backends
from foveate.vlm.attention_backends import Backend, why_not
from foveate.vlm.backbone import encode
from foveate.vlm.layout import PrefixLayout
from foveate.vlm.load import tiny_random

ROOT = Path(__file__).resolve().parent.parent
QUICK = Settings("cpu", quick=True)
BY_NAME = {check.name: check for check in CHECKS}

PLANTED = """
import os, subprocess, sys, time
from foveate.gpu_checks.spec import Skip

def good(settings, notes):
    notes.put("a", x=1.5, y=2)
    assert settings.quick and settings.device == "cpu"

def crash(settings, notes):
    notes.put("a", x=1.0)
    os.abort()

def hang(settings, notes):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    notes.put("a", x=float(child.pid))
    time.sleep(600)

def error(settings, notes):
    raise ValueError("the cable is loose")

def skip(settings, notes):
    raise Skip("no such device")

def missing(settings, notes):
    import a_library_that_is_not_there.at_all

def ours(settings, notes):
    import foveate.gpu_checks.no_such_module

def wrong(settings, notes):
    notes.put("b", x=0.3)
    notes.expect(True, "never said")
    notes.expect(False, "0.3 is too much")

def unknown(settings, notes):
    notes.put("c", x=1)
"""


def planted(name: str, limit_s: float = 60.0) -> Check:
    return Check(name, name.title(), "Planted.", f"planted_checks:{name}", limit_s, {"a": "A", "b": "B"}, {"x": "X", "y": "Y"})


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, dict[str, Any]]]:
    (tmp_path / "planted_checks.py").write_text(PLANTED, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(*checks: Check, total_s: float = 300.0) -> dict[str, dict[str, Any]]:
        said: list[str] = []
        file = tmp_path / "out" / "gpu.json"
        found = run_all(checks, file, QUICK, total_s, "a command", said.append)
        assert json.loads(file.read_text()) == found
        assert len(said) == len(checks)
        return {one["name"]: one for one in found["checks"]}

    return run


def test_a_check_that_breaks_costs_itself_alone(harness: Callable[..., dict[str, dict[str, Any]]]) -> None:
    names = ("crash", "hang", "error", "skip", "missing", "ours", "wrong", "unknown", "good")
    found = harness(*(planted(name, 6.0 if name == "hang" else 60.0) for name in names))
    assert {name: one["status"] for name, one in found.items()} == {
        "crash": "fail", "hang": "fail", "error": "fail", "skip": "skip", "missing": "skip", "ours": "fail", "wrong": "fail",
        "unknown": "fail", "good": "pass",
    }  # fmt: skip
    assert found["crash"]["reason"].startswith("ended by signal SIGABRT")
    assert found["crash"]["values"] == {"a": {"x": 1.0}}  # what it had found is kept
    assert found["hang"]["reason"] == "not done after 6 s; its numbers are those until then"
    assert found["hang"]["seconds"] < 20
    assert "the cable is loose" in found["error"]["reason"]
    assert found["skip"]["reason"] == "no such device"
    assert found["missing"]["reason"] == "a_library_that_is_not_there is not installed"
    assert "foveate.gpu_checks.no_such_module" in found["ours"]["reason"]
    assert found["wrong"]["reason"] == "0.3 is too much"
    assert "the table has no such line or column" in found["unknown"]["reason"]
    assert found["good"]["values"] == {"a": {"x": 1.5, "y": 2}}
    child = int(found["hang"]["values"]["a"]["x"])
    until = time.monotonic() + 10
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.is_file() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_nothing_begins_without_time(harness: Callable[..., dict[str, dict[str, Any]]]) -> None:
    found = harness(planted("good"), planted("wrong"), total_s=3.0)
    assert [one["reason"] for one in found.values()] == ["no time left of 3 s"] * 2
    assert {one["status"] for one in found.values()} == {"skip"}


def test_the_table_is_sound() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        module, _, function = check.run.partition(":")
        assert callable(vars(importlib.import_module(module))[function])
        assert check.rows
        assert check.columns
        assert 10 <= check.limit_s <= 120
    assert [check.name for check in named(CHECKS, ["speed", "attention"])] == ["attention", "speed"]
    assert named(CHECKS, []) == CHECKS
    with pytest.raises(ValueError, match="no check is called sped; there are environment"):
        named(CHECKS, ["sped"])
    assert grid({"a": "A", "b": "B"}, {"x": "X"}) == {"a/x": "A, X", "b/x": "B, X"}


def test_a_cell_that_the_table_lacks_is_refused(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.json", {"a": "A"}, {"x": "X"})
    notes.put("a", x=1)
    for row, column in (("b", "x"), ("a", "y")):
        with pytest.raises(KeyError, match="the table has no such line or column"):
            notes.put(row, **{column: 1})
    assert notes.values == {"a": {"x": 1}}


# ---------------------------------------------------------------- the page


def test_a_page_without_a_run_has_no_number() -> None:
    made = page(None, CHECKS)
    assert made.count(f"| {NOT_RUN} |") == sum(len(check.rows) for check in CHECKS)
    tables = [line for line in made.splitlines() if line.startswith("| ") and NOT_RUN in line]
    assert all(set(line.partition(NOT_RUN)[2]) <= set("| ") for line in tables)


def test_a_page_shows_what_was_found_and_why_something_was_not() -> None:
    checks = [planted("good"), planted("wrong"), planted("hang")]
    found = {
        "foveate": "0", "commit": "0123456789abcdef", "date": "2026-01-02T03:04:05+00:00", "command": "make gpu",
        "device": "cuda", "quick": False, "machine": "a box", "versions": {"torch": "2.11.0", "vllm": None}, "seconds": 12.3,
        "checks": [
            {"name": "good", "status": "pass", "reason": "", "seconds": 1.0,
             "values": {"a": {"x": 0.00012, "y": 123456}, "b": {"x": "no | kernel"}}},
            {"name": "wrong", "status": "skip", "reason": "peft is not installed", "seconds": 1.0, "values": {}},
        ],
    }  # fmt: skip
    made = page(found, checks)
    assert "- 2026-01-02T03:04:05+00:00, on cuda, 12 s: `make gpu`" in made
    assert "- torch 2.11.0\n- not installed: vllm\n- 1 pass, 0 fail, 1 skip" in made
    assert "commit 0123456789ab\n" in made
    assert "| A | 1.2e-04 | 123,456 |\n| B | no / kernel |  |" in made
    assert "**skipped**, 1 s: peft is not installed" in made
    assert made.count(f"| {NOT_RUN} |") == 4
    assert f"## Hang\n\nPlanted.\n\n**{NOT_RUN}**" in made


def test_the_page_in_the_docs_has_every_line() -> None:
    """It is made by ``foveate gpu --render``; a check that was added since must stand in it too."""
    there = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    for check in CHECKS:
        section = there.partition(f"## {check.title}\n")[2].partition("\n## ")[0]
        assert check.about in section, f"{check.name}: run foveate gpu --render"
        for text in check.rows.values():
            assert f"\n| {text} |" in section, f"{check.name}, {text}: run foveate gpu --render"


def test_the_command(foveate: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, out, _ = foveate("gpu", "--help")
    assert status == 0
    assert "--render" in out
    assert foveate("gpu", "sped")[:2] == (2, f"no check is called sped; there are {', '.join(BY_NAME)}\n")
    target = tmp_path / "docs" / "gpu.md"
    status, out, _ = foveate("gpu", "--render", str(tmp_path / "nothing.json"), "--page", str(target))
    assert (status, out) == (0, f"{target}\n")
    assert target.read_text(encoding="utf-8") == page(None, CHECKS)


# ---------------------------------------------------------------- the checks, small, on the CPU


def run(name: str, tmp_path: Path) -> Notes:
    check = BY_NAME[name]
    notes = Notes(tmp_path / "notes.json", check.rows, check.columns)
    module, _, function = check.run.partition(":")
    vars(importlib.import_module(module))[function](QUICK, notes)
    assert not notes.problems
    assert json.loads(notes.path.read_text())["values"] == notes.values
    return notes


def test_attention_and_its_speed(tmp_path: Path) -> None:
    found = run("attention", tmp_path).values
    assert set(found) == set(BY_NAME["attention"].rows)
    assert 0 < float(found["sdpa/float32"]["language_values"]) < 1e-5 < float(found["sdpa/bfloat16"]["tower_values"])
    assert found["varlen/bfloat16"] == {"note": "it has no kernels for cpu"}
    found = run("speed", tmp_path).values
    assert set(found) == set(BY_NAME["speed"].rows)
    assert all("note" in row or {"forward_ms", "both_ms"} <= set(row) for row in found.values())


def test_a_wrong_kernel_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.packed_attention
    monkeypatch.setattr(kernels, "packed_attention", lambda *args: 1.01 * right(*args))
    check = BY_NAME["attention"]
    notes = Notes(tmp_path / "notes.json", check.rows, check.columns)
    kernels.parity(QUICK, notes)
    assert any("sdpa/float32: values of the language are off by 1.0e-02" in problem for problem in notes.problems)
    assert not any("tower" in problem for problem in notes.problems)


@pytest.mark.parametrize("name", sizes(quick=True))
def test_what_speed_is_compared_with_computes_the_same(name: str) -> None:
    case = sizes(quick=True)[name]
    made = case.inputs(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(apart(case)(*made), case.run(*made), atol=1e-5, rtol=1e-5)


def test_sizes_are_those_of_a_batch_of_8000_tokens() -> None:
    """2,000 px: 142 patches of 14 px a side, 124 of 16 px; two by two are a token."""
    full = sizes(quick=False)
    assert sum(full["windows_2_5"].lengths) == full["full_2_5"].tokens == 142 * 142
    assert set(full["windows_2_5"].lengths) == {64, 48, 36}
    assert full["full_3"].tokens == 124 * 124
    assert full["language_2_5"].tokens == 71 * 71 + 60 + 8 * 360 == 7981
    assert full["language_3"].tokens == 62 * 62 + 60 + 8 * 512 == 8000


def test_packing_and_log_probs(tmp_path: Path) -> None:
    found = run("packing", tmp_path).values
    assert set(found) == set(BY_NAME["packing"].rows)
    assert float(found["qwen3_vl"]["bf16_nats"]) > 10 * float(found["qwen3_vl"]["packed_nats"])
    found = run("logprobs", tmp_path).values
    assert set(found) == set(BY_NAME["logprobs"].rows)
    assert all(float(row["tokens"]) > 50 for row in found.values())


def test_packing_that_mixes_rollouts_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = agreement.hidden_rows
    monkeypatch.setattr(agreement, "hidden_rows", lambda vlm, packed: right(vlm, packed).roll(1, 0))
    check = BY_NAME["packing"]
    notes = Notes(tmp_path / "notes.json", check.rows, check.columns)
    agreement.families(QUICK, notes)
    assert any("qwen2_vl: packed and one by one differ by" in problem for problem in notes.problems)
    assert any("packing costs more in bfloat16" in problem for problem in notes.problems)


def test_training_steps(tmp_path: Path) -> None:
    found = run("steps", tmp_path).values
    assert set(found) == set(BY_NAME["steps"].rows)
    assert float(found["qwen3_vl/distill/sdpa"]["loss"]) > 0
    assert float(found["qwen3_vl/distill/sdpa"]["tokens"]) > float(found["qwen3_vl/grpo/sdpa"]["tokens"])


def test_steps_compare_attentions_from_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all attentions there, every one of them is measured, and a wrong gradient is noticed."""
    monkeypatch.setattr(training, "why_not", lambda *_: None)
    monkeypatch.setattr(attention_backends, "why_not", lambda *_: None)
    seen: list[Backend] = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: Any, scaling: float, backend: Backend) -> Any:
        seen.append(backend)
        fold = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(fold, 1) for x in (key, value))
        if blocks.gather is not None:
            key, value = key[blocks.gather], value[blocks.gather]
        q, k, v = (x.transpose(0, 1) for x in (query, key, value))
        scores = (q @ k.transpose(1, 2) * scaling).masked_fill(~blocks.allowed(), float("-inf"))
        return (scores.softmax(-1) @ v).transpose(0, 1) * (3 if backend == "xformers" else 1)

    monkeypatch.setattr("foveate.vlm.attention.attend", attend)
    check = BY_NAME["steps"]
    notes = Notes(tmp_path / "notes.json", check.rows, check.columns)
    training.steps(QUICK, notes)
    assert set(seen) == {"varlen", "xformers"}
    for row, values in notes.values.items():
        assert values["step_s"] > 0, row
        right = "xformers" not in row
        assert (float(values["norm_share"]) < 1e-4) == right, row
    assert len(notes.problems) == 3
    assert all("on xformers differs" in problem for problem in notes.problems)


def test_lora(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    found = run("lora", tmp_path).values
    assert 0 < float(found["grpo"]["trained"]) < 50_000


def test_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("teacher", tmp_path).values
    assert set(found) == {"none", "host"}
    assert found["host"]["nats"] == 0
    assert float(found["host"]["host_gib"]) > 0
    assert "host_gib" not in found["none"]
    scores, calls = teachers.scores, itertools.count()
    monkeypatch.setattr(teachers, "scores", lambda *args: [next(calls) + value for value in scores(*args)])
    notes = Notes(tmp_path / "off.json", BY_NAME["teacher"].rows, BY_NAME["teacher"].columns)
    teachers.offload(QUICK, notes)
    assert notes.problems == ["log-probs of the two teachers differ"]


def test_sampling_and_the_head(tmp_path: Path) -> None:
    found = run("sampling", tmp_path).values
    assert float(found["kept"]["turns_per_s"]) > 0
    assert float(found["ratio"]["turns_per_s"]) == pytest.approx(
        float(found["kept"]["turns_per_s"]) / float(found["again"]["turns_per_s"])
    )
    found = run("head_and_loss", tmp_path).values
    assert set(found) == set(BY_NAME["head_and_loss"].rows)
    assert float(found["jsd/plain"]["loss"]) == pytest.approx(float(found["jsd/chunked"]["loss"]), rel=1e-4)


def test_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("tiny", tmp_path).values
    assert set(found) == {"full", "crop", "zoom", "steps"}
    assert found["crop"]["items"] == 8


def test_marked_tests_and_the_machine_are_skipped_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Skip, match="no CUDA device"):
        run("tests", tmp_path)
    with pytest.raises(Skip, match="asked for cpu"):
        run("environment", tmp_path)
    check = BY_NAME["environment"]
    notes = Notes(tmp_path / "notes.json", check.rows, check.columns)
    kernels.environment(Settings("cuda"), notes)
    assert notes.problems == ["torch finds no CUDA device"]
    monkeypatch.setattr(others, "ROOT", tmp_path)
    with pytest.raises(Skip, match="part of a checkout"):
        others.from_checkout("benchmarks/multi_turn.py")


# ---------------------------------------------------------------- on the device


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 72, 80, 128, 20])
@pytest.mark.parametrize(("backend", "kind"), VARIANTS)
def test_kernels_equal_a_dense_mask(backend: Backend, kind: str, width: int) -> None:
    device, dtype = torch.device("cuda", 0), DTYPES[kind]
    why = why_not(backend, device, dtype, width)
    if why is not None:
        pytest.skip(why)
    layout = PrefixLayout(((7, (3, 1, 5)), (2, ()), (150, (4, 4, 90)), (7, (9,)), (40, (2, 30, 1)), (1, (1,))))
    for case in (Case(4, 2, width, layout), Case(6, 1, width, layout), Case(3, 3, width, None, (64, 64, 17, 1, 130))):
        values, gradients = errors(case, backend, device, dtype)
        assert values <= LIMITS[kind][0]
        assert gradients <= LIMITS[kind][1]


@pytest.mark.gpu
def test_gradients_of_a_prompt_read_by_many_are_summed_in_float32() -> None:
    x = torch.zeros(1, 8, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    attention_backends.repeated(x, torch.zeros(512, dtype=torch.long, device="cuda")).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[512.0] * 8]  # one by one in bfloat16: 256 + 1 = 256


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_a_tower_on_the_gpu_equals_one_on_the_cpu(family: str) -> None:
    vlm = tiny_random(family, vision_hidden=80, vision_layers=3)
    pictures = [vlm.renderer.item(agreement.noise(seed, 90 + 70 * seed, 200 - 30 * seed)) for seed in range(3)]
    with torch.no_grad():
        want = encode(vlm, pictures).rows_FD
        vlm.model.cuda()
        found = encode(vlm, pictures).rows_FD
        with torch.autocast("cuda", torch.bfloat16):
            low = encode(vlm, pictures).rows_FD
    scale = float(want.abs().max())
    assert float((found.cpu() - want).abs().max()) < 1e-3 * scale
    assert float((low.float().cpu() - want).abs().max()) < 0.1 * scale


@pytest.mark.gpu
def test_a_model_of_real_size_is_built_on_the_device() -> None:
    vlm = random_model("qwen3_vl", torch.device("cuda", 0), quick=False, dtype=torch.bfloat16)
    assert {one.device.type for one in vlm.model.parameters()} == {"cuda"}
    assert 2.0e9 < sum(one.numel() for one in vlm.model.parameters()) < 2.3e9
