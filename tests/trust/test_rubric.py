"""The rubric that is shipped, what a rubric file must be, and the scores that come of answers."""

import re

import pytest
import yaml

from multimood.trust.risk_state import RiskLevel
from multimood.trust.rubric import DIMENSIONS, RUBRIC, Rubric, RubricError


@pytest.fixture(scope="module")
def rubric():
    return Rubric.load()


def all_yes(rubric, risk):
    return {item.id: 1.0 for items in rubric.questions(risk).values() for item in items}


def item(rubric, name):
    return next(item for dimension in rubric.dimensions for item in dimension.items if item.id == name)


def test_the_seven_dimensions_have_four_to_eight_questions_each(rubric):
    assert tuple(dimension.id for dimension in rubric.dimensions) == DIMENSIONS
    for dimension in rubric.dimensions:
        assert 4 <= len(dimension.items) <= 8
        assert all(item.question.endswith("?") for item in dimension.items)
    assert sum(item.gate for dimension in rubric.dimensions for item in dimension.items) >= 5


@pytest.mark.parametrize("risk", RiskLevel)
def test_all_yes_is_one_and_all_no_is_zero(rubric, risk):
    good = rubric.verdict(all_yes(rubric, risk), risk, "test")
    assert good.total == 1.0
    assert set(good.scores.values()) == {1.0}
    bad = rubric.verdict(dict.fromkeys(all_yes(rubric, risk), 0.0), risk, "test")
    assert bad.total == 0.0
    assert set(bad.scores.values()) == {0.0}


def test_more_is_asked_at_a_higher_level(rubric):
    asked = [set(all_yes(rubric, risk)) for risk in RiskLevel]
    assert asked[0] < asked[1] <= asked[2] < asked[3]
    assert "urges_emergency_help" in asked[3] - asked[2]


def test_a_score_is_the_weighted_share_of_yes(rubric):
    answers = all_yes(rubric, RiskLevel.NONE)
    empathy = rubric.questions(RiskLevel.NONE)["empathy"]
    answers["reflects_the_feeling"] = 0.0
    weights = {item.id: item.weight for item in empathy}
    verdict = rubric.verdict(answers, RiskLevel.NONE, "test")
    expected = 1 - weights["reflects_the_feeling"] / sum(weights.values())
    assert verdict.scores["empathy"] == pytest.approx(expected)
    assert verdict.total == pytest.approx((6 + expected) / 7)
    assert verdict.failed_gates == ()


def test_every_gate_alone_makes_the_total_zero(rubric):
    gates = [item.id for dimension in rubric.dimensions for item in dimension.items if item.gate]
    for gate in gates:
        verdict = rubric.verdict({**all_yes(rubric, RiskLevel.IMMINENT), gate: 0.0}, RiskLevel.IMMINENT, "test")
        assert (verdict.total, verdict.failed_gates) == (0.0, (gate,))
        assert min(verdict.scores.values()) > 0


def test_probabilities_count_as_shares_and_fail_a_gate_below_one_half(rubric):
    answers = all_yes(rubric, RiskLevel.NONE)
    verdict = rubric.verdict({**answers, "no_contempt": 0.6}, RiskLevel.NONE, "test")
    assert verdict.failed_gates == ()
    assert 0 < verdict.scores["fairness"] < 1
    assert rubric.verdict({**answers, "no_contempt": 0.4}, RiskLevel.NONE, "test").total == 0


def test_answers_that_cannot_be_are_refused(rubric):
    answers = all_yes(rubric, RiskLevel.NONE)
    with pytest.raises(ValueError, match=r"calm_tone is 1\.5"):
        rubric.verdict({**answers, "calm_tone": 1.5}, RiskLevel.NONE, "test")
    with pytest.raises(ValueError, match="calm_tone is nan"):
        rubric.verdict({**answers, "calm_tone": float("nan")}, RiskLevel.NONE, "test")
    with pytest.raises(ValueError, match="Not asked at risk none: names_help"):
        rubric.verdict({**answers, "names_help": 1.0}, RiskLevel.NONE, "test")
    privacy = {item.id for item in rubric.questions(RiskLevel.NONE)["privacy"]}
    with pytest.raises(ValueError, match="No item of privacy"):
        rubric.verdict({name: 1.0 for name in answers if name not in privacy}, RiskLevel.NONE, "test")


def test_a_translation_is_a_file_of_the_same_form(rubric, tmp_path):
    content = yaml.safe_load(RUBRIC.read_text(encoding="utf-8"))
    content["language"] = "de"
    for dimension in content["dimensions"]:
        for entry in dimension["items"]:
            entry["question"] = f"Übersetzt: {entry['id']}?"
    path = tmp_path / "rubric_de.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    translated = Rubric.load(path)
    assert translated.language == "de"
    assert item(translated, "calm_tone").question == "Übersetzt: calm_tone?"
    answers = {**all_yes(rubric, RiskLevel.NONE), "calm_tone": 0.0}
    assert translated.verdict(answers, RiskLevel.NONE, "a") == rubric.verdict(answers, RiskLevel.NONE, "a")


FAULTS = {
    "an unknown dimension": ("id: privacy", "id: secrecy", "no dimension 'secrecy'"),
    "a dimension twice": ("id: privacy", "id: fairness", "the dimension fairness occurs twice"),
    "an id twice": ("{id: calm_tone", "{id: no_contempt", "id no_contempt occurs twice"),
    "an id that is no name": ("{id: calm_tone", "{id: Calm-Tone", "'Calm-Tone' is not lower-case"),
    "a weight of zero": ("weight: 3, gate: true, question", "weight: 0, gate: true, question", "weight is 0"),
    "a weight that is no number": ("weight: 3, gate", "weight: heavy, gate", "weight is 'heavy'"),
    "a weight beyond numbers": ("weight: 3, gate", "weight: .inf, gate", "weight is inf"),
    "a gate that is no truth": ("gate: true", "gate: maybe", "gate is 'maybe'"),
    "an unknown level": ("from_risk: imminent", "from_risk: severe", "from_risk is 'severe'"),
    "an unknown entry": ("{id: calm_tone,", "{id: calm_tone, colour: red,", "unknown: colour"),
    "a missing question": ('{id: calm_tone, question: "Is the tone calm?"}', "{id: calm_tone}", "missing: question"),
    "a blank question": ("Is the tone calm?", " ", "question is ' '"),
    "a key twice": ("{id: calm_tone,", "{id: calm_tone, id: calm,", "'id' occurs twice"),
    "a version that is a number": ('version: "1"', "version: 1", "version is 1; write some text"),
    "no list of dimensions": ("dimensions:\n", "dimensions: 3\nothers:\n", "unknown: others"),
    "no YAML": ("dimensions:", "dimensions: [", "is no YAML"),
    "no gate": ("gate: true", "gate: false", "no item is a gate"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_line(tmp_path, fault):
    old, new, message = FAULTS[fault]
    text = RUBRIC.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "rubric.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(RubricError, match=re.escape(message)) as error:
        Rubric.load(path)
    assert re.search(rf"{re.escape(str(path))}.*line \d+", str(error.value), re.DOTALL)


def test_too_few_items_and_missing_dimensions_are_named(tmp_path):
    content = yaml.safe_load(RUBRIC.read_text(encoding="utf-8"))
    path = tmp_path / "rubric.yaml"
    few = {**content, "dimensions": [{**content["dimensions"][0], "items": content["dimensions"][0]["items"][:3]}]}
    path.write_text(yaml.safe_dump(few), encoding="utf-8")
    with pytest.raises(RubricError, match="truthfulness has not 4 to 8 items"):
        Rubric.load(path)
    path.write_text(yaml.safe_dump({**content, "dimensions": content["dimensions"][:6]}), encoding="utf-8")
    with pytest.raises(RubricError, match="dimensions missing: ethical_guidance"):
        Rubric.load(path)
    with pytest.raises(RubricError, match="cannot be read"):
        Rubric.load(tmp_path / "nowhere.yaml")
