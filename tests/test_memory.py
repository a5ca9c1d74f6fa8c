"""Memory: recomputed activations, a picture held once however many rollouts ask for it, and nothing that grows with the steps."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture, scripted, turn, view_of

from foveate.train.update import checkpoint_layers
from foveate.vlm import images, render
from foveate.vlm.backbone import encode, hidden_rows
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.packing import pack
from foveate.vlm.records import Rollout, StopReason

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_gradients(family: str, adapters: bool) -> None:
    """Tower and language model both recompute, also where only adapters are trained and the inputs have no gradient."""
    found = []
    for recompute in (False, True):
        vlm = tiny_random(family, seed=2)
        if adapters:
            _adapt(vlm)
        if recompute:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # the way to switch it on is not one that is about to go
                checkpoint_layers(vlm)
        model = vlm.model
        calls = {"tower": 0, "language": 0}
        tower = next(module for name, module in model.named_modules() if name.endswith("visual"))
        for layer, name in ((model.get_decoder().layers[0], "language"), (tower.blocks[0], "tower")):
            inner = next(module for key, module in layer.named_modules() if key.endswith(("attn", "mlp")))
            inner.register_forward_pre_hook(lambda *_, name=name, calls=calls: calls.update({name: calls[name] + 1}))
        rolled = scripted(vlm, view_of(picture(1), "Which?"), 1)
        rendered = vlm.renderer.render(rolled.view, rolled.turns)
        hidden_rows(vlm, pack([(rendered.prompt, [rendered.suffix])])).square().mean().backward()
        found.append(({name: one.grad for name, one in model.named_parameters() if one.grad is not None}, calls))
    (plain, once), (again, twice) = found
    assert twice == {name: 2 * count for name, count in once.items()}, "each layer runs once more in backward"
    assert plain.keys() == again.keys()
    assert {vlm.family.group_of(name) for name in plain} == {"vision", "projector", "language"}
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5)


def _adapt(vlm: VLM) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed: pip install 'foveate[train]'")
    from foveate.train.lora_settings import LoraPart
    from foveate.vlm.lora import adapter_config, add_adapter

    add_adapter(vlm, adapter_config(vlm, LoraPart(rank=2), ("language", "vision", "projector")), 0)
    with torch.no_grad():
        for name, one in vlm.model.named_parameters():
            if "lora_B" in name:  # zero at first, and then no gradient reaches lora_A
                one.fill_(0.01)


# ---- pictures ---------------------------------------------------------------------------------------------------------------


def test_the_same_pixels_in_memory_are_one_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    one, two = Picture.of(pixels), Picture.of(pixels.copy())
    assert one is two
    assert Picture.of(pixels[:, :59]) is not one
    key = one.key
    assert key in images._in_memory
    del one, two
    gc.collect()
    assert key not in images._in_memory, "nobody needs it, so it is gone"


def played(vlm: VLM, seed: int, rollouts: int = 4, side_px: int = 160) -> list[Rollout]:
    """Rollouts over one picture that all ask for the same crop, each decoded anew."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    view = view_of(Picture.of(pixels), "Which letter?")
    return [
        Rollout(
            "s", f"g{seed}", index, view,
            (turn(vlm, "zoom", Message.user(Picture.of(pixels[:80, :80].copy()))), turn(vlm, "K")),
            StopReason.ANSWERED,
        )
        for index in range(rollouts)
    ]  # fmt: skip


def test_rollouts_and_turns_share_one_decoded_and_one_prepared_picture() -> None:
    vlm = tiny_random("qwen2_5_vl")
    rendered = [vlm.renderer.render(one.view, one.turns) for one in played(vlm, 1)]
    items = [span.item for one in rendered for span in (*one.prompt.visuals, *one.suffix.visuals)]
    assert len(items) == 8
    assert len({id(item.source) for item in items}) == 2
    assert len({vlm.renderer.patches(item).data_ptr() for item in items}) == 2
    seen: list[int] = []
    embedding = next(module for name, module in vlm.model.named_modules() if name.endswith("patch_embed"))
    embedding.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    features = encode(vlm, items)
    assert len(features) == 2
    assert seen == [sum(len(vlm.renderer.patches(item)) for item in {one.key: one for one in items}.values())]


def test_segments_hold_on_to_a_bounded_number_of_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By hand: a picture of 100 x 100 px is 30,000 bytes, so three fit into 100,000."""
    monkeypatch.setattr(render, "_CACHED_PIXEL_BYTES", 100_000)
    vlm = tiny_random("qwen2_vl")

    def shown(one: Picture) -> str:
        vlm.renderer.prompt([Message.user(one, "What is this?")])
        return one.key

    keys = [shown(picture(seed, 100, 100)) for seed in range(5)]
    gc.collect()
    assert [key in images._in_memory for key in keys] == [False, False, True, True, True]
    picture(9, 100, 100).rgb().save(tmp_path / "file.png")
    shown(Picture.open(tmp_path / "file.png"))
    assert keys[2] in images._in_memory, "a picture in a file takes nobody's place"
    big = shown(picture(6, 400, 400))
    gc.collect()
    assert [key in images._in_memory for key in (*keys, big)] == [False] * 5 + [True], "the newest stays whatever its size"


def test_steps_of_new_pictures_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 steps prepare some 60 MB of pictures; what is held stays below the two bounds."""
    monkeypatch.setattr(render, "_CACHED_PIXEL_BYTES", 1 << 20)
    vlm = tiny_random("qwen2_5_vl")
    renderer = render.Renderer(vlm.family, vlm.tokenizer, vlm.renderer.image, patch_cache_bytes=4 << 20)
    made, sizes = 0, []
    before, held_by_others = _resident_bytes(), _decoded_bytes()
    for step in range(30):
        for one in played(vlm, step, rollouts=2, side_px=400):
            rendered = renderer.render(one.view, one.turns)
            for span in (*rendered.prompt.visuals, *rendered.suffix.visuals):
                patches = renderer.patches(span.item)
                made += patches.nbytes + 3 * span.item.width_px * span.item.height_px
        del one, rendered, span, patches
        sizes.append(_resident_bytes() - before)
        assert _decoded_bytes() - held_by_others <= (1 << 20) + (8 << 20), "decoded pictures"
    assert made > 100 << 20
    assert max(sizes[10:]) - sizes[9] < 12 << 20


def _decoded_bytes() -> int:
    return sum(3 * one.width_px * one.height_px for one in list(images._in_memory.values()))


def _resident_bytes() -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_the_benchmark_says_how_much_is_saved() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--small", "--steps", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ratio = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("ratio"))
    assert ratio > 8, done.stdout


@pytest.mark.slow
def test_the_benchmark_of_ranks_says_how_much_is_saved() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "ranks_memory.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    # by hand: 4 of 16 rollouts are learned elsewhere, each with a mirrored picture of 200 x 150 px
    assert float(rows["names"][2]) == pytest.approx(4 * 3 * 200 * 150 / 16 / 2**20, abs=1e-3)
    assert float(rows["ratio"][0]) > 8, done.stdout
