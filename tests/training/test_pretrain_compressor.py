"""Samples of compressor pretraining, and that a stopped run goes on as if it had not stopped."""

import json
import sys

import pytest
import torch
from whole_builders import save_tiny

from multimood import MultiMoodForConditionalGeneration, MultiMoodProcessor
from multimood.datasets_scripts.memory_slots import cut_utterances, longest_conversations
from multimood.datasets_scripts.schema import write_rows
from multimood.datasets_scripts.synthetic import generate_rows
from multimood.training import pretrain_compressor
from multimood.training.pretrain_compressor import CompressorArguments, MemoryCollator, MemoryTasks

SAID = [
    {"speaker": "client" if i % 2 == 0 else "therapist", "text": " ".join(f"w{i}n{j}" for j in range(7))}
    for i in range(9)
]
COMMON = "--use_cpu true --bf16 false --report_to none --learning_rate 1e-2 --logging_steps 1 --samples 2".split()


def tasks(length: int, **settings) -> MemoryTasks:
    return MemoryTasks([SAID], 40, length, 4, 0, CompressorArguments(model="", train_file="", **settings))


def test_long_utterances_are_cut_evenly_and_no_word_is_lost():
    pieces = cut_utterances(SAID, 3)
    assert [len(piece["text"].split()) for piece in pieces[:3]] in ([2, 3, 2], [2, 2, 3], [3, 2, 2])
    assert " ".join(piece["text"] for piece in pieces) == " ".join(one["text"] for one in SAID)
    assert [piece["speaker"] for piece in pieces[::3]] == [one["speaker"] for one in SAID]
    with pytest.raises(ValueError, match="words is 0"):
        cut_utterances(SAID, 0)


def test_each_dialogue_is_taken_once_and_whole(tmp_path):
    row = generate_rows("train", 1, 0, tmp_path, tracks="none")[0]
    earlier = {**row, "turn_id": -1, "history": row["history"][:-2], "utterance": "earlier"}
    (said,) = longest_conversations([row, earlier])
    assert said[-1]["text"] == row["response"]
    assert [one["text"] for one in said[:-2]] == [one["text"] for one in row["history"]]


def test_an_item_is_a_function_of_seed_and_number():
    settings = {"slot_words": [2, 7], "swap": 0.3, "continuation": 0.5}
    first, again = tasks(6, **settings), tasks(6, **settings)
    again[3]  # what was drawn before changes nothing
    assert [first[i] for i in range(40)] == [again[i] for i in range(40)]
    assert first[0] != first[1]


def test_a_group_of_items_has_slots_of_one_size():
    cut = tasks(6, slot_words=[2, 7])
    sizes = [max(len(piece["text"].split()) for piece in cut[i]["run"]) for i in range(40)]
    assert {len(set(sizes[start : start + 4])) for start in range(0, 40, 4)} == {1}
    assert len(set(sizes)) == 2


def test_runs_are_neighbours_and_each_ask_names_its_own_slot():
    for item in map(tasks(4, samples=3).__getitem__, range(40)):
        texts = [piece["text"] for piece in item["run"]]
        assert "|".join(texts) in "|".join(one["text"] for one in SAID)
        assert len(item["run"]) == 4
        for ask in item["asks"]:
            (first, end) = ask["slots"]
            assert ask["target"].endswith(texts[first])
            assert end == first + 1


def test_answers_are_asked_after_all_that_came_before_the_client():
    items = list(map(tasks(24, samples=2, continuation=1.0).__getitem__, range(40)))
    texts = [one["text"] for one in SAID]
    for item in items:
        assert [piece["text"] for piece in item["run"]] == texts
        assert len(item["asks"]) == 2
        for ask in item["asks"]:
            answer = texts.index(ask["target"])
            assert SAID[answer]["speaker"] == "therapist"
            assert ask["slots"] == (0, answer - 1)
            assert texts[answer - 1] in str(ask["prompt"])
    assert len({ask["target"] for item in items for ask in item["asks"]}) > 1


def test_answers_read_only_what_is_left_of_a_run_that_begins_later():
    texts = [one["text"] for one in SAID]
    firsts = set()
    for item in map(tasks(8, samples=2, slot_words=[3], continuation=1.0).__getitem__, range(40)):
        firsts.add(item["run"][0]["text"])
        for ask in item["asks"]:
            if ask["target"] in texts:  # else no answer is within reach of the run
                said = " ".join(piece["text"] for piece in item["run"][slice(*ask["slots"])])
                assert " ".join(texts[: texts.index(ask["target"]) - 1]).endswith(said)
    assert len(firsts) > 1


def test_a_group_of_items_asks_for_one_thing():
    mixed, texts = tasks(24, samples=2, continuation=0.5), [one["text"] for one in SAID]
    is_answer = [{ask["target"] in texts for ask in mixed[i]["asks"]} for i in range(40)]
    groups = [set.union(*is_answer[start : start + 4]) for start in range(0, 40, 4)]
    assert {len(kinds) for kinds in groups} == {1}
    assert set.union(*groups) == {True, False}


def test_swapped_words_are_words_of_the_corpus_and_the_target_says_them():
    known = {word for one in SAID for word in one["text"].split()}
    changed = 0
    for item in map(tasks(4, swap=0.5).__getitem__, range(40)):
        for ask in item["asks"]:
            words = ask["target"].partition(": ")[2].split()
            assert set(words) <= known
            changed += " ".join(words) not in {one["text"] for one in SAID}
    assert changed > 20


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rows = generate_rows("train", 6, 0, folder / "clips", tracks="none", distances=(6, 8))
    return write_rows(rows, folder / "train.jsonl")


def test_the_batch_gives_each_row_its_runs_vector(model_folder):
    """A row that reads one slot of a run has the loss of a row whose memory is that vector alone."""
    processor = MultiMoodProcessor.from_pretrained(model_folder)
    model = MultiMoodForConditionalGeneration.from_pretrained(model_folder).eval()
    items = [tasks(4, samples=1)[i] for i in range(2)]
    batch = MemoryCollator(processor)(items)
    (first, _), (second, _) = (item["asks"][0]["slots"] for item in items)
    assert batch["slots"].tolist() == [[first, first + 1], [4 + second, 5 + second]]
    with torch.no_grad():
        vectors = torch.cat(model.get_history_features(batch["history_input_ids"], batch["history_attention_mask"]))
        alone = model.get_history_features(**processor.encode_history([items[1]["run"]]))[0]
    assert torch.allclose(vectors[4 + second], alone[second], atol=1e-5)


def launch(monkeypatch, model_folder, train_file, out, *arguments) -> None:
    settings = ["--model", model_folder, "--train_file", train_file, "--output_dir", out, *arguments]
    monkeypatch.setattr(sys, "argv", ["pretrain_compressor", *map(str, settings), *COMMON])
    pretrain_compressor.main()


def losses(stage) -> list[float]:
    (state,) = sorted(stage.glob("checkpoint-*/trainer_state.json"))[-1:]
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


def test_a_stopped_run_ends_as_one_that_was_not(monkeypatch, tmp_path, model_folder, train_file):
    settings = (
        *("--utterance_steps", 2, "--dialogue_steps", 4, "--run_length", 4, "--per_device_train_batch_size", 2),
        *("--slot_words", 3, 9, "--swap", 0.2, "--continuation", 0.5, "--save_steps", 2),
    )
    launch(monkeypatch, model_folder, train_file, tmp_path / "whole", *settings)

    class Stopped(Exception):
        pass

    collate = MemoryCollator.__call__

    def stopping(self, items):
        stopping.batches += 1
        if stopping.batches == 6:  # in stage "dialogue", after the checkpoint of its second step
            raise Stopped
        return collate(self, items)

    stopping.batches = 0
    monkeypatch.setattr(MemoryCollator, "__call__", stopping)
    with pytest.raises(Stopped):
        launch(monkeypatch, model_folder, train_file, tmp_path / "stopped", *settings)
    monkeypatch.setattr(MemoryCollator, "__call__", collate)
    launch(monkeypatch, model_folder, train_file, tmp_path / "stopped", *settings)

    for stage, steps in (("utterance", 2), ("dialogue", 4)):
        whole, resumed = losses(tmp_path / "whole" / stage), losses(tmp_path / "stopped" / stage)
        assert len(whole) == steps
        assert resumed == pytest.approx(whole, abs=1e-6)
    weights = [
        MultiMoodForConditionalGeneration.from_pretrained(tmp_path / run).model.compressor.state_dict()
        for run in ("whole", "stopped")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_bad_settings_are_named_before_anything_is_loaded(monkeypatch, tmp_path, model_folder, train_file):
    with pytest.raises(SystemExit, match=r"slot_words is \[4, 0\]"):
        launch(monkeypatch, model_folder, train_file, tmp_path, "--slot_words", 4, 0)
