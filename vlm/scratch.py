"""Small models from nothing: a byte-level BPE tokenizer and random weights, for tests and for the embedded model."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .families.base import CHATML, END_OF_TEXT, END_OF_TURN, RESERVED_TOKENS, START_OF_TURN, Family, TinySizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SPECIAL = (
    END_OF_TEXT,
    START_OF_TURN,
    END_OF_TURN,
    *(token for token in RESERVED_TOKENS if token not in (END_OF_TEXT, START_OF_TURN, END_OF_TURN)),
)
_ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

CORPUS = (
    "What letter is on the red triangle? What letter is on the blue circle? Which shape shows the letter K?",
    "Scene: red triangle at top left shows K; blue circle at bottom right shows C; green square at top right shows A.",
    "I zoom in on the red triangle at top left. It shows K. <answer>K</answer>",
    'Zoom with image_zoom_in_tool. <tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [300, 400, 500, 600]}}\n',
    "Imagine zooming in, then answer. system user assistant yellow purple orange black white star cross diamond ring",
    "How many shapes are there? Is the green square left of the yellow star? Answer yes or no. Read the chart and the clock.",
)
"""Text in the manner of the embedded tasks: enough to learn a few hundred merges from."""


def train_tokenizer(corpus: Iterable[str], vocab_size: int, chat_template: str = CHATML) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of at most ``vocab_size`` tokens with the special tokens of Qwen-VL. No files needed."""
    from transformers import Qwen2Tokenizer

    vocab, merges = _train_bpe(tuple(corpus), vocab_size - len(_SPECIAL) - len(_ADDED))
    return make_tokenizer(Qwen2Tokenizer, vocab, merges, chat_template)


def make_tokenizer(
    cls: type, vocab: dict[str, int], merges: list[tuple[str, str]], chat_template: str
) -> PreTrainedTokenizerBase:
    from transformers import AddedToken

    tokenizer = cls(
        vocab=dict(vocab), merges=list(merges), eos_token=END_OF_TURN, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _ADDED])
    tokenizer.chat_template = chat_template
    return tokenizer  # type: ignore[no-any-return]


@functools.lru_cache(16)
def _train_bpe(corpus: tuple[str, ...], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if size < 256:
        raise ValueError(f"a byte-level vocabulary needs at least {256 + len(_SPECIAL) + len(_ADDED)} tokens in all")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    learned = json.loads(bpe.to_str())["model"]
    return learned["vocab"], [(left, right) for left, right in learned["merges"]]


def build_model(
    family: Family, tokenizer: PreTrainedTokenizerBase, sizes: TinySizes, seed: int, attention: str | dict[str, str]
) -> PreTrainedModel:
    """Random fp32 weights on the CPU, drawn from ``seed``; the global random state is left as it was."""
    from transformers import AutoModelForImageTextToText, GenerationConfig

    vocab = tokenizer.get_vocab()
    config = family.tiny_config(sizes, {token: vocab[token] for token in RESERVED_TOKENS})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, attn_implementation=attention
        )
    model.generation_config = GenerationConfig(
        eos_token_id=[vocab[END_OF_TURN], vocab[END_OF_TEXT]], pad_token_id=vocab[END_OF_TEXT]
    )
    model.eval()
    return model
