"""The page: choose a picture, ask, choose how the model looks, watch; and the code that does the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from ..vlm.images import PictureError
from .asks import WAYS, Ask, box_text, read_box
from .limits import DemoError, Limits
from .players import Player, start
from .reproduce import command, python
from .show import PREVIEW_PX, answer_html, environment, preview, problem_html
from .sources import PICTURES, VIDEOS, WORLDS, Source, draw_scene, fetch, open_upload
from .story import Story

_CHOICES = [(f"{title}: {meaning}", key) for key, (title, meaning) in WAYS.items()]
_COPY = """(text) => {
  const area = Object.assign(document.createElement("textarea"), {value: text, style: "position:fixed;opacity:0"});
  document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
}"""
"""Copies without the clipboard's own interface, which browsers keep from pages served over plain HTTP."""


@dataclass(frozen=True)
class Page:
    """What the page offers and allows. ``folder`` is where uploads lie."""

    players: Sequence[Player]
    limits: Limits
    folder: Path
    allow_remote: bool = False
    max_pixels: int | None = None

    def player(self, name: str) -> Player:
        """The model of this name. Raises `DemoError`."""
        for player in self.players:
            if player.name == name:
                return player
        raise DemoError(f"There is no model {str(name)[:60]!r} here; there are {', '.join(one.name for one in self.players)}.")

    # ---- pictures ---------------------------------------------------------------------------------------------------------

    def shown(self, source: Source) -> tuple[Any, ...]:
        """What changes on the page with a new picture: source, preview, box, clicked corner, questions, question, problem."""
        known = list(source.answers)
        label = "Frames of your video" if source.is_video else "Picture"
        return (
            source,
            gr.update(value=preview(source.visual(self.limits.frames)), label=label),
            "",
            None,
            gr.update(choices=known, value=known[0] if known else None, visible=bool(known)),
            known[0] if known else "",
            problem_html(""),
        )

    def refused(self, error: Exception) -> tuple[Any, ...]:
        """The page without a picture, and why."""
        return None, None, "", None, gr.update(choices=[], value=None, visible=False), gr.skip(), problem_html(str(error))

    def draw(self, world: str) -> tuple[Any, ...]:
        """Draw another scene of a world."""
        try:
            return self.shown(draw_scene(world))
        except (DemoError, PictureError) as error:
            return self.refused(error)

    def upload(self, path: str | None) -> tuple[Any, ...]:
        """Take an uploaded file, or say what is wrong with it."""
        if path is None:
            return self.refused(DemoError(""))
        try:
            return self.shown(open_upload(path, self.limits, self.folder))
        except (DemoError, PictureError) as error:
            return self.refused(error)

    def fetch(self, address: str) -> tuple[Any, ...]:
        """Take a picture from an address, where that is allowed."""
        try:
            if not self.allow_remote:
                raise DemoError("No picture is fetched from the network here. Upload it, or start the demo with --allow-remote.")
            return self.shown(open_upload(str(fetch(address, self.limits, self.folder)), self.limits, self.folder))
        except (DemoError, PictureError) as error:
            return self.refused(error)

    def click(self, source: Source | None, corner: tuple[float, float] | None, event: gr.SelectData) -> tuple[Any, ...]:
        """A click on the picture: the first sets a corner, the second the opposite one. Gives preview, box, corner."""
        if source is None or source.is_video or not isinstance(event.index, list | tuple):
            return gr.skip(), gr.skip(), None
        visual = source.visual(1)
        shrunk = max(1.0, max(source.size_px) / PREVIEW_PX)
        x, y = (float(value) * shrunk for value in event.index)
        if corner is None:
            return preview(visual, corner=(x, y)), "", (x, y)
        text = box_text((corner, (x, y)), source.size_px)
        return preview(visual, read_box(text)), text, None

    def redraw(self, source: Source | None, text: str) -> tuple[Any, ...]:
        """The box was written, or taken away: preview, corner, problem."""
        if source is None or source.is_video:
            return gr.skip(), None, problem_html("")
        try:
            return preview(source.visual(1), read_box(text)), None, problem_html("")
        except (DemoError, PictureError) as error:
            return gr.skip(), None, problem_html(str(error))

    # ---- questions --------------------------------------------------------------------------------------------------------

    def ask(
        self, source: Source | None, box: str, question: str, way: str, model: str, compare: bool, way_b: str, model_b: str,
        temperature: float, seed: float,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Answers as they are written: both panels, the command line, the Python. The second begins when the first is done."""
        hidden = gr.update(value="", visible=bool(compare))
        try:
            asked = self.limits.check_question(question)
            if source is None:
                raise DemoError("There is no picture yet. Draw a scene or upload a photo or a video first.")
            chosen = [(way, model), *([(way_b, model_b)] if compare else [])]
            pairs = [
                (
                    Ask(source, asked, one, read_box(box), self.limits.frames, _bounded(temperature), int(seed or 0)),
                    self.player(name),
                )
                for one, name in chosen
            ]
        except DemoError as error:
            yield problem_html(str(error)), hidden, "", ""
            return
        codes = (
            "\n".join(dict.fromkeys(command(ask, player, self.max_pixels) for ask, player in pairs)),
            python(pairs, self.max_pixels),
        )
        html = ["", ""]
        if compare:
            html[1] = answer_html(Story(), *pairs[1])
        for place, (ask, player) in enumerate(pairs):
            writer = start(player, ask)
            try:
                for story in writer.stories():
                    html[place] = answer_html(story, ask, player)
                    yield html[0], gr.update(value=html[1], visible=bool(compare)), *codes
            finally:
                writer.abandoned = True


def _bounded(temperature: float) -> float:
    """A temperature that can be sampled with."""
    if not 0 <= temperature <= 2:
        raise DemoError(f"The temperature is from 0 to 2, got {temperature}.")
    return float(temperature)


def build(page: Page) -> gr.Blocks:
    """The page with its events; nothing is served yet."""
    limits, names = page.limits, [player.name for player in page.players]
    tiny = any(player.tiny for player in page.players)
    with gr.Blocks(title="foveate demo", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.HTML(environment().get_template("head.html.j2").render(players=page.players, tiny=tiny), elem_id="head")
        source, corner = gr.State(None, time_to_live=3600), gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                gr.Markdown("### 1. Choose a picture")
                draw, world, file, address, get = _choosers(page, tiny)
                problem = gr.HTML(elem_id="problem")
                picture = gr.Image(
                    label="Picture", show_label=False, interactive=False, format="jpeg", buttons=[], elem_id="picture", height=340
                )
                box = gr.Textbox(
                    label="Evidence box, for the way of that name", placeholder="x1, y1, x2, y2 in pixels", max_lines=1,
                    info="Click two opposite corners on the picture, or write the box and press Enter.", elem_id="box",
                )  # fmt: skip
                clear = gr.Button("Remove the box", size="sm")
                gr.Markdown("### 2. Ask")
                known = gr.Dropdown([], label="Questions that this scene can answer", visible=False, elem_id="known")
                question = gr.Textbox(label="Question", lines=2, max_lines=6, elem_id="question")
                gr.Markdown("### 3. How shall the model look?")
                with gr.Group():
                    way, model = _choice("First answer", "tools", names, "a")
                compare = gr.Checkbox(label="Compare with a second way or model", elem_id="compare")
                with gr.Group(visible=False) as second:
                    way_b, model_b = _choice("Second answer", "direct", names, "b")
                with gr.Accordion("Sampling", open=False):
                    temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0: always the likeliest token")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="Matters only above temperature 0")
                with gr.Row():
                    go = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", elem_id="stop")
            with gr.Column(scale=7, min_width=320):
                gr.Markdown("### Answer")
                with gr.Row(elem_id="answers"):
                    first = gr.HTML(environment().get_template("empty.html.j2").render(), elem_id="answer-a")
                    other = gr.HTML("", elem_id="answer-b", visible=False)
                gr.Markdown("### Do the same without this page")
                line = _code("Command line", "Copy the command line", "shell", "command")
                script = _code("Python", "Copy the Python", "python", "python")
        changed = [source, picture, box, corner, known, question, problem]
        for event, handler, given, name in (
            (draw.click, page.draw, [world], "draw"),
            (file.change, page.upload, [file], "upload"),
            (get.click, page.fetch, [address], "fetch"),
        ):
            event(handler, given, changed, api_name=name, concurrency_limit=4, show_progress="minimal")
        if tiny:
            blocks.load(page.draw, [world], changed, api_visibility="private")
        picture.select(page.click, [source, corner], [picture, box, corner], api_visibility="private", show_progress="hidden")
        box.submit(page.redraw, [source, box], [picture, corner, problem], api_visibility="private")
        clear.click(lambda: "", None, [box], api_visibility="private").then(
            page.redraw, [source, box], [picture, corner, problem], api_visibility="private"
        )
        known.input(lambda chosen: chosen or "", [known], [question], api_visibility="private")
        compare.change(lambda on: gr.update(visible=on), [compare], [second], api_visibility="private")
        asking = gr.on(
            [go.click, question.submit], page.ask,
            [source, box, question, way, model, compare, way_b, model_b, temperature, seed], [first, other, line, script],
            api_name="ask", concurrency_limit=limits.together, show_progress="hidden",
        )  # fmt: skip
        stop.click(None, None, None, cancels=[asking], api_visibility="private")
    blocks.queue(max_size=limits.queue)
    page_made: gr.Blocks = blocks
    return page_made


def _code(tab: str, copy: str, language: Literal["python", "shell"], name: str) -> gr.Code:
    """Code under a tab, with a button that copies it."""
    with gr.Tab(tab):
        button = gr.Button(copy, size="sm", elem_id=f"copy-{name}")
        code = gr.Code(
            language=language, show_label=False, elem_id=name, interactive=False, wrap_lines=True, lines=2, max_lines=24,
            buttons=[],
        )  # fmt: skip
        button.click(None, [code], None, js=_COPY, api_visibility="private")
    return code


def _choice(label: str, way: str, names: Sequence[str], key: str) -> tuple[gr.Radio, gr.Dropdown]:
    """How and by which model an answer is made."""
    ways = gr.Radio(_CHOICES, value=way, label=label, elem_id=f"way-{key}")
    start_with = names[-1] if key == "b" else names[0]
    return ways, gr.Dropdown(list(names), value=start_with, label="Model", visible=len(names) > 1, elem_id=f"model-{key}")


def _choosers(page: Page, tiny: bool) -> tuple[gr.Button, gr.Dropdown, gr.File, gr.Textbox, gr.Button]:
    """Where pictures come from."""
    limits = page.limits
    note = (
        f"Up to {limits.upload_mb} MB; pictures up to {limits.megapixels:g} megapixels, videos up to {limits.video_s:g} seconds, "
        f"of which {limits.frames} frames are shown to the model. It stays on the machine that serves this page."
    )
    if tiny:
        note += " **The tiny model knows coloured shapes with letters and nothing else: about a photo it can only guess.**"
    with gr.Tabs(selected="scene" if tiny else "upload"):
        with gr.Tab("Drawn scene", id="scene"):
            world = gr.Dropdown([(told, name) for name, told in WORLDS.items()], value="place", label="World", elem_id="world")
            draw = gr.Button("Draw another scene", size="sm", elem_id="draw")
        with gr.Tab("Your photo or video", id="upload"):
            file = gr.File(label="Photo or video", file_types=[*PICTURES, *VIDEOS], elem_id="file", height=120)
            gr.Markdown(note)
        with gr.Tab("From an address", id="address", visible=page.allow_remote):
            address = gr.Textbox(label="Address of a picture", placeholder="https://example.org/photo.jpg", max_lines=1)
            get = gr.Button("Fetch it", size="sm")
    return draw, world, file, address, get
