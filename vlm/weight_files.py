"""Weights on their way to an engine in another process: safetensors files in a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

_FILE_BYTES = 4 << 30


def write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path, file_bytes: int = _FILE_BYTES) -> None:
    """Write all weights into files of about ``file_bytes``; the folder has its name when it is complete, and not before."""
    from safetensors.torch import save_file

    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        part: dict[str, Tensor] = {}
        places: set[int] = set()
        size = number = 0
        for name, tensor in weights:
            if part and size + tensor.nbytes > file_bytes:
                save_file(part, unfinished / f"model-{number:05d}.safetensors", {"format": "pt"})
                part, places, size, number = {}, set(), 0, number + 1
            here = tensor.cpu().contiguous()
            part[name] = here.clone() if here.data_ptr() in places else here  # safetensors takes no shared memory
            places.add(here.data_ptr())
            size += tensor.nbytes
        save_file(part, unfinished / f"model-{number:05d}.safetensors", {"format": "pt"})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
