"""What the corpora of labelled clips share: rows that ask for an emotion, and where their files lie."""

from collections.abc import Sequence
from pathlib import Path

from .label_mapping import EMOTION_NAMES
from .report import CorpusError
from .schema import Row, Utterance

FOLDS = (1, 2, 3, 4, 5)


def recognition_row(
    corpus: str,
    dialogue_id: str,
    label: str,
    clip: str,
    *,
    turn_id: int = 0,
    utterance: str = "",
    history: Sequence[Utterance] = (),
) -> Row:
    """The row of one labelled clip: nobody answers, so what concerns the therapist is `None`.

    Args:
        corpus: key of `EMOTION_NAMES`.
        dialogue_id: made unique over corpora by a prefix with the corpus's name.
        label: one of the corpus's own classes.
        clip: absolute path.
        turn_id: place in a dialogue, where the clip is part of one.
        utterance: the words.
        history: what was said before.
    """
    return {
        "dialogue_id": f"{corpus}-{dialogue_id}",
        "turn_id": turn_id,
        "problem_type": None,
        "situation": None,
        "history": list(history),
        "videos": [clip],
        "utterance": utterance,
        "client_emotion": EMOTION_NAMES[corpus][label],
        "therapist_emotion": None,
        "strategy": None,
        "response": None,
        "corpus_emotion": label,
    }


def one_of(value: object, allowed: Sequence, name: str) -> None:
    """Raises `ValueError` where `value` is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(map(str, allowed))}")


def first_there(root: Path, names: Sequence[str], what: str) -> Path:
    """The first of `names` (paths below `root`) that exists.

    Raises:
        CorpusError: none does; `what` says what was looked for.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise CorpusError(root, f"has no {what}; looked for {', '.join(names)}", "missing file")
