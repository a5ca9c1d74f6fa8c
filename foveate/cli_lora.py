"""The command ``merge``: a run with adapters as a plain model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

out = Console(highlight=False)


class Dtype(StrEnum):
    """Types of stored weights."""

    base = "base"
    float32 = "float32"
    bfloat16 = "bfloat16"


def merge(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run with model.lora, one of its checkpoints, or any PEFT adapter.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the merged model.")],
    dtype: Annotated[Dtype, typer.Option(help="Type of the written weights; base: that of the base model.")] = Dtype.base,
) -> None:
    """Merge the adapters of a run into its base model, and write that in Hugging Face format."""
    from .vlm.folder import LoadError, resolve
    from .vlm.load import save
    from .vlm.lora import is_adapter, merged_model

    found = resolve(run)
    if not is_adapter(found):
        raise LoadError(f"{found}: no adapter but whole weights; there is nothing to merge, load it as it is")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LoadError(f"{folder}: exists already; give the name of a new folder")
    vlm = merged_model(found, None if dtype is Dtype.base else dtype.value)
    save(vlm, folder)
    out.print(f"{escape(str(found))} merged into {escape(str(folder))} ({str(vlm.dtype).removeprefix('torch.')})", soft_wrap=True)
