"""The command ``view``: a run, or two, as a page that follows them while they train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console(highlight=False)


def view(
    run: Annotated[list[Path], typer.Argument(metavar="RUN [RUN2]", help="A run folder, or two to compare.")],
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8710,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
) -> None:
    """Show a run in the browser: curves, and rollouts with what student and teacher saw and said. Live while it trains."""
    import webbrowser

    from .view import Server, Site, is_local

    with Server(Site(run), host, port) as server:
        out.print(f"{server.url}  (Ctrl-C ends it)", soft_wrap=True)
        if not is_local(host):
            out.print("[yellow]Whoever reaches this address can read the run: there is no password.[/]")
        if not no_open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            out.print("ended")
