"""Waveforms → the audio tower's input, as its feature extractor makes it, padded to the full window."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from .clip_file import SAMPLING_RATE
from .lengths import FRAME_LENGTH, HOP_LENGTH

SILENT_FRAMES = 4  # so many after the sound, and the last spectrogram frame holds nothing of it


def audio_features(feature_extractor: Any, waveforms: list[np.ndarray], window: int) -> torch.Tensor:
    """Call a feature extractor; equal to its own output for the full window.

    Args:
        feature_extractor: of the audio tower.
        waveforms (`list[np.ndarray]`): 16 kHz mono sound, each `(samples,)`, float32, at most `window` long.
        window (`int`): samples that the tower takes.

    Returns:
        `torch.Tensor` of shape `(len(waveforms), …)`: what the tower takes.
    """
    # Filter banks need one frame at least.
    waveforms = [np.pad(waveform, (0, max(0, FRAME_LENGTH - len(waveform)))) for waveform in waveforms]
    options: dict[str, Any] = {}
    length = window
    if isinstance(feature_extractor, Wav2Vec2FeatureExtractor):
        options["return_attention_mask"] = True  # tells its normalisation where the sound ends
    if is_whisper := isinstance(feature_extractor, WhisperFeatureExtractor) and not feature_extractor.dither:
        # The spectrogram of silence is the same in each frame: one is computed, and repeated to the end of the window.
        longest = max(len(waveform) for waveform in waveforms)
        length = min(window, (longest // HOP_LENGTH + SILENT_FRAMES) * HOP_LENGTH)
    features = feature_extractor(
        waveforms,
        sampling_rate=SAMPLING_RATE,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
        **options,
    )[feature_extractor.model_input_names[0]]
    if is_whisper:
        features = F.pad(
            features, (0, window // HOP_LENGTH - features.shape[-1]), mode="replicate"
        )  # (N, mel, frames)
    return features
