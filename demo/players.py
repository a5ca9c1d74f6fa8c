"""Who answers: a model in this process, or one behind an OpenAI-compatible server. Both write a `Story` while they play."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ..eval.chat import Line, Pacer, Refused, ServerError
from ..eval.engines import Task
from ..eval.records import Item
from ..eval.server import Chat, Server
from ..visual_tools.boxes import Coords
from ..visual_tools.spec import ToolsSpec, build_toolbox
from ..visual_tools.toolbox import Toolbox
from ..vlm.families.registry import family_of
from ..vlm.folder import TINY_FOLDER, LoadError, resolve
from ..vlm.generate import Sampling
from ..vlm.images import Picture
from ..vlm.load import VLM, load
from ..vlm.messages import Clip
from ..vlm.records import Reply, Rollout, Shown
from ..vlm.render import Renderer
from ..vlm.rollout import Limits, Rules, rollout
from .asks import SAMPLE_ID, Ask
from .story import Abandoned, ShownTurn, Writer, shown_turn
from .together import Together

SeenPx = Callable[[Picture | Clip], tuple[int, int]]


class Player(Protocol):
    """A model that can be asked. ``tiny``: it is the embedded model, or was trained from it, and knows its few words only."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str:
        """A sentence about it, for the page."""
        ...

    @property
    def tiny(self) -> bool: ...

    @property
    def streams(self) -> str:
        """What can be watched while it answers."""
        ...

    @property
    def server(self) -> Server | None: ...

    @property
    def coords(self) -> Coords:
        """How it writes coordinates, where its dialect does not say so."""
        ...

    def seen_px(self, visual: Picture | Clip) -> tuple[int, int] | None:
        """Width and height at which it sees a picture or the frames of a clip; None when that is not known."""
        ...

    def play(self, ask: Ask, writer: Writer) -> None:
        """Answer, telling the ``writer``. `ValueError`, `RuntimeError` or `OSError` when that cannot be done."""
        ...


def start(player: Player, ask: Ask) -> Writer:
    """Have the question answered in a thread of its own; the story is read from what is returned."""
    writer = Writer(player.renderer.decode) if isinstance(player, Local) else Writer()

    def work() -> None:
        try:
            player.play(ask, writer)
        except Abandoned:
            writer.failed("Stopped.")
        except (ValueError, RuntimeError, OSError) as error:
            writer.failed(_told(error, ask))
        finally:
            writer.close()

    threading.Thread(target=work, name="demo-answer", daemon=True).start()
    return writer


def _told(error: Exception, ask: Ask) -> str:
    """An error for a visitor: no path of this machine is in it."""
    said = str(error)
    if ask.source.path is not None:
        said = said.replace(ask.source.path, ask.source.name)
    return said[:600] or type(error).__name__


@dataclass(frozen=True, kw_only=True)
class Watched(Toolbox):
    """A toolbox whose replies are told as soon as they are there."""

    told: Callable[[Reply], None]

    def act(self, text: str, shown: Shown) -> Reply | None:
        reply = super().act(text, shown)
        if reply is not None:
            self.told(reply)
        return reply


def _watched(spec: ToolsSpec, coords: Coords, told: Callable[[Reply], None]) -> Watched:
    toolbox = build_toolbox(spec, coords)
    return Watched(**toolbox.__dict__, told=told)


def knows_tiny_words(folder: Path) -> bool:
    """Whether a model is the embedded one or was trained from it: it has the same tokenizer, of 512 words."""
    own, other = TINY_FOLDER / "tokenizer.json", folder / "tokenizer.json"
    return other.is_file() and own.is_file() and other.read_bytes() == own.read_bytes()


# ---- in this process ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Local:
    """A model in this process. Make one with `open_local`."""

    name: str
    vlm: VLM
    together: Together
    tiny: bool
    streams: str = "every token as it is sampled"
    server: None = None

    @property
    def renderer(self) -> Renderer:
        return self.vlm.renderer

    @property
    def about(self) -> str:
        where = "" if self.vlm.folder is None or self.name == "tiny" else f" (weights of {self.vlm.folder.name})"
        return f"{self.name}{where}, in this process on {self.vlm.device.type}"

    @property
    def coords(self) -> Coords:
        return self.vlm.family.coords

    def seen_px(self, visual: Picture | Clip) -> tuple[int, int] | None:
        item = self.renderer.item(visual)
        return item.width_px, item.height_px

    def play(self, ask: Ask, writer: Writer) -> None:
        """See `Player.play`."""
        asked, sample, old = ask.mode(self.tiny), ask.sample(), self.renderer
        # a renderer keeps what it has written, with the pictures: one for each question bounds the memory
        renderer = Renderer(old.family, old.tokenizer, old.image, old.chat_template, old.template_kwargs)
        toolbox = None
        if asked.tools is not None:
            toolbox = _watched(asked.tools, self.coords, writer.called)
        view = ask.view(sample, asked, None if toolbox is None else toolbox.system_prompt)
        writer.begin(view.visuals)
        groups = rollout(
            [(replace(sample, id=SAMPLE_ID), view)],
            self.together.ear(writer.token, writer.check),
            renderer,
            n=1,
            sampling=Sampling(temperature=asked.temperature, max_new_tokens=asked.max_new_tokens),
            seed=ask.seed,
            rules=Rules(toolbox, Limits(turns=asked.max_turns)),
        )
        played = groups[0].rollouts[0]
        writer.done(_turns(played), played.num_actions, played.stop.value)


def _turns(played: Rollout) -> tuple[ShownTurn, ...]:
    return tuple(shown_turn(turn.text, turn.calls, turn.observation) for turn in played.turns)


def open_local(name: str, *, max_pixels: int | None = None, device: str = "auto", together: int = 16) -> Local:
    """Load a model: "tiny", a folder, a run (its last checkpoint) or a hub id. Raises `LoadError`, a `ValueError`."""
    folder = resolve(name)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise LoadError(f"{folder}: no weights (*.safetensors) beside config.json; copy them there, or give another folder")
    vlm = load(name, max_pixels=max_pixels, device=device)
    return Local(name, vlm, Together(vlm, together), name == "tiny" or knows_tiny_words(folder))


# ---- behind a server ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remote:
    """A model behind an OpenAI-compatible server. ``streams`` depends on the server: it is asked for a stream of events."""

    server: Server
    tiny: bool = False
    streams: str = "text as the server streams it; tool calls are carried out here"
    pacer: Pacer = field(default_factory=lambda: Pacer(None))

    @property
    def name(self) -> str:
        return self.server.model

    @property
    def about(self) -> str:
        return f"{self.server.model}, behind {self.server.url}"

    @property
    def coords(self) -> Coords:
        return "norm1000" if self.server.family is None else family_of(self.server.family).coords

    def seen_px(self, visual: Picture | Clip) -> tuple[int, int] | None:
        settings = self.server.settings
        if settings is None:
            return None
        picture = visual if isinstance(visual, Picture) else visual.frames[0]
        return settings.budget.resized(*picture.size_px, settings.factor)

    def play(self, ask: Ask, writer: Writer) -> None:
        """See `Player.play`."""
        asked, server = ask.mode(self.tiny), self.server
        task = Task(Item(ask.sample()), asked, 0, SAMPLE_ID, ask.seed)
        calls: list[Reply] = []
        stream = _Stream(writer)

        def told(reply: Reply) -> None:
            writer.check()
            calls.append(reply)
            writer.called(reply)

        toolbox = None if asked.tools is None else _watched(asked.tools, self.coords, told)
        view = task.view(None if toolbox is None else toolbox.system_prompt)
        writer.begin(view.visuals)
        line = Line(server.url, os.environ.get(server.key_env), server.timeout_s)
        try:
            played = Chat(server, task, view, toolbox, server.settings, stream.heard).play(line, self.pacer)
        except (Refused, ServerError) as error:
            raise ValueError(str(error)) from error
        finally:
            line.close()
        last = len(played.texts) - 1
        turns = tuple(
            shown_turn(text, calls[n].calls if n < len(calls) else (), calls[n].message if n < min(len(calls), last) else None)
            for n, text in enumerate(played.texts)
        )
        writer.done(turns, played.tokens_out, played.stop)


class _Stream:
    """Reads the text out of a stream of events while it comes. What it cannot read it leaves to the client."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._rest, self._thought, self._said = b"", "", ""

    def heard(self, piece: bytes) -> None:
        """A piece of a reply; an empty one: a new try, or a new turn, begins."""
        self.writer.check()
        if not piece:
            self._rest, self._thought, self._said = b"", "", ""
            return
        *lines, self._rest = (self._rest + piece).split(b"\n")
        tokens = sum(self._line(line) for line in lines)
        if tokens:
            thought = f"<think>{self._thought}" + ("</think>\n" if self._said else "") if self._thought else ""
            self.writer.text(thought + self._said, tokens)

    def _line(self, line: bytes) -> int:
        """1 when the line brought text (servers send about a token in a line), else 0."""
        said = line.strip().removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or said == b"[DONE]":
            return 0
        try:
            delta = json.loads(said)["choices"][0]["delta"]
            content, thought = delta.get("content") or "", delta.get("reasoning_content") or delta.get("reasoning") or ""
            self._said, self._thought = self._said + content, self._thought + thought
        except (ValueError, LookupError, TypeError, AttributeError):
            return 0
        return int(bool(content or thought))
