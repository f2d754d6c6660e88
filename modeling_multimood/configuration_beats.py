"""Configuration of the BEATs audio encoder."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


@strict
class BeatsConfig(PreTrainedConfig):
    r"""
    Configuration of a [`BeatsModel`]. The defaults are those of BEATs (Chen et al., 2022, arXiv:2212.09058).

    Args:
        num_mel_bins (`int`, *optional*, defaults to 128):
            Bins of the filter bank features.
        patch_size (`int`, *optional*, defaults to 16):
            Frames and bins of a patch; both must be multiples of it, what is left over of the frames is not seen.
        patch_embed_dim (`int`, *optional*, defaults to 512):
            Width of a patch before it is projected to `hidden_size`.
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the encoder.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Layers of the encoder.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Attention heads of a layer.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of a layer's feed-forward network.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward network.
        num_conv_pos_embeddings (`int`, *optional*, defaults to 128):
            Kernel size of the convolution that embeds positions.
        num_conv_pos_embedding_groups (`int`, *optional*, defaults to 16):
            Groups of that convolution.
        num_buckets (`int`, *optional*, defaults to 320):
            Rows of the relative position bias's table, half of them for each direction.
        max_bucket_distance (`int`, *optional*, defaults to 800):
            Distance in patches from which all share the last bucket.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the weights that DeepNorm does not determine.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer normalisations.
    """

    model_type = "beats"

    num_mel_bins: int = 128
    patch_size: int = 16
    patch_embed_dim: int = 512
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    num_buckets: int = 320
    max_bucket_distance: int = 800
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name, whole in (("num_attention_heads", "hidden_size"), ("patch_size", "num_mel_bins")):
            part = getattr(self, name)
            if getattr(self, whole) % part:
                raise ValueError(f"`{whole}` ({getattr(self, whole)}) must be a multiple of `{name}` ({part}).")


AutoConfig.register("beats", BeatsConfig, exist_ok=True)

__all__ = ["BeatsConfig"]
