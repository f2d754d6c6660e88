"""MAFW: clips from films, series and short videos with eleven emotions, five folds (arXiv 2208.00847).

Licensed per user for research; never downloaded here. A row is one clip of the single-label set: picture and sound, no
dialogue.
"""

from pathlib import Path

from .corpus_files import clip_inside, read_text
from .label_mapping import EMOTION_NAMES, known_label
from .recognition import FOLDS, first_there, one_of, recognition_row
from .report import CorpusError, SkipReport, skipping
from .schema import Row

SPLITS = ("train", "test")
FOLD_FOLDERS = ("Train & Test Set/single/no_caption", "single/no_caption", "no_caption", ".")
CLIP_FOLDERS = ("data/clips", "clips", "data")


def load_mafw(
    root: str | Path, fold: int = 1, split: str = "train", *, skip_bad: SkipReport | None = None
) -> list[Row]:
    """The rows of one fold's split, in the order of its list.

    Args:
        root: folder with `set_{fold}/{split}.txt` (lines "00001.mp4 anger"), there or in `Train & Test Set/single/no_caption`,
            and the clips in `data/clips`, `clips` or `data`.
        fold: 1 to 5.
        split: "train" or "test".
        skip_bad: goes on after bad input and keeps what was left out.

    Raises:
        CorpusError: bad input or a missing clip, with file and line.
    """
    one_of(fold, FOLDS, "fold")
    one_of(split, SPLITS, "split")
    root = Path(root)
    lists = [f"{folder}/set_{fold}/{split}.txt" for folder in FOLD_FOLDERS]
    path = first_there(root, lists, f"list of fold {fold}")
    clips = first_there(root, CLIP_FOLDERS, "folder of clips")

    rows: list[Row] = []
    seen: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        with skipping(skip_bad):
            name, label = [*line.split(maxsplit=1), ""][:2]
            label = known_label(label, tuple(EMOTION_NAMES["mafw"]), "emotion", place)
            if name in seen:
                raise CorpusError(place, f"{name} is already at {seen[name]}; remove one of them", "duplicate id")
            seen[name] = place
            rows.append(recognition_row("mafw", Path(name).stem, label, clip_inside(clips, name, place)))
    return rows
