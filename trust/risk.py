"""Signs of suicide or self-harm risk in a conversation, read outside the neural network.

What is said is brought to plain words (`text_normalization.py`) and read with a lexicon (`risk_lexicon.py`); an encoder's
neighbours and a judge may add signs and take none away. The measures are in `evaluation/run_risk.py`. It is a screen, not
a diagnosis: it misses people, and no level means that somebody is safe.

How the level moves
- It rises to the level of any new sign at once. `peak` and `evidence` keep what there was for good.
- A retraction ("I was joking") changes nothing.
- From `HIGH` or `IMMINENT` it falls one step after `CALM_TURNS` client utterances in a row without a sign, and only if the
  client said within that time that they are safe or will not act. One denial is not enough, nor is silence on the topic:
  denied or withdrawn thoughts go before many suicides (Berman 2018, Busch et al. 2003), so safety is asked for again
  and again rather than taken as settled.
- A `HIGH` or `IMMINENT` that rests on the classifier of wording alone, which errs more often, falls one step after
  `WORDING_CALM_TURNS` such utterances: safety has been asked about by then, and a "yes" is a sign of its own.
- It never falls below `LOW` once it was `HIGH`, for the rest of the conversation: the Columbia scale counts
  the past month's thoughts and the past three months' acts as current.
- From a `LOW` that was never higher it falls to `NONE` after twice `CALM_TURNS`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .risk_lexicon import STEM, Context, RiskLexicon, Sign
from .risk_state import Evidence, RiskLevel, RiskState
from .text_classifier import TextClassifier
from .text_normalization import SENTENCE_END, NormalizedText

CALM_TURNS = 6
WORDING_CALM_TURNS = 2  # the same, where the classifier alone found the level: it is asked about at once
CONTEXT_UTTERANCES = 20  # how long distress, questions about means and statements of safety count
CONTEXT_CHARACTERS = 120  # how far a sign's sentence is read for what stands around it; speech may have no full stops
NEAR_WORDS = 4
CLASSIFIED_WORDS = 6  # least words that a classifier can tell something by; shorter ones are mostly answers

QUESTIONS = ("asked", "asked_plan", "asked_safety")  # categories of what the therapist asked
MATERIAL = ("means", "preparation")  # categories of things and acts, by which vague words are taken seriously
WORDING = "wording"  # category of what the classifier finds
NOTHING_KNOWN = RiskState()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Found:
    """A sign in a text, by its place in `NormalizedText.text`, after its context was read."""

    sign: Sign
    start: int
    end: int
    level: RiskLevel | None
    denial: bool
    category: str


class RiskAssessor:
    """Reads a conversation for risk, utterance by utterance.

    Args:
        lexicon: a language that comes with the package, or the path of a lexicon file.
        encoder: anything with `encode(list[str]) -> (n, dim)` vectors, such as a `SentenceTransformer`. Utterances near
            the lexicon's prototypes, and nearer to them than to its harmless examples, are signs too.
        judge: `judge(utterances, state) -> RiskLevel | int | None`, called once an `assess` with the new utterances
            and the state that was found. It can raise the level, never lower it; `None`, an exception or anything that
            is no level is no opinion, is logged without the words and counted in `judge_failures`.
        classifier: whether the language's classifier of wording is asked, where the package has one.

    Raises:
        LexiconError: the lexicon cannot be used.
    """

    def __init__(
        self,
        lexicon: str | Path = "en",
        *,
        encoder: Any | None = None,
        judge: Callable[[Sequence[dict], RiskState], RiskLevel | int | None] | None = None,
        classifier: bool = True,
    ):
        self.lexicon = RiskLexicon.load(lexicon)
        weights = Path(__file__).parent / f"risk_classifier_{self.lexicon.language}.safetensors"
        self._classifier = TextClassifier.load(weights) if classifier and weights.is_file() else None
        self.judge = judge
        self.judge_failures = 0
        self._encoder = encoder
        self._prototype_vectors = self._unit_vectors(self.lexicon.prototypes.texts) if encoder is not None else None

    def assess(self, utterances: Sequence[dict], state: RiskState = NOTHING_KNOWN) -> RiskState:
        """The state after the utterances that followed `state`.

        Args:
            utterances: `{"speaker": "client" or "therapist", "text": str}` each, in order.
            state: what was known before them.

        Raises:
            ValueError: an utterance has another speaker, or no text.
        """
        for utterance in utterances:
            if utterance.get("speaker") not in ("client", "therapist"):
                raise ValueError(f"speaker must be 'client' or 'therapist', not {utterance.get('speaker')!r}")
            if not isinstance(utterance.get("text"), str):
                raise ValueError(f"an utterance's text must be a string, not {type(utterance.get('text')).__name__}")
        said = [utterance["text"] for utterance in utterances if utterance["speaker"] == "client"]
        neighbours = iter(self._neighbours(said))
        for utterance in utterances:
            if utterance["speaker"] == "client":
                state = self._after_client(utterance["text"], next(neighbours), state)
            else:
                state = self._after_therapist(utterance["text"], state)
        return self._judged(utterances, state) if self.judge is not None and said else state

    def assess_text(self, text: str) -> list[Evidence]:
        """The signs in one client utterance by itself, by the lexicon alone."""
        return list(self._after_client(text, None, RiskState()).evidence)

    def _after_therapist(self, text: str, state: RiskState) -> RiskState:
        """What the therapist asks is kept until the client answers."""
        number = state.utterances
        words = self.lexicon.normalize(text)
        if "?" not in text and self.lexicon.second_person.keys().isdisjoint(words.words):
            return replace(state, utterances=number + 1)  # talk about risk, not about this person's
        words = words.replace({**self.lexicon.first_person, **self.lexicon.second_person})
        asked = [
            found.sign.level
            for found in self._signs(words)
            if (found.level or found.denial) and (state.level or not found.sign.needs)
        ]
        context = list(state.context)
        for question in self.lexicon.questions:
            if question.pattern.search(words.text) and (state.level or not question.with_risk):
                category = "asked_safety" if question.safe else "asked_plan" if question.with_risk else "asked"
                context.append(Evidence(number, 0, len(text), text, category, question.level))
        if asked:
            context.append(Evidence(number, 0, len(text), text, "asked", max(asked)))
        return replace(state, utterances=number + 1, context=tuple(context))

    def _after_client(self, text: str, neighbour: tuple[str, RiskLevel] | None, state: RiskState) -> RiskState:
        number = state.utterances
        words = self.lexicon.normalize(text)

        def evidence(start: int, end: int, category: str, level: RiskLevel) -> Evidence:
            first, last = words.original_span(words.word_at(start), words.word_at(end - 2))
            return Evidence(number, first, last, text[first:last], category, level)

        found = list(self._signs(words))
        signs = [evidence(f.start, f.end, f.category, f.level) for f in found if f.level and not f.sign.needs]
        waiting = [
            evidence(f.start, f.end, f.category, f.level) for f in found if f.level and f.sign.needs == "distress"
        ]
        denial = any(f.denial for f in found)
        context = [item for item in state.context if item.utterance >= number - CONTEXT_UTTERANCES]
        asked = [item for item in context if item.category in QUESTIONS]
        context = [item for item in context if item.category not in QUESTIONS]

        needy = {f.sign.category for f in found if f.level and f.sign.needs}
        # what may be innocent alone bears other such things out: a gun in the closet, and thinking about it
        borne_out = len(waiting) > 1 or (len(needy) > 1 and not needy.isdisjoint(MATERIAL))
        if borne_out or state.level >= RiskLevel.HIGH or signs or any(item.level for item in asked):
            signs += [
                evidence(f.start, f.end, f.category, f.level) for f in found if f.level and f.sign.needs == "risk"
            ]
        if borne_out:
            signs += waiting
        answer, says_safe = self._answer(words), self.lexicon.safety.search(words.text) is not None
        for question in asked:
            evades = answer is None and _is_direct(question) and self.lexicon.negators.isdisjoint(words.words)
            sign, denied = _answered(question, "evasive" if evades else answer, bool(signs), state.level, says_safe)
            denial = denial or denied
            if sign and words.words:
                category, level = sign
                if any(self._holds_for_answer(context, category, words) for context in self.lexicon.contexts):
                    level = min(level, RiskLevel.LOW)
                signs.append(evidence(2, len(words.text) - 2, category, level))
        if neighbour is not None and not denial and words.words:
            signs.append(evidence(2, len(words.text) - 2, *neighbour))
        known = max((sign.level for sign in signs), default=RiskLevel.NONE)
        settled = denial or says_safe
        if not settled and known < RiskLevel.HIGH and (wording := self._classified(words, found)) > known:
            signs.append(evidence(2, len(words.text) - 2, WORDING, wording))

        if match := self.lexicon.distress.search(words.text):
            context = [item for item in context if item.category != "distress"]
            context.append(evidence(*match.span(), "distress", RiskLevel.NONE))
        context += waiting
        distressed = state.level or signs or any(item.category == "distress" for item in context)
        if distressed:
            pending = [item for item in context if item.level]
            signs += pending
            context = [item for item in context if not item.level]

        if signs:
            context = [item for item in context if item.category != "safety"]
        elif denial or says_safe:
            context.append(Evidence(number, 0, len(text), text, "safety", RiskLevel.NONE))
        retracted = self.lexicon.retraction.search(words.text) is not None
        unassessed = not signs and not self._in_language(words)
        state = replace(
            state,
            utterances=number + 1,
            calm_turns=0 if signs else state.calm_turns + (not retracted and not unassessed),
            evidence=(*state.evidence, *sorted(set(signs), key=lambda sign: (sign.utterance, sign.start, sign.end))),
            context=tuple(context),
            unassessed=state.unassessed + unassessed,
        )
        return _raised(state, max(sign.level for sign in signs)) if signs else _calmed(state)

    def _signs(self, words: NormalizedText) -> Iterator[_Found]:
        """Signs by the lexicon, less idioms, each with what its context makes of it. Of overlapping ones the worst."""
        stems = {word[:STEM] for word in words.words}
        matches = list(_matches(self.lexicon.signs, stems, words.text))
        if not matches:
            return
        # marked letter by letter, so that a long text of nothing but signs takes no longer than its length
        harmless, taken = bytearray(len(words.text)), bytearray(len(words.text))
        for _, start, end in _matches(self.lexicon.idioms, stems, words.text):
            harmless[start:end] = b"\1" * (end - start)
        found = [
            self._in_context(words, sign, start, end) for sign, start, end in matches if not any(harmless[start:end])
        ]
        found.sort(
            key=lambda f: (f.denial, -(f.level or 0), f.sign.needs is not None, f.start - f.end, f.start, f.category)
        )
        for candidate in found:
            if not any(taken[candidate.start : candidate.end]):
                taken[candidate.start : candidate.end] = b"\1" * (candidate.end - candidate.start)
                yield candidate

    def _in_context(self, words: NormalizedText, sign: Sign, start: int, end: int) -> _Found:
        text = words.text
        sentence = text.rfind(f" {SENTENCE_END} ", max(0, start - CONTEXT_CHARACTERS), start)
        sentence = max(0, start - CONTEXT_CHARACTERS) if sentence < 0 else sentence + 1
        after = text.find(f" {SENTENCE_END} ", end - 1, end + CONTEXT_CHARACTERS)
        after = min(len(text), end + CONTEXT_CHARACTERS) if after < 0 else after + 3
        clause = self._clause_start(words, sentence, start)
        near = words.start_of(max(words.word_at(start) - NEAR_WORDS, words.word_at(sentence + 2)))
        level, category = sign.level, sign.category
        for context in self.lexicon.contexts:
            if context.categories is not None and sign.category not in context.categories:
                continue
            if context.denial and not sign.negatable:
                continue
            before = context.before and context.before.search(text, clause if context.denial else sentence, start)
            if (
                (context.before and not before)
                or (context.after and not context.after.match(text, end, after))
                or (context.near and not context.near.search(text, near, end))
                or (context.around and not context.around.search(text, sentence, after))
                or (context.unless and context.unless.search(text, sentence, after))
            ):
                continue
            if context.level is None:
                return _Found(sign, start, end, None, context.denial, context.name)
            if context.level < level:
                level, category = context.level, context.name
        return _Found(sign, start, end, level, False, category)

    @staticmethod
    def _holds_for_answer(context: Context, category: str, words: NormalizedText) -> bool:
        """Whether a context speaks of an answer such as "yes, when I was sixteen"."""
        return (
            context.categories is not None
            and category in context.categories
            and context.around.search(words.text) is not None
            and not (context.unless and context.unless.search(words.text))
        )

    @staticmethod
    def _clause_start(words: NormalizedText, sentence: int, start: int) -> int:
        """Where the clause starts that holds the place `start` of the text."""
        first, number = words.word_at(sentence + 2), words.word_at(start)
        while number > first and number not in words.clause_starts:
            number -= 1
        return words.start_of(number)

    def _classified(self, words: NormalizedText, found: Sequence[_Found]) -> RiskLevel:
        """The level that the classifier takes the words for. Where the lexicon knows them and what is said around them, as
        an idiom or the past, it knows better."""
        if self._classifier is None or sum(word != SENTENCE_END for word in words.words) < CLASSIFIED_WORDS:
            return RiskLevel.NONE
        if any(f.category != f.sign.category for f in found) or self._has_idiom(words):
            return RiskLevel.NONE
        risk, high, imminent = self._classifier.scores(words.words) > 0
        if not risk:
            return RiskLevel.NONE
        return RiskLevel.IMMINENT if imminent else RiskLevel.HIGH if high else RiskLevel.LOW

    def _has_idiom(self, words: NormalizedText) -> bool:
        stems = {word[:STEM] for word in words.words}
        return next(_matches(self.lexicon.idioms, stems, words.text), None) is not None

    def _answer(self, words: NormalizedText) -> str | None:
        """What answer an utterance is to a yes-no question: "evasive", "no" or "yes", if any; what is said first counts."""
        matches = [(name, pattern.search(words.text)) for name, pattern in self.lexicon.answers.items()]
        first = min(
            ((match.start(), name) for name, match in matches if match), key=lambda found: found[0], default=None
        )
        return first and first[1]

    def _in_language(self, words: NormalizedText) -> bool:
        """Whether enough of the words are common ones of the lexicon's language."""
        known = [word for word in words.words if word != SENTENCE_END and not word.isdecimal()]
        if len(known) < 2:
            return not any(ord(letter) > 0x24F for word in known for letter in word)
        share = sum(word in self.lexicon.common_words for word in known) / len(known)
        return share >= 0.15 if len(known) > 5 else share > 0

    def _unit_vectors(self, texts: Sequence[str]) -> list:
        import numpy as np

        vectors = np.asarray(self._encoder.encode(list(texts)), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"the encoder gave an array of shape {vectors.shape} for {len(texts)} texts")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _neighbours(self, texts: Sequence[str]) -> list[tuple[str, RiskLevel] | None]:
        """Category and level of each text's nearest prototype, where it is near enough."""
        if self._encoder is None or not texts:
            return [None] * len(texts)
        prototypes = self.lexicon.prototypes
        similarities = self._unit_vectors(texts) @ self._prototype_vectors.T  # (texts, prototypes)
        found = []
        for row in similarities:
            nearest = int(row.argmax())
            harmless = max((s for s, kind in zip(row, prototypes.kinds, strict=True) if kind is None), default=-1.0)
            near = row[nearest] >= prototypes.threshold and row[nearest] >= harmless + prototypes.margin
            found.append(prototypes.kinds[nearest] if near else None)
        return found

    def _judged(self, utterances: Sequence[dict], state: RiskState) -> RiskState:
        try:
            verdict = self.judge(utterances, state)
            level = RiskLevel(verdict) if verdict is not None else RiskLevel.NONE
        except Exception as error:  # whatever a judge does, what was found stands
            self.judge_failures += 1
            logger.warning("the risk judge failed with %s: the level stays as it was found", type(error).__name__)
            return state
        if level <= state.level:
            return state
        last = max(n for n, utterance in enumerate(utterances) if utterance["speaker"] == "client")
        text = utterances[last]["text"]
        sign = Evidence(state.utterances - len(utterances) + last, 0, len(text), text, "judge", level)
        return _raised(replace(state, calm_turns=0, evidence=(*state.evidence, sign)), level)


def _matches(signs: dict[str, tuple[Sign, ...]], stems: set[str], text: str) -> Iterator[tuple[Sign, int, int]]:
    for sign in dict.fromkeys(sign for stem in stems for sign in signs.get(stem, ())):
        for match in sign.pattern.finditer(text):
            yield sign, match.start(), match.end()


def _is_direct(question: Evidence) -> bool:
    """Whether it asks about suicide or self-harm so plainly that whatever is no answer to it evades it."""
    return question.category == "asked" and question.level >= RiskLevel.HIGH and "?" in question.text


def _answered(
    question: Evidence, answer: str | None, has_signs: bool, level: RiskLevel, says_safe: bool
) -> tuple[tuple[str, RiskLevel] | None, bool]:
    """The sign that an answer to a therapist's question is, and whether it denies risk."""
    if question.category == "asked_safety":
        if answer == "no" and not says_safe:
            return ("not_safe", max(RiskLevel.LOW, min(level, RiskLevel.HIGH))), False
        return None, answer in ("yes", "no") and not has_signs
    if answer == "yes":
        return ("affirmed", question.level), False
    if answer == "evasive":
        return ("evaded", RiskLevel.LOW), False
    # "no" to "do you have a plan?" leaves the thoughts
    return None, answer == "no" and not has_signs and question.category != "asked_plan"


def _raised(state: RiskState, level: RiskLevel) -> RiskState:
    return replace(state, level=max(state.level, level), peak=max(state.peak, level))


def _calmed(state: RiskState) -> RiskState:
    """The state one step lower, where it has been calm for long enough."""
    if state.level >= RiskLevel.HIGH:
        safe = any(item.category == "safety" for item in state.context)
        worded = all(sign.category == WORDING for sign in state.evidence if sign.level >= RiskLevel.HIGH)
        if (state.calm_turns >= CALM_TURNS and safe) or (state.calm_turns >= WORDING_CALM_TURNS and worded):
            context = tuple(item for item in state.context if item.category != "safety")
            return replace(state, level=RiskLevel(state.level - 1), calm_turns=0, context=context)
    elif state.level == RiskLevel.LOW == state.peak and state.calm_turns >= 2 * CALM_TURNS:
        return replace(state, level=RiskLevel.NONE, calm_turns=0)
    return state
