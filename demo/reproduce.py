"""The command line and the Python that give the same answer as the page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pprint import pformat
from typing import TYPE_CHECKING

from ..datasets.presets import TINY_TOOLS
from ..visual_tools.spec import build_toolbox
from .asks import VIDEO_TOOLS, Ask

if TYPE_CHECKING:
    from .players import Player

_ROLLOUT_FRAMES = 8  # what `foveate rollout` shows of a video when it is not told


def command(ask: Ask, player: Player, max_pixels: int | None = None) -> str:
    """Lines for a shell that make the same answer; a comment where `foveate rollout` has no words for it."""
    if player.server is not None:
        return "# foveate rollout plays models in its own process; for one behind a server use the Python."
    if ask.way == "evidence":
        return "# foveate rollout shows whole pictures; for a box drawn by hand use the Python."
    asked = ask.mode(player.tiny)
    options = ["--max-new-tokens", str(asked.max_new_tokens)]
    if asked.tools is None:
        system = asked.view.system
        options += ["--turns", "1", "--system", "" if system in ("own", "none") else system]
    else:
        offered = build_toolbox(asked.tools, player.coords).system_prompt
        wanted = TINY_TOOLS if player.tiny else offered
        options += ["--turns", str(asked.max_turns)]
        options += ["--system", wanted] if wanted != (TINY_TOOLS if player.name == "tiny" else offered) else []
    if ask.source.is_video:
        options += [piece for tool in VIDEO_TOOLS for piece in ("--tool", tool)] if asked.tools is not None else []
        options += ["--frames", str(ask.frames)] if ask.frames != _ROLLOUT_FRAMES else []
    options += ["--temperature", f"{ask.temperature:g}"] if ask.temperature else []
    options += ["--seed", str(ask.seed)] if ask.seed else []
    options += ["--max-pixels", str(max_pixels)] if max_pixels else []
    # behind "--" nothing is an option, whatever the question begins with
    line = shlex.join(["foveate", "rollout", *options, "--", player.name, ask.source.name, ask.question])
    if ask.source.scene is None:
        return line
    world, seed = ask.source.scene
    drawn = f'from foveate.datasets.scenes import scene; scene("{world}", {seed}).picture().rgb().save("{ask.source.name}")'
    return f"{shlex.join(['python', '-c', drawn])}\n{line}"


def python(pairs: Sequence[tuple[Ask, Player]], max_pixels: int | None = None) -> str:
    """A script that makes the same answers and prints what the models said, turn by turn."""
    imports: dict[str, set[str]] = {}
    blocks = [_block(ask, player, max_pixels, imports) for ask, player in pairs]
    head = "".join(f"from foveate.{module} import {', '.join(sorted(names))}\n" for module, names in sorted(imports.items()))
    return f"{head}\n{chr(10).join(blocks)}"


def _block(ask: Ask, player: Player, max_pixels: int | None, imports: dict[str, set[str]]) -> str:
    def needs(module: str, *names: str) -> None:
        imports.setdefault(module, set()).update(names)

    needs("eval.engines", "Task")
    needs("eval.modes", "mode")
    needs("eval.records", "Item")
    needs("vlm.records", "Sample")
    sample = ["id='own'", f"question={_text(ask.question)}", _visual(ask, needs)]
    if ask.way == "evidence":
        needs("vlm.records", "Privileged")
        sample.append(f"privileged=Privileged(boxes_px_xyxy=({ask.box_px_xyxy},))")
    if player.server is None:
        needs("eval.engines", "InProcess")
        needs("vlm.load", "load")
        engine = f"InProcess(load({player.name!r}{f', max_pixels={max_pixels}' if max_pixels else ''}))"
    else:
        needs("eval.server", "Server")
        told = player.server
        settings = {"url": told.url, "model": told.model, "family": told.family, "max_pixels": told.max_pixels}
        engine = f"Server({', '.join(f'{name}={value!r}' for name, value in settings.items() if value is not None)})"
    chosen = [repr("crop" if ask.way == "evidence" else ask.way), *(["tiny=True"] if player.tiny else []), "official_tail=False"]
    chosen += [f"temperature={ask.temperature:g}"] if ask.temperature else []
    chosen += [f"tools={{'tools': {list(VIDEO_TOOLS)}}}"] if ask.way == "tools" and ask.source.is_video else []
    lines = "".join(f"    {line},\n" for line in sample)
    return (
        f"sample = Sample(\n{lines})\n"
        f"engine = {engine}\n"
        f"asked = mode({', '.join(chosen)})\n"
        f"task = Task(Item(sample), asked, draw=0, key='own', seed={ask.seed})\n"
        "engine.play([task], lambda task, played: print(*played.texts, played.error, sep='\\n'))\n"
    )


def _visual(ask: Ask, needs: Callable[..., None]) -> str:
    source = ask.source
    if source.scene is not None:
        needs("datasets.scenes", "scene")
        world, seed = source.scene
        return f"images=(scene({world!r}, {seed}).picture(),)"
    if source.is_video:
        needs("vlm.video", "read_clip")
        return f"video=read_clip({source.name!r}, fps=1000.0, max_frames={ask.frames})"
    needs("vlm.images", "Picture")
    return f"images=(Picture.open({source.name!r}),)"


def _text(question: str) -> str:
    """A literal; a long one over several lines."""
    return pformat(question, width=110) if len(question) > 100 else repr(question)
