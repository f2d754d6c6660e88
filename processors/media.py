"""One PyAV pass from a clip to its frames and its sound; one reading of arrays; one kind of error for all of it."""

import os
import tempfile
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import urlopen

import av
import numpy as np
import torch
from av.stream import Disposition

from .lengths import frames_for_fps

SAMPLING_RATE = 16_000
MAX_DOWNLOAD_BYTES = 1 << 30
# Demuxers that read nothing but the file they are given: a playlist that poses as a clip must not open other files.
FORMATS = "aac,ac3,aiff,amr,asf,avi,caf,flac,flv,gif,h264,hevc,m4v,matroska,mov,mp3,mpeg,mpegts,mpegvideo,ogg,w64,wav"
PREROLL = 1  # seconds of sound decoded ahead of the part that is kept, so that the decoder has settled


class MediaError(ValueError):
    """A clip, frames or a waveform that cannot be used; says which, why, and what to do."""


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
) -> Clip:
    """Read a source and keep what is asked for, in memory that does not grow with its length.

    The frames are those shown at the midpoints of `num_frames` equal segments of the timeline, by the clip's own time
    stamps, so that a variable frame rate is sampled right. Several clips are one timeline, one after the other.

    Args:
        source: a path, URL, `bytes` or binary file object, or a list of these (one timeline); or frames of shape
            `(num_frames, height, width, 3)`, uint8; or a 16 kHz mono waveform of shape `(samples,)`, float.
        num_frames (`int`): how many frames to sample; where `fps` is given, at most.
        fps (`float`, *optional*): frames to sample a second, rounded up to a multiple of the connector's temporal
            stride. Frames given as an array have no clock: all are taken, up to `num_frames`.
        video (`bool`): whether the picture is wanted.
        audio (`bool`): whether the sound is wanted.
        max_audio_seconds (`float`): of longer sound the end is kept, with a warning.
        threads (`int`): of the video decoder; 0 for as many as it likes.

    Returns:
        [`Clip`]: without frames where there is no picture, without waveform where there is no sound.

    Raises:
        MediaError: the source cannot be read, is damaged or cut off, or holds neither picture nor sound; the array has
            the wrong shape, type or values. A clip of which only a part can be read is refused as well.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _from_array(source, num_frames, fps, max_audio_seconds)
    parts = source if isinstance(source, (list, tuple)) else [source]
    if not parts:
        raise MediaError("an empty list of clips; leave the block out instead")
    with ExitStack() as stack:
        files = [_File(part, stack, video, audio, threads) for part in parts]
        length = sum((file.duration for file in files), Fraction(0))
        sound_length = sum((file.sound_duration for file in files), Fraction(0))
        count = num_frames if fps is None else frames_for_fps(float(length), fps, num_frames)
        times = [length * (2 * i + 1) / (2 * count) for i in range(count)] if length else []
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


def describe(source: Any) -> str:
    """A short name of a source for messages."""
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if isinstance(source, (list, tuple)):
        return f"[{', '.join(describe(part) for part in source[:3])}{', …' if len(source) > 3 else ''}]"
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return f"<{type(source).__name__} of shape {tuple(source.shape)}, {source.dtype}>"
    return f"<{getattr(source, 'name', type(source).__name__)}>"


class _File:
    """One open container: its time stamps, read without decoding, and the pass that decodes what is wanted."""

    def __init__(self, source: Any, stack: ExitStack, video: bool, audio: bool, threads: int):
        self.name = describe(source)
        self.container = _open_container(source, stack, self.name)
        streams = self.container.streams
        pictures = [stream for stream in streams.video if not stream.disposition & Disposition.attached_pic]
        if not pictures and not streams.audio:
            raise MediaError(f"{self.name} has neither picture nor sound; give a video or audio file")
        self.video = pictures[0] if pictures and video else None
        self.audio = streams.audio[0] if streams.audio and audio else None
        self.streams = [stream for stream in (self.video, self.audio) if stream is not None]
        self._video_index = self.video.index if self.video is not None else None
        self.packets: list[tuple[int, bool]] = []  # (pts, is keyframe) of each video packet, in decoding order
        self.pts: list[int] = []  # of each frame that is shown, ascending
        self.duration = self.sound_duration = Fraction(0)  # seconds
        if self.video is not None:
            self.video.codec_context.thread_type = "AUTO"
            self.video.codec_context.thread_count = threads
        if self.streams:
            with _media_errors(self.name):
                self._scan()

    def _scan(self) -> None:
        """Read all packets once: when each frame is shown, which are keyframes, and whether the file is whole."""
        seen = dict.fromkeys((stream.index for stream in self.container.streams), 0)
        last_picture, sound_start, sound_end, end = None, None, 0, Fraction(0)
        for packet in self.container.demux():
            if not packet.size:  # marks the end of a stream
                continue
            seen[packet.stream_index] += 1
            if packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream_index == self._video_index:
                self.packets.append((packet.pts, packet.is_keyframe))
                if packet.pts is not None and not packet.is_discard:
                    self.pts.append(packet.pts)
                    if last_picture is None or packet.pts > last_picture.pts:
                        last_picture = packet
            elif self.audio is not None and packet.stream_index == self.audio.index and packet.pts is not None:
                sound_start = packet.pts if sound_start is None else sound_start
                sound_end = packet.pts + (packet.duration or 0)
        # MP4 has an index of all packets; Matroska and WebM tell their duration, or nothing where streamed.
        promised_end = self.container.duration if "matroska" in self.container.format.name else None
        if promised_end is not None and Fraction(promised_end, av.time_base) > end + 1:
            raise MediaError(
                f"{self.name} is cut off: it should last {promised_end / av.time_base:.1f} s, and ends after "
                f"{float(end):.1f} s; copy or download it again"
            )
        for stream in self.streams:
            if (promised := len(stream.index_entries)) > seen[stream.index]:
                raise MediaError(
                    f"{self.name} is cut off: its index lists {promised} {stream.type} packets, of which "
                    f"{seen[stream.index]} are there; copy or download it again"
                )
            if not seen[stream.index]:
                raise MediaError(f"{self.name} has an empty {stream.type} stream; record or export it again")
        if sound_start is not None:
            self.sound_duration = (sound_end - sound_start) * self.audio.time_base
        if self.video is not None:
            self._set_clock(last_picture.duration if last_picture else None)

    def _set_clock(self, last_duration: int | None) -> None:
        """Sort the frames' time stamps and find the duration of the picture."""
        if any(pts is None for pts, _ in self.packets):  # e.g. field-coded H.264: only the decoder knows the times
            self.packets = []
            self.container.seek(0)
            self.pts = [frame.pts for frame in self.container.decode(self.video)]
            self.video.codec_context.flush_buffers()
        if not self.pts or None in self.pts:
            raise MediaError(f"{self.name} shows no frames at known times; convert it to mp4")
        self.pts.sort()
        span = self.pts[-1] - self.pts[0]
        if not last_duration:
            one_frame = 1 / ((self.video.average_rate or 25) * self.video.time_base)
            last_duration = Fraction(span, len(self.pts) - 1) if span else one_frame
        self.duration = (span + last_duration) * self.video.time_base

    def decode(self, times: list[Fraction], sound_from: Fraction) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The frames shown at `times`, and the pieces of the sound from about `sound_from` on; seconds from the start."""
        if not self.streams:
            return [], []
        order = [self.pts[bisect_right(self.pts, self.pts[0] + t / self.video.time_base) - 1] for t in times]
        with _media_errors(self.name):
            pictures, sound = self._decode(set(order), sound_from - PREROLL)
        return [pictures[pts] for pts in order], sound

    def _decode(self, wanted: set[int], sound_from: Fraction) -> tuple[dict[int, np.ndarray], list[np.ndarray]]:
        found: dict[int, np.ndarray] = {}
        sound: list[np.ndarray] = []
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLING_RATE)
        feeds, position, sound_start = self._plan(wanted), -1, None
        self.container.seek(0)
        for packet in self.container.demux(self.streams):
            context = packet.stream.codec_context
            if packet.stream_index == self._video_index:
                position += 1
                if self.packets and packet.size and packet.pts != self.packets[position][0]:
                    raise MediaError(f"{self.name} cannot be rewound; convert it to mp4")
                if len(found) == len(wanted) or (self.packets and position not in feeds):
                    continue
                # A frame that nobody wants and that no other frame refers to need not be decoded.
                context.skip_frame = "NONREF" if self.packets and packet.pts not in wanted else "DEFAULT"
                self._keep(context.decode(packet), wanted, found)
                if feeds.get(position):
                    self._keep(context.decode(None), wanted, found)
                    context.flush_buffers()
            elif packet.pts is None or not packet.size:
                sound += _resample(context.decode(packet), resampler)
            else:
                sound_start = packet.pts if sound_start is None else sound_start
                if (packet.pts + (packet.duration or 0) - sound_start) * self.audio.time_base >= sound_from:
                    sound += _resample(context.decode(packet), resampler)
        if missing := wanted - found.keys():
            seconds = float((min(missing) - self.pts[0]) * self.video.time_base)
            raise MediaError(f"{self.name}: no frame at {seconds:.3f} s; it is damaged: copy or export it again")
        return found, sound + list(_resample([None], resampler) if self.audio is not None else ())

    def _plan(self, wanted: set[int]) -> dict[int, bool]:
        """Positions of the packets to decode, from a keyframe to each wanted frame; `True` where a stretch ends."""
        feeds: dict[int, bool] = {}
        keys = [0]
        for position, (pts, is_key) in enumerate(self.packets):
            if is_key and position:
                keys.append(position)
            if pts in wanted:
                # A frame shown before its keyframe (open group of pictures) refers to the group before as well.
                leading = pts < self.packets[keys[-1]][0]
                start = keys[-2] if leading and len(keys) > 1 else keys[-1]
                feeds.update(dict.fromkeys(range(start, position + 1), False))
        return {position: position + 1 not in feeds for position in feeds}

    def _keep(self, frames: Iterable[av.VideoFrame], wanted: set[int], found: dict[int, np.ndarray]) -> None:
        for frame in frames:
            if frame.pts in wanted:
                if frame.is_corrupt:
                    raise MediaError(f"{self.name} is damaged at {frame.time:.3f} s; copy or export it again")
                upright = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
                found[frame.pts] = np.ascontiguousarray(upright)


@contextmanager
def _media_errors(name: str) -> Iterator[None]:
    """Turn the library's errors into `MediaError`."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise MediaError(
            f"{name} cannot be read as a clip ({error.strerror}); it is damaged, cut off or no media file: export or "
            "download it again"
        ) from error


def _open_container(source: Any, stack: ExitStack, name: str) -> av.container.InputContainer:
    file = _open_source(source, stack, name)
    if not file.seek(0, os.SEEK_END):
        raise MediaError(f"{name} is empty (0 bytes); record or download it again")
    file.seek(0)
    with _media_errors(name):
        return stack.enter_context(av.open(file, options={"format_whitelist": FORMATS}))


def _open_source(source: Any, stack: ExitStack, name: str) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesIO(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        file = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=64 << 20))  # noqa: SIM115 (the stack closes it)
        _download(source, file)
        return file
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_file():
            raise MediaError(f"there is no file {name}; check the path")
        return stack.enter_context(Path(source).open("rb"))
    if not (hasattr(source, "read") and hasattr(source, "seek")):
        raise MediaError(
            f"{name} is no clip; give a path, URL, bytes or binary file, frames (frames, height, width, 3) or a waveform "
            "(samples,) as an array"
        )
    return source


def _download(url: str, file: BinaryIO) -> None:
    """Fetch a whole clip, as it is read twice."""
    try:
        with urlopen(url, timeout=30) as response:
            while block := response.read(1 << 20):
                file.write(block)
                if file.tell() > MAX_DOWNLOAD_BYTES:
                    raise MediaError(f"{url} is larger than {MAX_DOWNLOAD_BYTES >> 20} MiB; download it and cut it")
    except OSError as error:
        raise MediaError(
            f"cannot download {url} ({error}); check the address, or download it by other means"
        ) from error


def _resample(frames: Iterable, resampler: av.AudioResampler) -> Iterator[np.ndarray]:
    for frame in frames:
        for piece in resampler.resample(frame):
            yield piece.to_ndarray().reshape(-1)  # (1, samples) → (samples,)


def _from_array(
    array: np.ndarray | torch.Tensor, num_frames: int, fps: float | None, max_audio_seconds: float
) -> Clip:
    name = describe(array)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # NumPy has no bfloat16
    if array.ndim == 1:
        seconds = len(array) / SAMPLING_RATE
        waveform = _keep_end(_check_waveform(array, name), seconds, max_audio_seconds, name)
        return Clip(waveform=waveform, duration=seconds)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape or array.dtype != np.uint8:
        raise MediaError(
            f"{name} is neither frames (frames, height, width, 3) of uint8 RGB nor a mono waveform (samples,) of float; "
            "reorder the axes or convert the values"
        )
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
        f"{name} has {seconds:.1f} s of sound, of which the last {most:g} s are heard; the first {seconds - most:.1f} s "
        "are left out",
        stacklevel=3,
    )
    return waveform[-kept:]
