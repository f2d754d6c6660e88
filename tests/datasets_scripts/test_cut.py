import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import media_files
import numpy as np
import pytest

from multimood.datasets_scripts.cut import SAMPLE_RATE, Span, cut_clips, episode_of, find_episodes, read_offsets
from multimood.datasets_scripts.mesc import clip_name, read_dialogues
from multimood.datasets_scripts.report import CorpusError
from multimood.processors.media import load_clip

MESC = Path(__file__).parents[3] / "shared" / "data" / "mesc"
FPS = 25
NUMBERS = media_files.LEVELS**2  # frames until the burnt-in counter begins again

CUT = """
import sys
from multimood.datasets_scripts.cut import Span, cut_clips
spans = [Span(f"{i:03}.mp4", 1, 1, 0.3 + 0.45 * i, 0.9 + 0.45 * i) for i in range(120)]
print(cut_clips(spans, sys.argv[1], sys.argv[2], workers=2)["cut"])
"""


def noise(seconds: float) -> np.ndarray:
    """A sound that is nowhere like itself, `(samples,)`, float32."""
    return np.random.default_rng(7).uniform(-0.3, 0.3, round(seconds * SAMPLE_RATE)).astype(np.float32)


def write_film(path: Path, seconds: float, sound: bool = True) -> Path:
    """A film whose frames show their number, with frames out of order, rare keyframes and noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "bf": "2", "g": "125"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound else None
        for number in range(round(seconds * FPS)):
            image = media_files.numbered_frame(number)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        if sound:
            frame = av.AudioFrame.from_ndarray(noise(seconds)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 0  # else the encoder's delay would delay the sound
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def frame_times(clip: Path) -> list[tuple[float, int]]:
    """When each frame of a clip is shown, in seconds, and its number in the film."""
    with av.open(str(clip)) as container:
        return [
            (frame.time, media_files.frame_number(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(video=0)
        ]


def assert_accurate(clip: Path, start: float, end: float, film_sound: np.ndarray | None) -> None:
    """The picture begins and ends within a frame of the time codes, each frame in its place; the sound within 20 ms."""
    shown = frame_times(clip)
    numbers = [number for _, number in shown]
    assert min(abs((numbers[0] - start * FPS + NUMBERS / 2) % NUMBERS - NUMBERS / 2), 9) <= 1, "first frame"
    assert min(abs((numbers[-1] + 1 - end * FPS + NUMBERS / 2) % NUMBERS - NUMBERS / 2), 9) <= 1, "last frame"
    assert np.all(np.diff(numbers) % NUMBERS == 1), "no frame is lost or doubled"
    for when, number in shown[1:]:
        assert abs(((start + when) * FPS - number + NUMBERS / 2) % NUMBERS - NUMBERS / 2) < 0.01
    loaded = load_clip(str(clip), num_frames=2)
    assert loaded.duration == pytest.approx(end - start, abs=1 / FPS)
    if film_sound is None:
        assert loaded.waveform is None
        return
    assert len(loaded.waveform) / SAMPLE_RATE == pytest.approx(end - start, abs=0.001)
    widest = round(0.1 * SAMPLE_RATE)
    first = round(start * SAMPLE_RATE)
    around = np.zeros(len(loaded.waveform) + 2 * widest)
    low, high = max(0, first - widest), min(len(film_sound), first + len(loaded.waveform) + widest)
    around[low - first + widest : high - first + widest] = film_sound[low:high]
    lag = np.argmax(np.correlate(around, loaded.waveform, "valid")) - widest
    assert abs(lag) / SAMPLE_RATE < 0.02


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "In.Treatment.S01E01.720p.mkv", 60)
    write_film(folder / "Season 2" / "03 - Alex.mp4", 12)
    return folder


SPANS = [
    Span("a.mp4", 1, 1, 0.0, 0.52),
    Span("b.mp4", 1, 1, 0.497, 2.013),  # begins before the one before has ended
    Span("c.mp4", 1, 1, 2.33, 2.366),  # shorter than a frame
    Span("d.mp4", 1, 1, 31.777, 33.5),
    Span("e.mp4", 1, 1, 58.1, 60.0),
    Span("f.mp4", 2, 3, 6.02, 7.96),
]


def test_clips_begin_and_end_within_a_frame_and_sound_keeps_its_place(films, tmp_path):
    report = cut_clips(SPANS, films, tmp_path)
    assert report["cut"] == len(SPANS)
    assert report["not_cut"] == []
    assert report["missing_episodes"] == []
    assert [(found["name"], found["next"]) for found in report["overlapping"]] == [("a.mp4", "b.mp4")]
    for span in SPANS:
        assert_accurate(tmp_path / span.name, span.start, span.end, noise(60))


def test_an_offset_shifts_the_time_codes_of_its_episode(films, tmp_path):
    cut_clips(SPANS[3:], films, tmp_path, offsets={(2, 3): -2.5})
    assert_accurate(tmp_path / "d.mp4", 31.777, 33.5, noise(60))
    assert_accurate(tmp_path / "f.mp4", 3.52, 5.46, noise(12))


def test_a_silent_film_gives_silent_clips(tmp_path):
    write_film(tmp_path / "films" / "1x01.mp4", 3, sound=False)
    cut_clips([Span("a.mp4", 1, 1, 0.5, 1.9)], tmp_path / "films", tmp_path)
    assert_accurate(tmp_path / "a.mp4", 0.5, 1.9, None)


def test_what_cannot_be_cut_is_reported(films, tmp_path):
    spans = [
        SPANS[3],
        Span("late.mp4", 1, 1, 59.0, 61.0),
        Span("later.mp4", 1, 1, 70.0, 71.0),
        Span("other.mp4", 3, 9, 1.0, 2.0),
    ]
    report = cut_clips(spans, films, tmp_path)
    assert report["cut"] == 1
    assert {lost["name"]: lost["reason"].split(":")[0] for lost in report["not_cut"]} == {
        "late.mp4": "out of range",
        "later.mp4": "out of range",
    }
    assert report["missing_episodes"] == [{"season": 3, "episode": 9, "clips": 1}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut_report.json", "cut_settings.json", "d.mp4"]


def test_a_gap_in_the_sound_is_no_silence(tmp_path):
    film = write_film(tmp_path / "films" / "s1e1.mkv", 4)
    with av.open(str(film)) as source, av.open(str(tmp_path / "gap.mkv"), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            lost = packet.stream.type == "audio" and packet.pts is not None and 1.5 < packet.pts / 1000 < 2
            if packet.size and not lost:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    (tmp_path / "gap.mkv").replace(film)
    report = cut_clips([Span("a.mp4", 1, 1, 0.2, 1.2), Span("b.mp4", 1, 1, 1.3, 2.5)], film.parent, tmp_path)
    assert [lost["name"] for lost in report["not_cut"]] == ["b.mp4"]
    assert "no sound for 0." in report["not_cut"][0]["reason"]
    assert_accurate(tmp_path / "a.mp4", 0.2, 1.2, noise(4))


def test_a_damaged_film_is_reported_for_each_of_its_clips(films, tmp_path):
    film = tmp_path / "films" / "S01E01.mp4"
    film.parent.mkdir()
    film.write_bytes((films / "Season 2" / "03 - Alex.mp4").read_bytes()[:20_000])
    report = cut_clips([Span("a.mp4", 1, 1, 0.5, 1.9)], film.parent, tmp_path)
    assert [lost["name"] for lost in report["not_cut"]] == ["a.mp4"]
    assert "S01E01.mp4 is cut off" in report["not_cut"][0]["reason"]


def test_a_killed_run_ends_with_the_same_files(films, tmp_path):
    def run(out: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", CUT, str(films), str(tmp_path / out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    whole = run("whole")
    assert whole.communicate()[0].strip() == "120"
    killed = run("killed")
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("*.mp4"))) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()  # ends only when its processes have let go of the pipe
    left = len(list((tmp_path / "killed").glob("*.mp4")))
    assert 10 <= left < 120
    assert run("killed").communicate()[0].strip() == str(120 - left)
    contents = {
        out: {path.name: path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()}
        for out in ("whole", "killed")
    }
    reports = [contents[out].pop("cut_report.json") for out in contents]
    assert reports[0] != reports[1], "they count what each run has cut"
    assert contents["whole"] == contents["killed"]


def test_clips_of_another_offset_are_not_kept_silently(films, tmp_path):
    cut_clips(SPANS[5:], films, tmp_path)
    assert cut_clips(SPANS[5:], films, tmp_path)["there"] == 1
    with pytest.raises(ValueError, match=r"f\.mp4 was cut from another film, with another offset"):
        cut_clips(SPANS[5:], films, tmp_path, offsets={(2, 3): 1.0})


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span("a.mp4", 1, 1, 2.0, 1.0)], "a clip ends after it starts"),
        ([Span("a.mp4", 1, 1, 1.0, 2.0)] * 2, "stands twice"),
        ([Span("../a.mp4", 1, 1, 1.0, 2.0)], "leaves"),
        ([Span("a.mp4", 5, 5, 1.0, 2.0)], "no film in .* is an episode of the corpus"),
    ],
)
def test_wrong_spans_are_named(films, tmp_path, spans, message):
    with pytest.raises(ValueError, match=message):
        cut_clips(spans, films, tmp_path)


@pytest.mark.parametrize(
    ("name", "episode"),
    [
        ("In.Treatment.S01E02.720p.x264.mkv", (1, 2)),
        ("in treatment s1e2.avi", (1, 2)),
        ("In_Treatment_1x02.avi", (1, 2)),
        ("In Treatment - Season 1 Episode 2 - Alex.mp4", (1, 2)),
        ("s02.ep11.mp4", (2, 11)),
        ("Season 3/Episode 4.mkv", (3, 4)),
        ("In Treatment S2/E35.mkv", (2, 35)),
        ("season_2/07 Mia.m4v", (2, 7)),
        ("In Treatment 143.avi", (1, 43)),
        ("in.treatment.2008.210.1080p.mkv", (2, 10)),
        ("S01E01E02.mkv", None),
        ("S01E01-02.mkv", None),
        ("trailer.mp4", None),
        ("1920x1080.mp4", None),
    ],
)
def test_episodes_are_told_by_many_spellings(name, episode):
    assert episode_of(Path(name)) == episode


def test_two_files_of_one_episode_and_links_out_of_the_folder_are_refused(tmp_path):
    for name in ("inside/S01E01.mp4", "inside/1x01.mkv", "outside.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="are both season 1, episode 1"):
        find_episodes(tmp_path / "inside")
    (tmp_path / "inside" / "1x01.mkv").unlink()
    (tmp_path / "inside" / "1x02.mkv").symlink_to(tmp_path / "outside.mp4")
    with pytest.raises(ValueError, match=r"1x02\.mkv is a link that leaves"):
        find_episodes(tmp_path / "inside")


def test_offsets_are_read(tmp_path):
    path = tmp_path / "offsets.csv"
    path.write_text("season,episode,offset\n1,2,-1.5\n3,20,0.04\n")
    assert read_offsets(path) == {(1, 2): -1.5, (3, 20): 0.04}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("season,offset\n1,2\n", "line 1: column episode is missing"),
        ("season,episode,offset\n1,2,soon\n", "line 2: offset is 'soon'"),
        ("season,episode,offset\n1,2,nan\n", "line 2: offset is 'nan'"),
        ("season,episode,offset\n1,2,1\n1,2,3\n", "line 3: season 1, episode 2 stands there twice"),
    ],
)
def test_wrong_offsets_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "offsets.csv"
    path.write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_offsets(path)


@pytest.mark.skipif(not MESC.is_dir(), reason="../shared/data/mesc is not here")
def test_three_dialogues_at_the_corpus_own_time_codes(tmp_path):
    """Slow machines draw the film in seconds: the dialogues are among the first of their episode."""
    utterances = [said for dialogue in read_dialogues(MESC)[:3] for said in dialogue.utterances]
    (episode,) = {(said.season, said.episode) for said in utterances}
    seconds = max(said.end for said in utterances) + 1
    write_film(tmp_path / "films" / "S{:02}E{:02}.mkv".format(*episode), seconds)
    spans = [Span(clip_name(said), *episode, said.start, said.end) for said in utterances]
    begun = time.process_time()
    report = cut_clips(spans, tmp_path / "films", tmp_path / "clips")
    spent = time.process_time() - begun
    assert report["cut"] == len(spans)
    sound = noise(seconds)
    for span in spans:
        assert_accurate(tmp_path / "clips" / span.name, span.start, span.end, sound)
    rate = sum(span.end - span.start for span in spans) / spent
    print(f"{len(spans)} clips, {rate:.0f} times faster than real time")
