"""`DataSpec`: the data of a run as a recipe names it, and `load_data`, which turns it into samples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import pydantic

from ..vlm.records import Sample
from .crops import Part
from .mix import Blend

BoxFormat = Literal["px_xyxy", "k1000_xyxy", "frac_xyxy", "px_xywh"]


class MixPart(Part):
    """One ingredient of a mixture."""

    data: DataSpec
    weight: float = pydantic.Field(default=1.0, gt=0)
    """Share of the prompts, relative to the other ingredients."""


class DataSpec(Part):
    """Where samples come from: a synthetic world, a file, a hub data set, or a weighted mixture of these.

    ``{synth: detail, split: train, n: 4096}``, ``{path: data/train.jsonl, image_dir: data/images}``,
    ``{mix: [{data: ..., weight: 3}, ...]}``.
    """

    synth: str | None = None
    """A world of `scenes` (detail, place, place_dense) or, with a video, of `video_scenes` (clip)."""
    n: int = pydantic.Field(default=1024, ge=1)
    """Synthetic samples."""
    kinds: tuple[str, ...] = ("letter",)
    """Kinds of synthetic questions."""
    questions_per_scene: int = pydantic.Field(default=1, ge=1)
    as_text: bool = False
    """Synthetic scenes in words, without a picture."""
    canvas_px: int | None = None
    """Side of synthetic pictures; None: the world's own."""

    path: str | None = None
    """A .jsonl, .json or .parquet file, a folder saved by Hugging Face datasets, or a hub id."""
    format: str | None = None
    """One of `importers.FORMATS`; None: seen from the columns."""
    image_dir: str | None = None
    """Folder that picture paths start from; None: the folder of the file."""
    box_format: BoxFormat | None = None
    """Unit of ``boxes``, ``box``, ``bbox`` where the column's name does not say it; None: pixels, x1 y1 x2 y2."""
    columns: dict[str, str] = pydantic.Field(default_factory=dict)
    """Own column names: {question: my_question}."""
    hub_split: str = "train"
    """Split of a hub data set or of a saved DatasetDict."""
    hub_name: str | None = None
    """Configuration of a hub data set."""
    limit: int | None = pydantic.Field(default=None, ge=1)
    """At most so many samples, after splitting: a seeded draw in file order."""
    holdout_frac: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of the pictures held out as ``split: test``, by content: a picture is never in two splits."""
    verify: Literal["none", "header", "full"] = "header"
    """How pictures and videos are looked at when reading: not at all, their headers (a video's first frame), or decoded."""
    strict: bool = False
    """Stop at the first bad row instead of leaving it out."""

    video_dir: str | None = None
    """Folder that video paths start from; None: the folder of the file."""
    video_fps: float = pydantic.Field(default=2.0, gt=0)
    """Frames kept of a second of video, evenly spread, at least 4 in all."""
    video_max_frames: int = pydantic.Field(default=64, ge=1)
    video_max_pixels: int | None = pydantic.Field(default=768 * 28 * 28, ge=1)
    """Largest area of a kept frame in px, for memory's sake (tools get full frames from the file); None: as in the file."""
    video_plan: Literal["uniform", "pictures", "slow_fast"] = "uniform"
    """uniform: a clip, which goes through the family's video processor; pictures: the same frames as pictures; slow_fast: as
    pictures, frames like the one before small (`vlm.frames`). Tools that select frames need the clip of uniform."""
    video_timestamps: bool = True
    """pictures and slow_fast: write "<12.3 seconds>" before each frame. (Clips: Qwen3-VL and later write it themselves.)"""
    video_budget_tokens: int = pydantic.Field(default=16384, ge=1)
    """slow_fast: tokens of all frames together."""
    video_token_px: int = pydantic.Field(default=28, ge=1)
    """slow_fast: side of a token in px, 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL and later."""

    mix: tuple[MixPart, ...] = ()
    """Several data sets at once."""

    split: str = "train"
    """Synthetic: train, dev or test. Files with holdout_frac: train, test or all."""
    seed: int = 0
    """Of synthetic scenes, of the hold-out and of `limit`."""

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        given = [name for name, value in (("synth", self.synth), ("path", self.path), ("mix", self.mix)) if value]
        if len(given) != 1:
            raise ValueError(f"data: give exactly one of synth, path and mix, got {', '.join(given) or 'none'}")
        allowed = {"synth": ("train", "dev", "test"), "path": ("train", "test", "all"), "mix": ("train",)}[given[0]]
        if self.split not in allowed:
            raise ValueError(f"data: split {self.split!r} of {given[0]} data; expected {' or '.join(allowed)}")
        if given == ["path"] and self.split == "test" and not self.holdout_frac:
            raise ValueError(
                "data: split: test of a file needs holdout_frac (as in the training data), or a file of its own with split: train"
            )
        return self


def load_data(spec: DataSpec | dict[str, Any]) -> Sequence[Sample]:
    """The samples, built when they are indexed (pictures of a file are decoded then). A mixture is a `mix.Blend`.

    `ValueError` for a file that cannot be used at all; single bad rows are left out, counted and named in a warning, and
    reported in full by ``foveate data check``.
    """
    if isinstance(spec, dict):
        spec = DataSpec.model_validate(spec)
    if spec.mix:
        return Blend([load_data(part.data) for part in spec.mix], [part.weight for part in spec.mix])
    if spec.synth is not None:
        from .scene_stream import scene_samples

        return scene_samples(
            spec.synth, spec.split, spec.n, seed=spec.seed, kinds=spec.kinds, questions_per_scene=spec.questions_per_scene,
            as_text=spec.as_text, canvas_px=spec.canvas_px,
        )  # fmt: skip
    from .read import read

    result = read(spec)
    shown = "".join(f"\n  {problem}" for problem in result.problems[:5])
    if len(result.samples) and result.problems:
        warnings.warn(f"{spec.path}: {len(result.problems)} problems; {len(result.samples)} rows are used{shown}", stacklevel=2)
    if not len(result.samples):
        raise ValueError(f"{spec.path}: no usable row ({len(result.problems)} problems){shown}")
    return result.samples


MixPart.model_rebuild()
