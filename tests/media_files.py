"""Real media files for tests, made by PyAV."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LEVELS = 15  # grey levels, 16 apart so that lossy codecs cannot confuse them; two of them number a frame


def numbered_frame(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """An RGB frame whose halves' grey levels tell its number (modulo 225); the top left quarter's top is white."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[:, : width // 2] = 8 + 16 * (number % LEVELS)
    image[:, width // 2 :] = 8 + 16 * (number // LEVELS % LEVELS)
    image[: height // 4, : width // 4] = 255
    return image


def frame_number(frame: np.ndarray) -> int:
    """Read the number of a decoded `numbered_frame`."""
    height, width = frame.shape[:2]
    halves = frame[height // 2 : -4, 4 : width // 2 - 4], frame[height // 2 : -4, width // 2 + 4 : -4]
    low, high = (round((float(half.mean()) - 8) / 16) for half in halves)
    return low + LEVELS * high


def sine(seconds: float, rate: int = 16_000, pitch: float = 440.0) -> np.ndarray:
    """A mono tone of shape `(samples,)`, float32."""
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_clip(
    path: Path | str,
    frames: int = 16,
    rate: int = 8,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    seconds: float | None = None,
    audio_rate: int | None = 16_000,
    layout: str = "mono",
    audio_codec: str = "aac",
    pitch: float = 440.0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> str:
    """Write a clip of numbered frames and a tone, and give its path.

    Args:
        path: where; its suffix chooses the container.
        frames: how many; 0 for sound alone.
        rate: frames a second.
        size: (width, height).
        codec, pix_fmt, options: of the picture.
        times: when each frame is shown, in 1/1000 s, for a variable frame rate.
        seconds: length of the sound; by default that of the picture.
        audio_rate: samples a second; `None` for picture alone.
        layout, audio_codec, pitch: of the sound; the tone is the same in all channels.
        container_options: for the muxer.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = sound = None
        if frames:
            video = container.add_stream(codec, rate=rate, options=options or {})
            video.width, video.height, video.pix_fmt = *size, pix_fmt
            if times:
                video.codec_context.time_base = Fraction(1, 1000)
        if audio_rate:
            sound = container.add_stream(audio_codec, rate=audio_rate, layout=layout)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(video.encode(frame))
        if video:
            container.mux(video.encode())
        if sound:
            wave = sine(seconds if seconds is not None else frames / rate, audio_rate, pitch)
            channels = sound.codec_context.layout.nb_channels
            resampler = av.AudioResampler(format=sound.codec_context.format, layout=layout, rate=audio_rate)
            for start in range(0, len(wave), audio_rate):
                piece = np.tile(wave[start : start + audio_rate], (channels, 1))
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
                frame.sample_rate = audio_rate
                for converted in resampler.resample(frame):
                    container.mux(sound.encode(converted))
            container.mux(sound.encode())
    return str(path)


def turn_clip(path: Path | str, degrees: int) -> None:
    """Mark an mp4 as filmed with a turned phone: players show it turned clockwise by `degrees` (90, 180 or 270).

    Writes the transformation matrix of the first track's header box (ISO 14496-12, 8.3.2).
    """
    data = bytearray(Path(path).read_bytes())
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one, whole = 1 << 16, 1 << 30
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, whole)
    start = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes stand before the matrix
    data[start : start + 36] = matrix
    Path(path).write_bytes(bytes(data))
