"""MESC: 1,019 dialogues of the series *In Treatment*, annotated utterance by utterance (github.com/chuyq/MESC).

Labels, words and time codes come from `MESC.csv`. The official split, problem types and situations come from `val.json`
and `test.json`, whose own texts are not used: descriptions of the video, the target's among them, are appended to them.
Episodes are not distributed; without clips the rows are text only.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from multimood.processors.turn import EMOTIONS, STRATEGIES

from .corpus_files import clean_text, clip_inside, read_json, read_table, whole_number
from .handovers import Said, handover_rows
from .label_mapping import known_label
from .report import CorpusError, SkipReport, skipping
from .schema import Row

SPLITS = ("train", "validation", "test")
SCHEMES = ("official", "episode_disjoint")
COLUMNS = (
    "Utterance",
    "Speaker",
    "Emotion",
    "Strategy",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "StartTime",
    "EndTime",
)
OFFICIAL_FILES = {"validation": "val.json", "test": "test.json"}
SPEAKERS = {"Client": "client", "Therapist": "therapist"}
JSON_SPEAKERS = {"user": "client", "sys": "therapist"}
HELD_OUT = 102 / 1019  # share of the dialogues in the official validation split, and in the test split
MATCHED = 0.8  # least share of a dialogue's utterances that begin with the words of the other; strangers reach 0.07

TIME_CODE = re.compile(r"(\d{1,2}):([0-5]\d):([0-5]\d)[,.](\d{3})")


@dataclass(frozen=True, slots=True)
class MescUtterance:
    """One utterance with its place in the series.

    Args:
        text: the words.
        speaker: "client" or "therapist".
        emotion: one of `EMOTIONS`.
        strategy: one of `STRATEGIES`; `None` for the client.
        dialogue_id: of the corpus.
        utterance_id: in the dialogue, from 0.
        season, episode: from 1.
        start, end: seconds in the episode; `end` is later.
        place: file and line, for messages.
    """

    text: str
    speaker: str
    emotion: str
    strategy: str | None
    dialogue_id: int
    utterance_id: int
    season: int
    episode: int
    start: float
    end: float
    place: str

    @property
    def episode_key(self) -> str:
        """Season and episode as in "S01E02"."""
        return f"S{self.season:02d}E{self.episode:02d}"


@dataclass(slots=True)
class MescDialogue:
    """The utterances of a dialogue in order, and what the official files say of it.

    `split` is "validation" or "test" where an official file lists it, else `None`.
    """

    dialogue_id: int
    utterances: list[MescUtterance]
    split: str | None = None
    problem_type: str | None = None
    situation: str | None = None


def clip_name(utterance: MescUtterance) -> str:
    """The file name of an utterance's clip, such as "S01E02_D0012_U003.mp4"."""
    return f"{utterance.episode_key}_D{utterance.dialogue_id:04d}_U{utterance.utterance_id:03d}.mp4"


def load_mesc(
    root: str | Path,
    *,
    split: str = "train",
    scheme: str = "official",
    clips: str | Path | None = None,
    skip_bad: SkipReport | None = None,
) -> list[Row]:
    """The rows of one split: one at each hand-over from client to therapist.

    Args:
        root: folder with `MESC.csv`, and for the official scheme `val.json` and `test.json`.
        split: "train", "validation" or "test".
        scheme: "official" (the dialogues that the two JSON files list; the rest is train) or "episode_disjoint" (no
            episode on two sides; sizes and label shares near the official ones).
        clips: folder of clips named by `clip_name`; without it the rows have no media.
        skip_bad: goes on after bad input and keeps what was left out: a dialogue with a bad line, or a missing clip,
            whose row then has the others.

    Raises:
        CorpusError: bad input, with file and line; nothing is raised for what `skip_bad` takes, except where an official
            dialogue has no counterpart in the CSV, as that one would be trained on.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    if scheme == "official" and (lacking := _lacking_official_files(root, split)):
        raise CorpusError(root, lacking, "missing file")
    dialogues = split_dialogues(read_dialogues(root, skip_bad=skip_bad), root, scheme)
    return [row for dialogue in dialogues[split] for row in dialogue_rows(dialogue, clips=clips, skip_bad=skip_bad)]


def dialogue_rows(
    dialogue: MescDialogue, *, clips: str | Path | None = None, skip_bad: SkipReport | None = None
) -> list[Row]:
    """The rows of one dialogue; `clips` and `skip_bad` as in `load_mesc`."""
    said = [_said(utterance, clips, skip_bad) for utterance in dialogue.utterances]
    return handover_rows(f"mesc-{dialogue.dialogue_id}", said, dialogue.problem_type, dialogue.situation)


def _said(utterance: MescUtterance, clips: str | Path | None, skip_bad: SkipReport | None) -> Said:
    said = Said(utterance.speaker, utterance.text, utterance.emotion, utterance.strategy)
    if clips is not None and utterance.speaker == "client":
        with skipping(skip_bad):
            said.clips.append(clip_inside(Path(clips), clip_name(utterance), utterance.place))
    return said


# ---------------------------------------------------------------------------------------------------- the table


def read_dialogues(root: str | Path, *, skip_bad: SkipReport | None = None) -> list[MescDialogue]:
    """All dialogues of `MESC.csv` in its order, with what the official files that are there say of them.

    Raises:
        CorpusError: as in `load_mesc`.
    """
    root = Path(root)
    utterances: dict[int, dict[int, MescUtterance]] = defaultdict(dict)
    damaged: set[int] = set()  # dialogues with a line that was left out
    dialogue_id = None
    for place, cells in read_table(root / "MESC.csv", COLUMNS):
        read = False
        with skipping(skip_bad):
            if isinstance(cells, CorpusError):  # it may belong to the dialogue of the line before
                raise cells
            dialogue_id = whole_number(cells["Dialogue_ID"], "Dialogue_ID", place)
            utterance = _utterance(cells, dialogue_id, place)
            if other := utterances[dialogue_id].get(utterance.utterance_id):
                problem = f"utterance {utterance.utterance_id} of dialogue {dialogue_id} is already at {other.place}"
                raise CorpusError(place, f"{problem}; remove one of them", "duplicate id")
            utterances[dialogue_id][utterance.utterance_id] = utterance
            read = True
        if not read and dialogue_id is not None:
            damaged.add(dialogue_id)

    dialogues = []
    for dialogue_id, of in utterances.items():
        with skipping(skip_bad):
            if dialogue_id in damaged:
                continue
            numbers = sorted(of)
            if gap := set(range(numbers[-1] + 1)) - of.keys():
                problem = f"dialogue {dialogue_id} lacks utterance {min(gap)}; take the whole file"
                raise CorpusError(of[numbers[0]].place, problem, "missing utterance")
            if len(keys := sorted({utterance.episode_key for utterance in of.values()})) > 1:
                problem = (
                    f"dialogue {dialogue_id} is in {' and '.join(keys)}; give each episode's dialogues their own ids"
                )
                raise CorpusError(of[numbers[0]].place, problem, "episode")
            dialogues.append(MescDialogue(dialogue_id, [of[number] for number in numbers]))
    left_out = len(dialogues) < len(utterances.keys() | damaged)
    for split, name in OFFICIAL_FILES.items():
        if (root / name).is_file():
            _match_official(dialogues, split, root / name, skip_bad if left_out else None)
    return dialogues


def _utterance(cells: dict[str, str], dialogue_id: int, place: str) -> MescUtterance:
    speaker = SPEAKERS.get(cells["Speaker"].strip())
    if speaker is None:
        raise CorpusError(place, f"Speaker is {cells['Speaker']!r}; use one of {', '.join(SPEAKERS)}", "speaker")
    strategies = ("undefined",) if speaker == "client" else STRATEGIES
    strategy = known_label(cells["Strategy"], strategies, f"Strategy of the {speaker}", place)
    text = clean_text(cells["Utterance"])
    if not text:
        raise CorpusError(place, "Utterance is empty; every utterance has words", "empty text")
    start, end = (_seconds(cells[column], column, place) for column in ("StartTime", "EndTime"))
    if end <= start:
        problem = f"EndTime {cells['EndTime']} is not after StartTime {cells['StartTime']}; mend the time codes"
        raise CorpusError(place, problem, "time code")
    return MescUtterance(
        text=text,
        speaker=speaker,
        emotion=known_label(cells["Emotion"], EMOTIONS, "Emotion", place),
        strategy=None if speaker == "client" else strategy,
        dialogue_id=dialogue_id,
        utterance_id=whole_number(cells["Utterance_ID"], "Utterance_ID", place),
        season=whole_number(cells["Season"], "Season", place),
        episode=whole_number(cells["Episode"], "Episode", place),
        start=start,
        end=end,
        place=place,
    )


def _seconds(cell: str, column: str, place: str) -> float:
    match = TIME_CODE.fullmatch(cell.strip())
    if match is None:
        raise CorpusError(place, f"{column} is {cell!r}; write it as 00:01:02,345", "time code")
    hours, minutes, seconds, thousandths = map(int, match.groups())
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000


# ---------------------------------------------------------------------------------------------------- splits


def _match_official(dialogues: list[MescDialogue], split: str, path: Path, skip_bad: SkipReport | None) -> None:
    """Find the counterpart of each dialogue of an official file and give it its split, problem type and situation."""
    by_speakers = defaultdict(list)
    for dialogue in dialogues:
        by_speakers[tuple(said.speaker for said in dialogue.utterances)].append(dialogue)
    entries = read_json(path)
    if not isinstance(entries, list):
        raise CorpusError(path, "holds no list of dialogues; take the official file", "official dialogue")
    for number, entry in enumerate(entries, start=1):
        place = f"{path}, dialogue {number}"
        with skipping(skip_bad):
            texts, speakers = _official_texts(entry, place)
            candidates = by_speakers[speakers]
            shares = [_share_begun(dialogue, texts) for dialogue in candidates]
            found = [dialogue for dialogue, share in zip(candidates, shares, strict=True) if share >= MATCHED]
            if len(found) != 1:
                ids = ", ".join(str(dialogue.dialogue_id) for dialogue in found) or "none"
                problem = f"{len(texts)} utterances that begin with {texts[0][:60]!r} should match one dialogue of "
                raise CorpusError(place, f"{problem}MESC.csv; matching: {ids}", "official dialogue")
            (dialogue,) = found
            if dialogue.split is not None:
                problem = (
                    f"is dialogue {dialogue.dialogue_id} of MESC.csv, which the {dialogue.split} split has already"
                )
                raise CorpusError(place, f"{problem}; remove one of them", "official dialogue")
            dialogue.split = split
            dialogue.problem_type = clean_text(entry["problem_type"]).lower() or None
            dialogue.situation = clean_text(entry["situation"]) or None


def _official_texts(entry: object, place: str) -> tuple[list[str], tuple[str, ...]]:
    try:
        texts = [clean_text(said["text"]) for said in entry["dialog"]]
        speakers = tuple(JSON_SPEAKERS[said["speaker"]] for said in entry["dialog"])
        if not (texts and isinstance(entry["problem_type"], str) and isinstance(entry["situation"], str)):
            raise TypeError("no dialogue, problem_type or situation")
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"is no dialogue of the official form ({type(error).__name__}: {error}); take the official file"
        raise CorpusError(place, problem, "official dialogue") from error
    return texts, speakers


def _share_begun(dialogue: MescDialogue, texts: list[str]) -> float:
    """How many of `texts` begin with the words of their utterance."""
    begun = [text.startswith(said.text) for said, text in zip(dialogue.utterances, texts, strict=True)]
    return sum(begun) / len(begun)


def split_dialogues(
    dialogues: list[MescDialogue], root: str | Path, scheme: str = "official"
) -> dict[str, list[MescDialogue]]:
    """The dialogues of each split; official ones that need a file which is not in `root` are absent."""
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; use one of {', '.join(SCHEMES)}")
    if scheme == "official":
        parts = {split: [d for d in dialogues if (d.split or "train") == split] for split in SPLITS}
        return {split: part for split, part in parts.items() if not _lacking_official_files(Path(root), split)}
    side = _episode_sides(dialogues)
    return {split: [d for d in dialogues if side[d.utterances[0].episode_key] == split] for split in SPLITS}


def _lacking_official_files(root: Path, split: str) -> str:
    """What is missing for a split of the official scheme; empty where nothing is."""
    names = OFFICIAL_FILES.values() if split == "train" else [OFFICIAL_FILES[split]]
    lacking = [name for name in names if not (root / name).is_file()]
    if not lacking:
        return ""
    why = "without it the dialogues to be tested on would be trained on; " if split == "train" else ""
    return f"{' and '.join(lacking)} is not there; {why}get the official files, or use the scheme episode_disjoint"


def _episode_sides(dialogues: list[MescDialogue]) -> dict[str, str]:
    """Each episode's split, such that validation and test have a tenth of the dialogues and the corpus's shares of labels.

    The best of several descents from random choices; one step moves an episode or swaps two. The same dialogues give the
    same answer.
    """
    labels = [("client", emotion) for emotion in EMOTIONS] + [("therapist", strategy) for strategy in STRATEGIES]
    counts: dict[str, Counter] = defaultdict(Counter)
    for dialogue in dialogues:
        of = counts[dialogue.utterances[0].episode_key]
        of["dialogues"] += 1
        of.update((u.speaker, u.strategy if u.speaker == "therapist" else u.emotion) for u in dialogue.utterances)
    episodes = sorted(counts)
    table = np.array([[counts[key][column] for column in ("dialogues", *labels)] for key in episodes], dtype=float)
    target = table.sum(0) * HELD_OUT  # (columns,)
    # The number of dialogues counts as much as all labels together; a rare label may be off by more than a common one.
    scale = np.sqrt(target.clip(1)) * np.array([1, *[len(labels) ** 0.5] * len(labels)])

    def misfit(members: np.ndarray) -> np.ndarray:  # (choices, episodes) of 0 and 1 → (choices,)
        return (((members @ table - target) / scale) ** 2).sum(-1)

    side = dict.fromkeys(episodes, "train")
    for split in ("test", "validation"):
        free = np.array([side[key] == "train" for key in episodes])
        best, best_misfit = None, np.inf
        for start in range(8):
            members = np.array(
                [
                    is_free and Random(f"{start}/{key}").random() < HELD_OUT
                    for is_free, key in zip(free, episodes, strict=True)
                ]
            )
            current = misfit(members[None])[0]
            while True:
                choices = _neighbours(members, free)
                costs = misfit(choices)
                if costs.min() >= current:
                    break
                current, members = costs.min(), choices[costs.argmin()]
            if current < best_misfit:
                best, best_misfit = members, current
        side.update((key, split) for key, chosen in zip(episodes, best, strict=True) if chosen)
    return side


def _neighbours(members: np.ndarray, free: np.ndarray) -> np.ndarray:
    """All choices that differ by one episode more or less, or by one swapped for another: (choices, episodes)."""
    moves = [(i,) for i in np.flatnonzero(free)]
    moves += [(i, j) for i in np.flatnonzero(members) for j in np.flatnonzero(free & ~members)]
    choices = np.repeat(members[None], len(moves), axis=0)
    for choice, move in zip(choices, moves, strict=True):
        choice[list(move)] ^= True
    return choices
