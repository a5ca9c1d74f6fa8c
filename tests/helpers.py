"""Small things that several tests make: pictures, samples, scripted rollouts."""

from __future__ import annotations

import numpy as np

from foveate.visual_tools.boxes import Coords
from foveate.visual_tools.spec import ToolsSpec, build_toolbox
from foveate.visual_tools.toolbox import Toolbox
from foveate.vlm.images import Picture
from foveate.vlm.load import VLM
from foveate.vlm.messages import Message
from foveate.vlm.records import Rollout, StopReason, Turn, View


def picture(seed: int, width: int = 56, height: int = 56) -> Picture:
    """Noise of a given size."""
    return Picture.of(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def view_of(*parts: Picture | str, role: str = "student") -> View:
    """One user message."""
    return View(role=role, messages=(Message("user", parts),))  # type: ignore[arg-type]


def turn(vlm: VLM, text: str, observation: Message | None = None) -> Turn:
    """A scripted action that ends its turn."""
    ids = (*vlm.renderer.encode(text), vlm.renderer.stop_ids[0])
    stop = StopReason.ANSWERED if observation is None else StopReason.TOOL_CALL
    return Turn(ids, tuple(-0.1 * (k + 1) for k in range(len(ids))), text, stop, observation)


def scripted(vlm: VLM, view: View, num_tools: int, index: int = 0, group: str = "g", answer: str = "the answer is K") -> Rollout:
    """A rollout with ``num_tools`` tool turns, a picture of its own size in each observation, then an answer."""
    turns = [
        turn(
            vlm,
            f"zoom {index} {n}",
            Message.user("<tool_response>", picture(100 * index + n, 56 + 28 * n, 56), "</tool_response>"),
        )
        for n in range(num_tools)
    ]
    turns.append(turn(vlm, f"{answer} {index}"))
    return Rollout("s", group, index, view, tuple(turns), StopReason.ANSWERED)


def zoom_toolbox(coords: Coords = "norm1000", grey: bool = False) -> Toolbox:
    """The zoom alone, in the Hermes dialect: what the embedded tiny model uses."""
    return build_toolbox(ToolsSpec(coords=coords, ablate="grey" if grey else "none"))
