"""Command ``gpu``: every check and benchmark that needs a GPU."""

from __future__ import annotations

import typer


def gpu(context: typer.Context) -> None:
    """Run every check and benchmark that needs a GPU, in at most 8 minutes, into gpu.json; --render makes docs/gpu.md of it."""
    from .gpu_checks.__main__ import main

    raise typer.Exit(main(context.args))


SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""The arguments are those of ``python -m foveate.gpu_checks``, its --help too."""
