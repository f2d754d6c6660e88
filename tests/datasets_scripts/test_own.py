import json

import pytest
from corpus_trees import write_table

from multimood.datasets_scripts.own import load_own
from multimood.datasets_scripts.report import CorpusError, SkipReport
from multimood.datasets_scripts.schema import validate_row

TALK = [
    {
        "dialogue_id": "a",
        "file_name": "a0.mp4",
        "text": "I could not sleep.",
        "emotion": "Sadness",
        "situation": "Noise.",
    },
    {"dialogue_id": "a", "file_name": "a1.mp4", "text": "Again."},
    {"dialogue_id": "a", "speaker": "therapist", "text": "What kept you up?", "strategy": "Open question"},
    {"dialogue_id": "a", "text": "Work."},
    {"file_name": "b.mp4", "emotion": "fear"},
]


def folder_of(path, lines, table="metadata.jsonl"):
    path.mkdir(exist_ok=True)
    for name in ("a0.mp4", "a1.mp4", "b.mp4"):
        (path / name).write_bytes(b"clip")
    if table == "metadata.csv":
        columns = list(dict.fromkeys(column for line in lines for column in line))
        write_table(
            path / table, columns, [[line.get(column, "") for column in columns] for line in lines], "utf-8-sig"
        )
    else:
        (path / table).write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_a_dialogue_gives_its_hand_overs_and_a_lone_clip_its_emotion(tmp_path, table):
    talk, lone = map(validate_row, load_own(folder_of(tmp_path, TALK, table)))
    assert talk["dialogue_id"] == "own-a"
    assert talk["utterance"] == "I could not sleep. Again."
    assert talk["videos"] == [str(tmp_path / "a0.mp4"), str(tmp_path / "a1.mp4")]
    assert (talk["strategy"], talk["response"], talk["situation"]) == ("open question", "What kept you up?", "Noise.")
    assert talk["client_emotion"] is None, "the utterance that hands over has no label"
    assert (lone["videos"], lone["client_emotion"]) == ([str(tmp_path / "b.mp4")], "fear")
    assert lone["response"] is None


BAD_LINES = {
    '{"text": "x"': r"metadata.jsonl, line 6: not JSON",
    "[1]": "line 6: '\\[1\\]' is no JSON object",
    '{"text": ["x"]}': "line 6: text is \\['x'\\]; give a string",
    '{"text": "x", "emotions": "joy"}': "line 6: unknown column emotions; the columns are file_name, text",
    '{"emotion": "joy"}': "line 6: neither file_name nor text",
    '{"text": " "}': "line 6: has neither words nor a clip",
    '{"text": "x", "emotion": "glad"}': "line 6: emotion is 'glad'; allowed: anger",
    '{"text": "x", "speaker": "nurse"}': "line 6: speaker is 'nurse'; allowed: client, therapist",
    '{"text": "x", "strategy": "approval"}': "line 6: strategy is 'approval' of a client",
    '{"speaker": "therapist", "file_name": "b.mp4"}': "line 6: the therapist says nothing",
    '{"file_name": "gone.mp4"}': "line 6: there is no clip .*gone.mp4",
    '{"file_name": "../out.mp4"}': "line 6: '../out.mp4' leads out of",
    '{"file_name": "link.mp4"}': "line 6: 'link.mp4' leads out of",
    '{"file_name": "b.mp4"}': r"line 6: clip 'b.mp4' is already at .*line 5",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_or_skipped(tmp_path, line):
    (tmp_path / "out.mp4").write_bytes(b"clip")
    folder = folder_of(tmp_path / "own", [*TALK, line])
    (folder / "link.mp4").symlink_to(tmp_path / "out.mp4")
    with pytest.raises(CorpusError, match=BAD_LINES[line]):
        load_own(folder)
    report = SkipReport()
    assert "own-a" in [row["dialogue_id"] for row in load_own(folder, skip_bad=report)]
    assert len(report.errors) == 1
    entry = json.loads(report.write(tmp_path / "reports" / "skipped.jsonl").read_text())
    assert entry["place"].endswith("metadata.jsonl, line 6")
    assert entry["kind"]
    assert entry["problem"]


def test_a_dialogue_with_a_bad_line_is_left_out_whole(tmp_path):
    folder = folder_of(tmp_path, [*TALK[:1], {"dialogue_id": "a", "text": "x", "emotion": "?"}, *TALK[2:]])
    assert [row["videos"] for row in load_own(folder, skip_bad=SkipReport())] == [[str(tmp_path / "b.mp4")]]


def test_a_dialogue_is_not_taken_up_again(tmp_path):
    folder = folder_of(tmp_path, [*TALK, {"dialogue_id": "a", "text": "More."}])
    with pytest.raises(CorpusError, match="line 6: dialogue 'a' was over"):
        load_own(folder)


def test_a_csv_of_other_columns_is_refused(tmp_path):
    folder = folder_of(tmp_path, [{"file_name": "b.mp4", "mood": "good"}], "metadata.csv")
    with pytest.raises(CorpusError, match=r"metadata.csv, line 2: unknown column mood"):
        load_own(folder, skip_bad=SkipReport())


def test_a_folder_without_table_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"has no table of recordings; looked for metadata.jsonl, metadata.csv"):
        load_own(tmp_path)
