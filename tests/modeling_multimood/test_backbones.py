"""Models of pretrained parts."""

import pytest
import torch
from model_builders import AUDIO, DEFAULTS, HISTORY, SETTINGS, TEXT, VISION, Row, tiny_batch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CohereConfig,
    SiglipConfig,
    SiglipModel,
    WhisperForConditionalGeneration,
)

from multimood.modeling_multimood.modeling_multimood import PARTS, MultiMoodForConditionalGeneration

from_backbones = MultiMoodForConditionalGeneration.from_backbones


class Settings:
    """What `from_backbones` takes from a processor."""

    def model_settings(self) -> dict:
        grammar = {"fields": [], "response_prefix": [7], "eos_token_id": 2}
        sizes = {"vocab_size": 140, "history_vocab_size": 70, "pad_token_id": 1, "eos_token_id": 2}
        return {**SETTINGS, **sizes, "turn_grammar": grammar}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A checkpoint of each part, in the form in which they lie on the Hub."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("backbones")
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    models = {
        "vision": AutoModel.from_config(VISION["siglip"]()),
        "siglip": SiglipModel(SiglipConfig(text_config=text, vision_config=VISION["siglip"]().to_dict())),
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=VISION["clip"]().to_dict())),
        "audio": AutoModel.from_config(AUDIO["whisper"]()),
        "whisper": WhisperForConditionalGeneration(AUDIO["whisper"]()),
        "history": AutoModel.from_config(HISTORY["mamba2"]()),
        "mamba_lm": AutoModelForCausalLM.from_config(HISTORY["mamba2"]()),
        "text": AutoModelForCausalLM.from_config(TEXT["qwen2"]()),
        "llama": AutoModelForCausalLM.from_config(TEXT["llama"]()),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    return {name: str(root / name) for name in models}


def tensors_of(model) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize(
    ("vision", "audio", "history", "text"),
    [("vision", "audio", "history", "text"), ("siglip", "whisper", "mamba_lm", "llama"), ("clip", None, None, "text")],
)
def test_every_pretrained_weight_arrives_and_every_new_one_is_made(folders, vision, audio, history, text):
    chosen = {"vision": vision, "audio": audio, "history": history, "text": text}
    model = from_backbones(**{part: name and folders[name] for part, name in chosen.items()}, **SETTINGS)
    sources = {part: AutoModel.from_pretrained(folders[name]) for part, name in chosen.items() if name}
    inner = model.model
    parts = [(inner.vision_tower, getattr(sources["vision"], "vision_model", sources["vision"]))]
    parts.append((inner.language_model, sources["text"]))
    if audio:
        parts.append((inner.audio_tower, sources["audio"].get_encoder()))
    if history:
        parts.append((inner.compressor.reader, sources["history"]))
    for part, source in parts:
        got, want = tensors_of(part), tensors_of(source)
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)
    head = AutoModelForCausalLM.from_pretrained(folders[text]).lm_head.weight
    assert torch.equal(model.lm_head.weight, head)
    for name, tensor in tensors_of(model).items():
        assert not tensor.is_meta, name
        assert tensor.isfinite().all(), name
    assert 0.17 < inner.connector.sampler.weight.std() < 0.23  # the initializer range of these language models
    rows = [Row(0, audios=int(bool(audio)), utterances=3 if history else 0)]
    assert model(**tiny_batch(model, rows)).logits.isfinite().all()


def test_the_processors_settings_become_the_models(folders):
    model = from_backbones(**{part: folders[part] for part in DEFAULTS}, processor=Settings(), connector_depth=1)
    assert len(model.model.connector.stage1) == 1
    assert model.config.turn_grammar["response_prefix"] == [7]
    assert model.lm_head.weight.shape[0] == model.get_input_embeddings().weight.shape[0] == 140
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.text_config.vocab_size == 140
    assert model.model.compressor.reader.get_input_embeddings().weight.shape[0] == 70
    assert model.config.history_config.vocab_size == 70
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (1, 2)
    assert model.generation_config.suppress_tokens == [120, 121, 122]
    old = AutoModelForCausalLM.from_pretrained(folders["text"]).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[:128], old)


def test_embeddings_never_shrink(folders):
    model = from_backbones(
        **{part: folders[part] for part in DEFAULTS}, **SETTINGS, vocab_size=123, history_vocab_size=61
    )
    assert model.lm_head.weight.shape[0] == 128
    assert model.model.compressor.reader.get_input_embeddings().weight.shape[0] == 64


def test_a_built_model_round_trips(folders, tmp_path):
    model = from_backbones(**{part: folders[part] for part in DEFAULTS}, processor=Settings(), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    loaded = MultiMoodForConditionalGeneration.from_pretrained(tmp_path)
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    assert loaded.config.turn_grammar == model.config.turn_grammar


def test_configurations_give_random_parts():
    torch.manual_seed(0)
    configs = {
        part: known[DEFAULTS[part]]() for part, known in zip(DEFAULTS, (VISION, AUDIO, HISTORY, TEXT), strict=True)
    }
    model = from_backbones(**configs, processor=Settings())
    assert configs["text"].vocab_size == 128  # the caller's own stays as it was
    assert model(**tiny_batch(model, [Row(0)])).logits.isfinite().all()


def test_towers_are_frozen_unless_told_otherwise(folders):
    paths = {part: folders[part] for part in DEFAULTS}
    model = from_backbones(**paths, **SETTINGS)
    assert not model.training
    frozen = {name.split(".")[1] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vision_tower", "audio_tower"}
    assert all(parameter.requires_grad for parameter in from_backbones(**paths, **SETTINGS, freeze=()).parameters())


@pytest.mark.parametrize("part", PARTS)
def test_each_part_can_be_frozen(folders, part):
    model = from_backbones(**{name: folders[name] for name in DEFAULTS}, **SETTINGS, freeze=(part,))
    frozen = {name.split(".")[1] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {PARTS[part]}
    model.train()(**tiny_batch(model, [Row(0)])).logits.sum().backward()
    assert all(parameter.grad is None for parameter in getattr(model.model, PARTS[part]).parameters())


def test_freezing_the_language_model_freezes_an_untied_head(folders):
    model = from_backbones(text=folders["llama"], freeze=("language_model",))
    assert not model.lm_head.weight.requires_grad


def test_an_unknown_part_raises(folders):
    with pytest.raises(ValueError, match=r"Unknown part.*: visoin\. Known: vision, connector"):
        from_backbones(text=folders["text"], freeze=("visoin",))


def test_a_model_needs_a_language_model():
    with pytest.raises(ValueError, match="`text` is missing"):
        from_backbones(vision=VISION["siglip"]())


def test_a_language_model_that_scales_its_logits_is_refused():
    config = CohereConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=64,
        logit_scale=0.5,
    )
    with pytest.raises(ValueError, match="A cohere scales its logits"):
        from_backbones(text=config)
