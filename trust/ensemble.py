"""Several judges as one."""

import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from .judge import Judge
from .judge_prompt import Exchange
from .rubric import DIMENSIONS, Verdict


@dataclass(frozen=True)
class EnsembleVerdict(Verdict):
    """The mean verdict of several judges. One member that finds a gate failed is enough to fail it.

    Args:
        members (`dict[str, Verdict | None]`): by judge; `None` where a member had none.
        disagreement (`dict[str, float]`, *optional*): by dimension, the standard deviation of the members' scores, in
            [0, 0.5]; `None` where one member alone had a verdict.
    """

    members: dict[str, Verdict | None]
    disagreement: dict[str, float] | None


class JudgeEnsemble(Judge):
    """Several judges as one: the mean of their answers, and how far they disagree.

    Args:
        judges (`Sequence[Judge]`): with different names and one rubric. Half of them at least must have a verdict on a reply;
            otherwise it has none.
    """

    def __init__(self, judges: Sequence[Judge]):
        names = [judge.name for judge in judges]
        if not judges or len(set(names)) != len(names):
            raise ValueError(f"An ensemble takes judges with different names; these are {names}.")
        first = judges[0].rubric
        if any(asdict(judge.rubric) != asdict(first) for judge in judges if judge.rubric is not first):
            raise ValueError("The judges of an ensemble must have one rubric.")
        self.judges = tuple(judges)
        self.name = f"mean of {', '.join(names)}"
        self.rubric = judges[0].rubric
        self.failures = Counter()

    def __repr__(self):
        return f"JudgeEnsemble({list(self.judges)})"

    def score(self, exchanges: Sequence[Exchange]) -> list[EnsembleVerdict | None]:
        with ThreadPoolExecutor(len(self.judges)) as pool:
            rows = pool.map(lambda judge: judge.score(exchanges), self.judges)
            members = zip(*rows, strict=True)
            return [self._join(verdicts) for verdicts in members]

    def _join(self, verdicts: Sequence[Verdict | None]) -> EnsembleVerdict | None:
        found = [verdict for verdict in verdicts if verdict is not None]
        if len(found) * 2 < len(verdicts):
            self.failures["too_few_members"] += 1
            return None
        members = {judge.name: verdict for judge, verdict in zip(self.judges, verdicts, strict=True)}
        items = dict.fromkeys(item for verdict in found for item in verdict.answers)
        answers = {item: [verdict.answers[item] for verdict in found if item in verdict.answers] for item in items}
        scores = {name: [verdict.scores[name] for verdict in found] for name in DIMENSIONS}
        failed = tuple(dict.fromkeys(gate for verdict in found for gate in verdict.failed_gates))
        return EnsembleVerdict(
            {item: statistics.fmean(values) for item, values in answers.items()},
            {name: statistics.fmean(values) for name, values in scores.items()},
            failed,
            0.0 if failed else statistics.fmean(verdict.total for verdict in found),
            self.name,
            members,
            {name: statistics.pstdev(values) for name, values in scores.items()} if len(found) > 1 else None,
        )
