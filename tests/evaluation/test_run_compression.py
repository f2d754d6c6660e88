"""Measures of memories against hand-counted ones; a model that remembers nothing does not score as one that does."""

import json
import math
import sys

import pytest
import torch
from whole_builders import save_tiny, tiny_pair

from multimood.datasets_scripts.memory_slots import cut_utterances
from multimood.datasets_scripts.schema import write_rows
from multimood.datasets_scripts.synthetic import generate_rows
from multimood.evaluation.run_compression import (
    Reader,
    bleu,
    bleu_counts,
    continue_prompt,
    main,
    measure_dialogue,
    names_and_numbers,
    repeat_prompt,
)

SAID = [
    {"speaker": "client", "text": "My sister is called Nora. I saw her on the 3rd with two friends."},
    {"speaker": "therapist", "text": "What did Nora say then?"},
    {"speaker": "client", "text": "She left at once."},
    {"speaker": "therapist", "text": "That must have hurt."},
]


@pytest.fixture(scope="module")
def reader():
    return Reader(*tiny_pair(), batch_size=3)


def test_names_and_numbers_leave_out_openings_and_the_speaker():
    assert names_and_numbers(SAID[0]["text"]) == {"Nora": 1, "3rd": 1, "two": 1}
    assert names_and_numbers("Paul? I told Paul that I'm 40. Laura left.") == {"Paul": 1, "40": 1}


def test_bleu_is_the_published_formula():
    the_same = "a b c d e".split()
    assert bleu(bleu_counts(the_same, the_same)) == pytest.approx(1)
    written, true = "a b c d".split(), "a b c d e".split()
    assert bleu(bleu_counts(written, true)) == pytest.approx(math.exp(1 - 5 / 4)), "shorter than true"
    assert bleu(bleu_counts("a x c d".split(), true)) == 0, "no 4-gram matches"


def test_batches_score_as_single_rows(reader):
    pieces = cut_utterances(SAID, 4)
    prompts, memory = [repeat_prompt([piece]) for piece in pieces], list(reader.compress(pieces).split(1))
    targets = [reader.ids(piece["text"]) for piece in pieces]
    together = reader.log_probs(prompts, memory, targets)
    reader_of_one = Reader(reader.model, reader.processor, batch_size=1)
    for (row, _), (alone, _) in zip(together, reader_of_one.log_probs(prompts, memory, targets), strict=True):
        assert torch.allclose(row, alone, atol=1e-4)


def test_log_probabilities_are_the_models_own_loss(reader):
    prompt, target = continue_prompt([], "She left at once."), reader.ids("That must have hurt.")
    ((row, _),) = reader.log_probs([prompt], [reader.nothing], [target])
    inputs = reader.processor.apply_chat_template(
        [prompt], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    ids = torch.cat([inputs["input_ids"], torch.tensor([target])], dim=1)
    labels = ids.clone()
    labels[:, : -len(target)] = -100
    with torch.no_grad():
        loss = reader.model(input_ids=ids, labels=labels).loss
    assert -row.mean().item() == pytest.approx(loss.item(), abs=1e-4)


def test_memory_is_read(reader):
    pieces = cut_utterances(SAID, 4)[:1]
    target = [reader.ids("Client: My sister")]
    ((right, _),) = reader.log_probs([repeat_prompt(pieces)], [reader.compress(pieces)], target)
    ((other, _),) = reader.log_probs([repeat_prompt(pieces)], [reader.pool(pieces)], target)
    assert not torch.allclose(right, other, atol=1e-3)


def test_truncation_keeps_what_fits_and_gets_it_for_free(reader):
    with torch.inference_mode():
        whole = measure_dialogue(reader, SAID[2:], 1)
        short = measure_dialogue(reader, SAID, 64)
    assert whole["size"]["slots"] == 8
    slots, tokens = short["size"]["slots"], short["size"]["tokens"]
    assert slots == 4 < tokens
    truncation = short["truncation"]
    assert slots <= truncation["right"] < truncation["of"]
    assert truncation["found"] == 0 < truncation["names"], "names were said long before the last four tokens"
    assert short["compressor"]["of"] == short["mean pooling"]["of"]


def test_the_table_is_written_without_any_text(monkeypatch, tmp_path, capsys):
    model = save_tiny(tmp_path / "model")
    rows = generate_rows("test", 2, 0, tmp_path / "clips", tracks="none", distances=(6, 8))
    file = write_rows(rows, tmp_path / "test.jsonl")
    arguments = ["--model", model, "--rows", file, "--slot_words", 8, "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["run_compression", *map(str, arguments)])
    main()
    (written,) = tmp_path.glob("compression-*.json")
    result = json.loads(written.read_text())["results"]["8"]
    assert result["ratio"] == pytest.approx(result["tokens"] / result["slots"])
    for name in ("compressor", "mean pooling", "truncation"):
        assert set(result[name]) == {"token_accuracy", "bleu", "names_numbers", "perplexity"}
        low, high = result[name]["perplexity"]["interval"]
        assert 0 < low <= result[name]["perplexity"]["value"] <= high
    assert rows[0]["utterance"] not in written.read_text()
    assert "truncation" in capsys.readouterr().out
