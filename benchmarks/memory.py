"""Memory of a batch of rollouts over one large picture: held once by content, against a copy with every rollout and turn.

    python benchmarks/memory.py                       64 rollouts x 4 turns over a picture of 2,000 x 2,000 px: some 4 GB
    python benchmarks/memory.py --small               a few seconds

"Once" is what foveate holds after it has rendered all rollouts and prepared the pixels of every turn: decoded pictures, prepared
patches, token ids and positions. "Copies" is the common way: each rollout has, for each turn, its own decoded picture and its own
tensors of pixels (what chat messages with ``pixel_values`` are when they travel through queues). Each is a process of its
own; the numbers are what its resident memory (VmRSS) has grown by, divided by the rollouts.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from foveate.vlm.images import Picture  # noqa: E402
from foveate.vlm.load import VLM, load  # noqa: E402
from foveate.vlm.messages import Message  # noqa: E402
from foveate.vlm.records import Rollout, StopReason, Turn, View  # noqa: E402


def resident_bytes() -> int:
    """``VmRSS`` of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def play(vlm: VLM, side_px: int, rollouts: int, turns: int, seed: int = 0) -> list[Rollout]:
    """Rollouts of one group: a picture in the prompt, and the same crop of it, newly decoded, from the tool in each of the turns
    but the last."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    view = View("student", (Message.user(Picture.of(pixels), "Which letter is on the sign?"),))
    made = []
    for index in range(rollouts):
        steps = []
        for turn in range(turns):
            ids = (*vlm.renderer.encode(f"zoom {turn}"), vlm.renderer.stop_ids[0])
            side = side_px // (turn + 2)  # the crops that rollouts ask for are often the same
            seen = (
                None
                if turn == turns - 1
                else Message.user("<tool_response>", Picture.of(pixels[:side, :side]), "</tool_response>")
            )
            steps.append(Turn(ids, (0.0,) * len(ids), "", StopReason.TOOL_CALL if seen else StopReason.ANSWERED, seen))
        made.append(Rollout("s", f"g{seed}", index, view, tuple(steps), StopReason.ANSWERED))
    return made


def once(vlm: VLM, played: list[Rollout]) -> list[object]:
    """Everything that a step holds of the rollouts."""
    held: list[object] = []
    for one in played:
        rendered = vlm.renderer.render(one.view, one.turns, one.sample_id)
        for span in (*rendered.prompt.visuals, *rendered.suffix.visuals):
            vlm.renderer.patches(span.item)
        held.append(rendered)
    return held


def copies(vlm: VLM, played: list[Rollout]) -> list[object]:
    """The same with nothing shared: at every turn, all pictures up to there, decoded and as pixels."""
    held: list[object] = []
    for one in played:
        rendered = vlm.renderer.render(one.view, one.turns, one.sample_id)
        spans = [*rendered.prompt.visuals, *rendered.suffix.visuals]
        for turn in range(len(one.turns)):
            for span in spans[: turn + 1]:
                assert isinstance(span.item.source, Picture)
                own = Image.fromarray(np.array(span.item.source.rgb()))
                held.append((own, vlm.renderer.patches(span.item).clone(), copy.copy(rendered)))
    return held


def measure(way: str, side_px: int, rollouts: int, turns: int, max_pixels: int, steps: int) -> dict[str, float]:
    """Bytes per rollout of one way, in this process, and for "once" the growth over ``steps`` of new pictures."""
    vlm = load("tiny", max_pixels=max_pixels)
    once(vlm, play(vlm, 256, 2, 2, seed=99))  # code and constants are loaded
    start = resident_bytes()
    played = play(vlm, side_px, rollouts, turns)
    held = (once if way == "once" else copies)(vlm, played)
    found = {"bytes_per_rollout": (resident_bytes() - start) / rollouts, "held": len(held)}
    if way == "once" and steps:
        del played, held
        found |= growth(vlm, side_px, rollouts, turns, steps)
    return found


def growth(vlm: VLM, side_px: int, rollouts: int, turns: int, steps: int) -> dict[str, float]:
    """Resident bytes once the caches of pictures are full, and the most in the ``steps`` after that."""

    def step(seed: int) -> int:
        """A step of new pictures; the bytes that were prepared."""
        played = play(vlm, side_px, rollouts, turns, seed)
        once(vlm, played)
        rendered = vlm.renderer.render(played[0].view, played[0].turns)
        return sum(vlm.renderer.patches(one.item).nbytes for one in (*rendered.prompt.visuals, *rendered.suffix.visuals))

    seed, filled = 0, 0
    pixels = 0
    while filled < 1.2 * (256 << 20) or pixels < 1.2 * (512 << 20):  # the bounds of the two caches
        pixels += 3 * side_px**2
        seed += 1
        filled += step(seed)
    full = resident_bytes()
    after = []
    for _ in range(steps):
        seed += 1
        step(seed)
        after.append(resident_bytes())
    return {"full": full, "after": max(after)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2000, help="of the picture in px")
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--max-pixels", type=int, default=1 << 20, help="of a picture in the model's eyes")
    parser.add_argument("--steps", type=int, default=20, help="of new pictures, for the growth; 0: none")
    parser.add_argument("--small", action="store_true", help="512 px, 8 rollouts")
    parser.add_argument("--way", choices=("once", "copies"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.small:
        args.side, args.rollouts, args.max_pixels = 512, 8, 1 << 18
    if args.way:
        print(json.dumps(measure(args.way, args.side, args.rollouts, args.turns, args.max_pixels, args.steps)))
        return
    given = [sys.executable, __file__, "--side", args.side, "--rollouts", args.rollouts, "--turns", args.turns]
    given += ["--max-pixels", args.max_pixels, "--steps", args.steps, "--way"]
    found = {}
    for way in ("once", "copies"):
        done = subprocess.run([*map(str, given), way], check=True, capture_output=True, text=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    print(f"{args.rollouts} rollouts x {args.turns} turns, picture {args.side} x {args.side} px, seen with {args.max_pixels} px")
    for way, numbers in found.items():
        print(f"{way:8} {numbers['bytes_per_rollout'] / 2**20:9.2f} MiB per rollout")
    print(f"ratio    {found['copies']['bytes_per_rollout'] / max(1.0, found['once']['bytes_per_rollout']):9.1f}")
    if not args.steps:
        return
    more = found["once"]["after"] - found["once"]["full"]
    print(f"most resident memory in {args.steps} steps of new pictures, over that with full caches: {more / 2**20:+.1f} MiB")


if __name__ == "__main__":
    main()
