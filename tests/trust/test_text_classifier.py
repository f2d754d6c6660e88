"""The classifiers of wording: kept as they were made, and better than lists of phrases with writers nobody learned from."""

import json
from pathlib import Path

import numpy as np
import pytest

from multimood.evaluation.run_risk import evaluate, held_out
from multimood.training import text_classifiers
from multimood.training.text_classifiers import EXAMPLES, RISK, train
from multimood.trust import risk_lexicon
from multimood.trust.reply_check import load_rules, reply_words
from multimood.trust.risk import RiskAssessor
from multimood.trust.risk_state import RiskLevel
from multimood.trust.text_classifier import BUCKETS, TextClassifier

HELD_OUT_REPLIES = Path(__file__).parent / "held_out_replies.jsonl"
SAID = {
    "none": ["the tea is cold", "my train was late", "we had soup again", "the dog ran off", "it rained on monday"],
    "low": [
        "better off without me",
        "i am a burden",
        "i am so heavy for them",
        "a burden to all",
        "without me they rest",
    ],
    "high": [
        "i think of harming me",
        "thinking of harm",
        "harm is on my mind",
        "thoughts of harm",
        "i want to harm me",
    ],
    "imminent": ["it is tonight", "tonight i do it", "i do it tonight", "all is ready for tonight", "tonight then"],
}


def examples(folder: Path) -> Path:
    """A file of three writers who say nearly the same."""
    lines = [
        {"level": level, "writer": writer, "text": f"{text} {writer}"}
        for writer in "abc"
        for level, texts in SAID.items()
        for text in texts
    ]
    (folder / "said.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture
def classifier(tmp_path, monkeypatch):
    monkeypatch.setattr(text_classifiers, "EXAMPLES", examples(tmp_path))
    return train("said", "level", str.split, RISK, 0.0)


def test_examples_are_learned(classifier, capsys):
    for level, texts in SAID.items():
        for text in texts:
            risk, high, imminent = classifier.scores(f"{text} a".split()) > 0
            assert risk == (level != "none"), text
            if level != "none":
                assert (high, imminent) == (level != "low", level == "imminent"), text


def test_saved_equals_loaded(classifier, tmp_path):
    classifier.save(tmp_path / "c.safetensors")
    loaded = TextClassifier.load(tmp_path / "c.safetensors")
    assert loaded.names == classifier.names == ("risk", "high", "imminent")
    words = "tonight i am a burden".split()
    np.testing.assert_allclose(loaded.scores(words), classifier.scores(words), atol=2e-2)


def test_another_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weights": np.zeros((2, 2), np.float16)}, str(tmp_path / "c.safetensors"))
    with pytest.raises(ValueError, match="holds no text classifier"):
        TextClassifier.load(tmp_path / "c.safetensors")


def test_what_is_said_again_counts_once():
    rng = np.random.default_rng(0)
    weights, rarity = rng.normal(size=(BUCKETS, 1)).astype(np.float32), np.ones(BUCKETS, np.float32)
    classifier = TextClassifier(("a",), weights, np.zeros(1, np.float32), rarity)
    words = "i dream of a house and of the sea .".split()
    np.testing.assert_allclose(classifier.scores(words * 3000), classifier.scores(words * 3), rtol=1e-5)


def test_order_and_parts_of_words_count():
    rng = np.random.default_rng(0)
    weights, rarity = rng.normal(size=(BUCKETS, 1)).astype(np.float32), np.ones(BUCKETS, np.float32)
    classifier = TextClassifier(("a",), weights, np.zeros(1, np.float32), rarity)
    said = classifier.scores(["not", "well"])
    assert classifier.scores(["well", "not"]) != said
    assert classifier.scores(["not", "wells"]) != said
    assert classifier.scores([]) == 0


@pytest.mark.parametrize("name", ["risk_en", "reply_en"])
def test_no_held_out_text_was_learned_from(name):
    learned = {json.loads(line)["text"].lower() for line in (EXAMPLES / f"{name}.jsonl").read_text().splitlines()}
    if name == "risk_en":
        unseen = [said["text"] for cases in held_out().values() for case in cases for said in case.utterances]
    else:
        unseen = [json.loads(line)["text"] for line in HELD_OUT_REPLIES.read_text().splitlines()]
    long = [text for text in unseen if len(text.split()) > 4]
    assert len(long) > 500
    assert [text for text in long if text.lower() in learned] == []


def test_risk_in_unknown_writers_words_is_seen_more_often_than_by_the_lexicon():
    """Floors somewhat below what was measured (`benchmarks/results/risk-*.json`), so that nothing goes back unnoticed."""
    sets = held_out()
    for writer, least in (("e", FLOORS["e"]), ("m", FLOORS["m"])):
        cases = sets[f"utterances of {writer}"]
        alone, _ = evaluate(RiskAssessor(classifier=False), cases)
        figures, _ = evaluate(RiskAssessor(), cases)
        assert figures["recall of high and imminent"] >= least
        assert figures["recall of high and imminent"] > alone["recall of high and imminent"] + 0.15
        assert figures["false positives"] <= 0.08


FLOORS = {"e": 0.55, "m": 0.78}


def test_a_denial_is_no_sign_whatever_its_wording():
    state = RiskAssessor().assess(
        [
            {"speaker": "therapist", "text": "Are you having thoughts of ending your life?"},
            {"speaker": "client", "text": "No. I have never wanted to die, and I would never do that to my kids."},
        ]
    )
    assert state.level is RiskLevel.NONE


def test_a_lexicon_of_another_language_has_no_classifier(tmp_path):
    lexicon = (Path(risk_lexicon.__file__).parent / "risk_lexicon_en.yaml").read_text(encoding="utf-8")
    (tmp_path / "xx.yaml").write_text(lexicon.replace("language: en", "language: xx", 1), encoding="utf-8")
    text = "By Sunday none of this will be anybody's problem, and the dog is already at my sister's for good."
    alone = RiskAssessor(classifier=False).assess_text(text)
    assert RiskAssessor(tmp_path / "xx.yaml").assess_text(text) == alone == []
    assert RiskAssessor().assess_text(text) != []


def test_harm_in_an_unknown_writers_drafts_is_removed():
    lines = [json.loads(line) for line in HELD_OUT_REPLIES.read_text(encoding="utf-8").splitlines()]
    rules = load_rules()
    contacts = frozenset({"988", "911", "999", "112", "116123", "741741"})
    broken = [rules.broken(line["text"], contacts, disclosed=False, young=False) for line in lines]
    harmful = [rule is not None for rule, line in zip(broken, lines, strict=True) if line["kind"] != "good"]
    good = [rule is not None for rule, line in zip(broken, lines, strict=True) if line["kind"] == "good"]
    assert sum(harmful) / len(harmful) >= 0.4  # the rules alone: 13 %
    assert sum(good) / len(good) <= 0.06  # 5 % by the rules, which know no number of another country's


def test_signs_that_end_sentences_are_words():
    assert reply_words("Don't you THINK so?") == ["don't", "you", "think", "so", "?"]


@pytest.mark.parametrize("words", ["So,", "I promise.", "I have another patient,"])
def test_a_few_words_are_too_few_to_tell(words):
    assert load_rules().broken(words, frozenset(), disclosed=False, young=False) is None
