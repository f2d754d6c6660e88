import pytest
from corpus_trees import write_meld

from multimood.datasets_scripts.meld import load_meld
from multimood.datasets_scripts.report import CorpusError, SkipReport
from multimood.datasets_scripts.schema import validate_row


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_each_utterance_is_a_row_after_what_was_said_before(tmp_path, nested, split):
    rows = load_meld(write_meld(tmp_path, nested), split)
    assert len(rows) == 6
    for row in rows:
        validate_row(row)
    row = rows[5]
    assert row["utterance"] == "Words 5, then…", "cp1252 that was read as Latin-1"
    assert (row["client_emotion"], row["corpus_emotion"]) == ("sadness", "sadness")
    assert [(said["speaker"], said["text"]) for said in row["history"]] == [
        ("client", "Words 3, then…"),
        ("therapist", "Words 4, then…"),
    ], "the client is who speaks now"
    assert row["videos"][0].endswith("dia1_utt2.mp4")
    assert row["response"] is None


def test_the_known_broken_clips_are_left_out_by_name(tmp_path):
    root = write_meld(tmp_path)
    report = SkipReport()
    for split in ("train", "validation", "test"):
        load_meld(root, split, skip_bad=report)
    assert report.counts == {"known broken clip": 2}
    assert ["dia125_utt3" in str(error) for error in report.errors] == [True, False]


def test_any_other_missing_clip_is_an_error_or_reported(tmp_path):
    root = write_meld(tmp_path, nested=False)
    (root / "train_splits" / "dia0_utt1.mp4").unlink()
    with pytest.raises(CorpusError, match=r"train_sent_emo.csv, line 3: there is no clip .*dia0_utt1.mp4"):
        load_meld(root)
    report = SkipReport()
    rows = load_meld(root, skip_bad=report)
    assert len(rows) == 5
    assert len(rows[1]["history"]) == 2, "its words were said all the same"
    assert report.counts == {"missing clip": 1, "known broken clip": 1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("surprise", "surprised", "Emotion is 'surprised'; did you mean 'surprise'"),
        ("neutral,1,0", "neutral,0,0", r"line 5: utterance 0 of dialogue 0 is already at .*line 2"),
        ("neutral,1,0", "neutral,x,0", "Dialogue_ID is 'x'"),
        ("Dialogue_ID", "Dialogue", "line 1: column Dialogue_ID is missing"),
    ],
)
def test_a_bad_table_is_named(tmp_path, old, new, message):
    root = write_meld(tmp_path, nested=False)
    table = root / "train_sent_emo.csv"
    content = table.read_text()
    if old not in content:
        content = content.replace("Ann,sadness", f"Ann,{old}")
    table.write_text(content.replace(old, new))
    with pytest.raises(CorpusError, match=message):
        load_meld(root)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"has no table of the test split; looked for test_sent_emo.csv"):
        load_meld(tmp_path, "test")
    with pytest.raises(ValueError, match="split is 'dev'; use one of train, validation, test"):
        load_meld(tmp_path, "dev")
