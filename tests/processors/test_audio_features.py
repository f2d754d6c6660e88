import numpy as np
import pytest
import torch
from media_files import sine
from processor_builders import AUDIO, tiny_audio
from transformers import WhisperFeatureExtractor

from multimood.processors.audio_features import audio_features


@pytest.mark.parametrize("seconds", [[0.001], [0.3], [1.0], [3.21, 0.5], [29.98], [29.99, 1.0], [30.0, 0.1]])
def test_whispers_silence_is_repeated_not_computed(seconds):
    rng = np.random.default_rng(0)
    waveforms = [sine(s) + rng.normal(0, 0.01, round(s * 16_000)).astype(np.float32) for s in seconds]
    extractor = WhisperFeatureExtractor()
    expected = extractor(waveforms, sampling_rate=16_000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(audio_features(extractor, waveforms, 480_000), expected, atol=1e-5, rtol=0)


def test_digital_silence():
    extractor = WhisperFeatureExtractor()
    silence = [np.zeros(5000, dtype=np.float32)]
    expected = extractor(silence, sampling_rate=16_000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(audio_features(extractor, silence, 480_000), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", AUDIO)
def test_a_batch_equals_its_singles(kind):
    extractor, _ = tiny_audio(kind)
    window = 16_240 if kind == "ast" else 16_000
    waveforms = [sine(0.7), sine(0.01, pitch=900), sine(1.0, pitch=200)]
    together = audio_features(extractor, waveforms, window)
    for waveform, features in zip(waveforms, together, strict=True):
        torch.testing.assert_close(audio_features(extractor, [waveform], window)[0], features, atol=1e-5, rtol=0)
    assert not torch.equal(together[0], together[2])


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_only_the_sound_is_normalised(kind):
    extractor, _ = tiny_audio(kind)
    (features,) = audio_features(extractor, [sine(0.5) + 0.2], 16_000)
    assert features[:8000].mean().abs() < 1e-4
    assert features[:8000].std() == pytest.approx(1, abs=1e-3)
    assert not features[8000:].any()
