"""Every family against its own Hugging Face processor and model: ids, pixels, grids, positions, features and the size rule."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.video_utils import VideoMetadata

from foveate.vlm.families.registry import FAMILIES, family_of
from foveate.vlm.images import Picture, PictureError, PixelBudget
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Clip, Message
from foveate.vlm.render import Renderer
from foveate.vlm.segments import VisualItem, VisualSpan

TEMPLATES = {"qwen2_vl": "qwen2_5_vl", "qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl", "qwen3_5": "qwen3_5_nothink"}
FPS = 3.0


@lru_cache(8)
def vlm_of(model_type: str) -> VLM:
    """A tiny model that speaks with the family's released chat template (TRL ships them)."""
    template = (importlib.resources.files("trl") / "chat_templates" / f"{TEMPLATES[model_type]}.jinja").read_text()
    factor = FAMILIES[model_type].patch_size * 2
    return tiny_random(model_type, chat_template=template, max_pixels=24 * factor**2, attention="sdpa")


@lru_cache(8)
def processor_of(model_type: str) -> Any:
    """The family's own processor, built here from the numbers of its release."""
    vlm = vlm_of(model_type)
    image, video = vlm.renderer.image, vlm.renderer.image.video
    size = {"shortest_edge": image.budget.min_pixels, "longest_edge": image.budget.max_pixels}
    frames = {"shortest_edge": video.budget.min_pixels, "longest_edge": video.budget.max_pixels}
    if model_type in ("qwen2_vl", "qwen2_5_vl"):
        pictures = transformers.Qwen2VLImageProcessor(size=size)
        videos = transformers.Qwen2VLVideoProcessor(size=frames, cap_pixels_per_frame=False)
        cls = {"qwen2_vl": transformers.Qwen2VLProcessor, "qwen2_5_vl": transformers.Qwen2_5_VLProcessor}[model_type]
        return cls(pictures, vlm.tokenizer, videos, chat_template=vlm.tokenizer.chat_template)
    pictures = transformers.Qwen2VLImageProcessor(size=size, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    threes = transformers.Qwen3VLVideoProcessor(size=frames, cap_pixels_per_frame=False)
    return transformers.Qwen3VLProcessor(pictures, vlm.tokenizer, threes, chat_template=vlm.tokenizer.chat_template)


def noise(seed: int, width: int, height: int) -> Picture:
    return Picture.of(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def clip(num_frames: int, width: int, height: int) -> Clip:
    return Clip(tuple(noise(90 + n, width, height) for n in range(num_frames)), tuple(n / FPS for n in range(num_frames)))


CHATS = {
    "text": (Message.user("What is 2 + 2?"),),
    "image": (Message.user(noise(0, 112, 64), "What letter is on the red triangle?"),),
    "adjacent": (
        Message.system("Look."),
        Message.user("See ", noise(1, 70, 301), noise(2, 33, 47), " and ", noise(3, 640, 480), "which?"),
    ),
    "turns": (
        Message.user(noise(4, 100, 60), "What?"),
        Message.assistant("It shows K."),
        Message.user("And here?", noise(5, 60, 100)),
    ),
    "video": (Message.user("In this: ", clip(5, 150, 90), "what moves?"),),
    "video and images": (Message.user(noise(6, 64, 64), clip(4, 64, 96), noise(7, 96, 64), "Compare."),),
}


def hf_inputs(model_type: str, messages: Sequence[Message]) -> dict[str, Any]:
    """What the processor makes of the same chat, and the positions that the model derives from it."""
    vlm, processor = vlm_of(model_type), processor_of(model_type)
    kinds = {str: "text", Picture: "image", Clip: "video"}
    chat = [
        {"role": m.role, "content": [{"type": kinds[type(p)], **({"text": p} if isinstance(p, str) else {})} for p in m.parts]}
        for m in messages
    ]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    parts = [part for message in messages for part in message.parts]
    images = [part.rgb() for part in parts if isinstance(part, Picture)]
    clips = [part for part in parts if isinstance(part, Clip)]
    metadata = [VideoMetadata(total_num_frames=len(c.frames), fps=FPS, frames_indices=list(range(len(c.frames)))) for c in clips]
    videos = [np.stack([np.array(frame.rgb()) for frame in c.frames]) for c in clips]
    more: dict[str, Any] = {"videos_kwargs": {"video_metadata": metadata, "do_sample_frames": False}} if clips else {}
    made = processor(text=[text], images=images or None, videos=videos or None, return_tensors="pt", **more)
    grids = {name: made[name] for name in ("image_grid_thw", "video_grid_thw") if name in made}
    if model_type == "qwen2_5_vl" and clips:
        grids["second_per_grid_ts"] = made["second_per_grid_ts"]
    positions, _ = vlm.model.model.get_rope_index(made["input_ids"], mm_token_type_ids=made["mm_token_type_ids"], **grids)
    return {**made, "positions": positions[:, 0]}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_ids_pixels_and_positions_equal_the_processor(model_type: str, chat: str) -> None:
    renderer = vlm_of(model_type).renderer
    ours, theirs = renderer.prompt(CHATS[chat], chat), hf_inputs(model_type, CHATS[chat])
    assert renderer.tokenizer.decode(ours.ids_T) == renderer.tokenizer.decode(theirs["input_ids"][0])
    assert ours.ids_T.tolist() == theirs["input_ids"][0].tolist()
    assert ours.positions_3T.tolist() == theirs["positions"].tolist()
    assert ours.next_position == int(ours.positions_3T[0, -1]) + 1
    for kind, pixels, grid in (("image", "pixel_values", "image_grid_thw"), ("video", "pixel_values_videos", "video_grid_thw")):
        items = list(dict.fromkeys(span.item for span in ours.visuals if span.item.kind == kind))
        assert (pixels in theirs) == bool(items)
        if items:
            assert [list(item.grid_thw) for item in items] == theirs[grid].tolist()
            patches_PD = torch.cat([renderer.patches(item) for item in items])
            assert patches_PD.dtype == torch.float32
            torch.testing.assert_close(patches_PD, theirs[pixels], rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_each_span_is_as_long_as_the_features_of_its_item(model_type: str) -> None:
    vlm = vlm_of(model_type)
    segment = vlm.renderer.prompt(CHATS["video and images"])
    per_item: dict[VisualItem, int] = {}
    for span in segment.visuals:
        assert span.offset == per_item.get(span.item, 0)
        per_item[span.item] = span.offset + span.length
        pads = set(segment.ids_T[span.start : span.start + span.length].tolist())
        assert pads == {vlm.tokenizer.convert_tokens_to_ids(f"<|{span.item.kind}_pad|>")}
    for item, covered in per_item.items():
        features = vlm.model.model.visual(vlm.renderer.patches(item), grid_thw=torch.tensor([item.grid_thw])).pooler_output
        assert len(features) == covered == item.num_tokens


def test_positions_by_hand() -> None:
    """Two text tokens, a picture of 2 x 3 tokens, one text token: the picture starts at 2, the text goes on at 2 + 3."""
    family, image = family_of("qwen2-vl"), vlm_of("qwen2_vl").renderer.image
    item = VisualItem("k", "image", noise(0, 84, 56), 84, 56, (1, 4, 6), 6)
    positions, next_position = family.positions(9, [VisualSpan(2, 6, item)], image)
    assert positions.tolist() == [[0, 1, 2, 2, 2, 2, 2, 2, 5], [0, 1, 2, 2, 2, 3, 3, 3, 5], [0, 1, 2, 3, 4, 2, 3, 4, 5]]
    assert next_position == 6


def test_video_time_runs_in_real_seconds_for_qwen2_5_only() -> None:
    """3 temporal patches of 1 x 1 tokens, 2 s apart, 2 position steps per second: times 0, 4, 8; Qwen2-VL counts 0, 1, 2."""
    item = VisualItem("k", "video", clip(6, 28, 28), 28, 28, (3, 2, 2), 3, seconds_per_grid=2.0)
    image = vlm_of("qwen2_5_vl").renderer.image
    assert image.video.tokens_per_second == 2
    assert family_of("qwen2.5-vl").positions(3, [VisualSpan(0, 3, item)], image)[0][0].tolist() == [0, 4, 8]
    assert family_of("qwen2-vl").positions(3, [VisualSpan(0, 3, item)], image)[0][0].tolist() == [0, 1, 2]


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), factor=st.sampled_from([28, 32]), most=st.integers(4, 4000))
@settings(max_examples=300, deadline=None)
def test_size_rule_equals_the_processor(width: int, height: int, factor: int, most: int) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    budget = PixelBudget(2 * factor**2, most * factor**2)
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(PictureError, match="factor of 200"):
            budget.resized(width, height, factor)
    else:
        high, wide = smart_resize(height, width, factor, budget.min_pixels, budget.max_pixels)
        assert budget.resized(width, height, factor) == (wide, high)


@given(width=st.integers(8, 900), height=st.integers(8, 900), frames=st.integers(2, 30), most=st.integers(20, 900))
@settings(max_examples=200, deadline=None)
def test_video_size_rule_of_qwen3_equals_the_processor(width: int, height: int, frames: int, most: int) -> None:
    import dataclasses

    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    image = vlm_of("qwen3_vl").renderer.image
    budget = PixelBudget(2 * 32**2, most * 32**2)
    image = dataclasses.replace(image, video=dataclasses.replace(image.video, budget=budget))
    high, wide = smart_resize(frames, height, width, 2, 32, budget.min_pixels, budget.max_pixels)
    shown = Picture("k", width, height)
    made = family_of("qwen3-vl").clip_size(Clip((shown,) * frames, tuple(map(float, range(frames)))), image)
    assert made == (wide, high)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_parameter_has_a_group(model_type: str) -> None:
    vlm = vlm_of(model_type)
    groups = {name: vlm.family.group_of(name) for name, _ in vlm.model.named_parameters()}
    assert set(groups.values()) == {"vision", "projector", "language"}
    assert all((group == "language") == ("visual" not in name) for name, group in groups.items())
    assert all((group == "projector") == ("merger" in name) for name, group in groups.items())
    with pytest.raises(ValueError, match="adapter"):
        vlm.family.group_of("adapter.weight")


def test_only_the_family_with_linear_layers_refuses_shared_prefixes() -> None:
    assert [family.name for family in FAMILIES.values() if not family.can_share_prefix] == ["qwen3.5"]
    with pytest.raises(ValueError, match=r"llava.*qwen2\.5-vl \(qwen2_5_vl\)"):
        family_of("llava")


def test_a_picture_is_resized_like_the_processor_even_far_from_its_size() -> None:
    """Strong shrinking and strong growing, where an interpolation without antialiasing would be far off."""
    for model_type in FAMILIES:
        vlm = vlm_of(model_type)
        for picture in (noise(1, 900, 700), noise(2, 5, 9), noise(3, 1, 1), noise(4, 190, 1)):
            item = vlm.renderer.item(picture)
            theirs = processor_of(model_type).image_processor([picture.rgb()], return_tensors="pt")
            assert list(item.grid_thw) == theirs["image_grid_thw"][0].tolist()
            torch.testing.assert_close(vlm.renderer.patches(item), theirs["pixel_values"], rtol=0, atol=1e-5)


def test_a_new_family_needs_no_change_to_the_renderer() -> None:
    """The renderer takes any `Family`: here one whose pictures stand in two runs of tokens."""
    from foveate.vlm.families.base import IMAGE_PAD
    from foveate.vlm.families.qwen2_vl import Qwen2VL

    class TwoRuns(Qwen2VL):
        def blocks(self, item: VisualItem) -> int:
            return 2

        def visual_text(self, item: VisualItem, settings: Any) -> str:
            return f"{IMAGE_PAD}|{IMAGE_PAD}"

        def positions(self, num_tokens: int, spans: Sequence[VisualSpan], settings: Any) -> tuple[np.ndarray, int]:
            return np.tile(np.arange(num_tokens), (3, 1)), num_tokens

    vlm = vlm_of("qwen2_vl")
    segment = Renderer(TwoRuns(), vlm.tokenizer, vlm.renderer.image).prompt([Message.user(noise(0, 112, 56))])
    assert [(span.length, span.offset) for span in segment.visuals] == [(4, 0), (4, 4)]
