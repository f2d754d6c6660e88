"""What a reply must do about risk: every draft is checked, and where there is risk it is completed by written phrases.

At every level sentences that break a rule of `reply_check.py` are left out of the draft, and a number that is not in
`helplines.yaml` is replaced by one that is. Above `NONE` a reply is made of, in this order: an acknowledgement, what
supports in the draft, at `IMMINENT` emergency services, company and distance from the means, a crisis line of the
person's region, professional and personal support, and one direct question about safety. Nothing of this depends on the
draft: an empty or harmful one gives the same.

That an AI is talking is said at the start of a sitting, when the person asks, and at intervals; breaks are suggested at
intervals, but not in a crisis. A sitting begins anew after `AWAY` seconds of silence. The intervals
follow California's SB 243, which asks for a reminder of both every three hours where the person is a minor; what the law
asks where you serve people is to be looked up at its source.
"""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from .helplines import Helpline, load_helplines
from .phrases import load_phrases
from .reply_check import CONTACT_RULE, load_rules, split_sentences
from .risk_state import RiskLevel, RiskState

logger = logging.getLogger(__name__)

AWAY = 30 * 60  # seconds without a turn after which the person has been away
LINES_NAMED = 2  # crisis lines in one reply; more would be a list to choose from


@dataclass(frozen=True)
class Interval:
    """When something is said again: after `seconds` or after `replies`, whichever comes first."""

    seconds: float
    replies: int


ADULT = Interval(seconds=3 * 3600, replies=50)
YOUNG = Interval(seconds=3600, replies=25)


@dataclass(frozen=True)
class PolicyState:
    """What the policy knows of a conversation. Times are seconds since the epoch.

    Args:
        latest (`float`, *optional*): time of the latest reply.
        replies (`int`): replies so far.
        told_at (`float`), told_replies (`int`): when it was last said that an AI is talking: time, and replies by then.
        rested_at (`float`), rested_replies (`int`): the same of breaks.
        questions (`int`): questions about safety so far.
        asked (`bool`): whether the latest reply asked one.
        referrals (`int`): replies so far that named a crisis line or an emergency number.
    """

    latest: float | None = None
    replies: int = 0
    told_at: float = 0.0
    told_replies: int = 0
    rested_at: float = 0.0
    rested_replies: int = 0
    questions: int = 0
    asked: bool = False
    referrals: int = 0

    def to_dict(self) -> dict:
        """The state as plain JSON types; `PolicyState(**…)` reads it back."""
        return asdict(self)


@dataclass(frozen=True)
class CheckedReply:
    """A reply that may be shown.

    Args:
        text (`str`): the whole of it.
        removed (`tuple[str, ...]`): for each sentence that was left out of the draft the rule it broke, or
            "is_not_known_to_support".
        disclosures (`tuple[str, ...]`): which of "ai_start", "ai_asked", "ai_again" and "pause" it says.
        referral (`tuple[str, ...]`): the numbers and pages it names.
        state (`PolicyState`): with this reply given.
    """

    text: str
    removed: tuple[str, ...]
    disclosures: tuple[str, ...]
    referral: tuple[str, ...]
    state: PolicyState


class CrisisPolicy:
    """Checks and completes replies for people of one region. May be shared by many conversations.

    Args:
        region (`str`, *optional*): ISO 3166-1 alpha-2 code of the person's country. Without it, or where the country is
            not in `helplines.yaml`, replies say so and name the fallback.
        young (`bool`): minors' mode: shorter intervals, nothing romantic or sexual, adults to turn to, children's lines.
        language (`str`): of rules and phrases; `reply_rules_<language>.yaml` and `crisis_phrases_<language>.yaml`.
        clock (`Callable[[], float]`): seconds since the epoch.

    Raises:
        ValueError: the region is no code, or the language has no files.
    """

    def __init__(
        self,
        region: str | None = None,
        *,
        young: bool = False,
        language: str = "en",
        clock: Callable[[], float] = time.time,
    ):
        helplines = load_helplines()
        self.region, self.young, self.language, self.clock = region, young, language, clock
        self.rules, self.phrases = load_rules(language), load_phrases(language)
        self.interval = YOUNG if young else ADULT
        self.referrals: Counter[str] = Counter()  # how many replies named a line, by level; of whom is not kept
        self._counting = threading.Lock()
        self._fallback = helplines.fallback
        self._known = helplines.region(region)
        young_lines = self._known.young if self._known and young else ()
        self._lines = (*young_lines, *self._known.lines) if self._known else ()
        emergency = (self._known.emergency,) if self._known else ()
        self.contacts = frozenset(_key(line) for line in (*self._lines, *emergency, self._fallback))

    def begin(self, words: str, risk: RiskState, state: PolicyState = PolicyState()) -> "ReplyComposer":
        """Begin a reply, whose draft may then come piece by piece.

        Args:
            words (`str`): what the person has just said; may be empty.
            risk (`RiskState`): with these words assessed.
            state (`PolicyState`): as the reply before left it.
        """
        return ReplyComposer(self, words, risk, state)

    def complete(self, draft: str, words: str, risk: RiskState, state: PolicyState = PolicyState()) -> CheckedReply:
        """The reply for a whole draft. Arguments as in [`begin`]."""
        composer = self.begin(words, risk, state)
        composer.feed(draft)
        return composer.finish()

    def count_referral(self, level: RiskLevel) -> None:
        """Count and log a reply that names a line: its level, and nothing of whom or what."""
        name = level.name.lower()
        with self._counting:
            self.referrals[name] += 1
            logger.info("Referral %d at level %s.", self.referrals[name], name)

    def resource(self, number: int) -> tuple[str, tuple[str, ...]]:
        """The sentence that names crisis lines, and what it names; `number` varies its words."""
        if not self._lines:
            name = "resource_unknown" if self.region is None else "resource_missing"
            region = self._known.name if self._known else "your country"
            sentence = self.phrases.vary(name, number).format(region=region, fallback=self._fallback.number)
            return _capital(sentence), (self._fallback.number,)
        lines = self._lines[:LINES_NAMED]
        named = " or ".join(f"{line.how} {line.number} ({line.name})" for line in lines)
        sentence = self.phrases.vary("resource", number).format(region=self._known.name, lines=named)
        return sentence, tuple(line.number for line in lines)

    def emergency(self, number: int) -> tuple[str, tuple[str, ...]]:
        """The sentence that urges contact with emergency services, and what it names."""
        line = self._known.emergency if self._known else None
        contact = f"{line.how} {line.number} ({line.name})" if line else self.phrases.texts["emergency_elsewhere"]
        sentence = self.phrases.vary("emergency", number).format(emergency=contact)
        return sentence, (line.number,) if line else ()


class ReplyComposer:
    """One reply in the making. What [`feed`] returns and the `rest` after [`finish`], joined, is what may be shown.

    With no risk the sentences of the draft are given as soon as they are complete and checked. With risk the draft is
    held back until it is whole.
    """

    def __init__(self, policy: CrisisPolicy, words: str, risk: RiskState, state: PolicyState):
        self._policy, self._risk, self._state = policy, risk, state
        self._now = policy.clock()
        self._held = risk.level > RiskLevel.NONE
        asks = policy.phrases.asks_what_it_is(words)
        self._kept_forms = self._held or asks
        self._disclosures = self._due(asks)
        self._answer = policy.phrases.answer(words) if state.asked else "first"
        self._removed: list[str] = []
        self._referral: list[str] = []
        self._kept: list[str] = []  # sentences of the draft
        self._rest = ""
        self._text = "" if self._held else "".join(f"{notice}\n\n" for notice in self._notices())
        self._shown = 0  # characters of the text that were returned
        self.rest = ""

    def feed(self, piece: str) -> str:
        """Takes a piece of the draft; returns what can be shown by now, often nothing."""
        sentences, self._rest = split_sentences(self._rest + piece, complete=False)
        self._take(sentences)
        shown, self._shown = self._text[self._shown :], len(self._text)
        return shown

    def finish(self) -> CheckedReply:
        """The reply; what [`feed`] has not returned of its text is then in `rest`."""
        sentences, self._rest = split_sentences(self._rest)
        self._take(sentences)
        if self._held:
            self._text = self._composed()
        elif not self._kept:
            self._text += self._policy.phrases.vary("stand_in", self._state.replies)
        self._text = self._text.rstrip()
        self.rest = self._text[self._shown :]
        if self._referral:
            self._policy.count_referral(self._risk.level)
        return CheckedReply(
            self._text, tuple(self._removed), self._disclosures, tuple(self._referral), self._next_state()
        )

    def _take(self, sentences: list[str]) -> None:
        for sentence in sentences:
            sentence = self._checked(sentence)
            if sentence is not None:
                self._kept.append(sentence if self._kept else sentence.lstrip())
                self._text += "" if self._held else self._kept[-1]

    def _checked(self, sentence: str) -> str | None:
        """The sentence, what stands in for it, or None."""
        policy = self._policy
        if not sentence.strip():
            return None
        rule = policy.rules.broken(
            sentence, policy.contacts, disclosed=self._risk.peak > RiskLevel.NONE, young=policy.young
        )
        if rule == CONTACT_RULE and not self._kept_forms and not self._referral:
            self._removed.append(rule)
            resource, self._referral = policy.resource(self._state.referrals)
            return resource + sentence[len(sentence.rstrip()) :]
        if rule is None and self._kept_forms:
            full = len(self._kept) >= policy.rules.kept_sentences
            rule = "is_not_known_to_support" if full or not policy.rules.is_supportive(sentence) else None
        if rule is not None:
            self._removed.append(rule)
            return None
        return sentence

    def _composed(self) -> str:
        """The reply at a level above none."""
        policy, phrases, number = self._policy, self._policy.phrases, self._state.questions
        level = self._risk.level.name.lower()
        kept = " ".join(sentence.strip() for sentence in self._kept)
        parts = [" ".join(filter(None, [phrases.vary(f"acknowledgement.{level}", number), kept]))]
        if self._risk.level is RiskLevel.IMMINENT:
            urge, named = policy.emergency(number)
            self._referral += named
            parts.append(" ".join([urge, phrases.vary("company", number), phrases.vary("distance", number)]))
        resource, named = policy.resource(number)
        self._referral += named
        support = phrases.vary("support_young" if policy.young else "support", number)
        parts += [f"{resource} {support}", *self._notices(), phrases.question(level, self._answer, number)]
        return "\n\n".join(parts)

    def _notices(self) -> list[str]:
        texts = self._policy.phrases.texts
        names = ["pause_young" if name == "pause" and self._policy.young else name for name in self._disclosures]
        return [texts[name] for name in names]

    def _due(self, asks: bool) -> tuple[str, ...]:
        """Which disclosures this reply makes."""
        state, due = self._state, []
        if asks:
            due.append("ai_asked")
        elif self._is_new_sitting():
            due.append("ai_start")
        elif self._is_past(state.told_at, state.told_replies):
            due.append("ai_again")
        if not self._held and not self._is_new_sitting() and self._is_past(state.rested_at, state.rested_replies):
            due.append("pause")
        return tuple(due)

    def _is_new_sitting(self) -> bool:
        return self._state.latest is None or self._now - self._state.latest > AWAY

    def _is_past(self, at: float, replies: int) -> bool:
        interval = self._policy.interval
        return self._now - at >= interval.seconds or self._state.replies - replies >= interval.replies

    def _next_state(self) -> PolicyState:
        state, now = self._state, self._now
        after = replace(
            state,
            latest=now,
            replies=state.replies + 1,
            questions=state.questions + self._held,
            asked=self._held,
            referrals=state.referrals + bool(self._referral),
        )
        if any(name.startswith("ai_") for name in self._disclosures):
            after = replace(after, told_at=now, told_replies=state.replies)
        if self._is_new_sitting() or "pause" in self._disclosures:
            after = replace(after, rested_at=now, rested_replies=state.replies)
        return after


def _key(line: Helpline) -> str:
    """A number as digits alone; a page as it is."""
    return re.sub(r"\D", "", line.number) or line.number


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


__all__ = ["CheckedReply", "CrisisPolicy", "PolicyState", "ReplyComposer"]
