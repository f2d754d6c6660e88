"""Real media files for tests, made by PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def frame_image(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame whose grey level tells its index: 16 levels apart, so that compression cannot confuse them."""
    image = np.full((height, width, 3), 8 + 16 * (index % 15), dtype=np.uint8)
    image[: height // 4, : width // 4] = 255  # top left is bright, so that rotations show
    return image


def write_clip(
    path: Path,
    frames: int = 16,
    rate: int = 8,
    size: tuple[int, int] = (64, 48),
    seconds: float | None = None,
    audio_rate: int | None = 16_000,
    layout: str = "mono",
    pitch: float = 440.0,
    codec: str = "mpeg4",
    pts: list[int] | None = None,
    container_options: dict | None = None,
) -> str:
    """An mp4 (or what the suffix says) with numbered frames and a sine; `frames=0` or `audio_rate=None` for one alone.

    `pts` gives each frame's time in 1/1000 s (variable frame rate) instead of `rate`; `seconds` the length of the sound.
    """
    seconds = seconds if seconds is not None else frames / rate
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = sound = None
        if frames:
            video = container.add_stream(codec, rate=rate)
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            if pts:
                video.codec_context.time_base = Fraction(1, 1000)
        if audio_rate:
            sound = container.add_stream(
                "aac" if Path(path).suffix != ".wav" else "pcm_s16le", rate=audio_rate, layout=layout
            )
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(frame_image(index, *size), format="rgb24")
            if pts:
                frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            container.mux(video.encode(frame))
        if video:
            container.mux(video.encode())
        if sound:
            channels = sound.codec_context.layout.nb_channels
            time = np.arange(round(seconds * audio_rate)) / audio_rate
            wave = np.tile(0.3 * np.sin(2 * np.pi * pitch * time).astype(np.float32), (channels, 1))
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
            frame.sample_rate = audio_rate
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return str(path)
