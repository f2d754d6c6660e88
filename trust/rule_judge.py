"""A judge made of word rules: weak, and open to reading. For tests and for trying things out without a model.

`rule_judge_<language>.yaml` says, by item of the rubric, when the answer is "yes"; all of an entry's conditions must hold:

- `breaks`: the reply breaks none of these rules of [`ReplyRules`];
- `forbid`, `require`: regular expressions, of which none, or one at least, is found in the reply (lower case, straight quotes);
- `words`: least and most words;
- `shared_words`: at least so many content words of the client's last utterance are taken up;
- `repeats`: no sentence occurs so often.

Items without an entry stay unanswered. A gate without an entry cannot fail here: that is one of the reasons why it is weak.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from .judge import Judge
from .judge_prompt import Exchange
from .reply_check import load_rules, plain, split_sentences
from .risk_state import RiskLevel
from .rubric import Rubric, RubricError, Verdict

CONTENT_WORD = 4  # letters that a word has at least to say what an utterance is about


class RuleJudge(Judge):
    """Answers items by the rules of one language. Its verdicts say that it is weak, and so does everything it prints.

    Args:
        rubric (`Rubric`, *optional*): the English one by default; another needs rules in its language.

    Raises:
        RubricError: there are no rules in the rubric's language, or they are at fault.
    """

    name = "rules (weak)"

    def __init__(self, rubric: Rubric | None = None):
        self.rubric = rubric or Rubric.load()
        self.failures = Counter()
        path = Path(__file__).parent / f"rule_judge_{self.rubric.language}.yaml"
        if not path.is_file():
            raise RubricError(
                f"There are no rules in {self.rubric.language!r}: write {path.name} beside the English ones."
            )
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        known = {item.id for dimension in self.rubric.dimensions for item in dimension.items}
        if unknown := entries.keys() - known:
            raise RubricError(f"{path}: the rubric has no items {', '.join(sorted(unknown))}")
        self._reply_rules = load_rules(self.rubric.language)
        self._checks = {item: self._compile(entry, f"{path}, {item}") for item, entry in entries.items()}

    def __repr__(self):
        return f"RuleJudge(weak, {len(self._checks)} items by word rules)"

    def score(self, exchanges: Sequence[Exchange]) -> list[Verdict | None]:
        return [self._judge(exchange) for exchange in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        reply = _Reply(exchange, self._reply_rules)
        asked = (item.id for items in self.rubric.questions(exchange.risk).values() for item in items)
        answers = {
            item: float(all(check(reply) for check in self._checks[item])) for item in asked if item in self._checks
        }
        return self.rubric.verdict(answers, exchange.risk, self.name)

    def _compile(self, entry: dict, place: str) -> list[Callable[["_Reply"], bool]]:
        makers = {
            "breaks": self._breaks,
            "forbid": lambda patterns: _forbid([re.compile(pattern) for pattern in patterns]),
            "require": lambda patterns: _require([re.compile(pattern) for pattern in patterns]),
            "words": lambda bounds: lambda reply: bounds[0] <= len(reply.words) <= bounds[1],
            "shared_words": lambda least: lambda reply: len(reply.content_words & reply.clients_words) >= least,
            "repeats": lambda most: lambda reply: max(reply.sentences.values(), default=0) < most,
        }
        try:
            return [makers[condition](value) for condition, value in entry.items()]
        except (KeyError, TypeError, AttributeError, re.error) as error:
            raise RubricError(f"{place}: {error!r}; conditions are {', '.join(makers)}") from error

    def _breaks(self, names: list[str]) -> Callable[["_Reply"], bool]:
        known = {rule.name for rule in self._reply_rules.rules}
        if unknown := set(names) - known:
            raise KeyError(f"no rules {', '.join(sorted(unknown))}")
        return lambda reply: reply.broken.isdisjoint(names)


class _Reply:
    """What the rules look at in an exchange."""

    def __init__(self, exchange: Exchange, rules):
        self.text = plain(exchange.reply)
        self.marked = exchange.reply.lower()  # `plain` takes markup away
        sentences = split_sentences(exchange.reply)[0]
        self.sentences = Counter(filter(None, (plain(sentence) for sentence in sentences)))
        self.words = _words(self.text)
        self.content_words = _content(self.text)
        client = [utterance["text"] for utterance in exchange.conversation if utterance["speaker"] == "client"]
        self.clients_words = _content(plain(client[-1])) if client else frozenset()
        disclosed = exchange.risk > RiskLevel.NONE
        self.broken = {
            name
            for sentence in [*sentences, exchange.reply]  # the whole as well: a sentence may be broken up to hide
            for name in rules.all_broken(sentence, frozenset(), disclosed=disclosed, young=False)
        }

    def holds(self, pattern: re.Pattern) -> bool:
        return pattern.search(self.text) is not None or pattern.search(self.marked) is not None


def _forbid(patterns: list[re.Pattern]) -> Callable[[_Reply], bool]:
    return lambda reply: not any(reply.holds(pattern) for pattern in patterns)


def _require(patterns: list[re.Pattern]) -> Callable[[_Reply], bool]:
    return lambda reply: any(reply.holds(pattern) for pattern in patterns)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)


def _content(text: str) -> frozenset[str]:
    return frozenset(word for word in _words(text) if len(word) >= CONTENT_WORD)
