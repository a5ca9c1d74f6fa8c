"""What `test_distributed` starts on every rank, and in one process for comparison: ``distributed_worker.py FOLDER CASE...``.

Each case trains a run in ``FOLDER/CASE`` and leaves what it measured in ``metrics.jsonl``, or in ``steps.json``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from foveate.launched import leave
from foveate.train import lora
from foveate.train.config import RunConfig
from foveate.train.loop import learn, train
from foveate.train.ranks import joined
from foveate.train.recipes import load_recipe
from foveate.train.run import Run
from foveate.vlm.engines import CopyEngine
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM, save
from foveate.vlm.messages import Message
from foveate.vlm.records import Rollout, Signal, StopReason, Turn, View

SMALL = [
    "steps=3", "prompts=3", "threads=1", "checkpoint.every=1", "checkpoint.keep_last=9", "eval=null", "checkpoint.best_view=null",
    "loggers=[]", "anchors.0.prompts=1", "anchors.1.prompts=1", "anchors.1.pool=2", "anchors.1.max_new_tokens=12",
    "optimizer.name=adamw", "optimizer.warmup_steps=0", "optimizer.lr=0.001",
]  # fmt: skip
EMA = ["teacher.weights=ema", "teacher.rate=0.3"]
LORA = ["model.lora.rank=4", "optimizer.lr=0.005"]
ZERO = {
    0: [],
    1: ["distributed.zero=1"],
    2: ["distributed.zero=2"],
    3: ["distributed.zero=3", "distributed.settings={stage3_param_persistence_threshold: 0}"],
}


def config_of(case: str, folder: Path) -> RunConfig:
    """The recipe of a case such as ``opd-3``: what is learned, and ZeRO's stage."""
    kind, stage = case.rsplit("-", 1)
    kinds = {
        "opd": ("tiny/vision_opd", EMA),
        # teachers: the frozen base, or an average of the adapters, which is put in their place; under dora the tower is frozen
        "lora": ("tiny/vision_opd", [*LORA, "model.lora.rslora=true"]),
        "dora": (
            "tiny/vision_opd",
            [*LORA, "optimizer.lr=0.02", "model.lora.dora=true", "model.lora.targets=[language]", *EMA],
        ),
        "merge": ("tiny/vision_opd", ["model.lora.rank=3", f"model.name={folder / 'lora-0'}"]),
        "qlora": ("tiny/vision_opd", [*LORA, "model.lora.quantize=4bit", "anchors=[]"]),
        "mixedlora": (
            "tiny/vision_opd",
            [*LORA, *EMA, "optimizer.lr=0.002", "model.gradient_checkpointing=true", "anchors=[]", "micro_tokens=160"],
        ),
        "current": ("tiny/vision_opd", ["teacher.weights=current", "teacher.accept_collapse=true", "anchors=[]"]),
        "grpo": ("tiny/grpo", ["prompts=6", "updates_per_step=2", "signals.0.correction=truncate"]),
        "offload": (
            "tiny/vision_opd",
            [*EMA, f"distributed.offload={'all' if stage == '3' else 'optimizer'}"],
        ),
        "copy": ("tiny/vision_opd", ["teacher.offload=host"]),
        "host": ("tiny/vision_opd", [*EMA, "teacher.offload=host"]),
        "stop": ("tiny/sft", ["steps=400", "prompts=3", "anchors=[]", "checkpoint.every=1000"]),
        "mixed": (
            "tiny/vision_opd",
            ["teacher.weights=current", "teacher.accept_collapse=true", "anchors=[]", "micro_tokens=160"],
        ),
    }
    recipe, changes = kinds[kind]
    return load_recipe(recipe, [*SMALL, *changes, *ZERO[int(stage)]])


def taught(run: Run, name: str, pictures: int, words: int, seed: int, kd: bool = False) -> Signal:
    """A rollout of ``words`` tokens behind a prompt with so many pictures, learned by cross-entropy or from the teacher."""
    rng = np.random.default_rng(seed)
    shown = [Picture.of(rng.integers(0, 255, (28, 28, 3), dtype=np.uint8)) for _ in range(pictures)]
    ids = tuple(int(one) for one in run.vlm.renderer.encode("one two three four five six seven eight")[:words])
    turn = Turn(ids, (-1.0,) * len(ids), "", StopReason.ANSWERED)
    rollout = Rollout(name, name, 0, View("student", (Message.user(*shown, f"What is {name}?"),)), (turn,), StopReason.ANSWERED)
    ones_NK = ((1.0,) * len(ids),)
    if kd:
        teacher = View("teacher", (Message.user(*shown, *shown, f"Look: {name}?"),))
        return Signal(rollout, kd_weights_NK=ones_NK, teacher_view=teacher, stream="distill")
    return Signal(rollout, ce_weights_NK=ones_NK, stream="distill")


def mixed(run: Run) -> list[list[Signal]]:
    """Steps in which ranks differ: the longest group goes to rank 0, the next to rank 1."""

    def one(name: str, pictures: int, words: int, kd: bool = False) -> Signal:
        return taught(run, name, pictures, words, len(name), kd)

    return [
        [one("picture", 1, 8), one("text", 0, 7)],  # rank 0 has a picture, rank 1 text only
        [one("text", 0, 8), one("picture", 1, 7)],
        [one("alone", 1, 8)],  # rank 1 has nothing to learn
        [one("a", 1, 8), one("bb", 0, 3), one("ccc", 0, 3), one("dddd", 1, 2)],  # one micro-batch and three
        [one("kd", 1, 8, kd=True), one("plain", 0, 7)],  # only rank 0 asks the teacher, and only in its view are pictures
        [one("text again", 0, 8), one("kd text", 0, 7, kd=True)],
    ]


class Taker(CopyEngine):
    """An engine that keeps what it is handed and samples nothing."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.vlm.renderer, run.vlm.model.config.image_token_id)
        self.taken: dict[str, Tensor] = {}

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.taken = {name: tensor.detach().clone().contiguous() for name, tensor in weights}

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError

    def close(self) -> None:
        self.taken = {}


def step_by_step(folder: Path, case: str) -> None:
    """The mixed steps; the loss, the norm and the means of each. Behind the last but one an engine gets the weights: what it got
    from rank 0 is written, and so are all weights that no optimizer may move."""
    run = Run(config_of(case, folder), folder / case)
    frozen = {name: one.detach().clone() for name, one in run.vlm.model.named_parameters() if not one.requires_grad}
    engine = run.engine = Taker(run)
    rows: list[dict[str, float]] = []
    steps = mixed(run)
    for number, signals in enumerate(steps, 1):
        found, values = learn(run, signals)
        rows.append({**values, **found.tally.means()})
        if number == len(steps) - 1:
            run.sync()
            if run.ranks.size > 1:  # one process alone never imports DeepSpeed, and accelerate does when transformers saves
                run.save()
    with run.spread.whole():
        moved = [name for name, one in run.vlm.model.named_parameters() if name in frozen and not torch.equal(one, frozen[name])]
    rows.append({"frozen": len(frozen), "moved": len(moved)})
    if run.ranks.is_first:
        save_file(engine.taken, folder / case / "synced.safetensors")
        (folder / case / "steps.json").write_text(json.dumps(rows))


def one_copy(folder: Path, case: str) -> None:
    """Every rank writes its mark into a weight of the teacher, and rank 0 leaves what it then finds."""
    run = Run(config_of(case, folder), folder / case)
    assert run.teacher is not None
    weights = list(run.teacher.vlm.model.parameters())
    same = all(bool(torch.equal(mine, theirs)) for mine, theirs in zip(weights, run.vlm.model.parameters(), strict=True))
    run.ranks.wait()
    weights[0].flatten()[run.ranks.rank] = 100.0 + run.ranks.rank
    run.ranks.wait()
    found = {"marks": weights[0].flatten()[: run.ranks.size].tolist(), "same": run.ranks.gather(same)}
    if run.ranks.is_first:
        (folder / case / "found.json").write_text(json.dumps(found))


def pictures(folder: Path, case: str) -> None:
    """Two groups, one played by each rank: a zoom into a photograph and a mirrored copy of it. What a rank reads, and how much it
    has got for that from the other, step by step, in ``rank_N.json``."""
    ranks, run = joined(), folder / case
    assert ranks.post is not None

    def prepare() -> None:
        run.mkdir(parents=True)
        for place in range(2):
            noise = np.random.default_rng(place).integers(0, 255, (60, 80, 3), dtype=np.uint8)
            Picture.of(noise).rgb().save(run / f"photo_{place}.png")

    ranks.first(prepare)

    def played(mine: list[int]) -> list[Rollout]:
        made = []
        for place in mine:
            photo = Picture.open(run / f"photo_{place}.png")
            zoom = Picture.cut(photo, (10, 5, 50, 35), (40, 30))
            mirrored = Picture.of(np.asarray(zoom.rgb())[:, ::-1])
            turn = Turn((5,), (-1.0,), "", StopReason.TOOL_CALL, Message.user(zoom, mirrored))
            made.append(Rollout(f"{place}", f"g{place}", 0, View("student", (Message.user(photo),)), (turn,), StopReason.TURNS))
        return made

    rows: list[Any] = []

    def note(what: str, shown: Sequence[Picture]) -> None:
        rows.append([what, [hashlib.sha256(one.rgb().tobytes()).hexdigest() for one in shown], ranks.post.bytes_got])

    own: list[Rollout] = []
    rollouts = ranks.each([0, 1], lambda mine: own.extend(played(mine)) or own)  # type: ignore[func-returns-value]
    assert rollouts[ranks.rank] is own.pop(), "its own are not copied"
    note("gathered", [])
    if not ranks.is_first:
        note("of rank 0", rollouts[0].pictures)  # rank 0 learns from none of rank 1's
    ranks.wait()
    mirrored = rollouts[1].pictures[2]
    said = ranks.first(lambda: Message.user(mirrored, Picture.of(np.zeros((30, 40, 3), np.uint8))))
    note("said by rank 0", said.pictures)
    del rollouts
    ranks.wait()
    again = ranks.gather(played([1 - ranks.rank])[0])  # the other way round, when the first are forgotten
    note("again", [one for rollout in again for one in rollout.pictures])
    ranks.wait()
    (run / f"rank_{ranks.rank}.json").write_text(json.dumps(rows))


def merging(folder: Path, case: str) -> None:
    """A run that starts from an adapter of other settings; says which ranks have written the base. Rank 1 comes late."""

    def counted(vlm: VLM, to: Path) -> None:
        with (folder / case / "merges.txt").open("a") as file:
            file.write(f"rank {joined().rank}\n")
        save(vlm, to)

    (folder / case).mkdir(exist_ok=True)
    lora.save = counted
    late = time.monotonic() + 2.0 * joined().rank
    while time.monotonic() < late and not (folder / case / "base").exists():
        time.sleep(0.05)
    train(config_of(case, folder), folder / case)
    lora.save = save


def main(folder: Path, cases: Sequence[str]) -> None:
    """Every case in turn."""
    works: dict[str, Callable[[Path, str], Any]] = {
        "mixed": step_by_step, "mixedlora": step_by_step, "merge": merging, "copy": one_copy, "pictures": pictures,
    }  # fmt: skip
    for case in cases:
        work = works.get(case.rsplit("-", 1)[0])
        if work is not None:
            work(folder, case)
        else:
            train(config_of(case, folder), folder / case)
        joined().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    leave(0)
