"""What is said where a model's own words are not enough, from `crisis_phrases_<language>.yaml`."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

LEVELS = ("low", "high", "imminent")
ANSWERS = ("first", "yes", "no", "unanswered")
PLACES = {
    "emergency": "{emergency}",
    "resource": "{lines}",
    "resource_missing": "{fallback}",
    "resource_unknown": "{fallback}",
}
BY_LEVEL = ("acknowledgement", "question")
LISTS = ("company", "distance", "support", "support_young", "stand_in", "asks_what_it_is", *PLACES)
TEXTS = ("emergency_elsewhere", "ai_start", "ai_asked", "ai_again", "pause", "pause_young")


@dataclass(frozen=True)
class Phrases:
    """The written phrases of one language.

    Args:
        texts (`dict[str, str]`): by name, of `TEXTS`.
        lists (`dict[str, tuple[str, ...]]`): phrases that take turns, by name; those of a level as "question.low.yes".
        yes, no (`re.Pattern`): how an answer to a question begins.
        asks (`re.Pattern`): a question what it is that answers.
    """

    texts: dict[str, str]
    lists: dict[str, tuple[str, ...]]
    yes: re.Pattern
    no: re.Pattern
    asks: re.Pattern

    def vary(self, name: str, number: int) -> str:
        """The phrase for the `number`-th use, from 0: the first once, then the others by turns."""
        phrases = self.lists[name]
        return phrases[0] if number == 0 or len(phrases) == 1 else phrases[1 + (number - 1) % (len(phrases) - 1)]

    def question(self, level: str, answer: str, number: int) -> str:
        """The question on safety, in other words than that of `number - 1`."""
        questions = self.lists[f"question.{level}.{answer}"]
        return questions[number % len(questions)]

    def answer(self, words: str) -> str:
        """How a person's words answer a question: "yes", "no" or "unanswered"."""
        said = _lowered(words)
        if self.no.match(said):
            return "no"
        return "yes" if self.yes.match(said) else "unanswered"

    def asks_what_it_is(self, words: str) -> bool:
        """Whether the person asks what they are talking to."""
        return self.asks.search(_lowered(words)) is not None


@cache
def load_phrases(language: str = "en") -> Phrases:
    """Read and check the phrases of a language.

    Raises:
        ValueError: there are none, or the file is at fault; it names the entry.
    """
    path = Path(__file__).parent / f"crisis_phrases_{language}.yaml"
    if not path.is_file():
        raise ValueError(f"There are no crisis phrases in {language!r}: write {path.name} beside the English ones.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = {*BY_LEVEL, *LISTS, *TEXTS, "answer"}
    if content.keys() != known:
        raise ValueError(f"{path}: keys missing or unknown: {', '.join(sorted(content.keys() ^ known))}")
    lists = {name: content[name] for name in LISTS}
    lists |= {f"acknowledgement.{level}": content["acknowledgement"].get(level) for level in LEVELS}
    lists |= {
        f"question.{level}.{answer}": content["question"].get(level, {}).get(answer)
        for level in LEVELS
        for answer in ANSWERS
    }
    for name, phrases in lists.items():
        if not phrases or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
            raise ValueError(f"{path}, {name}: give a list of phrases")
        if missing := [phrase for phrase in phrases if PLACES.get(name, "") not in phrase]:
            raise ValueError(f"{path}, {name}: {missing[0]!r} has no {PLACES[name]}")
    _check_questions({name: phrases for name, phrases in lists.items() if name.startswith("question.")}, path)
    return Phrases(
        texts={name: content[name] for name in TEXTS},
        lists={name: tuple(phrases) for name, phrases in lists.items()},
        yes=re.compile(content["answer"]["yes"]),
        no=re.compile(content["answer"]["no"]),
        asks=re.compile("|".join(f"(?:{pattern})" for pattern in content["asks_what_it_is"])),
    )


def _check_questions(questions: dict[str, list[str]], path: Path) -> None:
    """No two replies in a row may ask in the same words: each question stands in one list, and no list is too short."""
    seen = set()
    for name, phrases in questions.items():
        if not name.endswith(".first") and len(phrases) < 2:
            raise ValueError(f"{path}, {name}: give two questions or more, which take turns")
        for phrase in phrases:
            if phrase in seen:
                raise ValueError(f"{path}, {name}: {phrase!r} stands in the file twice")
            if phrase.count("?") != 1:
                raise ValueError(f"{path}, {name}: {phrase!r} is not one question")
            seen.add(phrase)


def _lowered(words: str) -> str:
    return " ".join(words.replace("’", "'").lower().split())
