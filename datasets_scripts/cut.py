"""Cuts the clips of all utterances out of films: frame-accurate, in parallel, and safe to stop and start again.

A clip has the frames whose middle lies between the two time codes, with their own time stamps, and exactly that stretch
of the sound; so it begins and ends within half a frame of its time codes. Pictures are H.264 (MPEG-4 part 2 where PyAV
was built without libx264) of at most 384 lines with square pixels, sound is FLAC, 16 kHz mono: what the processor sees
and hears.
"""

import hashlib
import json
import math
import os
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from multiprocessing import connection, parent_process
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from tqdm import tqdm

from multimood.processors.media_source import MediaError, media_errors, open_container

from .corpus_files import read_table, whole_number
from .report import CorpusError

SUFFIXES = frozenset(".avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv".split())
SAMPLE_RATE = 16_000  # Hz
LINES = 384  # a higher picture is scaled down to it: the paper's vision tower takes 384 x 384
TICKS = 90_000  # a second, of a clip's time stamps
SILENCE = 0.02  # seconds of sound that may lack before a clip counts as damaged
PREROLL = 2.0  # seconds decoded ahead of a run of clips, so that the sound's decoder has settled
RUN = 64  # clips that one task cuts in one pass

Episode = tuple[int, int]  # season, number

_NAMES = (
    re.compile(r"(?<![a-z])s(?:eason)?[ ._-]*(\d{1,2})[ ._-]*(?:e|ep|episode|x)[ ._-]*(\d{1,3})(?!\d)"),
    re.compile(r"(?<!\d)(\d{1,2})x(\d{1,3})(?!\d)"),
)
_SEASON = re.compile(r"^(?:.*[ ._-])?s(?:eason|eries)?[ ._-]*(\d{1,2})$")  # of a folder
_NUMBER = re.compile(r"(?<![a-z])(?:e|ep|episode)[ ._-]*(\d{1,3})(?!\d)|^(\d{1,3})(?!\d)")  # in such a folder
_NOISE = re.compile(r"\d{3,4}[pi]|[xh][ .]?26[45]|\d+ ?bit|(?<!\d)(?:19|20)\d\d(?!\d)")
_COMPACT = re.compile(r"(?<!\d)(\d)(\d\d)(?!\d)")  # 102 is season 1, episode 2
_ANOTHER = re.compile(r"^[ ._-]*(?:e|ep|-)[ ._-]*\d{1,3}(?!\d)")  # S01E01E02, S01E01-02


@dataclass(frozen=True)
class Span:
    """One clip to cut: its file's name and its place in a film, in seconds."""

    name: str
    season: int
    episode: int
    start: float
    end: float


def episode_of(path: Path) -> Episode | None:
    """Season and number that a film's name tells, relative to the folder of all films; `None` where it tells none.

    Read are `S01E02`, `s1 ep 2`, `Season 1 Episode 2`, `1x02`, `102`, and in a folder `Season 1` also `Episode 2`, `E02`
    and `02`. A file of several episodes (`S01E01E02`) is none.
    """
    *folders, stem = (part.lower() for part in path.with_suffix("").parts)
    for pattern in _NAMES:
        if match := pattern.search(stem):
            several = _ANOTHER.match(stem[match.end() :])
            return None if several else (int(match[1]), int(match[2]))
    seasons = [int(match[1]) for folder in folders if (match := _SEASON.match(folder))]
    stem = _NOISE.sub(" ", stem)
    if seasons and (match := _NUMBER.search(stem)):
        return seasons[-1], int(match[1] or match[2])
    compact = set(_COMPACT.findall(stem))
    return tuple(map(int, *compact)) if len(compact) == 1 else None


def find_episodes(folder: str | Path) -> tuple[dict[Episode, Path], list[Path]]:
    """The films under a folder by season and number, and those whose name tells none.

    Raises:
        ValueError: there is no such folder, two files are the same episode, or a link leaves the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one with the episodes")
    found, unknown = {}, []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} is a link that leaves {folder}; copy the film, or give the folder it lies in")
        episode = episode_of(path.relative_to(folder))
        if episode is None:
            unknown.append(path)
        elif episode in found:
            season, number = episode
            raise ValueError(f"{found[episode]} and {path} are both season {season}, episode {number}; remove one")
        else:
            found[episode] = path
    return found, unknown


def read_offsets(path: str | Path) -> dict[Episode, float]:
    """Seconds to add to the time codes of each episode: a CSV file with the columns season, episode and offset.

    Raises:
        CorpusError: with file and line, where a column lacks, a value is no number or an episode stands twice.
    """
    offsets: dict[Episode, float] = {}
    for place, cells in read_table(Path(path), ("season", "episode", "offset")):
        if isinstance(cells, CorpusError):
            raise cells
        episode = tuple(whole_number(cells[column], column, place) for column in ("season", "episode"))
        try:
            offset = float(cells["offset"])
        except ValueError:
            offset = math.nan
        if not math.isfinite(offset):
            raise CorpusError(place, f"offset is {cells['offset']!r}; give the seconds to add, such as -1.5", "number")
        if episode in offsets:
            problem = "season {}, episode {} stands there twice; remove one line".format(*episode)
            raise CorpusError(place, problem, "duplicate id")
        offsets[episode] = offset
    return offsets


def cut_clips(
    spans: Iterable[Span],
    episodes: str | Path,
    out: str | Path,
    *,
    offsets: dict[Episode, float] | None = None,
    workers: int = 1,
) -> dict:
    """Cut the clips that are not there yet, and write `cut_report.json` beside them.

    A clip appears under its name when it is whole; a run that was killed goes on where it stopped, and ends with the
    same files.

    Args:
        spans: what to cut; time codes as in the corpus.
        episodes: folder of the films; see [`find_episodes`].
        out: folder of the clips.
        offsets: seconds to add to the time codes of an episode.
        workers: processes.

    Returns:
        `dict`: the report. `clips` wanted, `cut` by this run, `there` from earlier ones; `not_cut` ({name, reason}: out of
        range, damaged film, gap in the sound); `missing_episodes` ({season, episode, clips}); `unused_files`, whose names
        tell no episode; `overlapping` ({name, next, seconds}), which are cut all the same.

    Raises:
        ValueError: a time code is wrong, a name stands twice, no film fits, or `out` has clips of other films, offsets or
            time codes.
    """
    out, offsets = Path(out), offsets or {}
    by_episode: dict[Episode, list[Span]] = defaultdict(list)
    names = set()
    for span in spans:
        if not 0 <= span.start < span.end:
            raise ValueError(f"{span.name} is from {span.start} s to {span.end} s; a clip ends after it starts")
        if span.name in names or not (out / span.name).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{span.name} stands twice, or leaves {out}; give each clip a name of its own")
        names.add(span.name)
        by_episode[span.season, span.episode].append(span)
    films, unused = find_episodes(episodes)
    if not (wanted := sorted(by_episode.keys() & films.keys())):
        seen = ", ".join(sorted(path.name for path in (*films.values(), *unused))[:5]) or "no film"
        raise ValueError(f"no film in {episodes} is an episode of the corpus: {seen}; name them like S01E02.mp4")
    if unknown := sorted(offsets.keys() - by_episode.keys()):
        raise ValueError(
            f"offsets for season {unknown[0][0]}, episode {unknown[0][1]}, which the corpus does not have"
        )

    tasks, problems = [], []
    settings = {}
    for episode in wanted:
        shift = offsets.get(episode, 0.0)
        shifted = sorted(
            (replace(span, start=span.start + shift, end=span.end + shift) for span in by_episode[episode]),
            key=lambda span: (span.start, span.end, span.name),
        )
        settings["S{:02}E{:02}".format(*episode)] = _digest(films[episode], shifted)
        problems += [(span.name, "begins before the film") for span in shifted if span.start < 0]
        shifted = [span for span in shifted if span.start >= 0]
        tasks += [(films[episode], shifted[i : i + RUN], out) for i in range(0, len(shifted), RUN)]
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out / "cut_settings.json", settings, by_episode)
    for part in out.rglob(".*.part"):
        part.unlink()  # of a run that was killed

    there = sum((out / name).is_file() for name in names)
    open_tasks = [task for task in tasks if not all((out / span.name).is_file() for span in task[1])]
    with tqdm(total=sum(len(task[1]) for task in tasks), unit="clip", desc="cutting") as progress:
        progress.update(progress.total - sum(len(task[1]) for task in open_tasks))
        for count, failed in _run(open_tasks, workers):
            progress.update(count)
            problems += failed
    report = {
        "clips": len(names),
        "cut": sum((out / name).is_file() for name in names) - there,
        "there": there,
        "not_cut": [{"name": name, "reason": reason} for name, reason in problems],
        "missing_episodes": [
            {"season": season, "episode": number, "clips": len(by_episode[season, number])}
            for season, number in sorted(by_episode.keys() - films.keys())
        ],
        "unused_files": [str(path) for path in unused],
        "overlapping": list(overlaps(span for spans in by_episode.values() for span in spans)),
    }
    _write_json(out / "cut_report.json", report)
    return report


def overlaps(spans: Iterable[Span]) -> Iterator[dict]:
    """Clips that end after the next one of their episode has begun: {name, next, seconds}."""
    ordered = sorted(spans, key=lambda span: (span.season, span.episode, span.start, span.end))
    for span, after in pairwise(ordered):
        common = min(span.end, after.end) - after.start
        if (span.season, span.episode) == (after.season, after.episode) and common > 0:
            yield {"name": span.name, "next": after.name, "seconds": round(common, 3)}


def _digest(film: Path, spans: list[Span]) -> str:
    """Changes with the film, the offset and the time codes."""
    content = [film.name, film.stat().st_size, *((span.name, span.start, span.end) for span in spans)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _check_settings(path: Path, settings: dict[str, str], by_episode: dict[Episode, list[Span]]) -> None:
    """Clips of an earlier run are kept only where they would be cut the same way again."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    for episode, spans in by_episode.items():
        key = "S{:02}E{:02}".format(*episode)
        if key not in settings or before.get(key) == settings[key]:
            continue
        if there := next((span.name for span in spans if (path.parent / span.name).is_file()), None):
            raise ValueError(
                f"{path.parent / there} was cut from another film, with another offset or other time codes; delete the "
                f"clips of {key}, or give another folder"
            )
    _write_json(path, before | settings)


def _write_json(path: Path, content: dict) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _run(tasks: list[tuple], workers: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    if workers <= 1:
        yield from (_cut_run(*task) for task in tasks)
        return
    with ProcessPoolExecutor(workers, initializer=_die_with_parent) as pool:
        yield from pool.map(_cut_run, *zip(*tasks, strict=True)) if tasks else ()


def _die_with_parent() -> None:
    """A killed parent cannot stop its processes, and one that lives on would write beside the next run's."""

    def wait() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _cut_run(film: Path, spans: list[Span], out: Path) -> tuple[int, list[tuple[str, str]]]:
    """Cut neighbouring clips in one pass over their stretch of a film: (clips tried, [(name, why it was not cut)]).

    What is decoded depends on the spans alone and not on what is there already: so a repeated run gives equal files.
    """
    clips = [_Clip(span, out / span.name) for span in spans]
    try:
        with ExitStack() as stack:
            for clip in clips:
                stack.callback(clip.discard)
            _read(film, clips, stack)
            return len(spans), [(clip.span.name, clip.problem) for clip in clips if clip.problem]
    except MediaError as error:
        return len(spans), [(clip.span.name, clip.problem or str(error)) for clip in clips if not clip.path.is_file()]


def _read(film: Path, clips: list["_Clip"], stack: ExitStack) -> None:
    """Decode a stretch of a film into its clips."""
    start = clips[0].span.start
    container, origin = _open_near(film, start, stack)
    picture = container.streams.video[0]
    sound = container.streams.audio[0] if container.streams.audio else None
    for stream in (picture, sound):
        if stream is not None:
            stream.codec_context.thread_count = 1
    # A tenth of the time. No frame refers to the unfiltered ones, so no difference adds up; the clips' coding loses more.
    picture.codec_context.options = {"skip_loop_filter": "noref"}

    waiting, active = deque(clips), []
    shown = None  # the last decoded frame and its time: how long it is shown tells only the next one
    heard = 0.0 if sound is not None else float("inf")
    position = None  # of the next sample, counted from the film's start
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)

    def activate(time: float) -> None:
        while waiting and waiting[0].span.start < time:
            active.append(waiting.popleft())
            active[-1].begin(picture, sound is not None)

    def show(until: float) -> None:
        activate(until)
        for clip in active:
            clip.see(*shown, until)

    seen, tick = 0.0, float(picture.time_base)

    def near(packet: av.Packet) -> bool:
        """Whether a clip may have the packet's frame; between clips those that no other frame refers to are left out."""
        if active or packet.pts is None or not waiting:
            return True
        return waiting[0].span.start - PREROLL < packet.pts * tick - origin

    streams = [stream for stream in (picture, sound) if stream is not None]
    for packet, frames in _packets(container, streams, film, near):
        for frame in frames:
            if packet.stream is picture:
                if frame.pts is None or frame.is_corrupt:
                    raise MediaError(f"{film} is damaged or has no time stamps near {seen:.1f} s; convert it to mp4")
                time = frame.time - origin
                if shown is None and time > max(start, 0.0) and time > 0:
                    raise MediaError(f"{film} cannot be searched: no frame before {time:.3f} s; convert it to mp4")
                if shown is not None:
                    show(time)
                shown, seen = (frame, time), time
            else:
                for piece in resampler.resample(frame):
                    samples = np.frombuffer(piece.planes[0], np.float32, piece.samples)
                    index = round((piece.time - origin) * SAMPLE_RATE)
                    # Containers round time stamps; following each would tear the sound.
                    if position is None or abs(index - position) > SILENCE * SAMPLE_RATE:
                        position = index
                    heard = (position + len(samples)) / SAMPLE_RATE
                    activate(heard)
                    for clip in active:
                        clip.hear(samples, position)
                    position += len(samples)
        for clip in [clip for clip in active if clip.span.end <= min(seen, heard)]:
            active.remove(clip)
            clip.finish()
        if not waiting and not active:
            return
    # The film is over.
    frame_seconds = 1 / float(picture.average_rate or 25)
    end = seen + frame_seconds
    if shown is not None:
        show(end)
    for clip in (*active, *waiting):
        if clip.span.end > end + frame_seconds:
            clip.problem = f"out of range: it ends at {clip.span.end:.3f} s, the film at {end:.3f} s"
        else:
            clip.finish()


def _open_near(film: Path, start: float, stack: ExitStack) -> tuple[av.container.InputContainer, float]:
    """A film, to be read from shortly before `start`, and the time stamp of its first frame, from which time codes count;
    both in seconds."""
    container = open_container(film, stack, str(film))
    if not container.streams.video:
        raise MediaError(f"{film} has no picture; give the film itself")
    picture = container.streams.video[0]
    origin = float((picture.start_time or 0) * picture.time_base)
    with media_errors(str(film)):
        container.seek(max(0, int((start - PREROLL + origin) * av.time_base)))
    return container, origin


def _packets(
    container: av.container.InputContainer, streams: list, film: Path, near: Callable[[av.Packet], bool]
) -> Iterator[tuple[av.Packet, list]]:
    """Packets with their decoded frames."""
    with media_errors(str(film)):
        for packet in container.demux(streams):
            if packet.stream is streams[0]:
                packet.stream.codec_context.skip_frame = "DEFAULT" if near(packet) else "NONREF"
            yield packet, packet.decode()


@dataclass
class _Clip:
    """A clip being written."""

    span: Span
    path: Path
    problem: str | None = None
    pieces: list[tuple[int, np.ndarray]] = field(default_factory=list)  # (place among the clip's samples, samples)
    container: av.container.OutputContainer | None = None
    scaler: VideoReformatter = field(default_factory=VideoReformatter)  # a frame's own would be set up for it alone

    def begin(self, picture: av.VideoStream, sound: bool) -> None:
        self.first = round(self.span.start * SAMPLE_RATE)
        self.samples = round(self.span.end * SAMPLE_RATE) - self.first
        self.frames = 0
        if self.path.is_file():  # finished by an earlier run
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self.container = av.open(str(self.part), "w", format="mp4", options={"fflags": "+bitexact"})
        rate = picture.average_rate or Fraction(25)
        if "libx264" in av.codecs_available:
            # This preset takes a third of the time, and keeps frames in order: players that ignore edit lists show the
            # right ones, too. A constant quantiser takes a third less than crf, and no more bits for the same quality.
            options = {"preset": "ultrafast", "qp": "21", "x264-params": "threads=1"}
            self.video = self.container.add_stream("libx264", rate=rate, options=options)
        else:
            self.video = self.container.add_stream("mpeg4", rate=rate, options={"q:v": "3"})
        height = min(picture.height, LINES)
        width = picture.width * (picture.sample_aspect_ratio or 1) * Fraction(height, picture.height)
        self.video.width, self.video.height = 2 * round(width / 2), 2 * round(height / 2)
        self.video.pix_fmt, self.video.thread_count = "yuv420p", 1
        self.video.codec_context.time_base = Fraction(1, TICKS)
        self.audio = None
        if sound:
            # AAC would put silence before and after the samples.
            self.audio = self.container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
            self.audio.codec_context.format = "s16"

    def see(self, frame: av.VideoFrame, time: float, until: float) -> None:
        """Take a frame that is shown from `time` until `until`, where the clip has it."""
        start, end = self.span.start, self.span.end
        middle = (start + end) / 2  # of a clip shorter than a frame
        if self.container is None or not (start <= (time + until) / 2 < end or time <= middle < until):
            return
        # Half the time of the default, bicubic; when it scales down, swscale averages over what a new pixel covers.
        frame = self.scaler.reformat(
            frame, self.video.width, self.video.height, "yuv420p", interpolation=Interpolation.BILINEAR, threads=1
        )
        frame.pict_type = 0  # the film's keyframes are not the clip's
        frame.pts, frame.time_base = round(max(0.0, time - start) * TICKS) if self.frames else 0, Fraction(1, TICKS)
        self.container.mux(self.video.encode(frame))
        self.frames += 1

    def hear(self, samples: np.ndarray, position: int) -> None:
        """Take the part of `samples`, which begin at sample `position` of the film, that the clip has."""
        begin, end = max(position, self.first), min(position + len(samples), self.first + self.samples)
        if self.container is not None and begin < end:
            self.pieces.append((begin - self.first, samples[begin - position : end - position]))

    def finish(self) -> None:
        """Close the file and give it its name, where picture and sound are whole."""
        if self.container is None:
            return
        if not self.frames:
            self.problem = "the film shows no frame there"
            return
        if self.audio is not None:
            lacking = 1 - sum(len(piece) for _, piece in self.pieces) / self.samples
            if lacking * self.samples > SILENCE * SAMPLE_RATE:
                self.problem = f"the film has no sound for {lacking * self.samples / SAMPLE_RATE:.3f} s of it"
                return
            waveform = np.zeros((1, self.samples), np.int16)
            for place, piece in self.pieces:
                waveform[0, place : place + len(piece)] = np.clip(piece * 32768, -32768, 32767).round()
            sound = av.AudioFrame.from_ndarray(waveform, format="s16", layout="mono")
            sound.sample_rate, sound.pts = SAMPLE_RATE, 0
            self.container.mux(self.video.encode())
            self.container.mux(self.audio.encode(sound))
            self.container.mux(
                [packet for packet in self.audio.encode() if packet.size]
            )  # FLAC ends with a bare checksum
        else:
            self.container.mux(self.video.encode())
        self.container.close()
        self.part.replace(self.path)
        self.container = None

    def discard(self) -> None:
        """Leave nothing of a clip that was not finished."""
        if self.container is not None:
            self.container.close()
            self.part.unlink(missing_ok=True)  # it appears with the first frame
            self.container = None
