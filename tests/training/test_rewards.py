"""The rewards of form and labels, by tables."""

import doctest

import pytest

from multimood.processors.turn import SupportTurn
from multimood.training.rewards import format, format_reward, label_reward, labels

TURN = SupportTurn("sadness", "neutral", "open question", "What happened?").render()


@pytest.mark.parametrize("module", [format, labels])
def test_the_examples_of_the_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (TURN, 1.0),
        ("\n" + TURN + "\n", 1.0),
        (TURN.replace("sadness", "gloom"), 0.75),
        (TURN.replace("open question", "hypnosis").replace("sadness", ""), 0.5),
        (TURN.replace(" What happened?", ""), 0.75),
        ("\n".join(reversed(TURN.split("\n"))), 0.25),
        ("I am here.", 0.0),
        ("", 0.0),
    ],
)
def test_format(text, reward):
    assert format_reward([text]) == [reward]
    assert format_reward([[{"role": "assistant", "content": text}]], prompts=["?"], strategy=["others"]) == [reward]


@pytest.mark.parametrize(
    ("text", "truth", "reward"),
    [
        (TURN, ("sadness", "neutral", "open question"), 1.0),
        (TURN, ("sadness", "neutral", "approval"), 2 / 3),
        (TURN, ("joy", "joy", "approval"), 0.0),
        (TURN, ("sadness", None, None), 1.0),
        (TURN, (None, None, "others"), 0.0),
        (TURN, (None, None, None), None),
        (TURN.replace("sadness", "gloom"), ("sadness", "neutral", "open question"), 2 / 3),
        ("I am here.", ("sadness", "neutral", "open question"), 0.0),
        ("", (None, None, None), None),
    ],
)
def test_labels(text, truth, reward):
    columns = dict(zip(("client_emotion", "therapist_emotion", "strategy"), ([label] for label in truth), strict=True))
    assert label_reward([text], **columns) == [reward]
    assert label_reward([[{"role": "assistant", "content": text}]], **columns, trainer_state=None) == [reward]


def test_an_unknown_true_label_is_an_error():
    with pytest.raises(ValueError, match="gloom"):
        label_reward([TURN], ["gloom"], ["neutral"], ["others"])


def test_as_many_labels_as_completions_are_needed():
    with pytest.raises(ValueError, match="zip"):
        label_reward([TURN, TURN], ["joy"], ["neutral"], ["others"])


@pytest.mark.parametrize("completion", [None, [], [{"role": "assistant", "content": None}]])
def test_something_else_than_a_completion_is_an_error(completion):
    with pytest.raises(TypeError, match="completion"):
        format_reward([completion])
