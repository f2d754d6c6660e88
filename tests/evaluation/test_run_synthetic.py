import pytest
from whole_builders import tiny_pair

from multimood.datasets_scripts.synthetic import generate_rows
from multimood.evaluation.results_file import write_results
from multimood.evaluation.run_synthetic import ABLATIONS, NO_HISTORY, _scores, evaluate, without
from multimood.processors.turn import SupportTurn, build_prompt


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return generate_rows("test", 3, 9, tmp_path_factory.mktemp("clips"), tracks="both", distances=(10, 14))


@pytest.mark.filterwarnings("ignore:.*of sound, of which the last")
def test_every_condition_is_measured_and_every_turn_valid(rows):
    model, processor = tiny_pair()
    results = evaluate(model, processor, rows, batch_size=2)
    assert list(results) == [*ABLATIONS, NO_HISTORY]
    for scores in results.values():
        assert scores["valid"] == 1, "the grammar holds even for random weights"
        assert scores["fact"] == 0, "random weights do not name facts"


def test_an_ablation_takes_out_just_its_blocks(rows):
    messages = build_prompt(rows[0], verbatim_pairs=2)
    kinds = [block["type"] for block in without(messages, frozenset({"video"}))[1]["content"]]
    assert "video" not in kinds
    assert {"audio", "history", "text"} <= set(kinds)
    assert "video" in [block["type"] for block in messages[1]["content"]], "the row's own messages stay whole"


def test_a_turn_that_cannot_be_parsed_counts_as_wrong(rows):
    right = [
        SupportTurn(*(r[f] for f in ("client_emotion", "therapist_emotion", "strategy", "response"))) for r in rows
    ]
    assert set(_scores(rows, right).values()) == {1.0}
    scores = _scores(rows, [SupportTurn.parse("I cannot say."), *right[1:]])
    assert scores == dict.fromkeys(scores, pytest.approx(2 / 3))


def test_results_say_what_they_were_found_on(tmp_path):
    path = write_results(tmp_path, "synthetic", {"full": {"strategy": 0.5}}, seed=3)
    text = path.read_text()
    assert path.name.startswith("synthetic-")
    assert all(word in text for word in ('"seed": 3', '"torch"', '"cores"', '"date"'))
