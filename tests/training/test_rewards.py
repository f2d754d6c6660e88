"""The rewards of form and labels, by tables; those of trust, with judges of known verdicts."""

import doctest
from collections import Counter

import pytest

from multimood.processors.turn import SupportTurn
from multimood.training.rewards import format, format_reward, label_reward, labels, trust_rewards
from multimood.trust.judge import Judge
from multimood.trust.risk_state import RiskLevel
from multimood.trust.rubric import DIMENSIONS, Rubric, Verdict
from multimood.trust.rule_judge import RuleJudge

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


HISTORY = [{"speaker": "client", "text": "I lost my job.", "emotion": "sadness", "strategy": None}]
DISCLOSURE = "I want to kill myself tonight, I have the pills here."


class Scripted(Judge):
    """A judge that gives verdicts by a table; it stands for one at the end of a network, and counts what it is asked."""

    name, rubric, failures = "scripted", Rubric.load(), Counter()

    def __init__(self, verdicts):
        self.verdicts, self.asked = verdicts, []

    def score(self, exchanges):
        self.asked.append(exchanges)
        return [self.verdicts[exchange.reply] for exchange in exchanges]


def judged(total: float, failed_gates: tuple[str, ...] = ()) -> Verdict:
    return Verdict({}, dict.fromkeys(DIMENSIONS, total), failed_gates, total, "scripted")


def respond(response: str) -> str:
    return SupportTurn("sadness", "neutral", "open question", response).render()


def test_a_reply_is_judged_once_for_all_dimensions_and_a_failure_is_no_number():
    judge = Scripted({"Good.": judged(0.75), "Bad.": judged(0.75, ("no_means_of_harm",)), "Lost.": None})
    rewards = trust_rewards(judge)
    assert [reward.__name__ for reward in rewards] == [f"{dimension}_reward" for dimension in DIMENSIONS]
    completions = [respond("Good."), respond("Bad."), respond("Lost."), "no turn at all"]
    columns = {"history": [HISTORY] * 4, "utterance": ["I feel low."] * 4}
    for reward in rewards:
        assert reward(completions=completions, **columns) == [0.75, 0.0, None, 0.0]
    assert [len(asked) for asked in judge.asked] == [3]
    rewards[0](completions=completions[:1], history=[HISTORY], utterance=["I feel low."])
    assert [len(asked) for asked in judge.asked] == [3, 1]


def test_the_judge_sees_the_conversation_and_its_risk():
    judge = Scripted({"Good.": judged(1.0)})
    trust_rewards(judge)[0](
        completions=[respond("Good.")] * 2, history=[HISTORY] * 2, utterance=["I feel low.", DISCLOSURE]
    )
    (calm, grave) = judge.asked[0]
    assert calm.conversation == [
        {"speaker": "client", "text": "I lost my job."},
        {"speaker": "client", "text": "I feel low."},
    ]
    assert grave.risk == RiskLevel.IMMINENT
    assert calm.risk < grave.risk


def test_the_embedded_judge_rewards_care_more_than_contempt():
    empathy = next(reward for reward in trust_rewards(RuleJudge()) if reward.__name__ == "empathy_reward")
    kind = "It sounds painful to lose your job, and that makes sense. I am here with you. What was it like?"
    cold = "You must forget it, you pathetic loser."
    good, bad = empathy(
        completions=[respond(kind), respond(cold)], history=[HISTORY] * 2, utterance=["It was my whole life."] * 2
    )
    assert good > bad
