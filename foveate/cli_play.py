"""Commands that play rollouts: ``rollout`` (one, on any picture) and ``sample`` (many, filtered, for a cold start)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

out = Console(highlight=False)


def rollout(
    model: Annotated[str, typer.Argument(help="tiny, a folder in Hugging Face format, or a hub id.")],
    visual: Annotated[list[str], typer.Argument(metavar="PICTURE... QUESTION", help="Pictures or a video, then the question.")],
    dialect: Annotated[str, typer.Option(help="How the model writes calls.")] = "hermes",
    tool: Annotated[list[str] | None, typer.Option(help="A tool to offer (again for more); default: zoom.")] = None,
    coords: Annotated[str, typer.Option(help="auto, norm1, norm1000, abs_resized or abs_original.")] = "auto",
    system: Annotated[str | None, typer.Option(help="System prompt in place of the one that offers the tools.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="At most so many actions; 1: no tools.")] = 6,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one action.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a picture in the model's eyes.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video to start with.")] = 8,
    to: Annotated[Path, typer.Option(help="Folder for the pictures and rollout.json.")] = Path("runs/rollout"),
) -> None:
    """Let a model look at your own picture with its tools: prints the turns, saves what it saw."""
    from .play import open_visual, play
    from .visual_tools.spec import ToolsSpec
    from .vlm.generate import Sampling

    *paths, question = visual
    if not paths or not question.strip():
        raise ValueError('give a picture or a video, then the question in quotes: foveate rollout tiny photo.jpg "What is it?"')
    spec = ToolsSpec.model_validate({"dialect": dialect, "coords": coords, **({"tools": tool} if tool else {})})
    shot = play(
        model, [open_visual(Path(path), frames) for path in paths], question, to, tools=spec, system=system, turns=turns,
        sampling=Sampling(temperature=temperature, max_new_tokens=max_new_tokens), seed=seed, max_pixels=max_pixels,
    )  # fmt: skip
    played, shown = shot.rollout, len(shot.rollout.view.pictures)
    for place in range(shown):
        out.print(f"[dim]shown[/]   {shot.files[place]}  as {_size(shot.seen_px[place])} px", soft_wrap=True)
    out.print(f"[dim]asked[/]   {escape(question)}", soft_wrap=True)
    for number, turn in enumerate(played.turns, 1):
        out.print(f"\n[bold]turn {number}[/]  {escape(turn.text)}", soft_wrap=True)
        for call in turn.calls:
            box = call.box_px_xyxy
            where = "" if box is None else f" at {[round(value) for value in box]} px of picture {call.image}"
            said = f"{call.name} {call.arguments}{where}"
            out.print(f"[dim]call[/]    {escape(said)}  [dim]{call.coords}[/]", soft_wrap=True)
            if call.error is not None:
                out.print(f"[red]error[/]   {escape(call.error)}", soft_wrap=True)
        for _ in turn.observation.pictures if turn.observation is not None else ():
            out.print(f"[dim]shown[/]   {shot.files[shown]}  as {_size(shot.seen_px[shown])} px", soft_wrap=True)
            shown += 1
    cost = f"{played.num_actions} tokens, {len(played.calls)} calls"
    out.print(f"\n[dim]ended[/]   {played.stop.value}, {cost}; {to / 'rollout.json'}", soft_wrap=True)


def sample(
    recipe: Annotated[str, typer.Argument(help="A recipe: its model, data, view, tools and sampling are used.")],
    target: Annotated[Path, typer.Argument(help="The .jsonl to write; pictures go to images/ beside it.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    reward: Annotated[str, typer.Option(help="Reward that judges, as JSON.")] = '{"answer": 1.0}',
    filters: Annotated[str, typer.Option(help='Filters, as JSON: {"min_turns": 2, "max_per_sample": 1}')] = "{}",
) -> None:
    """Play a recipe's samples and keep the trajectories that pass the filters, for a cold start. Run again to go on."""
    from .play import collect_own
    from .rewards.combine import RewardSpec
    from .train.recipes import load_recipe
    from .train.rejection import Filters

    config = load_recipe(recipe, overrides or [])
    chosen = Filters.model_validate(_json(filters, "--filters"))
    report = collect_own(config, target, chosen, RewardSpec.model_validate(_json(reward, "--reward")), limit)
    out.print(escape(report.text()), soft_wrap=True)


def _size(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]} x {size_px[1]}"


def _json(text: str, option: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} is not JSON ({error}); write for example {option} '{{\"min_turns\": 2}}'") from error
