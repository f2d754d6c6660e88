import re
import shutil
from pathlib import Path

import media_files
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from multimood.datasets_scripts.inspect_rows import RowStatistics, format_table, mesc_tables, write_sheet
from multimood.datasets_scripts.mesc import MescDialogue, MescUtterance, read_dialogues, split_dialogues

MESC = Path(__file__).parents[3] / "shared" / "data" / "mesc"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def row(number: int, **changes) -> dict:
    return {
        "dialogue_id": f"d{number // 2}",
        "turn_id": number,
        "problem_type": None,
        "situation": None,
        "history": [{"speaker": "client", "text": "Hello.", "emotion": None, "strategy": None}] * number,
        "videos": [],
        "utterance": "I am here.",
        "client_emotion": "joy" if number else "sadness",
        "therapist_emotion": "neutral",
        "strategy": "open question",
        "response": None if number == 3 else "Tell me.",
        **changes,
    }


def test_rows_are_counted():
    summary = RowStatistics.of([*(row(i) for i in range(4)), row(4, videos=["a.mp4", "b.mp4"])]).summary()
    assert summary["rows"] == 5
    assert summary["dialogues"] == 3
    assert (summary["rows_with_clips"], summary["clips"]) == (1, 2)
    assert summary["rows_with_response"] == 4
    assert summary["mean_history_utterances"] == 2.0
    assert (summary["mean_words"], summary["mean_response_words"]) == (3.0, 2.0)
    assert summary["labels"]["client_emotion"] == {"joy": 4, "sadness": 1}
    assert summary["labels"]["problem_type"] == {"(none)": 5}
    assert RowStatistics().summary()["mean_words"] is None, "no rows have no mean"


def utterance(number: int, speaker: str, start: float, end: float, dialogue: int = 0) -> MescUtterance:
    strategy = "approval" if speaker == "therapist" else None
    return MescUtterance("two words", speaker, "joy", strategy, dialogue, number, 1, dialogue + 1, start, end, "here")


def test_the_tables_count_turns_overlaps_and_episodes_of_both_sides():
    said = [("client", 0, 2), ("client", 1.5, 3), ("therapist", 3, 4), ("client", 5, 6)]
    one = MescDialogue(0, [utterance(i, *parts) for i, parts in enumerate(said)], split="validation")
    two = MescDialogue(1, [utterance(0, "client", 0, 1, 0), utterance(1, "therapist", 1, 2, 0)])
    tables = mesc_tables([one, two], {"train": [two], "validation": [one]})
    assert (tables["dialogues"], tables["utterances"]) == (2, 6)
    assert tables["merged turns a dialogue"] == 2.5
    assert tables["utterances that begin before the one before has ended"] == 1
    assert tables["episodes in both"] == {"train and validation": 1}
    assert tables["splits"]["train"]["hand-overs"] == 1
    assert tables["splits"]["train"]["majority"]["strategy"] == "approval 100.0%"
    assert tables["official dialogues matched one to one"] == {"validation": 1}


def test_numbers_stand_in_a_column():
    assert format_table({"rows": 12345, "of": {"joy": 1}, "mean": None}).splitlines() == [
        "rows    12,345",
        "of",
        "    joy         1",
        "mean         -",
    ]


@pytest.mark.skipif(not MESC.is_dir(), reason="../shared/data/mesc is not here")
def test_the_figures_of_the_paper_come_out_of_the_corpus():
    dialogues = read_dialogues(MESC)
    tables = mesc_tables(dialogues, split_dialogues(dialogues, MESC))
    assert (tables["dialogues"], tables["utterances"]) == (1019, 28762)
    assert tables["emotion"] == {
        "neutral": 17116,
        "depression": 4958,
        "anger": 2659,
        "disgust": 1669,
        "joy": 1350,
        "sadness": 759,
        "fear": 251,
    }
    assert tables["strategy"]["open question"] == 2403, "both spellings"
    assert tables["utterances a dialogue"] == 28.2
    assert tables["merged turns a dialogue"] == 9.9
    assert tables["words an utterance"] == 6.5
    assert tables["official dialogues matched one to one"]["validation"] == 102


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheet")
    clip = media_files.write_clip(folder / "clip.mp4")
    silent = media_files.write_clip(folder / "silent.mp4", audio_rate=None)
    rows = [row(i, videos=[clip], utterance="<script>document.title = 'run'</script>") for i in range(3)]
    rows += [row(3, videos=[silent]), row(4, videos=[str(folder / "gone.mp4")])]
    return write_sheet(folder / "sheet.html", "A <corpus>", {"train": rows, "test": rows[:1]}, samples=6)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium, e.g. Debian's package `chromium`")
def test_the_sheet_shows_labels_lengths_frames_and_waveforms(sheet):
    """In a real browser: pictures are there and drawn, nothing is fetched, and words of a row stay words."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1400})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(sheet.as_uri())
        assert page.title() == "A <corpus>"
        sizes = page.eval_on_selector_all("img", "all => all.map(i => [i.alt, i.naturalWidth, i.naturalHeight])")
        captions = page.eval_on_selector_all("figcaption", "all => all.map(c => c.textContent)")
        errors = page.eval_on_selector_all(".error", "all => all.map(c => c.textContent)")
        words = page.eval_on_selector_all("section td", "all => all.map(c => c.textContent)")
        page.screenshot(path=sheet.with_suffix(".png"), full_page=True)
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert [alt for alt, *_ in sizes].count("frames") == 5
    assert [alt for alt, *_ in sizes].count("waveform") == 4, "the silent clip has none"
    assert all(width >= 960 and height in (80, 120) for _, width, height in sizes)
    assert "train: client emotion" in captions
    assert "test: rows of a dialogue" in captions
    assert not any("problem" in caption for caption in captions), "no chart of nothing"
    assert len(errors) == 1
    assert "there is no file" in errors[0]
    assert "<script>document.title = 'run'</script>" in words
    colours = np.asarray(Image.open(sheet.with_suffix(".png")).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours // 16, axis=0)) > 10, "bars, frames and waveforms are drawn"


def test_a_sheet_without_clips_says_so(tmp_path):
    page = write_sheet(tmp_path / "sheet.html", "text", {"train": [row(0)]}, samples=3).read_text(encoding="utf-8")
    assert "No row has a clip." in page
    assert re.search(r"<th>sadness</th><td><i style=\"width:240px\"></i>1 \(100.0%\)", page)
