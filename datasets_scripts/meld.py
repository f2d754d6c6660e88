"""MELD: 13,708 utterances of the series *Friends* with seven emotions (arXiv 1810.02508, github.com/declare-lab/MELD).

Each utterance is a row that asks for its speaker's emotion, after what was said before in its scene. The model knows two
parts: the speaker is the "client", everybody else in the scene the "therapist".
"""

from collections import defaultdict
from pathlib import Path

from .corpus_files import clean_text, clip_inside, read_table, whole_number
from .label_mapping import EMOTION_NAMES, known_label
from .recognition import first_there, one_of, recognition_row
from .report import CorpusError, SkipReport, skipping
from .schema import Row

COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
# Split → MELD's name for it, and the folder of its clips in the archive.
SPLITS = {
    "train": ("train", "train_splits"),
    "validation": ("dev", "dev_splits_complete"),
    "test": ("test", "output_repeated_splits_test"),
}
# In the distributed archive one clip cannot be opened and one is absent (issues 39 and 22 of its repository).
KNOWN_BROKEN = {("train", "dia125_utt3"), ("validation", "dia110_utt7")}


def load_meld(root: str | Path, split: str = "train", *, skip_bad: SkipReport | None = None) -> list[Row]:
    """The rows of one split, in the order of its table.

    Args:
        root: folder of the unpacked archive: `{train,dev,test}_sent_emo.csv`, there or in a folder of the split's name or in
            `data/MELD`, and the clips `dia{X}_utt{Y}.mp4` in the archive's folders.
        split: "train", "validation" or "test".
        skip_bad: goes on after bad input and keeps what was left out. The two clips that are known to be broken have no
            row in any case, and are kept there too.

    Raises:
        CorpusError: bad input or a missing clip, with file and line.
    """
    one_of(split, tuple(SPLITS), "split")
    root = Path(root)
    name, folder = SPLITS[split]
    file = f"{name}_sent_emo.csv"
    table = first_there(root, (file, f"{name}/{file}", f"data/MELD/{file}"), f"table of the {split} split")
    clips = first_there(root, (f"{name}/{folder}", folder), f"folder of clips of the {split} split")

    rows: list[Row] = []
    scenes: dict[int, list[tuple[str, str]]] = defaultdict(list)  # what was said so far: (speaker, words)
    seen: dict[tuple[int, int], str] = {}
    for place, cells in read_table(table, COLUMNS):
        with skipping(skip_bad):
            if isinstance(cells, CorpusError):
                raise cells
            ids = tuple(whole_number(cells[column], column, place) for column in ("Dialogue_ID", "Utterance_ID"))
            scene, number = ids
            if ids in seen:
                problem = f"utterance {number} of dialogue {scene} is already at {seen[ids]}; remove one of them"
                raise CorpusError(place, problem, "duplicate id")
            seen[ids] = place
            speaker, text = clean_text(cells["Speaker"]), clean_text(cells["Utterance"])
            history = [
                {
                    "speaker": "client" if by == speaker else "therapist",
                    "text": said,
                    "emotion": None,
                    "strategy": None,
                }
                for by, said in scenes[scene]
            ]
            scenes[scene].append((speaker, text))
            label = known_label(cells["Emotion"], tuple(EMOTION_NAMES["meld"]), "Emotion", place)
            clip = f"dia{scene}_utt{number}"
            if (split, clip) in KNOWN_BROKEN:
                if skip_bad is not None:
                    skip_bad.add(CorpusError(place, f"{clip}.mp4 is broken in MELD's archive", "known broken clip"))
                continue
            path = clip_inside(clips, f"{clip}.mp4", place)
            rows.append(
                recognition_row(
                    "meld", f"{name}-{scene}", label, path, turn_id=number, utterance=text, history=history
                )
            )
    return rows
