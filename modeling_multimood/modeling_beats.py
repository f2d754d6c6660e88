"""BEATs (Chen et al., 2022, arXiv:2212.09058): an audio encoder over 16×16 patches of filter bank features.

The names of the modules are the ones of the released checkpoints, so that these load as they are.
"""

import math

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_beats import BeatsConfig


class BeatsPositionConv(nn.Sequential):
    """Position embedding by a grouped convolution over time, its weight normalised for each kernel position."""

    def __init__(self, config: BeatsConfig):
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel_size=config.num_conv_pos_embeddings,
            padding=config.num_conv_pos_embeddings // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        super().__init__(nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2), nn.GELU())

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(N, L, D)` to `(N, L, D)`."""
        length = hidden_states.shape[1]
        positions = self[0](hidden_states.transpose(1, 2))[..., :length]  # an even kernel gives one output too many
        return self[1](positions).transpose(1, 2)


class BeatsAttention(nn.Module):
    """Self-attention with a relative position bias that each query gates (Chi et al., 2022, arXiv:2106.16138).

    The bias's table is in the first layer, which computes the bias for all.
    """

    def __init__(self, config: BeatsConfig, has_position_table: bool):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.grep_linear = nn.Linear(self.head_dim, 8)
        self.grep_a = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))
        if has_position_table:
            self.relative_attention_bias = nn.Embedding(config.num_buckets, self.num_heads)

    def forward(self, hidden_states: torch.Tensor, position_bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): what attends to itself.
            position_bias (`torch.Tensor` of shape `(1, num_heads, length, length)`): bias before it is gated.

        Returns:
            Output of the shape of `hidden_states`, and the attention weights where the implementation gives them.
        """
        batch_size, length, _ = hidden_states.shape
        heads = (batch_size, length, self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)  # (N, heads, L, head_dim)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)

        gates = self.grep_linear(query).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid()  # (N, heads, L, 2)
        update, reset = gates.split(1, dim=-1)
        bias = (update * (reset * self.grep_a - 1.0) + 2.0) * position_bias  # (N, heads, L, L)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attend(self, query, key, value, bias, dropout=0.0, scaling=self.scaling)
        return self.out_proj(output.reshape(batch_size, length, -1)), weights

    def position_bias(self, length: int) -> torch.Tensor:
        """Bias `(1, num_heads, length, length)` of each query (third axis) for each key (last axis)."""
        positions = torch.arange(length, device=self.relative_attention_bias.weight.device)
        buckets = relative_buckets(
            positions[None, :] - positions[:, None], self.config.num_buckets, self.config.max_bucket_distance
        )
        return self.relative_attention_bias(buckets).permute(2, 0, 1)[None]


def relative_buckets(distances: torch.LongTensor, num_buckets: int, max_distance: int) -> torch.LongTensor:
    """Bucket of each signed distance, as in T5 (Raffel et al., 2020): half the buckets for each direction, of these the
    first half for one distance each, the rest wider and wider up to `max_distance`, from where all share the last."""
    num_buckets = num_buckets // 2
    exact = num_buckets // 2
    sizes = distances.abs()
    scale = (num_buckets - exact) / math.log(max_distance / exact)
    wide = exact + (torch.log(sizes.clamp(min=1).float() / exact) * scale).long()
    buckets = torch.where(sizes < exact, sizes, wide.clamp(max=num_buckets - 1))
    return buckets + (distances > 0) * num_buckets


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of `(N, heads, L, head_dim)`, as `(N, L, heads, head_dim)`, and its weights."""
    weights = (query @ key.transpose(2, 3) * kwargs["scaling"] + attention_mask).softmax(dim=-1)
    return (weights @ value).transpose(1, 2), weights


class BeatsLayer(GradientCheckpointingLayer):
    """A transformer layer with DeepNorm (Wang et al., 2022, arXiv:2203.00555): the residual weighs (2 · layers)^¼."""

    def __init__(self, config: BeatsConfig, has_position_table: bool):
        super().__init__()
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25
        self.self_attn = BeatsAttention(config, has_position_table)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        for linear in (self.self_attn.q_proj, self.self_attn.k_proj):
            linear.xavier_gain = 1.0
        for linear in (self.self_attn.v_proj, self.self_attn.out_proj, self.fc1, self.fc2):
            linear.xavier_gain = (8 * config.num_hidden_layers) ** -0.25

    def forward(self, hidden_states: torch.Tensor, position_bias: torch.Tensor) -> torch.Tensor:
        attended, _ = self.self_attn(hidden_states, position_bias)
        hidden_states = self.self_attn_layer_norm(hidden_states * self.residual_scale + attended)
        fed_forward = self.fc2(self.activation(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states * self.residual_scale + fed_forward)


class BeatsEncoder(nn.Module):
    """Position embedding and transformer layers over `(N, L, hidden_size)`."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.pos_conv = BeatsPositionConv(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            BeatsLayer(config, has_position_table=index == 0) for index in range(config.num_hidden_layers)
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.layer_norm(hidden_states + self.pos_conv(hidden_states))
        position_bias = self.layers[0].self_attn.position_bias(hidden_states.shape[1])
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_bias)
        return hidden_states


class BeatsPreTrainedModel(PreTrainedModel):
    config: BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ("BeatsLayer", "BeatsPositionConv")
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": BeatsLayer, "attentions": BeatsAttention}  # noqa: RUF012
    # Released checkpoints repeat the first layer's table in each layer, and may carry a classifier.
    _keys_to_ignore_on_load_unexpected = (
        r"layers\.[1-9]\d*\.self_attn\.relative_attention_bias",
        r"predictor\.",
    )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        # transformers initialises only modules with parameters of their own, so not BeatsLayer nor BeatsPositionConv.
        if isinstance(module, nn.Conv1d):
            std = 2 / math.sqrt(self.config.num_conv_pos_embeddings * self.config.hidden_size)
            magnitude, direction = module.parametrizations.weight.original0, module.parametrizations.weight.original1
            init.normal_(direction, std=std)
            init.constant_(magnitude, std * math.sqrt(direction[..., 0].numel()))  # norm of a kernel position
        elif hasattr(module, "xavier_gain"):
            init.xavier_normal_(module.weight, gain=module.xavier_gain)
        elif isinstance(module, BeatsAttention):
            init.ones_(module.grep_a)


class BeatsModel(BeatsPreTrainedModel):
    """The BEATs encoder, without a head."""

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(
            1, config.patch_embed_dim, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.layer_norm = nn.LayerNorm(config.patch_embed_dim, eps=config.layer_norm_eps)
        self.post_extract_proj = nn.Linear(config.patch_embed_dim, config.hidden_size)
        self.encoder = BeatsEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embedding

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, input_features: torch.FloatTensor, **kwargs) -> BaseModelOutput:
        """
        Args:
            input_features (`torch.FloatTensor` of shape `(num_audios, num_frames, num_mel_bins)`): normalised filter
                bank features, as [`BeatsFeatureExtractor`] makes them.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(num_audios, num_patches, hidden_size)`, time-major:
            `num_frames // 16 · 8` patches for 128 bins.

        Raises:
            ValueError: where the features have another number of bins or less than one patch of frames.
        """
        patch_size, num_mel_bins = self.config.patch_size, self.config.num_mel_bins
        if input_features.ndim != 3 or input_features.shape[2] != num_mel_bins or input_features.shape[1] < patch_size:
            raise ValueError(
                f"`input_features` must be of shape (audios, {patch_size} frames or more, {num_mel_bins} bins), got "
                f"{tuple(input_features.shape)}: make them with BeatsFeatureExtractor."
            )
        patches = self.patch_embedding(input_features.unsqueeze(1))  # (N, D, frames / 16, bins / 16)
        patches = self.layer_norm(patches.flatten(2).transpose(1, 2))  # (N, patches, D), time-major
        return BaseModelOutput(last_hidden_state=self.encoder(self.post_extract_proj(patches)))


AutoModel.register(BeatsConfig, BeatsModel, exist_ok=True)

__all__ = ["BeatsModel", "BeatsPreTrainedModel"]
