"""One rollout on somebody's own picture, to read and to look at; and many of them, filtered, to learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ImageDraw

from .datasets.curriculum import Shuffled
from .datasets.presets import TINY_TOOLS
from .datasets.spec import load_data
from .rewards.combine import RewardSpec, score_group
from .train.collect import Task
from .train.config import RunConfig
from .train.protocols import Protocols
from .train.recorder import write_atomically
from .train.rejection import Filters, RejectionReport, sample_and_filter
from .visual_tools.spec import ToolsSpec, build_toolbox
from .vlm.generate import HFEngine, Sampling
from .vlm.images import Picture
from .vlm.load import VLM, load
from .vlm.messages import Clip, Message, to_json
from .vlm.records import Group, Rollout, Sample, View
from .vlm.rollout import Limits, Rules, rollout
from .vlm.video import read_clip

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Shot:
    """What `play` made: the rollout, and the files of the pictures in the order in which the model saw them."""

    rollout: Rollout
    files: tuple[Path, ...]
    seen_px: tuple[tuple[int, int], ...] = field(default=())


def open_visual(path: Path, frames: int) -> Picture | Clip:
    """The picture, or a clip of ``frames`` frames of the video, in a file."""
    if path.suffix.lower() in VIDEOS:
        return read_clip(path, fps=1000.0, max_frames=frames)
    return Picture.open(path)


def play(
    model: str,
    visuals: Sequence[Picture | Clip],
    question: str,
    folder: Path,
    *,
    tools: ToolsSpec,
    system: str | None,
    turns: int,
    sampling: Sampling,
    seed: int,
    max_pixels: int | None,
    device: str = "auto",
) -> Shot:
    """Let the model look at the pictures with its tools; write the pictures, with the regions that it used, and the turns."""
    vlm = load(model, max_pixels=max_pixels, device=device)
    toolbox = build_toolbox(tools, vlm.family.coords)
    offered = TINY_TOOLS if system is None and model == "tiny" else toolbox.system_prompt if system is None else system
    head = (Message.system(offered),) if offered else ()
    view = View("student", (*head, Message.user(*visuals, question)), "cli")
    sample = Sample(id="own", question=question)
    engine = HFEngine(vlm)
    groups = rollout(
        [(sample, view)], engine, vlm.renderer, n=1, sampling=sampling, seed=seed,
        rules=Rules(toolbox if turns > 1 else None, Limits(turns=turns)),
    )  # fmt: skip
    played = groups[0].rollouts[0]
    return _written(played, vlm, folder)


def _written(played: Rollout, vlm: VLM, folder: Path) -> Shot:
    folder.mkdir(parents=True, exist_ok=True)
    items = [vlm.renderer.item(picture) for picture in played.pictures]
    used: dict[int, list[tuple[float, float, float, float]]] = {}
    for call in played.calls:
        if call.image is not None and call.box_px_xyxy is not None:
            used.setdefault(call.image, []).append(call.box_px_xyxy)
    files = []
    for place, picture in enumerate(played.pictures):
        path = folder / f"{place}-{'prompt' if place < len(played.view.pictures) else 'tool'}.png"
        image = picture.rgb().copy()
        draw, width = ImageDraw.Draw(image), max(2, round(min(image.size) / 150))
        for box in used.get(place, []):
            draw.rectangle(box, outline=(255, 0, 90), width=width)
        image.save(path)
        files.append(path)
    names = {picture.key: path.name for picture, path in zip(played.pictures, files, strict=True)}
    seen = {picture.key: (item.width_px, item.height_px) for picture, item in zip(played.pictures, items, strict=True)}

    def chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
        return to_json(messages, lambda picture: names[picture.key], lambda picture: seen[picture.key])

    rows = [
        {
            "text": turn.text,
            "stop": turn.stop.value,
            "calls": [dict(call.__dict__) for call in turn.calls],
            "observation": None if turn.observation is None else chat([turn.observation])[0],
        }
        for turn in played.turns
    ]
    story = {"stop": played.stop.value, "prompt": chat(played.view.messages), "turns": rows}
    write_atomically(folder / "rollout.json", json.dumps(story, indent=1, ensure_ascii=False) + "\n")
    return Shot(played, tuple(files), tuple((item.width_px, item.height_px) for item in items))


def collect_own(config: RunConfig, target: Path, filters: Filters, reward: RewardSpec, limit: int | None) -> RejectionReport:
    """Rejection sampling with a recipe's model, data, view and tools: the kept trajectories go to ``target``."""
    vlm = load(config.model.name, max_pixels=config.model.max_pixels, device=config.model.device)
    engine = HFEngine(vlm)
    limits = Limits(turns=config.sampling.max_turns, **config.limits.model_dump())
    protocols = Protocols(config.tools, config.protocols, limits, vlm.family.coords)
    samples = load_data(config.data)
    sampling = Sampling(config.sampling.temperature, config.sampling.top_p, config.sampling.top_k, config.sampling.max_new_tokens)
    task = Task(
        "own", samples, Shuffled(samples, config.seed, 1), config.student, 1, config.rollouts, config.sampling, config.seed,
        protocols, config.leak_check,
    )  # fmt: skip

    def played(chunk: Sequence[Sample]) -> list[Group]:
        pairs = [(sample, task.view_of(sample)) for sample in chunk]
        groups = rollout(
            pairs, engine, vlm.renderer, n=config.rollouts, sampling=sampling, seed=config.seed, rules=protocols.rules
        )
        return [score_group(group, reward) for group in groups]

    about = {"recipe": config.name, "model": config.model.name, "seed": config.seed, "rollouts": config.rollouts}
    chosen = (samples[place] for place in range(min(len(samples), limit or len(samples))))
    return sample_and_filter(chosen, played, filters, target, about=about)
