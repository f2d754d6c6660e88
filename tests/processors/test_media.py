import http.server
import io
import threading
import tracemalloc
import warnings
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_files import frame_number, numbered_frame, sine, turn_clip, write_clip

from multimood.processors.media import SAMPLING_RATE, MediaError, load_clip

CONTAINERS = [
    # suffix, picture, pixels, sound, more options
    ("mp4", "mpeg4", "yuv420p", "aac", {}),
    ("mp4", "libx264", "yuv420p", "aac", {"g": "12", "bf": "3"}),
    ("mp4", "libx264", "yuv420p", "aac", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    ("mov", "libx264", "yuv422p10le", "aac", {}),
    ("mkv", "libx264", "yuv420p", "libopus", {}),
    ("webm", "libvpx-vp9", "yuv420p", "libopus", {}),
    ("avi", "mpeg4", "yuv420p", "libmp3lame", {}),
    ("ts", "libx264", "yuv420p", "aac", {"bf": "2"}),
    ("mpg", "mpeg2video", "yuv420p", "mp2", {"g": "6", "bf": "2"}),
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """2 s, 16 frames, mono 16 kHz."""
    return write_clip(tmp_path_factory.mktemp("media") / "clip.mp4")


def numbers(loaded) -> list[int]:
    return [frame_number(frame) for frame in loaded.frames]


def decode_all(path: str) -> list[tuple[float, np.ndarray]]:
    """(seconds from the start, frame) of every frame, in order: what `load_clip` must agree with."""
    with av.open(path) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return [(time - frames[0][0], frame) for time, frame in frames]


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt", "audio_codec", "options"), CONTAINERS)
def test_frames_are_those_shown_at_the_midpoints(tmp_path, suffix, codec, pix_fmt, audio_codec, options):
    path = write_clip(
        tmp_path / f"clip.{suffix}",
        frames=100,
        rate=25,
        codec=codec,
        pix_fmt=pix_fmt,
        options=options,
        audio_codec=audio_codec,
        audio_rate=48_000,
    )
    everything = decode_all(path)
    for count in (2, 8, 40):
        loaded = load_clip(path, num_frames=count)
        assert loaded.duration == pytest.approx(4.0, abs=0.001)
        assert loaded.timestamps == pytest.approx([(i + 0.5) * 4.0 / count for i in range(count)], abs=0.001)
        for time, frame in zip(loaded.timestamps, loaded.frames, strict=True):
            shown = [reference for start, reference in everything if start <= time + 1e-6][-1]
            np.testing.assert_array_equal(frame, shown)
    assert loaded.waveform.shape == pytest.approx((4 * SAMPLING_RATE,), rel=0.02)


def test_avi_with_reordered_frames(tmp_path):
    """Its time stamps are those of decoding; the frames are counted instead."""
    options = {"bf": "3", "g": "12"}
    path = write_clip(
        tmp_path / "clip.avi", frames=50, rate=25, codec="libx264", options=options, audio_codec="libmp3lame"
    )
    assert numbers(load_clip(path, num_frames=10)) == [2, 7, 12, 17, 22, 27, 32, 37, 42, 47]
    assert load_clip(path).duration == pytest.approx(2.0)


def test_variable_frame_rate_is_sampled_by_time(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=5, times=[0, 100, 200, 300, 3000], audio_rate=None)
    loaded = load_clip(path, num_frames=8)
    assert numbers(loaded) == [1, 3, 3, 3, 3, 3, 3, 3]  # frame 3 stands for 2.7 of 3.1 s
    assert numbers(load_clip(path, num_frames=62))[-2:] == [4, 4]


def test_fps_gives_a_multiple_of_the_stride_up_to_num_frames(clip):
    assert [len(load_clip(clip, num_frames=64, fps=fps).frames) for fps in (0.1, 1, 1.2, 4, 100)] == [2, 2, 4, 8, 64]
    assert numbers(load_clip(clip, num_frames=64, fps=4)) == numbers(load_clip(clip, num_frames=8))


def test_several_clips_are_one_timeline(tmp_path):
    short = write_clip(tmp_path / "short.mp4", frames=8, pitch=300)
    long = write_clip(tmp_path / "long.mp4", frames=24, pitch=600)
    loaded = load_clip([short, long])
    assert loaded.duration == pytest.approx(4.0)
    assert numbers(loaded) == [2, 6, 2, 6, 10, 14, 18, 22]
    parts = [load_clip(short).waveform, load_clip(long).waveform]
    np.testing.assert_array_equal(loaded.waveform, np.concatenate(parts))


def test_a_timeline_may_lack_picture_or_sound_in_parts(tmp_path, clip):
    silent = write_clip(tmp_path / "silent.mp4", frames=16, audio_rate=None)
    sound = write_clip(tmp_path / "sound.m4a", frames=0, seconds=1)
    loaded = load_clip([silent, sound, clip])
    assert loaded.duration == pytest.approx(4.0)
    assert numbers(loaded) == [2, 6, 10, 14, 2, 6, 10, 14]
    assert len(loaded.waveform) == len(load_clip(sound).waveform) + len(load_clip(clip).waveform)


@pytest.mark.parametrize(
    "wrap",
    [
        Path,
        lambda p: Path(p).read_bytes(),
        lambda p: BytesIO(Path(p).read_bytes()),
        lambda p: {"bytes": Path(p).read_bytes(), "path": "clip.mp4"},  # as `datasets` has clips, embedded …
        lambda p: {"bytes": None, "path": p},  # … and beside the rows
    ],
)
def test_every_kind_of_source_gives_the_same(clip, wrap):
    expected, loaded = load_clip(clip), load_clip(wrap(clip))
    np.testing.assert_array_equal(np.stack(loaded.frames), np.stack(expected.frames))
    np.testing.assert_array_equal(loaded.waveform, expected.waveform)


def test_an_open_file_is_read_from_its_start(clip):
    with open(clip, "rb") as file:
        file.seek(100)
        assert numbers(load_clip(file)) == numbers(load_clip(clip))


@pytest.fixture
def server(clip):
    handler = type(
        "Handler",
        (http.server.SimpleHTTPRequestHandler,),
        {
            "__init__": lambda self, *a: http.server.SimpleHTTPRequestHandler.__init__(
                self, *a, directory=str(Path(clip).parent)
            ),
            "log_message": lambda *a: None,
        },
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_url(server, clip):
    assert numbers(load_clip(f"{server}/clip.mp4")) == numbers(load_clip(clip))


def test_url_that_is_not_there(server):
    with pytest.raises(MediaError, match=r"cannot download http.*404"):
        load_clip(f"{server}/other.mp4")


def test_url_that_is_too_large(server, monkeypatch):
    monkeypatch.setattr("multimood.processors.media_source.MAX_DOWNLOAD_BYTES", 100)
    with pytest.raises(MediaError, match="larger than"):
        load_clip(f"{server}/clip.mp4")


def test_only_what_is_wanted_is_given(clip):
    picture, sound = load_clip(clip, audio=False), load_clip(clip, video=False)
    assert picture.waveform is None
    assert sound.frames == []
    assert numbers(picture) == numbers(load_clip(clip))
    np.testing.assert_array_equal(sound.waveform, load_clip(clip).waveform)


def test_absent_streams_give_nothing(tmp_path):
    silent = load_clip(write_clip(tmp_path / "silent.mp4", audio_rate=None))
    sound = load_clip(write_clip(tmp_path / "sound.m4a", frames=0, seconds=1.5))
    assert silent.waveform is None
    assert len(silent.frames) == 8
    assert sound.frames == []
    assert sound.duration == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize(
    ("layout", "rate", "suffix", "codec"),
    [
        ("mono", 8_000, "wav", "pcm_s16le"),
        ("mono", 96_000, "wav", "pcm_s16le"),
        ("stereo", 44_100, "m4a", "aac"),
        ("5.1", 48_000, "m4a", "aac"),
        ("stereo", 48_000, "ogg", "libopus"),
        ("stereo", 22_050, "mp3", "libmp3lame"),
        ("5.1", 96_000, "flac", "flac"),
    ],
)
def test_sound_becomes_16_khz_mono(tmp_path, layout, rate, suffix, codec):
    path = write_clip(
        tmp_path / f"s.{suffix}", frames=0, seconds=2, audio_rate=rate, layout=layout, audio_codec=codec, pitch=1000
    )
    waveform = load_clip(path).waveform
    assert waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(2 * SAMPLING_RATE, rel=0.05)
    middle = waveform[8000:24000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() == 1000  # 1 Hz a bin
    assert 0.1 < np.abs(middle).max() < 1.3


def test_of_long_sound_the_end_is_kept_and_the_rest_named(tmp_path):
    path = write_clip(tmp_path / "clip.wav", frames=0, seconds=5, audio_codec="pcm_s16le")
    whole = load_clip(path).waveform
    with pytest.warns(UserWarning, match=r"clip.wav has 5.00 s of sound, of which the last 2 s.*first 3.00 s"):
        end = load_clip(path, max_audio_seconds=2.0).waveform
    np.testing.assert_array_equal(end, whole[-2 * SAMPLING_RATE :])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip(path, max_audio_seconds=5.0)


def test_long_sound_over_several_clips(tmp_path):
    first = write_clip(tmp_path / "a.wav", frames=0, seconds=3, audio_codec="pcm_s16le", pitch=300)
    second = write_clip(tmp_path / "b.wav", frames=0, seconds=1.5, audio_codec="pcm_s16le", pitch=700)
    whole = load_clip([first, second]).waveform
    with pytest.warns(UserWarning, match=r"4.50 s of sound"):
        end = load_clip([first, second], max_audio_seconds=2.0).waveform
    np.testing.assert_allclose(end, whole[-2 * SAMPLING_RATE :], atol=1e-4)


def test_one_frame(tmp_path):
    loaded = load_clip(write_clip(tmp_path / "one.mp4", frames=1, audio_rate=None), num_frames=4)
    assert numbers(loaded) == [0, 0, 0, 0]
    assert loaded.duration == pytest.approx(1 / 8)


def test_one_pixel(tmp_path):
    path = write_clip(tmp_path / "dot.mkv", frames=2, size=(1, 1), codec="ffv1", pix_fmt="bgr0", audio_rate=None)
    assert [frame.shape for frame in load_clip(path, num_frames=2).frames] == [(1, 1, 3)] * 2


def test_4k(tmp_path):
    path = write_clip(tmp_path / "4k.mp4", frames=2, size=(3840, 2160), audio_rate=None)
    loaded = load_clip(path, num_frames=2)
    assert loaded.frames[0].shape == (2160, 3840, 3)
    assert numbers(loaded) == [0, 1]


@pytest.mark.parametrize(
    ("degrees", "shape", "corner"), [(90, (64, 48, 3), (0, 1)), (180, (48, 64, 3), (1, 1)), (270, (64, 48, 3), (1, 0))]
)
def test_turned_phone_video_is_upright(tmp_path, degrees, shape, corner):
    path = write_clip(tmp_path / "clip.mp4")
    turn_clip(path, degrees)
    frame = load_clip(path, num_frames=2).frames[0]
    assert frame.shape == shape
    corners = np.array([[frame[y, x].mean() for x in (2, -3)] for y in (2, -3)])  # white is where the top left went
    assert np.unravel_index(corners.argmax(), (2, 2)) == corner
    assert corners[corner] > 200


def test_ten_minutes_in_bounded_memory(tmp_path):
    path = write_clip(
        tmp_path / "long.mov",
        frames=120,
        times=[5000 * i for i in range(120)],
        size=(320, 240),
        options={"g": "10"},
        audio_rate=8_000,
        audio_codec="pcm_s16le",
        seconds=600,
    )
    tracemalloc.start()
    with pytest.warns(UserWarning, match="of which the last 30 s"):
        loaded = load_clip(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded.duration == pytest.approx(600, abs=5)
    assert numbers(loaded) == [int(time / 5) for time in loaded.timestamps]
    assert loaded.waveform.shape == (30 * SAMPLING_RATE,)
    assert peak < 16e6  # 8 frames and 31 s of sound are 6 MB; all of it would be 66 MB


def test_damaged_packets_are_an_error(tmp_path):
    data = bytearray(Path(write_clip(tmp_path / "clip.mp4", frames=100, codec="libx264")).read_bytes())
    start = data.index(b"mdat") + 100
    data[start : start + len(data) // 3] = bytes(len(data) // 3)
    with pytest.raises(MediaError, match="damaged"):
        load_clip(bytes(data))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", {}),  # index at the end: lost
        ("mp4", {"movflags": "faststart"}),  # index at the start: promises more
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}),  # an index a fragment
        ("mkv", {}),
    ],
)
@pytest.mark.parametrize("part", [0.3, 0.7, 0.9])
def test_cut_off_file_is_an_error_though_some_of_it_decodes(tmp_path, suffix, options, part):
    path = Path(write_clip(tmp_path / f"clip.{suffix}", frames=100, container_options=options))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(MediaError, match=rf"clip.{suffix}.*cut off.*download it again"):
        load_clip(path)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_a_file_cut_off_within_its_index_is_an_error(tmp_path, suffix):
    """Between the picture's index and the sound's, FFmpeg would read a whole picture and no sound."""
    data = Path(write_clip(tmp_path / f"clip.{suffix}")).read_bytes()
    for end in range(data.index(b"moov"), len(data), 101):
        with pytest.raises(MediaError, match="cut off"):
            load_clip(data[:end])
    assert load_clip(data + b"\0\0\0\0 padding").waveform is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"I am a text. " * 50, "no media file"),
        (b"\x89PNG\r\n", "no media file"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "no media file"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "no media file"),
    ],
)
def test_a_file_that_is_no_clip(tmp_path, content, message):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=rf"clip.mp4.*{message}"):
        load_clip(path)


def test_missing_path():
    with pytest.raises(MediaError, match=r"no file nowhere/clip.mp4; check the path"):
        load_clip("nowhere/clip.mp4")


def test_neither_picture_nor_sound(tmp_path):
    path = tmp_path / "words.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ass" if "ass" in av.codecs_available else "subrip")
        stream.time_base = Fraction(1, 1000)
        packet = av.Packet(b"0,0,Default,,0,0,0,,hello")
        packet.stream, packet.pts, packet.dts, packet.duration, packet.time_base = (
            stream,
            0,
            0,
            1000,
            Fraction(1, 1000),
        )
        container.mux(packet)
    with pytest.raises(MediaError, match="neither picture nor sound"):
        load_clip(path)


@pytest.mark.parametrize("source", [None, 3, 0.5, {"uri": "a.mp4"}, [0.1, 0.2], io.StringIO("words")])
def test_a_source_of_unknown_kind(source):
    with pytest.raises(MediaError, match="is no clip; give a path"):
        load_clip(source)


def test_empty_list():
    with pytest.raises(MediaError, match="empty list"):
        load_clip([])


@pytest.mark.parametrize("convert", [lambda x: x, torch.from_numpy])
def test_frames_array(convert):
    frames = np.stack([numbered_frame(i) for i in range(16)])
    loaded = load_clip(convert(frames))
    assert numbers(loaded) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert loaded.waveform is None
    assert numbers(load_clip(convert(frames[:1]), num_frames=4)) == [0] * 4
    assert numbers(load_clip(convert(frames[:5]), num_frames=64, fps=1)) == [0, 1, 2, 2, 3, 4]


def test_frames_in_another_memory_layout():
    frames = np.stack([numbered_frame(i) for i in range(4)])
    bgr = np.ascontiguousarray(frames[..., ::-1])
    np.testing.assert_array_equal(load_clip(bgr[..., ::-1], num_frames=4).frames, frames)


def test_arrays_on_one_timeline():
    frames = np.stack([numbered_frame(i) for i in range(8)])
    parts = [frames[:2], torch.from_numpy(frames[2:])]
    assert numbers(load_clip(parts, num_frames=4)) == numbers(load_clip(frames, num_frames=4)) == [1, 3, 5, 7]
    assert numbers(load_clip([frames], num_frames=4)) == [1, 3, 5, 7]
    loaded = load_clip([sine(0.5), torch.from_numpy(sine(0.25, pitch=300.0))])
    np.testing.assert_array_equal(loaded.waveform, np.concatenate([sine(0.5), sine(0.25, pitch=300.0)]))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 9, 8, 3), np.uint8)], "one kind and size; resize"),
        ([np.zeros((2, 8, 8, 3), np.uint8), np.zeros(100, np.float32)], "one kind and size"),
        ([np.zeros(100, np.float32), "clip.mp4"], r"clip.mp4\] has arrays and files"),
        ([np.array(0.5)], "neither frames .* nor a mono waveform"),
    ],
)
def test_arrays_that_make_no_timeline(parts, message):
    with pytest.raises(MediaError, match=message):
        load_clip(parts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_waveform_array(dtype):
    loaded = load_clip(sine(0.5).astype(dtype))
    assert loaded.waveform.dtype == np.float32
    np.testing.assert_allclose(loaded.waveform, sine(0.5), atol=1e-3)
    assert (loaded.frames, loaded.duration) == ([], 0.5)


def test_waveform_tensor_in_bfloat16():
    loaded = load_clip(torch.from_numpy(sine(0.5)).bfloat16())
    np.testing.assert_allclose(loaded.waveform, sine(0.5), atol=2e-3)


def test_long_waveform_keeps_its_end():
    with pytest.warns(UserWarning, match="has 3.00 s of sound"):
        loaded = load_clip(sine(3), max_audio_seconds=1.0)
    np.testing.assert_array_equal(loaded.waveform, sine(3)[-SAMPLING_RATE:])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0.1, np.nan, 0.2]), "sample 1 is nan; clean"),
        (np.array([0.1, 0.2, -np.inf]), "sample 2 is -inf; clean"),
        (np.zeros(0, dtype=np.float32), "no samples"),
        (np.zeros(100, dtype=np.int16), "divide 16-bit integers by 32768"),
        (np.zeros((2, 100), dtype=np.float32), r"\(2, 100\).*reorder the axes"),
        (np.zeros((4, 3, 8, 8), dtype=np.uint8), r"\(4, 3, 8, 8\).*reorder the axes"),
        (np.zeros((4, 8, 8, 3), dtype=np.float32), "float32.*convert the values"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), r"\(0, 8, 8, 3\)"),
        (torch.zeros(4, 8, 8, 4, dtype=torch.uint8), r"Tensor of shape \(4, 8, 8, 4\)"),
    ],
)
def test_bad_arrays_are_named(array, message):
    with pytest.raises(MediaError, match=message):
        load_clip(array)
