"""Pictures of a step's rollouts over several ranks: what goes over the wire and what each rank holds, against whole rollouts.

    python benchmarks/ranks_memory.py                 2 ranks, 4 photographs of 4,000 x 3,000 px, 64 rollouts: some 5 GB
    python benchmarks/ranks_memory.py --small         a few seconds

Real processes over gloo. Each rank plays its prompts (a zoom into half of the photograph, a zoom into half of that, a mirrored
copy of the last, an answer), gathers all groups, learns from its share of them (the pixels of every picture in it are prepared),
and rank 0 reads the pictures of the first group, as for a log. "Names" is what foveate does (`train.post`); "whole" is what
``all_gather_object`` does with the rollouts.

Wire: bytes of rollouts and of pixels that a rank got from others. Held: what resident memory (VmRSS) has grown by when all of it
is done and the rollouts are still needed; peak: what it had grown by at most (VmHWM). All are of the rank that has most, and per
rollout of the step. The caches of decoded and of prepared pictures, which have a bound, are part of both; files lie in the
operating system's page cache, which ranks of one machine share, and are not.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch.distributed as dist  # noqa: E402

from foveate.train.distributed import my_share  # noqa: E402
from foveate.train.ranks import Ranks, joined  # noqa: E402
from foveate.vlm.images import Picture  # noqa: E402
from foveate.vlm.load import load  # noqa: E402
from foveate.vlm.messages import Message  # noqa: E402
from foveate.vlm.records import Group, Rollout, Sample, Signal, StopReason, Turn, View  # noqa: E402

WORDS = (15, 12, 14, 13)
"""Tokens of an action, prompt by prompt: groups are dealt for learning by their tokens, and so half of them go elsewhere."""


class Counted(Ranks):
    """Ranks that count what they get of others' records. ``whole``: rollouts go as they are."""

    got = 0
    whole = False

    def gather(self, mine: Any) -> list[Any]:
        assert self.post is not None
        sizes: list[Any] = [0] * self.size
        dist.all_gather_object(sizes, len(pickle.dumps(mine) if self.whole else self.post.dumps(mine)))
        type(self).got += sum(sizes) - sizes[self.rank]
        if not self.whole:
            return super().gather(mine)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found


def memory_bytes(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most so far) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def photograph(file: Path, side_px: int, seed: int) -> None:
    """A JPEG of 4 : 3 with something in it at every scale."""
    rng = np.random.default_rng(seed)
    height, width = side_px * 3 // 4, side_px
    image = np.zeros((height, width, 3), np.float32)
    for scale in (4, 32, 256):
        patch = rng.integers(0, 256, (height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        image += cv2.resize(patch, (width, height), interpolation=cv2.INTER_CUBIC) / 3
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def play(sample: Sample, rollouts: int, ids: tuple[int, ...]) -> Group:
    """Rollouts that look at different places."""
    view = View("student", (Message.user(*sample.images, sample.question),))
    made = []
    for index in range(rollouts):
        (photo,) = sample.images
        left, top = (side * index // (4 * rollouts) for side in photo.size_px)
        zoom = Picture.cut(photo, (left, top, left + photo.width_px // 2, top + photo.height_px // 2),
                           (photo.width_px // 2, photo.height_px // 2))  # fmt: skip
        half = zoom.width_px // 2, zoom.height_px // 2
        again = Picture.cut(zoom, (0, 0, *half), half)
        mirrored = Picture.of(np.ascontiguousarray(np.asarray(again.rgb())[:, ::-1]))
        turns = [
            Turn(ids, (-1.0,) * len(ids), "", StopReason.TOOL_CALL, Message.user("<tool_response>", one, "</tool_response>"))
            for one in (zoom, again, mirrored)
        ]
        answer = Turn(ids, (-1.0,) * len(ids), "", StopReason.ANSWERED)
        made.append(Rollout(sample.id, sample.id, index, view, (*turns, answer), StopReason.ANSWERED))
    return Group(sample, tuple(made))


def measure(args: argparse.Namespace) -> dict[str, float]:
    """What this rank got and holds."""
    ranks = joined()
    Counted.whole = args.way == "whole"
    counted = Counted(ranks.rank, ranks.size, ranks.post)
    vlm = load("tiny", max_pixels=args.max_pixels)
    samples = [
        Sample(id=str(place), question="Which letter is on the sign?", images=(Picture.open(path),))
        for place, path in enumerate(sorted(Path(args.folder).glob("*.jpg")))
    ]
    learned(vlm, list(play(Sample(id="warm", question="?", images=(small(),)), 1, (5,)).rollouts))
    start = memory_bytes("VmRSS")

    def work(mine: list[Sample]) -> Sequence[Group]:
        return [play(one, args.rollouts, (5,) * WORDS[int(one.id) % len(WORDS)]) for one in mine]

    groups = counted.each(samples, work)
    learned(vlm, [one.rollout for one in my_share([Signal(one) for group in groups for one in group.rollouts], ranks)])
    if ranks.is_first:
        for one in groups[0].rollouts:
            for picture in one.pictures:
                picture.rgb()
    assert ranks.post is not None
    grown = {"held": memory_bytes("VmRSS") - start, "peak": memory_bytes("VmHWM") - start}
    ranks.wait()
    return {"records": counted.got, "pixels": ranks.post.bytes_got, **grown}


def small() -> Picture:
    return Picture.of(np.zeros((120, 160, 3), np.uint8))


def learned(vlm: Any, rollouts: list[Rollout]) -> None:
    for one in rollouts:
        rendered = vlm.renderer.render(one.view, one.turns)
        for span in (*rendered.prompt.visuals, *rendered.suffix.visuals):
            vlm.renderer.patches(span.item)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--side", type=int, default=4000, help="longer side of a photograph in px")
    parser.add_argument("--prompts", type=int, default=4, help="photographs")
    parser.add_argument("--rollouts", type=int, default=16, help="of each")
    parser.add_argument("--max-pixels", type=int, default=1 << 20, help="of a picture in the model's eyes")
    parser.add_argument("--small", action="store_true", help="800 px, 4 rollouts each")
    parser.add_argument("--way", choices=("names", "whole"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.small:
        args.side, args.rollouts, args.max_pixels = 800, 4, 1 << 18
    if args.way:
        found = measure(args)
        Path(args.folder, f"{args.way}-{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        for place in range(args.prompts):
            photograph(Path(folder, f"{place}.jpg"), args.side, place)
        given = ["--side", args.side, "--rollouts", args.rollouts, "--max-pixels", args.max_pixels, "--folder", folder, "--way"]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(args.ranks)]
        seen = {}
        for way in ("names", "whole"):
            subprocess.run([sys.executable, *launcher, __file__, *map(str, given), way], check=True, stderr=subprocess.DEVNULL)
            seen[way] = [json.loads(Path(folder, f"{way}-{rank}.json").read_text()) for rank in range(args.ranks)]
    count = args.prompts * args.rollouts
    print(f"{args.ranks} ranks, {count} rollouts over {args.prompts} photographs of {args.side} x {args.side * 3 // 4} px")
    columns = ("wire", "records", "pixels", "held", "peak")
    print("MiB per rollout".ljust(16) + "".join(name.rjust(10) for name in columns))
    most: dict[str, list[float]] = {}
    for way, each in seen.items():
        each = [{"wire": one["records"] + one["pixels"], **one} for one in each]
        most[way] = [max(one[name] for one in each) / count / 2**20 for name in columns]
        print(way.ljust(16) + "".join(f"{value:10.3f}" for value in most[way]))
    ratios = [whole / max(1e-9, names) for whole, names in zip(most["whole"], most["names"], strict=True)]
    print("ratio".ljust(16) + "".join(f"{ratios[place]:10.1f}" if place in (0, 3, 4) else " " * 10 for place in range(5)))


if __name__ == "__main__":
    main()
