import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu
from transformers import AutoConfig, AutoModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from multimood.modeling_multimood.configuration_beats import BeatsConfig
from multimood.modeling_multimood.modeling_beats import BeatsModel, relative_buckets

FIXTURE = Path(__file__).parents[3] / "shared" / "data" / "reference_fixture"
LEGACY_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def tiny_config(**changes):
    settings = {
        "patch_embed_dim": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    return BeatsConfig(**settings | changes)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BeatsModel(tiny_config()).eval()


@pytest.fixture
def features():
    torch.manual_seed(1)
    return torch.randn(2, 100, 128)


def test_defaults_are_the_paper_s():
    with torch.device("meta"):
        model = BeatsModel(BeatsConfig())
    assert model.config.num_buckets == 320
    assert model.config.max_bucket_distance == 800
    assert 90e6 < model.num_parameters() < 91e6  # "90M"
    assert model.encoder.layers[0].residual_scale == pytest.approx(24**0.25)
    assert model.encoder.pos_conv[0].parametrizations.weight.original0.shape == (1, 1, 128)


def test_output_is_time_major(model, features):
    with torch.no_grad():
        patches = model.patch_embedding(features.unsqueeze(1))
        output = model(features).last_hidden_state
    assert output.shape == (2, 6 * 8, 32)  # the last 4 of 100 frames do not fill a patch

    seen = []
    handle = model.layer_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(features)
    handle.remove()
    for time, band in [(0, 0), (0, 7), (5, 3)]:
        torch.testing.assert_close(seen[0][:, time * 8 + band], patches[:, :, time, band])


def test_released_weights_reproduce_the_reference():
    if not FIXTURE.is_dir():
        pytest.skip(f"the reference checkpoint is not at {FIXTURE}")
    weights, golden = (load_file(FIXTURE / f"{name}.safetensors") for name in ("model", "golden"))
    prefix = "model.audio_tower."
    state = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    for ours, theirs in LEGACY_NAMES.items():
        state[f"encoder.pos_conv.0.{ours}"] = state.pop(f"encoder.pos_conv.0.{theirs}")
    model = BeatsModel(tiny_config()).eval()
    assert model.load_state_dict(state, strict=False).missing_keys == []

    fbank = golden["audio"].squeeze(1)
    with torch.no_grad():
        hidden = model((fbank - 15.41663) / (2 * 6.55582)).last_hidden_state
    first, second = ({k: weights[f"model.mm_projector_a.{i}.{k}"] for k in ("weight", "bias")} for i in (0, 2))
    projected = torch.nn.functional.linear(gelu(torch.nn.functional.linear(hidden, **first)), **second)
    torch.testing.assert_close(projected, golden["audio_features"], atol=1e-5, rtol=1e-4)


def test_a_checkpoint_in_the_released_layout_loads_as_it_is(model, features, tmp_path):
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in LEGACY_NAMES.items():
            name = name.replace(ours, theirs)
        state[name] = tensor.clone()
    table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    state[table.format(1)] = state[table.format(0)].clone()
    state["predictor.weight"] = torch.zeros(5, 32)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)

    loaded, info = BeatsModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(loaded(features).last_hidden_state, model(features).last_hidden_state)


def test_saved_equals_loaded_by_the_auto_classes(model, features, tmp_path):
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, BeatsConfig)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, BeatsModel)
    with torch.no_grad():
        assert torch.equal(loaded(features).last_hidden_state, model(features).last_hidden_state)
    assert isinstance(AutoModel.from_config(config), BeatsModel)


def test_batched_equals_single(model, features):
    with torch.no_grad():
        batched = model(features).last_hidden_state
        for row in range(2):
            single = model(features[row : row + 1]).last_hidden_state
            torch.testing.assert_close(batched[row : row + 1], single, atol=1e-5, rtol=1e-4)


def test_eager_equals_sdpa_and_gives_attentions(model, features):
    with torch.no_grad():
        expected = model(features).last_hidden_state
        model.set_attn_implementation("eager")
        outputs = model(features, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=1e-4)
    assert [weights.shape for weights in outputs.attentions] == [(2, 4, 48, 48)] * 2
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 48))
    assert len(outputs.hidden_states) == 3


def test_buckets_equal_those_of_wavlm():
    """The fixture's clips are too short for the wide buckets; WavLM has the same bias (arXiv:2110.13900)."""
    distances = torch.arange(-2000, 2001)
    wavlm = WavLMAttention(embed_dim=8, num_heads=2, num_buckets=320, max_distance=800)
    buckets = relative_buckets(distances, 320, 800)
    assert torch.equal(buckets, wavlm._relative_positions_bucket(distances))
    assert buckets.min() == 0
    assert buckets.max() == 319


def test_position_table_is_in_the_first_layer_only(model):
    tables = [name for name in model.state_dict() if "relative_attention_bias" in name]
    assert tables == ["encoder.layers.0.self_attn.relative_attention_bias.weight"]


def test_everything_learns(model, features):
    model.train().activation_checkpointing_enable()
    model(features).last_hidden_state.square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A constant added to all keys of a query changes no softmax.
    assert [name for name in without if "k_proj.bias" not in name] == []


def test_checkpointed_gradients_equal_plain_ones(model, features):
    twin = copy.deepcopy(model).train()
    twin.activation_checkpointing_enable()
    for one in (model, twin):
        one(features).last_hidden_state.square().mean().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_initial_weights_follow_deepnorm():
    torch.manual_seed(0)
    config = tiny_config(num_hidden_layers=8, hidden_size=256, intermediate_size=256)
    model = BeatsModel(config)
    layer = model.encoder.layers[-1]
    xavier = (2 / (256 + 256)) ** 0.5
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(xavier, rel=0.05)
    assert layer.fc1.weight.std().item() == pytest.approx(xavier * 64**-0.25, rel=0.05)
    conv = model.encoder.pos_conv[0]
    assert conv.weight.std().item() == pytest.approx(2 / (16 * 256) ** 0.5, rel=0.05)


@pytest.mark.parametrize("shape", [(2, 100, 80), (2, 15, 128), (100, 128)])
def test_features_of_another_kind_are_an_error(model, shape):
    with pytest.raises(ValueError, match="BeatsFeatureExtractor"):
        model(torch.zeros(shape))


def test_bad_config_is_an_error():
    with pytest.raises(ValueError, match=r"`hidden_size` \(32\) must be a multiple of `num_attention_heads` \(5\)"):
        tiny_config(num_attention_heads=5)
