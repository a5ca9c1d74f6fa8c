"""Builds the embedded tiny model from nothing: synthetic scenes, supervised, in phases, on one CPU core.

    python -m foveate tiny build --out FOLDER [--seed 0]

Phases (docs/tiny.md says why each is there): read crops; find places, with auxiliary losses that are thrown away at the end;
join the executed zoom; look at letters on full views; scenes in words; cool down. Every scene is drawn once.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.scenes import COLOURS
from ..vlm.tiny.create import make_model, make_processor, make_tokenizer, save
from .tiny_data import Maker, Row, corpus
from .tiny_eval import checks, key_accuracy, skills
from .tiny_model import Tokens, loss

MAX_MERGES = 236  # 256 bytes + 236 merges + 20 added tokens = a vocabulary of 512
AUX_WEIGHT = 0.5
FIRST_SCENE = 5 * 10**11  # in the training split, beyond the streams that recipes draw from
AUX_OUTPUTS = 4 * 9 + 16 + 16 + 10
"""Per vision token: the colour (eight, or none) of its four patches and its own index among 16. Per token of the question that
names the object: its place among the 16 vision tokens, and its letter."""

SKILLS: dict[str, Callable[[Maker, int, Mapping[int, float]], list[Row]]] = {
    "crop": lambda maker, num, odds: maker.crop("detail", num),
    "place_crop": lambda maker, num, odds: maker.crop("place", num),
    "full": lambda maker, num, odds: maker.full("detail", num),
    "direct": lambda maker, num, odds: maker.full("place", num),
    "where": lambda maker, num, odds: [
        *maker.full("place", num, 5, ("where",), odds), *maker.full("detail", num // 2, 4, ("where",))
    ],
    "locate": lambda maker, num, odds: maker.locate(num, odds),
    "two_turn": lambda maker, num, odds: maker.two_turn(num),
    "imagine_place": lambda maker, num, odds: maker.imagine("place", num),
    "imagine": lambda maker, num, odds: maker.imagine("detail", num),
    "text": lambda maker, num, odds: maker.text(num),
}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """``mix`` counts rows of each skill per step (scenes, for skills on full views). ``objects`` is a schedule for "locate":
    (from this fraction of the phase, odds of each number of objects)."""

    name: str
    steps: int
    mix: Mapping[str, int]
    objects: tuple[tuple[float, Mapping[int, float]], ...] = ((0.0, {5: 1.0}),)
    scale_positions: float = 1.0
    """The vision tower's position embeddings are multiplied by this once, when the phase starts."""
    muon_lr: float = 0.01
    adamw_lr: float = 1.2e-3
    warmup: int = 30
    decay: float = 0.0
    """Share of the steps at the end over which the learning rates fall linearly."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """The phase ends early once every quick check named here is reached (looked at every ``check_every`` steps). The only
    phase with targets is the one that decides the accuracy on full views: time would not, the rise is too steep."""
    check_every: int = 40


ONE_TO_FIVE = (
    (0.0, {1: 0.35, 2: 0.25, 3: 0.2, 5: 0.2}),
    (0.35, {1: 0.15, 2: 0.2, 3: 0.25, 5: 0.4}),
    (0.65, {1: 0.03, 2: 0.07, 3: 0.1, 5: 0.8}),
)
MOSTLY_FIVE = ((0.0, {1: 0.1, 2: 0.1, 3: 0.1, 5: 0.7}), (0.4, {1: 0.03, 2: 0.07, 3: 0.1, 5: 0.8}))

PHASES = (
    Phase(name="read", steps=360, mix={"crop": 40, "place_crop": 8}, muon_lr=0.012, adamw_lr=1.5e-3),
    Phase(
        name="find", steps=320, mix={"where": 12, "locate": 4, "full": 2, "crop": 10, "place_crop": 10, "text": 24},
        objects=ONE_TO_FIVE, scale_positions=3.0, decay=0.3,
    ),
    Phase(
        name="join", steps=320, objects=MOSTLY_FIVE, decay=0.35,
        mix={
            "crop": 8, "place_crop": 12, "full": 1, "direct": 1, "locate": 5, "two_turn": 8, "imagine": 2, "imagine_place": 1,
            "where": 1, "text": 12,
        },
    ),
    Phase(
        name="look", steps=400, targets={"full": 0.65, "imagine": 0.45}, check_every=10, muon_lr=0.009,
        mix={"crop": 6, "place_crop": 6, "full": 6, "direct": 1, "locate": 2, "two_turn": 5, "imagine": 6, "where": 1},
    ),
    Phase(
        name="words", steps=80, targets={"text": 0.9}, check_every=10,
        mix={"crop": 3, "place_crop": 4, "two_turn": 2, "text": 64},
    ),
    Phase(
        name="cool", steps=80, decay=1.0, warmup=1, muon_lr=0.008, adamw_lr=1e-3, check_every=10,
        mix={
            "crop": 8, "place_crop": 8, "full": 2, "direct": 1, "locate": 4, "two_turn": 6, "imagine": 3, "where": 1, "text": 16,
        },
    ),
)  # fmt: skip


def optimizers(model: Any, head: torch.nn.Linear, phase: Phase) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest (embeddings, norms, biases, the patch kernel) and the auxiliary head."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_hidden = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if is_hidden else others).append(parameter)
    groups = [{"params": others, "lr": phase.adamw_lr}, {"params": list(head.parameters()), "lr": 2 * phase.adamw_lr}]
    return [
        torch.optim.Muon(matrices, lr=phase.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate(step: int, phase: Phase) -> float:
    """Learning-rate factor: linear warm-up, flat, linear fall to 3% over the last ``phase.decay`` of the steps."""
    rise = min(1.0, (step + 1) / phase.warmup)
    left = (phase.steps - step) / max(1.0, phase.decay * phase.steps)
    return rise * (max(0.03, min(1.0, left)) if phase.decay else 1.0)


def run_phase(
    model: Any, head: torch.nn.Linear, tokens: Tokens, maker: Maker, phase: Phase, held_out: Mapping[str, list[Row]],
    report: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """One phase, in place. Skills are micro-batches of one step; each counts equally per row of its key tokens."""
    if phase.scale_positions != 1.0:
        with torch.no_grad():
            model.model.visual.pos_embed.weight.mul_(phase.scale_positions)
    chosen = optimizers(model, head, phase)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in chosen]
    seen: dict[str, float] = {}
    word_ids = torch.tensor([tokens.encode(f" {colour}")[0][0] for colour in COLOURS])
    for step in range(phase.steps):
        odds = [odds for start, odds in phase.objects if step >= start * phase.steps][-1]
        micro = {name: SKILLS[name](maker, num, odds) for name, num in phase.mix.items()}
        total = sum(len(rows) for rows in micro.values())
        for optimizer in chosen:
            optimizer.zero_grad(set_to_none=True)
        for name, rows in micro.items():
            value, accuracy, aux = loss(model, tokens.batch(rows), tokens.image_id, head, word_ids)
            ((value + AUX_WEIGHT * aux) * (len(rows) / total)).backward()
            for mark, number in ((name, accuracy), (f"{name}/aux", float(aux.detach()))):
                seen[mark] = 0.9 * seen.get(mark, number) + 0.1 * number
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rates in zip(chosen, base, strict=True):
            for group, value_lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = value_lr * rate(step, phase)
            optimizer.step()
        if (step + 1) % phase.check_every == 0 or step + 1 == phase.steps:
            measured = {name: key_accuracy(model, tokens, rows) for name, rows in held_out.items()}
            report({"phase": phase.name, "step": step + 1, "train": dict(seen), "dev": measured})
            if phase.targets and all(measured[name] >= value for name, value in phase.targets.items()):
                break


def build(
    out: Path, *, seed: int = 0, phases: tuple[Phase, ...] = PHASES, start: Path | None = None, num_test: int = 1024,
    echo: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Train, write the model in fp16 to ``out``, load it back and measure every skill; writes and returns meta.json.

    ``start`` continues from a state saved by an earlier build (``<out>/<phase>.pt``) with the given phases.
    """
    if not 0 <= seed < 500:
        raise ValueError(f"seed {seed}: expected 0 to 499, each of which has its own training scenes")
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(corpus(), MAX_MERGES)
    model: Any = make_model(tokenizer, seed=seed)
    processor, tokens = make_processor(tokenizer), Tokens(tokenizer)
    head = torch.nn.Linear(model.config.text_config.hidden_size, AUX_OUTPUTS)
    maker = Maker(seed, FIRST_SCENE + seed * 10**9)
    if start is not None:
        state = torch.load(start, weights_only=True)
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        maker.next_scene = int(state["next_scene"])
    out.mkdir(parents=True, exist_ok=True)
    curve: list[dict[str, Any]] = []
    wall, core = time.time(), time.process_time()

    def report(entry: dict[str, Any]) -> None:
        entry = {**entry, "core_s": round(time.process_time() - core), "wall_s": round(time.time() - wall)}
        curve.append(entry)
        with (out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        numbers = " ".join(f"{name} {value:.3f}" for name, value in entry["dev"].items())
        train = " ".join(f"{name} {value:.2f}" for name, value in entry["train"].items())
        echo(f"{entry['phase']} {entry['step']} {entry['core_s']}s | {numbers} | {train}")

    held_out = checks()
    for phase in phases:
        maker.rng = np.random.default_rng([3, seed, zlib.crc32(phase.name.encode())])  # a continued build equals a whole one
        run_phase(model, head, tokens, maker, phase, held_out, report)
        state = {"model": model.state_dict(), "head": head.state_dict(), "next_scene": maker.next_scene}
        torch.save(state, out / f"{phase.name}.pt")
    seconds = {"core_s": round(time.process_time() - core), "wall_s": round(time.time() - wall)}
    save(model, processor, out)
    meta = {"seed": seed, **seconds, **measure(out, num_test), "phases": [asdict(phase) for phase in phases], "curve": curve}
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return meta


def measure(folder: Path, num: int = 1024) -> dict[str, Any]:
    """The skills of the saved fp16 model, computed in fp32 (what rounding to fp16 has cost is therefore included)."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    table = skills(model, Tokens(AutoTokenizer.from_pretrained(folder)), num=num)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "num_test": num, "skills": table}
