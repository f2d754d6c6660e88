"""Scores of labels against hand-counted ones, and rows that must not be scored."""

import json
import sys

import pytest
from whole_builders import save_tiny, tiny_pair

from multimood.datasets_scripts.schema import write_rows
from multimood.datasets_scripts.synthetic import generate_rows
from multimood.evaluation.run_labels import accuracy, evaluate, macro_f1, main, score


def test_measures_are_those_counted_by_hand():
    truth, answers = ["a", "a", "b", "c"], ["a", "b", "b", "b"]
    assert accuracy(truth, answers) == 0.5
    # a: 1 right of 2 true and 1 said; b: 1 of 1 and 3; c: never said
    assert macro_f1(truth, answers) == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    assert macro_f1(["a", "a"], ["a", "d"]) == pytest.approx((2 / 3 + 0) / 2), "a label said in vain counts"


def test_the_interval_holds_the_value_and_the_lead_is_over_the_common_label():
    truth = ["a", "b"] * 30
    result = score([str(i) for i in range(60)], truth, truth, "a", seed=0)
    assert result["accuracy"]["value"] == 1
    assert result["accuracy"]["interval"] == [1, 1]
    assert result["accuracy"]["majority"] == 0.5
    low, high = result["accuracy"]["lead_interval"]
    assert 0.3 < low < 0.5 < high < 0.7


def test_rows_of_one_dialogue_are_drawn_together():
    truth, answers = ["a"] * 40, ["a"] * 20 + ["b"] * 20
    apart = score([str(i) for i in range(40)], truth, answers, "a", seed=0)["accuracy"]["interval"]
    together = score(["x"] * 20 + ["y"] * 20, truth, answers, "a", seed=0)["accuracy"]["interval"]
    assert together == [0, 1]
    assert apart[0] > 0.2


def test_rows_of_training_dialogues_are_refused(tmp_path):
    rows = generate_rows("train", 3, 0, tmp_path, tracks="none")
    with pytest.raises(ValueError, match="1 dialogues are in the training rows, too, such as"):
        evaluate(*tiny_pair(), rows[:2], rows[1:])


def test_every_row_gets_an_answer_and_the_figures_are_written(monkeypatch, tmp_path):
    model = save_tiny(tmp_path / "model")
    train = write_rows(generate_rows("train", 4, 0, tmp_path / "clips", tracks="none"), tmp_path / "train.jsonl")
    test = write_rows(generate_rows("test", 5, 0, tmp_path / "clips", tracks="none"), tmp_path / "test.jsonl")
    arguments = ["--model", model, "--train_rows", train, "--rows", test, "--batch_size", 2, "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["run_labels", *map(str, arguments)])
    main()
    (file,) = tmp_path.glob("labels-*.json")
    results = json.loads(file.read_text())["results"]
    assert set(results) == {"client_emotion", "therapist_emotion", "strategy"}
    assert all(sum(result["answered"].values()) == result["rows"] == 5 for result in results.values())
