"""A small linear classifier of short texts by their words, for what no list of phrases foresees.

A text's features are its words and pairs of words, next to each other or near, and the runs of three to five letters within
words; each has a weight, found by hashing (Weinberger et al., 2009, arXiv:0902.2206). Features count by their rarity, and a text
has length one, so that long ones weigh no more than short ones. It knows wording and not meaning, but many small signs
add up. `training/text_classifiers.py` makes one of labelled examples.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

BUCKETS = 2**17
REACH = 5  # words from one to another that counts as near


@dataclass(frozen=True)
class TextClassifier:
    """Scores of texts for a few questions, each answered "yes" above 0.

    Args:
        names (`tuple[str, ...]`): of the questions.
        weights (`numpy.ndarray` of shape `(BUCKETS, questions)`): of each feature.
        bias (`numpy.ndarray` of shape `(questions,)`): with the threshold in it.
        rarity (`numpy.ndarray` of shape `(BUCKETS,)`): inverse document frequency of each feature.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    bias: np.ndarray
    rarity: np.ndarray

    @classmethod
    def load(cls, path: str | Path) -> "TextClassifier":
        """Reads what [`save`] wrote.

        Raises:
            ValueError: the file holds something else.
        """
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "questions" not in metadata:
                raise ValueError(f"{path} holds no text classifier; make one with training/text_classifiers.py.")
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
        return cls(tuple(metadata["questions"].split(",")), **tensors)

    def save(self, path: str | Path) -> None:
        """Writes the classifier in half precision, 2 bytes a feature and question."""
        tensors = {name: getattr(self, name).astype(np.float16) for name in ("weights", "bias", "rarity")}
        save_file(tensors, str(path), metadata={"questions": ",".join(self.names)})

    def scores(self, words: Sequence[str]) -> np.ndarray:
        """`(questions,)`: how far each answer is "yes"; 0 is the threshold.

        Args:
            words (`Sequence[str]`): of the text, in lower case; signs that end a sentence are words too.
        """
        buckets, values = text_vector(text_features(words), self.rarity)
        return values @ self.weights[buckets] + self.bias


def text_vector(features: Sequence[np.ndarray], rarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Buckets and values, by rarity, of what [`text_features`] gave; the values of each kind of features have length one."""
    values = [rarity[of_kind] for of_kind in features]
    values = [of_kind / max(math.sqrt(of_kind @ of_kind), 1e-12) for of_kind in values]
    return np.concatenate(features), np.concatenate(values)


def text_features(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The buckets of a text's words and neighbours, of words near each other, and of runs of letters, each once: what is
    said again says no more."""
    phrases = {*words, *(f"{a} {b}" for a, b in pairwise(words))}
    near = {f"{a} & {b}" for place, a in enumerate(words) for b in words[place + 1 : place + 1 + REACH]}
    letters = np.concatenate([_buckets([]), *(_letter_runs(word) for word in {*words})])
    return _buckets(sorted(phrases)), _buckets(sorted(near)), np.unique(letters)


@lru_cache(maxsize=2**16)
def _letter_runs(word: str) -> np.ndarray:
    """Runs that know where the word begins and ends."""
    padded = f" {word} "
    return _buckets([f"~{padded[i : i + n]}" for n in (3, 4, 5) for i in range(len(padded) - n + 1)])


def _buckets(features: Sequence[str]) -> np.ndarray:
    return np.array([zlib.crc32(feature.encode()) % BUCKETS for feature in features], dtype=np.int64)
