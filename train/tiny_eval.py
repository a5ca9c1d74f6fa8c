"""What the tiny model can do, measured by greedy decoding on scenes that no training step has drawn.

A zoom is really carried out: the box is parsed out of the model's own call, cut from the full-resolution scene, resized and
shown back. Three ablations tell looking from guessing: the crop turned grey, the true box, and the crop of another object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets.scene_questions import IMAGINE_SYSTEM, TOOLS_SYSTEM, questions
from ..datasets.scenes import Scene, SceneObject, scene, split_seeds
from .tiny_data import Maker, Row, answer_reply, cut, observation_text, padded_box, prompt_text, resized, window_px
from .tiny_model import Tokens, embed, hidden

_ANSWER = re.compile(r"<answer>([^<]*)</answer>")
_CALL = re.compile(r"<tool_call>\n(.*)\n</tool_call>")
_IMAGINED = re.compile(r"I zoom in on the (.+) at (.+)\. It shows (.)\. <answer>(.)</answer>")


@dataclass
class Case:
    """A held-out question with its scene."""

    scene: Scene
    pixels: np.ndarray
    item: SceneObject
    question: str
    answer: str


def cases(world: str, split: str, num: int, seed: int, per_scene: int = 2) -> list[Case]:
    """``num`` letter questions, two a scene, from the seeds of a split that training never draws."""
    made: list[Case] = []
    for scene_seed in split_seeds(split, seed):
        if len(made) >= num:
            break
        picture = scene(world, scene_seed)
        pixels = picture.draw()
        for question in questions(picture, ("letter",), per_scene):
            made.append(Case(picture, pixels, picture.objects[question.targets[0]], question.text, question.answer))
    return made[:num]


@torch.no_grad()
def generate(model: Any, tokens: Tokens, prompts: Sequence[tuple[str, Sequence[Tensor]]], max_new: int) -> list[str]:
    """Greedy replies, the end of turn left out. Prompts of equal length share a batch."""
    from transformers import DynamicCache

    rows = [Row(prompt, "", (), tuple(pictures)) for prompt, pictures in prompts]
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(len(tokens.row(row)[0]), []).append(index)
    vision = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
    banned = [int(tokens.tokenizer.convert_tokens_to_ids(text)) for text in vision]
    replies = [""] * len(rows)
    for members in groups.values():
        for start in range(0, len(members), 256):
            chosen = members[start : start + 256]
            batch = tokens.batch([rows[index] for index in chosen])
            cache = DynamicCache(config=model.config.text_config)
            states = hidden(model, embed(model, batch, tokens.image_id)[0], batch.positions_3BT, cache)[:, -1]
            position = batch.positions_3BT.amax((0, 2)) + 1
            ids: list[Tensor] = []
            done = torch.zeros(len(chosen), dtype=torch.bool)
            for _ in range(max_new):
                logits = F.linear(states, model.lm_head.weight)
                logits[:, banned] = -torch.inf
                chosen_ids = logits.argmax(-1)
                ids.append(chosen_ids)
                done |= chosen_ids == tokens.stop_id
                if done.all():
                    break
                embeds = model.model.language_model.embed_tokens(chosen_ids[:, None])
                states = hidden(model, embeds, position[None, :, None].expand(3, -1, 1), cache)[:, -1]
                position = position + 1
            for index, line in zip(chosen, torch.stack(ids, 1).tolist(), strict=True):
                end = line.index(tokens.stop_id) if tokens.stop_id in line else len(line)
                replies[index] = tokens.tokenizer.decode(line[:end], skip_special_tokens=False)
    return replies


def answer_of(text: str) -> str | None:
    found = _ANSWER.search(text)
    return found.group(1) if found else None


def box_of(text: str) -> list[float] | None:
    """The box of the call in ``text``, clamped to the canvas; None when there is no valid one."""
    found = _CALL.search(text)
    if found is None:
        return None
    try:
        box = json.loads(found.group(1))["arguments"]["bbox_2d"]
        values = [min(max(float(value), 0.0), 1000.0) for value in box]
    except (ValueError, KeyError, TypeError):
        return None
    return values if len(values) == 4 and values[0] < values[2] and values[1] < values[3] else None


def _accuracy(replies: Sequence[str], made: Sequence[Case]) -> float:
    return float(np.mean([answer_of(reply) == case.answer for reply, case in zip(replies, made, strict=True)]))


def reading(model: Any, tokens: Tokens, made: Sequence[Case], view: str) -> float:
    """Accuracy of direct answers on the ``full`` view, a ``crop`` (1.5 times the box) or the taught zoom ``window``."""
    prompts = []
    for case in made:
        side = len(case.pixels)
        boxes: dict[str, list[float]] = {
            "full": [0, 0, side, side],
            "crop": padded_box(case.item, side, None),
            "window": window_px(case.item, case.scene, side),
        }
        prompts.append((prompt_text(case.question), [resized(cut(case.pixels, boxes[view]))]))
    return _accuracy(generate(model, tokens, prompts, 8), made)


def zooming(model: Any, tokens: Tokens, made: Sequence[Case]) -> dict[str, float]:
    """The executed two-turn zoom and its ablations."""
    fulls = [resized(case.pixels) for case in made]
    starts = [prompt_text(case.question, system=TOOLS_SYSTEM) for case in made]
    calls = generate(model, tokens, [(start, [full]) for start, full in zip(starts, fulls, strict=True)], 56)
    boxes = [box_of(call) for call in calls]
    hits, exact = [], []
    for case, box in zip(made, boxes, strict=True):
        x, y = case.item.x_frac * 1000, case.item.y_frac * 1000
        hits.append(box is not None and box[0] < x < box[2] and box[1] < y < box[3])
        exact.append(box is not None and tuple(box) == case.item.zoom_box_k1000(case.scene.world.zoom_window_k1000))

    def second(boxes_px: Sequence[Sequence[float] | None], grey: bool = False) -> float:
        prompts, asked = [], []
        for k, box in enumerate(boxes_px):
            if box is None:
                continue
            pixels = cut(made[k].pixels, box)
            crop = resized(np.full_like(pixels, 128) if grey else pixels)
            prompts.append((starts[k] + calls[k] + "<|im_end|>" + observation_text(), [fulls[k], crop]))
            asked.append(made[k])
        return _accuracy(generate(model, tokens, prompts, 8), asked) * len(asked) / len(made) if asked else 0.0

    own = [None if box is None else [v * len(case.pixels) / 1000 for v in box] for case, box in zip(made, boxes, strict=True)]
    true = [window_px(case.item, case.scene, len(case.pixels)) for case in made]
    others = []
    for case in made:
        other = next(item for item in case.scene.objects if item.letter != case.item.letter or item is case.scene.objects[-1])
        others.append(window_px(other, case.scene, len(case.pixels)))
    return {
        "format": float(np.mean([box is not None for box in boxes])), "hit": float(np.mean(hits)), "exact": float(np.mean(exact)),
        "two_turn": second(own), "grey": second(own, grey=True), "true_box": second(true), "wrong_object": second(others),
    }  # fmt: skip


def imagining(model: Any, tokens: Tokens, made: Sequence[Case]) -> dict[str, float]:
    prompts = [(prompt_text(case.question, system=IMAGINE_SYSTEM), [resized(case.pixels)]) for case in made]
    replies = generate(model, tokens, prompts, 32)
    found = [_IMAGINED.fullmatch(reply) for reply in replies]
    pairs = list(zip(found, made, strict=True))
    return {
        "format": float(np.mean([match is not None for match in found])),
        "answer": _accuracy(replies, made),
        "place": float(np.mean([match is not None and match.group(2) == case.item.place for match, case in pairs])),
        "agrees": float(np.mean([match is not None and match.group(3) == match.group(4) for match in found])),
    }


def in_words(model: Any, tokens: Tokens, made: Sequence[Case]) -> float:
    prompts: list[tuple[str, list[Tensor]]] = [
        (prompt_text(f"{case.scene.text()} {case.question}", picture=False), []) for case in made
    ]
    return _accuracy(generate(model, tokens, prompts, 8), made)


def skills(model: Any, tokens: Tokens, *, split: str = "test", num: int = 1024, seed: int = 0) -> dict[str, float]:
    """The skills table: every number of docs/tiny.md. About 90 s on one core with 1,024 questions each."""
    detail, place, dense = (cases(world, split, num, seed) for world in ("detail", "place", "place_dense"))
    table = {
        "detail/crop": reading(model, tokens, detail, "crop"),
        "detail/full": reading(model, tokens, detail, "full"),
        "place/crop": reading(model, tokens, place, "crop"),
        "place/window": reading(model, tokens, place, "window"),
        "place/direct": reading(model, tokens, place, "full"),
    }
    table |= {f"place/zoom/{name}": value for name, value in zooming(model, tokens, place).items()}
    table |= {f"place_dense/zoom/{name}": value for name, value in zooming(model, tokens, dense).items()}
    table |= {f"detail/imagine/{name}": value for name, value in imagining(model, tokens, detail).items()}
    table["text"] = in_words(model, tokens, detail + place)
    return {name: round(value, 4) for name, value in table.items()}


@torch.no_grad()
def key_accuracy(model: Any, tokens: Tokens, rows: Sequence[Row]) -> float:
    """Share of rows whose key tokens are all predicted, with the taught tokens as context: a quick check while training."""
    batch = tokens.batch(rows)
    states = hidden(model, embed(model, batch, tokens.image_id)[0], batch.positions_3BT)
    key = batch.weights_BT[:, 1:] == 1
    predicted = F.linear(states[:, :-1], model.lm_head.weight).argmax(-1)
    return float(((predicted == batch.ids_BT[:, 1:]) | ~key).all(1).float().mean())


def checks(split: str = "dev", num: int = 256) -> dict[str, list[Row]]:
    """Rows for `key_accuracy`, by skill."""
    first = split_seeds(split).start
    makers = [Maker(1, first + 10_000 * k) for k in range(8)]
    return {
        "crop": [_crop_row(case) for case in cases("detail", split, num, 1)],
        "full": makers[0].full("detail", num // 2, 2),
        "window": [_window_row(case) for case in cases("place", split, num, 1)],
        "direct": makers[1].full("place", num // 4, 4)[:num],
        "call": makers[2].locate(num // 4, {5: 1.0}, 4),
        "call1": makers[3].locate(num // 4, {1: 1.0}, 1),
        "where": makers[7].full("place", num // 4, 4, ("where",))[:num],
        "turn2": [_second_only(row) for row in makers[4].two_turn(num // 4)],
        "imagine": makers[5].imagine("detail", num // 4, 2),
        "text": makers[6].text(num),
    }


def _crop_row(case: Case) -> Row:
    box = padded_box(case.item, len(case.pixels), None)
    return Row(prompt_text(case.question), *answer_reply(case.answer), (resized(cut(case.pixels, box)),))


def _window_row(case: Case) -> Row:
    box = window_px(case.item, case.scene, len(case.pixels))
    return Row(prompt_text(case.question), *answer_reply(case.answer), (resized(cut(case.pixels, box)),))


def _second_only(row: Row) -> Row:
    return Row(row.prompt, row.reply, row.key_spans[-1:], row.pictures)

