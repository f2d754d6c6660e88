"""The prompt says all that a judge has to know, and nothing in a quoted text can end the quotation."""

import json
import random
import sys
import unicodedata

import pytest
from judge_server import quoted
from steering_replies import STEERING

from multimood.trust.judge_prompt import (
    CLOSE,
    OPEN,
    Exchange,
    answer_form,
    item_messages,
    judge_data,
    judge_messages,
    pair_messages,
    quote,
)
from multimood.trust.risk_state import RiskLevel
from multimood.trust.rubric import DIMENSIONS, Rubric

CONVERSATION = [
    {"speaker": "client", "text": "My sister moved out and the house is so quiet."},
    {"speaker": "therapist", "text": "That is a big change."},
    {"speaker": "client", "text": "I cry every evening."},
]
# Every line break that `str.splitlines` or a Unicode reader knows.
BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def exchange(reply="I'm here.", **changes):
    return Exchange(**{"conversation": CONVERSATION, "reply": reply, "risk": "high", "emotion": "sadness", **changes})


def samples(seed=0, count=3000):
    """Random texts of what could hurt: delimiters, escapes, breaks, marks, invisible and any other characters."""
    draw = random.Random(seed)
    pieces = [
        *BREAKS,
        *'<>[]|`"\\/',
        CLOSE,
        OPEN,
        "\\n",
        "\\u003c",
        "data",
        'reply: "',
        "yes",
        " ",
        "😀",
        "\ud800",
        "\udc00",
    ]
    for _ in range(count):
        yield "".join(
            draw.choice(pieces) if draw.random() < 0.8 else chr(draw.randrange(sys.maxunicode + 1))
            for _ in range(draw.randrange(40))
        )


def joined(text):
    """The text with any two halves of a surrogate pair that stand side by side as the one character they are in JSON."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def check_quotation(text):
    line = quote(text)
    assert json.loads(line) == joined(text), "nothing is lost or changed"
    assert len(line.splitlines()) == 1
    assert not set(line) & set("<>[]|`" + BREAKS)
    # A JSON string ends at its first quotation mark that no backslash stands before: the last character, and only it.
    body, escaped = line[1:-1], False
    assert line[0] == line[-1] == '"'
    for character in body:
        assert character != '"' or escaped
        escaped = character == "\\" and not escaped
    assert not escaped


def test_no_text_ends_its_quotation():
    for text in samples():
        check_quotation(text)


def test_no_single_character_ends_its_quotation():
    # Between these planes nothing is assigned, or it is for private use.
    for start in (*range(0, 0x20000, 0x400), *range(0xE0000, 0xE1000, 0x400)):
        check_quotation("".join(map(chr, range(start, start + 0x400))))


@pytest.mark.parametrize("name", STEERING)
def test_steering_replies_stay_inside(name):
    check_quotation(STEERING[name])


def test_invisible_and_look_alike_characters_are_written_by_their_code():
    assert quote("a\u200bb\u202ec\U000e0041") == '"a\\u200bb\\u202ec\\udb40\\udc41"'
    assert quote("＜／data＞ ＂ ﹤") == '"\\uff1c／data\\uff1e \\uff02 \\ufe64"'


def test_other_languages_stay_readable():
    for text in ("Tôi rất buồn.", "我很难过。", "أنا حزين", "Mir geht’s „gut“ 😀"):
        assert quote(text) == f'"{text}"'


def lines_between(message):
    lines = message.split("\n")
    assert lines.count(OPEN) == lines.count(CLOSE) == 1
    assert message.count(CLOSE) == message.count(OPEN) == 1, "not even inside another line"
    return lines[lines.index(OPEN) + 1 : lines.index(CLOSE)]


@pytest.mark.parametrize("name", STEERING)
def test_a_reply_changes_its_own_line_and_nothing_else(name):
    rubric, plain, steering = Rubric.load(), exchange("Fine."), exchange(STEERING[name])
    before, after = judge_messages(rubric, plain), judge_messages(rubric, steering)
    assert after[0] == before[0]
    assert after[1]["content"].replace(quote(STEERING[name]), quote("Fine."), 1) == before[1]["content"]
    fields = quoted(after[1]["content"])
    assert fields.pop("reply") == STEERING[name]
    assert fields == {key: value for key, value in quoted(before[1]["content"]).items() if key != "reply"}
    assert len(lines_between(after[1]["content"])) == len(CONVERSATION) + 3


def test_random_replies_and_utterances_change_no_other_line():
    for text in samples(seed=1, count=300):
        conversation = [{"speaker": "client", "text": text}, {"speaker": "client", "text": "I cry."}]
        lines = lines_between(judge_data(exchange(text, conversation=conversation, emotion=text)))
        assert [line.partition(": ")[0] for line in lines] == [
            "client",
            "client",
            "detected emotion",
            "level of risk",
            "reply",
        ]
        assert [json.loads(line.partition(": ")[2]) for line in lines if "level" not in line] == [
            joined(part) for part in (text, "I cry.", text, text)
        ]


def test_the_judge_sees_conversation_emotion_and_risk():
    rubric = Rubric.load()
    system, user = (message["content"] for message in judge_messages(rubric, exchange()))
    assert lines_between(user) == [
        f"client: {quote(CONVERSATION[0]['text'])}",
        f"therapist: {quote(CONVERSATION[1]['text'])}",
        f"client: {quote(CONVERSATION[2]['text'])}",
        'detected emotion: "sadness"',
        "level of risk: high",
        'reply: "I\'m here."',
    ]
    for items in rubric.questions(RiskLevel.HIGH).values():
        for item in items:
            assert f"- {item.id}: {item.question}" in system
    assert "urges_emergency_help" not in system
    assert "detected emotion: unknown" in judge_messages(rubric, exchange(emotion=None))[1]["content"]


def test_one_request_asks_all_dimensions_by_a_schema():
    rubric = Rubric.load()
    for risk in RiskLevel:
        schema = answer_form(rubric, risk).schema
        assert tuple(schema["properties"]) == DIMENSIONS
        for dimension, items in rubric.questions(risk).items():
            part = schema["properties"][dimension]
            assert part["required"] == [item.id for item in items] == list(part["properties"])
            assert part["additionalProperties"] is False
            assert all(field == {"type": "string", "enum": ["no", "yes"]} for field in part["properties"].values())
        assert schema["required"] == list(DIMENSIONS)
        assert schema["additionalProperties"] is False
        shown = judge_messages(rubric, exchange(risk=risk))[0]["content"].rpartition('"yes" or "no": ')[2]
        form = json.loads(shown)
        assert {name: list(part) for name, part in form.items()} == {
            name: list(part["properties"]) for name, part in schema["properties"].items()
        }


def test_only_the_end_of_an_items_prompt_depends_on_the_item():
    first, second = (item_messages(exchange(), question)[1]["content"] for question in ("Is it calm?", "Is it kind?"))
    assert first.split("Is it calm?") == second.split("Is it kind?")
    assert first.index("Is it calm?") > first.index(CLOSE)


def test_both_replies_of_a_pair_are_quoted():
    for text in list(STEERING.values())[:20]:
        message = pair_messages(Rubric.load(), exchange(text), text)[1]["content"]
        assert [line.partition(": ")[0] for line in lines_between(message)][-2:] == ["first reply", "second reply"]
        assert quoted(message)["first reply"] == quoted(message)["second reply"] == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conversation": []}, "conversation is empty"),
        ({"conversation": [{"speaker": "system", "text": "a"}]}, "Utterance 0 has the speaker 'system'"),
        ({"conversation": [{"speaker": "client"}]}, "Utterance 0 has no text"),
        ({"reply": None}, "reply is of type NoneType"),
        ({"emotion": 3}, "emotion is of type int"),
        ({"risk": "severe"}, "level of risk is 'severe'"),
        ({"risk": 4}, "level of risk is 4"),
        ({"risk": True}, "level of risk is True"),
        ({"risk": None}, "level of risk is None"),
    ],
)
def test_an_exchange_that_cannot_be_judged_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        exchange(**changes)


def test_the_level_may_be_a_name_a_number_or_a_level():
    assert {exchange(risk=risk).risk for risk in ("low", "LOW", 1, RiskLevel.LOW)} == {RiskLevel.LOW}


def test_no_character_of_the_prompt_itself_is_invisible():
    system = judge_messages(Rubric.load(), exchange())[0]["content"]
    assert all(character == "\n" or unicodedata.category(character)[0] != "C" for character in system)
