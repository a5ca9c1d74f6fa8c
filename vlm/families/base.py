"""What a model family is: all that differs between the Qwen-VL generations, one file each.

To add a family, write one file with a subclass of `Family` and name it in `registry.py`; `tests/test_families.py` then compares
its ids, pixels and positions with the family's own processor and model.

Legend: T tokens, 3 the M-RoPE axes (time, height, width).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..images import ImageSettings, PixelBudget, VideoSettings
from ..messages import Clip
from ..segments import VisualItem, VisualSpan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
END_OF_TURN = "<|im_end|>"
START_OF_TURN = "<|im_start|>"
END_OF_TEXT = "<|endoftext|>"
VISION_TOKENS = (IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END, "<|vision_pad|>")
"""Tokens that only the renderer writes: text that holds one is refused, and sampling never yields one."""
RESERVED_TOKENS = (*VISION_TOKENS, END_OF_TURN, START_OF_TURN, END_OF_TEXT)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}\n"
    "{% if message.role == 'tool' %}<tool_response>\n{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'tool' %}\n</tool_response>{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template used where a folder has none: plain ChatML, no default system message."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


Coords = Literal["norm1000", "abs_resized"]
"""How a family writes boxes: 0 to 1000 of each side, or pixels of the picture as resized for the model."""


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Sizes of a model built from scratch; ``patch_size`` 0 means the family's own."""

    vocab_size: int
    hidden: int
    layers: int
    vision_hidden: int
    vision_layers: int
    patch_size: int
    merge_size: int
    initializer_range: float
    tie_word_embeddings: bool = False

    @property
    def heads(self) -> int:
        return max(2, self.hidden // 16)

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def mrope_section(self, rotary_pairs: int) -> list[int]:
        """Shares of the rotary pairs for time, height and width, summing to ``rotary_pairs``."""
        side = (rotary_pairs * 3) // 8
        return [rotary_pairs - 2 * side, side, side]


class Family(ABC):
    """One Qwen-VL generation. Stateless: sizes come from `ImageSettings`, token ids from the tokenizer."""

    name: str
    """The name in recipes, such as "qwen2.5-vl"."""
    model_type: str
    """``model_type`` in the folder's ``config.json``."""
    coords: Coords
    can_share_prefix: bool = True
    """Whether several suffixes may attend to one packed prompt (every layer must be attention)."""
    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    processor_class: str
    video_processor_class: str
    min_pixels: int
    max_pixels: int
    video_min_pixels: int
    video_max_pixels: int
    parameter_groups: Mapping[str, tuple[str, ...]] = {
        "projector": ("visual.merger", "visual.deepstack_merger_list"),
        "vision": ("visual",),
        "language": ("language_model", "lm_head"),
    }
    """Group name -> module names; a parameter belongs to the first group that names one of its modules."""

    # ---- settings -------------------------------------------------------------------------------------------------------

    def settings(self, *, patch_size: int = 0, merge_size: int = 2, min_pixels: int = 0, max_pixels: int = 0) -> ImageSettings:
        """The family's own settings, for models that come without processor files; 0 means the family's value."""
        patch = patch_size or self.patch_size
        return ImageSettings(
            patch_size=patch,
            merge_size=merge_size,
            temporal_patch_size=2,
            mean=self.mean,
            std=self.std,
            budget=PixelBudget(min_pixels or self.min_pixels, max_pixels or self.max_pixels),
            video=VideoSettings(budget=PixelBudget(self.video_min_pixels, self.video_max_pixels)),
        )

    # ---- video ----------------------------------------------------------------------------------------------------------

    def clip_size(self, clip: Clip, settings: ImageSettings) -> tuple[int, int]:
        """``(width, height)`` in px of the resized frames: here each frame has the whole video budget."""
        return settings.video.budget.resized(*clip.frames[0].size_px, settings.factor)

    def visual_text(self, item: VisualItem, settings: ImageSettings) -> str:
        """What stands for a picture or clip between its vision start and end: one pad for each block of features."""
        return IMAGE_PAD if item.kind == "image" else VIDEO_PAD

    def blocks(self, item: VisualItem) -> int:
        """In how many runs of tokens the features of an item stand in the text."""
        return 1

    # ---- positions ------------------------------------------------------------------------------------------------------

    def time_step(self, item: VisualItem, settings: ImageSettings) -> float:
        """By how much the time position grows from one temporal patch to the next."""
        return 1.0

    def positions(self, num_tokens: int, spans: Sequence[VisualSpan], settings: ImageSettings) -> tuple[np.ndarray, int]:
        """M-RoPE positions ``[3, T]`` of a segment, counted from 0, and the position that follows it.

        Text advances all three axes together. A span takes the next position as its origin, spreads over time, height and width,
        and the text behind it goes on after the longer side (Qwen2-VL, section 2.1, and the models' ``get_rope_index``).
        """
        positions_3T = np.empty((3, num_tokens), np.int64)
        here, next_position = 0, 0
        for span in spans:
            text = span.start - here
            positions_3T[:, here : span.start] = next_position + np.arange(text)
            next_position += text
            t, h, w = span.item.grid_thw
            t, h, w = t // self.blocks(span.item), h // settings.merge_size, w // settings.merge_size
            # float32 as the models compute it: a float64 product may fall on the other side of a whole number
            time = (np.arange(t, dtype=np.float32) * np.float32(self.time_step(span.item, settings))).astype(np.int64)
            grid = np.stack(np.meshgrid(time, np.arange(h), np.arange(w), indexing="ij")).reshape(3, -1)
            positions_3T[:, span.start : span.start + span.length] = grid + next_position
            next_position += max(h, w)
            here = span.start + span.length
        positions_3T[:, here:] = next_position + np.arange(num_tokens - here)
        return positions_3T, next_position + num_tokens - here

    # ---- parameters -----------------------------------------------------------------------------------------------------

    def group_of(self, parameter: str) -> str:
        """The group ("vision", "projector" or "language") of a parameter's name."""
        for group, modules in self.parameter_groups.items():
            if any(f".{module}." in f".{parameter}" for module in modules):
                return group
        raise ValueError(f"{self.name}: parameter {parameter} belongs to none of the groups {sorted(self.parameter_groups)}")

    # ---- models from scratch --------------------------------------------------------------------------------------------

    @abstractmethod
    def tiny_config(self, sizes: TinySizes, token_ids: Mapping[str, int]) -> PreTrainedConfig:
        """The transformers config of a small model; ``token_ids`` maps special tokens to ids."""


def timestamps_s(clip: Clip, temporal_patch_size: int) -> list[float]:
    """The second of each temporal patch: halfway between its first and last frame; the last frame is repeated to fill it."""
    times = list(clip.times_s)
    times += [times[-1]] * (-len(times) % temporal_patch_size)
    return [(times[i] + times[i + temporal_patch_size - 1]) / 2 for i in range(0, len(times), temporal_patch_size)]
