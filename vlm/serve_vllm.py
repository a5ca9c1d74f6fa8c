"""Starts a vLLM server as `engine_server` needs it: ``python -m foveate.vlm.serve_vllm MODEL [--port 8000] [options of vLLM]``.

The server takes weights from whoever can reach it: it listens on this machine alone unless ``--host`` says otherwise, and belongs
on a network of your own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

from .engine_worker import NAME

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the addresses that change weights and reset caches
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one that engine_worker is written for
    "VLLM_NO_USAGE_STATS": "1",
}


def command(model: str, *, max_pictures: int = 8, options: Sequence[str] = ()) -> list[str]:
    """The command line; ``options`` come last and win."""
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--host", "127.0.0.1",
        "--logprobs-mode", "processed_logprobs",
        "--worker-extension-cls", NAME,
        "--enable-prefix-caching",
        "--enable-scale-out",  # token ids in, token ids out
        "--limit-mm-per-prompt", json.dumps({"image": max_pictures, "video": 0}),
        *options,
    ]  # fmt: skip


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """``own`` with what the server needs besides."""
    return {**own, **ENVIRONMENT}


def main(arguments: Sequence[str]) -> None:
    """Become the server. Raises `SystemExit` without a model."""
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit("python -m foveate.vlm.serve_vllm MODEL [--port 8000] [vLLM's own options]")
    made = command(arguments[0], options=arguments[1:])
    os.execve(made[0], made, environment(os.environ))


if __name__ == "__main__":
    main(sys.argv[1:])
