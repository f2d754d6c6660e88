import numpy as np
import pytest
import torch
from processor_builders import VISION, tiny_vision
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    LlavaNextImageProcessorPil,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    ViTImageProcessorPil,
)

from multimood.processors.frames import fixed_size_image_processor, pixel_values

FAST = {
    "siglip": SiglipImageProcessorPil(size={"height": 384, "width": 384}),
    "tiny": SiglipImageProcessorPil(size={"height": 32, "width": 48}),
    "clip": CLIPImageProcessorPil(),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 256}),
    "vit": ViTImageProcessorPil(),
}
OTHER = {
    "own resize": ConvNextImageProcessorPil(size={"shortest_edge": 224}),
    "crop larger than the frame": CLIPImageProcessorPil(size={"shortest_edge": 100}),
    "nearest": SiglipImageProcessorPil(resample=0),
}
SIZES = [(378, 672), (101, 57), (1, 1), (3, 5), (720, 406)]


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Noise: the hardest picture to resize alike."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def reference(image_processor, frames) -> torch.Tensor:
    return image_processor(frames, input_data_format="channels_last", return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("name", FAST)
def test_fast_path_equals_the_image_processor(name, frames):
    pixels, expected = pixel_values(FAST[name], frames), reference(FAST[name], frames)
    assert pixels.shape == expected.shape
    assert pixels.dtype == torch.float32
    grey = (pixels - expected).abs() * 255 * torch.tensor(FAST[name].image_std)[:, None, None]
    assert grey.max() < 2.01  # of 255 levels
    assert (grey > 0.5).float().mean() < 0.01


@pytest.mark.parametrize("name", FAST)
def test_normalisation_is_exact(name):
    frame = np.full((64, 64, 3), (10, 128, 250), dtype=np.uint8)  # of one colour, which no resize changes
    torch.testing.assert_close(pixel_values(FAST[name], [frame]), reference(FAST[name], [frame]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", OTHER)
def test_other_image_processors_are_called(name, frames):
    torch.testing.assert_close(pixel_values(OTHER[name], frames), reference(OTHER[name], frames), atol=0, rtol=0)


def test_frames_do_not_depend_on_their_neighbours(frames):
    together = pixel_values(FAST["siglip"], frames)
    for frame, pixels in zip(frames, together, strict=True):
        torch.testing.assert_close(pixel_values(FAST["siglip"], [frame])[0], pixels, atol=0, rtol=0)


def test_naflex_becomes_a_square_of_the_towers_own_size():
    config = Siglip2VisionConfig(num_patches=256, patch_size=16)
    square = fixed_size_image_processor(Siglip2ImageProcessorPil(), config)
    assert pixel_values(square, [np.zeros((30, 50, 3), np.uint8)]).shape == (1, 3, 256, 256)
    assert square.resample == Siglip2ImageProcessorPil.resample


@pytest.mark.parametrize("kind", sorted(set(VISION) - {"siglip2"}))
def test_ordinary_image_processors_stay(kind):
    image_processor, config = tiny_vision(kind)
    assert fixed_size_image_processor(image_processor, config) is image_processor


def test_image_processor_that_cuts_tiles_is_refused():
    with pytest.raises(ValueError, match=r"LlavaNextImageProcessorPil makes \(1, .*use another"):
        fixed_size_image_processor(LlavaNextImageProcessorPil(), SiglipVisionConfig())
