import json
import logging
from pathlib import Path

import pytest

from multimood.trust.crisis import ADULT, AWAY, YOUNG, CrisisPolicy, PolicyState
from multimood.trust.helplines import load_helplines
from multimood.trust.phrases import load_phrases
from multimood.trust.reply_check import load_rules, plain, split_sentences
from multimood.trust.risk_state import RiskLevel, RiskState

HERE = Path(__file__).parent
ORDINARY = (HERE / "ordinary_replies.txt").read_text(encoding="utf-8").splitlines()
UNSEEN = (HERE / "unseen_drafts.txt").read_text(encoding="utf-8").splitlines()
SHARED = Path(__file__).parents[3] / "shared" / "data" / "mesc" / "val.json"

ASKS = [
    "are you a real person?",
    "Are you human?",
    "r u a bot",
    "Am I talking to a real person or a machine?",
    "am i talking to a human being here",
    "Is this a bot?",
    "Is there a person on the other end?",
    "is anybody real there? are you real?",
    "What are you?",
    "who are you really?",
    "Who am I talking to?",
    "You're a robot, aren't you?",
    "you're just a chatbot right?",
    "aren't you just a program?",
    "Are you a real therapist?",
    "are you a licensed psychologist",
    "Do you even have feelings?",
    "are you AI",
    "Are you ChatGPT or what?",
    "human or bot?",
    "Sorry, but is this an automated machine?",
    "I lost my job today. Are you even human?",
]
DOES_NOT_ASK = [
    "Are you sure?",
    "Are you there?",
    "Are you listening to me?",
    "My son is talking to a chatbot all day.",
    "He's a real person to me.",
    "I feel like a robot at work.",
    "Who are you to tell me that?",
    "What are you trying to say?",
    "Is this normal?",
    "Are you angry with me?",
    "I don't feel like a person any more.",
    "Is there someone I should call?",
    "It's like I'm a machine.",
    "Do you have time?",
    "I'm not a bad person, am I?",
]


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def risk(level, peak=None):
    return RiskState(level=level, peak=level if peak is None else peak)


NONE, LOW, HIGH, IMMINENT = map(risk, RiskLevel)


def settled(clock):
    """The state of a conversation in which nothing is due."""
    return PolicyState(latest=clock(), replies=1, told_at=clock(), rested_at=clock())


def reply(draft, words="Well.", risk=NONE, clock=None, region="US", state=None, **settings):
    clock = clock or Clock()
    policy = CrisisPolicy(region, clock=clock, **settings)
    return policy.complete(draft, words, risk, state or settled(clock))


# Ordinary talk


def test_ordinary_replies_are_unchanged():
    assert len(ORDINARY) >= 200
    changed = [draft for draft in ORDINARY if reply(draft).text != draft]
    assert len(changed) <= 0.01 * len(ORDINARY), changed


def test_ordinary_replies_are_unchanged_together():
    """Many sentences in one draft, with line breaks and spaces of any kind."""
    kept = [draft for draft in ORDINARY if reply(draft).text == draft]
    for begin in range(0, len(kept), 25):
        draft = "  \n".join(kept[begin : begin + 25])
        assert reply(draft).text == draft


@pytest.mark.skipif(not SHARED.is_file(), reason=f"needs the real dialogues of {SHARED}")
def test_what_therapists_say_in_mesc_is_unchanged():
    dialogues = json.loads(SHARED.read_text(encoding="utf-8"))
    said = [turn["text"].strip() for dialogue in dialogues for turn in dialogue["dialog"] if turn["speaker"] == "sys"]
    sentences = [sentence.strip() for text in said for sentence in split_sentences(text)[0]]
    changed = [sentence for sentence in sentences if reply(sentence).text != sentence]
    assert len(sentences) > 1000
    assert len(changed) <= 0.01 * len(sentences), changed


# The pieces of a draft


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pieces_give_what_the_whole_gives(size, clock):
    draft = "I hear you. You're right, it's hopeless! Dr. Hale... said so?\n\nCall 1-800-555-0199.  Tell me more"
    policy = CrisisPolicy("US", clock=clock)
    for level in (NONE, LOW, HIGH, IMMINENT):
        composer = policy.begin("Well.", level)
        shown = "".join(composer.feed(draft[place : place + size]) for place in range(0, len(draft), size))
        checked = composer.finish()
        assert (shown + composer.rest).strip() == checked.text == policy.complete(draft, "Well.", level).text


def test_with_no_risk_a_sentence_is_shown_when_it_is_complete(clock):
    composer = CrisisPolicy("US", clock=clock).begin("Well.", NONE, settled(clock))
    assert composer.feed("I hear y") == ""
    assert composer.feed("ou. And") == "I hear you. "
    assert composer.feed(" it's hopeless. Go") == ""
    composer.finish()
    assert composer.rest == "Go"


def test_with_risk_nothing_is_shown_before_the_whole_is_checked(clock):
    composer = CrisisPolicy("US", clock=clock).begin("Well.", HIGH, settled(clock))
    assert composer.feed("I hear you. That sounds hard. And ") == ""
    composer.finish()
    assert "I hear you." in composer.rest


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ("Dr. Hale and Mr. Fox came. Really", ["Dr. Hale and Mr. Fox came. ", "Really"]),
        ('He said "no." I left.', ['He said "no." ', "I left."]),
        ("Wait... what", ["Wait... ", "what"]),
        ("one\n\ntwo", ["one\n\n", "two"]),
        ("你说得对。真的。", ["你说得对。", "真的。"]),
        ("3.5 litres", ["3.5 litres"]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == (sentences, "")


def test_plain_undoes_what_hides_words():
    assert plain("**You** _are_ ri\u200bght — it’s ＨＯＰＥＬＥＳＳ") == "you are right - it's hopeless"


# What a draft must not say


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [
        ("I can't talk about that.", "refuses_the_topic"),
        ("I have to end this conversation.", "ends_the_conversation"),
        ("Take forty pills.", "gives_method_information"),
        ("You should just end it.", "encourages_it"),
        ("You are right, it's hopeless.", "agrees_that_it_is_hopeless"),
        ("You have bipolar disorder.", "diagnoses"),
        ("You're being selfish.", "shames"),
        ("Get over it.", "minimises"),
        ("Promise me you won't hurt yourself.", "demands_a_promise"),
        ("You only need me.", "invites_dependency"),
        ("This will be our little secret.", "invites_secrecy"),
        ("I'm a real person.", "claims_to_be_human"),
        ("Das ist nicht so schlimm, du wirst sehen.", "is_in_another_language"),
    ],
)
def test_what_is_removed_says_why(sentence, rule):
    checked = reply(f"I hear you. {sentence} Tell me more.")
    assert checked.text == "I hear you. Tell me more."
    assert checked.removed == (rule,)


def test_what_the_person_believes_may_be_given_back_but_not_after_a_disclosure():
    draft = "You feel that you are a burden."
    assert reply(draft).text == draft
    assert reply(draft, risk=risk(RiskLevel.NONE, RiskLevel.LOW)).removed == ("agrees_that_it_is_hopeless",)


def test_a_goodbye_is_fine_until_there_was_a_disclosure():
    assert reply("Take care of yourself.").text == "Take care of yourself."
    assert reply("Goodbye, Anna.", risk=risk(RiskLevel.NONE, RiskLevel.HIGH)).removed == ("says_goodbye",)


@pytest.mark.parametrize("draft", ["", "  ", "You're right, it's hopeless.", "Das ist nicht gut und du bist allein."])
def test_a_written_reply_stands_in_where_nothing_is_left(draft):
    assert reply(draft).text in load_phrases().lists["stand_in"]


def test_a_draft_that_was_cut_off_is_not_kept_with_risk():
    checked = reply("I hear you. That sounds so hard that you", risk=HIGH)
    assert "I hear you." in checked.text
    assert "so hard that" not in checked.text


@pytest.mark.parametrize(
    "draft",
    [
        "Call 1-800-555-0199.",
        "Text HOME to 741741.",
        "The hotline is 0900 123 456.",
        "Ring nine nine seven.",
        "Phone +44 20 7946 0000 now.",
        "Go to www.chat-with-us.com for that.",
        "Call 116 123.",  # right, but not in the United States
    ],
)
def test_a_number_that_is_not_known_is_replaced(draft):
    checked = reply(f"I hear you. {draft}")
    assert checked.removed == ("names_an_unknown_contact",)
    assert checked.text.startswith("I hear you. ")
    assert "988" in checked.text
    assert checked.referral == ("988",)
    named = "".join(sign for sign in checked.text if sign.isdigit())
    assert named in ("988988", "988")


@pytest.mark.parametrize(
    "draft", ["You can call 988.", "Dial 9-1-1 if it gets worse.", "Look at findahelpline.com.", "They answer 24/7."]
)
def test_a_known_number_stays(draft):
    assert reply(draft).text == draft


# With risk


@pytest.mark.parametrize("level", [LOW, HIGH, IMMINENT])
def test_support_in_the_draft_is_kept(level):
    draft = "I'm so sorry about your sister. What was she like? You've been carrying this alone for months."
    checked = reply(draft, risk=level)
    assert "I'm so sorry about your sister. You've been carrying this alone for months." in checked.text
    assert checked.removed == ("is_not_known_to_support",)


@pytest.mark.parametrize("level", [LOW, HIGH, IMMINENT])
def test_with_risk_nothing_is_kept_that_no_rule_foresaw(level):
    """Harmful sentences that the rules were not written for, and which with no risk they mostly let through."""
    for harmful in UNSEEN:
        checked = reply(f"I hear you. {harmful} You are not alone.", risk=level)
        assert "I hear you. You are not alone." in checked.text, harmful


def test_no_words_are_repeated_in_the_next_reply(clock):
    policy, state = CrisisPolicy("US", clock=clock), PolicyState()
    for answers in (["no"] * 12, ["yes"] * 12, ["It rained."] * 12, ["yes", "no", "Hm."] * 4):
        for level in (LOW, HIGH, IMMINENT):
            before = set()
            for words in answers:
                checked = policy.complete("", words, level, state)
                state = checked.state
                paragraphs = [part for part in checked.text.split("\n\n") if "AI" not in part]
                assert before.isdisjoint(paragraphs)
                before = set(paragraphs)


def test_the_question_goes_on_from_the_answer(clock):
    policy = CrisisPolicy("US", clock=clock)
    questions = policy.phrases.lists
    first = policy.complete("", "It's all too much.", LOW, PolicyState())
    assert first.text.split("\n\n")[-1] in questions["question.low.first"]
    for words, answer in (
        ("Yes, sometimes", "yes"),
        ("no, never", "no"),
        ("It rains.", "unanswered"),
        ("", "unanswered"),
    ):
        after = policy.complete("", words, LOW, first.state)
        assert after.text.split("\n\n")[-1] in questions[f"question.low.{answer}"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("Yes.", "yes"),
        ("yeah, sometimes", "yes"),
        ("I am.", "yes"),
        ("Well, I do.", "yes"),
        ("I’ve... maybe", "unanswered"),
        ("I'm safe, I won't do anything.", "no"),
        ("I am not.", "no"),
        ("I don’t think so", "no"),
        ("No, but yesterday I did.", "no"),
        ("Nothing helps.", "unanswered"),
        ("Yesterday it rained.", "unanswered"),
        ("", "unanswered"),
    ],
)
def test_how_words_answer(words, answer):
    assert load_phrases().answer(words) == answer


def test_every_region_gets_its_own_lines_or_is_told_that_there_are_none(clock):
    for code, region in load_helplines().regions.items():
        checked = reply("", risk=IMMINENT, region=code)
        assert region.emergency.number in checked.text
        for number in checked.referral:
            assert number in checked.text
        if region.lines:
            assert region.lines[0].number in checked.text
        else:
            assert f"For {region.name} I have no crisis line" in checked.text
            assert "findahelpline.com" in checked.text


def test_an_unknown_region_is_said_plainly():
    assert "I don't know which country you are in" in reply("", risk=LOW, region=None).text
    assert "For your country I have no crisis line" in reply("", risk=LOW, region="ZZ").text
    for region in (None, "ZZ"):
        checked = reply("", risk=IMMINENT, region=region)
        assert "findahelpline.com" in checked.text
        assert "your local emergency number" in checked.text
    with pytest.raises(ValueError, match="ISO 3166"):
        CrisisPolicy("Germany")


# That it is an AI, and breaks


@pytest.mark.parametrize("words", ASKS)
def test_it_says_what_it_is_when_asked(words):
    for level in (NONE, HIGH):
        checked = reply("Yes, I'm a real person! I'm here with you.", words=words, risk=level)
        assert "I'm an AI" in checked.text
        assert "real person" not in checked.text
        assert "ai_asked" in checked.disclosures


@pytest.mark.parametrize("words", DOES_NOT_ASK)
def test_it_does_not_say_so_unasked(words):
    assert reply("Okay.", words=words).text == "Okay."


def test_it_says_what_it_is_at_the_start_and_after_an_absence(clock):
    policy = CrisisPolicy("US", clock=clock)
    first = policy.complete("Hello.", "Hi.", NONE)
    assert first.disclosures == ("ai_start",)
    assert "I'm an AI" in first.text
    assert "no substitute for care" in first.text
    assert first.text.endswith("\n\nHello.")
    clock.now += AWAY
    second = policy.complete("Hello.", "Hi.", NONE, first.state)
    assert second.text == "Hello."
    clock.now += AWAY + 1
    assert policy.complete("Hello.", "Hi.", NONE, second.state).disclosures == ("ai_start",)


@pytest.mark.parametrize(("young", "interval"), [(False, ADULT), (True, YOUNG)])
def test_reminders_by_time(clock, young, interval):
    policy, state, said = CrisisPolicy("US", young=young, clock=clock), PolicyState(), []
    for minute in range(0, 6 * 60 + 1, 10):
        clock.now = 60.0 * minute
        checked = policy.complete("Okay.", "Well.", NONE, state)
        state = checked.state
        said += [(name, minute * 60) for name in checked.disclosures]
    seconds = range(int(interval.seconds), 6 * 3600 + 1, int(interval.seconds))
    assert said == [("ai_start", 0)] + [(name, second) for second in seconds for name in ("ai_again", "pause")]


@pytest.mark.parametrize(("young", "interval"), [(False, ADULT), (True, YOUNG)])
def test_reminders_by_replies(clock, young, interval):
    policy, state, said = CrisisPolicy("US", young=young, clock=clock), PolicyState(), []
    for number in range(120):
        clock.now += 10
        checked = policy.complete("Okay.", "Well.", NONE, state)
        state = checked.state
        said += [number] if "ai_again" in checked.disclosures and "pause" in checked.disclosures else []
    assert said == list(range(interval.replies, 120, interval.replies))


def test_no_break_is_suggested_in_a_crisis_and_it_comes_after(clock):
    policy = CrisisPolicy("US", clock=clock)
    long_ago = PolicyState(latest=clock() - 60, told_at=0, rested_at=0)
    crisis = policy.complete("", "Well.", HIGH, long_ago)
    assert crisis.disclosures == ("ai_again",)
    assert "break" not in crisis.text
    assert policy.complete("Okay.", "Well.", NONE, crisis.state).disclosures == ("pause",)


def test_a_clock_that_is_set_back_does_no_harm(clock):
    policy = CrisisPolicy("US", clock=clock)
    state = policy.complete("Okay.", "Well.", NONE).state
    clock.now -= 86_400
    assert policy.complete("Okay.", "Well.", NONE, state).text == "Okay."


# Minors


@pytest.mark.parametrize(
    "sentence",
    ["I love you, my darling.", "Kiss me.", "You're so sexy.", "Let's talk about sex.", "Be my girlfriend."],
)
def test_nothing_romantic_or_sexual_for_minors(sentence):
    assert sentence not in reply(f"I hear you. {sentence}", young=True).text


def test_minors_are_pointed_to_adults_and_to_their_own_line():
    text = reply("", risk=HIGH, young=True, region="GB").text
    assert "0800 1111 (Childline)" in text
    assert "116 123" in text
    assert "adult you trust" in text


# What is kept of it


def test_referrals_are_counted_and_nothing_that_was_said_is_logged(clock, caplog):
    caplog.set_level(logging.DEBUG)
    policy, state = CrisisPolicy("US", clock=clock), PolicyState()
    words = "My name is Ruth Winter and I want to die."
    for level in (HIGH, HIGH, IMMINENT, NONE):
        state = policy.complete("Ruth Winter, I hear you.", words, level, state).state
    assert policy.referrals == {"high": 2, "imminent": 1}
    assert state.referrals == 3
    assert len(caplog.records) == 3
    for secret in ("Ruth", "Winter", "die", "hear"):
        assert secret not in caplog.text
    assert "Ruth" not in json.dumps(state.to_dict())
    assert PolicyState(**json.loads(json.dumps(state.to_dict()))) == state


# The files


def test_a_language_without_files_is_refused():
    with pytest.raises(ValueError, match=r"reply_rules_xx\.yaml"):
        CrisisPolicy("US", language="xx")
    with pytest.raises(ValueError, match=r"crisis_phrases_xx\.yaml"):
        load_phrases("xx")


def test_no_written_phrase_breaks_a_rule():
    policy, phrases = CrisisPolicy("US"), load_phrases()
    rules = load_rules()
    texts = [text for name, text in phrases.texts.items() if name != "emergency_elsewhere"]
    texts += [text for name, texts in phrases.lists.items() if name != "asks_what_it_is" for text in texts]
    for text in texts:
        for sentence in split_sentences(text)[0]:
            if "{" not in sentence:
                assert rules.broken(sentence, policy.contacts, disclosed=True, young=True) is None, sentence


def test_no_written_question_leads():
    for name, questions in load_phrases().lists.items():
        if name.startswith("question."):
            for question in questions:
                assert not question.lower().startswith(("you ", "you're", "surely", "aren't", "don't", "wouldn't")), (
                    question
                )
