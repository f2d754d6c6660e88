"""The drawn face and the synthetic voice: deterministic, moving, and different by emotion and by person."""

import itertools

import av
import numpy as np
import pytest

from multimood.datasets_scripts.drawn_clip import SAMPLE_RATE, Person, render_clip
from multimood.processors.turn import EMOTIONS


def read(path):
    """Frames (T, H, W, 3) uint8 or None, and samples (n,) float32 or None."""
    frames, samples = [], []
    with av.open(str(path)) as container:
        for frame in container.decode():
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
            else:
                assert frame.sample_rate == SAMPLE_RATE
                samples.append(frame.to_ndarray().ravel())
    return np.stack(frames) if frames else None, np.concatenate(samples) if samples else None


def render(folder, person, emotion, **options):
    path = folder / "clip.mp4"
    render_clip(path, Person.from_seed(person), emotion, **options)
    return read(path)


def pitch(samples):
    """Median pitch (Hz) of the loud 64 ms windows, by autocorrelation."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::256]
    energy = (windows**2).sum(1)
    found = []
    for window in windows[energy > np.quantile(energy, 0.6)]:
        spectrum = np.fft.rfft(window - window.mean(), 4096)
        correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: SAMPLE_RATE // 50]
        lags = np.arange(SAMPLE_RATE // 600, SAMPLE_RATE // 60)
        # The shortest lag that is nearly as good as the best one: longer ones are octave errors.
        good = lags[correlation[lags] > 0.85 * correlation[lags].max()]
        found.append(SAMPLE_RATE / good[0])
    return float(np.median(found))


def energy(samples):
    return float(np.sqrt(np.mean(samples**2)))


def brightness(samples):
    """Spectral centroid in Hz."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    return float((spectrum * np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)).sum() / spectrum.sum())


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_the_same_arguments_give_the_same_file(tmp_path, emotion):
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    for path in (first, second):
        render_clip(path, Person.from_seed(3), emotion, seed=11)
    assert first.read_bytes() == second.read_bytes()


def test_another_seed_gives_another_clip_of_the_same_person(tmp_path):
    frames, samples = render(tmp_path, 0, "joy", seed=1)
    other_frames, other_samples = render(tmp_path, 0, "joy", seed=2)
    assert not np.array_equal(frames, other_frames)
    assert not np.array_equal(samples, other_samples)


@pytest.mark.parametrize(("picture", "sound"), [(True, True), (True, False), (False, True)])
def test_the_streams_are_those_asked_for(tmp_path, picture, sound):
    frames, samples = render(tmp_path, 1, "neutral", picture=picture, sound=sound)
    assert (frames is not None) == picture
    assert (samples is not None) == sound


@pytest.mark.parametrize("seconds", [0.5, 1.3, 2.0, 5.0])
def test_length_is_right_within_a_frame(tmp_path, seconds):
    path = tmp_path / "clip.mp4"
    render_clip(path, Person.from_seed(2), "fear", seconds=seconds, size=48, fps=10)
    with av.open(str(path)) as container:
        assert container.duration / av.time_base == pytest.approx(seconds, abs=0.1)
    frames, samples = read(path)
    assert frames.shape == (round(seconds * 10), 48, 48, 3)
    # AAC adds a frame of 1024 samples before the sound and fills the last one.
    assert 0 <= len(samples) - seconds * SAMPLE_RATE <= 0.1 * SAMPLE_RATE + 2048


def test_picture_and_sound_do_not_depend_on_each_other(tmp_path):
    frames, samples = render(tmp_path, 4, "anger", seed=5)
    np.testing.assert_array_equal(frames, render(tmp_path, 4, "anger", seed=5, sound=False)[0])
    np.testing.assert_array_equal(samples, render(tmp_path, 4, "anger", seed=5, picture=False)[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"emotion": "surprise"}, "Unknown emotion 'surprise'.*anger"),
        ({"picture": False, "sound": False}, "picture or a sound"),
        ({"seconds": 0.01}, "holds no frame"),
        ({"seconds": -1.0}, "holds no frame"),
        ({"size": 33}, "even.*33"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    arguments = {"emotion": "joy", **options}
    with pytest.raises(ValueError, match=message):
        render_clip(tmp_path / "clip.mp4", Person.from_seed(0), **arguments)
    assert not (tmp_path / "clip.mp4").exists()


def test_a_person_needs_a_seed_that_is_not_negative():
    with pytest.raises(ValueError, match="-1"):
        Person.from_seed(-1)


def test_persons_differ_and_are_reproducible():
    assert Person.from_seed(7) == Person.from_seed(7)
    people = [Person.from_seed(i) for i in range(200)]
    assert len(set(people)) == 200
    pitches = np.array([person.pitch for person in people])
    assert pitches.min() < 100
    assert pitches.max() > 230
    assert {person.hair_shape for person in people} == {"short", "long", "bald", "cap"}


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_the_expression_grows_out_of_a_face_at_rest(tmp_path, emotion):
    frames, _ = render(tmp_path, 5, emotion, seed=1, fps=20, sound=False)
    rest, _ = render(tmp_path, 5, "neutral", seed=1, fps=20, sound=False)
    difference = np.abs(frames.astype(float) - rest).mean((1, 2, 3))
    assert np.ptp(frames.astype(float), axis=0).max() > 40  # something always moves
    if emotion == "neutral":
        assert difference.max() == 0
    else:
        assert difference[-10:].mean() > 2 * difference[0]


def test_each_pair_of_emotions_has_another_face(tmp_path):
    apexes = {emotion: render(tmp_path, 8, emotion, seed=3, sound=False)[0][-6:] for emotion in EMOTIONS}
    for one, other in itertools.combinations(EMOTIONS, 2):
        change = np.abs(apexes[one].mean(0) - apexes[other].mean(0)).mean(-1)
        assert (change > 30).mean() > 0.02, f"{one} and {other} look alike"


@pytest.mark.parametrize("person", [0, 3, 12])
def test_prosody_is_ordered_within_a_person(tmp_path, person):
    voices = {
        emotion: render(tmp_path, person, emotion, seed=9, seconds=3.0, picture=False)[1] for emotion in EMOTIONS
    }
    pitches = {emotion: pitch(voice) for emotion, voice in voices.items()}
    assert pitches["neutral"] == pytest.approx(Person.from_seed(person).pitch, rel=0.12)
    assert pitches["depression"] < pitches["neutral"] < pitches["joy"]
    assert pitches["neutral"] < pitches["fear"]
    assert energy(voices["depression"]) < energy(voices["sadness"]) < energy(voices["neutral"])
    assert energy(voices["neutral"]) < energy(voices["joy"]) < energy(voices["anger"])
    assert brightness(voices["depression"]) < brightness(voices["neutral"]) < brightness(voices["anger"])


def test_no_voice_is_clipped(tmp_path):
    for person in range(12):
        _, samples = render(tmp_path, person, "anger", seed=person, picture=False)
        assert np.mean(np.abs(samples) > 0.99) < 1e-4
