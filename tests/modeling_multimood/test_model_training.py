"""Training: gradients, gradient checkpointing, LoRA, quantised and offloaded weights."""

import importlib.util

import pytest
import torch
from model_builders import MIXED_ROWS, Row, tiny_batch, tiny_model

MODEL_PARTS = {"vision_tower", "connector", "audio_tower", "audio_projector", "compressor", "language_model"}


def gradients(model, batch: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    labels = batch["input_ids"].masked_fill(batch["input_ids"] >= 100, -100)
    model(**batch, labels=labels, use_cache=False).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("history", ["mamba2", "mamba"])
def test_every_part_learns(history):
    model = tiny_model(history=history).train()
    reached = {
        name.split(".")[1] for name, grad in gradients(model, tiny_batch(model, MIXED_ROWS)).items() if grad.any()
    }
    assert reached == MODEL_PARTS


@pytest.mark.parametrize("frozen", [(), ("vision", "audio"), ("vision", "audio", "language_model")], ids=str)
def test_gradient_checkpointing_gives_the_same_gradients(frozen):
    model = tiny_model()
    model.freeze(*frozen)
    model.train()
    batch = tiny_batch(model, MIXED_ROWS)
    plain = gradients(model, batch)
    plain = {name: grad.clone() for name, grad in plain.items()}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = gradients(model, batch)
    assert checkpointed.keys() == plain.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad, msg=name)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_tower_keeps_no_activations(frozen):
    """Not even where its embeddings are made to require gradients, as PEFT does for gradient checkpointing."""
    model = tiny_model()
    if frozen:
        model.freeze("vision", "audio")
    for tower in (model.model.vision_tower, model.model.audio_tower):
        tower.enable_input_require_grads()
    seen = []
    for part in (model.model.connector, model.model.audio_projector):
        part.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    model.train()(**tiny_batch(model, [Row(0)]))
    assert seen == [not frozen] * 2


def test_two_steps_lower_the_loss():
    model = tiny_model().train()
    batch = tiny_batch(model, MIXED_ROWS, "right")
    labels = batch["input_ids"].masked_fill((batch["input_ids"] >= 100) | (batch["attention_mask"] == 0), -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_lora_adapters_are_saved_and_reloaded(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    config = peft.LoraConfig(
        r=4,
        target_modules=r"model\.language_model\..*\.(q_proj|v_proj)",
        modules_to_save=["connector", "audio_projector"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    batch = tiny_batch(model, MIXED_ROWS)
    before = model(**batch).logits
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():  # as training would
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    trained = gradients(adapted.train(), batch)
    assert {part for part in MODEL_PARTS if any(part in name for name in trained)} == {
        "language_model",
        "connector",
        "audio_projector",
    }
    expected = adapted.eval()(**batch).logits
    assert (expected - before).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path)
    reloaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    torch.testing.assert_close(reloaded(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(reloaded.generate(**batch, **settings), adapted.generate(**batch, **settings))


def test_trl_finds_the_fusion_in_the_base_model():
    """Its fused loss calls `base_model` for hidden states and multiplies by `lm_head` itself."""
    model = tiny_model()
    batch = tiny_batch(model, MIXED_ROWS)
    hidden_states = model.base_model(**batch).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden_states), model(**batch).logits)


def test_weights_that_do_not_fit_are_offloaded_block_by_block(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": "450KB"},
        offload_folder=tmp_path / "offload",
    )
    places = {str(place) for place in loaded.hf_device_map.values()}
    assert places == {"cpu", "disk"}
    blocks = {"RegNetBlock", "Mamba2Block", "Qwen2DecoderLayer", "SiglipEncoderLayer", "WhisperEncoderLayer"}
    assert blocks <= set(loaded._no_split_modules)
    batch = tiny_batch(model, [Row(0)])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_weights_load_in_four_bits(tmp_path):
    from transformers import BitsAndBytesConfig

    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=[f"model.{part}" for part in MODEL_PARTS - {"language_model"}] + ["lm_head"],
    )
    loaded = type(model).from_pretrained(tmp_path, quantization_config=config)
    packed = {name.split(".")[1] for name, weight in loaded.named_parameters() if weight.dtype == torch.uint8}
    assert packed == {"language_model"}
    batch = tiny_batch(model, MIXED_ROWS)
    with torch.no_grad():
        exact, rounded = model(**batch).logits.flatten(), loaded(**batch).logits.flatten()
        assert torch.cosine_similarity(exact, rounded, dim=0) > 0.9
        memory = loaded.new_memory(len(MIXED_ROWS))
        memory.append(batch["history_input_ids"], batch["history_attention_mask"])
        memory.save(tmp_path / "memory.safetensors")
        assert loaded.load_memory(tmp_path / "memory.safetensors").num_slots == memory.num_slots
