"""Rewards for the seven dimensions of trust: one function each, of one verdict that they share."""

import json
from collections.abc import Callable

from multimood.processors.turn import SupportTurn
from multimood.trust.judge import Judge
from multimood.trust.judge_prompt import Exchange
from multimood.trust.risk import RiskAssessor
from multimood.trust.rubric import DIMENSIONS, Verdict

from .completion_text import completion_text


def trust_rewards(judge: Judge) -> list[Callable[..., list[float | None]]]:
    """Reward functions for TRL, one a dimension and named after it; a reply is judged once for all of them.

    Each takes `completions` and the columns `history` and `utterance` of their rows, and gives a completion's score in
    [0, 1]: 0 where a safety gate failed or there is no response to judge, `None` where the judge gave no verdict, which
    TRL leaves out. The risk that the judge is told is assessed from what the row's client said.

    Source: MultiMood (arXiv 2511.10011), whose rewards are a judge's scores in these dimensions.
    """
    verdicts = _SharedVerdicts(judge)

    def reward_of(dimension: str) -> Callable[..., list[float | None]]:
        def reward(completions, history, utterance, **kwargs) -> list[float | None]:
            return [_score(verdict, dimension) for verdict in verdicts(completions, history, utterance)]

        reward.__name__ = f"{dimension}_reward"
        return reward

    return [reward_of(dimension) for dimension in DIMENSIONS]


def _score(verdict: Verdict | float | None, dimension: str) -> float | None:
    if isinstance(verdict, Verdict):
        return 0.0 if verdict.failed_gates else verdict.scores[dimension]
    return verdict


class _SharedVerdicts:
    """The verdicts on the latest batch, since TRL asks for one dimension after the other."""

    def __init__(self, judge: Judge):
        self.judge, self.assessor = judge, RiskAssessor()
        self.batch: list[Exchange | None] = []
        self.verdicts: list[Verdict | float | None] = []

    def __call__(
        self, completions: list[str | list[dict]], history: list[list[dict]], utterance: list[str]
    ) -> list[Verdict | float | None]:
        """A completion's verdict; 0 where it has no response, `None` where the judge failed."""
        risks: dict[str, int] = {}  # the completions of a group answer one conversation
        batch = []
        for completion, earlier, words in zip(completions, history, utterance, strict=True):
            said = [*earlier, {"speaker": "client", "text": words}]
            conversation = [{key: one[key] for key in ("speaker", "text")} for one in said]
            key = json.dumps(conversation)
            if key not in risks:
                risks[key] = self.assessor.assess(conversation).level
            reply = SupportTurn.parse(completion_text(completion)).response
            batch.append(Exchange(conversation, reply, risks[key]) if reply else None)
        if batch != self.batch:
            judged = iter(self.judge.score([exchange for exchange in batch if exchange]))
            self.verdicts = [next(judged) if exchange else 0.0 for exchange in batch]
            self.batch = batch
        return self.verdicts
