"""Parts whose parameters are spread over processes, and the blank inputs that let them take part without a clip."""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

# What DeepSpeed hangs on the parameters it spreads: ZeRO-3, and ZeRO-1 and -2.
DEEPSPEED_MARKS = ("ds_id", "_hp_mapping")
BLANK_SAMPLES = 16_000  # enough for the time masks of speech encoders that learn


def is_sharded(module: nn.Module) -> bool:
    """
    Whether parameters of `module`, or their gradients, are spread over processes by FSDP's `fully_shard` or DeepSpeed.

    Then all processes must run the same parts of it, in the same order, or they wait for each other for ever.
    """
    return any(isinstance(part, FSDPModule) for part in module.modules()) or any(
        isinstance(parameter, DTensor) or any(hasattr(parameter, mark) for mark in DEEPSPEED_MARKS)
        for parameter in module.parameters()
    )


def blank_frames(config: PreTrainedConfig, device: torch.device) -> torch.Tensor:
    """The smallest black video that a vision tower and the connector take, `(1, 2, 3, height, width)`."""
    size = getattr(config, "image_size", None)
    if size is None:  # of any size (NaFlex); the positions are those of a square
        size = round(config.num_patches**0.5) * config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(1, 2, 3, height, width, device=device)


def blank_sound(config: PreTrainedConfig, device: torch.device) -> torch.Tensor:
    """Silence as an audio tower takes it, `(1, …)`."""
    if config.model_type == "whisper":
        shape = (config.num_mel_bins, 2 * config.max_source_positions)
    elif config.model_type == "audio-spectrogram-transformer":
        shape = (config.max_length, config.num_mel_bins)
    elif config.model_type == "beats":
        shape = (config.patch_size, config.num_mel_bins)
    else:
        shape = (BLANK_SAMPLES,)
    return torch.zeros(1, *shape, device=device)


__all__ = ["blank_frames", "blank_sound", "is_sharded"]
