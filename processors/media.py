"""One PyAV pass from a clip to its frames and its sound; one reading of arrays; one kind of error for all of it."""

import os
import tempfile
import warnings
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import av
import numpy as np
import torch
from av.stream import Disposition

from .lengths import frames_for_fps

SAMPLING_RATE = 16_000
MAX_DOWNLOAD_BYTES = 1 << 30
# Demuxers that read nothing but the file they are given: a playlist posing as a clip must not open other files.
FORMATS = "aac,ac3,aiff,amr,asf,avi,caf,flac,flv,gif,matroska,mov,mp3,mpeg,mpegts,mpegvideo,ogg,wav,h264,hevc,m4v,w64"
PREROLL = 1  # seconds of sound decoded ahead of the part that is kept, so that the decoder has settled


class MediaError(ValueError):
    """A clip, frames or a waveform that cannot be used; says which, and what to do."""


@dataclass
class Clip:
    """What a source holds.

    Attributes:
        frames (`list[np.ndarray]`): sampled frames, each (height, width, 3) uint8 RGB, upright; empty without picture.
        timestamps (`list[float]`): where in the timeline each frame was sampled, in seconds; empty for arrays.
        waveform (`np.ndarray` of shape `(samples,)`): 16 kHz mono float32; `None` without sound.
        duration (`float`): of the picture in seconds, else of the sound; 0 for frames without a clock.
    """

    frames: list[np.ndarray] = field(default_factory=list)
    timestamps: list[float] = field(default_factory=list)
    waveform: np.ndarray | None = None
    duration: float = 0.0


def describe(source: Any) -> str:
    """A short name of a source for messages."""
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if isinstance(source, (list, tuple)):
        return "[" + ", ".join(describe(part) for part in source) + "]"
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return f"<{type(source).__name__} of shape {tuple(source.shape)}, {source.dtype}>"
    return f"<{getattr(source, 'name', type(source).__name__)}>"


def load_clip(
    source: Any,
    num_frames: int = 8,
    fps: float | None = None,
    video: bool = True,
    audio: bool = True,
    max_audio_seconds: float = 30.0,
    threads: int = 0,
) -> Clip:
    """Read a source once and keep what is asked for.

    Frames are those shown at the midpoints of `n` equal segments of the timeline, by the clip's own time stamps, so
    that a variable frame rate is sampled right. Several clips are one timeline, one after the other.

    Args:
        source: a path, URL, `bytes` or binary file object, or a list of these (one timeline); frames of shape
            `(num_frames, height, width, 3)`, uint8; or a 16 kHz mono waveform of shape `(samples,)`, float.
        num_frames (`int`): n; where `fps` is given, the most frames to take.
        fps (`float`, *optional*): frames a second; n is then a multiple of the connector's temporal stride. Frames
            given as an array have no clock and are taken as they are.
        video, audio (`bool`): whether picture and sound are wanted.
        max_audio_seconds (`float`): of longer sound the end is kept, with a warning.
        threads (`int`): of the decoder; 0 for as many as it likes.

    Returns:
        [`Clip`]: without frames where there is no picture, without waveform where there is no sound.

    Raises:
        MediaError: the source cannot be read, is damaged or cut off, holds neither picture nor sound, or the array has
            the wrong shape, type or values.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _from_array(source, num_frames, fps, max_audio_seconds)
    parts = list(source) if isinstance(source, (list, tuple)) else [source]
    if not parts:
        raise MediaError("an empty list of clips; leave the block out instead")
    with ExitStack() as stack:
        files = [_File(part, stack, video, audio, threads) for part in parts]
        if not any(file.packets or file.audio for file in files if file.has_media):
            raise MediaError(f"{describe(source)} has neither picture nor sound; give a video or audio file")
        length = sum((file.duration for file in files), Fraction(0))
        count = num_frames if fps is None else frames_for_fps(float(length), fps, num_frames)
        times = [length * (2 * i + 1) / (2 * count) for i in range(count)] if video and length else []
        sound_length = sum((file.sound_duration for file in files), Fraction(0))
        cut = max(sound_length - Fraction(max_audio_seconds), Fraction(0))
        if audio:
            _warn_of_cut(source, float(sound_length), max_audio_seconds)
        clip = Clip(timestamps=[float(t) for t in times], duration=float(length or sound_length))
        waveforms, start, sound_start = [], Fraction(0), Fraction(0)
        for file in files:
            local = [t - start for t in times if start <= t < start + file.duration]
            frames, waveform = file.decode(local, cut - sound_start)
            clip.frames += frames
            waveforms += [waveform] if waveform is not None else []
            start, sound_start = start + file.duration, sound_start + file.sound_duration
    if waveforms:
        waveform = np.concatenate(waveforms)[-round(max_audio_seconds * SAMPLING_RATE) :]
        clip.waveform = _check_waveform(waveform, describe(source))
    return clip


class _File:
    """One open container: its time stamps, read without decoding, and the pass that decodes what is wanted."""

    def __init__(self, source: Any, stack: ExitStack, video: bool, audio: bool, threads: int):
        self.name = describe(source)
        self.container = _open(source, stack, self.name)
        pictures = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        self.video = pictures[0] if pictures and video else None
        self.audio = self.container.streams.audio[0] if self.container.streams.audio and audio else None
        self.has_media = bool(pictures or self.container.streams.audio)
        self.packets: list[tuple[int, bool]] = []  # (pts, keyframe) of each packet, in decoding order
        self.pts: list[int] = []  # of each frame that is shown, ascending
        self.duration = self.sound_duration = Fraction(0)
        if not self.has_media:
            raise MediaError(f"{self.name} has neither a video nor an audio stream; give a video or audio file")
        if self.video is not None:
            self.video.codec_context.thread_type = "AUTO"
            self.video.codec_context.thread_count = threads
        with self._errors():
            self._scan()

    @property
    def _streams(self) -> list:
        return [stream for stream in (self.video, self.audio) if stream is not None]

    def _errors(self) -> "_Errors":
        return _Errors(self.name)

    def _scan(self) -> None:
        if not self._streams:
            return
        seen = dict.fromkeys((stream.index for stream in self._streams), 0)
        last_picture, sound = None, []
        for packet in self.container.demux(self._streams):
            if packet.size == 0:  # the mark of the end of a stream
                continue
            seen[packet.stream_index] += 1
            if packet.stream is self.video:
                self.packets.append((packet.pts, packet.is_keyframe))
                if packet.pts is not None and not packet.is_discard:
                    self.pts.append(packet.pts)
                    if last_picture is None or packet.pts >= last_picture.pts:
                        last_picture = packet
            elif packet.pts is not None:
                sound = [sound[0] if sound else packet.pts, packet.pts + (packet.duration or 0)]
        for stream in self._streams:
            if (promised := len(stream.index_entries)) > seen[stream.index]:
                raise MediaError(
                    f"{self.name} is cut off: its index lists {promised} {stream.type} packets, {seen[stream.index]} are "
                    "there; copy or download it again"
                )
            if not seen[stream.index]:
                raise MediaError(f"{self.name} has an empty {stream.type} stream; record or export it again")
        if self.video is not None:
            self._set_times(last_picture)
        if sound:
            self.sound_duration = (sound[1] - sound[0]) * self.audio.time_base

    def _set_times(self, last_picture: Any) -> None:
        if any(pts is None for pts, _ in self.packets):  # e.g. field-coded H.264 or AVI: ask the decoder instead
            self.packets = []
            self.container.seek(0)
            self.pts = [frame.pts for frame in self.container.decode(self.video)]
            self.video.codec_context.flush_buffers()
            if not self.pts or None in self.pts:
                raise MediaError(f"{self.name} has no time stamps; convert it to mp4")
            last_duration = None
        else:
            last_duration = last_picture.duration if last_picture else None
        if not self.pts:
            raise MediaError(f"{self.name} shows no frame; record or export it again")
        self.pts.sort()
        span = self.pts[-1] - self.pts[0]
        if not last_duration:
            rate = self.video.average_rate or 25
            last_duration = Fraction(span, len(self.pts) - 1) if span else 1 / (rate * self.video.time_base)
        self.duration = (span + last_duration) * self.video.time_base

    def decode(self, times: list[Fraction], sound_from: Fraction) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Frames shown at `times` and the sound from `sound_from` on, both in seconds from the start."""
        with self._errors():
            return self._decode(times, sound_from)

    def _decode(self, times: list[Fraction], sound_from: Fraction) -> tuple[list[np.ndarray], np.ndarray | None]:
        order = [self.pts[bisect_right(self.pts, self.pts[0] + t / self.video.time_base) - 1] for t in times]
        wanted, found = set(order), {}
        feeds = self._feeds(wanted)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLING_RATE)
        samples: list[np.ndarray] = []
        if not self._streams:
            return [], None
        skip = None
        position, sound_start = -1, None
        self.container.seek(0)
        for packet in self.container.demux(self._streams):
            if packet.stream is self.video:
                position += 1
                if packet.size == 0 or len(found) == len(wanted):
                    continue
                if self.packets and not (feed := feeds.get(position)):
                    continue
                context = self.video.codec_context
                # A frame that nobody wants and no other frame refers to need not be decoded.
                unwanted = bool(self.packets) and packet.pts not in wanted
                context.skip_frame = "NONREF" if unwanted else "DEFAULT"
                self._keep(context.decode(packet), wanted, found)
                if self.packets and feed == "last":
                    self._keep(context.decode(None), wanted, found)
                    context.flush_buffers()
            elif packet.size == 0:
                samples += _resample(self.audio.codec_context.decode(None), resampler)
            else:
                sound_start = packet.pts if sound_start is None else sound_start
                end = ((packet.pts or 0) + (packet.duration or 0) - (sound_start or 0)) * self.audio.time_base
                if end >= sound_from - PREROLL:
                    samples += _resample(self.audio.codec_context.decode(packet), resampler)
        if self.video is not None and not self.packets and len(found) < len(wanted):
            self._keep(self.video.codec_context.decode(None), wanted, found)
        if missing := wanted - found.keys():
            first = float((min(missing) - self.pts[0]) * self.video.time_base)
            raise MediaError(
                f"{self.name}: the frame at {first:.3f} s cannot be decoded; copy or export the clip again"
            )
        if self.audio is not None:
            samples += _resample([None], resampler)
        return [found[pts] for pts in order], np.concatenate(samples) if samples else None

    def _feeds(self, wanted: set[int]) -> dict[int, str]:
        """Which packets the decoder must see, by position: from a keyframe to each wanted frame, and where it drains."""
        feeds: dict[int, str] = {}
        keys: list[int] = []
        for position, (pts, is_key) in enumerate(self.packets):
            if is_key:
                keys.append(position)
            if pts in wanted:
                # A frame shown before its keyframe (open group of pictures) refers to the group before as well.
                leading = keys and pts < self.packets[keys[-1]][0]
                start = keys[-1 - (leading and len(keys) > 1)] if keys else 0
                feeds.update(dict.fromkeys(range(start, position + 1), "feed"))
        for position in feeds:
            if position + 1 not in feeds:
                feeds[position] = "last"
        return feeds

    def _keep(self, frames: list, wanted: set[int], found: dict[int, np.ndarray]) -> None:
        for frame in frames:
            if frame.pts in wanted:
                if frame.is_corrupt:
                    raise MediaError(f"{self.name} is damaged at {frame.time:.3f} s; copy or export it again")
                upright = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
                found[frame.pts] = np.ascontiguousarray(upright)


class _Errors:
    """Turns the library's errors into `MediaError`."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, av.error.FFmpegError):
            raise MediaError(
                f"{self.name} cannot be decoded ({error.strerror or error}); it is damaged, cut off or no media file"
            ) from error


def _open(source: Any, stack: ExitStack, name: str) -> Any:
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        if str(source).startswith(("http://", "https://")):
            source = stack.enter_context(_download(str(source)))
        elif not Path(source).is_file():
            raise MediaError(f"there is no file {name}; check the path")
        else:
            source = stack.enter_context(open(source, "rb"))
    elif not (hasattr(source, "read") and hasattr(source, "seek")):
        raise MediaError(
            f"cannot read a clip from {name}; give a path, URL, bytes, binary file, frames (T, H, W, 3) or a waveform (n,)"
        )
    source.seek(0, os.SEEK_END)
    if source.tell() == 0:
        raise MediaError(f"{name} is empty (0 bytes); record or download it again")
    source.seek(0)
    with _Errors(name):
        return stack.enter_context(av.open(source, options={"format_whitelist": FORMATS}))


def _download(url: str) -> Any:
    """Fetch a clip into a temporary file, as PyAV must read it twice."""
    file = tempfile.SpooledTemporaryFile(max_size=64 << 20)  # noqa: SIM115 (the caller closes it)
    try:
        with urlopen(url, timeout=30) as response:
            while block := response.read(1 << 20):
                file.write(block)
                if file.tell() > MAX_DOWNLOAD_BYTES:
                    raise MediaError(f"{url} is larger than {MAX_DOWNLOAD_BYTES >> 20} MiB; download it and cut it")
    except OSError as error:
        file.close()
        raise MediaError(f"cannot download {url}: {error}") from error
    except MediaError:
        file.close()
        raise
    return file


def _resample(frames: list, resampler: av.AudioResampler) -> Iterator[np.ndarray]:
    for frame in frames:
        for part in resampler.resample(frame):
            yield part.to_ndarray().reshape(-1)


def _warn_of_cut(source: Any, seconds: float, most: float) -> None:
    if seconds > most:
        warnings.warn(
            f"{describe(source)} has {seconds:.1f} s of sound, of which the model hears the last {most:g} s; the first "
            f"{seconds - most:.1f} s are left out",
            stacklevel=3,
        )


def _from_array(array: Any, num_frames: int, fps: float | None, max_audio_seconds: float) -> Clip:
    name = describe(array)
    array = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array
    if array.ndim == 1:
        _warn_of_cut(array, len(array) / SAMPLING_RATE, max_audio_seconds)
        waveform = _check_waveform(array, name)[-round(max_audio_seconds * SAMPLING_RATE) :]
        return Clip(waveform=waveform, duration=len(array) / SAMPLING_RATE)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape or array.dtype != np.uint8:
        raise MediaError(
            f"{name} is neither frames (frames, height, width, 3) of uint8 RGB nor a mono waveform (samples,) of float; "
            "reorder the axes or convert the values"
        )
    count = num_frames if fps is None else frames_for_fps(len(array), 1.0, num_frames)
    return Clip(frames=[array[(2 * i + 1) * len(array) // (2 * count)] for i in range(count)])


def _check_waveform(waveform: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(waveform.dtype, np.floating):
        raise MediaError(f"{name}: a waveform must be float, in -1 … 1; divide 16-bit integers by 32768")
    if not len(waveform):
        raise MediaError(f"{name} has no samples; leave the audio block out instead")
    if not np.isfinite(waveform).all():
        bad = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise MediaError(f"{name}: sample {bad} is {waveform[bad]}; clean the recording first")
    return np.ascontiguousarray(waveform, dtype=np.float32)
