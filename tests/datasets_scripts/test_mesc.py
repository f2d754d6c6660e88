import shutil
from collections import Counter
from pathlib import Path

import pytest
from corpus_trees import mesc_rows, official_entries, write_json, write_mesc
from media_files import write_clip

from multimood.datasets_scripts.mesc import SPLITS, clip_name, load_mesc, read_dialogues, split_dialogues
from multimood.datasets_scripts.report import CorpusError, SkipReport
from multimood.datasets_scripts.schema import validate_row
from multimood.processors.turn import EMOTIONS, SupportTurn, build_completion

SHARED = Path(__file__).parents[3] / "shared" / "data" / "mesc"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/mesc is not here")

VALIDATION, TEST = (3, 8), (5, 12)


@pytest.fixture
def cells() -> list[dict[str, str]]:
    return mesc_rows(20)


@pytest.fixture
def root(tmp_path, cells) -> Path:
    write_json(tmp_path / "val.json", official_entries(cells, VALIDATION))
    write_json(tmp_path / "test.json", official_entries(cells, TEST))
    return write_mesc(tmp_path, cells)


def test_a_row_stands_at_each_hand_over_with_what_was_said_before(root, cells):
    first, second = [row for row in load_mesc(root) if row["dialogue_id"] == "mesc-0"]
    said = cells[:7]
    assert first["history"] == []
    assert first["utterance"] == "The lamp in number 0 hums. All night."
    assert first["response"] == "Does it?"
    assert second["turn_id"] == 1
    assert second["utterance"] == "It does, in 0."
    assert second["response"] == "What then? Take your time."
    assert [utterance["speaker"] for utterance in second["history"]] == ["client", "therapist"]
    assert second["history"][0]["text"] == first["utterance"]
    assert second["history"][1]["strategy"] == said[2]["Strategy"].lower() == first["strategy"]
    assert first["client_emotion"] == said[1]["Emotion"], "of the utterance that hands over"
    assert (second["strategy"], second["therapist_emotion"]) == (said[4]["Strategy"].lower(), said[4]["Emotion"])
    assert second["videos"] == []


def test_every_row_is_one_of_the_schema_and_can_be_trained_on(root):
    for row in load_mesc(root):
        validate_row(row)
        assert SupportTurn.parse(build_completion(row)[0]["content"]).is_valid


def test_the_official_files_give_split_problem_and_situation_but_not_the_words(root):
    ids = {split: {row["dialogue_id"] for row in load_mesc(root, split=split)} for split in SPLITS}
    assert ids["validation"] == {f"mesc-{number}" for number in VALIDATION}
    assert ids["test"] == {f"mesc-{number}" for number in TEST}
    assert ids["train"] == {f"mesc-{number}" for number in range(20)} - ids["validation"] - ids["test"]
    rows = [row for split in SPLITS for row in load_mesc(root, split=split)]
    assert {row["problem_type"] for row in load_mesc(root, split="test")} == {"sleepless nights"}
    assert load_mesc(root, split="test")[0]["situation"] == "Room 5 is loud."
    assert "looks at a lamp" not in str(rows)


def test_without_the_test_dialogues_there_is_no_official_train_split(root):
    (root / "test.json").unlink()
    assert load_mesc(root, split="validation")
    for split in ("train", "test"):
        with pytest.raises(CorpusError, match=r"test.json is not there.*episode_disjoint"):
            load_mesc(root, split=split)
    assert set(split_dialogues(read_dialogues(root), root)) == {"validation"}


def test_no_episode_is_on_two_sides_of_the_disjoint_split(tmp_path):
    write_mesc(tmp_path, mesc_rows(100, episodes=40))
    parts = split_dialogues(read_dialogues(tmp_path), tmp_path, "episode_disjoint")
    episodes = {split: {u.episode_key for d in part for u in d.utterances} for split, part in parts.items()}
    assert episodes["train"] | episodes["validation"] | episodes["test"] == {
        u.episode_key for d in read_dialogues(tmp_path) for u in d.utterances
    }
    assert sum(map(len, episodes.values())) == len(set().union(*episodes.values()))
    assert all(8 <= len(parts[split]) <= 12 for split in ("validation", "test"))
    again = split_dialogues(read_dialogues(tmp_path), tmp_path, "episode_disjoint")
    assert again == parts


def test_the_clips_of_a_turn_are_found_by_name_in_order(root, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for dialogue in read_dialogues(root):
        for utterance in dialogue.utterances:
            (clips / clip_name(utterance)).write_bytes(b"clip")
    row = next(row for row in load_mesc(root, clips=clips) if row["dialogue_id"] == "mesc-1")
    assert row["videos"] == [str(clips / f"S02E01_D0001_U00{number}.mp4") for number in (0, 1)]

    (clips / "S02E01_D0001_U001.mp4").unlink()
    with pytest.raises(CorpusError, match=r"MESC.csv, line 10: there is no clip .*S02E01_D0001_U001.mp4"):
        load_mesc(root, clips=clips)
    report = SkipReport()
    row = next(row for row in load_mesc(root, clips=clips, skip_bad=report) if row["dialogue_id"] == "mesc-1")
    assert row["videos"] == [str(clips / "S02E01_D0001_U000.mp4")]
    assert report.counts == {"missing clip": 1}

    outside = write_clip(tmp_path / "other.mp4", frames=2)
    (clips / "S02E01_D0001_U001.mp4").symlink_to(outside)
    with pytest.raises(CorpusError, match="leads out of"):
        load_mesc(root, clips=clips)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252"])
def test_the_table_may_come_from_a_spreadsheet(tmp_path, encoding):
    cells = mesc_rows(1)
    cells[0]["Utterance"] = "  It’s  a café,\n“they” say. "
    (dialogue,) = read_dialogues(write_mesc(tmp_path, cells, encoding))
    assert dialogue.utterances[0].text == "It’s a café, “they” say."
    assert dialogue.utterances[1].place.endswith("MESC.csv, line 4"), "a cell may span lines"


BAD_CELLS = {
    "Emotion": ("anxious", r"line 5: Emotion is 'anxious'; allowed: anger"),
    "Strategy": ("Open questions", r"Strategy of the therapist is 'Open questions'; did you mean 'open question'"),
    "Speaker": ("Nurse", "Speaker is 'Nurse'; use one of Client, Therapist"),
    "Utterance": ("  ", "Utterance is empty"),
    "StartTime": ("1:2", "StartTime is '1:2'; write it as 00:01:02,345"),
    "EndTime": ("00:00:01,000", "EndTime 00:00:01,000 is not after StartTime 00:00:09,250"),
    "Season": ("one", "Season is 'one'; give a whole number"),
    "Dialogue_ID": ("", "Dialogue_ID is ''; give a whole number"),
    "Utterance_ID": ("1", r"utterance 1 of dialogue 0 is already at .*line 3; remove one"),
}


@pytest.mark.parametrize("column", BAD_CELLS)
def test_a_bad_cell_is_named_or_costs_its_dialogue(tmp_path, column):
    value, message = BAD_CELLS[column]
    cells = mesc_rows(3)
    line = 3 if column != "Strategy" else 2
    cells[line][column] = value
    if column == "EndTime":
        assert cells[line]["StartTime"] == "00:00:09,250"
    write_mesc(tmp_path, cells)
    with pytest.raises(CorpusError, match=message):
        read_dialogues(tmp_path)
    report = SkipReport()
    assert [dialogue.dialogue_id for dialogue in read_dialogues(tmp_path, skip_bad=report)] == [1, 2]
    assert len(report.errors) == 1
    read_dialogues(tmp_path, skip_bad=report)
    assert len(report.errors) == 1, "reading again counts nothing twice"


def test_a_lost_line_is_noticed(tmp_path):
    cells = mesc_rows(2)
    write_mesc(tmp_path, cells[:3] + cells[4:])
    with pytest.raises(CorpusError, match="dialogue 0 lacks utterance 3"):
        read_dialogues(tmp_path)


def test_a_dialogue_is_in_one_episode(tmp_path):
    cells = mesc_rows(2)
    cells[9]["Episode"] = "7"
    write_mesc(tmp_path, cells)
    with pytest.raises(CorpusError, match="line 9: dialogue 1 is in S02E01 and S02E07"):
        read_dialogues(tmp_path)


def test_a_line_with_too_few_cells_is_named(tmp_path):
    table = write_mesc(tmp_path, mesc_rows(3)) / "MESC.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:10], "Half a line,Client", *lines[11:]]))
    with pytest.raises(CorpusError, match="line 11: 2 cells in a table of 10 columns"):
        read_dialogues(tmp_path)
    report = SkipReport()
    assert [dialogue.dialogue_id for dialogue in read_dialogues(tmp_path, skip_bad=report)] == [0, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; its first line must name the columns Utterance"),
        ("Utterance,Speaker\n", r"line 1: column Emotion, .*EndTime is missing; there are Utterance, Speaker"),
        ('Utterance,"Speaker\n', "line 1: broken quoting"),
        (None, "MESC.csv: there is no such file"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "MESC.csv").write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_dialogues(tmp_path, skip_bad=SkipReport())


def test_an_official_dialogue_without_counterpart_stops_even_a_tolerant_reader(root, cells):
    entries = official_entries(cells, VALIDATION)
    entries[1]["dialog"][0]["text"] = entries[1]["dialog"][3]["text"] = "Nothing of the kind."
    write_json(root / "val.json", entries)
    for report in (None, SkipReport()):
        with pytest.raises(CorpusError, match=r"val.json, dialogue 2: 7 utterances .* matching: none"):
            load_mesc(root, skip_bad=report)


def test_a_bad_line_in_an_official_dialogue_leaves_it_out_of_every_split(root, cells):
    cells[7 * VALIDATION[0]]["Emotion"] = "?"
    write_mesc(root, cells)
    report = SkipReport()
    rows = [row for split in SPLITS for row in load_mesc(root, split=split, skip_bad=report)]
    assert f"mesc-{VALIDATION[0]}" not in {row["dialogue_id"] for row in rows}
    assert report.counts == {"unknown label": 1, "official dialogue": 1}


def test_a_dialogue_of_two_official_files_is_refused(root, cells):
    write_json(root / "test.json", official_entries(cells, (VALIDATION[0],)))
    with pytest.raises(CorpusError, match=r"test.json, dialogue 1: is dialogue 3 .* the validation split has already"):
        load_mesc(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"dialog": ]', "val.json, line 2: not JSON"),
        ("{}", "val.json: holds no list"),
        ('[{"dialog": []}]', "val.json, dialogue 1: is no dialogue of the official form"),
        ('[{"dialog": [{"text": "Hm.", "speaker": "nurse"}]}]', "KeyError: 'nurse'"),
    ],
)
def test_a_broken_official_file_is_named(root, content, message):
    (root / "val.json").write_text(content)
    with pytest.raises(CorpusError, match=message):
        load_mesc(root)


def test_what_is_no_split_or_scheme_is_refused(root):
    with pytest.raises(ValueError, match="split is 'dev'; use one of train"):
        load_mesc(root, split="dev")
    with pytest.raises(ValueError, match="scheme is 'random'; use one of official"):
        load_mesc(root, scheme="random")


@needs_shared
def test_the_public_files_give_the_papers_figures():
    dialogues = read_dialogues(SHARED)
    said = [utterance for dialogue in dialogues for utterance in dialogue.utterances]
    assert (len(dialogues), len(said)) == (1019, 28762)
    assert Counter(utterance.emotion for utterance in said) == {
        "neutral": 17116,
        "depression": 4958,
        "anger": 2659,
        "disgust": 1669,
        "joy": 1350,
        "sadness": 759,
        "fear": 251,
    }
    assert Counter(dialogue.split for dialogue in dialogues) == {None: 917, "validation": 102}
    assert all(dialogue.problem_type and dialogue.situation for dialogue in dialogues if dialogue.split)
    rows = load_mesc(SHARED, split="validation")
    assert len(rows) == 445
    for row in rows:
        validate_row(row)
    assert sum(len(load_mesc(SHARED, split=split, scheme="episode_disjoint")) for split in SPLITS) == 4620


@needs_shared
def test_a_made_up_test_file_for_the_public_table_gives_the_other_two_splits(tmp_path):
    for name in ("MESC.csv", "val.json"):
        shutil.copy(SHARED / name, tmp_path / name)
    chosen = [dialogue for dialogue in read_dialogues(SHARED) if dialogue.split is None][::9][:102]
    speakers = {"client": "user", "therapist": "sys"}
    entries = [
        {
            "problem_type": "made up",
            "situation": "Made up.",
            "dialog": [{"text": f"{u.text} A lamp.", "speaker": speakers[u.speaker]} for u in dialogue.utterances],
        }
        for dialogue in chosen
    ]
    write_json(tmp_path / "test.json", entries)
    dialogues = split_dialogues(read_dialogues(tmp_path), tmp_path)
    assert {split: len(part) for split, part in dialogues.items()} == {"train": 815, "validation": 102, "test": 102}
    assert [d.dialogue_id for d in dialogues["test"]] == [d.dialogue_id for d in chosen]
    assert {row["problem_type"] for row in load_mesc(tmp_path, split="test")} == {"made up"}


@needs_shared
def test_the_disjoint_split_of_the_public_files_is_like_the_official_one():
    dialogues = read_dialogues(SHARED)
    parts = split_dialogues(dialogues, SHARED, "episode_disjoint")
    episodes = [{u.episode_key for d in part for u in d.utterances} for part in parts.values()]
    assert sum(map(len, episodes)) == len(set().union(*episodes)) == 72
    everyone = _shares(dialogues)
    for split in ("validation", "test"):
        assert len(parts[split]) == pytest.approx(102, abs=6)
        assert _shares(parts[split]) == pytest.approx(everyone, abs=0.02)


def _shares(dialogues) -> list[float]:
    counts = Counter(u.emotion for dialogue in dialogues for u in dialogue.utterances)
    return [counts[emotion] / counts.total() for emotion in EMOTIONS]
