import itertools

import pytest

from multimood.processors.turn import (
    CLIPS_PER_TURN,
    EMOTIONS,
    LABELS,
    STRATEGIES,
    SYSTEM_PROMPT,
    SupportTurn,
    build_completion,
    build_prompt,
)

TURN = SupportTurn("sadness", "neutral", "open question", "What happened?")
TEXT = """Client's emotion: sadness
Therapist's emotion: neutral
Therapist's strategy: open question
Therapist's response: What happened?"""


def row(utterances: int = 0, **fields) -> dict:
    history = [
        {"speaker": ("client", "therapist")[i % 2], "text": f"line {i}", "emotion": None} for i in range(utterances)
    ]
    return {"history": history, "utterance": "I am tired.", **fields}


def texts(messages: list[dict]) -> list[str]:
    return [block["text"] for block in messages[1]["content"] if block["type"] == "text"]


def test_labels_are_the_papers():
    assert len(EMOTIONS) == 7
    assert len(STRATEGIES) == 10
    assert STRATEGIES[8] == "guiding the pace and depth of the conversation"


def test_render_is_four_lines():
    assert TURN.render() == TEXT


def test_parse_reads_every_rendered_turn():
    for labels in itertools.product(*LABELS.values()):
        for response in ("One line.", "Two\nlines.", "שלום 😀", "Client's emotion: joy"):
            turn = SupportTurn(*labels, response)
            assert SupportTurn.parse(turn.render()) == turn
            assert turn.is_valid
            assert turn.missing == ()


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", ("client_emotion", "therapist_emotion", "strategy", "response")),
        ("I am sorry.", ("client_emotion", "therapist_emotion", "strategy", "response")),
        (TEXT.replace("sadness", "Sadness"), ("client_emotion",)),
        (TEXT.replace("sadness", "sorrow"), ("client_emotion",)),
        (TEXT.replace("open question", "open questions"), ("strategy",)),
        (TEXT.replace(" What happened?", "  "), ("response",)),
        (TEXT.replace("Therapist's emotion: neutral\n", ""), ("therapist_emotion",)),
        (TEXT.split("\nTherapist's response")[0], ("response",)),
        (TEXT.replace("\n", "\n\n", 1), ("therapist_emotion", "strategy", "response")),
        ("Well:\n" + TEXT, ("client_emotion", "therapist_emotion", "strategy", "response")),
        (TEXT.replace("\n", " "), ("client_emotion", "therapist_emotion", "strategy", "response")),
    ],
)
def test_parse_names_what_is_missing(text, missing):
    turn = SupportTurn.parse(text)
    assert turn.missing == missing
    assert not turn.is_valid
    with pytest.raises(ValueError, match=missing[0]):
        turn.render()


def test_parse_takes_blanks_around_the_turn():
    assert SupportTurn.parse(f"\n {TEXT}\n") == TURN


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("sad", "neutral", "others", "x"), "client_emotion is 'sad'; did you mean 'sadness'.*allowed: anger"),
        (("joy", "surprise", "others", "x"), "therapist_emotion is 'surprise'.*allowed"),
        (("joy", "joy", "Open Question", "x"), "did you mean 'open question'"),
        (("joy", "joy", "others", " \n"), "needs words"),
    ],
)
def test_unknown_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SupportTurn(*values)


def test_prompt_of_a_bare_row_is_short():
    assert build_prompt({"utterance": "Hello."}) == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": [{"type": "text", "text": "Client: Hello."}]},
    ]


def test_prompt_has_its_blocks_in_order():
    messages = build_prompt(row(20, problem_type="work", situation="new boss", videos=["a.mp4", "b.mp4"]))
    history, recent, problem, situation, video, audio, words = messages[1]["content"]
    assert [u["text"] for u in history["history"]] == [f"line {i}" for i in range(6)]
    assert set(history["history"][0]) == {"speaker", "text"}
    assert recent["text"].startswith("Client: line 6\nTherapist: line 7\n")
    assert recent["text"].endswith("Therapist: line 19\n")
    assert (problem["text"], situation["text"]) == ("Problem: work\n", "Situation: new boss\n")
    assert video == {"type": "video", "video": ["a.mp4", "b.mp4"]}
    assert audio == {"type": "audio", "audio": ["a.mp4", "b.mp4"]}
    assert words["text"] == "Client: I am tired."


def test_absent_fields_make_no_blocks():
    messages = build_prompt(row(0, problem_type=None, situation="", videos=[]))
    assert texts(messages) == ["Client: I am tired."]
    assert len(messages[1]["content"]) == 1


@pytest.mark.parametrize(("pairs", "compressed"), [(0, 14), (3, 8), (7, 0), (9, 0)])
def test_verbatim_pairs_split_the_history(pairs, compressed):
    blocks = build_prompt(row(14), verbatim_pairs=pairs)[1]["content"]
    history = [u["text"] for block in blocks if block["type"] == "history" for u in block["history"]]
    verbatim = [line.split(": ")[1] for line in "".join(texts(build_prompt(row(14), pairs))[:-1]).splitlines()]
    assert history == [f"line {i}" for i in range(compressed)]
    assert history + verbatim == [f"line {i}" for i in range(14)]


def test_only_the_last_clips_are_looked_at():
    clips = [f"{i}.mp4" for i in range(CLIPS_PER_TURN + 2)]
    assert build_prompt(row(videos=clips))[1]["content"][0]["video"] == clips[-CLIPS_PER_TURN:]


@pytest.mark.parametrize("utterances", [1, 30])
def test_unknown_speaker_is_named(utterances):
    bad = row(utterances)
    bad["history"][0]["speaker"] = "narrator"
    with pytest.raises(ValueError, match=r"unknown speaker 'narrator'.*line 0"):
        build_prompt(bad)


def test_negative_verbatim_pairs_are_refused():
    with pytest.raises(ValueError, match="-1"):
        build_prompt(row(), verbatim_pairs=-1)


def test_completion_is_the_rendered_turn():
    fields = {"client_emotion": "sadness", "therapist_emotion": "neutral", "strategy": "open question"}
    assert build_completion(row(**fields, response="What happened?")) == [{"role": "assistant", "content": TEXT}]
    with pytest.raises(ValueError, match="surprise"):
        build_completion(row(**{**fields, "client_emotion": "surprise"}, response="x"))
    with pytest.raises(ValueError, match="strategy"):
        build_completion(row(**{**fields, "strategy": None}, response="x"))
