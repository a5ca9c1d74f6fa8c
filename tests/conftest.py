"""Loads foveate first (its hook lets torchvision be imported beside a CPU torch), and skips GPU tests where there is none."""

from __future__ import annotations

import os

import pytest

import foveate  # noqa: F401 - imported for its effect

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
