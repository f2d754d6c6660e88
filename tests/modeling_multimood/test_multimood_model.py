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
    assert loaded.config.to_dict() == {**model.config.to_dict(), "dtype": "float32", "_name_or_path": str(tmp_path)}
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
