"""The command line: ``foveate COMMAND``. Thin: each command loads what it needs, calls it, and shows the result.

Exit status: 0 done, 1 a check found something, 2 a mistake in what was asked (said in one paragraph), 130 interrupted.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import __version__, cli_data, cli_demo, cli_eval, cli_gpu, cli_lora, cli_play, cli_view

if TYPE_CHECKING:
    from .doctor import Finding

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="rich")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it, and make some.")
tiny_app = typer.Typer(no_args_is_help=True, help="The embedded model.")
recipes_app = typer.Typer(invoke_without_command=True, help="Recipes that ship with foveate, and their schema.")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def _tell_version(wanted: bool) -> None:
    if wanted:
        out.print(f"foveate {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show it and exit.")] = False,
) -> None:
    """Train vision-language models to look closely, and then to see without looking.

    Add --debug to any command to see where an error came from.
    """


@app.command(rich_help_panel="Train")
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (foveate recipes) or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as steps=50 teacher.weights=ema.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/ and the recipe's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on going on with an earlier run.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set an earlier run in the folder aside and start anew.")] = False,
    redo: Annotated[str | None, typer.Option(help="Train a stage and those after it anew; the stages before it stay.")] = None,
) -> None:
    """Train a recipe, or go on with it where it stopped."""
    from .launched import all_end, as_ranks
    from .run_folder import default_folder, prepare, read_summary
    from .train.config import RunConfig
    from .train.recipes import load_any

    config = load_any(recipe, overrides or [])
    stages = [config] if isinstance(config, RunConfig) else [stage.run for stage in config.stages]
    minutes = max(stage.distributed.minutes for stage in stages)
    ready = as_ranks(lambda: prepare(run or default_folder(recipe), config, resume, fresh, redo), out, minutes)
    much = f"{sum(stage.steps for stage in stages)} steps" + (f" in {len(stages)} stages" if len(stages) > 1 else "")
    out.print(f"[bold]{escape(config.name)}[/] on {escape(stages[0].model.name)}: {much}, in {escape(str(ready.folder))}")
    if ready.note:
        out.print(escape(ready.note))
    if ready.state == "complete":
        show_summary(read_summary(ready.folder), ready.folder)
        return
    from .runs import run_recipe
    from .train.loop import Interrupted
    from .train.stages import GateMissed

    try:
        summary = run_recipe(config, ready.folder, shlex.join(["foveate", *sys.argv[1:]]))
    except Interrupted as stop:
        raise all_end(str(stop), 130, err) from None
    except GateMissed as missed:
        raise all_end(str(missed), 1, err) from None
    show_summary(summary, ready.folder)


def show_summary(summary: dict[str, Any], folder: Path) -> None:
    """Accuracy before and after by view, what it took, and where the rest is."""
    from .train.progress import duration

    intervals = summary.get("ci95", {})
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in ("view", "items", "before, %", "after, %", "change"):
        table.add_column(title, justify="left" if title == "view" else "right", no_wrap=True)
    views = [name for name in summary.get("n", {}) if f"{name}_before" in summary and f"{name}_after" in summary]
    for view in views:
        gain = 100 * (summary[f"{view}_after"] - summary[f"{view}_before"])
        low, high = summary.get("gain_ci95", {}).get(f"{view}_gain", (None, None))
        change = f"{gain:+.1f}" + (f" \\[{100 * low:+.1f}, {100 * high:+.1f}]" if low is not None and high is not None else "")
        cells = [_share(summary[f"{view}_{when}"], intervals.get(f"{view}_{when}")) for when in ("before", "after")]
        table.add_row(view, str(summary["n"][view]), *cells, change)
    if views:
        out.print(table)
        out.print("[dim]In brackets: 95 % intervals.[/]")
    out.print(f"{duration(summary.get('seconds', 0))} of training, {summary.get('rollouts', 0):,} rollouts")
    for name in ("report.html", "summary.json"):
        if (folder / name).is_file():
            out.print(f"  {folder / name}", soft_wrap=True)


def _share(value: float, interval: list[float] | None) -> str:
    return f"{100 * value:.1f}" + (f" \\[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


@data_app.command("check")
def data_check(
    file: Annotated[str, typer.Argument(help="JSONL, JSON, parquet, a saved Hugging Face dataset, or a hub id.")],
    format: Annotated[str | None, typer.Option(help="Released format; default: seen from the columns.")] = None,
    image_dir: Annotated[str | None, typer.Option(help="Where picture paths start; default: the file's folder.")] = None,
    box_format: Annotated[str | None, typer.Option(help="px_xyxy, k1000_xyxy, frac_xyxy or px_xywh.")] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    sheet: Annotated[Path | None, typer.Option(help="Where the page with rendered samples goes.")] = None,
    samples: Annotated[int, typer.Option(help="Samples on that page.")] = 10,
) -> None:
    """Say what is in a file, row by row where something is wrong, and show ten rendered samples."""
    from .datasets.check import check_command

    report = check_command(
        file, format=format, image_dir=image_dir, box_format=box_format, hub_split=split, sheet=sheet, num_shown=samples
    )
    out.print(escape(report.text()), soft_wrap=True)
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("crops")
def data_crops(
    file: Annotated[str, typer.Argument(help="Data with boxes.")],
    target: Annotated[Path, typer.Argument(help="The .jsonl to write; the crops go to crops/ beside it.")],
    format: Annotated[str | None, typer.Option(help="Released format; default: seen from the columns.")] = None,
    image_dir: Annotated[str | None, typer.Option(help="Where picture paths start; default: the file's folder.")] = None,
    box_format: Annotated[str | None, typer.Option(help="px_xyxy, k1000_xyxy, frac_xyxy or px_xywh.")] = None,
    padding: Annotated[float, typer.Option(help="Context on each side, as a share of the box.")] = 0.0,
    scale: Annotated[float, typer.Option(help="The crop is resized by this.")] = 2.0,
    min_side: Annotated[int, typer.Option(help="Least side of the cut region in pixels.")] = 28,
    union: Annotated[bool, typer.Option("--union", help="One crop around all boxes.")] = False,
    frame: Annotated[bool, typer.Option("--frame", help="Leave the red frame visible in the crop.")] = False,
    draw: Annotated[
        bool, typer.Option("--draw", help="Draw the box into a copy of the picture too (Vision-OPD's student).")
    ] = False,
) -> None:
    """Cut evidence crops from boxes into files."""
    from .datasets.crop_files import crops_command

    report = crops_command(
        file,
        target,
        format=format,
        image_dir=image_dir,
        box_format=box_format,
        padding=padding,
        scale=scale,
        min_side_px=min_side,
        union=union,
        frame=frame,
        draw=draw,
    )
    out.print(escape(report.text()), soft_wrap=True)
    if report.problems:
        raise typer.Exit(1)


@tiny_app.command("build")
def tiny_build(
    target: Annotated[Path, typer.Option("--out", help="Folder for the model and its states on the way.")] = Path(
        "runs/tiny-build"
    ),
    seed: Annotated[int, typer.Option(help="Of weights, scenes and order.")] = 0,
) -> None:
    """Train the embedded model again from nothing (docs/tiny.md says how long it takes)."""
    from .train.recorder import write_atomically
    from .train.tiny_build import build

    meta = build(target, seed=seed, echo=out.print)
    write_atomically(target / "meta.json", json.dumps(meta, indent=1) + "\n")
    for name, value in meta["skills"].items():
        out.print(f"{name:<28} {value:.3f}" if isinstance(value, float) else f"{name:<28} {value}")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes: name, and the first sentence of what each says about itself."""
    if context.invoked_subcommand is not None:
        return
    from .train.recipes import recipe_names, recipe_path

    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        about = first_sentence(recipe_path(name).read_text(encoding="utf-8"))
        out.print(f"[bold]{name:<{width}}[/] {escape(about)}", soft_wrap=True)


def first_sentence(recipe: str) -> str:
    """The first sentence of the comment at a recipe's head."""
    head = itertools.takewhile(lambda line: line.startswith("# "), recipe.splitlines())
    sentence = re.split(r"(?<=[.]) ", " ".join(line.removeprefix("# ") for line in head))[0]
    return textwrap.shorten(sentence.rstrip("."), 110, placeholder=" ...")


@recipes_app.command("show")
def recipes_show(name: str, overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None) -> None:
    """Print a recipe with every default filled in."""
    from .train.recipes import dump_recipe, load_any

    sys.stdout.write(dump_recipe(load_any(name, overrides or [])))


@recipes_app.command("schema")
def recipes_schema() -> None:
    """Print the JSON schema, for editors that complete and check YAML."""
    from .train.recipes import recipe_schema

    sys.stdout.write(json.dumps(recipe_schema(), indent=2) + "\n")


@app.command(rich_help_panel="Look")
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html of a run, complete or not."""
    from .train.report import write_report

    out.print(str(write_report(run)), soft_wrap=True)


@app.command(rich_help_panel="This machine")
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="A recipe to look at as well: its data, plan, tools and engine.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Measure this model; default: the embedded one and random ones of every family.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    run: Annotated[Path | None, typer.Option(help="Folder of the run, for the room on its disk; default: as in train.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the data that are shown and rendered.")] = 32,
) -> None:
    """What this machine can do, what a recipe needs of it, and whether sampling and training agree, with pictures.

    Green, yellow or red, each with the mend; the exit status is 1 when a line is red.
    """
    from . import doctor as checks
    from .run_folder import default_folder
    from .train.recipes import load_any

    config = None if recipe is None else load_any(recipe, overrides or [])
    folder = run or (Path("runs") if recipe is None else default_folder(recipe.partition("#")[0]))
    bad = False
    for finding in checks.examine(config, model=model, device=device, run=folder, rows=rows):
        show_finding(finding)
        bad |= finding.ok is False
    if bad:
        raise typer.Exit(1)


app.command("eval", rich_help_panel="Train")(cli_eval.evaluate)
app.command(rich_help_panel="Train")(cli_play.sample)
app.command(rich_help_panel="Train")(cli_lora.merge)
app.command(rich_help_panel="Look")(cli_play.rollout)
app.command(rich_help_panel="Look")(cli_view.view)
app.command(rich_help_panel="Look")(cli_demo.demo)
app.command(context_settings=cli_gpu.SETTINGS, rich_help_panel="This machine")(cli_gpu.gpu)
data_app.command("pass-rate")(cli_data.pass_rate)
data_app.command("perception")(cli_data.perception)
data_app.command("thoughts")(cli_data.thoughts)
data_app.command("hindsight")(cli_data.hindsight)
app.add_typer(data_app, name="data", rich_help_panel="What it trains on")
app.add_typer(recipes_app, name="recipes", rich_help_panel="What it trains on")
app.add_typer(tiny_app, name="tiny", rich_help_panel="What it trains on")


def show_finding(finding: Finding) -> None:
    mark = {"note": " ", "green": "[green]✓[/]", "yellow": "[yellow]![/]", "red": "[red]✗[/]"}[finding.level]
    out.print(f"{mark} [bold]{escape(f'{finding.topic:<18}')}[/] {escape(finding.text)}", soft_wrap=True)
    for what, text in (("expected", finding.expected), ("mend", finding.mend)):
        if text:
            out.print(f"  {'':<18} [dim]{what}:[/] {escape(text)}", soft_wrap=True)


def explain(error: Exception) -> str:
    """An error in words; pydantic's report is shortened to one line per option."""
    if isinstance(error, pydantic.ValidationError):
        return "\n".join(
            ": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, "))))
            for one in error.errors()
        )
    return str(error)


def run_command() -> None:
    """Run the command line. A `ValueError` is a mistake in what was asked and is said in one paragraph, without a traceback; so
    is a server that does not answer, and an engine that fails."""
    from .eval.chat import ServerError
    from .launched import says_it_all

    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        known = not isinstance(error, RuntimeError) or isinstance(error, ServerError) or says_it_all(error)
        if debug or not known:
            raise
        err.print(f"[bold red]Error:[/] {escape(explain(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise SystemExit(130) from None


def main() -> None:
    """`foveate` on the command line."""
    from .launched import leave

    try:
        run_command()
    except SystemExit as ended:
        leave(ended.code if isinstance(ended.code, int) else 1)
        raise
