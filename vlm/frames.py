"""Clips shown as pictures: each frame behind its time, all of one size or slow and fast.

A family's own video processor gives all frames of a clip one size. A plan that gives some frames more tokens than others
therefore leaves the clip and writes pictures. Slow-fast is the plan of Keye-VL 1.5 (arXiv 2509.01563): the first frame is slow;
a frame that is like the latest slow one is fast, any other is a new slow one; a fast frame gets a share of a slow frame's tokens,
and a search finds how many those are. The paper marks the two kinds with tokens of its own, which other models lack; here the
time stands before each frame and its kind is seen from its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from .images import Picture
from .messages import Clip, Part

TokensOf = Callable[[int, int], int]
"""How many tokens a picture of this width and height (px) costs."""

Similarity = Literal["unchanged", "cosine"]
_GRID, _PATCH_PX = 8, 8


@dataclass(frozen=True, kw_only=True)
class SlowFast:
    """Which frames are slow, and what they may cost.

    ``similarity_min``: a frame more like the latest slow one than this is fast. ``fast_share``: tokens of a fast frame as a share
    of a slow one's. ``budget_tokens``: for all frames together. The three defaults are the paper's. Its measure of similarity is
    not published; ``similarity`` is ours: "unchanged", the share of 8 x 8 grey patches whose mean absolute difference is at most
    ``tolerance`` (of 255), or "cosine", the mean cosine of the patches (blind to a flat patch that changes its brightness).
    """

    similarity_min: float = 0.95
    fast_share: float = 0.3
    budget_tokens: int = 75_000
    similarity: Similarity = "unchanged"
    tolerance: float = 8.0

    def __post_init__(self) -> None:
        if not (0 < self.fast_share <= 1 and 0 <= self.similarity_min <= 1 and self.budget_tokens > 0):
            raise ValueError(
                "slow-fast: 0 < fast_share <= 1, 0 <= similarity_min <= 1 and budget_tokens > 0 expected, "
                f"got {self.fast_share}, {self.similarity_min} and {self.budget_tokens}"
            )


def grid_tokens(token_px: int) -> TokensOf:
    """Tokens of a picture that is cut into squares of ``token_px``: 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL and later."""
    return lambda width_px, height_px: max(1, round(width_px / token_px)) * max(1, round(height_px / token_px))


def timed_parts(clip: Clip, timestamps: bool = True) -> tuple[Part, ...]:
    """Every frame as a picture, behind its time as Qwen3-VL writes it ("<12.3 seconds>").

    For families that tell the time of a frame by its position alone (Qwen2-VL, Qwen2.5-VL) this puts it into the prompt.
    """
    return _parts(clip.frames, clip.times_s, timestamps)


def slow_fast_parts(
    clip: Clip, tokens_of: TokensOf, settings: SlowFast | None = None, timestamps: bool = True
) -> tuple[Part, ...]:
    """The frames of a clip as pictures, slow ones large and fast ones small, within the token budget. Deterministic.

    Times as text are not counted. Raises `ValueError` when the frames do not fit however small they are.
    """
    settings = settings or SlowFast()
    slow = slow_frames(clip.frames, settings)
    slow_size, fast_size = slow_fast_sizes(slow, clip.frames[0].size_px, tokens_of, settings)
    shown = [_resized(frame, slow_size if large else fast_size) for frame, large in zip(clip.frames, slow, strict=True)]
    return _parts(shown, clip.times_s, timestamps)


def slow_frames(frames: Sequence[Picture], settings: SlowFast) -> tuple[bool, ...]:
    """Which frames are slow: the first, and every one that is not like the latest slow frame before it."""
    slow: list[bool] = []
    latest = np.empty(0)
    for frame in frames:
        patches_PD = _patches(frame)
        large = not slow or _similarity(latest, patches_PD, settings) <= settings.similarity_min
        latest = patches_PD if large else latest
        slow.append(large)
    return tuple(slow)


def slow_fast_sizes(
    slow: Sequence[bool], size_px: tuple[int, int], tokens_of: TokensOf, settings: SlowFast
) -> tuple[tuple[int, int], tuple[int, int]]:
    """``(width, height)`` of slow and of fast frames: the largest for which all frames together keep to the budget."""
    num_slow, num_fast = sum(slow), len(slow) - sum(slow)

    def sizes(tokens: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return _fitted(size_px, tokens, tokens_of), _fitted(size_px, int(settings.fast_share * tokens), tokens_of)

    def cost(tokens: int) -> int:
        large, small = sizes(tokens)
        return num_slow * tokens_of(*large) + num_fast * tokens_of(*small)

    least, most = 1, max(1, tokens_of(*size_px))
    if cost(least) > settings.budget_tokens:
        raise ValueError(
            f"slow-fast: {len(slow)} frames cost at least {cost(least)} tokens and the budget is {settings.budget_tokens}; "
            "take fewer frames or a larger budget"
        )
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if cost(middle) <= settings.budget_tokens else (least, middle - 1)
    return sizes(least)


def _fitted(size_px: tuple[int, int], tokens: int, tokens_of: TokensOf) -> tuple[int, int]:
    """The largest size of these proportions, not above the given one, with at most ``tokens`` (or the fewest there can be)."""
    width_px, height_px = size_px

    def at(width: int) -> tuple[int, int]:
        return width, max(1, round(height_px * width / width_px))

    tokens = max(tokens, tokens_of(*at(1)))
    least, most = 1, width_px
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if tokens_of(*at(middle)) <= tokens else (least, middle - 1)
    return at(least)


def _patches(frame: Picture) -> np.ndarray:
    """Grey values ``[P, D]`` of a frame in 8 x 8 patches of 8 x 8 px."""
    side = _GRID * _PATCH_PX
    grey = cv2.resize(np.asarray(frame.rgb().convert("L"), np.float32), (side, side), interpolation=cv2.INTER_AREA)
    return grey.reshape(_GRID, _PATCH_PX, _GRID, _PATCH_PX).transpose(0, 2, 1, 3).reshape(_GRID**2, _PATCH_PX**2)


def _similarity(a_PD: np.ndarray, b_PD: np.ndarray, settings: SlowFast) -> float:
    if settings.similarity == "unchanged":
        return float((np.abs(a_PD - b_PD).mean(axis=1) <= settings.tolerance).mean())
    norms_P = np.linalg.norm(a_PD, axis=1) * np.linalg.norm(b_PD, axis=1)
    same_P = (a_PD == b_PD).all(axis=1)
    return float(np.where(same_P, 1.0, (a_PD * b_PD).sum(axis=1) / np.maximum(norms_P, 1e-9)).mean())


def _resized(frame: Picture, size_px: tuple[int, int]) -> Picture:
    if frame.size_px == size_px:
        return frame
    return Picture.of(cv2.resize(np.asarray(frame.rgb()), size_px, interpolation=cv2.INTER_AREA))


def _parts(frames: Sequence[Picture], times_s: Sequence[float], timestamps: bool) -> tuple[Part, ...]:
    parts: list[Part] = []
    for frame, time in zip(frames, times_s, strict=True):
        parts += [f"<{time:.1f} seconds>", frame] if timestamps else [frame]
    return tuple(parts)
