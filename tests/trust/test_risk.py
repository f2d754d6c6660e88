"""What a conversation shows of a person's risk. The cases in `risk_cases/` are measured by `evaluation/run_risk.py`; what
is held here of them is the development part alone, so that the test part stays unseen."""

import logging
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from multimood.evaluation.run_risk import PARTS, dialogues, evaluate, single_utterances
from multimood.trust.risk import CALM_TURNS, RiskAssessor
from multimood.trust.risk_lexicon import LexiconError, RiskLexicon
from multimood.trust.risk_state import RiskLevel, RiskState

NONE, LOW, HIGH, IMMINENT = RiskLevel


@pytest.fixture(scope="module")
def assessor():
    return RiskAssessor()


def said(*turns: str) -> list[dict]:
    return [{"speaker": {"C": "client", "T": "therapist"}[turn[0]], "text": turn[3:]} for turn in turns]


def level(assessor: RiskAssessor, text: str) -> RiskLevel:
    return max((sign.level for sign in assessor.assess_text(text)), default=NONE)


# ------------------------------------------------------------------------------------------------ the labelled cases


def test_there_are_cases_of_all_levels_on_both_sides():
    utterances, conversations = single_utterances(), dialogues()
    assert len(utterances) >= 400
    assert len(conversations) >= 60
    assert len({case.name for case in utterances}) == len(utterances)
    for cases in (utterances, conversations):
        assert {(case.part, case.level) for case in cases} == {(part, level) for part in PARTS for level in RiskLevel}


def test_the_two_parts_share_no_near_duplicates():
    words = [(case, set(re.findall(r"\w+", case.name.lower()))) for case in single_utterances()]
    alike = [
        (case.name, other.name)
        for case, mine in words
        for other, theirs in words
        if case.part != other.part and len(mine & theirs) > 0.6 * len(mine | theirs)
    ]
    assert alike == []


@pytest.mark.parametrize("cases", [single_utterances, dialogues])
def test_the_development_part_is_read_as_labelled(assessor, cases):
    figures, wrong = evaluate(assessor, [case for case in cases() if case.part == "development"])
    shown = [(case.name, case.level.name, state.level.name) for case, state in wrong]
    assert figures["recall of high and imminent"] >= 0.97, shown
    assert figures["recall of low"] >= 0.95, shown
    assert figures["false positives"] <= 0.02, shown


# ------------------------------------------------------------------------------------------------ one utterance


@pytest.mark.parametrize(
    ("text", "expected", "category"),
    [
        ("I want to end my life.", HIGH, "active_ideation"),
        ("i'm gonna kms", HIGH, "active_ideation"),
        ("I would like to unalive myself", HIGH, "active_ideation"),
        ("I wish I could fall asleep and never wake up", LOW, "wish_to_be_dead"),
        ("I have no reason to live", LOW, "hopelessness"),
        ("they'd all be better off without me", LOW, "burden"),
        ("I cut my arms last night", HIGH, "self_harm"),
        ("the voices tell me to kill myself", HIGH, "command_voices"),
        ("I wrote a suicide note", IMMINENT, "preparation"),
        ("tomorrow I'm going to hang myself", IMMINENT, "plan"),
        ("I have a loaded gun in my hand", IMMINENT, "means"),
        ("my friend says she wants to die", LOW, "third_person"),
        ("ten years ago I tried to kill myself", LOW, "history"),
    ],
)
def test_kinds_of_signs(assessor, text, expected, category):
    signs = assessor.assess_text(text)
    assert max(sign.level for sign in signs) == expected
    assert category in {sign.category for sign in signs}


def test_evidence_is_the_words_as_they_were_said(assessor):
    text = "Look: I want to, um, K1LL mys\u200belf 😔"
    (sign,) = assessor.assess_text(text)
    assert sign.text == text[sign.start : sign.end]
    assert sign.text.endswith("K1LL mys\u200belf")


@pytest.mark.parametrize(
    "text",
    [
        "I'm dying to see you",
        "this traffic makes me want to die lol",
        "I would never kill myself",
        "I have no plans to hurt myself",
        "My brother killed himself",
        "The song goes I want to die and I love it",
        "I write my thesis on suicide prevention",
        "I feel dead inside",
        "It kills me to see her like that",
        "I cut myself shaving",
        "",
        "   ",
        "…",
    ],
)
def test_what_is_no_sign(assessor, text):
    assert assessor.assess_text(text) == []


def test_a_denial_of_one_thing_denies_no_other(assessor):
    assert level(assessor, "I don't want to die, but I think about killing myself all the time.") == HIGH
    assert level(assessor, "I'm not okay, I want to die.") == HIGH
    assert level(assessor, "I can't promise that I won't kill myself.") == HIGH


def test_innocent_things_need_distress_beside_them(assessor):
    assert level(assessor, "I gave my books away.") == NONE
    assert level(assessor, "I'm so depressed. I gave my books away.") == IMMINENT


# ------------------------------------------------------------------------------------------------ conversations


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", HIGH),
        ("sometimes", HIGH),
        ("I guess.", HIGH),
        ("Not every day.", HIGH),
        ("I don't know.", LOW),
        ("I mean, yeah. Most nights. I wouldn't do anything.", HIGH),  # what is said first is the answer
        ("On and off. Not today.", HIGH),
        ("Thursday. It's my day off.", HIGH),
        ("Is that clock right?", LOW),  # whatever is no answer evades
        ("No.", NONE),
        ("Oh, bless you, no. I've a caravan.", NONE),
        ("Why, I never even thought of that.", LOW),
    ],
)
def test_the_answer_to_a_direct_question_counts(assessor, answer, expected):
    question = "T: Are you thinking about ending your life?"
    assert assessor.assess(said("C: Hello.", question, f"C: {answer}")).level == expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Have you taken something?", "All of it.", IMMINENT),
        ("Have you taken something?", "No, I'm only tired.", NONE),
        ("Have you taken something?", "It's a nice evening.", LOW),
        ("Are you on a bridge?", "Yeah, over the rail.", IMMINENT),
        ("Have you been cutting?", "Like twice this week.", HIGH),
        ("You cut your hand.", "Avocado. I was making brunch.", NONE),
        ("Do you ever wish you were no longer alive?", "Oh yes. Most evenings.", LOW),
        ("Are you safe, any thoughts of that kind?", "No, I'm ok. I want a hug.", NONE),
        ("Are you safe tonight?", "No.", LOW),
    ],
)
def test_other_questions_of_risk(assessor, question, answer, expected):
    assert assessor.assess(said(f"T: {question}", f"C: {answer}")).level == expected


def test_a_question_is_answered_once(assessor):
    state = assessor.assess(said("T: Do you want to kill yourself?", "C: No.", "T: Do you like tea?", "C: Yes."))
    assert state.level == NONE


def test_what_the_therapist_says_is_no_sign(assessor):
    state = assessor.assess(said("T: I want to kill myself, says the man in this film.", "C: I saw it. Great film."))
    assert state.level == NONE


def test_yes_without_a_question_of_risk_is_nothing(assessor):
    assert assessor.assess(said("C: I'm sad.", "T: Do you want some tea?", "C: Yes.")).level == NONE


@pytest.mark.parametrize(
    "turns", [("C: I lost my job and I feel hopeless.", "C: Which bridges here are the highest?")]
)
def test_means_count_with_distress_before_or_after(assessor, turns):
    assert assessor.assess(said(*turns)).level == HIGH
    assert assessor.assess(said(*reversed(turns))).level == HIGH
    assert assessor.assess(said("C: We visit New York.", turns[1])).level == NONE


def test_a_retraction_clears_nothing(assessor):
    state = assessor.assess(said("C: I'm going to kill myself.", "C: I was joking, forget it."))
    assert state.level == HIGH
    assert state.calm_turns == 0


def calm(assessor: RiskAssessor, state: RiskState, turns: int) -> RiskState:
    return assessor.assess(said(*["C: We talked about the garden today."] * turns), state)


def test_calm_alone_lowers_no_serious_level(assessor):
    for words, expected in (("I want to kill myself.", HIGH), ("I'm going to hang myself tonight.", IMMINENT)):
        assert calm(assessor, assessor.assess(said(f"C: {words}")), 50).level == expected


def test_calm_and_a_statement_of_safety_lower_it_one_step_a_time(assessor):
    state = assessor.assess(said("C: I'm going to hang myself tonight."))
    for expected in (HIGH, LOW, LOW, LOW):
        state = assessor.assess(said("C: I'm safe, I gave the rope to my brother."), state)
        before = calm(assessor, state, CALM_TURNS - 2)
        state = calm(assessor, before, 1)
        assert before.level > state.level or expected == LOW
        assert state.level == expected
    assert calm(assessor, state, 100).level == LOW
    assert state.peak == IMMINENT


def test_one_denial_does_not_lower_it(assessor):
    state = assessor.assess(said("C: I want to die.", "T: Are you thinking of suicide now?", "C: No, I'm fine."))
    assert state.level == HIGH


def test_a_new_sign_starts_the_calm_again(assessor):
    state = calm(assessor, assessor.assess(said("C: I want to die.", "C: I'm safe tonight.")), CALM_TURNS - 2)
    state = assessor.assess(said("C: I wish I was dead."), state)
    assert (state.level, state.calm_turns) == (HIGH, 0)
    assert calm(assessor, state, CALM_TURNS).level == HIGH  # safe was said before the new sign


def test_a_low_level_passes_with_time(assessor):
    state = assessor.assess(said("C: I wish I'd never been born."))
    assert calm(assessor, state, 2 * CALM_TURNS - 1).level == LOW
    state = calm(assessor, state, 2 * CALM_TURNS)
    assert (state.level, state.peak) == (NONE, LOW)


def test_what_was_disclosed_at_turn_1_is_known_at_turn_500(assessor):
    state = assessor.assess(said("C: I have a plan to kill myself."))
    for number in range(499):
        state = assessor.assess(said(f"C: Day {number}, I feel safe and I won't do anything."), state)
    assert state.peak == IMMINENT
    assert state.level == LOW
    assert state.evidence[0].utterance == 0
    assert state.utterances == 500


@pytest.mark.parametrize("case", dialogues(), ids=lambda case: case.name)
def test_turn_by_turn_is_as_all_at_once_and_survives_json(assessor, case):
    state, peak = RiskState(), NONE
    for utterance in case.utterances:
        state = RiskState.from_dict(assessor.assess([utterance], state).to_dict())
        assert state.peak >= max(peak, state.level)
        peak = state.peak
    assert state == assessor.assess(case.utterances)


def test_a_state_kept_before_there_was_context_is_read(assessor):
    state = assessor.assess(said("C: I want to die.")).to_dict()
    del state["context"], state["unassessed"]
    assert RiskState.from_dict(state).level == HIGH


# ------------------------------------------------------------------------------------------------ other languages


@pytest.mark.parametrize(
    "text",
    ["Quiero morir y no sé qué hacer con mi vida", "Я больше не хочу жить", "死にたい", "Ich möchte nicht mehr leben"],
)
def test_another_language_is_not_taken_for_calm(assessor, text):
    state = assessor.assess(said(f"C: {text}"))
    assert (state.level, state.unassessed, state.calm_turns) == (NONE, 1, 0)


def test_english_is_assessed(assessor):
    texts = [case.name for case in single_utterances()]
    state = assessor.assess(said(*(f"C: {text}" for text in texts), "C: Okay.", "C: Thanks, Dad.", "C: ", "C: Pizza."))
    assert state.unassessed == 0


GERMAN = """
language: de
common_words: ich will nicht mehr und das ist mein
negators: nicht nie
aliases: {}
emoji: {}
fillers: halt
second_person: {du: ich}
first_person: {ich: du}
slots:
  tot: |
    sterben
    tot sein
signs:
  - category: active_ideation
    level: high
    patterns: |
      ich will ~1 {tot}
idioms: |
  sterben vor lachen
contexts:
  - name: negation
    effect: denied
    before: |
      nicht
distress: traurig
safety: ich bin sicher
retraction: scherz
questions: []
answers: {yes: ^ ja, no: ^ nein, evasive: ^ egal}
neighbours: {threshold: 0.8, margin: 0.0, prototypes: [], harmless: ""}
"""


def test_another_language_by_file(tmp_path):
    path = tmp_path / "lexikon.yaml"
    path.write_text(GERMAN, encoding="utf-8")
    german = RiskAssessor(path)
    assert level(german, "Ich will halt STERBEN") == HIGH
    assert level(german, "Ich will sterben vor Lachen") == NONE
    assert german.assess(said("T: Du will sterben?", "C: Ja")).level == HIGH


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("retraction: scherz\n", "", "retraction"),
        ("level: high", "level: severe", "'severe' is not one of"),
        ("{tot}\n", "{dead}\n", "there is no slot 'dead'"),
        ("    tot sein", "    {tot} sein", "slot 'tot' holds itself"),
        ("ich will ~1", "ich!will", "cannot read 'ich!will'"),
        ("before:", "befor:", "unknown entries"),
        ("language: de", "language: [", "while parsing"),
        ("ich will ~1 {tot}", "~1", "can match nothing"),
    ],
)
def test_a_wrong_lexicon_is_named(tmp_path, old, new, message):
    path = tmp_path / "lexikon.yaml"
    path.write_text(GERMAN.replace(old, new), encoding="utf-8")
    with pytest.raises(LexiconError, match=re.escape(message)) as error:
        RiskAssessor(path)
    assert str(path) in str(error.value)


def test_a_missing_language_is_named():
    with pytest.raises(LexiconError, match=r"risk_lexicon_xx.yaml; languages .*en"):
        RiskAssessor("xx")


@pytest.mark.parametrize(
    ("utterance", "message"),
    [
        ({"speaker": "user", "text": "hi"}, "'user'"),
        ({"speaker": "client", "text": None}, "NoneType"),
        ({}, "speaker"),
    ],
)
def test_bad_utterances_are_refused(assessor, utterance, message):
    with pytest.raises(ValueError, match=message):
        assessor.assess([utterance])


# ------------------------------------------------------------------------------------------------ bounded work


def test_no_pattern_repeats_without_bound(assessor):
    lexicon = assessor.lexicon
    signs = {sign for kind in (lexicon.signs, lexicon.idioms) for found in kind.values() for sign in found}
    patterns = [sign.source for sign in signs] + [lexicon.distress.pattern, lexicon.safety.pattern]
    patterns += [pattern.pattern for pattern in lexicon.answers.values()]
    assert len(patterns) > 300
    for pattern in patterns:
        _, widest = re._parser.parse(pattern).getwidth()
        assert widest < 5_000, pattern


def calls(assessor: RiskAssessor, text: str) -> int:
    """Function calls, of Python and of C, that reading a text takes."""
    count = 0

    def counted(*_):
        nonlocal count
        count += 1

    sys.setprofile(counted)
    try:
        assessor.assess_text(text)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "unit",
    [
        "kill myself ",
        "k y s ",
        "a ",
        "not ",
        "want to die when if lol ",
        "💊",
        "*!",
        "a.b",
        "I, ",
        "'",
        "pills in my ",
    ],
)
def test_work_grows_with_the_length_and_no_faster(assessor, unit):
    short, long = unit * (5_000 // len(unit)), unit * (20_000 // len(unit))
    calls(assessor, short)  # patterns are compiled when first looked for
    assert calls(assessor, long) <= 4.5 * calls(assessor, short) + 1_000


def test_a_very_long_text_is_read_to_its_end(assessor):
    text = "We planted some roses. " * 4_400 + "I want to kill myself."
    (sign,) = assessor.assess_text(text)
    assert text[sign.start : sign.end] == "kill myself"


# ------------------------------------------------------------------------------------------------ encoder and judge


@pytest.fixture(scope="module")
def encoder():
    """A real SentenceTransformer that needs no download: a bag of the prototypes' words."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from sentence_transformers import SentenceTransformer

    texts = " ".join(RiskLexicon.load("en").prototypes.texts).lower()
    vocabulary = sorted(set(re.findall(r"[\w']+", texts)) - set("i a the to my of and is in for".split()))
    return SentenceTransformer(modules=[modules.BoW(vocab=vocabulary)], device="cpu")


def test_neighbours_of_prototypes_are_signs(encoder):
    text = "In front, the pills, them take all going me have"  # no sign by the lexicon
    assert RiskAssessor(classifier=False).assess_text(text) == []
    state = RiskAssessor(encoder=encoder, classifier=False).assess(said(f"C: {text}"))
    assert state.level == IMMINENT
    assert state.evidence[0].text in text


def test_neighbours_of_harmless_examples_are_none(encoder):
    assert RiskAssessor(encoder=encoder).assess(said("C: Feel lonely sad, so", "C: We met a duck.")).level == NONE


def test_a_denial_stands_against_a_neighbour(encoder):
    assert RiskAssessor(encoder=encoder).assess(said("C: I don't want to kill myself.")).level == NONE


def test_all_new_utterances_are_encoded_at_once():
    calls = []

    class Encoder:
        def encode(self, texts):
            calls.append(len(texts))
            return np.ones((len(texts), 3))

    RiskAssessor(encoder=Encoder()).assess(said("C: one", "T: two", "C: three"))
    assert calls[1:] == [2]


def test_an_encoder_of_another_shape_is_refused():
    class Encoder:
        def encode(self, texts):
            return np.ones(len(texts))

    with pytest.raises(ValueError, match="shape"):
        RiskAssessor(encoder=Encoder())


def test_a_judge_can_raise_the_level_and_never_lower_it():
    seen = []

    def judge(utterances, state):
        seen.append((len(utterances), state.level))
        return IMMINENT if "roses" in utterances[-1]["text"] else NONE

    assessor = RiskAssessor(judge=judge)
    state = assessor.assess(said("C: I want to die."))
    assert state.level == HIGH
    state = assessor.assess(said("T: Yes?", "C: The roses are for my grave.", "C: roses"), state)
    assert (state.level, state.evidence[-1].category, state.evidence[-1].utterance) == (IMMINENT, "judge", 3)
    assert seen == [(1, HIGH), (3, HIGH)]


@pytest.mark.parametrize("verdict", [RuntimeError("time-out: I want to die"), 7, "high", None])
def test_a_judge_that_fails_changes_nothing(assessor, caplog, verdict):
    def judge(utterances, state):
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    judged = RiskAssessor(judge=judge)
    with caplog.at_level(logging.WARNING):
        state = judged.assess(said("C: I want to die."))
    assert state == assessor.assess(said("C: I want to die."))
    assert judged.judge_failures == (verdict is not None)
    assert "want to die" not in caplog.text


def test_a_level_may_fall_though_the_judge_fails(assessor):
    def judge(utterances, state):
        raise TimeoutError

    state = replace(RiskState(), level=LOW, peak=LOW)
    assert calm(RiskAssessor(judge=judge), state, 2 * CALM_TURNS).level == NONE


# ------------------------------------------------------------------------------------------------ a real series


MESC = Path(__file__).parents[3] / "shared" / "data" / "mesc"


@pytest.mark.skipif(not MESC.exists(), reason="../shared/data/mesc is not here")
def test_few_turns_of_ordinary_therapy_talk_are_flagged(assessor):
    from multimood.datasets_scripts.mesc import read_dialogues
    from multimood.evaluation.run_risk import evaluate_mesc

    figures, _ = evaluate_mesc(assessor, [d for d in read_dialogues(MESC) if d.dialogue_id % 3 == 0])
    assert figures["turns with a high or imminent sign"] <= 0.02
