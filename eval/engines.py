"""Who answers: an engine is handed tasks and gives back what was played of each, in any order. `InProcess` runs a model here.

A task that cannot be played is given back as "failed" with its error; it never stops the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from ..visual_tools.spec import build_toolbox
from ..vlm.images import Picture
from ..vlm.messages import Message, to_json, visuals_of
from ..vlm.records import ToolCall, Turn, View
from .modes import view_of
from .records import Item, Mode, Played

if TYPE_CHECKING:
    import torch

    from ..vlm.load import VLM
    from ..vlm.records import Rollout
    from ..vlm.render import Renderer

# The model stack takes seconds to import, and a client of a server needs none of it: `InProcess` imports it when it plays.


@dataclass(frozen=True)
class Task:
    """One answer to be had: ``item`` as it is shown (options in their order), asked in ``mode``, for the ``draw``-th time.

    ``key`` names the task within its run; with ``seed`` it decides every random number of it, so that a task has the same answer
    in whatever company it is played. ``tail`` is the benchmark's own sentence. ``store`` keeps a picture and returns the name
    of its file; with it the story of the task is kept.
    """

    item: Item
    mode: Mode
    draw: int
    key: str
    seed: int = 0
    tail: str = ""
    store: Callable[[Picture], str] | None = None

    def view(self, tools_prompt: str | None = None) -> View:
        """What the model is shown. `ValueError` names the item and what it lacks."""
        return view_of(self.item, self.mode, self.tail, tools_prompt)

    def failed(self, error: Exception | str, **cost: Any) -> Played:
        """The task given up."""
        said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return Played(texts=(), stop="failed", error=said, **cost)


class Engine(Protocol):
    """Whatever can answer tasks."""

    def play(self, tasks: Iterable[Task], done: Callable[[Task, Played], None]) -> None:
        """Take the tasks one after the other as there is room for them, and call ``done`` once for each, in this thread."""
        ...


def calls_of(turns: Sequence[Sequence[ToolCall]]) -> tuple[Mapping[str, Any], ...]:
    """The calls of every turn as JSON, with the number of their turn."""
    return tuple({**asdict(call), "turn": number} for number, calls in enumerate(turns) for call in calls)


def story_of(
    view: View,
    texts: Sequence[str],
    observations: Sequence[Message | None],
    store: Callable[[Picture], str] | None,
    seen_px: Callable[[Picture], tuple[int, int]] | None = None,
) -> tuple[Mapping[str, Any], ...]:
    """The whole chat as JSON, pictures by the names that ``store`` gives them; nothing without a ``store``."""
    if store is None:
        return ()
    chat = list(view.messages)
    for text, observation in zip(texts, observations, strict=True):
        chat += [Message.assistant(text), *(() if observation is None else (observation,))]
    return tuple(to_json(chat, store, seen_px))


class InProcess:
    """Answers with a model in this process, through the rollout loop that training uses, many tasks at once.

    ``at_once`` tasks are played together, fewer when their pictures have more than ``max_pixels`` in all. ``autocast`` is the
    arithmetic on a device whose weights are kept in a wider type. Tokens are counted once, however often they are read;
    ``seconds`` is a task's share of the time of those it was played with.
    """

    def __init__(self, vlm: VLM, *, at_once: int = 32, max_pixels: int = 256 << 20, autocast: torch.dtype | None = None) -> None:
        self.vlm, self.at_once, self.max_pixels, self.autocast = vlm, at_once, max_pixels, autocast

    @property
    def about(self) -> dict[str, Any]:
        """What decides the answers: the model, its weights, and how many pixels it sees."""
        budget = self.vlm.renderer.budget
        weights = None if self.vlm.folder is None else _mark(self.vlm.folder)
        return {
            "engine": "in-process", "model": self.vlm.name, "weights": weights, "dtype": str(self.vlm.dtype),
            "pixels": [budget.min_pixels, budget.max_pixels],
        }  # fmt: skip

    def play(self, tasks: Iterable[Task], done: Callable[[Task, Played], None]) -> None:
        """See `Engine.play`."""
        for batch in self._batches(tasks):
            self._play(batch, done)

    def _batches(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        """Tasks side by side that are asked in the same way."""
        batch: list[Task] = []
        pixels = 0
        for task in tasks:
            try:
                own = sum(picture.width_px * picture.height_px for picture in task.item.sample.images)
            except (ValueError, OSError):
                own = 0  # its view says what is wrong with it
            full = len(batch) == self.at_once or pixels + own > self.max_pixels
            if batch and (full or task.mode != batch[0].mode or task.seed != batch[0].seed):
                yield batch
                batch, pixels = [], 0
            batch.append(task)
            pixels += own
        if batch:
            yield batch

    def _play(self, batch: Sequence[Task], done: Callable[[Task, Played], None]) -> None:
        from ..vlm.render import Renderer

        # a renderer keeps what it has written, with the pictures: one for each batch bounds the memory
        old = self.vlm.renderer
        renderer = Renderer(old.family, old.tokenizer, old.image, old.chat_template, old.template_kwargs)
        tools, ready = batch[0].mode.tools, []
        offered = None if tools is None else build_toolbox(tools, self.vlm.family.coords).system_prompt
        for task in batch:
            try:
                view = task.view(offered)
                renderer.prompt(view.messages, task.item.id)
            except (ValueError, OSError) as error:
                done(task, task.failed(error))
            else:
                ready.append((task, view))
        self._together(ready, replace(self.vlm, renderer=renderer), done)

    def _together(self, ready: Sequence[tuple[Task, View]], vlm: VLM, done: Callable[[Task, Played], None]) -> None:
        """Play tasks at once; those of a batch that fails, or has no room on the device, half by half until it is one's own."""
        import torch

        if not ready:
            return
        start = perf_counter()
        try:
            played = self._rollouts(ready, vlm)
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            if len(ready) == 1:
                done(ready[0][0], ready[0][0].failed(error, seconds=perf_counter() - start))
                return
            for half in (ready[: len(ready) // 2], ready[len(ready) // 2 :]):
                self._together(half, vlm, done)
            return
        seconds = (perf_counter() - start) / len(ready)
        for (task, _), one in zip(ready, played, strict=True):
            done(task, _played(task, one, vlm.renderer, seconds))

    def _rollouts(self, ready: Sequence[tuple[Task, View]], vlm: VLM) -> list[Rollout]:
        from ..vlm.generate import HFEngine, Sampling
        from ..vlm.rollout import Limits, Rules, rollout

        asked = ready[0][0].mode
        toolbox = None if asked.tools is None else build_toolbox(asked.tools, vlm.family.coords)
        # a rollout's random numbers come from its sample's id
        pairs = [(replace(task.item.sample, id=task.key), view) for task, view in ready]
        groups = rollout(
            pairs,
            HFEngine(vlm, autocast=self.autocast),
            vlm.renderer,
            n=1,
            sampling=Sampling(temperature=asked.temperature, max_new_tokens=asked.max_new_tokens),
            seed=ready[0][0].seed,
            rules=Rules(toolbox, Limits(turns=asked.max_turns)),
        )
        return [group.rollouts[0] for group in groups]


def _played(task: Task, one: Rollout, renderer: Renderer, seconds: float) -> Played:
    prompt = renderer.prompt(one.view.messages, one.sample_id)
    replies = [
        renderer.observation(turn.observation, renderer.closed(turn.action_ids_K))
        for turn in one.turns
        if turn.observation is not None
    ]
    seen = visuals_of((*one.view.messages, *_observed(one.turns)))
    return Played(
        texts=tuple(turn.text for turn in one.turns),
        stop=one.stop.value,
        tokens_in=len(prompt) + sum(len(reply) for reply in replies),
        tokens_out=one.num_actions,
        tokens_image=sum(renderer.item(visual).num_tokens for visual in seen),
        calls=calls_of([turn.calls for turn in one.turns]),
        seconds=seconds,
        story=story_of(
            one.view,
            [turn.text for turn in one.turns],
            [turn.observation for turn in one.turns],
            task.store,
            lambda picture: (renderer.item(picture).width_px, renderer.item(picture).height_px),
        ),
    )


def _observed(turns: Sequence[Turn]) -> tuple[Message, ...]:
    return tuple(turn.observation for turn in turns if turn.observation is not None)


def _mark(folder: Path) -> str:
    """Tells weights apart without reading all of them: names, sizes, and the last megabyte of each file."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]
