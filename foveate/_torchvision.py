"""Lets a CUDA-built torchvision be imported beside a CPU-only torch.

PyPI has only CUDA builds of torchvision for Linux. Beside a CPU torch their compiled operators cannot load, and
``import torchvision`` then fails while registering a fake kernel for an operator that nobody declared. Declaring the two
schemas first is enough: ``torchvision.transforms`` works, ``torchvision.ops.nms`` stays unavailable.

Nothing happens until torchvision is imported, and nothing at all where torch has CUDA.
"""

import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
import types
from collections.abc import Sequence

_kept_libraries: list[object] = []  # torch.library frees an operator with the last reference to its Library


class _DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision" and not _kept_libraries:
            _declare_operators()
        return None  # "not found here", the way importlib wants it said


def _declare_operators() -> None:
    import torch

    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return
    if torch.version.cuda is not None or torch.version.hip is not None or version.endswith("+cpu"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_libraries.append(library)


def install() -> None:
    """Put the finder first in ``sys.meta_path``; a second call does nothing."""
    if not any(isinstance(finder, _DeclareOperators) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeclareOperators())
