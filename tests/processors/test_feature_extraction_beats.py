import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from multimood.processors.feature_extraction_beats import BeatsFeatureExtractor, BeatsFeatureStream
from multimood.processors.media import load_clip

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips"


def voice(seconds=1.0, pitch=140.0, seed=0):
    """A buzz with a moving pitch, a little noise, a constant offset and a silent end."""
    time = np.arange(round(16_000 * seconds)) / 16_000
    phase = 2 * np.pi * pitch * (time + 0.05 * np.sin(2 * np.pi * time))
    wave = sum(np.sin(k * phase) / k for k in range(1, 20)) * 0.2
    wave += 0.01 * np.random.default_rng(seed).standard_normal(len(time)) + 0.03
    wave[-len(time) // 5 :] = 0
    return wave.astype(np.float32)


def denormalised(features):
    return features * 2 * 6.55582 + 15.41663


def transformers_fbank(waveform):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the lowest filters hold no frequency, as in Kaldi
        filters = mel_filter_bank(
            num_frequency_bins=257,
            num_mel_filters=128,
            min_frequency=20,
            max_frequency=8000,
            sampling_rate=16_000,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    return spectrogram(
        waveform.astype(np.float64) * 2**15,
        window_function(400, "povey", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    ).T


@pytest.fixture(scope="module")
def extractor():
    torch.set_num_threads(1)
    return BeatsFeatureExtractor()


@pytest.mark.parametrize("seconds", [0.01, 0.025, 0.03, 1.0, 3.337, 29.99, 30.0])
def test_equals_kaldi_as_in_transformers(extractor, seconds):
    wave = voice(seconds)
    features = extractor(wave, return_tensors="pt")["input_features"]
    assert features.shape == (1, 2998, 128)
    assert features.dtype == torch.float32
    expected = transformers_fbank(np.pad(wave, (0, 480_000 - len(wave))))
    # float32 against float64: energies near the floor, of rounding errors, differ; the floor itself does not.
    np.testing.assert_allclose(denormalised(features[0].numpy()), expected, atol=2e-2)
    audible = expected > 0
    np.testing.assert_allclose(denormalised(features[0].numpy())[audible], expected[audible], atol=1e-3)
    assert audible.any()


@pytest.mark.parametrize("seconds", [1.0, 3.337])
def test_equals_torchaudio(extractor, seconds):
    try:
        from torchaudio.compliance import kaldi
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchaudio cannot be imported: {error}")
    wave = torch.from_numpy(voice(seconds))
    expected = kaldi.fbank(
        wave[None] * 2**15, num_mel_bins=128, sample_frequency=16_000, frame_length=25, frame_shift=10
    )
    features = extractor(wave, max_length=len(wave), return_tensors="pt")["input_features"][0]
    torch.testing.assert_close(denormalised(features), expected, atol=1e-3, rtol=0)


def test_equals_what_torchaudio_gave(extractor):
    """`torchaudio_fbank.npz` holds half a second of `voice` and what `torchaudio.compliance.kaldi.fbank` of torchaudio
    2.11.0 made of it, with the settings of the test above: torchaudio cannot be imported beside a CPU build of PyTorch."""
    with np.load(Path(__file__).parent / "torchaudio_fbank.npz") as known:
        wave, expected = known["waveform"], known["fbank"]
    features = extractor(wave, max_length=len(wave), return_tensors="pt")["input_features"][0]
    assert features.shape == expected.shape == (48, 128)
    np.testing.assert_allclose(denormalised(features.numpy()), expected, atol=1e-3)


def test_equals_transformers_on_real_speech(extractor):
    clips = sorted(CLIPS.glob("*.mp4"))
    if not clips:
        pytest.skip(f"no clips at {CLIPS}")
    wave = np.asarray(load_clip(clips[0]).waveform)
    features = extractor(wave, max_length=len(wave), return_tensors="pt")["input_features"][0]
    np.testing.assert_allclose(denormalised(features.numpy()), transformers_fbank(wave), atol=1e-2)


def test_batched_equals_single(extractor):
    waves = [voice(1.0), voice(0.3, pitch=220), voice(2.7, pitch=90)]
    batched = extractor(waves, return_tensors="pt")["input_features"]
    for row, wave in zip(batched, waves, strict=True):
        torch.testing.assert_close(row, extractor(wave, return_tensors="pt")["input_features"][0])


@pytest.mark.parametrize("size", [37, 160, 400, 5000, 500_000])
def test_streamed_equals_whole(extractor, size):
    wave = voice(31.3)[: 6000 if size < 400 else None]  # longer than the window
    stream = BeatsFeatureStream(extractor)
    pieces = [stream.push(wave[start : start + size]) for start in range(0, len(wave), size)]
    whole = extractor(wave, max_length=len(wave))["input_features"][0]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


@pytest.mark.parametrize("form", [list, torch.from_numpy, np.float64])
def test_every_form_of_a_sound_is_the_same(extractor, form):
    wave = voice(0.2)
    expected = extractor(wave)["input_features"]
    assert isinstance(expected, np.ndarray)
    sound = [float(sample) for sample in wave] if form is list else form(wave)
    for given in (sound, [sound]):
        assert np.array_equal(extractor(given)["input_features"], expected)


def test_silence_is_the_floor(extractor):
    features = denormalised(extractor(np.zeros(8000, dtype=np.float32))["input_features"])
    np.testing.assert_allclose(features, np.log(np.finfo(np.float32).eps), rtol=1e-5)
    assert np.array_equal(
        extractor(voice(1.0))["input_features"][0, 100:], extractor(voice(0.5))["input_features"][0, 100:]
    )


def test_window_is_in_seconds_or_samples():
    extractor = BeatsFeatureExtractor(chunk_length=2.5)
    assert extractor.n_samples == 40_000
    wave = voice(3.0)
    with pytest.raises(ValueError, match=r"Sound 0 has 3\.00 s, the window 2\.50 s"):
        extractor(wave)
    cut = extractor(wave, truncation=True)["input_features"]
    assert cut.shape == (1, 248, 128)
    assert np.array_equal(cut, extractor(wave[:40_000])["input_features"])
    assert extractor(wave, max_length=48_000)["input_features"].shape == (1, 298, 128)


def test_saved_equals_loaded(tmp_path):
    extractor = BeatsFeatureExtractor(chunk_length=4.0, mean=1.0, std=2.0)
    extractor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["feature_extractor_type"] == "BeatsFeatureExtractor"
    assert not {"mel_filters", "window"} & set(saved)
    for loaded in (BeatsFeatureExtractor.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert isinstance(loaded, BeatsFeatureExtractor)
        wave = voice(1.0)
        assert np.array_equal(loaded(wave)["input_features"], extractor(wave)["input_features"])
        assert loaded.to_dict() == extractor.to_dict()


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.full(800, np.nan, dtype=np.float32), "Sound 0 has 800 samples that are NaN or infinite"),
        ([voice(0.1), np.full(800, np.inf)], "Sound 1 has 800"),
        (np.zeros(0, dtype=np.float32), r"Sound 0 is of shape \(0,\)"),
        ([np.zeros((2, 800), dtype=np.float32)], r"of shape \(2, 800\): give mono"),
        (np.zeros(800, dtype=np.int16), "int16: scale it"),
    ],
    ids=["nan", "infinite", "empty", "stereo", "integers"],
)
def test_bad_sound_is_an_error(extractor, sound, message):
    with pytest.raises(ValueError, match=message):
        extractor(sound)


def test_bad_settings_are_errors(extractor):
    with pytest.raises(ValueError, match="44100 samples a second: resample it to 16000"):
        extractor(voice(0.1), sampling_rate=44_100)
    with pytest.raises(ValueError, match="padding='longest'"):
        extractor(voice(0.1), padding="longest")
    with pytest.raises(ValueError, match="max_length=100"):
        extractor(voice(0.1), max_length=100)
    with pytest.raises(ValueError, match="sampling_rate=8000"):
        BeatsFeatureExtractor(sampling_rate=8000)
    with pytest.raises(ValueError, match=r"chunk_length=0\.01"):
        BeatsFeatureExtractor(chunk_length=0.01)
