"""Attention of one layer on every kernel that runs here, and whole vision towers: cut by transformers against one call per layer.

    python benchmarks/attention.py --device cuda            a packed batch of 8,000 tokens with a picture of 2,000 x 2,000 px
    python benchmarks/attention.py --small                  on a CPU, seconds

The layers are those of `foveate gpu speed`. A tower is a random one of 24 layers; forward and backward over one picture, the two
ways in turns in one process, median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

import foveate  # noqa: F401 - lets torchvision load beside a CPU torch
from foveate.gpu_checks import kernels
from foveate.gpu_checks.measure import timed_ms
from foveate.gpu_checks.spec import Cell, Notes, Settings, named
from foveate.gpu_checks.table import CHECKS
from foveate.vlm.backbone import encode
from foveate.vlm.images import Picture
from foveate.vlm.load import tiny_random


def layers(settings: Settings) -> dict[str, dict[str, Cell]]:
    """What `foveate gpu speed` measures, printed."""
    (check,) = named(CHECKS, ["speed"])
    with tempfile.TemporaryDirectory() as folder:
        notes = Notes(Path(folder, "notes.json"), check.rows, check.columns)
        kernels.speed(settings, notes)
    print(f"{'layer and kernel':<58} {'forward ms':>11} {'and backward':>13} {'peak GiB':>9}")
    for row, text in check.rows.items():
        found = notes.values[row]
        if "note" in found:
            print(f"{text:<58} {found['note']}")
        else:
            print(
                f"{text:<58} {found['forward_ms']:>11.2f} {found['both_ms']:>13.2f} {found.get('peak_gib', float('nan')):>9.2f}"
            )
    return notes.values


def towers(device: torch.device, small: bool, rounds: int) -> list[dict[str, Cell]]:
    """Encoding one picture, forward and backward."""
    side_px, hidden, depth = (448, 64, 4) if small else (2000, 1280, 24)
    noise = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), np.uint8)
    rows: list[dict[str, Cell]] = []
    print(f"\n{'tower':<14} {'cut by transformers, ms':>24} {'one call per layer, ms':>23} {'ratio (range over rounds)':>28}")
    for family in ("qwen2_5_vl", "qwen3_vl"):
        ways = {}
        for attention in ("sdpa", "foveate"):
            vlm = tiny_random(
                family, vision_hidden=hidden, vision_layers=depth, max_pixels=2048 * 2048, initializer_range=0.02,
                attention=attention,
            )  # fmt: skip
            vlm.model.to(device)
            item = vlm.renderer.item(Picture.of(noise))
            vlm.renderer.patches(item)  # prepared once, not a part of the tower

            def both(vlm=vlm, item=item) -> None:  # type: ignore[no-untyped-def]
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    rows = encode(vlm, [item]).rows_FD
                rows.float().square().mean().backward()
                vlm.model.zero_grad()

            ways[attention] = both
        times = [(timed_ms(ways["sdpa"], device, 1, warm=int(n == 0)), timed_ms(ways["foveate"], device, 1, warm=int(n == 0)))
                 for n in range(rounds)]  # fmt: skip
        ratios = [cut / once for cut, once in times]
        cut, once = (statistics.median(column) for column in zip(*times, strict=True))
        spread = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{family:<14} {cut:>24.1f} {once:>23.1f} {spread:>28}", flush=True)
        rows.append({"family": family, "cut_ms": cut, "once_ms": once, "ratio": statistics.median(ratios)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(arguments.device)
    found = {
        "layers": layers(Settings(arguments.device, arguments.small)),
        "towers": towers(device, arguments.small, arguments.rounds),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
