"""Cutting a film into the clips of its utterances: `multimood data cut`, beside one ffmpeg process a clip.

Both sides cut the same made-up film (H.264 with frames out of order, AAC) by turns, with one thread, into clips that lie
back to back; the other side encodes the picture at its own size, with the fastest preset. Where there is no ffmpeg, each
clip is opened, searched, decoded and encoded with PyAV. Figures are in processor time.

    python benchmarks/bench_cut.py
    python benchmarks/bench_cut.py --lines 480 --seconds 300 --rounds 1
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import reporting
from PIL import Image
from tqdm import tqdm

from multimood.datasets_scripts.cut import Span, cut_clips

RATE = Fraction(24_000, 1001)  # pictures a second
SAMPLE_RATE = 48_000  # Hz
SHOT = 6.0  # seconds until another picture is shown
BITS = 0.13  # of the film, a pixel: 1.3 Mbit/s at 480 lines, 2.9 at 720
MARGIN = 5.0  # seconds of the film before and after the clips


def write_film(path: Path, lines: int, seconds: float, seed: int) -> None:
    """Shots with a slow pan over something blurred, a head that moves before it, grain, and noise as sound."""
    rng = np.random.default_rng(seed)
    height, width = lines, 2 * round(lines * 16 / 9 / 2)
    grain = rng.normal(0, 4, (8, height, width)).astype(np.int8)
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "bf": "3", "x264-params": "threads=1"}
        video = container.add_stream("libx264", rate=RATE, options=options)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.bit_rate = round(BITS * width * height * RATE)
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        for number in tqdm(range(round(seconds * RATE)), desc=f"drawing {lines} lines", unit="frame"):
            time = float(number / RATE)
            if number % round(SHOT * RATE) == 0:
                coarse = Image.fromarray(rng.integers(20, 220, (24, 40), dtype=np.uint8))
                room = np.asarray(coarse.resize((width + 64, height), Image.Resampling.BICUBIC)).astype(np.int16)
            picture = np.full((height * 3 // 2, width), 128, np.uint8)  # planes of yuv420p, one below the other
            shift = int(8 * (time % SHOT))
            shown = room[:, shift : shift + width] + grain[number % len(grain)]
            head = ((x - 0.9 - 0.05 * np.sin(time)) / 0.2) ** 2 + ((y - 0.5 - 0.02 * np.sin(3 * time)) / 0.3) ** 2 < 1
            shown[head] = shown[head] // 4 + 120
            picture[:height] = np.clip(shown, 0, 255)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(video.encode())
        samples = rng.uniform(-0.3, 0.3, (2, round(seconds * SAMPLE_RATE))).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode())


def draw_spans(seconds: float, seed: int) -> list[Span]:
    """Clips of 2 to 6 s back to back."""
    rng = np.random.default_rng(seed)
    codes = [MARGIN]
    while codes[-1] < seconds - MARGIN - 6:
        codes.append(round(codes[-1] + rng.uniform(2, 6), 3))
    return [Span(f"{i:03}.mp4", 1, 1, codes[i], codes[i + 1]) for i in range(len(codes) - 1)]


def with_ffmpeg(film: Path, spans: list[Span], out: Path) -> None:
    out.mkdir()
    for span in spans:
        where = ["-ss", str(span.start), "-to", str(span.end), "-threads", "1", "-i", str(film)]
        how = ["-c:v", "libx264", "-preset", "ultrafast", "-threads", "1"]
        subprocess.run(["ffmpeg", "-v", "error", *where, *how, str(out / span.name)], check=True)


def with_pyav(film: Path, spans: list[Span], out: Path) -> None:
    out.mkdir()
    for span in spans:
        with av.open(str(film)) as source, av.open(str(out / span.name), "w") as target:
            picture, sound = source.streams.video[0], source.streams.audio[0]
            picture.codec_context.thread_count = 1
            options = {"preset": "ultrafast", "x264-params": "threads=1"}
            video = target.add_stream("libx264", rate=picture.average_rate, options=options)
            video.width, video.height, video.pix_fmt = picture.width, picture.height, "yuv420p"
            streams = {picture: video, sound: target.add_stream("aac", rate=sound.rate)}
            source.seek(int(span.start * av.time_base))
            for packet in source.demux(picture, sound):
                if packet.pts is not None and packet.pts * packet.time_base > span.end + 1:  # frames are out of order
                    break
                for frame in packet.decode():
                    if span.start <= frame.time < span.end:
                        frame.pts -= round(span.start / frame.time_base)
                        target.mux(streams[packet.stream].encode(frame))
            for stream in streams.values():
                target.mux(stream.encode())


def processor_seconds(run: Callable) -> float:
    """Of this process and those it waited for."""
    before = os.times()
    run()
    return sum(os.times()[:4]) - sum(before[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[480, 720], help="heights of the films")
    parser.add_argument("--seconds", type=float, default=60, help="length of a film")
    parser.add_argument("--rounds", type=int, default=3, help="times each side cuts each film")
    parser.add_argument("--films", type=Path, help="folder to keep the films in; those that are there are used again")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    other = "ffmpeg" if shutil.which("ffmpeg") else "pyav"
    sides = {"cut": lambda film, spans, out: cut_clips(spans, film.parent, out)}
    sides[other] = with_ffmpeg if other == "ffmpeg" else with_pyav
    spans = draw_spans(args.seconds, args.seed)
    played = spans[-1].end - spans[0].start
    print(f"{args.rounds} rounds of {len(spans)} clips, {played:.0f} s, on one thread; the other side is {other}")
    results, ratios = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for lines in args.lines:
            film = (args.films or Path(scratch)) / f"{lines}-{args.seconds:.0f}s" / "S01E01.mp4"
            if not film.is_file():
                film.parent.mkdir(parents=True, exist_ok=True)
                write_film(film, lines, args.seconds, args.seed)
            times = {side: [] for side in sides}
            for number in range(args.rounds):
                for side, cut in sides.items():
                    out = Path(scratch) / f"{lines}-{side}-{number}"
                    times[side].append(processor_seconds(lambda cut=cut, film=film, out=out: cut(film, spans, out)))
                    shutil.rmtree(out)
            medians = {side: statistics.median(of) for side, of in times.items()}
            megabits = film.stat().st_size * 8 / args.seconds / 1e6
            results[lines] = {"megabits_per_second": round(megabits, 2), "median_seconds": medians}
            print(
                f"{lines} lines, {megabits:.1f} Mbit/s:", *(f"{side} {value:.2f} s" for side, value in medians.items())
            )
            ratios[f"cut_over_real_time_{lines}"] = played / medians["cut"]
            ratios[f"cut_over_{other}_{lines}"] = medians[other] / medians["cut"]
    settings = {"seconds": args.seconds, "clips": len(spans), "rounds": args.rounds, "seed": args.seed}
    path = reporting.write("cut", {"films": results, "ratios": ratios}, **settings)
    print(f"wrote benchmarks/results/{path.name}")
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f}")


if __name__ == "__main__":
    main()
