"""16 kHz sound → the normalised Kaldi filter bank features that BEATs reads."""

from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, BatchFeature
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

FRAME_LENGTH, HOP_LENGTH, FFT_LENGTH = 400, 160, 512  # samples: 25 ms, 10 ms, the next power of two
INT16_SCALE = 2.0**15  # Kaldi reads 16-bit integers
PREEMPHASIS = 0.97
LOWEST_FREQUENCY = 20.0  # Hz


class BeatsFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Log Mel filter bank features as Kaldi's `compute-fbank-feats` makes them, without dither: frames of 25 ms each 10 ms
    that lie whole in the sound, constant offset removed, pre-emphasis 0.97, Povey window, power spectrum of 512 points,
    triangular Mel filters from 20 Hz to 8 kHz, natural logarithm; then normalised as BEATs does (Chen et al., 2022,
    arXiv:2212.09058).

    Args:
        feature_size (`int`, *optional*, defaults to 128): Mel bins.
        sampling_rate (`int`, *optional*, defaults to 16000): the only one whose frames these are.
        padding_value (`float`, *optional*, defaults to 0.0): sample that fills the window after the sound.
        chunk_length (`float`, *optional*, defaults to 30.0): the window in seconds.
        mean (`float`, *optional*, defaults to 15.41663): subtracted from the features.
        std (`float`, *optional*, defaults to 6.55582): the features are divided by twice this.

    Raises:
        ValueError: the sampling rate is not 16 kHz, or the window is shorter than a frame.
    """

    model_input_names = ["input_features"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        chunk_length: float = 30.0,
        mean: float = 15.41663,
        std: float = 6.55582,
        **kwargs,
    ):
        kwargs.setdefault("return_attention_mask", False)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        if sampling_rate != 16_000:
            raise ValueError(f"BEATs hears 16,000 samples a second, got {sampling_rate=}.")
        self.chunk_length = chunk_length
        self.mean = mean
        self.std = std
        if self.n_samples < FRAME_LENGTH:
            raise ValueError(f"{chunk_length=} s is shorter than a frame of {FRAME_LENGTH / sampling_rate} s.")
        # `to_dict` leaves out these two names.
        self.mel_filters = _mel_filters(feature_size, sampling_rate)  # (frequencies, bins)
        self.window = torch.hann_window(FRAME_LENGTH, periodic=False).pow(0.85)  # Kaldi's "povey"

    @property
    def n_samples(self) -> int:
        """Samples of the window."""
        return round(self.chunk_length * self.sampling_rate)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: str = "max_length",
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Features of one or several sounds, each padded to the full window.

        Args:
            raw_speech: mono sound `(samples,)` in −1 … 1, as array, tensor or list of floats; or a list of these.
            sampling_rate (`int`, *optional*): of the sound; taken as 16 kHz where absent.
            padding (`str`, *optional*): `"max_length"`, the only one: BEATs always reads the full window.
            max_length (`int`, *optional*): the window in samples, instead of `n_samples`.
            truncation (`bool`, *optional*, defaults to `False`): cut off what is longer than the window.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; arrays where absent.

        Returns:
            `BatchFeature` with `input_features`, float32 of shape `(num_audios, num_frames, feature_size)`; 2,998
            frames for 30 s.

        Raises:
            ValueError: the sound has another sampling rate, more than one channel, no samples, integer, NaN or
                infinite samples, or is longer than the window.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"The sound has {sampling_rate} samples a second: resample it to {self.sampling_rate}.")
        if padding != "max_length":
            raise ValueError(f"BEATs always reads a full window, so {padding=} is not possible: use 'max_length'.")
        window = self.n_samples if max_length is None else max_length
        if window < FRAME_LENGTH:
            raise ValueError(f"{max_length=} samples is shorter than a frame of {FRAME_LENGTH}.")
        sounds = raw_speech if _is_batch(raw_speech) else [raw_speech]
        waveforms = [_waveform(sound, index) for index, sound in enumerate(sounds)]
        for index, waveform in enumerate(waveforms):
            if len(waveform) > window and not truncation:
                raise ValueError(
                    f"Sound {index} has {len(waveform) / self.sampling_rate:.2f} s, the window "
                    f"{window / self.sampling_rate:.2f} s: cut it, or give truncation=True."
                )
        features = self._features(waveforms, window)
        return BatchFeature({"input_features": features.numpy()}, tensor_type=return_tensors)

    def _features(self, waveforms: list[torch.Tensor], window: int) -> torch.Tensor:
        """Normalised features `(N, frames, bins)` of waveforms `(samples,)`."""
        return (self._fbank(waveforms, window) - self.mean) / (2 * self.std)

    def _fbank(self, waveforms: list[torch.Tensor], window: int) -> torch.Tensor:
        """Log energies `(N, 1 + (window − 400) // 160, bins)` of waveforms `(samples,)`."""
        # Frames after the end of all sounds are constant, and with their offset removed they have no energy.
        longest = max(map(len, waveforms))
        heard = min(window, (longest - 1) // HOP_LENGTH * HOP_LENGTH + FRAME_LENGTH)
        padded = torch.full((len(waveforms), heard), self.padding_value)
        for row, waveform in zip(padded, waveforms, strict=True):
            row[: len(waveform)] = waveform[:heard]

        frames = (padded * INT16_SCALE).unfold(-1, FRAME_LENGTH, HOP_LENGTH)  # (N, frames, 400)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - PREEMPHASIS * previous) * self.window
        power = torch.fft.rfft(frames, n=FFT_LENGTH).abs().square()  # (N, frames, 257)
        energies = power @ self.mel_filters
        silent = (window - FRAME_LENGTH) // HOP_LENGTH + 1 - energies.shape[1]
        energies = torch.nn.functional.pad(energies, (0, 0, 0, silent))
        return energies.clamp(min=torch.finfo(torch.float32).eps).log()


class BeatsFeatureStream:
    """
    Features of a sound that comes piece by piece and may last for ever. Joined, they equal those of the whole sound.

    Args:
        feature_extractor (`BeatsFeatureExtractor`): whose features they are.
    """

    def __init__(self, feature_extractor: BeatsFeatureExtractor):
        self._feature_extractor = feature_extractor
        self._rest = torch.zeros(0)  # samples that later frames still need

    def push(self, samples: Any) -> np.ndarray:
        """The frames that these samples complete.

        Args:
            samples: mono sound `(samples,)` in −1 … 1, as array, tensor or list of floats.

        Returns:
            `np.ndarray` of shape `(num_frames, feature_size)`, float32; there may be no frame yet.

        Raises:
            ValueError: as `BeatsFeatureExtractor`.
        """
        self._rest = torch.cat([self._rest, _waveform(samples, 0)])
        num_frames = max(0, (len(self._rest) - FRAME_LENGTH) // HOP_LENGTH + 1)
        if not num_frames:
            return np.zeros((0, self._feature_extractor.feature_size), dtype=np.float32)
        heard = (num_frames - 1) * HOP_LENGTH + FRAME_LENGTH
        features = self._feature_extractor._features([self._rest[:heard]], heard)[0]
        self._rest = self._rest[num_frames * HOP_LENGTH :].clone()
        return features.numpy()


def _mel_filters(bins: int, sampling_rate: int) -> torch.Tensor:
    """Triangles `(257, bins)` over the frequencies of the spectrum, equally wide on the Mel scale and each half over the
    next. The lowest are narrower than the spectrum's resolution, so that some hold no frequency: Kaldi's too."""

    def mel(frequencies: torch.Tensor) -> torch.Tensor:
        return 1127 * torch.log1p(frequencies / 700)

    spectrum = mel(torch.linspace(0, sampling_rate / 2, FFT_LENGTH // 2 + 1, dtype=torch.float64))[:, None]
    low, high = mel(torch.tensor([LOWEST_FREQUENCY, sampling_rate / 2], dtype=torch.float64))
    width = (high - low) / (bins + 1)
    centres = low + width * torch.arange(1, bins + 1)
    return (1 - (spectrum - centres).abs() / width).clamp(min=0).float()


def _is_batch(raw_speech: Any) -> bool:
    if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
        return raw_speech.ndim > 1
    return len(raw_speech) > 0 and not isinstance(raw_speech[0], (int, float))


def _waveform(sound: Any, index: int) -> torch.Tensor:
    """One checked sound as float32 `(samples,)`."""
    waveform = torch.as_tensor(np.asarray(sound))
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"Sound {index} is of shape {tuple(waveform.shape)}: give mono of shape (samples,).")
    if not waveform.is_floating_point():
        raise ValueError(f"Sound {index} is {waveform.dtype}: scale it to floats in −1 … 1.")
    if not waveform.isfinite().all():
        raise ValueError(f"Sound {index} has {(~waveform.isfinite()).sum()} samples that are NaN or infinite.")
    return waveform.float()


# A saved feature extractor finds its class by name among the registered ones. The key would be the configuration's class,
# but the processors know no model; it is asked for only where no feature extractor was saved.
AutoFeatureExtractor.register("beats", BeatsFeatureExtractor, exist_ok=True)

__all__ = ["BeatsFeatureExtractor", "BeatsFeatureStream"]
