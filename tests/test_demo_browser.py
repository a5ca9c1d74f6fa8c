"""The demo in headless Chromium, as a visitor meets it: upload, ask, see the zoom, compare, mark a box. Screenshots are kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.demo.limits import Limits
from foveate.demo.players import open_local
from foveate.demo.serve import Address, serving
from foveate.demo.sources import draw_scene

pytest.importorskip("gradio", reason="the demo's page needs Gradio: pip install 'foveate[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SHOTS = Path(__file__).resolve().parent.parent / "artifacts"
WIDTHS = (1280, 390)
DONE = ".fv-answer[data-state=done]"


@pytest.fixture(scope="module")
def served() -> Iterator[Address]:
    with serving([open_local("tiny")], Limits(), port=None) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, chromium: playwright.Browser, served: Address) -> Iterator[playwright.Page]:
    """The demo in a new browser context; a request to another machine, or an error of a script, fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000}, color_scheme=request.param)
    context.set_default_timeout(60_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("request", lambda sent: None if sent.url.startswith((served.url, "data:", "blob:")) else wrong.append(sent.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(served.url)
    page.wait_for_selector("#picture img")
    yield page
    context.close()
    assert not wrong


def shoot(page: playwright.Page, name: str) -> None:
    """Screenshots at both widths; the page must not be wider than the window."""
    SHOTS.mkdir(exist_ok=True)
    theme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SHOTS / f"demo-{name}-{theme}-{width}.png", full_page=True)


def question(page: playwright.Page) -> playwright.Locator:
    return page.locator("#question textarea")


def upload(page: playwright.Page, path: Path) -> None:
    page.get_by_role("tab", name="Your photo or video").click()
    page.set_input_files("#file input[type=file]", str(path))


def test_upload_ask_and_see_the_zoom(page: playwright.Page, tmp_path: Path) -> None:
    scene = draw_scene("place", 3)
    scene.visual(1).rgb().save(tmp_path / "holiday.png")  # type: ignore[union-attr]
    assert "knows nothing but its own world" in page.inner_text(".fv-notice")
    before = page.get_attribute("#picture img", "src")
    upload(page, tmp_path / "holiday.png")
    assert "about a photo it can only guess" in page.inner_text("text=about a photo it can only guess")
    page.wait_for_function("src => document.querySelector('#picture img')?.src != src", arg=before)
    asked = next(iter(scene.answers))
    question(page).fill(asked)
    page.click("#ask")
    page.wait_for_selector(DONE)
    assert page.locator(".fv-answer .fv-shot img").count() == 2, "the picture and what the zoom showed"
    assert page.locator(".fv-box").count() == 1, "where it looked"
    box, whole = page.locator(".fv-box").bounding_box(), page.locator(".fv-frame").first.bounding_box()
    assert box is not None
    assert whole is not None
    assert 0.1 < box["width"] / whole["width"] < 0.3, "a fifth of the picture"
    assert f"Answer: {scene.answers[asked]}" in page.inner_text(".fv-verdict")
    assert int(page.inner_text(".fv-facts dd >> nth=0")) > 20
    assert page.inner_text(".fv-facts dd >> nth=1") == "1"
    assert "holiday.png" in page.inner_text("#command")
    shoot(page, "tools")


def test_compare_two_ways_with_a_box_drawn_by_hand(page: playwright.Page) -> None:
    picture = page.locator("#picture img")
    area = picture.bounding_box()
    assert area is not None
    picture.click(position={"x": area["width"] * 0.25, "y": area["height"] * 0.5})
    page.wait_for_timeout(1500)
    picture.click(position={"x": area["width"] * 0.75, "y": area["height"] * 0.25})
    page.wait_for_function("document.querySelector('#box textarea, #box input').value != ''")
    corners = [float(one) for one in page.input_value("#box textarea, #box input").split(",")]
    assert corners == pytest.approx([100, 100, 300, 200], abs=4)
    page.click("#compare input")
    page.locator("#way-b input").nth(3).check()
    page.click("#ask")
    page.wait_for_function(f"document.querySelectorAll('{DONE}').length == 2")
    assert page.locator("#answer-a h3").inner_text() == "Tools"
    assert page.locator("#answer-b h3").inner_text() == "Evidence box"
    marked, whole = page.locator("#answer-b .fv-box").bounding_box(), page.locator("#answer-b .fv-frame").first.bounding_box()
    assert marked is not None
    assert whole is not None
    assert marked["width"] / whole["width"] == pytest.approx(0.5, abs=0.03)
    for panel in ("#answer-a", "#answer-b"):
        assert page.locator(f"{panel} .fv-facts dt").all_inner_texts() == ["tokens", "tool calls", "seconds"]
    page.get_by_role("tab", name="Python").click()
    page.wait_for_function("document.querySelector('#python')?.innerText.includes('boxes_px_xyxy')")
    shoot(page, "compare")
    left, right = (page.locator(f"#answer-{one} .fv-answer").bounding_box() for one in "ab")
    assert left is not None
    assert right is not None
    assert right["y"] > left["y"] + left["height"], "one below the other on a telephone"


def test_mistakes_are_said_on_the_page(page: playwright.Page, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    upload(page, tmp_path / "text.png")
    page.wait_for_selector("#problem .fv-problem")
    assert "text.png is not a picture" in page.inner_text("#problem")
    question(page).fill("What is it?")
    page.click("#ask")
    page.wait_for_selector("#answer-a .fv-problem")
    assert "There is no picture yet" in page.inner_text("#answer-a")
    shoot(page, "mistake")
    page.get_by_role("tab", name="Drawn scene").click()
    page.click("#draw")
    page.wait_for_selector("#picture img")
    page.wait_for_function("document.querySelector('#problem').innerText.trim() == ''")
    question(page).fill("   ")
    page.click("#ask")
    page.wait_for_function("document.querySelector('#answer-a').innerText.includes('question is empty')")


def test_the_copy_button_copies(page: playwright.Page) -> None:
    page.click("#ask")
    page.wait_for_selector(DONE)
    page.wait_for_function("document.querySelector('#command').innerText.includes('foveate rollout')")
    page.click("#copy-command")
    question(page).fill("")
    question(page).press("Control+V")
    assert re.search(r"foveate rollout .*--turns 3 -- tiny place-\d+\.png 'What", question(page).input_value())
