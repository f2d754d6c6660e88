"""The page in a real browser: what a visitor sees, sends and leaves behind."""

import shutil
from pathlib import Path

import media_files
import pytest
import torch
import whole_builders
from playwright.sync_api import expect, sync_playwright

from multimood.session import SupportSession
from multimood.spaces_demo import app

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium, e.g. Debian's package `chromium`")


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Where gradio puts what visitors send."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def address(uploads):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    session = SupportSession(*whole_builders.tiny_pair(), max_new_tokens=24, do_sample=True, top_k=0)
    page = app.build_page(session, is_toy=True)
    _, address, _ = app.launch(page, prevent_thread_lock=True, quiet=True)
    yield address
    page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """A visitor's page; fails where it asks anything of another server, or its scripts break."""
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    page = context.new_page()
    outside, errors = [], []
    own = (address, address.replace("http", "ws"), "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else outside.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    expect(page.get_by_label("Your words")).to_be_visible(timeout=60_000)
    yield page
    context.close()
    assert outside == []
    assert errors == []


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return media_files.write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", codec="libx264")


def send(page, words):
    page.get_by_label("Your words").fill(words)
    page.get_by_role("button", name="Send").click()


def expect_answer(page, number=1):
    """The `number`-th answer has been written to its end."""
    expect(page.locator("#memory")).to_contain_text(f"{2 * number} utterances said", timeout=60_000)
    answer = page.get_by_test_id("bot").nth(number - 1)
    expect(answer).not_to_have_text("…")
    expect(answer).not_to_be_empty()
    return answer


def upload(page, path):
    page.locator("input[type=file]").first.set_input_files(path)
    expect(page.locator("video").first).to_be_visible(timeout=60_000)


def test_a_clip_is_uploaded_answered_and_forgotten(visit, clip, uploads, tmp_path):
    expect(visit.get_by_text("not a substitute for care")).to_be_visible()
    expect(visit.get_by_text("is a toy")).to_be_visible()
    upload(visit, clip)
    send(visit, "I did not sleep again.")
    expect_answer(visit)
    expect(visit.get_by_test_id("user")).to_contain_text("I did not sleep again.")
    expect(visit.get_by_test_id("user")).to_contain_text("with a clip")
    for label in app.FIELDS.values():
        expect(visit.get_by_text(label)).to_be_visible()
    expect(visit.get_by_text("%").first).to_be_visible()
    expect(visit.locator("video")).to_have_count(0)  # the clip has left the page, too
    assert [path for path in uploads.rglob("*") if path.is_file()] == []
    visit.screenshot(path=tmp_path / "page.png", full_page=True)


def test_a_conversation_grows_and_starts_over(visit):
    for number in range(1, 4):
        send(visit, f"Turn {number}.")
        expect_answer(visit, number)
    expect(visit.locator("#memory")).to_contain_text("2 of them remembered")
    visit.get_by_role("button", name="Start over").click()
    expect(visit.locator("#memory")).to_have_text(app.EMPTY_MEMORY)
    send(visit, "Hello again.")
    expect_answer(visit)


def test_visitors_do_not_meet(visit, browser, address):
    send(visit, "This is between us.")
    expect_answer(visit)
    other = browser.new_page()
    other.goto(address)
    expect(other.locator("#memory")).to_have_text(app.EMPTY_MEMORY, timeout=60_000)
    send(other, "Hello.")
    expect_answer(other)
    expect(other.get_by_text("between us")).to_have_count(0)
    other.close()


def test_the_camera_comes_after_consent(visit):
    expect(visit.get_by_label("Record video")).to_have_count(0)
    visit.get_by_label(app.CONSENT).check()
    visit.screenshot(path="/tmp/consent.png", full_page=True)


def test_estimates_can_be_hidden(visit):
    visit.get_by_label("Show estimates").uncheck()
    expect(visit.get_by_text(app.CAVEAT)).to_be_hidden()
    send(visit, "Hello.")
    expect_answer(visit)
    for label in app.FIELDS.values():
        expect(visit.get_by_text(label)).to_be_hidden()


def test_what_cannot_be_answered_is_said(visit, tmp_path):
    send(visit, "")
    expect(visit.get_by_text("give words")).to_be_visible(timeout=60_000)
    send(visit, "But this can.")
    expect_answer(visit)


def test_the_page_fits_a_phone(visit):
    visit.set_viewport_size({"width": 390, "height": 844})
    send(visit, "Hello.")
    expect_answer(visit)
    assert visit.evaluate("document.documentElement.scrollWidth") <= 390
