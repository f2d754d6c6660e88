"""DFEW: clips from films with seven emotions, five folds, of which 11,697 have a single label (arXiv 2008.05924).

Licensed per user for research; never downloaded here. A row is one clip: picture and sound, no dialogue.
"""

from contextlib import ExitStack
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av

from .corpus_files import clip_inside, read_table, whole_number
from .label_mapping import EMOTION_NAMES
from .recognition import FOLDS, first_there, one_of, recognition_row
from .report import CorpusError, SkipReport, skipping
from .schema import Row

SPLITS = ("train", "test")
CLIP_FOLDERS = ("Clip/original", "original")
FRAME_FOLDERS = tuple(
    f"{parent}{name}" for parent in ("Clip/", "") for name in ("jpg_256", "clip_224x224", "clip_224x224_16f")
)
WAV_FOLDERS = ("Clip/wav", "Clip/audio", "wav", "audio")
CLIP_FILES = (".mp4", ".avi", ".mkv")
FRAME_RATE = Fraction(25)  # of frames without sound, whose own rate is not known


def load_dfew(
    root: str | Path,
    fold: int = 1,
    split: str = "train",
    *,
    joined: str | Path | None = None,
    skip_bad: SkipReport | None = None,
) -> list[Row]:
    """The rows of one fold's split, in the order of its list.

    Args:
        root: folder with the lists `EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv` or `{split}_set_{fold}.csv`
            (columns `video_name`, `label`), and the media: clips `Clip/original/1.mp4`, or else folders of frames
            (`Clip/jpg_256/00001/`, `Clip/clip_224x224/00001/` …) beside sounds (`Clip/wav/1.wav`). Names may be padded with
            zeros or not.
        fold: 1 to 5.
        split: "train" or "test".
        joined: folder for the clips into which frames and sounds are joined, without encoding them anew; those already
            there are kept. Needed for frames only.
        skip_bad: goes on after bad input and keeps what was left out.

    Raises:
        CorpusError: bad input or a missing clip, with file and line.
    """
    one_of(fold, FOLDS, "fold")
    one_of(split, SPLITS, "split")
    root = Path(root)
    lists = (f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv", f"{split}_set_{fold}.csv")
    lists += (f"EmoLabel_DataSplit/{lists[1]}",)
    table = first_there(root, lists, f"list of fold {fold}")
    media = _Media(root, joined)

    labels = tuple(EMOTION_NAMES["dfew"])
    rows: list[Row] = []
    seen: dict[int, str] = {}
    for place, cells in read_table(table, ("video_name", "label")):
        with skipping(skip_bad):
            if isinstance(cells, CorpusError):
                raise cells
            number = whole_number(cells["video_name"].removesuffix(".mp4"), "video_name", place)
            label = whole_number(cells["label"], "label", place)
            if not 1 <= label <= len(labels):
                raise CorpusError(place, f"label is {label}; allowed: 1 to {len(labels)}", "unknown label")
            if number in seen:
                raise CorpusError(place, f"clip {number} is already at {seen[number]}; remove one", "duplicate id")
            seen[number] = place
            rows.append(recognition_row("dfew", str(number), labels[label - 1], media.clip(number, place)))
    return rows


class _Media:
    """The clips of a tree: files as they are, or frames and sounds, joined when they are asked for."""

    def __init__(self, root: Path, joined: str | Path | None):
        folder = first_there(root, (*CLIP_FOLDERS, *FRAME_FOLDERS), "clips or frames")
        self.folder = folder
        self.are_frames = folder.relative_to(root).as_posix() in FRAME_FOLDERS
        self.entries = _numbered(folder, ("",) if self.are_frames else CLIP_FILES)
        self.wav_folder = next((root / name for name in WAV_FOLDERS if (root / name).is_dir()), None)
        self.wavs = _numbered(self.wav_folder, (".wav",)) if self.wav_folder else {}
        self.joined = Path(joined) if joined is not None else None
        if self.are_frames and self.joined is None:
            problem = "holds frames, not clips; give a folder `joined` for clips made of frames and sounds"
            raise CorpusError(folder, problem, "frames")

    def clip(self, number: int, place: str) -> str:
        """The absolute path of clip `number`."""
        entry = self.entries.get(number)
        if entry is None:
            raise CorpusError(place, f"there is no clip {number} in {self.folder}", "missing clip")
        if not self.are_frames:
            return clip_inside(self.folder, entry, place)
        if self.wav_folder and number not in self.wavs:
            raise CorpusError(place, f"there is no sound {number}.wav in {self.wav_folder}", "missing clip")
        path = self.joined.resolve() / f"{number:05d}.mkv"
        if not path.exists():
            frames = [
                clip_inside(self.folder, frame.relative_to(self.folder), place)
                for frame in _frames(self.folder / entry)
            ]
            if not frames:
                raise CorpusError(place, f"there are no frames (.jpg) in {self.folder / entry}", "missing clip")
            wav = clip_inside(self.wav_folder, self.wavs[number], place) if self.wav_folder else None
            try:
                _join(frames, wav, path)
            except av.error.FFmpegError as error:
                problem = f"clip {number} cannot be joined ({error}); unpack its frames and sound again"
                raise CorpusError(place, problem, "damaged clip") from error
        return str(path)


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, str]:
    """The entries of a folder that are numbers, whether padded with zeros or not: number → name."""
    found: dict[int, str] = {}
    for name in sorted(path.name for path in folder.iterdir() if path.suffix.lower() in suffixes):
        stem = Path(name).stem
        if stem.isascii() and stem.isdigit():
            if other := found.get(int(stem)):
                raise CorpusError(folder, f"{other} and {name} are both clip {int(stem)}; keep one", "duplicate id")
            found[int(stem)] = name
    return found


def _frames(folder: Path) -> list[Path]:
    """The frames of a clip in order: by the last number in their names, as 2.jpg comes before 10.jpg."""
    frames = [path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")]
    return sorted(
        frames, key=lambda path: (int("".join(filter(str.isdigit, path.stem.rpartition("_")[2])) or -1), path.name)
    )


def _join(frames: list[str], wav: str | None, path: Path) -> None:
    """Writes a Matroska file of the JPEG frames and the sound's samples as they are; the frames fill the sound's time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.mkv")
    with ExitStack() as stack:
        output = stack.enter_context(av.open(str(part), "w", format="matroska", options={"fflags": "+bitexact"}))
        picture = stack.enter_context(av.open(BytesIO(Path(frames[0]).read_bytes()), format="jpeg_pipe"))
        video = output.add_stream_from_template(picture.streams.video[0])
        packets, seconds = [], len(frames) / FRAME_RATE
        if wav is not None:
            sound = stack.enter_context(av.open(wav, format="wav"))
            audio = output.add_stream_from_template(sound.streams.audio[0])
            for packet in sound.demux():
                if packet.size:
                    packet.stream = audio
                    packets.append(packet)
            if packets:
                seconds = (packets[-1].pts + packets[-1].duration) * packets[-1].time_base
        for number, frame in enumerate(frames):
            packet = av.Packet(Path(frame).read_bytes())
            packet.stream, packet.time_base, packet.is_keyframe = video, Fraction(1, 1000), True
            packet.pts = packet.dts = round(1000 * number * seconds / len(frames))
            packet.duration = round(1000 * (number + 1) * seconds / len(frames)) - packet.pts
            packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.pts * packet.time_base):
            output.mux(packet)
    part.replace(path)
