"""Clips a second from path to tensors: the processor, beside the chain that users of such models run today.

That chain is an ffmpeg process for the sound, decord or OpenCV for the frames, and a call of the image processor for
each frame. Both sides make the same: 8 frames of 384 × 384 for SigLIP and 30 s of log-Mel spectrogram for Whisper. They
run in this process, clip by clip, by turns, with one thread for torch, as in a worker of a DataLoader (ffmpeg, decord and
OpenCV take as many as they like); the ratio is over the faster of the chains that are installed.

    python benchmarks/bench_media.py
    python benchmarks/bench_media.py --clips ../shared/data/clips
"""

import argparse
import multiprocessing
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import reporting
import torch
from tokenizers import Tokenizer, models
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from multimood.processors.processing_multimood import MultiMoodProcessor

FRAMES, SAMPLING_RATE = 8, 16_000


def build_processor() -> MultiMoodProcessor:
    """The paper's vision tower, Whisper, and tokenizers that know no words, as none are timed."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")), eos_token="?"
    )
    return MultiMoodProcessor.from_backbones(
        SiglipImageProcessorPil(size={"height": 384, "width": 384}),
        WhisperFeatureExtractor(),
        tokenizer,
        tokenizer,
        vision_config=SiglipVisionConfig(image_size=384, patch_size=14),
        audio_config=WhisperConfig(),
        num_frames=FRAMES,
    )


def ours(processor: MultiMoodProcessor, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel values, spectrogram) by the processor."""
    batch = processor(text="<|video|><|audio|>", videos=[path], audio=[path], return_tensors="pt")
    return batch["pixel_values_videos"][0], batch["input_features"][0]


def chain(processor: MultiMoodProcessor, path: str, read_frames: Callable) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel values, spectrogram) by an ffmpeg process, `read_frames`, and the image processor frame by frame."""
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "s16le", "-ac", "1", "-ar", str(SAMPLING_RATE), "-"]
    sound = subprocess.run(command, capture_output=True, check=True).stdout
    waveform = np.frombuffer(sound, dtype=np.int16).astype(np.float32) / 32768
    pixels = [processor.image_processor(frame, return_tensors="pt")["pixel_values"][0] for frame in read_frames(path)]
    features = processor.feature_extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    return torch.stack(pixels), features["input_features"][0]


def midpoints(count: int) -> list[int]:
    return [(2 * i + 1) * count // (2 * FRAMES) for i in range(FRAMES)]


def decord_frames(path: str) -> np.ndarray:
    import decord

    reader = decord.VideoReader(path)
    return reader.get_batch(midpoints(len(reader))).asnumpy()


def opencv_frames(path: str) -> list[np.ndarray]:
    import cv2

    capture = cv2.VideoCapture(path)
    wanted = midpoints(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    frames = []
    for index in range(wanted[-1] + 1):
        capture.grab()
        if index in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return frames


READERS = {"decord": ("decord", decord_frames), "opencv": ("cv2", opencv_frames)}


def run_side(side: str, processor: MultiMoodProcessor, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    return ours(processor, path) if side == "multimood" else chain(processor, path, READERS[side][1])


def peak_memory(side: str, paths: list[str], threads: int) -> float | None:
    """MB by which a fresh process grew at most while it read the clips; `None` where the system does not tell (not Linux).

    The chain's ffmpeg process comes on top.
    """
    torch.set_num_threads(threads)
    processor = build_processor()
    run_side(side, processor, paths[0])  # loads what is loaded once
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")  # forget the peak so far

    def kilobytes(name: str) -> int:
        return int(status.read_text().split(f"{name}:")[1].split()[0])

    before = kilobytes("VmRSS")
    for path in paths:
        run_side(side, processor, path)
    return (kilobytes("VmHWM") - before) / 1024


def write_clips(folder: Path, count: int, seed: int) -> list[str]:
    """Clips of 4 s, 672 × 378, 25 frames a second: a drifting texture with noise, and a noisy tone in stereo."""
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        path = folder / f"clip{number}.mp4"
        texture = np.kron(rng.integers(0, 256, (60, 100, 3)), np.ones((8, 8, 1))).astype(np.int16)
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = 672, 378, "yuv420p"
            sound = container.add_stream("aac", rate=44_100, layout="stereo")
            for index in range(100):
                moved = texture[index % 90 : index % 90 + 378, index : index + 672]
                image = np.clip(moved + rng.integers(-8, 9, moved.shape), 0, 255).astype(np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(video.encode())
            wave = 0.3 * np.sin(np.arange(4 * 44_100) / 30) + rng.normal(0, 0.05, 4 * 44_100)
            frame = av.AudioFrame.from_ndarray(
                np.tile(wave.astype(np.float32), (2, 1)), format="fltp", layout="stereo"
            )
            frame.sample_rate = 44_100
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
        paths.append(str(path))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of mp4 files; generated ones where absent")
    parser.add_argument("--rounds", type=int, default=7, help="times each clip is read by each side")
    parser.add_argument("--seed", type=int, default=0, help="of generated clips")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of the processor's decoder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    chains = [name for name, (module, _) in READERS.items() if find_spec(module)]
    if not shutil.which("ffmpeg") or not chains:
        parser.error("nothing to compare with: install ffmpeg, and decord or opencv-python-headless")
    sides = ["multimood", *chains]
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(map(str, args.clips.glob("*.mp4"))) if args.clips else write_clips(Path(folder), 6, args.seed)
        if not paths:
            parser.error(f"there is no mp4 file in {args.clips}")
        print(f"{len(paths)} clips, {args.rounds} rounds, torch threads {args.threads}: {', '.join(sides)}")

        processor = build_processor()
        times: dict[str, list[list[float]]] = {side: [[] for _ in paths] for side in sides}
        differences = []  # of the pixels, in grey levels
        for number in tqdm(range(args.rounds + 1), unit="round"):
            for index, path in enumerate(paths):
                results = {}
                for side in sides[:: 1 if number % 2 else -1]:
                    start = time.perf_counter()
                    results[side] = run_side(side, processor, path)
                    if number:  # the first round warms up
                        times[side][index].append(time.perf_counter() - start)
                pixels = results["multimood"][0]
                differences += [(results[side][0] - pixels).abs().mean().item() * 127.5 for side in chains]
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            memory = {side: pool.apply(peak_memory, (side, paths, args.threads)) for side in sides}

    seconds = {side: statistics.mean(map(statistics.median, times[side])) for side in sides}  # a clip
    for side in sides:
        speed = f"{1 / seconds[side]:6.2f} clips/s, {seconds[side] * 1e3:6.1f} ms a clip"
        peak = "unknown" if memory[side] is None else f"{memory[side]:.0f} MB"
        print(f"{side:>10}: {speed}, memory grows by {peak}")
    print(f"the sides' pixels differ by {statistics.mean(differences):.2f} of 255 grey levels on average")
    ratio = min(seconds[side] for side in chains) / seconds["multimood"]
    path = reporting.write(
        "media",
        {
            "median_seconds_a_clip": seconds,
            "clips_a_second": {side: 1 / value for side, value in seconds.items()},
            "peak_memory_mb": memory,
            "mean_difference_of_pixels_in_grey_levels": statistics.mean(differences),
            "ratios": {"media": ratio},
        },
        clips="real" if args.clips else "generated",
        number_of_clips=len(paths),
        rounds=args.rounds,
        threads=args.threads,
        seed=args.seed,
    )
    print(f"wrote {path}")
    print(f"ratio media {ratio:.2f}")


if __name__ == "__main__":
    main()
