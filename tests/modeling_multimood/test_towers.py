"""Any encoder behind one interface: the right patches, in the right order."""

import pytest
import torch
from model_builders import AUDIO, AUDIO_SHAPES, VISION
from transformers import AutoModel, ResNetConfig, Siglip2ImageProcessorPil

from multimood.modeling_multimood.towers import encode_frames, encode_sound


def tower_of(config):
    torch.manual_seed(0)
    tower = AutoModel.from_config(config)
    return (tower.get_encoder() if config.is_encoder_decoder else tower).eval()


@torch.no_grad()
def patch_of_change(tower, frame: torch.Tensor, row: int, column: int) -> tuple[int, int]:
    """Where the embeddings (hidden state 0, before any attention) change when one patch of the frame does."""
    changed = frame.clone()
    changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
    change = (encode_frames(tower, changed, 0) - encode_frames(tower, frame, 0)).abs().amax(-1)[0]
    assert (change > 1e-6).sum() == 1
    return tuple(change.flatten().argmax().item() // size % 4 for size in (4, 1))


@pytest.mark.parametrize("kind", VISION)
def test_each_patch_stands_in_its_place_and_prefix_tokens_are_dropped(kind):
    tower, frame = tower_of(VISION[kind]()), torch.randn(1, 3, 32, 32)
    assert encode_frames(tower, frame, -2).shape == (1, 4, 4, 32)
    for place in ((0, 0), (0, 3), (2, 1), (3, 3)):
        assert patch_of_change(tower, frame, *place) == place


@pytest.mark.parametrize("kind", VISION)
def test_frames_of_another_size_than_the_towers_own(kind):
    tower = tower_of(VISION[kind]())
    with torch.no_grad():
        assert encode_frames(tower, torch.randn(2, 3, 48, 40), -2).shape == (2, 6, 5, 32)


@pytest.mark.parametrize("kind", VISION)
def test_the_feature_layer_is_the_encoders_hidden_state(kind):
    tower, frame = tower_of(VISION[kind]()), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        layers = [encode_frames(tower, frame, layer) for layer in range(3)]
        assert torch.equal(encode_frames(tower, frame, -2), layers[1])
    assert not torch.equal(layers[1], layers[2])
    with pytest.raises(ValueError, match="`vision_feature_layer` is 3, but the vision tower has 3 hidden states"):
        encode_frames(tower, frame, 3)


def test_naflex_patches_are_those_of_its_image_processor():
    """SigLIP 2's own processor cuts frames into patches; here they come whole and are cut by the tower."""
    tower = tower_of(VISION["siglip2"]())
    picture = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    inputs = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)(picture.numpy(), return_tensors="pt")
    with torch.no_grad():
        expected = tower(**inputs, output_hidden_states=True).hidden_states[-2]
        frame = picture.permute(2, 0, 1)[None] / 127.5 - 1
        torch.testing.assert_close(encode_frames(tower, frame, -2).flatten(1, 2), expected, atol=1e-5, rtol=1e-5)


def test_an_encoder_without_patches_raises():
    tower = tower_of(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    with pytest.raises(ValueError, match="must be a vision transformer with square patches; a resnet"):
        encode_frames(tower, torch.randn(1, 3, 32, 32), -2)


@pytest.mark.parametrize("kind", AUDIO)
def test_sound_comes_out_in_the_order_of_time(kind):
    """A change at the end of the window moves the last vectors most, one at its beginning the first."""
    config = AUDIO[kind]()
    tower = tower_of(config)
    shape, num_vectors = AUDIO_SHAPES[config.model_type]
    sound = torch.randn(1, *shape)
    time = 1 if kind in ("ast", "beats", "wav2vec2", "hubert", "wavlm") else 2
    with torch.no_grad():
        features = encode_sound(tower, sound)
        assert features.shape == (1, num_vectors, 32)
        shift = {}
        for end, part in (("first", slice(None, shape[time - 1] // 8)), ("last", slice(-shape[time - 1] // 8, None))):
            changed = sound.clone()
            changed.movedim(time, 0)[part] += 3
            moved = (encode_sound(tower, changed) - features).norm(dim=-1)[0]  # (num_vectors,)
            shift[end] = float(moved @ torch.arange(num_vectors).float() / moved.sum())  # centre of the change
    assert shift["first"] < shift["last"]


def test_ast_patches_are_time_major_without_its_two_special_tokens():
    tower = tower_of(AUDIO["ast"]())
    sound = torch.randn(1, 32, 16)  # 32 frames of 16 bins; patches of 4 × 4
    with torch.no_grad():
        embedded = tower.embeddings.patch_embeddings(sound)  # (1, 4 bands · 8 steps, D)
        got = encode_sound(tower, sound)
        plain = tower(sound).last_hidden_state
    assert embedded.shape[1] == got.shape[1] == 32
    assert plain.shape[1] == 34
    # Vector t · 4 + band is the patch band · 8 + t of the tower.
    for step, band in ((0, 0), (0, 3), (5, 2), (7, 3)):
        assert torch.equal(got[0, step * 4 + band], plain[0, 2 + band * 8 + step])
