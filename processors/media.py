"""A clip's frames and sound from any source: files in one PyAV pass, arrays as they are."""

import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from .clip_file import SAMPLING_RATE, ClipFile
from .lengths import frames_for_fps
from .media_source import MediaError, describe
from .original_sampling import frame_indices


@dataclass
class Clip:
    """What a source holds.

    Attributes:
        frames (`list[np.ndarray]`): the sampled frames, each `(height, width, 3)` uint8 RGB, upright; empty where
            there is no picture.
        timestamps (`list[float]`): where on the timeline each frame was sampled, in seconds; empty for arrays.
        waveform (`np.ndarray` of shape `(samples,)`): 16 kHz mono float32; `None` where there is no sound.
        duration (`float`): seconds of the picture, or of the sound where there is none; 0 for frames without a clock.
    """

    frames: list[np.ndarray] = field(default_factory=list)
    timestamps: list[float] = field(default_factory=list)
    waveform: np.ndarray | None = None
    duration: float = 0.0


def load_clip(
    source: Any,
    num_frames: int = 8,
    fps: float | None = None,
    video: bool = True,
    audio: bool = True,
    max_audio_seconds: float = 30.0,
    threads: int = 0,
    by_count: bool = False,
) -> Clip:
    """Read a source and keep what is asked for, in memory that does not grow with its length.

    The frames are those shown at the midpoints of `num_frames` equal segments of the timeline, by the clip's own time
    stamps, so that a variable frame rate is sampled right. Several clips are one timeline, one after the other.

    Args:
        source: a path, URL, `bytes`, binary file object or clip of `datasets` (`{"bytes", "path"}`), or a list of these
            (one timeline); or frames of shape `(num_frames, height, width, 3)`, uint8, or a 16 kHz mono waveform of shape
            `(samples,)`, float, or a list of either.
        num_frames (`int`): how many frames to sample; where `fps` is given, at most.
        fps (`float`, *optional*): frames to sample a second, rounded up to a multiple of the connector's temporal
            stride. Frames given as an array have no clock: all are taken, up to `num_frames`.
        video (`bool`): whether the picture is wanted.
        audio (`bool`): whether the sound is wanted.
        max_audio_seconds (`float`): of longer sound the end is kept, with a warning.
        threads (`int`): of the video decoder; 0 for as many as it likes.
        by_count (`bool`): take the midpoints of equal segments of the frames' numbers instead of their times, as the code
            of the released weights does; without `fps`.

    Returns:
        [`Clip`]: without frames where there is no picture, without waveform where there is no sound.

    Raises:
        MediaError: the source cannot be read, is damaged or cut off, or holds neither picture nor sound; the array has
            the wrong shape, type or values. A clip of which only a part can be read is refused as well. That a file was
            cut off shows where its format promises a length: MP4, MOV, M4A, Matroska and WebM (of these, a second or
            more). An AVI, FLV, GIF, MP3, Ogg, WAV or MPEG stream that ends early may pass for a shorter one.
    """
    parts = source if isinstance(source, (list, tuple)) else [source]
    if not parts:
        raise MediaError("an empty list of clips; leave the block out instead")
    if any(isinstance(part, (np.ndarray, torch.Tensor)) for part in parts):
        return _from_array(_joined(parts), describe(source), num_frames, fps, max_audio_seconds, by_count)
    with ExitStack() as stack:
        files = [ClipFile(part, stack, video, audio, threads) for part in parts]
        length = sum((file.duration for file in files), Fraction(0))
        sound_length = sum((file.sound_duration for file in files), Fraction(0))
        count = num_frames if fps is None else frames_for_fps(float(length), fps, num_frames)
        times = [length * (2 * i + 1) / (2 * count) for i in range(count)] if length else []
        if by_count and length:
            times = _counted_times(files, num_frames)
        sound_from = sound_length - Fraction(max_audio_seconds)

        clip = Clip(timestamps=[float(time) for time in times], duration=float(length or sound_length))
        waveforms, start, sound_start = [], Fraction(0), Fraction(0)
        for file in files:
            end = start + file.duration
            frames, waveform = file.decode([t - start for t in times if start <= t < end], sound_from - sound_start)
            clip.frames += frames
            waveforms += waveform
            start, sound_start = end, sound_start + file.sound_duration
    if waveforms:
        clip.waveform = _check_waveform(np.concatenate(waveforms), describe(source))
        clip.waveform = _keep_end(clip.waveform, float(sound_length), max_audio_seconds, describe(source))
    return clip


def _counted_times(files: list[ClipFile], num_frames: int) -> list[Fraction]:
    """Where on the timeline the frames lie that `frame_indices` takes, in seconds."""
    times, start = [], Fraction(0)
    for file in files:
        times += [start + (pts - file.pts[0]) * file.tick for pts in file.pts]
        start += file.duration
    return [times[index] for index in frame_indices(len(times), num_frames)]


def _joined(parts: list) -> np.ndarray:
    """Arrays, one after the other."""
    arrays = [_to_numpy(part) for part in parts]
    if len(arrays) == 1:
        return arrays[0]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise MediaError(f"{describe(parts)} has arrays and files on one timeline; write the arrays to files first")
    if len({array.shape[1:] for array in arrays}) > 1 or not all(array.ndim for array in arrays):
        raise MediaError(
            f"{describe(parts)}: the arrays of one timeline must be of one kind and size; resize the frames"
        )
    return np.concatenate(arrays)


def _to_numpy(part: Any) -> Any:
    if not isinstance(part, torch.Tensor):
        return part
    part = part.detach().cpu()
    return (part.float() if part.is_floating_point() else part).numpy()  # NumPy has no bfloat16


def _from_array(
    array: np.ndarray, name: str, num_frames: int, fps: float | None, max_audio_seconds: float, by_count: bool
) -> Clip:
    if array.ndim == 1:
        seconds = len(array) / SAMPLING_RATE
        waveform = _keep_end(_check_waveform(array, name), seconds, max_audio_seconds, name)
        return Clip(waveform=waveform, duration=seconds)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape or array.dtype != np.uint8:
        raise MediaError(
            f"{name} is neither frames (frames, height, width, 3) of uint8 RGB nor a mono waveform (samples,) of float; "
            "reorder the axes or convert the values"
        )
    if by_count:
        return Clip(frames=[array[index] for index in frame_indices(len(array), num_frames)])
    count = num_frames if fps is None else frames_for_fps(len(array), 1.0, num_frames)
    return Clip(frames=[array[(2 * i + 1) * len(array) // (2 * count)] for i in range(count)])


def _check_waveform(waveform: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(waveform.dtype, np.floating):
        raise MediaError(f"{name}: a waveform must be float, from -1 to 1; divide 16-bit integers by 32768")
    if not len(waveform):
        raise MediaError(f"{name} has no samples; leave the audio block out instead")
    if not np.isfinite(waveform).all():
        bad = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise MediaError(f"{name}: sample {bad} is {waveform[bad]}; clean the recording first")
    return np.ascontiguousarray(waveform, dtype=np.float32)


def _keep_end(waveform: np.ndarray, seconds: float, most: float, name: str) -> np.ndarray:
    if len(waveform) <= (kept := round(most * SAMPLING_RATE)):
        return waveform
    warnings.warn(
        f"{name} has {seconds:.2f} s of sound, of which the last {most:g} s are heard; the first {seconds - most:.2f} s "
        "are left out",
        stacklevel=3,
    )
    return waveform[-kept:]


__all__ = ["SAMPLING_RATE", "Clip", "MediaError", "load_clip"]
