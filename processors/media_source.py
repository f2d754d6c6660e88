"""Where a clip comes from: paths, URLs, bytes and files, opened safely; and the one error for what cannot be used."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO, TextIOBase
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import urlopen

import av
import numpy as np
import torch
from huggingface_hub import HfFileSystem

MAX_DOWNLOAD_BYTES = 1 << 30
# Demuxers that read nothing but the file they are given: a playlist that poses as a clip must not open other files.
FORMATS = "aac,ac3,aiff,amr,asf,avi,caf,flac,flv,gif,matroska,mov,mp3,mpeg,mpegts,ogg,w64,wav"


class MediaError(ValueError):
    """A clip, frames or a waveform that cannot be used; says which, why, and what to do."""


def describe(source: Any) -> str:
    """A short name of a source for messages."""
    if isinstance(source, dict):
        return describe(source.get("path") or source.get("bytes"))
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if isinstance(source, (list, tuple)):
        return f"[{', '.join(describe(part) for part in source[:3])}{', …' if len(source) > 3 else ''}]"
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return f"<{type(source).__name__} of shape {tuple(source.shape)}, {source.dtype}>"
    return f"<{getattr(source, 'name', type(source).__name__)}>"


@contextmanager
def media_errors(name: str) -> Iterator[None]:
    """Turn the errors of the library into `MediaError`."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise MediaError(
            f"{name} cannot be read as a clip ({error.strerror}); it is damaged, cut off or no media file: export or "
            "download it again"
        ) from error


def open_container(source: Any, stack: ExitStack, name: str) -> av.container.InputContainer:
    """Open a path, URL, bytes or binary file for reading; `stack` closes what was opened.

    Raises:
        MediaError: the source is absent, empty, cut off, of unknown kind or format, or cannot be downloaded.
    """
    file = _open_source(source, stack, name)
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise MediaError(f"{name} is empty (0 bytes); record or download it again")
    _check_boxes(file, size, name)
    file.seek(0)
    with media_errors(name):
        return stack.enter_context(av.open(file, "r", options={"format_whitelist": FORMATS}))


def _check_boxes(file: BinaryIO, size: int, name: str) -> None:
    """Refuse an MP4 or MOV file whose end is missing: FFmpeg would take what is left of the index as all of it, and the
    sound would be lost in silence. Boxes as in ISO 14496-12, 4.2; other formats have none that would be recognised."""
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # up to the end of the file, or no box
            return
        position += length
        if position > size and kind in (b"moov", b"moof", b"mdat"):
            raise MediaError(
                f"{name} is cut off: its last part ({kind.decode()}) lacks {position - size:,} bytes; copy or download it "
                "again"
            )


def _open_source(source: Any, stack: ExitStack, name: str) -> BinaryIO:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return BytesIO(source)
    if isinstance(source, dict):  # a clip of a row of `datasets`: {"bytes", "path"}
        return _open_source(source.get("path") if source.get("bytes") is None else source["bytes"], stack, name)
    if isinstance(source, str) and source.startswith("hf://"):
        return stack.enter_context(_hub_file(source))
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        file = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=64 << 20))  # noqa: SIM115 (the stack closes it)
        _download(source, file)
        return file
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_file():
            raise MediaError(f"there is no file {name}; check the path")
        return stack.enter_context(Path(source).open("rb"))
    if not (hasattr(source, "read") and hasattr(source, "seek")) or isinstance(source, TextIOBase):
        raise MediaError(
            f"{name} is no clip; give a path, URL, bytes or binary file, frames (frames, height, width, 3) or a waveform "
            "(samples,) as an array"
        )
    return source


def _hub_file(url: str) -> BinaryIO:
    """A file in a repository of the Hub, such as a clip of a streamed dataset."""
    try:
        return HfFileSystem().open(url, "rb")
    except OSError as error:
        raise MediaError(f"cannot open {url} ({error}); check the address and your token") from error


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
