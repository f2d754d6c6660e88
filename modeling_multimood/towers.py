"""Any `AutoModel` vision or audio encoder behind one interface: frames or sound in, ordered features out."""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


class Tower(nn.Module):
    """An encoder that stays in evaluation mode, `.train()` or not, while all its parameters are frozen."""

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        self.encoder = encoder

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.dtype

    def train(self, mode: bool = True):
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))


class VisionTower(Tower):
    """
    Patch features of a vision encoder (SigLIP, SigLIP 2, CLIP, DINOv2, …).

    Whatever stands before the patches (class and register tokens) is dropped.
    """

    def __init__(self, config: PreTrainedConfig, feature_layer: int):
        super().__init__(AutoModel.from_config(config))
        self.feature_layer = feature_layer

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(num_frames, 3, height, width)`)

        Returns:
            `torch.Tensor` of shape `(num_frames, grid_height, grid_width, hidden_size)`.
        """
        patch_size = self.encoder.config.patch_size
        grid_height, grid_width = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
        outputs = self.encoder(pixel_values.to(self.dtype), output_hidden_states=True, return_dict=True)
        features = outputs.hidden_states[self.feature_layer]  # (N, prefix + grid_height · grid_width, D)
        num_prefix = features.shape[1] - grid_height * grid_width
        return features[:, num_prefix:].unflatten(1, (grid_height, grid_width))


class AudioTower(Tower):
    """Time-ordered features of an audio encoder (Whisper's encoder, wav2vec 2.0, HuBERT, WavLM, AST, BEATs, …)."""

    def __init__(self, config: PreTrainedConfig):
        encoder = AutoModel.from_config(config)
        super().__init__(encoder.get_encoder() if config.is_encoder_decoder else encoder)

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input_features (`torch.Tensor` of shape `(num_audios, …)`): what the encoder takes, a full window.

        Returns:
            `torch.Tensor` of shape `(num_audios, num_vectors, hidden_size)`, time-major.
        """
        return self.encoder(input_features.to(self.dtype), return_dict=True).last_hidden_state


__all__ = ["AudioTower", "VisionTower"]
