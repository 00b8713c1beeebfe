"""The page in Debian's chromium: by mouse, by keyboard, wide and narrow."""

import json
import shutil
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra dassl-prompts[demo] is not installed")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dassl-prompts[demo-tests])")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("chromium is not installed (apt install chromium)", allow_module_level=True)

import uvicorn  # noqa: E402

from dassl_prompts.composed.answers import Answerer  # noqa: E402
from dassl_prompts.demo.classify import Classifier  # noqa: E402
from dassl_prompts.demo.page import mount  # noqa: E402
from dassl_prompts.demo.service import Service  # noqa: E402
from dassl_prompts.demo.web import build_app  # noqa: E402
from tests.report.tree import base_new_pair  # noqa: E402
from tests.trainers.conftest import clip_file, load_once, make_cfg, state, train  # noqa: E402, F401  (fixtures)

pytestmark = pytest.mark.browser
WIDTHS = (1280, 400)
#: texts whose contrast with what lies behind them is below 4.5
FAINT = """() => {
  const channels = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = channels(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')].filter(element => element.checkVisibility({opacityProperty: true})
    && element.getClientRects().length && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    && !['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(element.tagName)).map(element => {
      const pair = [light(channels(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
      return [(pair[0] + 0.05) / (pair[1] + 0.05), element.textContent.trim().slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


@contextmanager
def serving(service, results=None):
    """The address of a server in this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = mount(build_app(service), service, results)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def address(place):
    service = Service(Answerer.open(place / "index"), targets={("0.png", "two"): ["sub/3.png"]})
    with serving(service) as address:
        yield address


@pytest.fixture(params=WIDTHS)
def width(request):
    return request.param


@pytest.fixture
def page(browser, address, width):
    """The start page; whatever goes wrong in it, or leaves this machine, fails the test."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(15_000)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda one: one.url.startswith((address, "data:", "blob:")) or faults.append(one.url))
    page.goto(address)
    page.wait_for_selector("#answers .hit")
    yield page
    page.close()
    assert not faults


def shown(page, column):
    """Paths of a column of the page."""
    return (
        page.locator("#answers .column").nth(column).locator(".hit").evaluate_all("all => all.map(x => x.dataset.path)")
    )


def wide(page):
    """How far the page reaches beyond its right edge."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def ask(page, text):
    field = page.locator("#text").get_by_role("textbox")
    field.fill(text)
    field.press("Enter")
    page.wait_for_function("document.querySelectorAll('#answers .columns .column').length === 3")


def test_a_question_is_typed_and_answered_as_over_http(page, address):
    page.locator("#answers .hit[data-path='0.png']").click()
    page.wait_for_selector("#answers .columns")
    ask(page, "two dogs")
    page.wait_for_url("**text=two+dogs**")
    wanted = page.request.get(f"{address}/search?image=0.png&text=two+dogs&k=12").json()
    for number, column in enumerate(("text", "image", "composed")):
        assert shown(page, number) == [row["path"] for row in wanted["answers"][column]]
    assert "10 pictures; encode" in page.locator("#status").inner_text()
    page.get_by_text("Link and JSON of this question").click()
    assert json.loads(page.locator("#json").get_by_role("textbox").input_value()) == wanted
    assert page.locator("#link").get_by_role("textbox").input_value().startswith("/?image=0.png&text=two+dogs")
    assert wide(page) == 0 and page.evaluate(FAINT) == []


def test_an_answer_becomes_the_reference_and_the_link_brings_it_back(page, browser):
    ask(page, "two dogs")
    first = page.locator("#answers .column").first.locator(".hit").nth(1)
    path = first.get_attribute("data-path")
    first.click()
    page.wait_for_function("path => document.querySelector('#reference').innerText.includes(path)", arg=path)
    page.wait_for_url("**image=*")
    found = [shown(page, column) for column in range(3)]
    assert path not in found[1]
    again = browser.new_page()
    again.goto(page.url)
    again.wait_for_selector("#answers .columns")
    assert [shown(again, column) for column in range(3)] == found
    assert again.locator("#text").get_by_role("textbox").input_value() == "two dogs"
    again.close()


def test_the_right_answer_is_framed(page):
    page.locator("#answers .hit[data-path='0.png']").click()
    page.wait_for_selector("#answers .columns")
    assert page.locator("#text").get_by_role("textbox").input_value() == "two"  # the change that goes with the picture
    framed = page.locator("#answers .hit.right")
    assert framed.count() == 3 and set(framed.evaluate_all("all => all.map(x => x.dataset.path)")) == {"sub/3.png"}
    assert "right answer" in framed.first.get_attribute("aria-label")


def test_the_slider_moves_the_sum(page, address):
    page.locator("#answers .hit[data-path='0.png']").click()
    page.wait_for_selector("#answers .columns")
    ask(page, "two dogs")
    slider = page.locator("#weight input[type=range]")
    slider.focus()
    for _ in range(10):
        slider.press("ArrowRight")
    page.wait_for_url("**weight=1**")
    assert shown(page, 2) == shown(page, 0)  # nothing but the text
    slider.fill("0")
    page.wait_for_url("**weight=0**")
    assert shown(page, 2) == shown(page, 1)  # nothing but the reference


def test_the_slider_waits_for_a_sum(page):
    """The method is chosen by the keyboard; others than sums have no weight."""
    slider, field = page.locator("#weight input[type=range]"), page.locator("#method input")
    assert slider.is_enabled() and field.input_value() == "image+text"
    field.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#weight input[type=range]').disabled")
    assert field.input_value() == "text" and page.evaluate(FAINT) == []
    field.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('#weight input[type=range]').disabled")


def test_in_the_dark(browser, address):
    """Gradio goes by the browser's colours; every place that Tab reaches has a ring that is seen."""
    page = browser.new_page(color_scheme="dark")
    page.set_default_timeout(15_000)
    page.goto(address)
    page.locator("#answers .hit[data-path='0.png']").click()
    page.wait_for_selector("#answers .columns")
    assert page.evaluate(FAINT) == []
    page.mouse.click(2, 2)
    reached = set()
    for _ in range(15):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + ' ' + document.activeElement.type"))
        # Gradio's buttons fade into it
        page.wait_for_function("getComputedStyle(document.activeElement).outline === 'rgb(147, 197, 253) solid 3px'")
    assert {"TEXTAREA textarea", "INPUT range", "INPUT number", "BUTTON submit", "BUTTON button"} <= reached
    page.close()


def send(page, path, into="upload"):
    page.locator(f"#{into} input[type=file]").set_input_files(path)


def test_pictures_are_sent_good_and_broken(page, place, tmp_path):
    send(page, place / "images" / "sub" / "5.png")
    page.wait_for_selector("#answers .columns")
    assert shown(page, 1)[0] == "sub/5.png"
    page.wait_for_selector("#reference img[src*='sent']")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.locator("#clear").click()
    page.wait_for_function("document.querySelector('#reference').innerText.includes('No reference')")
    send(page, tmp_path / "broken.png")
    page.wait_for_selector("#status .wrong[role=alert]")
    assert "cannot read image (sent)" in page.locator("#status").inner_text()
    assert str(tmp_path) not in page.content() and page.evaluate(FAINT) == []
    ask(page, "two dogs")  # the page goes on
    assert page.locator("#status .wrong").count() == 0


def test_without_a_mouse(page):
    """Only Tab, arrows, letters and Enter: choose a picture, type a change, ask, choose an answer."""

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"Tab does not reach {selector}")

    tab_to("#answers .hit")
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answers .columns")
    assert ring == "solid" and "0.png" in page.locator("#reference").inner_text()
    page.evaluate("document.activeElement.blur()")
    tab_to("#text textarea, #text input")
    page.keyboard.press("Control+A")
    page.keyboard.type("two dogs")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=two+dogs**")
    tab_to("#weight input[type=range]")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**weight=0.45**")
    tab_to("#answers .hit")
    path = page.evaluate("document.activeElement.dataset.path")
    page.keyboard.press("Enter")
    page.wait_for_function("path => document.querySelector('#reference').innerText.includes(path)", arg=path)


def test_classes_and_results(browser, service, train, tmp_path, width):
    first = train("CoOp", output="stage1")
    second = train("DPC_CoOp", "TRAINER.DPC.CKPT_DIR", first.output_dir, "TRAINER.DPC.TOPK", 2, output="stage2")
    base_new_pair(tmp_path / "output", 80.0, 70.0)
    base_new_pair(tmp_path / "output", 82.0, 72.0, "DPC_CoOp")
    service = Service(service.answerer, [Classifier(one.output_dir) for one in (second, first)])
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "black.png")
    with serving(service, tmp_path / "output") as address:
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.set_default_timeout(15_000)
        page.goto(address)
        page.get_by_role("tab", name="Classify").click()
        send(page, tmp_path / "black.png", "classify-upload")
        page.wait_for_function("document.querySelectorAll('#classes-found .bars').length === 3")
        assert wide(page) == 0 and page.evaluate(FAINT) == []
        page.locator("#classes textarea").fill("cat\npolar bear")
        page.locator("#classify-button").click()
        page.wait_for_function("document.querySelector('#classes-found').innerText.includes('polar bear')")
        page.locator("#classes textarea").fill("cat\ncat")
        page.locator("#classify-button").click()
        page.wait_for_selector("#classify-status .wrong")
        page.get_by_role("tab", name="Results").click()
        page.wait_for_selector("#tables table")
        page.wait_for_selector("#tables img.plot")
        assert "Base-to-new accuracy" in page.locator("#tables").inner_text()
        assert wide(page) == 0 and page.evaluate(FAINT) == []
        page.close()


def test_nothing_was_given(browser, address):
    page = browser.new_page()
    page.goto(address)
    for tab, flag in (("Classify", "--classify RUN_DIR"), ("Results", "--results OUTPUT")):
        page.get_by_role("tab", name=tab).click()
        page.get_by_text(f"Start with {flag}").wait_for()
    page.close()


def test_the_address_can_hold_anything(browser, address):
    """A link is what somebody else may have written."""
    page = browser.new_page()
    page.goto(
        f"{address}/?image=../../etc/passwd&text=<img src=x onerror=document.title='taken'>&method=magic&weight=x"
    )
    page.wait_for_selector("#status .wrong")
    assert "no picture" in page.locator("#status").inner_text() and page.title() == "dassl-prompts"
    page.goto(f"{address}/?image=<b>x</b>")
    page.wait_for_selector("#status .wrong")
    assert page.locator("#reference b").count() == 0
    page.close()
