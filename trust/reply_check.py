"""What a reply must not say: rules in `reply_rules_<language>.yaml`, checked sentence by sentence.

The rules know wording, not meaning: a harmful sentence that none of them foresees passes. A classifier of wording
(`reply_classifier_<language>.safetensors`) sees more of them, and takes some harmless ones for harmful. After a disclosure
a draft is not searched for harm alone; only sentences of known supportive forms are kept.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from .text_classifier import TextClassifier

CONTACT_RULE = "names_an_unknown_contact"
LANGUAGE_RULE = "is_in_another_language"
WORDING_RULE = "is_worded_like_harm"
CLASSIFIED_WORDS = 5  # least words by which a classifier can tell something

_END = re.compile(
    r"(?<!\bdr)(?<!\bmr)(?<!\bms)(?<!\bmrs)(?<!\be\.g)(?<!\bi\.e)[.!?…]+[\"')\]*_”’]*\s+|[。！？]+\s*|\n\s*", re.I
)
_QUOTES = str.maketrans("’‘´`ʼ“”„—–―…", "'''''\"\"\"---.")
_MARKUP = re.compile(r"[*~#>|\\\[\]]+")
_LIST_MARK = re.compile(r"^(-|\+|\d{1,2}[.)])\s+")
_ADDRESS = re.compile(
    r"(?:https?://|www\.)[^\s)]+|\b[\w.+-]+@[\w-]+\.\w+|\b[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b(?:/\S*)?"
)
_DIGITS = re.compile(r"(?<![$€£\d,.])\+?\d(?:[\s().-]{0,2}\d){2,}")
_SPELLED = re.compile(
    r"\b(?:(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
    r"|twenty|thirty|forty|fifty|hundred|thousand|double|triple)[\s-]+){2,}"
    r"(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand)\b"
)
_CALLING = re.compile(
    r"\b(call|calls|calling|dial|dialing|text|texting|phone|ring|sms|whatsapp|number|numbers|hotline|helpline|lifeline"
    r"|line|samaritans|emergency|reach)\b"
)
_WORDS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|[?!.,]|\d+")
PHONE_DIGITS = 7  # a run of so many digits is a phone number without any word that says so


@dataclass(frozen=True)
class Rule:
    """What a reply must not do.

    Args:
        name (`str`): as it is reported.
        patterns (`tuple[re.Pattern, ...]`): searched in [`plain`] text.
        reported (`bool`): allowed where the sentence gives back what the person thinks or was told.
        only (`str`, *optional*): "disclosed" or "young": counts only then.
    """

    name: str
    patterns: tuple[re.Pattern, ...]
    reported: bool = False
    only: str | None = None


class ReplyRules:
    """The rules of one language."""

    def __init__(self, path: Path):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys = {"rules", "reported", "supportive", "supportive_without", "kept_sentences", "kept_characters"}
        keys |= {"function_words", "foreign_words"}
        if content.keys() != keys:
            raise ValueError(f"{path}: keys missing or unknown: {', '.join(sorted(content.keys() ^ keys))}")
        self.rules = tuple(_rule(name, entry, path) for name, entry in content["rules"].items())
        self.kept_sentences, self.kept_characters = content["kept_sentences"], content["kept_characters"]
        self._reported = _compiled(content["reported"], path)
        self._supportive = tuple(_compiled(pattern, path) for pattern in content["supportive"])
        self._without = _compiled(content["supportive_without"], path)
        self._own, self._foreign = set(content["function_words"]), set(content["foreign_words"])
        weights = path.with_name(f"{path.stem.replace('_rules_', '_classifier_')}.safetensors")
        self._classifier = TextClassifier.load(weights) if weights.is_file() else None

    def broken(self, sentence: str, contacts: frozenset[str], *, disclosed: bool, young: bool) -> str | None:
        """The name of the first rule a sentence breaks, or None.

        Args:
            sentence (`str`): as it would be shown.
            contacts (`frozenset[str]`): phone numbers, as digits alone, and pages, that may be named.
            disclosed (`bool`): whether there was a sign of risk in the conversation.
            young (`bool`): whether the person is a minor.
        """
        return next(self.all_broken(sentence, contacts, disclosed=disclosed, young=young), None)

    def all_broken(self, sentence: str, contacts: frozenset[str], *, disclosed: bool, young: bool) -> Iterator[str]:
        """The names of all rules a sentence breaks; see [`broken`]."""
        text = plain(sentence)
        if unknown_contacts(text, contacts):
            yield CONTACT_RULE
        conditions = {None: True, "disclosed": disclosed, "young": young}
        for rule in self.rules:
            if not conditions[rule.only]:
                continue
            for pattern in rule.patterns:
                found = pattern.search(text)
                if found and not (rule.reported and not disclosed and self._is_reported(text, found)):
                    yield rule.name
                    break
        if self._is_foreign(text):
            yield LANGUAGE_RULE
        # After a disclosure only known supportive forms are kept, which is stricter.
        if not disclosed and self._is_worded_like_harm(sentence):
            yield WORDING_RULE

    def _is_worded_like_harm(self, sentence: str) -> bool:
        words = reply_words(sentence)
        if self._classifier is None or sum(word[0].isalnum() for word in words) < CLASSIFIED_WORDS:
            return False
        return bool(self._classifier.scores(words)[0] > 0)

    def is_supportive(self, sentence: str) -> bool:
        """Whether a sentence that breaks no rule has a form that is known to support, and nothing beside it."""
        text = plain(sentence)
        return (
            text.endswith((".", "!"))  # a draft that was cut off ends otherwise
            and text.isascii()
            and len(text) <= self.kept_characters
            and not re.search(r"[?\d/<>{}=:;()\"]", text)
            and self._without.search(text) is None
            and any(pattern.search(text) for pattern in self._supportive)
        )

    def _is_reported(self, text: str, found: re.Match) -> bool:
        reporting = self._reported.search(text, 0, found.end())
        return reporting is not None and reporting.start() < found.start()

    def _is_foreign(self, text: str) -> bool:
        letters = [letter for letter in text if letter.isalpha()]
        if sum(not unicodedata.name(letter, "").startswith("LATIN") for letter in letters) * 2 > len(letters):
            return True
        words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text)
        foreign = sum(word in self._foreign for word in words)
        return foreign >= 2 and foreign > sum(word in self._own for word in words)


@cache
def load_rules(language: str = "en") -> ReplyRules:
    """The rules of a language.

    Raises:
        ValueError: there are none, or the file is at fault.
    """
    path = Path(__file__).parent / f"reply_rules_{language}.yaml"
    if not path.is_file():
        raise ValueError(f"There are no rules for replies in {language!r}: write {path.name} beside the English one.")
    return ReplyRules(path)


def _rule(name: str, entry: dict, path: Path) -> Rule:
    if unknown := entry.keys() - {"patterns", "reported", "only"}:
        raise ValueError(f"{path}, rule {name}: unknown {', '.join(unknown)}")
    if entry.get("only") not in (None, "disclosed", "young"):
        raise ValueError(f'{path}, rule {name}: only is {entry["only"]!r}; use "disclosed" or "young"')
    if not entry.get("patterns"):
        raise ValueError(f"{path}, rule {name}: patterns missing")
    patterns = tuple(_compiled(pattern, f"{path}, rule {name}") for pattern in entry["patterns"])
    return Rule(name, patterns, entry.get("reported", False), entry.get("only"))


def _compiled(pattern: str, place: object) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{place}: {pattern[:60]!r}… is no regular expression: {error}") from error


def plain(sentence: str) -> str:
    """A sentence in the form patterns are written for: compatibility forms, invisible characters, markup, case undone."""
    text = unicodedata.normalize("NFKC", sentence).translate(_QUOTES).lower().replace("_", " ")
    text = "".join(
        str(unicodedata.digit(sign)) if sign.isdigit() and not sign.isascii() else sign
        for sign in text
        if unicodedata.category(sign) not in ("Cf", "Mn")
    )
    text = re.sub(r"(\d)\s*-\s*(?=\d)", r"\1-", " ".join(_MARKUP.sub("", text).split()))
    return _LIST_MARK.sub("", text)


def reply_words(sentence: str) -> list[str]:
    """Words and signs of a sentence, for a [`TextClassifier`]."""
    return _WORDS.findall(plain(sentence))


def unknown_contacts(text: str, contacts: frozenset[str]) -> list[str]:
    """Phone numbers and addresses in [`plain`] text that are not among `contacts`."""
    found = [address for address in _ADDRESS.findall(text) if _bare(address) not in contacts]
    rest = _ADDRESS.sub(" ", text)
    calling = _CALLING.search(rest) is not None
    for run in _DIGITS.findall(rest):
        digits = re.sub(r"\D", "", run)
        if digits not in contacts and (calling or len(digits) >= PHONE_DIGITS):
            found.append(run)
    if calling:
        found += _SPELLED.findall(rest)
    return found


def _bare(address: str) -> str:
    return re.sub(r"^(https?://)?(www\.)?", "", address).rstrip("./")


def split_sentences(text: str, *, complete: bool = True) -> tuple[list[str], str]:
    """Sentences, each with the white space after it, and the rest that is not known to have ended.

    Joined, they are the text. A text that is read in pieces is split as it would be whole: give the rest again with the
    next piece before it, and `complete` with the last.
    """
    sentences, begin = [], 0
    for end in _END.finditer(text):
        if end.end() == len(text):
            break  # more white space may follow
        sentences.append(text[begin : end.end()])
        begin = end.end()
    rest = text[begin:]
    return ([*sentences, rest], "") if complete and rest else (sentences, rest)
