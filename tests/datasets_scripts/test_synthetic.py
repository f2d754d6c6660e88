from collections import Counter

import av
import pytest

from multimood.datasets_scripts.schema import validate_row
from multimood.datasets_scripts.synthetic import (
    SPLITS,
    STAGES,
    STRATEGY_TABLE,
    asked_fact,
    generate_rows,
    told_facts,
)
from multimood.processors.turn import EMOTIONS, STRATEGIES


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("synthetic")
    return {split: generate_rows(split, 700, 3, folder, tracks="none") for split in SPLITS}


def told(row: dict) -> frozenset:
    return frozenset((subject, value) for subject, (value, _) in told_facts(row).items())


def test_rows_follow_the_schema_and_their_seed(rows, tmp_path):
    assert all(validate_row(row) for split in SPLITS for row in rows[split])
    assert generate_rows("train", 50, 3, tmp_path, tracks="none") == rows["train"][:50]
    assert generate_rows("train", 50, 4, tmp_path, tracks="none") != rows["train"][:50]


def test_the_response_names_a_fact_told_ten_to_sixty_utterances_ago(rows):
    facts = [asked_fact(row) for row in rows["test"]]
    assert all(value in row["response"] for row, (_, value, _) in zip(rows["test"], facts, strict=True))
    assert {back for _, _, back in facts} == set(range(10, 61, 2))
    assert all(value not in row["utterance"] for row, (_, value, _) in zip(rows["test"], facts, strict=True))


def test_the_asked_fact_is_told_once_and_outside_the_last_two_pairs(rows):
    for row in rows["test"]:
        subject, value, back = asked_fact(row)
        assert back > 4
        assert sum(value in u["text"] for u in row["history"]) == 1, (subject, value)


def test_no_combination_of_facts_is_in_two_splits(rows):
    combinations = {split: {told(row) for row in rows[split]} for split in SPLITS}
    assert not combinations["train"] & combinations["test"]
    assert not combinations["train"] & combinations["validation"]
    assert not combinations["validation"] & combinations["test"]
    values = {split: {value for c in combinations[split] for _, value in c} for split in SPLITS}
    assert values["test"] == values["train"], "the vocabulary of values is one"


def test_words_do_not_tell_the_emotion(rows):
    words = {
        emotion: Counter(
            word
            for row in rows["train"]
            if row["client_emotion"] == emotion
            for text in (row["utterance"], *(u["text"] for u in row["history"]))
            for word in text.split()
        )
        for emotion in EMOTIONS
    }
    shares = {e: {w: n / sum(c.values()) for w, n in c.items()} for e, c in words.items()}
    frequent = {w for w, n in sum(words.values(), Counter()).items() if n > 700}
    for word in frequent:
        of_word = [shares[emotion].get(word, 0) for emotion in EMOTIONS]
        assert max(of_word) < 1.5 * min(of_word), word


def test_the_strategy_follows_from_emotion_and_stage(rows):
    for row in rows["train"]:
        stage = next(i for i, texts in enumerate(STAGES.values()) if row["history"][-1]["text"] in texts)
        assert row["strategy"] == STRATEGY_TABLE[row["client_emotion"]][stage]
    assert {row["strategy"] for row in rows["train"]} == set(STRATEGIES)


def test_clips_have_the_tracks_asked_for_and_no_person_twice(tmp_path):
    both = generate_rows("test", 3, 5, tmp_path, tracks="both")
    mixed = generate_rows("test", 14, 5, tmp_path, tracks="mixed")
    kinds = Counter()
    for row in both + mixed:
        with av.open(row["videos"][0]) as clip:
            kinds[bool(clip.streams.video), bool(clip.streams.audio)] += 1
    assert set(kinds) == {(True, True), (True, False), (False, True)}
    assert not {row["videos"][0] for row in generate_rows("train", 3, 5, tmp_path)} & {r["videos"][0] for r in both}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "dev"}, "split is 'dev'"),
        ({"tracks": "all"}, "tracks is 'all'"),
        ({"distances": (2, 9)}, "distances"),
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        generate_rows(**{"split": "train", "n": 1, "seed": 0, "clips_dir": tmp_path, **changes})
