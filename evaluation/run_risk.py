"""Measures what the risk assessor sees and what it wrongly sees, on labelled cases and on the dialogues of MESC.

    python -m multimood.evaluation.run_risk --mesc ../shared/data/mesc

The cases and how they were labelled and split are in `tests/trust/risk_cases/`. The lexicon was fitted to the development
part only; the errors of the test part and of the held-out cases, whose writers saw nothing of this package and of which
nothing was learned, are shown only on demand, so that nobody fits it to them by accident. The MESC figures are
shares of the client's turns (utterances in a row are one turn); MESC has no labels of risk, so what is flagged there is to
be read. Its words are printed, not written.
"""

import argparse
import hashlib
import itertools
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from multimood.datasets_scripts.mesc import MescDialogue, read_dialogues, split_dialogues
from multimood.evaluation.results_file import write_results
from multimood.trust.risk import RiskAssessor
from multimood.trust.risk_state import RiskLevel, RiskState

CASES = Path(__file__).parents[1] / "tests" / "trust" / "risk_cases"
SPEAKERS = {"C": "client", "T": "therapist"}
PARTS = ("development", "test")


@dataclass(frozen=True)
class RiskCase:
    """Something said, and the level that it has.

    Args:
        name: the words themselves, or a dialogue's id.
        kind: such as "idiom" or "plan".
        level: by which the person should be answered after it.
        utterances: as [`RiskAssessor.assess`] takes them.
    """

    name: str
    kind: str
    level: RiskLevel
    utterances: tuple[dict, ...]

    @property
    def part(self) -> str:
        """ "test" where the first byte of the name's SHA-256 is odd, else "development"."""
        return PARTS[hashlib.sha256(self.name.encode()).digest()[0] % 2]


def single_utterances(folder: Path = CASES) -> list[RiskCase]:
    """The cases of one utterance."""
    groups = yaml.safe_load((folder / "utterances.yaml").read_text(encoding="utf-8"))
    return [
        RiskCase(text.strip(), group["kind"], _level(group), ({"speaker": "client", "text": text.strip()},))
        for group in groups
        for text in group["utterances"].splitlines()
    ]


def dialogues(folder: Path = CASES) -> list[RiskCase]:
    """The cases of several."""
    return [
        RiskCase(
            entry["id"],
            entry["kind"],
            _level(entry),
            tuple({"speaker": SPEAKERS[turn[0]], "text": turn[3:]} for turn in entry["turns"]),
        )
        for entry in yaml.safe_load((folder / "dialogues.yaml").read_text(encoding="utf-8"))
    ]


def held_out(folder: Path = CASES) -> dict[str, list[RiskCase]]:
    """Cases of writers of whom nothing was learned: "utterances of e", "dialogues of e" and so on."""
    sets: dict[str, list[RiskCase]] = defaultdict(list)
    for number, line in enumerate((folder / "held_out.jsonl").read_text(encoding="utf-8").splitlines()):
        entry = json.loads(line)
        turns = entry.get("turns") or [f"C: {entry['text']}"]
        said = tuple({"speaker": SPEAKERS[turn[0]], "text": turn[3:]} for turn in turns)
        kind = "dialogues" if "turns" in entry else "utterances"
        case = RiskCase(f"held-out case {number + 1}", entry["kind"], _level(entry), said)
        sets[f"{kind} of {entry['writer']}"].append(case)
    return sets


def _level(entry: dict) -> RiskLevel:
    return RiskLevel[entry["level"].upper()]


def right(case: RiskCase, found: RiskLevel) -> bool:
    """Whether a case was seen: none as none, low as low or more, high and imminent as high or more."""
    return found is RiskLevel.NONE if case.level is RiskLevel.NONE else found >= min(case.level, RiskLevel.HIGH)


def evaluate(assessor: RiskAssessor, cases: Iterable[RiskCase]) -> tuple[dict, list[tuple[RiskCase, RiskState]]]:
    """Figures by level and by kind, and what was not seen or wrongly seen."""
    by_level: dict[str, Counter] = defaultdict(Counter)
    by_kind: dict[str, Counter] = defaultdict(Counter)
    wrong = []
    for case in cases:
        state = assessor.assess(case.utterances)
        level = case.level.name.lower()
        for counter in (by_level[level], by_kind[f"{level}: {case.kind}"]):
            counter["cases"] += 1
            counter["right"] += right(case, state.level)
            counter["exact"] += state.level is case.level
        if not right(case, state.level):
            wrong.append((case, state))
    serious = by_level["high"] + by_level["imminent"]
    figures = {
        "recall of high and imminent": _share(serious, "right"),
        "recall of low": _share(by_level["low"], "right"),
        "false positives": 1 - _share(by_level["none"], "right") if by_level["none"] else None,
        "false positives on sad talk": 1 - _share(sad, "right") if (sad := by_kind.get("none: sad")) else None,
        "by level": {level: dict(counter) for level, counter in by_level.items()},
        "by kind": {kind: dict(counter) for kind, counter in sorted(by_kind.items())},
    }
    return figures, wrong


def _share(counter: Counter, name: str) -> float | None:
    return counter[name] / counter["cases"] if counter["cases"] else None


def evaluate_mesc(assessor: RiskAssessor, corpus: list[MescDialogue]) -> tuple[dict, list[tuple[str, str]]]:
    """Shares of the client's turns that carry a serious sign, or are at a serious level; and what was flagged."""
    turns, with_sign, at_level, low, flagged = 0, 0, 0, 0, []
    for dialogue in corpus:
        said = [
            {"speaker": speaker, "text": " ".join(utterance.text for utterance in group)}
            for speaker, group in itertools.groupby(dialogue.utterances, key=lambda utterance: utterance.speaker)
        ]
        state = RiskState()
        for number, utterance in enumerate(said):
            known = len(state.evidence)
            state = assessor.assess([utterance], state)
            if utterance["speaker"] != "client":
                continue
            signs = [sign for sign in state.evidence[known:] if sign.level >= RiskLevel.HIGH]
            turns += 1
            with_sign += bool(signs)
            at_level += state.level >= RiskLevel.HIGH
            low += state.level == RiskLevel.LOW
            before = said[number - 1]["text"] if number else ""
            flagged += [
                (
                    f"{dialogue.dialogue_id} {sign.level.name} {sign.category}: {sign.text!r}",
                    f"{before} / {utterance['text']}",
                )
                for sign in signs
            ]
    shares = {
        "turns with a high or imminent sign": with_sign,
        "turns at high or imminent": at_level,
        "turns at low": low,
    }
    return {"client turns": turns, **{name: count / turns for name, count in shares.items()}}, flagged


def speed(assessor: RiskAssessor, texts: list[str], least: int = 20_000) -> float:
    """Utterances of a person assessed in a second of one core's time, in dialogues of 20."""
    utterances = [{"speaker": "client", "text": text} for text in texts]
    done, start = 0, time.process_time()
    while done < least:
        for first in range(0, len(utterances), 20):
            assessor.assess(utterances[first : first + 20])
        done += len(utterances)
    return done / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lexicon", default="en")
    parser.add_argument("--lexicon_alone", action="store_true", help="without the classifier of wording")
    parser.add_argument("--mesc", type=Path, help="folder of MESC.csv, val.json and test.json")
    parser.add_argument("--show_test_errors", action="store_true", help="the test part is used up by looking at it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    assessor = RiskAssessor(args.lexicon, classifier=not args.lexicon_alone)
    sets = {"utterances": single_utterances(), "dialogues": dialogues()}
    results: dict = {}
    parts = {f"{name}, {part}": [c for c in cases if c.part == part] for part in PARTS for name, cases in sets.items()}
    for name, cases in (parts | {f"{name}, held out": cases for name, cases in held_out().items()}).items():
        figures, wrong = evaluate(assessor, cases)
        results[name] = figures
        print(f"\n{name}")
        for figure, value in figures.items():
            if not isinstance(value, dict):
                print(f"  {figure:30}{'no cases' if value is None else f'{value:.1%}'}")
        for level, counter in figures["by level"].items():
            print(
                f"  {level:10}{counter['right']:4} of {counter['cases']:3} seen, {counter['exact']:3} at the very level"
            )
        if name.endswith("development") or args.show_test_errors:
            for case, state in wrong:
                print(f"  wrong: {case.level.name} {case.kind}: {case.name} -> {state.level.name}")
    if args.mesc:
        corpus = split_dialogues(read_dialogues(args.mesc), args.mesc)["validation"]
        results["MESC validation"], flagged = evaluate_mesc(assessor, corpus)
        print("\nMESC validation dialogues")
        for figure, value in results["MESC validation"].items():
            print(f"  {figure:40}{value if isinstance(value, int) else f'{value:.2%}'}")
        for sign, words in flagged:
            print(f"  {sign}\n      {words}")
    texts = [utterance["text"] for cases in sets.values() for case in cases for utterance in case.utterances]
    results["utterances a second a core"] = speed(assessor, texts)
    print(
        f"\n{results['utterances a second a core']:,.0f} utterances a second a core (the labelled cases, over and over)"
    )
    path = write_results(
        args.out, "risk", results, lexicon=args.lexicon, classifier=not args.lexicon_alone, mesc=bool(args.mesc)
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
