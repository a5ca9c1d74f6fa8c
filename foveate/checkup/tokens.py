"""Whether the model's own processor sees the pictures and the chat as the renderer does.

A vLLM server, an evaluation harness or a user of the trained model goes through that processor. Where it makes other image tokens
of a picture, they run another model than the one that was trained.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..vlm.families.base import IMAGE_PAD
from ..vlm.folder import copy_processor
from ..vlm.images import Picture
from ..vlm.messages import Message
from ..vlm.render import Renderer
from .findings import Finding
from .model import Known

SIZES_PX = ((64, 48), (336, 336), (640, 480), (1000, 300), (1920, 1080), (4000, 3000))
"""Width and height of the pictures that are compared: from below the least to above the largest budget."""


def token_findings(model: Known, chosen: bool = False) -> Iterator[Finding]:
    """Image tokens of several sizes, then a whole chat: by the folder's processor, and by the one that checkpoints will carry.

    ``chosen``: the recipe sets a pixel budget of its own, so that the folder's processor may have another.
    """
    import transformers

    try:
        own = transformers.AutoProcessor.from_pretrained(model.folder)
    except (ValueError, OSError, ImportError) as error:
        yield Finding(
            "image tokens", f"the processor of {model.folder} cannot be loaded: {str(error).splitlines()[0]}", "yellow",
            "a processor beside the weights", "copy preprocessor_config.json and the tokenizer files of the model there",
        )  # fmt: skip
        return
    finding = image_tokens(model.renderer, own.image_processor, f"the processor of {model.name}")
    yield dataclasses.replace(finding, level="yellow") if chosen and finding.ok is False else finding
    with tempfile.TemporaryDirectory(prefix="foveate-doctor-") as folder:
        copy_processor(model.renderer, model.folder, Path(folder))
        written = transformers.AutoProcessor.from_pretrained(folder)
    finding = image_tokens(model.renderer, written.image_processor, "the processor that checkpoints carry")
    if finding.ok is False:
        yield finding
    yield chat_tokens(model.renderer, own, written)


def image_tokens(renderer: Renderer, processor: Any, whose: str, sizes_px: Sequence[tuple[int, int]] = SIZES_PX) -> Finding:
    """The same number of image tokens for pictures of every size?"""
    topic = "image tokens"
    differ = []
    for width, height in sizes_px:
        picture = Picture.of(np.zeros((height, width, 3), np.uint8))
        ours = renderer.item(picture).num_tokens
        grid = processor(images=[picture.rgb()], return_tensors="np")["image_grid_thw"][0]
        theirs = int(np.prod(grid)) // renderer.image.merge_size**2
        if ours != theirs:
            differ.append(f"{width} x {height} px: {ours} here, {theirs} there")
    mine, other = renderer.budget, _budget(processor)
    budget = f"{mine.min_pixels:,} to {mine.max_pixels:,} px"
    if not differ:
        return Finding(topic, f"{whose} makes as many of {len(sizes_px)} sizes of pictures ({budget})", "green")
    return Finding(
        topic, f"{whose} has another pixel budget ({other[0]:,} to {other[1]:,} px): {'; '.join(differ)}", "red",
        f"the budget of this run, {budget}",
        f"set model: {{min_pixels: {other[0]}, max_pixels: {other[1]}}} in the recipe, or give whoever plays this model a "
        "checkpoint of the run, whose processor has the run's budget",
    )  # fmt: skip


def _budget(processor: Any) -> tuple[int, int]:
    """Bounds in px as the processor uses them."""
    size = dict(processor.size)
    return int(size.get("shortest_edge") or size.get("min_pixels") or 0), int(
        size.get("longest_edge") or size.get("max_pixels") or 0
    )


def chat_tokens(renderer: Renderer, own: Any, written: Any) -> Finding:
    """A question about a picture, an answer, and a tool's reply with a picture: the same text and the same ids?

    ``own`` is the folder's processor, whose template is compared; ``written`` the checkpoints', which has the run's pixel budget.
    """
    topic = "chat template"
    picture = Picture.of(np.zeros((60, 90, 3), np.uint8))
    messages = (Message.user(picture, "What is there?"), Message.assistant("A call."), Message.user("Reply:", picture))
    chat = [
        {
            "role": message.role,
            "content": [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in message.parts],
        }
        for message in messages
    ]
    ours = renderer.prompt(messages).ids_T.tolist()
    for whose, processor in (("the processor's", own), ("the one that checkpoints carry", written)):
        if processor.chat_template is None:
            return Finding(
                topic, f"{whose} processor has none; the renderer writes plain ChatML", "yellow", "one template",
                "add chat_template.jinja to the model's folder",
            )  # fmt: skip
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        # the checkpoints' processor makes the ids, so that only the template can differ here
        theirs = written(text=[text], images=[picture.rgb()] * text.count(IMAGE_PAD))["input_ids"][0]
        if list(theirs) != ours:
            at = next((n for n, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
            return Finding(
                topic,
                f"{whose} template writes the same chat as {len(theirs)} tokens, the tokenizer's as {len(ours)}; the first that "
                f"differs is number {at}: {_around(renderer, theirs, at)!r} there, {_around(renderer, ours, at)!r} here",
                "red", "one template",
                "remove the one that is not the model's own (chat_template.json, .jinja, or in tokenizer_config.json)",
            )  # fmt: skip
    return Finding(topic, f"processor and renderer write the same {len(ours)} tokens for a chat with a tool's picture", "green")


def _around(renderer: Renderer, ids: Sequence[int], at: int) -> str:
    return str(renderer.tokenizer.decode(list(ids[max(0, at - 2) : at + 4]), skip_special_tokens=False))
