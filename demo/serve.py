"""Serves the page: on this machine alone unless told otherwise, without telemetry, without anything from other machines."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .limits import Limits
from .players import Player

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the page is served; ``url`` is what to open."""

    url: str
    host: str
    port: int


@contextmanager
def serving(
    players: Sequence[Player], limits: Limits, *, host: str = "127.0.0.1", port: int | None = 7860, allow_remote: bool = False,
    max_pixels: int | None = None, open_browser: bool = False,
) -> Iterator[Address]:  # fmt: skip
    """The page in threads of this process until the block ends; ``port`` None takes a free one. Uploads go with it.

    Raises `OSError` when the port is taken.
    """
    folder = Path(tempfile.mkdtemp(prefix="foveate-demo-"))
    # read by Gradio when it is imported or builds a page
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder))
    from starlette.middleware import Middleware

    from .gate import Gate
    from .page import Page, build
    from .show import environment

    try:
        blocks = build(Page(players, limits, folder, allow_remote, max_pixels))
        gate = Middleware(
            Gate, max_json_bytes=max(1 << 18, 16 * limits.question_chars), hosts=LOOPBACK if host in LOOPBACK else ()
        )
        _, url, _ = blocks.launch(
            server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, show_error=True,
            inbrowser=open_browser, max_file_size=limits.upload_bytes, allowed_paths=[], blocked_paths=[os.getcwd()],
            ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False, footer_links=[], run_history=False,
            app_kwargs={"middleware": [gate], "docs_url": None, "redoc_url": None}, max_threads=80,
            theme=theme(), css=environment().get_template("page.css.j2").render(),
        )  # fmt: skip
        try:
            yield Address(url=url, host=host, port=int(url.rstrip("/").rpartition(":")[2]))
        finally:
            blocks.close(verbose=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def theme() -> Any:
    """Gradio's plain theme in the fonts of the reader's own machine: the usual ones come from Google."""
    import gradio as gr

    return gr.themes.Default(
        primary_hue="teal", neutral_hue="stone",
        font=["Inter", "Segoe UI", "system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"],
    )  # fmt: skip
