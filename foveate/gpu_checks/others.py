"""Sampling, head and loss, the embedded model's training, and the tests marked `gpu`: what other folders of a checkout hold."""

from __future__ import annotations

import argparse
import importlib.util
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch

from ..vlm.generate import HFEngine
from .harness import ROOT
from .measure import cells, fresh
from .models import random_model
from .spec import Notes, Settings, Skip

WORDS = re.compile(r"(\d+) (passed|failed|skipped|error)")


def from_checkout(name: str) -> ModuleType:
    """A script of the checkout, such as ``benchmarks/multi_turn.py``. Raises `Skip` where foveate was installed without it."""
    path = ROOT / name
    if not path.is_file():
        raise Skip(f"{name} is part of a checkout, and this is none")
    found = importlib.util.spec_from_file_location(f"checkout_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


def sampling(settings: Settings, notes: Notes) -> None:
    """Tool turns with what was read kept, against reading the conversation again, on Qwen3-VL-2B's sizes in bfloat16."""
    device = torch.device(settings.device)
    bench = from_checkout("benchmarks/multi_turn.py")
    small = settings.quick
    case = bench.Case(
        "tool turns", 0, 0, 112 if small else 1344, 64 if small else 192, 1 if small else 2, prompts=2 if small else 4,
        rollouts=2 if small else 8,
    )  # fmt: skip
    vlm = random_model("qwen3_vl", device, small, torch.float32 if device.type == "cpu" else torch.bfloat16)
    # a random model draws any id; one in so many ends an action
    vlm.renderer.stop_ids = (*vlm.renderer.stop_ids, *range(0, len(vlm.head_weight), bench.ACTION_TOKENS))
    engines = {"kept": HFEngine(vlm), "again": bench.Rereads(HFEngine(vlm))}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for number in range(2 if small else 3):
        for name, engine in engines.items():
            groups, seconds, _ = bench.play(vlm, engine, case, number)
            turns = [turn for group in groups for one in group.rollouts for turn in one.turns]
            tokens = sum(len(turn.action_ids_K) for turn in turns)
            if number:  # the first round warms up
                rates[name].append((len(turns) / seconds, tokens / seconds))
    for name, found in rates.items():
        notes.put(
            name, turns_per_s=statistics.median(one for one, _ in found), tokens_per_s=statistics.median(one for _, one in found)
        )
    ratio = notes.values["kept"]["turns_per_s"], notes.values["again"]["turns_per_s"]
    notes.put("ratio", turns_per_s=float(ratio[0]) / float(ratio[1]))


def head_and_loss(settings: Settings, notes: Notes) -> None:
    """`benchmarks/loss_memory.py`, every variant in turn in this process."""
    bench = from_checkout("benchmarks/loss_memory.py")
    rows, vocab, hidden = (64, 2000, 32) if settings.quick else (2048, 151_936, 2048)
    dtype = "float32" if settings.device == "cpu" else "bfloat16"
    for loss in bench.LOSSES:
        seen = {}
        for variant in ("plain", "chunked"):
            arguments = argparse.Namespace(
                rows=rows, vocab=vocab, hidden=hidden, chunk=64, device=settings.device, dtype=dtype, threads=1, loss=loss,
                variant=variant,
            )  # fmt: skip
            fresh(torch.device(settings.device))
            bench.measure(arguments)  # the first time loads kernels
            fresh(torch.device(settings.device))
            seen[variant] = bench.measure(arguments)
            notes.put(f"{loss}/{variant}", **cells(ms=seen[variant]["ms"], mib=seen[variant]["mb"], loss=seen[variant]["loss"]))
        gap = abs(seen["plain"]["loss"] - seen["chunked"]["loss"]) / max(1e-6, abs(seen["plain"]["loss"]))
        notes.expect(gap <= (1e-4 if dtype == "float32" else 0.02), f"{loss}: plain and chunked differ by {gap:.1e} of the loss")


def tiny(settings: Settings, notes: Notes) -> None:
    """``tiny/vision_opd``, 60 steps: what the quickstart does, on this device."""
    from ..runs import run_recipe
    from ..train.recipes import load_any

    steps, items = (2, 8) if settings.quick else (60, 256)
    overrides = [
        f"steps={steps}", f"model.device={settings.device}", f"eval.data.n={items}", f"eval.extra.zoom.n={items // 2}",
        "eval.every=0", "checkpoint.every=1000", "checkpoint.best_view=null", "loggers=[]",
    ]  # fmt: skip
    if settings.quick:
        overrides += ["prompts=4", "anchors=[]"]
    summary = run_recipe(load_any("tiny/vision_opd", overrides), Path("tiny"), "foveate gpu")
    for view in ("full", "crop", "zoom"):
        notes.put(view, before=summary[f"{view}_before"], after=summary[f"{view}_after"], items=summary["n"][view])
    notes.put("steps", before=steps, after=summary["seconds"] / steps)
    if not settings.quick:
        notes.expect(summary["full_after"] > summary["full_before"], "the full view has not become better")


def marked_tests(settings: Settings, notes: Notes) -> None:
    """``pytest -m gpu`` over the files of the tests that have such a test."""
    import pytest

    del pytest  # missing: a reason to skip
    files = sorted(file for file in (ROOT / "tests").glob("test_*.py") if "pytest.mark.gpu" in file.read_text(encoding="utf-8"))
    if not files:
        raise Skip("the tests are part of a checkout, and this is none")
    words = [str(file) for file in files]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    counts = {kind: int(number) for number, kind in WORDS.findall(done.stdout.splitlines()[-1] if done.stdout else "")}
    passed, failed = counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0)
    if not counts or (not passed and not failed):
        missing = re.search(r"No module named '([\w.]+)'", done.stdout + done.stderr)
        if missing is not None:
            raise Skip(f"{missing[1]} is not installed")
        if settings.device != "cuda" or not torch.cuda.is_available():
            raise Skip("no CUDA device: every test was skipped")
    notes.put("tests", passed=passed, failed=failed, skipped=counts.get("skipped", 0))
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    notes.expect(done.returncode == 0, f"pytest ended with {done.returncode}: {'; '.join(lines)[:400] or done.stderr[-300:]}")
