import pytest

from multimood.datasets_scripts.label_mapping import EMOTION_NAMES, known_label
from multimood.datasets_scripts.report import CorpusError
from multimood.processors.turn import EMOTIONS


@pytest.mark.parametrize("corpus", EMOTION_NAMES)
def test_no_class_is_lost_and_none_is_renamed_without_need(corpus):
    names = EMOTION_NAMES[corpus]
    assert len(set(names.values())) == len(names), "each can be read back"
    for own, name in names.items():
        assert name in EMOTIONS or name == own
        assert own not in EMOTIONS or name == own


def test_what_the_seven_lack_stays_itself():
    others = {own for names in EMOTION_NAMES.values() for own, name in names.items() if name not in EMOTIONS}
    assert others == {"surprise", "contempt", "anxiety", "helplessness", "disappointment"}


def test_a_spelling_is_read_whatever_its_case_and_blanks():
    assert known_label(" Open  Question ", ("open question",), "Strategy", "here") == "open question"


def test_an_unknown_label_is_named_with_the_nearest():
    with pytest.raises(
        CorpusError, match=r"table, line 3: Emotion is 'hapy'; did you mean 'happy'\? allowed: sad, happy"
    ):
        known_label("hapy", ("sad", "happy"), "Emotion", "table, line 3")
