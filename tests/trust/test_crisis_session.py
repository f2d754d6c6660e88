"""Risk and crisis behaviour of a real session, on a tiny random model."""

import json

import pytest
import torch
import whole_builders

from multimood.session import SupportSession
from multimood.trust.crisis import AWAY, CrisisPolicy
from multimood.trust.risk_state import RiskLevel, RiskState

DISCLOSURE = "I want to kill myself."
SMALL_TALK = [
    {"speaker": "client", "text": "I watered the plants."},
    {"speaker": "therapist", "text": "Which one do you like best?"},
]


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    return whole_builders.tiny_pair(verbatim_pairs=2)


@pytest.fixture
def session(pair):
    return SupportSession(*pair, max_new_tokens=8, policy=CrisisPolicy("GB"))


class Dictation:
    """Makes `generate` write a given draft: of all tokens the next one of the draft alone is allowed."""

    def __init__(self, tokenizer, draft):
        self.ids = [*tokenizer(draft, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        self.begin = None

    def __call__(self, row, ids):
        self.begin = len(ids) if self.begin is None else self.begin
        return [self.ids[min(len(ids) - self.begin, len(self.ids) - 1)]]


def dictated(pair, draft, **settings):
    settings = {"policy": CrisisPolicy("GB"), **settings}
    fn = Dictation(pair[1].tokenizer, f" {draft}")
    return SupportSession(*pair, max_new_tokens=500, prefix_allowed_tokens_fn=fn, **settings)


class Failing:
    """Makes the model's forward pass `at` raise."""

    def __init__(self, model, at=1):
        self.model, self.at, self.count = model, at, 0

    def __enter__(self):
        self.hook = self.model.register_forward_hook(self)
        return self

    def __exit__(self, *_):
        self.hook.remove()

    def __call__(self, *_):
        self.count += 1
        if self.count >= self.at:
            raise RuntimeError("the accelerator was lost")


def assert_crisis_reply(text):
    assert "116 123" in text
    assert text.count("?") == 1
    assert text.endswith("?")


# Before the model reads and after it has written


def test_a_disclosure_is_answered_and_reported(session):
    reply = session.respond(text=f"It rained. {DISCLOSURE}")
    assert_crisis_reply(reply.turn.response)
    assert reply.risk["level"] == reply.risk["peak"] == "high"
    (sign,) = reply.risk["evidence"]
    assert sign["level"] == "high"
    assert f"It rained. {DISCLOSURE}"[sign["start"] : sign["end"]] == sign["text"]
    assert reply.referral == ("116 123",)
    assert reply.error is None
    json.dumps(reply.to_dict())


def test_what_is_remembered_is_what_was_shown(pair):
    session = dictated(pair, "I hear you. You are right, it's hopeless. It sounds so hard.")
    with session.stream(text=DISCLOSURE) as stream:
        assert stream.risk is RiskLevel.HIGH
        shown = "".join(stream)
    reply = stream.reply
    assert shown.strip() == reply.turn.response == session.window[-1]["text"]
    assert "I hear you. It sounds so hard." in shown
    assert "hopeless" not in shown
    assert reply.removed == ("agrees_that_it_is_hopeless",)


def test_a_fine_draft_is_shown_as_it_is_but_for_the_notice_at_the_start(pair):
    draft = "That sounds like a long day. What helped?"
    session = dictated(pair, draft)
    first = session.respond(text="Hello.")
    assert first.disclosures == ("ai_start",)
    assert first.turn.response.endswith(f"\n\n{draft}")
    session.generation["prefix_allowed_tokens_fn"].begin = None
    second = session.respond(text="Hello again.")
    assert second.turn.response == draft
    assert (second.disclosures, second.referral, second.removed) == ((), (), ())
    assert second.risk == {"level": "none", "peak": "none", "evidence": []}


def test_nothing_forbidden_is_ever_shown_in_a_stream(pair):
    draft = "I see. Promise me you won't hurt yourself. Call 1-800-555-0199. What else?"
    shown = ""
    with dictated(pair, draft).stream(text="Hello.") as stream:
        for piece in stream:
            shown += piece
            assert "Promise" not in shown
            assert "555" not in shown
    assert "I see. " in shown
    assert "116 123" in shown
    assert shown.endswith("What else?")


def test_with_no_risk_sentences_are_shown_while_the_model_still_writes(pair):
    session = dictated(pair, "I see. " + "And then it rained all day. " * 20)
    with Failing(pair[0], at=60), session.stream(text="Hello.") as stream:
        pieces = [next(stream), next(stream)]
        assert "".join(pieces).endswith("I see. ")
        with pytest.raises(RuntimeError, match="accelerator was lost"):
            list(stream)


def test_a_turn_without_words_leaves_the_risk_as_it_is(session, tmp_path):
    import media_files

    session.respond(text=DISCLOSURE)
    before = session.risk
    clip = media_files.write_clip(tmp_path / "clip.mp4")
    reply = session.respond(video=clip)
    assert_crisis_reply(reply.turn.response)
    assert reply.risk["evidence"] == []
    assert (session.risk.level, session.risk.calm_turns) == (before.level, before.calm_turns)
    assert session.risk.utterances == session.utterances == 4


# Sticky, and outside the memory


def test_it_is_known_through_compression_and_saving(pair, tmp_path):
    session = SupportSession(*pair, max_slots=4, max_new_tokens=2, policy=CrisisPolicy("GB"))
    session.respond(text=DISCLOSURE)
    for number in range(50):
        session.add_history(SMALL_TALK * 5)
        if number % 10 == 0:
            session.save(tmp_path)
            session = SupportSession(*pair, max_slots=4, max_new_tokens=2)
            session.load(tmp_path)
    assert session.utterances == 502
    assert session.memory_slots == 4
    assert all(DISCLOSURE not in utterance["text"] for utterance in session.window)
    reply = session.respond(text="I watered the plants again.")
    assert reply.risk["peak"] == "high"
    assert reply.risk["level"] != "none"
    assert_crisis_reply(reply.turn.response)
    assert session.risk.evidence[0].text.lower() in DISCLOSURE.lower()


@pytest.mark.slow
def test_a_disclosure_at_turn_1_is_known_at_turn_500(pair, tmp_path):
    session = SupportSession(*pair, max_slots=16, max_new_tokens=2, policy=CrisisPolicy("GB"))
    session.respond(text=DISCLOSURE)
    for turn in range(2, 501):
        reply = session.respond(text=f"I watered {turn} plants.")
        assert reply.risk["peak"] == "high"
        assert_crisis_reply(reply.turn.response)
        if turn % 100 == 0:
            session.save(tmp_path)
            session = SupportSession(*pair, max_slots=16, max_new_tokens=2)
            session.load(tmp_path)
    assert session.utterances == session.risk.utterances == 1000
    assert session.risk.evidence[0].utterance == 0


def test_history_is_assessed_whole(session):
    session.add_history(
        [*SMALL_TALK * 30, {"speaker": "client", "text": DISCLOSURE}, *SMALL_TALK[1:], *SMALL_TALK * 3]
    )
    assert session.risk.peak is RiskLevel.HIGH
    assert session.risk.evidence[0].utterance == 60
    assert_crisis_reply(session.respond(text="I'm back.").turn.response)


def test_another_conversation_knows_nothing_of_it(session):
    session.respond(text=DISCLOSURE)
    another = session.begin_another()
    assert another.risk == RiskState()
    assert another.respond(text="Hello.").risk["level"] == "none"
    assert another.policy.region == "GB"


def test_a_kept_conversation_keeps_region_minor_and_what_was_said(pair, tmp_path):
    now = [1_000_000.0]
    settings = {"max_new_tokens": 2}
    session = SupportSession(*pair, policy=CrisisPolicy("GB", young=True, clock=lambda: now[0]), **settings)
    session.respond(text=DISCLOSURE)
    session.save(tmp_path)
    loaded = SupportSession(*pair, policy=CrisisPolicy(clock=lambda: now[0]), **settings)
    loaded.load(tmp_path)
    assert (loaded.risk, loaded.policy_state) == (session.risk, session.policy_state)
    now[0] += 60
    reply = loaded.respond(text="Hello.")
    assert "Childline" in reply.turn.response
    assert reply.disclosures == ()
    now[0] += AWAY + 1
    assert loaded.respond(text="Hello.").disclosures == ("ai_start",)

    elsewhere = SupportSession(*pair, policy=CrisisPolicy("DE"))
    elsewhere.load(tmp_path)
    assert (elsewhere.policy.region, elsewhere.policy.young) == ("DE", True)


def without_risk(folder):
    path = folder / "conversation.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    for key in ("risk", "policy", "policy_state"):
        del state[key]
    path.write_text(json.dumps(state), encoding="utf-8")


def test_a_conversation_kept_without_its_risk_is_assessed(pair, session, tmp_path):
    session.add_history([{"speaker": "client", "text": DISCLOSURE}])
    session.save(tmp_path)
    without_risk(tmp_path)
    loaded = SupportSession(*pair)
    loaded.load(tmp_path)
    assert loaded.risk == session.risk


def test_a_conversation_kept_without_its_risk_is_refused_where_words_are_gone(pair, session, tmp_path):
    session.add_history([{"speaker": "client", "text": DISCLOSURE}, *SMALL_TALK[1:], *SMALL_TALK * 4])
    session.save(tmp_path)
    without_risk(tmp_path)
    loaded = SupportSession(*pair)
    loaded.add_history(SMALL_TALK)
    with pytest.raises(ValueError, match=r"without the risk.*6 of its utterances.*add_history"):
        loaded.load(tmp_path)
    assert loaded.window == SMALL_TALK


# When something fails


@pytest.mark.parametrize("at", [1, 12])
def test_a_failing_model_yields_the_written_crisis_reply(pair, session, at, caplog):
    with Failing(pair[0], at=at):
        reply = session.respond(text=DISCLOSURE)
    assert_crisis_reply(reply.turn.response)
    assert reply.error == "RuntimeError: the accelerator was lost"
    assert (reply.turn.strategy is None) == (at == 1)
    assert reply.risk["level"] == "high"
    assert [utterance["text"] for utterance in session.window] == [DISCLOSURE, reply.turn.response]
    assert "kill" not in caplog.text
    assert session.respond(text="Well.").turn.is_valid


def test_a_memory_that_fails_too_loses_nothing(pair, session):
    session.add_history(SMALL_TALK * 2)
    with Failing(pair[0].model.compressor.reader):
        reply = session.respond(text=DISCLOSURE)
    assert_crisis_reply(reply.turn.response)
    assert "accelerator was lost" in reply.error
    assert session.utterances == len(session.window) == 6
    session.respond(text="Well.")
    assert (session.memory_slots, len(session.window)) == (4, 4)


def test_a_clip_that_cannot_be_read_does_not_leave_a_disclosure_unanswered(session, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("not a clip")
    reply = session.respond(text=DISCLOSURE, video=str(broken))
    assert_crisis_reply(reply.turn.response)
    assert "broken.mp4" in reply.error


def test_a_failing_turn_without_risk_leaves_no_trace(pair, session):
    before = session.risk, session.policy_state
    with Failing(pair[0]), pytest.raises(RuntimeError, match="accelerator was lost"):
        session.respond(text="Hello.")
    assert (session.risk, session.policy_state) == before


def test_a_disclosure_in_a_stream_that_is_closed_stays_known(session):
    with session.stream(text=DISCLOSURE):
        pass
    assert session.utterances == 0
    assert session.risk.peak is RiskLevel.HIGH
    assert_crisis_reply(session.respond(text="Sorry, the page closed.").turn.response)


def test_a_stream_that_is_closed_calms_nothing(session):
    session.respond(text=DISCLOSURE)
    before = session.risk
    for _ in range(10):
        with session.stream(text="The rain has not stopped yet."):
            pass
    assert session.risk == before


def test_an_empty_turn_is_refused_with_risk_too(session):
    session.respond(text=DISCLOSURE)
    with pytest.raises(ValueError, match="give words"):
        session.respond(text=" ")
