"""Model folders: where they are, what their processor files say, and how those are written.

Everything here is files; weights are in `load.py`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .families.base import Family
from .families.registry import FAMILIES
from .images import ImageSettings, PixelBudget
from .render import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY_FOLDER = Path(__file__).parent / "tiny" / "weights"
_KEPT_FILES = (
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens",
    "added_tokens",
    "chat_template",
    "preprocessor",
    "processor",
    "video_preprocessor",
)
"""Beginnings of the names of the files that lie beside the weights of a model."""


class LoadError(ValueError):
    """A model that cannot be loaded. Says what was found, what was expected and how to mend it."""


def resolve(name: str | os.PathLike[str]) -> Path:
    """The folder that holds a model or an adapter: the embedded one, a path (of a run: its last checkpoint, of a complete staged
    run the one it has left), or a snapshot of the Hub."""
    text = os.fspath(name)
    folder = TINY_FOLDER if text == "tiny" else Path(text).expanduser()
    if not folder.is_dir():
        if text == "tiny":
            raise LoadError(
                f"the embedded model is not installed ({folder} is missing); "
                "reinstall foveate, or give the folder of another model"
            )
        if text.count("/") != 1 or text.startswith((".", "/", "~")):
            raise LoadError(
                f"{text}: no such folder, and not a Hugging Face name (owner/model); give a folder with config.json and weights"
            )
        return _from_hub(text)
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return folder
    if (folder / "stages").is_dir() and (folder / "config.yaml").is_file():  # a staged run: what it has left
        if not (folder / "summary.json").is_file():
            raise LoadError(f"{folder}: a staged run that is not complete; give one of the folders in {folder / 'stages'}")
        return resolve(folder / read_json(folder / "summary.json")["checkpoint"])
    names = ("config.json", "adapter_config.json")
    saved = [path.parent for name in names for path in folder.glob(f"checkpoints/step_*[0-9]/{name}")]
    if saved:  # a run folder
        return max(saved, key=lambda path: int(path.name.partition("_")[2]))
    raise LoadError(f"{folder}: no config.json; give the folder of a model in Hugging Face format")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    mend = "or download it elsewhere and give the local folder"
    try:
        return Path(snapshot_download(name, ignore_patterns=["*.pth", "*.gguf", "original/*", "*.onnx"]))
    except RepositoryNotFoundError as error:
        raise LoadError(
            f"{name}: neither a folder here nor a model on the Hub that you may read; check the name, log in, {mend}"
        ) from error
    except HFValidationError as error:
        raise LoadError(f"{name}: neither a folder here nor a valid Hub name; {mend}") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise LoadError(
            f"{name}: not a folder here, and the Hub cannot be reached or is switched off (HF_HUB_OFFLINE); connect, {mend}"
        ) from error


def family_in(folder: Path, config: Mapping[str, Any]) -> Family:
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        supported = ", ".join(f"{family.name} ({model_type})" for model_type, family in FAMILIES.items())
        raise LoadError(
            f"{folder}: model_type is {config.get('model_type')!r}, which is not a supported family; supported: {supported}"
        )
    return family


def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise LoadError(f"{folder}: no tokenizer.json or vocab.json; copy the tokenizer files of the model into the folder")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def template_in(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The processor's template where the tokenizer has none: older folders keep it in ``chat_template.json``."""
    older = folder / "chat_template.json"
    if tokenizer.chat_template is None and older.is_file():
        return str(read_json(older)["chat_template"])
    return None


# ---- processor files ------------------------------------------------------------------------------------------------------


def read_settings(folder: Path, family: Family, min_pixels: int | None = None, max_pixels: int | None = None) -> ImageSettings:
    """`ImageSettings` of a folder's processor files, with the bounds on pixels replaced where they are given.

    A file that is missing means the family's own settings; a missing video file means the picture's, as transformers has it.
    """
    together = read_json(folder / "processor_config.json")
    image = together.get("image_processor") or read_json(folder / "preprocessor_config.json")
    video = together.get("video_processor") or read_json(folder / "video_preprocessor_config.json") or image
    own = family.settings()

    def budget(data: Mapping[str, Any], default: PixelBudget, low: int | None, high: int | None) -> PixelBudget:
        size = data.get("size") or {}
        least = low or data.get("min_pixels") or size.get("shortest_edge") or default.min_pixels
        most = high or data.get("max_pixels") or size.get("longest_edge") or default.max_pixels
        try:
            return PixelBudget(int(least), int(most))
        except ValueError as error:
            raise LoadError(f"{folder}: {error}; give both min_pixels and max_pixels") from error

    return ImageSettings(
        patch_size=int(image.get("patch_size", own.patch_size)),
        merge_size=int(image.get("merge_size", own.merge_size)),
        temporal_patch_size=int(image.get("temporal_patch_size", own.temporal_patch_size)),
        mean=_three(image.get("image_mean", own.mean)),
        std=_three(image.get("image_std", own.std)),
        budget=budget(image, own.budget, min_pixels, max_pixels),
        video=dataclasses.replace(
            own.video, budget=budget(video, own.video.budget, None, None), fps=float(video.get("fps") or own.video.fps)
        ),
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def same_patches(folder: Path, image: ImageSettings, config: Mapping[str, Any]) -> None:
    vision = config["vision_config"]
    for name, key in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        have = dataclasses.asdict(image)[name]
        if key in vision and vision[key] != have:
            raise LoadError(
                f"{folder}: the processor has {name} {have}, config.json has {key} {vision[key]}; take both files of one model"
            )


def with_clock(image: ImageSettings, config: Mapping[str, Any]) -> ImageSettings:
    """``tokens_per_second`` is a setting of the model, not of its processor."""
    per_second = float(config["vision_config"].get("tokens_per_second", 1.0))
    return dataclasses.replace(image, video=dataclasses.replace(image.video, tokens_per_second=per_second))


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise LoadError(f"{path}: not valid JSON (line {error.lineno}: {error.msg}); download the file again") from error
    assert isinstance(data, dict)
    return data


def save_processor(renderer: Renderer, folder: Path) -> None:
    """Tokenizer and processor of a model that was made here."""
    import transformers

    image, video = renderer.image, renderer.image.video
    common: dict[str, Any] = {
        "patch_size": image.patch_size,
        "merge_size": image.merge_size,
        "temporal_patch_size": image.temporal_patch_size,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
    picture_processor = transformers.Qwen2VLImageProcessor(**common, size=_size(image.budget))
    video_class = {
        "Qwen2VLVideoProcessor": transformers.Qwen2VLVideoProcessor,
        "Qwen3VLVideoProcessor": transformers.Qwen3VLVideoProcessor,
    }
    processor_class = {
        "Qwen2VLProcessor": transformers.Qwen2VLProcessor,
        "Qwen2_5_VLProcessor": transformers.Qwen2_5_VLProcessor,
        "Qwen3VLProcessor": transformers.Qwen3VLProcessor,
    }
    video_processor = video_class[renderer.family.video_processor_class](
        **common, size=_size(video.budget), cap_pixels_per_frame=False
    )
    template = renderer.chat_template
    processor = processor_class[renderer.family.processor_class](
        picture_processor, renderer.tokenizer, video_processor, chat_template=template
    )
    processor.save_pretrained(folder)


def copy_processor(renderer: Renderer, source: Path, folder: Path) -> None:
    """The files beside the weights, unchanged but for the pixel budget and a chat template that was given at loading."""
    for path in source.iterdir():
        if path.is_file() and path.name.startswith(_KEPT_FILES):
            shutil.copyfile(path, folder / path.name)
    for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        data = read_json(folder / name)
        image = data.get(part) if part else data
        if image:
            image.pop("min_pixels", None)
            image.pop("max_pixels", None)
            image["size"] = _size(renderer.budget)
            (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if renderer.chat_template != (renderer.tokenizer.chat_template or template_in(source, renderer.tokenizer)):
        (folder / "chat_template.json").unlink(missing_ok=True)
        (folder / "chat_template.jinja").write_text(renderer.chat_template, encoding="utf-8")


def _size(budget: PixelBudget) -> dict[str, int]:
    return {"shortest_edge": budget.min_pixels, "longest_edge": budget.max_pixels}
