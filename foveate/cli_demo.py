"""Command ``demo``: a page to upload a picture, ask, and watch a model look."""

from __future__ import annotations

import importlib.util
import threading
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

out = Console(highlight=False)


def demo(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL|RUN]...", help="tiny (the default), folders, runs or hub ids; several can be compared."),
    ] = None,
    server: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible API, which has MODEL.")] = None,
    family: Annotated[str | None, typer.Option(help="With --server: its family, such as qwen2.5-vl.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Most pixels of a picture in the model's eyes.")] = None,
    upload_mb: Annotated[int, typer.Option(min=1, help="Largest upload.")] = 50,
    megapixels: Annotated[float, typer.Option(help="Largest picture.")] = 50.0,
    video_s: Annotated[float, typer.Option(help="Longest video, in seconds.")] = 120.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 100,
    together: Annotated[int, typer.Option(min=1, help="Questions that are played at once.")] = 16,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Let visitors have pictures fetched by address.")] = False,
) -> None:
    """Open a page on which one asks a model about a picture and watches it look."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo needs Gradio, which is not installed; run: pip install 'foveate[demo]'")
    from .demo.limits import Limits
    from .demo.players import Player, Remote, open_local
    from .demo.serve import LOOPBACK, serving
    from .eval.server import Server

    limits = Limits(upload_mb=upload_mb, megapixels=megapixels, video_s=video_s, queue=queue, together=together)
    names = list(dict.fromkeys(models or ["tiny"]))
    if server is not None and models is None:
        raise ValueError("say which model the server has: foveate demo MODEL --server URL")
    players: list[Player] = []
    for name in names:
        if server is None:
            out.print(f"[dim]loading[/] {escape(name)}")
            players.append(open_local(name, max_pixels=max_pixels, device=device, together=together))
        else:
            asked = Server(url=server, model=name, family=family, max_pixels=max_pixels, stream=True, retries=2, timeout_s=120.0)
            players.append(Remote(asked, tiny=name == "tiny"))
    if host not in LOOPBACK:
        out.print("[yellow]Other machines can reach this page.[/] It has no password: anyone who does can upload and ask.")
    with serving(
        players, limits, host=host, port=port or None, allow_remote=allow_remote, max_pixels=max_pixels, open_browser=open_browser
    ) as address:
        if models is None:
            out.print("The embedded tiny model with synthetic scenes: it knows nothing but coloured shapes that carry a letter.")
        out.print(f"[bold]{escape(address.url)}[/]   (Ctrl-C ends it)", soft_wrap=True)
        threading.Event().wait()
