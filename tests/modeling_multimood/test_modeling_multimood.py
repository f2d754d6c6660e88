"""The head and `generate`."""

import pytest
import torch
from model_builders import MIXED_ROWS, SETTINGS, TEXT, Row, tiny_batch, tiny_model
from transformers import AutoModelForCausalLM

TOKENS = 5


@torch.no_grad()
def generate(model, batch: dict, **settings) -> torch.LongTensor:
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0, **settings}
    return model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]


@pytest.mark.parametrize("text", TEXT)
def test_without_media_it_is_its_language_model(text):
    """Logits, loss and greedy tokens of the causal LM with the same weights; soft-capping and scaled embeddings too."""
    model = tiny_model(text=text)
    plain = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    plain.load_state_dict(
        {
            name.replace("model.language_model.", "model."): tensor
            for name, tensor in model.state_dict().items()
            if name.startswith(("model.language_model.", "lm_head."))
        }
    )
    batch = tiny_batch(model, [Row(0, 0, 0, 0, words=9), Row(1, 0, 0, 0, words=4)])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        outputs, expected = model(**batch, labels=labels), plain(**batch, labels=labels)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(outputs.logits[real], expected.logits[real])
    torch.testing.assert_close(outputs.loss, expected.loss)
    suppressed = {"suppress_tokens": model.generation_config.suppress_tokens}
    assert torch.equal(generate(model, batch), generate(plain, batch, **suppressed))


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_mixed_batch_generates_what_its_singles_do(use_cache):
    model = tiny_model()
    together = generate(model, tiny_batch(model, MIXED_ROWS), use_cache=use_cache)
    for row, tokens in zip(MIXED_ROWS, together, strict=True):
        assert torch.equal(generate(model, tiny_batch(model, [row]))[0], tokens)


def test_generation_depends_on_each_medium():
    model = tiny_model()
    batch = tiny_batch(model, [Row(0)])
    settings = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2, "pad_token_id": 0}
    before = torch.stack(model.generate(**batch, **settings).logits)
    for name in ("pixel_values_videos", "input_features", "history_input_ids"):
        changed = batch[name].flip(1) if batch[name].is_floating_point() else batch[name].clone()
        if name == "history_input_ids":
            changed[0, 0] += 1
        after = torch.stack(model.generate(**{**batch, name: changed}, **settings).logits)
        assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize("as_memory", [False, True])
def test_beams_of_a_ragged_batch_equal_those_of_its_singles(as_memory):
    model = tiny_model()

    def inputs(rows: list[Row]) -> dict:
        batch = tiny_batch(model, rows)
        if as_memory and "history_input_ids" in batch:
            memory = model.new_memory(batch_size=len(rows))
            memory.append(batch.pop("history_input_ids"), batch.pop("history_attention_mask"))
            batch["history_memory"] = memory
        return batch

    together = generate(model, inputs(MIXED_ROWS), num_beams=3, num_return_sequences=2)
    for index, row in enumerate(MIXED_ROWS):
        alone = generate(model, inputs([row]), num_beams=3, num_return_sequences=2)
        assert torch.equal(alone, together[2 * index : 2 * index + 2])


def test_several_answers_encode_each_clip_once():
    model = tiny_model()
    frames = []
    model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: frames.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    batch = tiny_batch(model, [Row(0), Row(5, videos=2)])
    answers = generate(model, batch, num_return_sequences=4, do_sample=True, top_k=1)
    assert frames == [3 * 4]
    assert torch.equal(answers, generate(model, batch).repeat_interleave(4, dim=0))


def test_beams_without_a_cache_are_refused_with_media():
    model = tiny_model()
    with pytest.raises(ValueError, match="takes `use_cache=True`"):
        generate(model, tiny_batch(model, [Row(0)]), num_beams=2, use_cache=False)


def test_media_are_encoded_with_the_prompt_only():
    model = tiny_model()
    calls = []
    for part in (model.model.vision_tower, model.model.audio_tower, model.model.compressor):
        part.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
    generate(model, tiny_batch(model, [Row(0)]))
    assert sorted(calls) == ["ConversationCompressor", "SiglipVisionModel", "WhisperEncoder"]


@pytest.mark.parametrize("with_media", [True, False])
def test_a_prompt_that_a_passed_cache_has_read_is_not_read_again(with_media):
    model = tiny_model()
    batch = tiny_batch(model, MIXED_ROWS)
    expected = generate(model, batch)
    start = {name: batch[name][:, :-2] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        positions = (start["attention_mask"].cumsum(1) - 1).clamp(min=0)  # as `generate` counts them
        cache = model(**{**batch, **start}, position_ids=positions, use_cache=True).past_key_values
    if not with_media:
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(generate(model, batch, past_key_values=cache), expected)


def test_a_cache_may_be_passed_to_a_model_without_media():
    absent = dict.fromkeys(SETTINGS)
    model = tiny_model(absent, vision=None, audio=None, history=None)
    batch = tiny_batch(tiny_model(), [Row(0, 0, 0, 0)])
    ids = batch["input_ids"]
    cache = model(ids[:, :4], use_cache=True).past_key_values
    settings = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, past_key_values=cache, **settings), model.generate(ids, **settings))


def test_media_after_a_passed_cache_are_read():
    model = tiny_model()
    batch = tiny_batch(model, [Row(0)])
    expected = generate(model, batch)
    with torch.no_grad():
        cache = model(input_ids=batch["input_ids"][:, :2], use_cache=True).past_key_values
    assert torch.equal(generate(model, batch, past_key_values=cache), expected)


def test_placeholders_are_never_generated():
    """Even where one is the most probable token by far."""
    model = tiny_model()
    placeholders = [120, 121, 122]
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    with torch.no_grad():
        hidden = model.model(**tiny_batch(model, [Row(0)])).last_hidden_state[0, -1]
        model.lm_head.weight[placeholders] = hidden * 100
    batch = tiny_batch(model, [Row(0)])
    assert model(**batch).logits[0, -1].argmax() in placeholders
    assert not set(generate(model, batch)[0].tolist()) & set(placeholders)


def test_logits_of_the_last_position_only():
    model = tiny_model()
    batch = tiny_batch(model, MIXED_ROWS)
    with torch.no_grad():
        last = model(**batch, logits_to_keep=1).logits
        torch.testing.assert_close(last, model(**batch).logits[:, -1:])


@pytest.mark.parametrize("text", ["qwen2", "llama"])
def test_embeddings_can_be_resized(text):
    model = tiny_model(text=text)
    before = model.get_input_embeddings().weight.clone()
    batch = tiny_batch(model, [Row(0)])
    expected = model(**batch).logits
    model.resize_token_embeddings(150)
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == 150
    assert model.config.text_config.vocab_size == 150
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (text == "qwen2")
    assert torch.equal(model.get_input_embeddings().weight[:128], before)
    torch.testing.assert_close(model(**batch).logits[..., :128], expected)


def attention_of_parts(model) -> dict[str, str]:
    inner = model.model
    parts = {"": model, "vision": inner.vision_tower, "audio": inner.audio_tower, "text": inner.language_model}
    return {name: part.config._attn_implementation for name, part in parts.items()}


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(attn_implementation, tmp_path):
    model = tiny_model(audio="beats")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation=attn_implementation)
    assert set(attention_of_parts(loaded).values()) == {attn_implementation}
    assert loaded.model.compressor.reader.config._attn_implementation == "eager"
    batch = tiny_batch(model, [Row(0)])
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("history", ["mamba2", "qwen2"])
def test_attention_can_be_changed_after_loading(history):
    model = tiny_model(audio="beats", history=history)
    batch = tiny_batch(model, [Row(0)])
    expected = model(**batch).logits
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert set(attention_of_parts(model).values()) == {implementation}
        assert model.model.compressor.reader.config._attn_implementation == "eager"
        torch.testing.assert_close(model(**batch).logits, expected, atol=2e-5, rtol=1e-4)
    model.set_attn_implementation({"text_config": "eager"})
    assert attention_of_parts(model) == {"": "sdpa", "vision": "sdpa", "audio": "sdpa", "text": "eager"}


def test_flash_attention_is_on_offer():
    assert type(tiny_model())._supports_flash_attn
