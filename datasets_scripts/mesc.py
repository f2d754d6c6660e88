"""MESC: 1,019 dialogues of the series *In Treatment*, annotated utterance by utterance (github.com/chuyq/MESC).

Labels, words and time codes come from `MESC.csv`. The official split, problem types and situations come from `val.json`
and `test.json`, whose own texts are not used: descriptions of the video, the target's among them, are appended to them.
Episodes are not distributed; without clips the rows are text only.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from multimood.processors.turn import EMOTIONS, STRATEGIES

from .corpus_files import clean_text, clip_inside, read_json, read_table, whole_number
from .report import CorpusError, SkipReport, skipping
from .schema import Row, Utterance

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
EPISODE_FILES = frozenset(".avi .m2ts .m4v .mkv .mov .mp4 .mpg .ts .webm".split())


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
