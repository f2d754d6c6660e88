"""The page in a real browser: what a visitor sees, sends and leaves behind."""

import shutil

import media_files
import pytest
import torch
import whole_builders
from playwright.sync_api import expect, sync_playwright

from multimood.session import SupportSession
from multimood.spaces_demo import app

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
WAIT = 60_000  # milliseconds, on a busy machine
UPLOADED = 'video[src*="/file="]'  # the clip is with the server

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
    """Opens the page for one more visitor; fails where a page asks anything of another server, or its scripts break."""
    contexts, outside, errors = [], [], []
    own = (address, address.replace("http", "ws"), "data:", "blob:")

    def open_page(width=1200, height=1000):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.on("request", lambda request: None if request.url.startswith(own) else outside.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        expect(page.get_by_label("Your words")).to_be_visible(timeout=WAIT)
        return page

    yield open_page
    for context in contexts:
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
    expect(page.locator("#memory")).to_contain_text(f"{2 * number} utterances said", timeout=WAIT)
    answer = page.get_by_test_id("bot").nth(number - 1)
    expect(answer).not_to_have_text("…")
    expect(answer).not_to_be_empty()


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_clip_is_uploaded_answered_and_forgotten(visit, clip, uploads, tmp_path):
    page = visit()
    expect(page.get_by_text("not a substitute for care")).to_be_visible()
    expect(page.get_by_text("is a toy")).to_be_visible()
    page.locator("input[type=file]").first.set_input_files(clip)
    expect(page.locator(UPLOADED)).to_be_visible(timeout=WAIT)
    assert files_in(uploads)
    send(page, "I did not sleep again.")
    expect_answer(page)
    said = page.get_by_test_id("user")
    expect(said).to_contain_text("I did not sleep again.")
    expect(said).to_contain_text("with a clip")
    for label in app.FIELDS.values():
        expect(page.get_by_text(label)).to_be_visible()
    expect(page.locator("#estimates .bar")).to_have_count(3 * app.SHOWN)
    expect(page.locator("video")).to_have_count(0)
    assert files_in(uploads) == []
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_a_recording_comes_after_consent(visit, uploads):
    """Chromium's fake camera and microphone stand in for real ones."""
    for seconds in (2, 8, 20):  # on a busy machine the first pictures come late, and a short recording is empty
        page = visit()
        camera = page.get_by_label("Capture from camera")
        expect(camera).to_have_count(0)
        page.get_by_label(app.CONSENT).check()
        camera.click()
        page.get_by_role("button", name="Click to Access Webcam").click()
        page.get_by_role("button", name="start recording").click()
        page.wait_for_timeout(1000 * seconds)
        page.get_by_role("button").filter(has_text="Stop").click()
        expect(page.locator(UPLOADED)).to_be_visible(timeout=WAIT)
        if any(path.stat().st_size > 1000 for path in files_in(uploads)):
            break
    send(page, "")
    expect_answer(page)
    expect(page.get_by_test_id("user")).to_have_text("with a clip")
    page.get_by_label(app.CONSENT).uncheck()
    expect(camera).to_have_count(0)


def test_a_conversation_grows_and_starts_over(visit):
    page = visit()
    for number in range(1, 4):
        send(page, f"Turn {number}.")
        expect_answer(page, number)
    expect(page.locator("#memory")).to_contain_text("2 of them remembered")
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#memory")).to_have_text(app.EMPTY_MEMORY)
    expect(page.locator("#estimates .bar")).to_have_count(0)
    send(page, "Hello again.")
    expect_answer(page)


def test_visitors_do_not_meet(visit):
    one, other = visit(), visit()
    send(one, "This is between us.")
    expect_answer(one)
    send(other, "Hello.")
    expect_answer(other)
    expect(other.get_by_text("between us")).to_have_count(0)


def test_a_disclosure_is_answered_with_a_question_and_the_countrys_lines(visit, tmp_path):
    page = visit()
    expect(page.locator("#help")).to_contain_text("findahelpline.com")
    page.get_by_label(app.COUNTRY).click()
    page.get_by_role("option", name="United Kingdom").click()
    expect(page.locator("#help")).to_contain_text("116 123")
    send(page, "I want to kill myself.")
    expect_answer(page)
    answer = page.get_by_test_id("bot")
    for part in ("116 123", "doctor", "friend", "Are you thinking of killing yourself", "I'm an AI"):
        expect(answer).to_contain_text(part)
    expect(page.locator("#risk")).to_contain_text("high")
    page.get_by_label(app.YOUNG).check()
    expect(page.locator("#help")).to_contain_text("Childline")
    send(page, "No.")
    expect_answer(page, 2)
    expect(answer.nth(1)).to_contain_text("Childline")
    page.screenshot(path=tmp_path / "risk.png", full_page=True)
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#risk")).to_be_empty()


def test_estimates_can_be_hidden(visit):
    page = visit()
    page.get_by_label("Show estimates").uncheck()
    expect(page.get_by_text(app.CAVEAT)).to_be_hidden()
    send(page, "Hello.")
    expect_answer(page)
    for label in app.FIELDS.values():
        expect(page.get_by_text(label)).to_be_hidden()


def test_what_cannot_be_answered_is_said(visit, uploads, tmp_path):
    before = files_in(uploads)  # a recording that an earlier test left unsent waits for the clean-up
    page = visit()
    send(page, "")
    expect(page.get_by_text("give words")).to_be_visible(timeout=WAIT)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a clip")
    page.locator("input[type=file]").first.set_input_files(broken)
    expect(page.locator(UPLOADED)).to_be_attached(timeout=WAIT)
    send(page, "Look.")
    expect(page.get_by_text("cannot be read")).to_be_visible(timeout=WAIT)
    assert [path for path in files_in(uploads) if path not in before] == []
    send(page, "But this can be answered.")
    expect_answer(page)


def test_the_page_fits_a_phone(visit, tmp_path):
    page = visit(width=390, height=844)
    send(page, "Hello" * 50)
    expect_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
