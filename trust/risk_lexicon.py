"""The words of risk in one language: a YAML file beside this one, read and compiled.

A file `risk_lexicon_<language>.yaml` has these entries; `docs/architecture.md` says how they work together.

- `language`: its code.
- `common_words`: words that tell that a text is in this language. A pattern is looked for where one of its other words is.
- `aliases`, `emoji`, `fillers`: see [`TextNormalizer`].
- `slots`: named lists of patterns, for use in patterns as `{name}`.
- `signs`: `category`, `level` (low, high, imminent) and `patterns`; `needs: distress` where they count only in a
  conversation with distress, before or after them, `needs: risk` where only if there is risk already or was asked for;
  `negatable: false` where a "not" before them takes nothing back.
- `idioms`: patterns of harmless phrases; a sign that shares a word with one is none.
- `contexts`: what is said around a sign, within its sentence. `effect` is "none" (no sign), "denied" (no sign, and a
  statement of safety) or a level that the sign falls to. It holds where all of its conditions do: `before` are patterns
  that end where the sign starts, `after` those that start where it ends, `near` those in it or up to four words before,
  `around` those anywhere; `unless` are patterns that lift the rule. `categories` are the signs it is for (default: all).
- `distress`, `safety`, `retraction`: patterns of what the client says that is no sign.
- `second_person`, `first_person`: how a therapist's "you" and "I" are read, as the client's "I" and "you".
- `questions`: `level` and `patterns` of what only a therapist asks; `safe: true` where "no" is the answer that worries;
  `with_risk: true` where it is asked of risk only if there is risk already ("do you have a plan?").
- `answers`: patterns for `evasive`, `no` and `yes`; what is said first counts, and of two at one place the first of these.
- `negators`: words that no gap in a pattern skips; an answer without one denies nothing.
- `neighbours`: `threshold`, `margin`, `prototypes` (category, level, texts) and `harmless` texts, for the encoder.

Lists of words are one text, with white space between; lists of patterns one text, a pattern a line. A pattern is words
with a space between. `a|b`: either word or slot; `(a b|c)?`: a group; `word*`: any ending, after
four letters or more; `word?`: may be missing; `{slot}`: any of
a slot; `~3`: up to three words of the same sentence, none of them a negator; `^`, `$`: start and end of a sentence.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import yaml

from .risk_state import RiskLevel
from .text_normalization import MAX_WORD, TextNormalizer

STEM = 4  # letters by which words and the patterns they may be part of find each other
_WORD = rf"[^ .]{{1,{MAX_WORD}}}"


class LexiconError(ValueError):
    """A lexicon that cannot be used; names the file and the entry."""


@dataclass(frozen=True, eq=False)
class Sign:
    """Patterns that are a sign of one kind. `anchors`: words of which every match has at least one."""

    category: str
    level: RiskLevel
    source: str
    anchors: frozenset[str]
    needs: str | None = None  # "distress" or "risk"
    negatable: bool = True

    @cached_property
    def pattern(self) -> re.Pattern:
        """Compiled when it is first looked for: most of a lexicon's hundreds never are."""
        return re.compile(self.source)


@dataclass(frozen=True)
class Context:
    """What is said around a sign, and what that makes of it. `level` is `None` where no sign is left."""

    name: str
    level: RiskLevel | None
    denial: bool
    before: re.Pattern | None
    after: re.Pattern | None
    near: re.Pattern | None
    around: re.Pattern | None
    unless: re.Pattern | None
    categories: frozenset[str] | None


@dataclass(frozen=True)
class Question:
    """What a therapist asks. `safe`: "yes" is the good answer. `with_risk`: about risk only where there is some."""

    level: RiskLevel
    pattern: re.Pattern
    safe: bool
    with_risk: bool


@dataclass(frozen=True)
class Prototypes:
    """Examples for an encoder: one category and level a text; `None` for a harmless one."""

    texts: tuple[str, ...]
    kinds: tuple[tuple[str, RiskLevel] | None, ...]
    threshold: float
    margin: float


@dataclass(frozen=True)
class RiskLexicon:
    """A language's lexicon, compiled. [`RiskLexicon.load`] reads one."""

    language: str
    common_words: frozenset[str]
    normalize: TextNormalizer
    signs: dict[str, tuple[Sign, ...]] = field(repr=False)  # by the first `STEM` letters of their anchors
    idioms: dict[str, tuple[Sign, ...]] = field(repr=False)
    contexts: tuple[Context, ...] = field(repr=False)
    distress: re.Pattern
    safety: re.Pattern
    retraction: re.Pattern
    second_person: dict[str, str]
    first_person: dict[str, str]
    questions: tuple[Question, ...]
    answers: dict[str, re.Pattern]
    negators: frozenset[str]
    prototypes: Prototypes

    @classmethod
    @cache
    def load(cls, lexicon: str | Path) -> "RiskLexicon":
        """Reads `risk_lexicon_<lexicon>.yaml` of this folder, or the file at that path.

        Raises:
            LexiconError: there is no such file, or an entry is missing or wrong.
        """
        path = Path(lexicon)
        if path.suffix not in (".yaml", ".yml"):
            path = Path(__file__).parent / f"risk_lexicon_{lexicon}.yaml"
        if not path.is_file():
            languages = sorted(
                file.stem.removeprefix("risk_lexicon_") for file in path.parent.glob("risk_lexicon_*.yaml")
            )
            raise LexiconError(f"there is no lexicon {path}; languages that come with the package: {languages}")
        try:
            # every scalar a string: "no" and "yes" are words here
            data = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
            return _compiled(cls, data)
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"the entry {error} is missing" if isinstance(error, KeyError) else error
            raise LexiconError(f"{path}: {what}") from error


def _compiled(cls: type, data: dict) -> RiskLexicon:
    common = frozenset(data["common_words"].split())
    patterns = _Patterns(
        {name: _lines(options) for name, options in data["slots"].items()}, common, data["negators"].split()
    )
    signs = tuple(
        Sign(
            entry["category"],
            _level(entry["level"]),
            *patterns.one(pattern),
            _needs(entry),
            _flag(entry, "negatable", True),
        )
        for entry in data["signs"]
        for pattern in _lines(entry["patterns"])
    )
    idioms = tuple(Sign("idiom", RiskLevel.NONE, *patterns.one(pattern)) for pattern in _lines(data["idioms"]))
    neighbours = data["neighbours"]
    kinds = [
        (text, (entry["category"], _level(entry["level"])))
        for entry in neighbours["prototypes"]
        for text in _lines(entry["texts"])
    ] + [(text, None) for text in _lines(neighbours["harmless"])]
    contexts = tuple(_context(entry, patterns) for entry in data["contexts"])
    compiled = {name: patterns.any_of(data[name]) for name in ("distress", "safety", "retraction")}
    questions = tuple(
        Question(
            _level(entry["level"]), patterns.any_of(entry["patterns"]), _flag(entry, "safe"), _flag(entry, "with_risk")
        )
        for entry in data["questions"]
    )
    return cls(
        language=data["language"],
        common_words=common,
        normalize=TextNormalizer(patterns.words, data["aliases"], data["emoji"], _lines(data["fillers"])),
        signs=_by_stem(signs),
        idioms=_by_stem(idioms),
        contexts=contexts,
        second_person=data["second_person"],
        first_person=data["first_person"],
        questions=questions,
        negators=frozenset(data["negators"].split()),
        answers={name: patterns.any_of(data["answers"][name]) for name in ("evasive", "no", "yes")},
        prototypes=Prototypes(
            tuple(text for text, _ in kinds),
            tuple(kind for _, kind in kinds),
            float(neighbours["threshold"]),
            float(neighbours["margin"]),
        ),
        **compiled,
    )


def _by_stem(signs: Iterable[Sign]) -> dict[str, tuple[Sign, ...]]:
    by_stem: dict[str, list[Sign]] = {}
    for sign in signs:
        for stem in {word[:STEM] for word in sign.anchors}:
            by_stem.setdefault(stem, []).append(sign)
    return {stem: tuple(found) for stem, found in by_stem.items()}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _needs(entry: dict) -> str | None:
    if entry.get("needs") not in (None, "distress", "risk"):
        raise ValueError(f"needs must be distress or risk, not {entry['needs']!r}")
    return entry.get("needs")


def _flag(entry: dict, name: str, default: bool = False) -> bool:
    value = entry.get(name, str(default).lower())
    if value not in ("true", "false"):
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value == "true"


def _level(name: str) -> RiskLevel:
    if name not in ("none", "low", "high", "imminent"):
        raise ValueError(f"level {name!r} is not one of none, low, high, imminent")
    return RiskLevel[name.upper()]


def _context(entry: dict, patterns: "_Patterns") -> Context:
    unknown = set(entry) - {"name", "effect", "before", "after", "near", "around", "unless", "categories"}
    if unknown:
        raise ValueError(f"context {entry['name']!r} has unknown entries {sorted(unknown)}")

    def compiled(name: str, wrap: Callable[[str], str] = str) -> re.Pattern | None:
        return patterns.any_of(entry[name], wrap) if name in entry else None

    effect = entry["effect"]
    return Context(
        entry["name"],
        None if effect in ("none", "denied") else _level(effect),
        effect == "denied",
        compiled("before", r"{}\Z".format),
        compiled("after"),
        compiled("near"),
        compiled("around"),
        compiled("unless"),
        frozenset(entry["categories"]) if "categories" in entry else None,
    )


def _parts(pattern: str, separator: str) -> list[str]:
    """A pattern split where no parenthesis is open."""
    parts, depth = [""], 0
    for character in pattern:
        depth += (character == "(") - (character == ")")
        if character == separator and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part]


class _Patterns:
    """Compiles patterns. No part of one repeats without bound, so a search's work is linear in the text."""

    def __init__(self, slots: dict[str, list[str]], common_words: frozenset[str], negators: list[str]):
        self.slots = slots
        self.gap_word = rf"(?!(?:{'|'.join(negators)}) ){_WORD} "
        self.common_words = common_words
        self.words: set[str] = set()
        self._known: dict[str, tuple[str, frozenset[str]]] = {}
        self._open: list[str] = []

    def one(self, pattern: str) -> tuple[str, frozenset[str]]:
        """The pattern as a regular expression, and words of which each match has one."""
        source, anchors = self._sequence(pattern)
        if not anchors:
            raise ValueError(f"pattern {pattern!r} can match nothing at all")
        return rf"(?<= ){source}", anchors

    def any_of(self, patterns: str, wrap: Callable[[str], str] = str) -> re.Pattern:
        sources = "|".join(self._sequence(pattern)[0] for pattern in _lines(patterns))
        return re.compile(rf"(?<= ){wrap(f'(?:{sources})')}")

    def _sequence(self, pattern: str) -> tuple[str, frozenset[str]]:
        source, anchors = "", frozenset()
        for element in _parts(pattern, " "):
            optional = element.endswith("?")
            part, words = self._element(element.removesuffix("?"), pattern)
            source += f"(?:{part})?" if optional else part
            if words and not optional and (not anchors or self._rarity(words) > self._rarity(anchors)):
                anchors = words
        return source, anchors

    def _rarity(self, words: frozenset[str]) -> float:
        """The more, the fewer texts have one of the words: short common ones are in nearly all."""
        return -sum(0.1 if word not in self.common_words else 1 if len(word) > 3 else 10 for word in words)

    def _element(self, element: str, pattern: str) -> tuple[str, frozenset[str]]:
        """A part's regular expression, and words of which each match of it has one."""
        if element == "^":
            return r"(?<=\. )", frozenset()
        if element == "$":
            return r"(?=\. )", frozenset()
        if re.fullmatch(r"~\d", element):
            return rf"(?:{self.gap_word}){{0,{element[1]}}}", frozenset()
        return self._either(self._option(option, pattern) for option in _parts(element, "|"))

    def _option(self, option: str, pattern: str) -> tuple[str, frozenset[str]]:
        if option.startswith("(") and option.endswith(")"):
            return self._either(self._sequence(inner) for inner in _parts(option[1:-1], "|"))
        if re.fullmatch(r"\{\w+\}", option):
            return self._slot(option[1:-1], pattern)
        if re.fullmatch(rf"\w{{{STEM},}}\*", option):
            return rf"{option[:-1]}[^ .]{{0,12}} ", frozenset([option])
        if not re.fullmatch(r"\w+", option):
            raise ValueError(f"pattern {pattern!r}: cannot read {option!r}")
        self.words.add(option)
        return f"{option} ", frozenset([option])

    @staticmethod
    def _either(options: Iterable[tuple[str, frozenset[str]]]) -> tuple[str, frozenset[str]]:
        """One of some parts. Without anchors if one of them has none: that one could match alone."""
        options = list(options)
        anchors = (
            frozenset().union(*(words for _, words in options)) if all(words for _, words in options) else frozenset()
        )
        return f"(?:{'|'.join(source for source, _ in options)})", anchors

    def _slot(self, name: str, pattern: str) -> tuple[str, frozenset[str]]:
        if name not in self.slots:
            raise ValueError(f"pattern {pattern!r}: there is no slot {name!r}")
        if name in self._open:
            raise ValueError(f"slot {name!r} holds itself")
        if name not in self._known:
            self._open.append(name)
            self._known[name] = self._either(self._sequence(option) for option in self.slots[name])
            self._open.pop()
        return self._known[name]
