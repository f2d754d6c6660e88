from functools import partial

import pytest
from whole_builders import tiny_pair

from multimood.datasets_scripts.synthetic import generate_rows
from multimood.processors.turn import SupportTurn, build_prompt
from multimood.training.sft import turn_target
from multimood.training.trainers.collator import IGNORE_INDEX, MultiMoodCollator, last_logits


@pytest.fixture(scope="module")
def collated(tmp_path_factory):
    model, processor = tiny_pair()
    clips = tmp_path_factory.mktemp("clips")
    rows = generate_rows("train", 2, 0, clips, tracks="both") + generate_rows("train", 1, 1, clips, tracks="none")
    collator = MultiMoodCollator(processor, partial(build_prompt, verbatim_pairs=2), turn_target)
    return model, processor, collator, rows, collator(rows)


def test_the_loss_is_on_the_turn_alone(collated):
    _, processor, _, rows, batch = collated
    for row, labels in zip(rows, batch["labels"], strict=True):
        ids = labels[labels != IGNORE_INDEX]
        assert ids[-1] == processor.tokenizer.eos_token_id, "the model learns to stop"
        turn = SupportTurn.parse(processor.tokenizer.decode(ids[:-1]))
        assert turn == SupportTurn(*(row[f] for f in ("client_emotion", "therapist_emotion", "strategy", "response")))


def test_every_placeholder_and_all_padding_are_masked(collated):
    model, _, _, _, batch = collated
    config = model.config
    for token_id in (config.video_token_id, config.audio_token_id, config.history_token_id):
        places = batch["input_ids"] == token_id
        assert places.any()
        assert (batch["labels"][places] == IGNORE_INDEX).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE_INDEX).all()


def test_the_model_takes_the_batch_and_its_loss_is_that_of_the_rows(collated):
    model, _, collator, rows, batch = collated
    counts = [(labels != IGNORE_INDEX).sum().item() for labels in batch["labels"]]
    singles = [model(**collator([row])).loss.item() for row in rows]
    mean = sum(loss * count for loss, count in zip(singles, counts, strict=True)) / sum(counts)
    assert model(**batch).loss.item() == pytest.approx(mean, abs=1e-4)


def test_special_tokens_in_a_response_are_not_taken_for_control(collated):
    _, processor, collator, rows, _ = collated
    batch = collator([{**rows[0], "response": "Hold <|video|> and <|im_end|> still."}])
    ids = batch["labels"][0][batch["labels"][0] != IGNORE_INDEX].tolist()
    assert processor.video_token_id not in ids
    assert ids.count(processor.tokenizer.eos_token_id) == 1


def test_the_loss_is_the_same_with_the_last_logits_alone(collated):
    model, _, _, _, batch = collated
    whole, last = model(**batch), model(**last_logits(batch))
    assert last.loss.item() == pytest.approx(whole.loss.item(), abs=1e-5)
    assert last.logits.shape[1] < whole.logits.shape[1]
