"""Small made-up corpora in the public layouts, for tests: the words are invented, only the forms are the corpora's own."""

import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

import av
from media_files import numbered_frame, write_clip

from multimood.datasets_scripts.dfew import SPLITS as FOLD_SPLITS
from multimood.datasets_scripts.label_mapping import EMOTION_NAMES
from multimood.datasets_scripts.mesc import COLUMNS
from multimood.processors.turn import EMOTIONS, STRATEGIES

FOLDS = 5
# (speaker, words) of one dialogue; the client has the first word and the last, and is heard twice in a row.
TALK = (
    ("Client", "The lamp in number {} hums."),
    ("Client", "All night."),
    ("Therapist", "Does it?"),
    ("Client", "It does, in {}."),
    ("Therapist", "What then?"),
    ("Therapist", "Take your time."),
    ("Client", "Then I count to {}."),
)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence], encoding: str = "utf-8") -> Path:
    """A CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def mesc_rows(dialogues: int, episodes: int = 4) -> list[dict[str, str]]:
    """The cells of `MESC.csv`: seven utterances a dialogue, the dialogues spread over the episodes."""
    draw = Random(0)
    rows = []
    for dialogue in range(dialogues):
        for number, (speaker, words) in enumerate(TALK):
            start = 60 * dialogue + 3 * number
            therapist = speaker == "Therapist"
            values = (
                words.format(dialogue),
                speaker,
                draw.choice(EMOTIONS),
                draw.choice(STRATEGIES).capitalize() if therapist else "undefined",
                dialogue,
                number,
                1 + dialogue % 2,
                1 + dialogue % episodes // 2,
                f"{start // 3600:02d}:{start // 60 % 60:02d}:{start % 60:02d},250",
                f"{start // 3600:02d}:{start // 60 % 60:02d}:{start % 60 + 2:02d},750",
            )
            rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def write_mesc(root: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> Path:
    """`MESC.csv` of the given cells."""
    write_table(root / "MESC.csv", COLUMNS, ([row[column] for column in COLUMNS] for row in rows), encoding)
    return root


def official_entries(rows: list[dict[str, str]], dialogues: Iterable[int]) -> list[dict]:
    """Dialogues as `val.json` and `test.json` have them, with a description of the picture behind the words."""
    entries = []
    for dialogue in dialogues:
        said = [row for row in rows if row["Dialogue_ID"] == str(dialogue)]
        entries.append(
            {
                "problem_type": "Sleepless  Nights " if dialogue % 2 else "sleepless nights",
                "situation": f"Room {dialogue} is loud.",
                "dialog": [
                    {
                        "text": f"{row['Utterance']} The speaker looks at a lamp.",
                        "speaker": "user" if row["Speaker"] == "Client" else "sys",
                        "emotion": row["Emotion"],
                        **({"strategy": row["Strategy"]} if row["Speaker"] == "Therapist" else {}),
                    }
                    for row in said
                ],
            }
        )
    return entries


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def folds(clips: int) -> Iterable[tuple[int, str, list[int]]]:
    """(fold, split, numbers from 1) such that each clip is tested in one fold."""
    for fold in range(1, FOLDS + 1):
        for split in FOLD_SPLITS:
            yield fold, split, [n for n in range(1, clips + 1) if (n % FOLDS + 1 == fold) == (split == "test")]


def write_dfew(root: Path, clips: int = 20, *, folders: bool = True, media: str = "clips") -> Path:
    """A tree of DFEW; clip n has label 1 + n % 7.

    Args:
        root: where.
        clips: how many.
        folders: lists in `EmoLabel_DataSplit/train(single-labeled)/set_1.csv`, else in `train_set_1.csv`.
        media: "clips", "frames" (padded folders) or "frames and wavs" (wavs not padded).
    """
    for fold, split, numbers in folds(clips):
        name = f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv" if folders else f"{split}_set_{fold}.csv"
        write_table(root / name, ("video_name", "label"), [(number, 1 + number % 7) for number in numbers])
    if media == "clips":
        _copies(root / "Clip/original", [f"{number}.mp4" for number in range(1, clips + 1)])
        return root
    for number in range(1, clips + 1):
        write_frames(root / "Clip/jpg_256" / f"{number:05d}", number, 12)
        if media == "frames and wavs":
            (root / "Clip/wav").mkdir(parents=True, exist_ok=True)
            write_clip(
                root / "Clip/wav" / f"{number}.wav", frames=0, seconds=1.5, audio_codec="pcm_s16le", layout="stereo"
            )
    return root


def write_frames(folder: Path, clip: int, count: int) -> None:
    """JPEG frames 1.jpg to {count}.jpg, whose numbers `media_files.frame_number` reads: clip + place."""
    folder.mkdir(parents=True)
    for place in range(count):
        frame = av.VideoFrame.from_ndarray(numbered_frame(clip + place), format="rgb24")
        frame.to_image().save(folder / f"{place + 1}.jpg", quality=95)


def write_mafw(root: Path, clips: int = 22) -> Path:
    """A tree of MAFW; clip n has class n % 11."""
    classes = tuple(EMOTION_NAMES["mafw"])
    for fold, split, numbers in folds(clips):
        path = root / "Train & Test Set/single/no_caption" / f"set_{fold}" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{number:05d}.mp4 {classes[number % 11]}\n" for number in numbers))
    _copies(root / "data/clips", [f"{number:05d}.mp4" for number in range(1, clips + 1)])
    return root


def write_meld(root: Path, nested: bool = True) -> Path:
    """A tree of MELD: in each split the scenes 0 and 1 of three utterances by Ann and Bob, and the clips that are known
    to be broken (one damaged, one absent) in scenes of their own."""
    columns = (
        "Sr No.",
        "Utterance",
        "Speaker",
        "Emotion",
        "Sentiment",
        "Dialogue_ID",
        "Utterance_ID",
        "Season",
        "Episode",
    )
    folders = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
    for split, folder in folders.items():
        places = [(scene, number) for scene in range(2) for number in range(3)]
        clips = root / split / folder if nested else root / folder
        _copies(clips, [f"dia{scene}_utt{number}.mp4" for scene, number in places])
        if split == "train":
            places.append((125, 3))
            (clips / "dia125_utt3.mp4").write_bytes(b"no moov")
        elif split == "dev":
            places.append((110, 7))
        classes = tuple(EMOTION_NAMES["meld"])
        write_table(
            root / (split if nested and split == "train" else "") / f"{split}_sent_emo.csv",
            columns,
            [
                (i, f"Words {i}, then\u0085", "Bob" if n == 1 else "Ann", classes[i % 7], "neutral", scene, n, 1, 2)
                for i, (scene, n) in enumerate(places)
            ],
        )
    return root


def _copies(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True)
    first, *others = names
    write_clip(folder / first, frames=4)
    for name in others:
        shutil.copy(folder / first, folder / name)
