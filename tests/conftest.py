"""Loads foveate first (its hook lets torchvision be imported beside a CPU torch), and skips GPU tests where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest

from foveate import cli  # first of all: foveate's hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture
def foveate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: ``(exit status, standard output, standard error)``."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foveate", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run
