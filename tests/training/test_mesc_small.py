"""Rows of the small MESC model: no episode on two sides, and the test's rows are read by no stage."""

import csv
from pathlib import Path

import pytest
import torch

from multimood.datasets_scripts.mesc import COLUMNS
from multimood.datasets_scripts.schema import read_rows
from multimood.modeling_multimood.pooled_words import pooled_words
from multimood.processors.turn import render_utterance
from multimood.training import mesc_small

MESC = Path(__file__).parents[3] / "shared" / "data" / "mesc"
SAID = [
    {"speaker": ("client", "therapist")[i % 2], "text": f"{'abcdefgh'[i]}x went to the {'stuvwxyz'[i]} house"}
    for i in range(8)
]
ROW = {
    **{"dialogue_id": "1", "history": SAID[:-2], "utterance": SAID[-2]["text"], "response": SAID[-1]["text"]},
    **{"client_emotion": "joy", "therapist_emotion": "neutral", "strategy": "others"},
}
FIRST, SECOND = "How are you?", "Could be better, I was with my brother again."


@pytest.fixture
def mesc(tmp_path) -> Path:
    """A made-up table in MESC's form: 20 episodes of two dialogues."""
    folder = tmp_path / "mesc"
    folder.mkdir()
    with (folder / "MESC.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for dialogue in range(40):
            for place in range(6):
                client = place % 2
                table.writerow(
                    [
                        f"{SECOND if client else FIRST} {dialogue} {place}",
                        "Client" if client else "Therapist",
                        ("sadness", "joy", "neutral")[dialogue % 3] if client else "neutral",
                        "undefined" if client else "Open question",
                        *(dialogue, place, 1, dialogue // 2 + 1),
                        *(f"00:00:{place:02d},000", f"00:00:{place:02d},900"),
                    ]
                )
    return folder


def test_stages_train_on_rows_of_train_alone(monkeypatch, tmp_path, mesc):
    commands, seen = [], []
    monkeypatch.setattr(mesc_small.subprocess, "run", lambda command, check: commands.append(command))
    # Stands in for minutes of training; the rows that it is given are what counts here.
    monkeypatch.setattr(mesc_small, "train_language_model", lambda folder, rows, steps, seed: seen.extend(rows))
    work = tmp_path / "work"
    monkeypatch.setattr("sys.argv", ["mesc_small", "--mesc", str(mesc), "--work", str(work), "--clips"])
    monkeypatch.setattr(mesc_small, "draw_clip", _touch)
    mesc_small.main()

    held_out = {
        row["dialogue_id"] for split in ("validation", "test") for row in read_rows(work / "rows" / f"{split}.jsonl")
    }
    assert held_out
    assert seen
    assert {row["dialogue_id"] for row in seen}.isdisjoint(held_out)
    files = {command[command.index("--train_file") + 1] for command in commands}
    assert len(commands) == 3
    assert {Path(file).stem for file in files} == {"train_compressor", "train_slots", "train"}
    for_compressor = {row["dialogue_id"] for row in read_rows(work / "rows" / "train_compressor.jsonl")}
    assert for_compressor
    assert for_compressor.isdisjoint(row["dialogue_id"] for row in seen)
    for file in files:
        assert {row["dialogue_id"] for row in read_rows(file)}.isdisjoint(held_out)
    names = [Path(argument).name for command in commands for argument in command]
    assert not any("test" in name for name in names)
    assert [name for name in names if "validation" in name] == ["validation_slots.jsonl"]  # to choose a checkpoint


def _touch(row):
    Path(row["videos"][0]).touch()


@pytest.mark.skipif(not MESC.is_dir(), reason="../shared/data/mesc is not here")
def test_no_words_of_a_test_episode_are_in_training(tmp_path):
    mesc_small.write_splits(MESC, tmp_path)
    rows = {split: list(read_rows(tmp_path / f"{split}.jsonl")) for split in mesc_small.SPLITS}
    assert all(len(rows[split]) > 400 for split in rows)
    with (MESC / "MESC.csv").open(encoding="utf-8-sig", newline="") as file:
        episode = {f"mesc-{line['Dialogue_ID']}": (line["Season"], line["Episode"]) for line in csv.DictReader(file)}
    sides = {split: {episode[row["dialogue_id"]] for row in rows[split]} for split in rows}
    assert sides["train"].isdisjoint(sides["test"] | sides["validation"])
    assert sides["test"].isdisjoint(sides["validation"])


def test_histories_are_cut_into_slots_and_keep_their_words(mesc, tmp_path):
    mesc_small.write_splits(mesc, tmp_path)
    for row in read_rows(tmp_path / "train.jsonl"):
        cut = mesc_small.in_slots(row)
        assert max((len(u["text"].split()) for u in cut["history"]), default=0) <= mesc_small.SFT_SLOT_WORDS
        assert " ".join(u["text"] for u in cut["history"]) == " ".join(u["text"] for u in row["history"])
        assert {**cut, "history": None} == {**row, "history": None}


def language_tasks(answering):
    said = [{"speaker": ("client", "therapist")[i % 2], "text": f"word{i} " * 9} for i in range(8)]
    return mesc_small.LanguageTasks([said], 60, answering, 0)


@pytest.mark.parametrize("answering", [False, True])
def test_language_tasks_follow_from_seed_and_step(answering):
    tasks, again = language_tasks(answering), language_tasks(answering)
    assert [tasks[i] for i in range(60)] == [again[59 - i] for i in range(60)][::-1]
    kinds = {bool(row["run"]) for step in range(60) for row in tasks[step]}
    assert kinds == {True, False}


def test_the_compressor_starts_as_the_sum_of_an_utterances_words():
    torch.manual_seed(0)
    model, processor = mesc_small.build(mesc_small.train_tokenizer([ROW]))
    mesc_small.start_as_pooling(model, processor)
    ids = [processor.tokenizer(render_utterance(one), add_special_tokens=False)["input_ids"] for one in SAID]
    with torch.no_grad():
        (vectors,) = model.get_history_features(**processor.encode_history([SAID]))
        summed = pooled_words(model.get_input_embeddings(), ids)
    assert torch.cosine_similarity(vectors, summed).min() > 0.95
    assert torch.cosine_similarity(vectors, summed.roll(2, 0)).max() < 0.8  # the speaker and most words are the same
