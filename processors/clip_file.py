"""One clip's container: its time stamps, read without decoding, and the pass that decodes what is wanted."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from .media_source import MediaError, describe, media_errors, open_container

SAMPLING_RATE = 16_000
PREROLL = 1  # seconds of sound decoded ahead of the part that is kept, so that the decoder has settled


class ClipFile:
    """One open container: its time stamps, read without decoding, and the pass that decodes what is wanted."""

    def __init__(self, source: Any, stack: ExitStack, video: bool, audio: bool, threads: int):
        self.name = describe(source)
        self.container = open_container(source, stack, self.name)
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
        self.counted = False  # whether `pts` are frame numbers, where the file has no usable time stamps
        self.duration = self.sound_duration = Fraction(0)  # seconds
        if self.video is not None:
            self.tick = self.video.time_base  # seconds
            self.video.codec_context.thread_type = "AUTO"
            self.video.codec_context.thread_count = threads
        if self.streams:
            with media_errors(self.name):
                self._scan()

    def _scan(self) -> None:
        """Read all packets once: when each frame is shown, which are keyframes, and whether the file is whole."""
        seen: Counter[int] = Counter()  # packets of each stream
        ends: Counter[int] = Counter()  # of each stream, in its own time base
        last_picture, sound_start = None, None
        for packet in self.container.demux():
            if not packet.size:  # marks the end of a stream
                continue
            seen[packet.stream_index] += 1
            if packet.pts is not None:
                ends[packet.stream_index] = max(ends[packet.stream_index], packet.pts + (packet.duration or 0))
            if packet.stream_index == self._video_index:
                self.packets.append((packet.pts, packet.is_keyframe))
                if not packet.is_discard:
                    self.pts.append(packet.pts)
                    if packet.pts is not None and (last_picture is None or packet.pts > last_picture.pts):
                        last_picture = packet
            elif self.audio is not None and packet.stream_index == self.audio.index and packet.pts is not None:
                sound_start = packet.pts if sound_start is None else sound_start
        # MP4 has an index of all packets; Matroska and WebM tell their duration, or nothing where streamed.
        promised_end = self.container.duration if "matroska" in self.container.format.name else None
        end = max((float(pts * self.container.streams[index].time_base) for index, pts in ends.items()), default=0.0)
        if promised_end is not None and promised_end / av.time_base > end + 1:
            raise MediaError(
                f"{self.name} is cut off: it should last {promised_end / av.time_base:.1f} s, and ends after "
                f"{end:.1f} s; copy or download it again"
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
            self.sound_duration = (ends[self.audio.index] - sound_start) * self.audio.time_base
        if self.video is not None:
            self._set_clock(last_picture.duration if last_picture else None)

    def _set_clock(self, last_duration: int | None) -> None:
        """Sort the frames' time stamps and find the duration of the picture."""
        reordered = self.video.codec_context.has_b_frames
        if None in self.pts or (reordered and self.container.format.name == "avi"):
            # Field-coded H.264 has packets without time stamps, AVI the times of decoding: count frames instead.
            self.counted = True
            self.tick = 1 / (self.video.average_rate or Fraction(25))
            self.container.seek(0)
            self.pts = list(range(sum(1 for _ in self.container.decode(self.video))))
            self.video.codec_context.flush_buffers()
            last_duration = 1
        if not self.pts:
            raise MediaError(f"{self.name} shows no frames; record or export it again")
        self.pts.sort()
        span = self.pts[-1] - self.pts[0]
        if not last_duration:
            one_frame = 1 / ((self.video.average_rate or 25) * self.tick)
            last_duration = Fraction(span, len(self.pts) - 1) if span else one_frame
        self.duration = (span + last_duration) * self.tick

    def decode(self, times: list[Fraction], sound_from: Fraction) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The frames shown at `times`, and the pieces of the sound from about `sound_from` on; seconds from the start."""
        if not self.streams:
            return [], []
        order = [self.pts[bisect_right(self.pts, self.pts[0] + t / self.tick) - 1] for t in times]
        with media_errors(self.name):
            pictures, sound = self._decode(set(order), sound_from - PREROLL)
        return [pictures[pts] for pts in order], sound

    def _decode(self, wanted: set[int], sound_from: Fraction) -> tuple[dict[int, np.ndarray], list[np.ndarray]]:
        found: dict[int, np.ndarray] = {}
        sound: list[np.ndarray] = []
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLING_RATE)
        feeds = {} if self.counted else self._plan(wanted)
        position, sound_start, self._shown = -1, None, 0
        skipped = sound_from // self.audio.time_base if self.audio is not None else 0  # in the sound's own time base
        self.container.seek(0)
        for packet in self.container.demux(self.streams):
            context = packet.stream.codec_context
            if packet.stream_index == self._video_index:
                position += 1
                if packet.size and packet.pts != self.packets[position][0]:
                    raise MediaError(f"{self.name} cannot be rewound; convert it to mp4")
                if len(found) == len(wanted) or not (self.counted or position in feeds):
                    continue
                # A frame that nobody wants and that no other frame refers to need not be decoded.
                context.skip_frame = "DEFAULT" if self.counted or packet.pts in wanted else "NONREF"
                self._keep(context.decode(packet), wanted, found)
                if feeds.get(position):
                    self._keep(context.decode(None), wanted, found)
                    context.flush_buffers()
            elif packet.pts is None or not packet.size:
                sound += _resample(context.decode(packet), resampler)
            else:
                sound_start = packet.pts if sound_start is None else sound_start
                if packet.pts + (packet.duration or 0) - sound_start >= skipped:
                    sound += _resample(context.decode(packet), resampler)
        if missing := wanted - found.keys():
            seconds = float((min(missing) - self.pts[0]) * self.tick)
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
        """Convert the wanted ones among decoded frames to upright RGB."""
        for frame in frames:
            pts = self._shown if self.counted else frame.pts
            self._shown += 1
            if pts in wanted:
                if frame.is_corrupt:
                    raise MediaError(f"{self.name} is damaged at {frame.time:.3f} s; copy or export it again")
                upright = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
                found[pts] = np.ascontiguousarray(upright)


def _resample(frames: Iterable, resampler: av.AudioResampler) -> Iterator[np.ndarray]:
    for frame in frames:
        for piece in resampler.resample(frame):
            yield piece.to_ndarray().reshape(-1)  # (1, samples) → (samples,)
