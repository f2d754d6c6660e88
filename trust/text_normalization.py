"""Text as people write it, brought to plain words that each know their place in the original.

Undone are: case, full-width and styled letters, accents, look-alike letters of other scripts, invisible characters,
emoji, contractions, fillers, stammered repeats, and, where it makes a word of the given vocabulary, digits and signs
for letters ("k1ll"), letters set apart ("k.m.s", "s u i c i d e"), stretched ("diiie") and masked ones ("su*cide").
"""

import re
import string
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

SENTENCE_END = "."
MAX_WORD = 40  # longer "words" carry no meaning, and a bound on words bounds the work of every pattern

# Letters of other scripts that look like Latin ones. Decomposition (NFKD) does not touch these.
LOOKALIKES = str.maketrans(
    "авеіјкмнорѕтухԁԛԝьɡαβεικνορτυχηωıłøđßꞓ",
    "abeijkmhopstyxdqwbgabeiknoptuxnwilodsc",
)
LEET = str.maketrans("0134578@$!|+€", "oieastbasiite")
LEET_L = str.maketrans("0134578@$!|+€", "oleastbasllte")

# Punctuation that NFKD leaves as it is. A dash parts clauses; what else there is parts words.
_PLAIN = {**dict.fromkeys("’‘´`ʼ′", "'"), **dict.fromkeys("“”„«»", '"'), **dict.fromkeys("—–―", " - "), "…": "... "}

_SPLIT = re.compile(r"\S+")
_BEFORE = "!\"#%&'()*+,-./:;<=>?[\\]^_`{|}~"  # "@" and "$" may stand for a letter
_AFTER = "!\"#%&'()+,-./:;<=>?@[\\]^_`{|}~"  # "*" and "$" may
_INNER_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_MASK = re.compile(r"[*#_\-.?]+")
_APART = re.compile(r"[^\W_](?:[.\-_*/·]+[^\W_])+[.\-_*/·]*")
_CAPITAL_I = re.compile(r"(?<=[a-z])I+")  # "kiII"
_STRETCH = re.compile(r"(.)\1{2,}")
_RUN = re.compile(r"(.)\1+")


@dataclass(frozen=True)
class NormalizedText:
    """Words of a text.

    Args:
        words (`tuple[str, ...]`): lower case, without punctuation; "." stands for the end of a sentence.
        spans (`tuple[tuple[int, int], ...]`): each word's place in the original, in characters.
        clause_starts (`frozenset[int]`): numbers of the words that follow a comma, a dash or the like.
    """

    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    clause_starts: frozenset[int]

    @cached_property
    def text(self) -> str:
        """The words, each followed by a space, between two sentence ends: what patterns are searched in."""
        end = "" if self.words[-1:] in ((), (SENTENCE_END,)) else ". "
        return f"{' '.join(('.', *self.words))} {end}"

    @cached_property
    def _starts(self) -> list[int]:
        starts, at = [], 2
        for word in self.words:
            starts.append(at)
            at += len(word) + 1
        return starts

    def word_at(self, position: int) -> int:
        """The number of the word at a place in `text`."""
        return max(bisect_right(self._starts, position) - 1, 0)

    def start_of(self, number: int) -> int:
        """The place in `text` of the word of that number."""
        return self._starts[number]

    def original_span(self, first: int, last: int) -> tuple[int, int]:
        """The place of the words `first` to `last`, both included, in the original."""
        return self.spans[first][0], self.spans[last][1]

    def replace(self, words: Mapping[str, str]) -> "NormalizedText":
        """The same with some words replaced one for one."""
        return NormalizedText(tuple(words.get(word, word) for word in self.words), self.spans, self.clause_starts)


class TextNormalizer:
    """Makes [`NormalizedText`] of a text.

    Args:
        vocabulary: the words that hidden spellings are looked for among.
        aliases: spelling to the words it stands for, e.g. {"wanna": "want to"}. Spellings with an apostrophe go
            before those without.
        emoji: an emoji to the words it stands for; others are dropped.
        fillers: words without meaning, of one word or two; dropped where another word of the sentence follows.
    """

    def __init__(
        self,
        vocabulary: Iterable[str],
        aliases: Mapping[str, str],
        emoji: Mapping[str, str],
        fillers: Iterable[str],
    ):
        self.aliases = {spelling: tuple(words.split()) for spelling, words in aliases.items()}
        self.vocabulary = frozenset(vocabulary) | {word for word in self.aliases if word.isalnum()}
        self.emoji = {ord(sign[0]): f" {words} " for sign, words in emoji.items()}
        self.fillers = frozenset(tuple(filler.split()) for filler in fillers)
        self._filler_starts = frozenset(filler[0] for filler in self.fillers)
        self._hidden = frozenset(word for word in self.vocabulary if len(word) > 2 and word.isalpha())
        self._squeezed = {_RUN.sub(r"\1", word): word for word in sorted(self._hidden)}
        self._by_ends: dict[tuple[str, int], list[str]] = {}
        for word in sorted(self._hidden):
            if len(word) > 3:
                self._by_ends.setdefault((word[0], len(word)), []).append(word)

    def __call__(self, text: str) -> NormalizedText:
        folded, places = self._fold(text)
        tokens = self._tokens(folded)
        tokens = self._without_repeats(self._without_fillers(self._joined(tokens)))
        if places is not None:
            tokens = [(word, places[start], places[end - 1] + 1, breaks) for word, start, end, breaks in tokens]
        return NormalizedText(
            tuple(token[0] for token in tokens),
            tuple((token[1], token[2]) for token in tokens),
            frozenset(number for number, token in enumerate(tokens) if token[3]),
        )

    def _fold(self, text: str) -> tuple[str, list[int] | None]:
        """Lower case in plain letters, and the place of each character in the original (`None`: unmoved)."""
        text = _CAPITAL_I.sub(lambda match: "l" * len(match.group()), text)
        if text.isascii():
            return text.lower(), None
        folded, places = [], []
        # in a text of another script its letters are themselves
        latin = sum(character.isascii() for character in text if character.isalpha()) * 2
        lookalikes = LOOKALIKES if latin >= sum(map(str.isalpha, text)) else {}
        for place, character in enumerate(text):
            if character in _PLAIN:
                plain = _PLAIN[character]
            elif ord(character) in self.emoji:
                plain = self.emoji[ord(character)]
            else:
                plain = "".join(
                    part
                    for part in unicodedata.normalize("NFKD", character).lower()
                    if unicodedata.category(part) not in ("Mn", "Cf", "Me", "Cc") or part in "\n\t\r"
                ).translate(lookalikes)
                if plain and unicodedata.category(plain[0]) in ("So", "Sk", "Po", "Ps", "Pe", "Pi", "Pf", "Pd"):
                    plain = " " if plain[0] not in string.punctuation else plain
            folded.append(plain)
            places += [place] * len(plain)
        return "".join(folded), places

    def _tokens(self, folded: str) -> list[tuple[str, int, int, bool]]:
        """(word, start, end, whether a clause starts) in order; "." where a sentence ends."""
        tokens: list[tuple[str, int, int, bool]] = []
        breaks = False
        for chunk in _SPLIT.finditer(folded):
            raw, start = chunk.group(), chunk.start()
            if raw.isalpha():
                self._put(tokens, raw, start, chunk.end(), breaks)
                breaks = False
                continue
            core = raw.lstrip(_BEFORE)
            before = raw[: len(raw) - len(core)]
            core = core.rstrip(_BEFORE if "*" in before else _AFTER)
            after = raw[len(before) + len(core) :]
            breaks = breaks or bool(before)
            if core:
                breaks = self._put_core(tokens, core, start + len(before), breaks)
            else:
                after, before = before, ""
            if "!" in after or "?" in after or ("." in after and ".." not in after):
                if tokens and tokens[-1][0] != SENTENCE_END:
                    tokens.append((SENTENCE_END, chunk.end() - 1, chunk.end(), False))
                breaks = False
            elif after:  # an ellipsis is a pause: speakers go on after it
                breaks = True
        return tokens

    def _put_core(self, tokens: list, core: str, at: int, breaks: bool) -> bool:
        """Adds the words of a chunk that has other characters than letters; returns whether a clause starts next."""
        end = at + len(core)
        if len(core) <= MAX_WORD:
            if core in self.aliases or core.isdecimal() or core.replace("'", "").isalpha():
                self._put(tokens, core, at, end, breaks)
                return False
            hidden = self._uncovered(core)
            if hidden:
                self._put(tokens, hidden, at, end, breaks)
                return False
        previous = 0
        for part in _INNER_WORD.finditer(core):
            between = core[previous : part.start()]
            letters = part.start() - previous <= 1 and part.end() - part.start() == 1  # "p.m", not "over.And"
            if previous and not letters and any(mark in between for mark in ".!?") and ".." not in between:
                tokens.append((SENTENCE_END, at + part.start() - 1, at + part.start(), False))
            word = part.group()
            if not word.isalpha() and not word.isdecimal() and len(word) <= MAX_WORD:
                word = self._uncovered(word) or word
            self._put(tokens, word, at + part.start(), at + part.end(), breaks or "," in between)
            breaks, previous = False, part.end()
        return breaks

    def _uncovered(self, core: str) -> str | None:
        """The word of the vocabulary behind digits, signs, dots or stars; `None` if there is none."""
        if _APART.fullmatch(core):
            joined = "".join(character for character in core if character.isalnum())
            if joined in self.vocabulary:
                return joined
        for table in (LEET, LEET_L):
            plain = core.translate(table).replace("'", "")
            if plain in self._hidden:
                return plain
            if plain.isalpha() and _RUN.sub(r"\1", plain) in self._squeezed and _STRETCH.search(plain):
                return self._squeezed[_RUN.sub(r"\1", plain)]
        if len(core) > 3 and core[0].isalpha() and _MASK.search(core):
            for word in self._by_ends.get((core[0], len(core)), ()):
                if all(a == b or a in "*#_-.?" for a, b in zip(core, word, strict=True)) and _shown(core) * 2 >= len(
                    core
                ):
                    return word
        return None

    def _put(self, tokens: list, word: str, start: int, end: int, breaks: bool) -> None:
        """Adds a word, or those it is an alias of, all at the word's own place."""
        if len(word) > MAX_WORD and _STRETCH.search(word):
            word = _STRETCH.sub(r"\1", word)
        if len(word) > MAX_WORD:
            word = word[:MAX_WORD]
        words = self.aliases.get(word) if len(word) > 1 else None  # single letters may yet be joined
        if words is None and "'" in word:
            word = word.replace("'", "")
            words = self.aliases.get(word)
        if words is None and word not in self.vocabulary and _STRETCH.search(word):
            word = self._squeezed.get(_RUN.sub(r"\1", word)) or _STRETCH.sub(r"\1", word)
            words = self.aliases.get(word)
        for part in words or (word,):
            tokens.append((part, start, end, breaks))
            breaks = False

    def _joined(self, tokens: list) -> list:
        """Words that were taken apart: "k y s", if the vocabulary has what they spell, and "sui cide"."""
        joined: list = []
        at = 0
        while at < len(tokens):
            end = at
            while end < len(tokens) and len(tokens[end][0]) == 1 and tokens[end][0].isalpha() and end - at < MAX_WORD:
                end += 1
            spelled = self._spelled("".join(token[0] for token in tokens[at:end])) if end - at > 2 else None
            if spelled:
                for word in spelled:
                    last = at + len(word) - 1
                    for part in self.aliases.get(word, (word,)):
                        joined.append((part, tokens[at][1], tokens[last][2], tokens[at][3]))
                    at = last + 1
            elif end > at:
                for word, first, last, breaks in tokens[at:end]:
                    joined += [(part, first, last, breaks) for part in self.aliases.get(word, (word,))]
                at = end
            else:
                token = tokens[at]
                whole = joined[-1][0] + token[0] if joined else ""
                halves = joined and (joined[-1][0] not in self.vocabulary or token[0] not in self.vocabulary)
                if halves and len(whole) > 5 and (whole in self._hidden or whole in self.aliases):
                    _, first, _, breaks = joined.pop()
                    joined += [(part, first, token[2], breaks) for part in self.aliases.get(whole, (whole,))]
                elif token[0].isdecimal() and token[0] in self.aliases:
                    joined += [(part, *token[1:]) for part in self.aliases[token[0]]]
                else:
                    joined.append(token)
                at += 1
        return joined

    def _spelled(self, letters: str) -> list[str] | None:
        """The fewest words of the vocabulary that make up `letters`, "i" among them; `None` if none do."""
        best: list[list[str] | None] = [[]]
        for end in range(1, len(letters) + 1):
            found = None
            for start in range(end):
                word = letters[start:end]
                known = word in self._hidden or word in self.aliases or word == "i"
                if known and best[start] is not None and (found is None or len(best[start]) < len(found) - 1):
                    found = [*best[start], word]
            best.append(found)
        return best[-1]

    def _without_fillers(self, tokens: list) -> list:
        kept, at = [], 0
        while at < len(tokens):
            size = 0
            if tokens[at][0] in self._filler_starts:
                sizes = (
                    size for size in (2, 1) if tuple(token[0] for token in tokens[at : at + size]) in self.fillers
                )
                size = next(sizes, 0)
            after = at + size
            if size and after < len(tokens) and tokens[after][0] != SENTENCE_END:
                # the commas around a filler go with it
                tokens[after] = (*tokens[after][:3], tokens[at][3] and not kept)
                at = after
            else:
                kept.append(tokens[at])
                at += 1
        return kept

    @staticmethod
    def _without_repeats(tokens: list) -> list:
        """ "I, I want to, want to go" is "I want to go": what was said at once again counts once."""
        kept: list = []
        words: list[str] = []
        for token in tokens:
            word = token[0]
            kept.append(token)
            words.append(word)
            for size in (1, 2, 3):
                if len(words) < 2 * size:
                    break
                if word == words[-1 - size] and words[-size:] == words[-2 * size : -size]:
                    if word != SENTENCE_END:
                        del kept[-size:], words[-size:]
                    break
        return kept


def _shown(core: str) -> int:
    return sum(character.isalpha() for character in core)
