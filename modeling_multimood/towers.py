"""Any `AutoModel` vision or audio encoder behind one interface: frames or sound in, features in a known order out."""

import inspect

import torch
from transformers import PreTrainedModel


def encode_frames(encoder: PreTrainedModel, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
    """
    Patch features of a vision transformer: SigLIP, SigLIP 2 (fixed size and NaFlex), CLIP, ViT, DINOv2, DINOv3, ….

    Class and register tokens, which stand before the patches, are dropped.

    Args:
        encoder (`PreTrainedModel`): the vision encoder.
        pixel_values (`torch.Tensor` of shape `(num_frames, 3, height, width)`): frames as its image processor makes them.
        layer (`int`): index into its hidden states; 0 is the embeddings', -2 the second-to-last layer's.

    Returns:
        `torch.Tensor` of shape `(num_frames, grid_height, grid_width, hidden_size)`.

    Raises:
        ValueError: if the encoder's tokens are not the grid of patches, or it has no such layer.
    """
    patch_size = getattr(encoder.config, "patch_size", None)
    if not isinstance(patch_size, int):
        raise ValueError(
            f"The vision tower must be a vision transformer with square patches; a {encoder.config.model_type} has the "
            f"patch size {patch_size}. Take SigLIP, CLIP or DINOv2, for example."
        )
    height, width = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
    pixel_values = pixel_values.to(encoder.dtype)
    accepted = inspect.signature(type(encoder).forward).parameters
    if "spatial_shapes" in accepted:
        inputs = _naflex_inputs(pixel_values, patch_size, height, width)
    else:
        inputs = {"pixel_values": pixel_values}
        # Encoders with this flag refuse frames of another size than their own; those without (DINOv2) interpolate anyway.
        if "interpolate_pos_encoding" in accepted:
            own_size = encoder.config.image_size
            own_size = (own_size, own_size) if isinstance(own_size, int) else tuple(own_size)
            inputs["interpolate_pos_encoding"] = own_size != tuple(pixel_values.shape[-2:])
    hidden_states = encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states
    if not -len(hidden_states) <= layer < len(hidden_states):
        raise ValueError(
            f"`vision_feature_layer` is {layer}, but the vision tower has {len(hidden_states)} hidden states."
        )
    features = hidden_states[layer]  # (N, prefix + height · width, D)
    num_prefix = features.shape[1] - height * width
    if num_prefix < 0:
        raise ValueError(
            f"The vision tower gave {features.shape[1]} tokens for a grid of {height} × {width} patches; it must keep "
            "one for each patch."
        )
    return features[:, num_prefix:].unflatten(1, (height, width))


def _naflex_inputs(pixel_values: torch.Tensor, patch_size: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """Frames `(N, 3, H, W)` as the flattened patches that SigLIP 2's NaFlex encoder takes."""
    patches = pixel_values[..., : height * patch_size, : width * patch_size]
    patches = patches.unflatten(3, (width, patch_size)).unflatten(2, (height, patch_size))  # (N, 3, h, p, w, p)
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (N, h · w, p · p · 3)
    num_frames = len(patches)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": patches.new_ones(patches.shape[:2], dtype=torch.long),
        "spatial_shapes": torch.tensor([[height, width]] * num_frames, device=patches.device),
    }


def encode_sound(encoder: PreTrainedModel, input_features: torch.Tensor) -> torch.Tensor:
    """
    Features of an audio encoder in the order of time: Whisper's encoder, wav2vec 2.0, HuBERT, WavLM, AST, BEATs, ….

    Args:
        encoder (`PreTrainedModel`): the audio encoder.
        input_features (`torch.Tensor` of shape `(num_audios, …)`): what its feature extractor makes of a full window:
            a spectrogram, or the waveform for wav2vec 2.0 and its like.

    Returns:
        `torch.Tensor` of shape `(num_audios, num_vectors, hidden_size)`. Encoders of patches give several vectors a
        time step, the low frequencies first.
    """
    features = encoder(input_features.to(encoder.dtype), return_dict=True).last_hidden_state
    config = encoder.config
    if config.model_type == "audio-spectrogram-transformer":
        # Class and distillation token, then patches in frequency-major order.
        num_bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        features = features[:, 2:].unflatten(1, (num_bands, -1)).transpose(1, 2).flatten(1, 2)
    return features


__all__ = ["encode_frames", "encode_sound"]
