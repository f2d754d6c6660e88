"""Written words to plain words, with the way back to the original."""

import pytest

from multimood.trust.text_normalization import MAX_WORD, TextNormalizer


@pytest.fixture(scope="module")
def normalize():
    return TextNormalizer(
        vocabulary=["i", "want", "to", "kill", "myself", "suicide", "suicidal", "die", "hopeless"],
        aliases={"kms": "kill myself", "wanna": "want to", "i'll": "i will", "cant": "can not", "u": "you", "2": "to"},
        emoji={"🔫": "gun"},
        fillers=["um", "you know", "just"],
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("KILL Myself", "kill myself"),
        ("k1ll mys3lf", "kill myself"),
        ("$uicide", "suicide"),
        ("k!ll", "kill"),
        ("k i l l m y s e l f", "kill myself"),
        ("k.m.s", "kill myself"),
        ("K-M-S.", "kill myself ."),
        ("k m s", "kill myself"),
        ("s u i c i d e", "suicide"),
        ("sui cidal", "suicidal"),
        ("su*cide", "suicide"),
        ("s**cide", "suicide"),
        ("*kill* _myself_", "kill myself"),
        ("diiiiie", "die"),
        ("kiiilllll", "kill"),
        ("kiII", "kill"),
        ("kіll mуself", "kill myself"),  # Cyrillic і and у
        ("ｋｉｌｌ", "kill"),
        ("ⓘ ⓦⓐⓝⓣ ⓣⓞ ⓓⓘⓔ", "i want to die"),
        ("ki\u200bll my\u00adself", "kill myself"),
        ("suicidé", "suicide"),
        ("🔫 myself 😂", "gun myself"),
        ("wanna die", "want to die"),
        ("I’ll can’t", "i will can not"),
        ("2 u", "to you"),
        ("I, um, I, you know, I just want to, want to die", "i want to die"),
        ("I... I want", "i want"),
        ("over.And out", "over . and out"),
        ("you know", "you know"),  # a filler alone is an answer
        ("3 kids and 20mg", "3 kids and 20mg"),
        ("a b c", "a b c"),
        ("", ""),
        ("?!", ""),
        ("💔", ""),
    ],
)
def test_hidden_spellings_become_plain_words(normalize, text, words):
    assert " ".join(normalize(text).words) == words


@pytest.mark.parametrize("text", ["well k1ll mys3lf", "So—k m s, ok", "ah ﬁne kіll\u200b mуself 🙂", "…k.m.s"])
def test_words_know_their_place_in_the_original(normalize, text):
    plain = normalize(text)
    first = plain.words.index("kill")
    start, end = plain.original_span(first, plain.words.index("myself"))
    assert text[start:end].replace("\u200b", "") in ("k1ll mys3lf", "k m s", "kіll mуself", "k.m.s")
    assert all(0 <= a <= b <= len(text) for a, b in plain.spans)


def test_commas_start_clauses_and_full_stops_end_sentences(normalize):
    plain = normalize("No, I want to. Die (please)")
    assert plain.words == ("no", "i", "want", "to", ".", "die", "please")
    assert plain.clause_starts == {1, 6}
    assert plain.text == ". no i want to . die please . "


def test_no_word_is_longer_than_the_bound(normalize):
    for text in ("x1" * 5000, "kill" * 5000, "a" * 9999, "!*" * 9999, "a." * 9999):
        assert all(len(word) <= MAX_WORD for word in normalize(text).words)
