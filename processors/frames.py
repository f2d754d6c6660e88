"""Frames → pixel values, as the image processor of the vision tower makes them, for all frames at once."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, SiglipImageProcessorPil
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension, PILImageResampling

RESAMPLE = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}


def fixed_size_image_processor(image_processor: Any, config: PreTrainedConfig) -> Any:
    """An image processor whose frames all have one size and stay images.

    SigLIP 2's NaFlex processor cuts images of any shape into patches; it is replaced by one that makes the square for
    which the tower has position embeddings. Any other is returned as it is.

    Args:
        image_processor: of the vision tower.
        config (`PreTrainedConfig`): of the vision tower.

    Raises:
        ValueError: the image processor does not make one image of a frame.
    """
    if config.model_type == "siglip2_vision_model" and hasattr(image_processor, "max_num_patches"):
        edge = math.isqrt(config.num_patches) * config.patch_size
        image_processor = SiglipImageProcessorPil(
            size={"height": edge, "width": edge},
            resample=image_processor.resample,
            image_mean=image_processor.image_mean,
            image_std=image_processor.image_std,
        )
    shape = tuple(pixel_values(image_processor, [np.zeros((64, 64, 3), dtype=np.uint8)]).shape)
    if len(shape) != 4 or shape[:2] != (1, 3):
        raise ValueError(
            f"{type(image_processor).__name__} makes {shape} of a frame, not (1, 3, height, width); use another"
        )
    return image_processor


def pixel_values(image_processor: Any, frames: list[np.ndarray]) -> torch.Tensor:
    """Preprocess frames for the vision tower.

    An image processor of the PIL backend that only resizes, crops, rescales and normalises is followed with torch's
    antialiased resize, the one of transformers' default (torchvision) backend; it differs from Pillow's by at most 2 of
    255 grey levels, in less than 1 % of the values. Every other image processor is called.

    Args:
        image_processor: of the vision tower.
        frames (`list[np.ndarray]`): each `(height, width, 3)`, uint8 RGB; sizes may differ.

    Returns:
        `torch.Tensor` of shape `(len(frames), 3, height, width)`, float32.
    """
    if not _is_plain(image_processor):
        # The layout is told, as an image processor would guess it wrong for frames of 1 or 3 pixels.
        return image_processor(frames, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    if len({frame.shape for frame in frames}) > 1:  # clips of several sizes on one timeline
        return torch.cat([pixel_values(image_processor, [frame]) for frame in frames])
    stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)  # (n, height, width, 3) → (n, 3, height, width)
    return _normalize(image_processor, _resize(image_processor, stacked))


def _is_plain(image_processor: Any) -> bool:
    if not isinstance(image_processor, PilBackend) or image_processor.do_pad:
        return False
    overridden = any(
        getattr(type(image_processor), step) is not getattr(PilBackend, step) for step in ("_preprocess", "resize")
    )
    size, crop = image_processor.size, image_processor.crop_size
    edges = [edge for edge in (size.shortest_edge, size.height, size.width) if edge]
    fits = not image_processor.do_center_crop or max(crop.height, crop.width) <= min(edges)
    known = image_processor.do_resize and image_processor.resample in RESAMPLE and not size.longest_edge
    return not overridden and bool(edges) and fits and known


def _resize(image_processor: Any, frames: torch.Tensor) -> torch.Tensor:
    """Resize and crop `(n, 3, height, width)` uint8 frames."""
    size = image_processor.size
    target = (size.height, size.width)
    if size.shortest_edge:
        target = get_resize_output_image_size(
            frames[0].numpy(), size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
    mode = RESAMPLE[image_processor.resample]
    frames = F.interpolate(frames, size=target, mode=mode, antialias=True, align_corners=False)
    if image_processor.do_center_crop:
        height, width = image_processor.crop_size.height, image_processor.crop_size.width
        top, left = (target[0] - height) // 2, (target[1] - width) // 2
        frames = frames[..., top : top + height, left : left + width]
    return frames


def _normalize(image_processor: Any, frames: torch.Tensor) -> torch.Tensor:
    """Rescale and normalise `(n, 3, height, width)` uint8 frames as one multiplication and addition."""
    scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    mean, std = torch.zeros(3), torch.ones(3)
    if image_processor.do_normalize:
        mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    # Contiguous while each value is one byte: torch's resize leaves the channels last.
    return torch.mul(frames.contiguous(), (scale / std)[:, None, None]).sub_((mean / std)[:, None, None])
