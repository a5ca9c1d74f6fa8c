"""Messages to tokens: the one place where text becomes ids, and pictures become spans of image tokens.

The chat template is the model's own. What a template writes for a picture is one pad token; it is widened here to as many as
the picture has features, so that no text can pass for a picture (law: image tokens equal image features, per sample).

Legend: T tokens, K action tokens of a turn, P patches, D values of a patch.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .families.base import (
    CHATML,
    END_OF_TEXT,
    END_OF_TURN,
    IMAGE_PAD,
    RESERVED_TOKENS,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    VISION_TOKENS,
    Family,
)
from .images import ImageSettings, Picture, PixelBudget
from .messages import Clip, Message, Part
from .records import Turn, View
from .segments import Rendered, Segment, VisualItem, VisualSpan, join

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_MARK = "foveate-action"
_PADS = re.compile(f"({re.escape(IMAGE_PAD)}|{re.escape(VIDEO_PAD)})")
_RESERVED = re.compile("|".join(re.escape(token) for token in RESERVED_TOKENS))
_CACHED_SEGMENTS = 8192
_CACHED_PIXEL_BYTES = 512 << 20
"""Pictures in memory that known segments may hold on to; a picture in a file costs them nothing."""


def _byte_of() -> dict[str, int]:
    """How byte-level vocabularies spell bytes: those that print as themselves, the others as the characters from 256 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in prints]
    return {chr(byte): byte for byte in prints} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_of()


class RenderError(ValueError):
    """A chat that cannot be written as tokens. Names the sample, the message and the picture."""


class Renderer:
    """Turns views and turns into token segments for one model.

    ``chat_template`` replaces the tokenizer's own (plain ChatML where it has none). ``template_kwargs`` are handed to the
    template (``enable_thinking=False`` for Qwen3.5). ``patch_cache_bytes`` bounds the memory of prepared pictures.
    """

    def __init__(
        self,
        family: Family,
        tokenizer: PreTrainedTokenizerBase,
        image: ImageSettings,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        patch_cache_bytes: int = 256 << 20,
    ) -> None:
        self.family = family
        self.tokenizer = tokenizer
        self.image = image
        self.chat_template: str = chat_template or tokenizer.chat_template or CHATML
        self.template_kwargs = dict(template_kwargs or {})
        vocab = tokenizer.get_vocab()
        missing = [token for token in (IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END, END_OF_TURN) if token not in vocab]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {', '.join(missing)}: it is not the tokenizer of a {family.name} model; "
                "take the one of the model's own folder"
            )
        self._pad_ids = {IMAGE_PAD: vocab[IMAGE_PAD], VIDEO_PAD: vocab[VIDEO_PAD]}
        self._end_of_turn: int = vocab[END_OF_TURN]
        self._added_tokens = frozenset(tokenizer.get_added_vocab())
        self.stop_ids: tuple[int, ...] = tuple(vocab[token] for token in (END_OF_TURN, END_OF_TEXT) if token in vocab)
        self.banned_ids: tuple[int, ...] = tuple(vocab[token] for token in VISION_TOKENS if token in vocab)
        self._segments: dict[object, Segment] = {}
        self._pixel_bytes = 0
        self._patches: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._patch_bytes_left = patch_cache_bytes

    @property
    def budget(self) -> PixelBudget:
        """How many pixels a picture may have in this model's eyes."""
        return self.image.budget

    # ---- text -----------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text as it stands, special tokens included: for scripted actions."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an action without the token that ended it."""
        kept = list(ids)
        while kept and kept[-1] in self.stop_ids:
            kept.pop()
        text = self.tokenizer.decode(kept, skip_special_tokens=False)
        assert isinstance(text, str)
        return text

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes that each token stands for; together, decoded as UTF-8, they are the text. For byte-level vocabularies."""
        made = []
        for token in self.tokenizer.convert_ids_to_tokens(list(ids)):
            added = token in self._added_tokens
            made.append(token.encode() if added else bytes(_BYTE_OF[character] for character in token))
        return made

    def closed(self, action_ids: Sequence[int]) -> bool:
        """Whether an action ends with the end-of-turn token."""
        return len(action_ids) > 0 and action_ids[-1] == self._end_of_turn

    # ---- segments -------------------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message], sample_id: str = "") -> Segment:
        """The chat up to and including the generation prompt. Raises `RenderError`."""
        key = tuple(messages)
        return self._segments.get(key) or self._keep(key, self._new_prompt(key, f"sample {sample_id}" if sample_id else "prompt"))

    def observation(self, message: Message, closed: bool = True) -> Segment:
        """What follows an action: the end of its line, the turn of the world, and the next generation prompt.

        ``closed=False``: the action was cut before its end-of-turn token, which is then written first. A reserved token quoted
        in the text (by a tool that repeats what the model wrote) is broken by a space, since the world must not stop a rollout.
        """
        key = (message, closed)
        return self._segments.get(key) or self._keep(key, self._new_observation(message, closed))

    def render(self, view: View, turns: Sequence[Turn] = (), sample_id: str = "") -> Rendered:
        """A view and the turns played in it; action ids are copied, never tokenized again."""
        segments: list[Segment] = []
        spans: list[range] = []
        start = 0
        for turn in turns:
            action = np.asarray(turn.action_ids_K, np.int64)
            banned = set(turn.action_ids_K).intersection(self.banned_ids)
            if banned:
                token = self.tokenizer.convert_ids_to_tokens(min(banned))
                raise RenderError(
                    f"sample {sample_id}: the action of turn {len(spans)} holds the vision token {token}; "
                    "ban Renderer.banned_ids while sampling"
                )
            spans.append(range(start, start + len(action)))
            segments.append(Segment(action, np.tile(np.arange(len(action)), (3, 1)), len(action)))
            if turn.observation is not None:
                segments.append(self.observation(turn.observation, self.closed(turn.action_ids_K)))
            start = sum(len(segment) for segment in segments)
        return Rendered(self.prompt(view.messages, sample_id), join(segments), tuple(spans))

    # ---- pictures -------------------------------------------------------------------------------------------------------

    def item(self, source: Picture | Clip) -> VisualItem:
        """What the vision tower gets for a picture or a clip under this renderer's budget."""
        image = self.image
        if isinstance(source, Picture):
            width, height = image.budget.resized(*source.size_px, image.factor)
            kind, times, content, seconds = "image", 1, source.key, 1.0
        else:
            width, height = self.family.clip_size(source, image)
            kind, times = "video", -(-len(source.frames) // image.temporal_patch_size)
            content = hashlib.sha256(" ".join(frame.key for frame in source.frames).encode()).hexdigest()
            span_s = source.times_s[-1] - source.times_s[0]
            seconds = image.temporal_patch_size * (span_s / (len(source.frames) - 1) if span_s > 0 else 1.0)
        grid = (times, height // image.patch_size, width // image.patch_size)
        tokens = grid[0] * grid[1] * grid[2] // image.merge_size**2
        return VisualItem(
            f"{kind}:{content}:{width}x{height}",
            "image" if kind == "image" else "video",
            source,
            width,
            height,
            grid,
            tokens,
            seconds,
        )

    def patches(self, item: VisualItem) -> torch.Tensor:
        """Float32 ``[P, D]`` input of the vision tower. The tensor is cached: do not write into it."""
        known = self._patches.get(item.key)
        if known is not None:
            self._patches.move_to_end(item.key)
            return known
        from .pixels import patches_PD

        made = patches_PD(item, self.image)
        self._patches[item.key] = made
        self._patch_bytes_left -= made.nbytes
        while self._patch_bytes_left < 0 and len(self._patches) > 1:
            self._patch_bytes_left += self._patches.popitem(last=False)[1].nbytes
        return made

    # ---- inside ---------------------------------------------------------------------------------------------------------

    def _new_prompt(self, messages: tuple[Message, ...], where: str) -> Segment:
        self._refuse_reserved(messages, where)
        return self._segment(self._template(messages, where), _visuals(messages), where)

    def _new_observation(self, message: Message, closed: bool) -> Segment:
        parts = tuple(_broken(part) if isinstance(part, str) else part for part in _merged(message.parts))
        message = Message(message.role, parts)
        # what the template itself writes after an assistant turn, so that the context is what the model was trained on
        where = f"observation ({message.role})"
        text = self._template((Message.user("."), Message.assistant(_MARK), message), where)
        head, _, tail = text.rpartition(_MARK + END_OF_TURN)
        if not head:
            raise RenderError(
                f"the chat template does not end an assistant turn with {END_OF_TURN}; give the renderer another chat_template"
            )
        return self._segment(tail if closed else END_OF_TURN + tail, _visuals((message,)), where)

    def _keep(self, key: object, segment: Segment) -> Segment:
        self._segments[key] = segment
        self._pixel_bytes += _pixel_bytes(segment)
        while len(self._segments) > 1 and (len(self._segments) > _CACHED_SEGMENTS or self._pixel_bytes > _CACHED_PIXEL_BYTES):
            oldest = self._segments.pop(next(iter(self._segments)))  # a dict keeps the order of arrival
            self._pixel_bytes -= _pixel_bytes(oldest)
        return segment

    def _refuse_reserved(self, messages: Sequence[Message], where: str) -> None:
        for number, message in enumerate(messages):
            for part in _merged(message.parts):
                found = _RESERVED.search(part) if isinstance(part, str) else None
                if found:
                    raise RenderError(
                        f"{where}: message {number} ({message.role}) holds the reserved token {found[0]} in its text; "
                        "remove it (pictures are parts of a message, not text)"
                    )

    def _template(self, messages: Sequence[Message], where: str) -> str:
        from jinja2 import TemplateError

        chat: list[dict[str, Any]] = [{"role": message.role, "content": _content(message)} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                chat, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True, **self.template_kwargs
            )
        except TemplateError as error:
            raise RenderError(
                f"{where}: the chat template refuses the roles {[message.role for message in messages]}: {error}"
            ) from error
        assert isinstance(text, str)
        return text

    def _segment(self, text: str, visuals: Sequence[Picture | Clip], where: str) -> Segment:
        """Ids, positions and spans of templated text whose pads stand for ``visuals`` in order."""
        found = _PADS.findall(text)
        wanted = [IMAGE_PAD if isinstance(visual, Picture) else VIDEO_PAD for visual in visuals]
        if found != wanted:
            at = next((n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
            first = _describe(visuals[at]) if at < len(visuals) else "one too many"
            raise RenderError(
                f"{where}: the chat template wrote {len(found)} placeholders for {len(wanted)} pictures and videos; the first "
                f"that differs is number {at + 1} ({first}). Does the template accept pictures in that role?"
            )
        items = [self._named_item(visual, number, where) for number, visual in enumerate(visuals)]
        text = self._written_out(text, items)
        ids: list[int] = []
        spans: list[VisualSpan] = []
        runs = iter([(item, block) for item in items for block in range(self.family.blocks(item))])
        for piece in _PADS.split(text):
            if piece not in self._pad_ids:
                ids += self.encode(piece) if piece else []
                continue
            item, block = next(runs)
            length = item.num_tokens // self.family.blocks(item)
            spans.append(VisualSpan(len(ids), length, item, block * length))
            ids += [self._pad_ids[piece]] * length
        positions_3T, next_position = self.family.positions(len(ids), spans, self.image)
        return Segment(np.asarray(ids, np.int64), positions_3T, next_position, tuple(spans))

    def _written_out(self, text: str, items: Sequence[VisualItem]) -> str:
        """Each placeholder replaced by what the family writes for that item, still with one pad for each run of tokens."""
        pieces = _PADS.split(text)
        for n, item in enumerate(items):
            pieces[2 * n + 1] = self.family.visual_text(item, self.image)
        return "".join(pieces)

    def _named_item(self, visual: Picture | Clip, number: int, where: str) -> VisualItem:
        try:
            return self.item(visual)
        except ValueError as error:
            raise RenderError(f"{where}: picture {number + 1} ({_describe(visual)}): {error}") from error


def _visuals(messages: Sequence[Message]) -> list[Picture | Clip]:
    return [part for message in messages for part in message.parts if not isinstance(part, str)]


def _merged(parts: Sequence[Part]) -> Iterator[Part]:
    """Parts with neighbouring texts joined: two texts may spell a token together."""
    for is_text, run in itertools.groupby(parts, key=lambda part: isinstance(part, str)):
        pieces = list(run)
        yield from ["".join(str(piece) for piece in pieces)] if is_text else pieces


def _broken(text: str) -> str:
    """Text whose reserved tokens are no longer tokens: ``<|im_end|>`` becomes ``< |im_end|>``."""
    return _RESERVED.sub(lambda found: f"< {found[0][1:]}", text)


def _describe(visual: Picture | Clip) -> str:
    if isinstance(visual, Picture):
        return f"{visual.path or visual.key[:12]}, {visual.width_px} x {visual.height_px} px"
    return f"video of {len(visual.frames)} frames"


def _content(message: Message) -> str | list[dict[str, str]]:
    """A message's content as chat templates take it: parts for roles whose templates know pictures, else one string."""
    if message.role in ("user", "tool") and not all(isinstance(part, str) for part in message.parts):
        return [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image" if isinstance(part, Picture) else "video"}
            for part in message.parts
        ]
    pads = {Picture: IMAGE_PAD, Clip: VIDEO_PAD}
    return "".join(part if isinstance(part, str) else f"{VISION_START}{pads[type(part)]}{VISION_END}" for part in message.parts)


def _pixel_bytes(segment: Segment) -> int:
    """Bytes of the decoded pictures that only memory has."""
    sources = [span.item.source for span in segment.visuals]
    pictures = [one for source in sources for one in ((source,) if isinstance(source, Picture) else source.frames)]
    return sum(3 * one.width_px * one.height_px for one in pictures if one.path is None)
