"""The connectors, beside the paper's figures and, where it is at hand, the original model's output."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multimood.modeling_multimood.connector import AudioProjector, SpatioTemporalConvConnector

FIXTURE = Path(__file__).parents[2].parent / "shared" / "data" / "reference_fixture"


@pytest.mark.parametrize(
    ("shape", "tokens"), [((8, 4, 4), 16), ((8, 27, 27), 4 * 13 * 13), ((7, 5, 4), 3 * 2 * 2), ((2, 2, 2), 1)]
)
def test_it_halves_time_height_and_width_and_drops_odd_ends(shape, tokens):
    connector = SpatioTemporalConvConnector(vision_size=8, text_size=12, depth=1)
    assert connector(torch.randn(2, *shape, 8)).shape == (2, tokens, 12)


def test_tokens_are_time_major_and_see_their_place():
    torch.manual_seed(0)
    connector = SpatioTemporalConvConnector(vision_size=8, text_size=12, depth=1).eval()
    video = torch.randn(1, 4, 4, 4, 8)
    changed = video.clone()
    changed[:, 2:] += 1  # the second half
    before, after = connector(video), connector(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert ((before[:, 4:] - after[:, 4:]).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 1, 4), (4, 4, 1)])
def test_too_little_to_halve_raises(shape):
    connector = SpatioTemporalConvConnector(vision_size=8, text_size=12, depth=1)
    with pytest.raises(ValueError, match="at least 2 frames of 2 × 2 patches"):
        connector(torch.randn(1, *shape, 8))


def test_squeeze_excitation_is_a_quarter_of_the_blocks_input():
    connector = SpatioTemporalConvConnector(vision_size=32, text_size=64, depth=4)
    widths = [
        block.squeeze_excite.fc1.out_channels for stage in (connector.stage1, connector.stage2) for block in stage
    ]
    assert widths == [8, 16, 16, 16, 16, 16, 16, 16]


@pytest.mark.skipif(not FIXTURE.exists(), reason="../shared/data/reference_fixture is not here")
def test_the_original_models_weights_give_its_video_features():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from multimood.modeling_multimood.towers import encode_frames

    weights, golden = load_file(FIXTURE / "model.safetensors"), load_file(FIXTURE / "golden.safetensors")
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=28,
            patch_size=7,
        )
    ).eval()
    tower.load_state_dict(_part(weights, "model.vision_tower.vision_tower.vision_model."))
    connector = SpatioTemporalConvConnector(vision_size=32, text_size=64, depth=4).eval()
    connector.load_state_dict(
        {_our_name(name): tensor for name, tensor in _part(weights, "model.mm_projector.").items()}
    )
    with torch.no_grad():
        frames = encode_frames(tower, golden["video"].flatten(0, 1), layer=-2)
        features = connector(frames.unflatten(0, golden["video"].shape[:2]))
    torch.testing.assert_close(features, golden["video_features"], atol=1e-5, rtol=1e-5)


def _part(weights: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _our_name(name: str) -> str:
    for index in range(4):
        name = name.replace(f".b{index + 1}.", f".{index}.")
        name = name.replace(f"conv{index}.conv", f"conv{index}").replace(f"conv{index}.bn", f"norm{index}")
    for theirs, ours in {
        "s1.": "stage1.",
        "s2.": "stage2.",
        "sampler.0": "sampler",
        "readout.0": "linear1",
        "readout.2": "linear2",
        ".se.": ".squeeze_excite.",
        "downsample.conv": "shortcut.0",
        "downsample.bn": "shortcut.1",
    }.items():
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize(("pooling", "tokens"), [(1, 7), (2, 4), (3, 3), (8, 1)])
def test_audio_is_stacked_in_groups_and_the_last_is_filled_up(pooling, tokens):
    projector = AudioProjector(audio_size=6, text_size=10, pooling=pooling)
    sound = torch.randn(2, 7, 6)
    features = projector(sound)
    assert features.shape == (2, tokens, 10)
    filled = torch.cat([sound, torch.zeros(2, 8, 6)], dim=1)
    torch.testing.assert_close(projector(filled)[:, :tokens], features)
