import pytest
import torch
from processor_builders import AUDIO, VISION, tiny_audio, tiny_processor, tiny_vision
from transformers import ASTConfig, AutoModel, BertConfig, HubertConfig, WhisperConfig

from multimood.modeling_multimood import modeling_beats
from multimood.modeling_multimood.configuration_beats import BeatsConfig
from multimood.modeling_multimood.connector import AudioProjector, SpatioTemporalConvConnector
from multimood.modeling_multimood.towers import encode_frames, encode_sound
from multimood.processors.lengths import (
    audio_tower_lengths,
    frames_for_fps,
    pooled,
    valid_audio_tokens,
    video_grid,
    video_tokens,
)


@pytest.mark.parametrize("pooling", [1, 3])
@pytest.mark.parametrize("kind", AUDIO)
def test_audio_tokens_are_what_the_tower_and_projector_make(kind, pooling):
    assert modeling_beats.BeatsModel  # registers BEATs
    processor = tiny_processor(audio=kind, audio_pooling=pooling)
    batch = processor(text="<|audio|>", audio=[torch.randn(8000)], return_tensors="pt")
    config = tiny_audio(kind)[1]
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        features = encode_sound(model.get_encoder() if config.is_encoder_decoder else model, batch["input_features"])
        tokens = AudioProjector(config.hidden_size, 8, pooling)(features)
    assert tokens.shape[1] == processor.audio_tokens == batch["audio_token_mask"].shape[1]


@pytest.mark.parametrize("frames", [2, 4])
@pytest.mark.parametrize("kind", VISION)
def test_video_tokens_are_what_the_tower_and_connector_make(kind, frames):
    processor = tiny_processor(vision=kind, num_frames=frames)
    video = torch.randint(0, 255, (5, 40, 50, 3), dtype=torch.uint8)
    batch = processor(text="<|video|>", videos=[video], return_tensors="pt")
    config = tiny_vision(kind)[1]
    with torch.no_grad():
        features = encode_frames(AutoModel.from_config(config).eval(), batch["pixel_values_videos"].flatten(0, 1), -2)
        tokens = SpatioTemporalConvConnector(config.hidden_size, 8, depth=1)(features[None])
    assert tokens.shape[1] == batch["video_token_mask"].shape[1] == video_tokens(frames, processor.video_grid)


@pytest.mark.parametrize(
    ("config", "seconds", "lengths"),
    [
        (WhisperConfig(), None, (480_000, 1500)),
        (WhisperConfig(), 30.0, (480_000, 1500)),
        (HubertConfig(), None, (480_000, 1499)),
        (HubertConfig(), 10.0, (160_000, 499)),
        (ASTConfig(), None, (164_080, 12 * 101)),
        (BeatsConfig(), 30.0, (480_000, 187 * 8)),
        (BeatsConfig(), None, (480_000, 187 * 8)),
    ],
)
def test_published_towers(config, seconds, lengths):
    assert audio_tower_lengths(config, seconds) == lengths


def test_the_papers_clip():
    assert video_grid((384, 384), 14) == (27, 27)
    assert video_tokens(8, (27, 27)) == 4 * 13 * 13


@pytest.mark.parametrize(
    ("config", "seconds", "message"),
    [
        (WhisperConfig(), 10.0, r"audio_seconds is 10.0, but this whisper has a fixed window of 30 s"),
        (HubertConfig(), 0.02, r"audio_seconds of 0.02 is too short"),
        (BeatsConfig(), 0.1, r"too short"),
        (BertConfig(), None, r"no known lengths for an audio tower of type 'bert'"),
    ],
)
def test_impossible_windows_are_named(config, seconds, message):
    with pytest.raises(ValueError, match=message):
        audio_tower_lengths(config, seconds)


def test_a_frame_of_one_patch_is_too_small():
    with pytest.raises(ValueError, match="2×2: use larger frames"):
        video_grid((16, 32), 16)


@pytest.mark.parametrize(
    ("samples", "tokens"), [(1, 1), (16_000, 50), (16_001, 51), (479_999, 1500), (480_000, 1500), (900_000, 1500)]
)
def test_valid_audio_tokens(samples, tokens):
    assert valid_audio_tokens(samples, 480_000, 1500) == tokens


def test_pooling_keeps_the_short_last_group():
    assert [pooled(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


@pytest.mark.parametrize(("duration", "frames"), [(0.1, 2), (2, 2), (2.1, 4), (9, 10), (1000, 64)])
def test_frames_for_fps(duration, frames):
    assert frames_for_fps(duration, 1.0, 64) == frames
