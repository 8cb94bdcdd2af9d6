"""The page, used as a person uses it: in a browser, by clicks. What it asks for goes to its own server alone."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api", reason="the page is not tried: pip install 'gentok[browser]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="the page is not tried: no chromium or google-chrome is on this machine"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served():
    """The page's address, of a model."""
    running = {}

    def of(ckpt):
        if ckpt in running:
            return running[ckpt][1]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-c", "from gentok.cli.main import main; main()", "serve", f"ckpt={ckpt}", f"port={port}"]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        place = f"http://127.0.0.1:{port}"
        while True:  # ends with the process, where it does not come up
            assert process.poll() is None, "the server stopped"
            try:
                urllib.request.urlopen(f"{place}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        running[ckpt] = process, place
        return place

    yield of
    for process, _ in running.values():
        process.terminate()
        process.wait(60)


@pytest.fixture
def page(browser, served):
    """Opens a model's page; at the end nothing may have been asked of another place, and nothing may have gone wrong."""
    context = browser.new_context(accept_downloads=True)
    asked, wrong, places = [], [], set()

    def of(ckpt):
        one = context.new_page()
        one.set_default_timeout(120_000)
        one.on("request", lambda request: asked.append(request.url))
        one.on("pageerror", lambda error: wrong.append(str(error)))
        one.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        places.add(served(ckpt))
        one.goto(served(ckpt))
        one.wait_for_selector("body[data-ready]")
        return one

    yield of
    context.close()
    wrong = [line for line in wrong if "status of 400" not in line]  # how the browser notes the answer to a bad request
    elsewhere = [url for url in asked if not url.startswith((*places, "data:", "blob:"))]
    assert asked and not elsewhere and not wrong, (elsewhere, wrong)


def drawn(page, side=0):
    """Waits for the items of a side, and returns the line above them."""
    page.wait_for_function(f"document.querySelectorAll('section')[{side}].querySelector('.note').textContent.includes('calls an item')")
    return page.locator("section").nth(side).locator(".note").inner_text()


def downloaded(page, link):
    with page.expect_download() as waiting:
        link.click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_two_samplers_draw_a_class_side_by_side_and_their_items_are_taken_home(page):
    one = page("docs/zoo/mnist5k_ar")
    one.select_option("#conditions select[name=class]", "7")
    one.fill("#n", "2")
    one.fill("#seed", "5")
    one.locator("select.sampler").nth(0).select_option("autoregressive")
    one.locator("select.sampler").nth(1).select_option("jacobi")
    one.check("#watch")
    one.click("button")
    first, second = drawn(one, 0), drawn(one, 1)
    assert first.startswith("64.0 network calls") and " s, exact" in first and "up to 1 cell " in first
    assert float(second.split()[0]) < 64 and "up to 1 cell " not in second  # drafts that were accepted
    assert one.locator("canvas.cells").count() == 4 and one.locator(".items img").count() == 4
    name, picture = downloaded(one, one.locator("a.media").first)
    assert name == "5_0.png" and Image.open(io.BytesIO(picture)).size == (32, 32)
    name, codes = downloaded(one, one.locator("a.codes").first)
    told = json.loads(codes)
    assert name == "5_0.json" and np.shape(told["codes"]) == (1, 64) and told["request"]["condition"] == {"class": "7"}


def test_what_is_painted_over_is_drawn_anew_and_the_rest_stays(page, served, tmp_path):
    one = page("docs/zoo/mnist5k_masked")
    one.fill("#n", "1")
    one.click("button")
    drawn(one, 1)
    _, picture = downloaded(one, one.locator("a.media").first)
    _, codes = downloaded(one, one.locator("a.codes").first)
    (tmp_path / "digit.png").write_bytes(picture)
    one.set_input_files("#known", str(tmp_path / "digit.png"))
    board = one.locator("#paint canvas")
    board.wait_for()
    box = board.bounding_box()
    one.mouse.move(box["x"] + 60, box["y"] + 40)
    one.mouse.down()
    one.mouse.move(box["x"] + 60, box["y"] + 150, steps=12)
    one.mouse.up()
    with one.expect_request("**/v1/sample") as asked:
        one.fill("#seed", "9")
        one.click("button")
    body = asked.value.post_data_json
    keep = np.array(body["keep"])
    assert keep.shape == (32, 32) and 0 < (keep == 0).sum() < 400 and keep[25:, 25:].all()
    drawn(one, 1)
    again = one.evaluate("document.querySelector('section').made.items[0].codes")
    before = json.loads(codes)["codes"]
    stays = keep.reshape(8, 4, 8, 4).all((1, 3)).reshape(-1)
    digit = base64.b64decode(body["known"])
    server = json.load(urllib.request.urlopen(urllib.request.Request(served("docs/zoo/mnist5k_masked") + "/v1/encode", digit)))["codes"]
    assert digit == picture and np.array_equal(np.array(again)[0][stays], np.array(server)[0, 0][stays]) and again != before


def test_a_sound_of_a_text_is_drawn_heard_cut_to_fewer_levels_and_continued(page, tmp_path):
    one = page("docs/zoo/spoken_digits_ar_delay")
    assert one.locator("#keep").is_hidden() and one.locator("#first").is_visible()
    one.fill("#conditions input[name=text]", "seven three")
    one.fill("#n", "1")
    one.fill("#duration", "0.6")
    one.check("#watch")
    one.check("#listen")
    with one.expect_response("**/v1/stream?*") as live:
        one.click("button")
    assert live.value.status == 200 and live.value.headers["content-type"] == "audio/wav"
    drawn(one, 1)
    one.wait_for_function("document.querySelector('audio.live').readyState >= 1")
    name, sound = downloaded(one, one.locator("a.media").first)
    assert name == "0_0.wav" and sound[:4] == b"RIFF" and len(sound) == 44 + 2 * int(0.6 * 16000)
    one.locator("#prefix input").fill("2")
    one.wait_for_function("!document.querySelector('section audio').src.endsWith(document.querySelector('section').made.whole[0])")
    assert "decode 2 of 8 levels" in one.locator("#prefix").inner_text()
    _, coarse = downloaded(one, one.locator("a.media").first)
    assert len(coarse) == len(sound) and coarse != sound
    (tmp_path / "begin.wav").write_bytes(sound)
    one.set_input_files("#known", str(tmp_path / "begin.wav"))
    one.fill("#first", "0.2")
    for side in (0, 1):  # a beginning is no prefix of a delayed order
        one.locator("select.sampler").nth(side).select_option("autoregressive")
        one.locator("input.settings").nth(side).fill("forced=true")
    one.uncheck("#listen")
    one.uncheck("#watch")
    with one.expect_request("**/v1/sample") as asked:
        one.click("button")
    assert asked.value.post_data_json["keep"] == 0.2
    drawn(one, 1)
    assert one.locator("section").first.locator("audio").count() == 1


def test_what_cannot_be_done_is_said_on_the_page(page):
    one = page("docs/zoo/mnist5k_masked")
    one.locator("input.settings").first.fill("stepz=3")
    with one.expect_response("**/v1/sample") as answer:
        one.click("button")
    assert answer.value.status == 400
    one.wait_for_selector(".note.error")
    assert "stepz" in one.locator(".note.error").first.inner_text()
