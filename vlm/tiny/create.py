"""The embedded tiny model, untrained: a real Qwen3-VL with its tokenizer and processor, made from nothing but a corpus.

Every class is the stock one of `transformers`, only small: `AutoModelForImageTextToText`, `AutoTokenizer` and
`AutoProcessor` load the saved folder. `train.tiny_build` trains it; ``weights/`` beside this file holds the result.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped model, in Hugging Face format."""

PATCH_PX, MERGE = 8, 2
MIN_PIXELS, MAX_PIXELS = 48 * 48, 64 * 64
"""A full scene becomes 64 x 64 px (16 image tokens) and a crop 48 to 64 px a side (9 to 16 tokens)."""

CONTROL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
MARKUP_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Added but not "special" in Qwen3's tokenizer: decoding keeps them, since dialects read them."""

CHAT_TEMPLATE = """\
{%- macro show(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' -%}{{- show(messages[0].content) + '\\n\\n' -}}{%- endif -%}
{{- '<tools>' -}}{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}{{- '\\n</tools><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>' + show(message.content) + '</tool_response><|im_end|>\\n' -}}
{%- elif not (tools and loop.first and message.role == 'system') -%}
{{- '<|im_start|>' + message.role + '\\n' + show(message.content) -}}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function or call -%}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) + '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def make_tokenizer(corpus: Iterable[str], max_merges: int) -> Qwen2Tokenizer:
    """A byte-level BPE with Qwen's pre-tokenizer, trained on ``corpus``; control tokens come last, as in Qwen3's."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + max_merges, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    bpe.train_from_iterator(corpus, trainer)
    state = json.loads(bpe.to_str())["model"]
    pieces: dict[str, Any] = {"vocab": state["vocab"], "merges": [tuple(pair) for pair in state["merges"]], "unk_token": None}
    tokenizer = Qwen2Tokenizer(**pieces, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKUP_TOKENS])
    tokenizer.model_max_length = 4096
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_processor(tokenizer: Qwen2Tokenizer) -> Qwen3VLProcessor:
    """The stock processor with this model's patch size and pixel budget."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    half = [0.5, 0.5, 0.5]
    shared: dict[str, Any] = {"patch_size": PATCH_PX, "merge_size": MERGE, "temporal_patch_size": 2}
    shared |= {"image_mean": half, "image_std": half}
    image = Qwen2VLImageProcessor(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}, **shared)
    video = Qwen3VLVideoProcessor(size={"shortest_edge": MIN_PIXELS, "longest_edge": 8 * MAX_PIXELS}, **shared)
    return Qwen3VLProcessor(image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE)


def make_model(tokenizer: Qwen2Tokenizer, *, seed: int, width: int = 128, layers: int = 3) -> Qwen3VLForConditionalGeneration:
    """The untrained model in fp32. About 1 M parameters with the default sizes; the vocabulary is padded to a multiple of 64."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = tokenizer.get_vocab()

    def token(text: str) -> int:
        return ids[text]

    config = Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64, "hidden_size": width, "intermediate_size": 2 * width,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
            "max_position_embeddings": 4096, "tie_word_embeddings": True, "initializer_range": 0.05,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True
            },
            "bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 2, "hidden_size": 96, "intermediate_size": 192, "num_heads": 4, "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE, "temporal_patch_size": 2, "out_hidden_size": width, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [], "initializer_range": 0.05,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"), tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    generation = model.generation_config
    generation.eos_token_id = [token("<|im_end|>"), token("<|endoftext|>")]
    generation.pad_token_id = token("<|endoftext|>")
    generation.bos_token_id = token("<|endoftext|>")
    generation.suppress_tokens = [token(text) for text in CONTROL_TOKENS if "vision" in text or "pad" in text]
    return model


def save(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, folder: Path) -> None:
    """Write the model in fp16 with everything that the ``Auto`` classes need."""
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
