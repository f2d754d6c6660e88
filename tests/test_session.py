import copy

import media_files
import numpy as np
import pytest
import torch
import whole_builders

from multimood.processors.turn import build_prompt
from multimood.session import SupportSession


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    return whole_builders.tiny_pair(verbatim_pairs=2)


@pytest.fixture
def session(pair):
    return SupportSession(*pair, max_new_tokens=12)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return media_files.write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def dialogue(length):
    """`length` utterances, by turns, all different."""
    return [
        {"speaker": ("client", "therapist")[place % 2], "text": f"This is utterance number {place}."}
        for place in range(length)
    ]


def state_of(session):
    return session.window, session.utterances, session.saved_tokens, session.memory.vectors[0]


def assert_same_state(one, other):
    assert one[:3] == other[:3]
    torch.testing.assert_close(one[3], other[3], rtol=0, atol=0)


class ForwardCalls:
    """Counts a model's forward passes; raises at pass `fail_at`."""

    def __init__(self, model, fail_at=None):
        self.model, self.fail_at, self.count = model, fail_at, 0

    def __enter__(self):
        self.hook = self.model.register_forward_hook(self)
        return self

    def __exit__(self, *_):
        self.hook.remove()

    def __call__(self, *_):
        self.count += 1
        if self.count == self.fail_at:
            raise RuntimeError("the accelerator was lost")


def test_a_turn_equals_the_row_the_model_learned_from(pair, clip):
    """Memory and window, filled utterance by utterance, stand for the history that a row's prompt compresses whole."""
    model, processor = pair
    row = {
        "history": dialogue(10),
        "problem_type": "poor sleep",
        "situation": "alone",
        "videos": [clip],
        "utterance": "It is late.",
    }
    session = SupportSession(*pair, problem_type="poor sleep", situation="alone", max_new_tokens=4)
    for utterance in row["history"]:
        session.add_history([utterance])
    reply = session.respond(text="It is late.", video=clip)

    whole = processor.apply_chat_template(
        [build_prompt(row, processor.verbatim_pairs)],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    assert whole["history_input_ids"].shape[0] == 1
    assert sum(reply.prompt_tokens.values()) == whole["input_ids"].shape[1]
    for field, expected in model.predict_labels(**whole).items():
        torch.testing.assert_close(
            torch.tensor(list(reply.probabilities[field].values())), expected[0], atol=1e-4, rtol=0
        )


def test_the_reply_says_what_it_is_made_of(session, clip):
    session.add_history(dialogue(6))
    reply = session.respond(text="Hello.", video=clip)
    assert reply.turn.is_valid
    for field, of in reply.probabilities.items():
        assert sum(of.values()) == pytest.approx(1)
        assert max(of, key=of.get) == getattr(reply.turn, field)
    assert set(reply.modalities) == {"video", "audio", "text", "memory"}
    assert all(count > 0 for count in reply.prompt_tokens.values())
    assert reply.prompt_tokens["memory"] == 2
    assert reply.saved_tokens > 10
    assert 0 < reply.new_tokens <= 12
    assert set(reply.seconds) == {"media", "prefill", "generation"}
    assert all(seconds > 0 for seconds in reply.seconds.values())


def test_streamed_equals_whole(pair, clip):
    sampling = {"max_new_tokens": 40, "do_sample": True, "top_k": 0}
    whole, streamed = SupportSession(*pair, **sampling), SupportSession(*pair, **sampling)
    torch.manual_seed(3)
    reply = whole.respond(text="Hello.", video=clip)
    torch.manual_seed(3)
    with streamed.stream(text="Hello.", video=clip) as stream:
        assert stream.probabilities == reply.probabilities
        pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces).strip() == reply.turn.response
    assert stream.reply.turn == reply.turn
    assert_same_state(state_of(streamed), state_of(whole))


def test_what_leaves_the_window_is_remembered_once(pair):
    model, processor = pair
    session = SupportSession(*pair, max_new_tokens=4)
    said = dialogue(5)  # the client spoke last: an odd window
    session.add_history(said)
    for turn in range(4):
        reply = session.respond(text=f"Turn {turn}.")
        said += [{"speaker": "client", "text": f"Turn {turn}."}, {"speaker": "therapist", "text": reply.turn.response}]
    assert session.utterances == len(said) == 13
    assert session.window == said[-4:]
    assert session.memory_slots == 9
    with torch.no_grad():
        (recompressed,) = model.model.get_history_features(**processor.encode_history([said[:9]]))
    torch.testing.assert_close(session.memory.vectors[0], recompressed, atol=1e-4, rtol=0)


def test_a_turn_costs_the_same_however_long_the_talk(pair):
    """Only the memory's slots are added to the prompt."""
    short, long = SupportSession(*pair, max_new_tokens=2), SupportSession(*pair, max_new_tokens=2)
    short.add_history(dialogue(104)[-14:])
    long.add_history(dialogue(104))
    few, many = short.respond(text="Hello.").prompt_tokens, long.respond(text="Hello.").prompt_tokens
    assert many["text"] == few["text"]
    assert many["memory"] - few["memory"] == 90


def test_consecutive_utterances_of_a_speaker_are_one(session):
    session.add_history([{"speaker": "client", "text": "Well."}, {"speaker": "client", "text": "I am here."}])
    assert session.window == [{"speaker": "client", "text": "Well. I am here."}]


@pytest.mark.parametrize(
    ("given", "modalities"),
    [
        (("text",), {"text"}),
        (("video",), {"video", "audio"}),
        (("silent",), {"video"}),
        (("sound",), {"audio"}),
        (("silent", "sound"), {"video", "audio"}),
        (("frames",), {"video"}),
        (("frames", "waveform", "text"), {"video", "audio", "text"}),
        (("two clips",), {"video", "audio"}),
    ],
)
def test_modalities(session, clip, tmp_path, given, modalities):
    sources = {
        "text": lambda: {"text": "Hello."},
        "video": lambda: {"video": clip},
        "silent": lambda: {"video": media_files.write_clip(tmp_path / "silent.mp4", audio_rate=None)},
        "sound": lambda: {
            "audio": media_files.write_clip(tmp_path / "sound.wav", frames=0, seconds=0.5, audio_codec="pcm_s16le")
        },
        "frames": lambda: {"video": np.random.default_rng(0).integers(0, 255, (6, 40, 40, 3), dtype=np.uint8)},
        "waveform": lambda: {"audio": np.sin(np.arange(8000) / 20).astype(np.float32)},
        "two clips": lambda: {"video": [clip, media_files.write_clip(tmp_path / "second.mp4", pitch=220)]},
    }
    arguments = {}
    for name in given:
        arguments |= sources[name]()
    reply = session.respond(**arguments)
    assert set(reply.modalities) == modalities
    for kind in ("video", "audio"):
        assert (reply.prompt_tokens[kind] > 0) == (kind in modalities)


def test_sound_that_is_given_replaces_the_clips_own(pair, clip, tmp_path):
    other = media_files.write_clip(tmp_path / "other.mp4", pitch=1200.0)
    replies = [
        SupportSession(*pair, max_new_tokens=2).respond(video=clip, audio=audio) for audio in (None, clip, other)
    ]
    own, same, different = (reply.probabilities["client_emotion"] for reply in replies)
    assert own == pytest.approx(same, rel=1e-4)
    assert own != pytest.approx(different, rel=1e-2)


@pytest.mark.parametrize("text", [None, "", "  \n"])
def test_an_empty_turn_is_refused_and_leaves_no_trace(session, text):
    session.add_history(dialogue(2))
    before = state_of(session)
    with pytest.raises(ValueError, match="give words"):
        session.respond(text=text)
    assert_same_state(state_of(session), before)
    assert session.respond(text="Hello.").turn.is_valid


def test_a_prompt_longer_than_the_model_reads_is_refused(session):
    with pytest.raises(ValueError, match=r"100,000 characters.*32,768.*add_history"):
        session.respond(text="I dream. " * 11111 + "!")
    assert session.utterances == 0


def test_a_long_utterance_leaves_the_window_at_once(session):
    """The window takes half of what the language model reads; the memory takes any length."""
    session.add_history(dialogue(2))
    session.add_history([{"speaker": "client", "text": "sleep, dream; " * 3000}, dialogue(2)[1]])
    assert session.memory_slots == 3
    assert session.window == dialogue(2)[1:]
    assert session.respond(text="Hello.").prompt_tokens["text"] < 500


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"speaker": "nurse", "text": "Hello."}, "Utterance 3.*'Hello.'.*'nurse'.*client, therapist"),
        ({"text": "Hello."}, "Utterance 3.*None"),
        ({"speaker": "client", "text": None}, "Utterance 3.*None"),
    ],
)
def test_a_bad_history_is_refused_whole(session, bad, message):
    with pytest.raises(ValueError, match=message):
        session.add_history([*dialogue(2), bad])
    assert session.utterances == 0


def test_an_unreadable_clip_leaves_no_trace(session, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("not a clip")
    before = state_of(session)
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        session.respond(text="Hello.", video=str(broken))
    assert_same_state(state_of(session), before)


def test_a_closed_stream_stops_and_leaves_no_trace(pair):
    session = SupportSession(
        *pair,
        max_new_tokens=5000,
        do_sample=True,
        top_k=0,
        suppress_tokens=[*pair[0].generation_config.suppress_tokens, pair[1].tokenizer.eos_token_id],
    )
    before = state_of(session)
    torch.manual_seed(0)
    with ForwardCalls(pair[0]) as calls:
        with session.stream(text="Hello.") as stream:
            next(stream)
        stopped_at = calls.count
        assert stopped_at < 5000
    assert list(stream) == []
    with pytest.raises(RuntimeError, match="not read to its end"):
        _ = stream.reply
    assert_same_state(state_of(session), before)
    session.generation["max_new_tokens"] = 3
    assert session.respond(text="Hello.").turn.is_valid


def test_an_error_while_writing_is_raised_and_leaves_no_trace(pair, session):
    before = state_of(session)
    with ForwardCalls(pair[0], fail_at=12), pytest.raises(RuntimeError, match="accelerator was lost"):
        session.respond(text="Hello.")
    assert_same_state(state_of(session), before)
    assert session.respond(text="Hello.").turn.is_valid


def test_turns_are_strictly_ordered(session):
    with session.stream(text="Hello.") as stream:
        with pytest.raises(RuntimeError, match="being answered"):
            session.respond(text="And another thing.")
        with pytest.raises(RuntimeError, match="being answered"):
            session.add_history(dialogue(2))
        list(stream)
    assert session.utterances == 2


def test_a_kept_conversation_goes_on(pair, clip, tmp_path):
    session = SupportSession(*pair, problem_type="poor sleep", max_new_tokens=8)
    session.add_history(dialogue(9))
    session.respond(text="Hello.", video=clip)
    session.save(tmp_path / "kept")
    loaded = SupportSession(*pair, max_new_tokens=8)
    loaded.load(tmp_path / "kept")
    assert_same_state(state_of(loaded), state_of(session))
    for again in range(2):  # the second turn also appends to a loaded memory
        one, other = (each.respond(text=f"Again {again}.").to_dict() for each in (session, loaded))
        one.pop("seconds"), other.pop("seconds")
        assert one == other
    assert_same_state(state_of(loaded), state_of(session))


def test_saving_again_replaces_the_whole_or_nothing(pair, tmp_path):
    session = SupportSession(*pair, max_new_tokens=2)
    session.add_history(dialogue(8))
    session.save(tmp_path)
    first = copy.deepcopy(state_of(session))
    session.add_history([{"speaker": "client", "text": "Later."}])

    (tmp_path / "conversation.json.part").mkdir()  # the new state cannot be written
    with pytest.raises(OSError, match="conversation"):
        session.save(tmp_path)
    loaded = SupportSession(*pair)
    loaded.load(tmp_path)
    assert_same_state(state_of(loaded), first)

    (tmp_path / "conversation.json.part").rmdir()
    session.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    loaded.load(tmp_path)
    assert_same_state(state_of(loaded), state_of(session))


def test_the_memory_can_be_bounded(pair):
    session = SupportSession(*pair, max_slots=3, max_new_tokens=2)
    session.add_history(dialogue(20))
    assert session.memory_slots == 3
    assert session.respond(text="Hello.").prompt_tokens["memory"] == 3


def test_from_pretrained(pair, tmp_path):
    for part in pair:
        part.save_pretrained(tmp_path)
    loaded = SupportSession.from_pretrained(tmp_path, device="cpu", max_new_tokens=6)
    one, other = (each.respond(text="Hello.") for each in (loaded, SupportSession(*pair, max_new_tokens=6)))
    assert one.turn == other.turn
    for field, of in one.probabilities.items():
        assert of == pytest.approx(other.probabilities[field], rel=1e-4)
