"""The run viewer in a browser: what a person sees, points at, filters and waits for. Needs playwright and Debian's chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_run
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).is_file(), reason="no chromium here (apt-get install chromium)")
SHOTS = ROOT / "artifacts"
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    distilled, zoomed = tmp_path / "vision_opd", tmp_path / "deepeyes"
    fake_run.write(distilled, steps=12)
    fake_run.write_tools(zoomed)
    return distilled, zoomed


@pytest.fixture
def serve() -> Iterator[Any]:
    """Starts ``foveate view`` on folders as a person would; returns its address."""
    started: list[subprocess.Popen[str]] = []

    def start(*folders: Path) -> str:
        command = [sys.executable, "-m", "foveate", "view", *map(str, folders), "--no-open", "--port", "0"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().split()[0]

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A window that must not complain: an error of the page's script or a request elsewhere fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    made = context.new_page()
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    made.on("request", lambda request: wrong.append(request.url) if "127.0.0.1" not in request.url[:20] else None)
    made.expected = wrong
    yield made
    context.close()
    assert [text for text in wrong if not text.startswith(("data:", "file:"))] == []


def shoot(page: Any, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=str(SHOTS / f"{name}.png"))


def test_a_rollout_opens_with_both_views_its_heat_map_and_what_else_could_have_been_said(
    runs: tuple[Path, Path], serve: Any, page: Any
) -> None:
    page.goto(serve(runs[0]))
    first = page.locator("#rows tr:first-child td:first-child")
    playwright.expect(first).to_have_text("12")
    page.select_option("[name=sort]", "divergence")
    page.wait_for_url("**/#*divergence*")
    playwright.expect(first).to_have_text("1")  # the address changes before the list does
    page.click("#rows tr >> nth=0")
    page.wait_for_selector("#rollout .token")
    assert page.locator("#rollout .pair img").count() == 2
    for picture in page.locator("#rollout .pair img").all():
        playwright.expect(picture).to_have_js_property("complete", True)  # pictures come after the text
        assert picture.evaluate("one => one.naturalWidth") > 0
    shade = "one => getComputedStyle(one).backgroundColor"
    hot, cold = (page.locator(f"#rollout .turn .token >> nth={place}").evaluate(shade) for place in (1, 3))
    assert hot != cold
    assert page.locator("#rollout .legend .token").all_inner_texts() == ["0", "0.02", "0.1", "0.25", "≥ 0.5"]
    page.hover("#rollout .turn .token >> nth=1")
    panel = page.locator("#token-panel")
    assert panel.locator(".s .option").all_inner_texts() == ["K\n75.0 %", "<b>\n20.0 %", "Z\n5.0 %"]
    assert panel.locator(".t .option").all_inner_texts() == ["Z\n90.0 %", "K\n10.0 %"]
    assert "said with probability 24.7 %" in panel.inner_text()  # exp(-1.4)
    shoot(page, "view-rollout-1280")
    page.mouse.move(2, 2)
    playwright.expect(panel).to_be_hidden()
    page.locator("#rollout .turn .token >> nth=0").focus()
    page.keyboard.press("ArrowRight")
    playwright.expect(panel, "the keyboard reads tokens too").to_contain_text("Teacher would say")
    page.keyboard.press("Escape")
    playwright.expect(panel).to_be_hidden()


def test_a_tools_box_lies_on_the_picture_where_it_was_cut(runs: tuple[Path, Path], serve: Any, page: Any) -> None:
    page.goto(serve(runs[1]))
    page.click("#rows tr >> nth=1")
    figure = page.locator("#rollout .pair figure").first
    picture, box = figure.locator("img").bounding_box(), figure.locator("rect >> nth=1").bounding_box()
    for key in ("x", "y"):
        assert box[key] == pytest.approx(picture[key], abs=3)
    for key in ("width", "height"):
        assert box[key] == pytest.approx(picture[key] / 2, abs=4), "a quarter of the picture: half of each side"
    assert page.locator("#rollout .observation img").count() == 1
    assert "reward 0.1" in page.locator("#rollout header").inner_text()
    page.locator("#rollout .asseen").first.click()
    assert page.locator("#rollout canvas").first.evaluate("one => [one.width, one.height]") == [28, 28]
    page.locator("#rollout .asseen").first.click()
    assert page.locator("#rollout canvas").count() == 0
    shoot(page, "view-tools-1280")


def test_filters_narrow_the_list_and_the_address_remembers_them(runs: tuple[Path, Path], serve: Any, page: Any) -> None:
    address = serve(runs[1])
    page.goto(address)
    count = page.locator("#count")
    playwright.expect(page.locator("#count")).to_have_text("12 of 12 logged rollouts")
    page.select_option("[name=outcome]", "wrong")
    page.fill("[name=step_from]", "5")
    playwright.expect(page.locator("#count")).to_have_text("4 of 12 logged rollouts")
    assert set(page.locator("#rows .mark").all_inner_texts()) == {"wrong"}
    page.fill("[name=reward_from]", "1")
    playwright.expect(page.locator("#count")).to_have_text("0 of 12 logged rollouts")
    page.fill("[name=reward_from]", "")
    page.fill("[name=text]", "zoom(0.25)")
    playwright.expect(page.locator("#count")).to_have_text("4 of 12 logged rollouts")
    page.click("#rows tr >> nth=2")
    page.wait_for_selector("#rollout .rollout")
    page.reload()
    page.wait_for_selector("#rollout .rollout")
    assert count.inner_text() == "4 of 12 logged rollouts"
    assert page.locator("#rows tr[aria-selected=true]").count() == 1
    assert page.input_value("[name=text]") == "zoom(0.25)"
    page.click("#next")
    playwright.expect(page.locator("#next")).to_be_disabled()
    page.click("[type=reset]")
    playwright.expect(page.locator("#count")).to_have_text("12 of 12 logged rollouts")


def test_a_run_that_grows_is_followed_without_losing_the_place(runs: tuple[Path, Path], serve: Any, page: Any) -> None:
    folder = runs[1]
    page.goto(serve(folder))
    page.select_option("[name=outcome]", "right")
    playwright.expect(page.locator("#count")).to_have_text("6 of 12 logged rollouts")
    page.click("#rows tr >> nth=1")
    page.wait_for_selector("#rollout .rollout")
    page.evaluate("document.querySelector('#rollout .rollout').dataset.same = 'yes'")
    before = page.locator("#charts figure").first.get_attribute("data-series")
    row = json.loads((folder / "rollouts/step_000010.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (folder / "rollouts/step_000011.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 11, "loss/total": 0.01}\n{"step": 12, "loss/to')
    playwright.expect(page.locator("#count")).to_have_text("7 of 13 logged rollouts", timeout=15_000)
    page.wait_for_selector("text=step 11 of 10")
    assert page.locator("#charts figure").first.get_attribute("data-series") != before
    assert page.locator("#rows tr td").first.inner_text() == "11"
    assert page.evaluate("document.querySelector('#rollout .rollout').dataset.same") == "yes", "the opened rollout was left alone"
    assert page.locator("#rows tr[aria-selected=true]").count() == 1
    assert page.input_value("[name=outcome]") == "right"
    assert "metrics.jsonl, line 12: the last line, torn" in page.locator(".problems li").first.inner_text()


def test_a_server_that_goes_away_is_said_once_and_what_was_shown_stays(runs: tuple[Path, Path], serve: Any, page: Any) -> None:
    page.goto(serve(runs[1]))
    page.wait_for_selector("#rows tr")
    shutil.move(runs[1], runs[1].with_name("elsewhere"))
    page.wait_for_selector("#lost:has-text('not a run folder')", timeout=15_000)
    assert page.locator("#rows tr").count() == 12
    assert any("400" in text for text in page.expected)
    page.expected.clear()


def test_text_of_a_model_stays_text(runs: tuple[Path, Path], serve: Any, page: Any) -> None:
    path = runs[1] / "rollouts/step_000010.jsonl"
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    row["sample"] = row["stream"] = row["turns"][1]["text"] = row["turns"][0]["tokens"][0] = ATTACK
    row["turns"][0]["top_student"][0][0][0] = row["turns"][0]["calls"][0]["error"] = ATTACK
    row["student"][-1]["content"].append({"type": "text", "text": ATTACK})
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    page.goto(serve(runs[1]))
    page.click("#rows tr >> nth=0")
    page.hover("#rollout .turn .token >> nth=0")
    assert ATTACK in page.locator("#token-panel").inner_text()
    assert ATTACK in page.locator("#rows").inner_text()
    page.wait_for_timeout(300)
    assert page.title() == "deepeyes · foveate"


def test_two_runs_are_compared(runs: tuple[Path, Path], serve: Any, page: Any, tmp_path: Path) -> None:
    second = tmp_path / "second"
    fake_run.write_tools(second, config=fake_run.TOOLS_CONFIG.replace("seed: 0", "seed: 7"))
    page.goto(serve(runs[1], second))
    page.wait_for_selector("#rows tr")
    assert (
        page.locator(".run h1").all_inner_texts() == ["A\ndeepeyes", "B\ndeepeyes"]
        or "A" in page.locator(".run h1").first.inner_text()
    )
    assert page.locator("#charts path.dashed").count() > 0
    assert page.locator(".differences tr >> nth=1").inner_text().split() == ["seed", "0", "7"]
    page.click("#rows tr >> nth=1")
    page.wait_for_selector("#beside .rollout")
    assert "The same sample in run B" in page.locator("#beside").inner_text()
    page.select_option("[name=run]", "b")
    page.wait_for_selector("#rows tr[data-key^='b ']")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_or_hard_to_read(
    runs: tuple[Path, Path], serve: Any, browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    """The page is as wide as the window, and every token's text has the contrast that people need (WCAG 2.1, 1.4.3: 4.5 to 1)."""
    fake_run.write_staged(tmp_path / "staged")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(serve(tmp_path / "staged"))
    page.select_option("[name=sort]", "divergence")
    page.wait_for_url("**/#*divergence*")
    time.sleep(0.5)
    shoot(page, f"view-head-{width}-{scheme}")
    page.click("#rows tr >> nth=0")
    page.wait_for_selector("#rollout .token")
    page.hover("#rollout .turn .token >> nth=1")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    panel = page.locator("#token-panel").bounding_box()
    assert panel["x"] >= 0
    assert panel["x"] + panel["width"] <= width
    assert min(page.evaluate(CONTRASTS)) >= 4.5
    shoot(page, f"view-rollout-{width}-{scheme}")
    context.close()


CONTRASTS = """() => {
  const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
  const light = colour => {
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll("#rollout .token")].map(one => {
    const style = getComputedStyle(one), [a, b] = [light(style.color), light(style.backgroundColor)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
}"""


def test_the_report_is_one_file_that_needs_nothing(runs: tuple[Path, Path], page: Any, tmp_path: Path) -> None:
    from foveate.train.report import write_report

    alone = shutil.copy(write_report(runs[0]), tmp_path / "alone.html")
    page.goto(f"file://{alone}")
    token = page.locator(".rollout .turn .token >> nth=1")
    token.scroll_into_view_if_needed()
    token.hover()
    assert page.locator("#token-panel .t .option").first.inner_text() == "Z\n90.0 %"
    assert page.evaluate("[...document.images].every(one => one.loading === 'lazy' || one.naturalWidth > 0)")
    shoot(page, "report-rollout-1280")
