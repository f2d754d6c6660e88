"""Label sets of the corpora, and what their emotions are called among the model's seven.

A class is renamed only where it means the same ("happy" is joy). One that the seven do not have (surprise, contempt,
anxiety, helplessness, disappointment) stays itself: anxiety is not put under fear, nor contempt under disgust. No two
classes of a corpus get one name, so nothing is lost; a row keeps the corpus's own name as `corpus_emotion`.
"""

from collections.abc import Sequence
from difflib import get_close_matches

from .report import CorpusError

# Corpus → its classes, in its own order → the row's `client_emotion`.
EMOTION_NAMES: dict[str, dict[str, str]] = {
    "dfew": {  # labels 1 to 7 of the annotation files
        "happy": "joy",
        "sad": "sadness",
        "neutral": "neutral",
        "angry": "anger",
        "surprise": "surprise",
        "disgust": "disgust",
        "fear": "fear",
    },
    "meld": {
        "anger": "anger",
        "disgust": "disgust",
        "fear": "fear",
        "joy": "joy",
        "neutral": "neutral",
        "sadness": "sadness",
        "surprise": "surprise",
    },
    "mafw": {
        "anger": "anger",
        "disgust": "disgust",
        "fear": "fear",
        "happiness": "joy",
        "neutral": "neutral",
        "sadness": "sadness",
        "surprise": "surprise",
        "contempt": "contempt",
        "anxiety": "anxiety",
        "helplessness": "helplessness",
        "disappointment": "disappointment",
    },
}


def known_label(label: str, allowed: Sequence[str], field: str, place: str) -> str:
    """The one of `allowed` that `label` spells, whatever its case and blanks.

    Raises:
        CorpusError: it spells none of them.
    """
    spelled = " ".join(label.lower().split())
    if spelled not in allowed:
        nearest = get_close_matches(spelled, allowed, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise CorpusError(place, f"{field} is {label!r}; {hint}allowed: {', '.join(allowed)}", "unknown label")
    return spelled
