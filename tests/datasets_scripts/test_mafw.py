import pytest
from corpus_trees import FOLDS, write_mafw

from multimood.datasets_scripts.label_mapping import EMOTION_NAMES
from multimood.datasets_scripts.mafw import load_mafw
from multimood.datasets_scripts.report import CorpusError, SkipReport
from multimood.datasets_scripts.schema import validate_row


def test_five_folds_of_eleven_classes(tmp_path):
    root = write_mafw(tmp_path, 22)
    tested = []
    for fold in range(1, FOLDS + 1):
        train, test = load_mafw(root, fold, "train"), load_mafw(root, fold, "test")
        assert len(train) + len(test) == 22
        tested += test
    assert sorted(row["dialogue_id"] for row in tested) == [f"mafw-{number:05d}" for number in range(1, 23)]
    for row in map(validate_row, tested):
        assert row["client_emotion"] == EMOTION_NAMES["mafw"][row["corpus_emotion"]]
    assert {row["corpus_emotion"] for row in tested} == set(EMOTION_NAMES["mafw"])
    assert all(row["videos"][0].startswith(str(root / "data" / "clips")) for row in tested)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00001.mp4 glee", r"test.txt, line 2: emotion is 'glee'; allowed: anger"),
        ("00001.mp4", "line 2: emotion is ''"),
        ("99999.mp4 anger", "line 2: there is no clip .*99999.mp4"),
        ("../secret.mp4 anger", "line 2: '../secret.mp4' leads out of"),
        ("00002.mp4 anger", r"line 2: 00002.mp4 is already at .*line 1"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path, line, message):
    root = write_mafw(tmp_path, 22)
    (root / "data" / "secret.mp4").write_bytes(b"not in the folder of clips")
    path = root / "Train & Test Set/single/no_caption/set_1/test.txt"
    path.write_text(f"00002.mp4 disgust\n{line}\n\n00003.mp4 fear\n")
    with pytest.raises(CorpusError, match=message):
        load_mafw(root, 1, "test")
    report = SkipReport()
    assert [row["client_emotion"] for row in load_mafw(root, 1, "test", skip_bad=report)] == ["disgust", "fear"]
    assert len(report.errors) == 1


def test_the_folds_may_lie_at_the_top(tmp_path):
    root = write_mafw(tmp_path, 22)
    (root / "Train & Test Set/single/no_caption").rename(root / "lists")
    for folder in (root / "lists").iterdir():
        folder.rename(root / folder.name)
    assert len(load_mafw(root, 5, "test")) == 4
