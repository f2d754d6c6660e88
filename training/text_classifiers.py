"""Makes the two text classifiers of `trust/`: of what a client says (risk), and of what a reply says (harm).

    python -m multimood.training.text_classifiers

The examples are made up for this project, by several writers who saw neither lexicon nor rules (`training/examples/`).
How well a classifier does with a writer whom it does not know is measured by leaving each out in turn, and so is its
threshold set. The examples for the final measure lie with the tests and are read by nothing here.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multimood.trust.reply_check import reply_words
from multimood.trust.risk_lexicon import RiskLexicon
from multimood.trust.text_classifier import BUCKETS, TextClassifier, text_features, text_vector

EXAMPLES = Path(__file__).parent / "examples"
TRUST = Path(__file__).parents[1] / "trust"
STRENGTH = 10.0  # inverse of the penalty on weights
# Shares of harmless texts of unknown writers, all near the border, that pass for the other. A reply loses a sentence by it.
FALSE_POSITIVES_OF_RISK, FALSE_POSITIVES_OF_HARM = 0.012, 0.004


@dataclass(frozen=True)
class Question:
    """What a classifier is asked.

    Args:
        name (`str`): of the question.
        yes (`frozenset[str]`): labels of which the answer is "yes".
        among (`frozenset[str]`, *optional*): labels that it is asked of; of all by default. Only a question of all has its
            threshold set by false positives; the others are asked where the first one is answered "yes".
    """

    name: str
    yes: frozenset[str]
    among: frozenset[str] | None = None


AT_RISK = frozenset({"low", "high", "imminent"})
RISK = (
    Question("risk", AT_RISK),
    Question("high", frozenset({"high", "imminent"}), AT_RISK),
    Question("imminent", frozenset({"imminent"}), AT_RISK),
)


def train(
    name: str,
    label: str,
    words_of: Callable[[str], Sequence[str]],
    questions: Sequence[Question] | None,
    false_positives: float,
) -> TextClassifier:
    """The classifier of `training/examples/<name>.jsonl`, whose lines have `text`, `writer` and, under `label`, their label.

    Without `questions` there is one, "harm", with "yes" for all labels but "good".
    """
    lines = [json.loads(line) for line in (EXAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    labels = np.array([line[label] for line in lines])
    writers = np.array([line["writer"] for line in lines])
    questions = questions or (Question("harm", frozenset(labels) - {"good"}),)
    features = [text_features(words_of(line["text"])) for line in lines]
    print(f"{name}: {len(lines):,} examples of {len(set(writers))} writers")

    everything = np.ones(len(lines), dtype=bool)
    thresholds = _thresholds(questions, features, labels, writers, false_positives)
    rarity = _rarity(features, everything)
    vectors = _matrix(features, rarity)
    fitted = [_fit(vectors, labels, everything, question) for question in questions]
    return TextClassifier(
        tuple(question.name for question in questions),
        np.stack([weights for weights, _ in fitted], axis=1),
        np.array([bias for _, bias in fitted]) - thresholds,
        rarity,
    )


def _thresholds(
    questions: Sequence[Question], features: list, labels: np.ndarray, writers: np.ndarray, false_positives: float
) -> np.ndarray:
    """Of each question, by the scores that each writer's texts get from the others'; prints how these do."""
    scores = np.zeros((len(questions), len(labels)))
    for writer in sorted(set(writers)):
        known, unknown = writers != writer, np.flatnonzero(writers == writer)
        vectors = _matrix(features, _rarity(features, known))
        for number, question in enumerate(questions):
            weights, bias = _fit(vectors, labels, known, question)
            scores[number, unknown] = vectors[unknown] @ weights + bias
    thresholds = np.zeros(len(questions))
    for number, question in enumerate(questions):
        yes = np.isin(labels, list(question.yes))
        if question.among is None:
            thresholds[number] = np.quantile(scores[number, ~yes], 1 - false_positives)
        for label in sorted(question.among or set(labels)):
            share = np.mean(scores[number, labels == label] > thresholds[number])
            print(f'  {question.name}: "yes" of {label} by unknown writers {share:.1%}')
    return thresholds


def _rarity(features: list, known: np.ndarray) -> np.ndarray:
    """Inverse document frequency of each bucket among the known texts; 0 where none has it."""
    count = np.zeros(BUCKETS)
    for place in np.flatnonzero(known):
        count[np.unique(np.concatenate(features[place]))] += 1
    return np.where(count > 0, np.log((1 + known.sum()) / (1 + count)) + 1, 0).astype(np.float32)


def _matrix(features: list, rarity: np.ndarray):
    from scipy.sparse import csr_matrix

    rows = [text_vector(of_text, rarity) for of_text in features]
    ends = np.cumsum([0, *(len(buckets) for buckets, _ in rows)])
    values, buckets = (np.concatenate([row[i] for row in rows]) for i in (1, 0))
    return csr_matrix((values, buckets, ends), shape=(len(rows), BUCKETS))


def _fit(vectors, labels: np.ndarray, known: np.ndarray, question: Question) -> tuple[np.ndarray, float]:
    """Weights and bias of a logistic regression in which both answers count the same."""
    from sklearn.linear_model import LogisticRegression

    asked = known if question.among is None else known & np.isin(labels, list(question.among))
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=5000)
    model.fit(vectors[np.flatnonzero(asked)], np.isin(labels[asked], list(question.yes)))
    return model.coef_[0], float(model.intercept_[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TRUST)
    args = parser.parse_args()
    normalize = RiskLexicon.load("en").normalize
    risk = train("risk_en", "level", lambda text: normalize(text).words, RISK, FALSE_POSITIVES_OF_RISK)
    harm = train("reply_en", "kind", reply_words, None, FALSE_POSITIVES_OF_HARM)
    for name, classifier in (("risk", risk), ("reply", harm)):
        path = args.out / f"{name}_classifier_en.safetensors"
        classifier.save(path)
        print(f"wrote {path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
