"""The embedded tiny model: loads with the stock classes, sees what the stock processor gives, and can do what it was taught."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.datasets.scene_questions import IMAGINE_SYSTEM, TOOLS_SYSTEM, answer_text, imagination, zoom_call
from foveate.datasets.scenes import COLOURS, WORLDS, scene
from foveate.train.tiny_data import (
    PICTURE,
    Maker,
    answer_reply,
    call_reply,
    imagine_reply,
    observation_text,
    patch_classes,
    prompt_text,
    resized,
)
from foveate.train.tiny_eval import box_of, cases, generate, imagining, in_words, reading, zooming
from foveate.train.tiny_model import Tokens, embed, hidden, loss, patches
from foveate.vlm.tiny.create import WEIGHTS


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens(processor):
    return Tokens(processor.tokenizer)


def test_it_is_small_and_stock(model, processor) -> None:
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert (WEIGHTS / "model.safetensors").stat().st_size < 10_000_000
    assert len(processor.tokenizer) <= 1024
    for text in ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<|im_end|>", "<|image_pad|>", ">K"):
        assert len(processor.tokenizer(text).input_ids) == 1, text


@pytest.mark.parametrize("world", list(WORLDS))
def test_pixels_are_those_of_the_stock_processor(world: str, processor) -> None:
    pixels = scene(world, 11).draw()
    for part in (pixels, pixels[3:54, 10:70], pixels[40:120, 40:120]):
        stock = processor.image_processor([Image.fromarray(part)], return_tensors="pt")["pixel_values"]
        ours = patches(resized(part)[None])[0]
        assert ours.shape == stock.shape
        assert (ours - stock).abs().max() <= 2 / 255 + 1e-6


def test_texts_are_those_of_the_shipped_template(processor) -> None:
    question = "What letter is on the red triangle?"
    picture, words = {"type": "image"}, {"type": "text", "text": question}
    for system in ("", TOOLS_SYSTEM, IMAGINE_SYSTEM):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": [picture, words]})
        stock = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert prompt_text(question, system=system) == stock
    call = zoom_call((0, 100, 200, 300))
    told = [*messages[:1], messages[-1], {"role": "assistant", "content": call}]
    as_user = {"role": "user", "content": f"<tool_response>{PICTURE}</tool_response>"}
    for reply in ({"role": "tool", "content": [picture]}, as_user):
        stock = processor.apply_chat_template([*told, reply], add_generation_prompt=True, tokenize=False)
        before = processor.apply_chat_template(told[:-1], add_generation_prompt=True, tokenize=False)
        assert stock == before + call + "<|im_end|>" + observation_text()


def test_taught_replies_mark_the_informative_characters() -> None:
    def keys(reply: str, spans: tuple[tuple[int, int], ...]) -> list[str]:
        return [reply[start:end] for start, end in spans]

    item = scene("place", 4).objects[0]
    assert keys(*answer_reply("top left")) == ["top left"]
    assert keys(*call_reply((300, 0, 500, 200))) == ["3", "0"]
    assert keys(*call_reply((0, 800, 200, 1000))) == ["0", "8"]
    assert keys(*imagine_reply(item)) == [item.name, item.place, item.letter, item.letter]
    assert imagine_reply(item)[0] == imagination(item) + "<|im_end|>"
    assert answer_reply("K")[0] == answer_text("K") + "<|im_end|>"
    assert box_of(zoom_call((0, 800, 200, 1000))) == [0, 800, 200, 1000]
    assert box_of(zoom_call((200, 0, 100, 100))) is None


def test_only_taught_tokens_weigh_and_the_observation_does_not(tokens) -> None:
    row = Maker(0, 0).two_turn(1, 1)[0]
    ids, weights = tokens.row(row)
    text = [tokens.tokenizer.decode([token]) for token in ids]
    heavy = [text[k] for k, weight in enumerate(weights) if weight == 1]
    first_end = ids.index(tokens.stop_id, text.index("<tool_call>"))
    assert heavy[:2] == [word[0] for word in row.reply.split("[")[1].split(", ")[:2]]
    assert len(heavy) == 3
    assert heavy[2].startswith(">")
    assert weights[first_end] > 0
    assert not any(weights[first_end + 1 : text.index("<answer")])
    assert not any(weights[: text.index("<tool_call>")])


def test_patch_classes_follow_the_order_of_patches() -> None:
    made = scene("detail", 2)
    order = patches(torch.arange(64 * 64).reshape(1, 1, 64, 64).expand(1, 3, -1, -1))[0][:, 0]  # first pixel of every patch
    pixel = ((order * 0.5 + 0.5) * 255).round().long()
    classes = patch_classes(made)
    for item in made.objects:
        row, column = int(item.y_frac * 8), int(item.x_frac * 8)
        place = int((pixel == row * 8 * 64 + column * 8).nonzero()[0, 0])
        assert classes[place] == list(COLOURS).index(item.colour)


def test_fast_forward_equals_the_stock_forward(model, tokens) -> None:
    rows = Maker(5, 50).two_turn(1, 1)
    batch = tokens.batch(rows)
    with torch.no_grad():
        ours = hidden(model, embed(model, batch, tokens.image_id)[0], batch.positions_3BT)
        grids = torch.tensor([[1, picture.shape[1] // 8, picture.shape[2] // 8] for picture in batch.pictures])
        stock = model.model(
            input_ids=batch.ids_BT,
            pixel_values=torch.cat([patches(picture[None])[0] for picture in batch.pictures]),
            image_grid_thw=grids,
            mm_token_type_ids=(batch.ids_BT == tokens.image_id).int(),
        ).last_hidden_state
    assert (ours - stock).abs().max() < 1e-4


def test_padding_and_company_change_nothing(model, tokens) -> None:
    maker = Maker(6, 60)
    rows = maker.crop("detail", 3) + maker.two_turn(1)
    together = tokens.batch(rows)
    with torch.no_grad():
        all_states = hidden(model, embed(model, together, tokens.image_id)[0], together.positions_3BT)
        for index, row in enumerate(rows):
            alone = tokens.batch([row])
            states = hidden(model, embed(model, alone, tokens.image_id)[0], alone.positions_3BT)[0]
            assert (states - all_states[index, : len(states)]).abs().max() < 1e-4


def test_a_stock_generate_call_answers_as_our_evaluation_does(model, processor, tokens) -> None:
    case = cases("detail", "test", 1, 3)[0]
    crop = Image.fromarray(case.pixels).crop(tuple(round(value) for value in case.item.box_px_xyxy(128)))
    messages = [{"role": "user", "content": [{"type": "image", "image": crop}, {"type": "text", "text": case.question}]}]
    made = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    stock = processor.decode(model.generate(**made, max_new_tokens=8, do_sample=False)[0, made["input_ids"].shape[1] :])
    ours = generate(model, tokens, [(prompt_text(case.question), [resized(np.asarray(crop))])], 8)[0]
    assert stock.removesuffix("<|im_end|>") == ours == answer_text(case.answer)


def test_skills(model, tokens) -> None:
    detail, place = cases("detail", "test", 64, 7), cases("place", "test", 64, 7)
    assert reading(model, tokens, detail, "crop") >= 0.85
    assert reading(model, tokens, place, "window") >= 0.85
    assert 0.5 <= reading(model, tokens, detail, "full") <= 0.92
    assert reading(model, tokens, place, "full") <= 0.3
    zoom = zooming(model, tokens, place)
    assert zoom["format"] == 1
    assert zoom["two_turn"] >= 0.8
    assert max(zoom["grey"], zoom["wrong_object"]) <= 0.3
    assert imagining(model, tokens, detail)["format"] >= 0.95
    assert in_words(model, tokens, detail) >= 0.15  # the format; retrieval from words was not learned (docs/tiny.md)


def test_training_it_further_lowers_the_loss(model, tokens) -> None:
    import copy

    learner = copy.deepcopy(model)
    batch = tokens.batch(Maker(9, 900).full("detail", 4))
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.003)
    values = []
    for _ in range(4):
        value, _, _ = loss(learner, batch, tokens.image_id)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0]


def test_meta_says_how_it_was_made(model) -> None:
    meta = json.loads((WEIGHTS / "meta.json").read_text())
    assert meta["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert meta["num_test"] >= 1024
    assert meta["skills"]["detail/crop"] >= 0.95
    assert meta["curve"]


def test_a_build_takes_its_scenes_from_the_training_split_only(tmp_path) -> None:
    from foveate.datasets.scenes import split_seeds
    from foveate.train.tiny_build import FIRST_SCENE, PHASES, build

    dev, recipes = split_seeds("dev").start, split_seeds("train", 499_999).stop
    assert recipes <= FIRST_SCENE
    assert dev >= FIRST_SCENE + 500 * 10**9
    assert sum(phase.steps for phase in PHASES) * 200 < 10**9, "a build must not run into the scenes of the next seed"
    with pytest.raises(ValueError, match="seed 500"):
        build(tmp_path, seed=500)
