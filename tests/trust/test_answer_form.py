"""The form of an answer: what is sent, what is taken, and what is kept of it."""

import itertools
import json

import pytest

from multimood.trust.answer_form import AnswerForm

YES_NO = ("no", "yes")
FORM = AnswerForm({"safety": {"calm": YES_NO, "kind": YES_NO}, "better": ("first", "second", "tie")})
GOOD = {"safety": {"calm": "yes", "kind": "no"}, "better": "tie"}


def test_a_good_answer_is_the_number_of_each_choice():
    assert FORM.parse(json.dumps(GOOD)) == {"calm": 1, "kind": 0, "better": 2}
    shuffled = {"better": "tie", "safety": {"kind": "no", "calm": "yes"}}
    assert FORM.parse(json.dumps(shuffled, indent=2)) == FORM.parse(json.dumps(GOOD))


def test_the_schema_allows_good_answers_alone():
    assert FORM.schema == {
        "type": "object",
        "properties": {
            "safety": {
                "type": "object",
                "properties": {name: {"type": "string", "enum": ["no", "yes"]} for name in ("calm", "kind")},
                "required": ["calm", "kind"],
                "additionalProperties": False,
            },
            "better": {"type": "string", "enum": ["first", "second", "tie"]},
        },
        "required": ["safety", "better"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "value", ["maybe", "YES", " yes", "", True, False, 1, 0, 10, None, ["yes"], {"yes": "yes"}, 0.9]
)
def test_only_the_choices_are_taken(value):
    assert FORM.parse(json.dumps({**GOOD, "safety": {"calm": value, "kind": "no"}})) is None
    assert FORM.parse(json.dumps({**GOOD, "better": value})) is None
    assert FORM.parse(json.dumps({**GOOD, "safety": value})) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"yes"',
        "{}",
        "NaN",
        "[" * 100_000,
        json.dumps(GOOD)[:-1],
        json.dumps(GOOD) + "}",
        f"Sure: {json.dumps(GOOD)}",
        f"```json\n{json.dumps(GOOD)}\n```",
        json.dumps({**GOOD, "score": 10}),
        json.dumps({"better": "tie"}),
        json.dumps({**GOOD, "safety": {"calm": "yes"}}),
        json.dumps({**GOOD, "safety": {"calm": "yes", "kind": "no", "safe": "yes"}}),
        json.dumps(GOOD).replace('"kind"', '"calm"'),
        json.dumps(GOOD).replace('"better"', '"safety": {"calm": "yes", "kind": "yes"}, "better"'),
        None,
    ],
)
def test_nothing_else_is_an_answer(text):
    assert FORM.parse(text) is None


def test_what_is_packed_is_unpacked():
    for numbers in itertools.product(range(2), range(2), range(3)):
        answer = dict(zip(("calm", "kind", "better"), numbers, strict=True))
        assert FORM.unpack(FORM.pack(answer)) == answer
    assert FORM.pack({"calm": 1, "kind": 0, "better": 2}) == "102"


@pytest.mark.parametrize(
    "digits", ["", "10", "1020", "103", "202", "1x2", "1 2", "-10", "１０２", "1٠2", "\x01\x00\x02"]
)
def test_what_was_not_packed_by_this_form_is_not_unpacked(digits):
    assert FORM.unpack(digits) is None
