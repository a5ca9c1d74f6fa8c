"""What a data job works on: the data of a recipe, a file, or a data set written as in a recipe."""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .datasets.read import LazySamples, Problem, read
from .datasets.spec import DataSpec, load_data
from .datasets.views import ViewSpec, resolve_view
from .train.config import RunConfig
from .train.recipes import _override, load_recipe, recipe_names
from .vlm.records import Sample


@dataclass(frozen=True)
class Source:
    """Samples and where they come from. ``config`` is the recipe, if that is what was named.

    ``problems`` name the rows that reading left out or remarked upon.
    """

    spec: DataSpec
    samples: Sequence[Sample]
    config: RunConfig | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def num_left_out(self) -> int:
        """Rows that are no samples."""
        return sum(problem.left_out for problem in self.problems)

    def build(self, index: int) -> Sample:
        """Sample ``index`` itself, where indexing would put another in the place of one whose picture is broken. `ReadError`."""
        if isinstance(self.samples, LazySamples):
            return self.samples.build(self.samples.kept[index])[0]
        return self.samples[index]

    def place(self, index: int) -> str:
        """Where a sample stands, in words."""
        return f"{self.spec.path}, {self.samples.place(index)}" if isinstance(self.samples, LazySamples) else f"sample {index}"

    def identity(self) -> dict[str, Any]:
        """What tells this data from other data: its settings, its length, the SHA-256 of its files."""
        given = self.spec.model_dump(mode="json", exclude_defaults=True)
        return {"spec": given, "samples": len(self.samples), "sha256": _digests(self.spec)}


def open_source(name: str, overrides: Sequence[str] = ()) -> Source:
    """The data behind a recipe's name or file (``NAME#STAGE`` of one with stages; ``overrides`` are keys of the recipe), a data
    file, a hub id, or a mapping such as ``{synth: detail, n: 64}`` (``overrides`` are keys of the data: image_dir=photos).

    `ValueError` when there is no such data; rows that cannot be read are left out, and named in ``problems``.
    """
    recipe = name.partition("#")[0]
    if recipe in recipe_names() or recipe.endswith((".yaml", ".yml")):
        config = load_recipe(name, overrides)
        return _opened(config.data, config)
    if not name.startswith("{"):
        near = [] if Path(name).expanduser().exists() else difflib.get_close_matches(name, recipe_names(), 3, 0.8)
        if near:
            raise ValueError(f"{name}: no such data, and no recipe of that name; did you mean {' or '.join(near)}?")
    given = _mapping(name) if name.startswith("{") else {"path": name}
    for override in overrides:
        _override(given, override)
    return _opened(DataSpec.model_validate(given), None)


def view_of(text: str) -> ViewSpec:
    """A view as a recipe has it: a preset's name, or a mapping ``{preset: full, answer: " {answer}"}``. `ValueError`."""
    return resolve_view(_mapping(text) if text.startswith("{") else text)


def _mapping(text: str) -> dict[str, Any]:
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{text}: not a mapping as in a recipe ({error}); write for example '{{synth: detail, n: 64}}'"
        ) from error
    if not isinstance(given, dict):
        raise ValueError(f"{text}: not a mapping as in a recipe; write for example '{{synth: detail, n: 64}}'")
    return given


def _opened(spec: DataSpec, config: RunConfig | None) -> Source:
    if spec.path is None:
        return Source(spec, load_data(spec), config)
    result = read(spec)
    if not len(result.samples):
        shown = "".join(f"\n  {problem}" for problem in result.problems[:5])
        raise ValueError(f"{spec.path}: no usable row ({len(result.problems)} problems){shown}")
    if result.problems:
        shown = "".join(f"\n  {problem}" for problem in result.problems[:5])
        warnings.warn(f"{spec.path}: {len(result.problems)} problems{shown}", stacklevel=3)
    return Source(spec, result.samples, config, tuple(result.problems))


def _digests(spec: DataSpec) -> list[str]:
    if spec.mix:
        return [digest for part in spec.mix for digest in _digests(part.data)]
    place = Path(spec.path or "").expanduser()
    if spec.path is None or not place.is_file():
        return []
    with place.open("rb") as stream:
        return [hashlib.file_digest(stream, "sha256").hexdigest()]
