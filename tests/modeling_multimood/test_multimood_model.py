"""The fusion: what holds for every supported kind of tower."""

import pytest
import torch
from model_builders import KINDS, MIXED_ROWS, Row, kind_name, tiny_batch, tiny_model

every_kind = pytest.mark.parametrize("kinds", KINDS, ids=kind_name)
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def real(logits: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
    """Logits `(B, L, V)` → for each row those of its tokens, `(tokens, V)`."""
    return [row[mask.bool()] for row, mask in zip(logits, attention_mask, strict=True)]


@torch.no_grad()
def logits_of(model, batch: dict) -> list[torch.Tensor]:
    return real(model(**batch).logits, batch["attention_mask"])


@every_kind
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_mixed_batch_equals_its_singles(kinds, padding_side):
    model = tiny_model(**kinds)
    together = logits_of(model, tiny_batch(model, MIXED_ROWS, padding_side))
    for row, logits in zip(MIXED_ROWS, together, strict=True):
        (alone,) = logits_of(model, tiny_batch(model, [row]))
        torch.testing.assert_close(logits, alone, **TOLERANCE)


@every_kind
def test_cached_equals_uncached(kinds):
    model = tiny_model(**kinds)
    batch = tiny_batch(model, MIXED_ROWS)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = logits_of(model, batch)
    with torch.no_grad():
        outputs = model(**{**batch, "input_ids": ids[:, :-3], "attention_mask": mask[:, :-3]}, use_cache=True)
        logits = [outputs.logits]
        for position in range(ids.shape[1] - 3, ids.shape[1]):
            outputs = model(
                input_ids=ids[:, position : position + 1],
                attention_mask=mask[:, : position + 1],
                past_key_values=outputs.past_key_values,
                use_cache=True,
            )
            logits.append(outputs.logits)
    for got, want in zip(real(torch.cat(logits, dim=1), mask), expected, strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE)


@every_kind
@pytest.mark.parametrize("medium", ["video", "audio", "history"])
def test_logits_change_when_one_medium_changes(kinds, medium):
    model = tiny_model(**kinds)
    batch = tiny_batch(model, [Row(0)])
    (before,) = logits_of(model, batch)
    name = {"video": "pixel_values_videos", "audio": "input_features", "history": "history_input_ids"}[medium]
    changed = batch[name].clone()
    if medium == "history":
        changed[0, 0] += 1
    else:
        changed = changed.flip(1)
    (after,) = logits_of(model, {**batch, name: changed})
    # Only the words after the media see them.
    assert (after[-1] - before[-1]).abs().max() > 1e-4
    assert torch.equal(after[0], before[0])


@every_kind
def test_saved_equals_loaded(kinds, tmp_path):
    model = tiny_model(**kinds)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    # Weights mapped from a file are aligned otherwise in memory, which may round otherwise: compare like with like.
    loaded.load_state_dict({name: tensor.clone() for name, tensor in loaded_state.items()}, assign=True)
    loaded.tie_weights()
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    model.tie_weights()
    batch = tiny_batch(model, MIXED_ROWS)
    assert all(
        torch.equal(got, want) for got, want in zip(logits_of(loaded, batch), logits_of(model, batch), strict=True)
    )


def test_a_model_may_do_without_any_medium():
    for missing in ("vision", "audio", "history"):
        model = tiny_model(**{missing: None})
        rows = [
            Row(0, **{{"vision": "videos", "audio": "audios", "history": "utterances"}[missing]: 0}),
            Row(1, 0, 0, 0),
        ]
        together = logits_of(model, tiny_batch(model, rows))
        for row, logits in zip(rows, together, strict=True):
            torch.testing.assert_close(logits, logits_of(model, tiny_batch(model, [row]))[0], **TOLERANCE)


@pytest.mark.parametrize("pooling", [2, 3])
def test_stacked_audio_takes_fewer_tokens(pooling):
    model = tiny_model({"audio_pooling": pooling})
    batch = tiny_batch(model, [Row(0)])
    assert (batch["input_ids"] == model.config.audio_token_id).sum() == -(-50 // pooling)
    assert logits_of(model, batch)[0].isfinite().all()


def test_clips_take_their_places_in_order():
    model = tiny_model(audio=None, history=None)
    both = tiny_batch(model, [Row(0, 1, 0, 0), Row(2, 1, 0, 0)], "right")
    swapped = {**both, "pixel_values_videos": both["pixel_values_videos"].flip(0)}
    first, second = logits_of(model, both)
    other_first, other_second = logits_of(model, swapped)
    assert (first - other_first).abs().max() > 1e-4
    assert (second - other_second).abs().max() > 1e-4


def test_the_fused_embeddings_stand_for_prompt_and_media():
    model = tiny_model()
    batch = tiny_batch(model, MIXED_ROWS)
    attention_mask = batch.pop("attention_mask")
    with torch.no_grad():
        expected = model(**batch, attention_mask=attention_mask).logits
        inputs_embeds = model.model.embed(**batch)
        torch.testing.assert_close(model(inputs_embeds=inputs_embeds, attention_mask=attention_mask).logits, expected)
        with pytest.raises(ValueError, match="must hold the media's features already; got input_features"):
            model(inputs_embeds=inputs_embeds, input_features=batch["input_features"])


def test_history_as_memory_as_vectors_and_as_ids_are_the_same():
    model = tiny_model()
    batch = tiny_batch(model, MIXED_ROWS)
    expected = logits_of(model, batch)
    ids, mask = batch.pop("history_input_ids"), batch.pop("history_attention_mask")
    memory = model.new_memory(batch_size=len(ids))
    memory.append(ids, mask)
    for history_memory in (memory, memory.vectors):
        for got, want in zip(logits_of(model, {**batch, "history_memory": history_memory}), expected, strict=True):
            torch.testing.assert_close(got, want, **TOLERANCE)
    with pytest.raises(ValueError, match="Give `history_input_ids` or `history_memory`, not both"):
        model(**batch, history_memory=memory, history_input_ids=ids)


@pytest.mark.parametrize(
    ("inputs", "encode", "features"),
    [
        ("pixel_values_videos", "encode_video", "video_tower_features"),
        ("input_features", "encode_audio", "audio_tower_features"),
    ],
)
def test_what_a_tower_made_earlier_stands_for_its_inputs(inputs, encode, features):
    model = tiny_model()
    batch = tiny_batch(model, MIXED_ROWS)
    expected = logits_of(model, batch)
    raw = batch.pop(inputs)
    encoded = getattr(model, encode)(raw)
    for got, want in zip(logits_of(model, {**batch, features: encoded}), expected, strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE)
    with pytest.raises(ValueError, match=f"Give `{inputs}` or `{features}`, not both"):
        model(**batch, **{inputs: raw, features: encoded})


@pytest.mark.parametrize(
    ("name", "medium"),
    [("pixel_values_videos", "video"), ("input_features", "audio"), ("history_input_ids", "history")],
)
def test_placeholders_without_features_raise(name, medium):
    model = tiny_model()
    batch = tiny_batch(model, [Row(0)])
    del batch[name]
    with pytest.raises(ValueError, match=rf"[1-9]\d* {medium} placeholders .* for 0 {medium} features.*{name}"):
        model(**batch)


@pytest.mark.parametrize("medium", ["video", "audio", "history"])
def test_features_without_placeholders_raise(medium):
    model = tiny_model()
    batch = tiny_batch(model, [Row(0)])
    batch["input_ids"][batch["input_ids"] == getattr(model.config, f"{medium}_token_id")] = 5
    with pytest.raises(ValueError, match=rf"{medium} placeholders"):
        model(**batch)


@pytest.mark.parametrize("medium", ["video", "audio", "history"])
def test_one_placeholder_too_few_raises(medium):
    model = tiny_model()
    batch = tiny_batch(model, [Row(0)])
    first = (batch["input_ids"][0] == getattr(model.config, f"{medium}_token_id")).nonzero()[0]
    batch["input_ids"][0, first] = 5
    with pytest.raises(ValueError, match=rf"{medium} placeholders"):
        model(**batch)


def test_another_rows_history_raises():
    """The sum of placeholders fits, the rows do not: one person's past would go to another."""
    model = tiny_model()
    batch = tiny_batch(model, [Row(0, 0, 0, 2), Row(1, 0, 0, 3)])
    for name in ("history_input_ids", "history_attention_mask"):
        batch[name] = batch[name].flip(0)
    with pytest.raises(ValueError, match=r"\[2, 3\] history placeholders .* for \[3, 2\] memory vectors"):
        model(**batch)


@pytest.mark.parametrize("name", ["video_token_mask", "audio_token_mask"])
def test_a_mask_of_another_shape_raises(name):
    model = tiny_model()
    batch = tiny_batch(model, [Row(0)])
    batch[name] = batch[name][:, 1:]
    with pytest.raises(ValueError, match=f"`{name}` has the shape"):
        model(**batch)


def test_media_for_a_part_that_is_absent_raise():
    batch = tiny_batch(tiny_model(), [Row(0)])
    with pytest.raises(ValueError, match="`input_features` needs the part `audio_tower`"):
        tiny_model(audio=None)(**batch)
    with pytest.raises(ValueError, match="`new_memory` needs the part `compressor`"):
        tiny_model(history=None).new_memory()


def test_videos_of_another_rank_raise():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"\(videos, frames, 3, height, width\), got \(4, 3, 32, 32\)"):
        model.get_video_features(torch.zeros(4, 3, 32, 32))


def test_neither_ids_nor_embeddings_raise():
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        tiny_model()(attention_mask=torch.ones(1, 3))


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("video_token_id", "vision_config"),
        ("audio_token_id", "audio_config"),
        ("history_token_id", "history_config"),
        ("memory_token_id", "history_config"),
    ],
)
def test_a_part_without_its_token_raises(setting, part):
    with pytest.raises(ValueError, match=rf"`{part}` needs `{setting}`"):
        tiny_model({setting: None})


def test_a_frozen_tower_stays_in_evaluation_mode():
    model = tiny_model()
    model.freeze("vision")
    model.train()
    assert not model.model.vision_tower.training
    assert model.model.audio_tower.training
    assert model.model.connector.training
    model.model.vision_tower.requires_grad_(True)
    assert model.train().model.vision_tower.training
