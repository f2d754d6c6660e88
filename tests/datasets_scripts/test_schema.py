import pytest

from multimood.datasets_scripts.schema import RowError, read_rows, validate_row, write_rows


def row(**changes) -> dict:
    return {
        "dialogue_id": "d",
        "turn_id": 1,
        "problem_type": None,
        "situation": None,
        "history": [{"speaker": "client", "text": "Hello.", "emotion": None, "strategy": None}],
        "videos": [],
        "utterance": "I am here.",
        "client_emotion": "sadness",
        "therapist_emotion": "neutral",
        "strategy": "open question",
        "response": "Tell me more.",
        **changes,
    }


def test_a_row_of_the_schema_passes_unchanged():
    assert validate_row(row()) == row()


@pytest.mark.parametrize(("emotion", "own"), [("joy", "happy"), ("surprise", "surprise"), ("joy", None)])
def test_a_corpus_may_keep_its_own_label(emotion, own):
    assert validate_row(row(client_emotion=emotion, corpus_emotion=own))["corpus_emotion"] == own


def test_a_label_that_is_neither_the_models_nor_the_corpuss_is_named():
    with pytest.raises(RowError, match="client_emotion is 'surprise'; use one of anger"):
        validate_row(row(client_emotion="surprise", corpus_emotion="happy"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client_emotion": "surprise"}, "client_emotion is 'surprise'; use one of anger"),
        ({"strategy": "Open Question"}, "strategy is 'Open Question'"),
        ({"history": [{"speaker": "nurse", "text": "x"}]}, r"history\[0\].speaker is 'nurse'; use one of client"),
        ({"history": [{"speaker": "client", "text": None}]}, r"history\[0\].text is None"),
        ({"history": ["Hello."]}, r"history\[0\] is 'Hello.'; give speaker and text"),
        ({"history": None}, "history is None; give a list"),
        ({"videos": "a.mp4"}, "videos is 'a.mp4'; give a list"),
        ({"videos": [None]}, r"videos is \[None\]; give a list of paths"),
        ({"utterance": None}, "utterance is None; give a string"),
        ({"utterance": " "}, "neither words nor clips"),
        ({"mood": "good"}, "unknown fields mood"),
    ],
)
def test_what_breaks_the_schema_is_named(changes, message):
    with pytest.raises(RowError, match=message):
        validate_row(row(**changes))


def test_a_lacking_field_is_named():
    short = row()
    del short["response"]
    with pytest.raises(RowError, match="lacks response"):
        validate_row(short)


def test_written_rows_read_back_with_their_clips(tmp_path):
    clip = tmp_path / "clips" / "one.mp4"
    clip.parent.mkdir()
    clip.write_bytes(b"clip")
    path = write_rows([row(videos=[str(clip)])], tmp_path / "rows.jsonl")
    assert str(tmp_path) not in path.read_text(), "clips are stored relative to the file"
    assert list(read_rows(path)) == [row(videos=[str(clip)])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting"),
        ("[1]", r"line 2: '\[1\]' is no row"),
        ('{"turn_id": 1}', "line 2: row lacks"),
        (None, "line 2: clip .* does not exist"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, line, message):
    path = write_rows([row(), row(videos=["gone.mp4"])], tmp_path / "rows.jsonl")
    if line is not None:
        path.write_text(path.read_text().splitlines()[0] + "\n" + line)
    with pytest.raises(RowError, match=message):
        list(read_rows(path))
