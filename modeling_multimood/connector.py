"""What turns the towers' features into vectors of the LLM's width."""

import torch
from torch import nn
from torch.nn import functional as F


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of `(N, C, H, W)`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that sees all of the picture (Hu et al., 2018)."""

    def __init__(self, channels: int, reduced_channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, reduced_channels, kernel_size=1)
        self.fc2 = nn.Conv2d(reduced_channels, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate = hidden_states.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        return hidden_states * self.fc2(F.silu(self.fc1(gate))).sigmoid()


class RegNetBlock(nn.Module):
    """
    Bottleneck block of RegNet-Y (Radosavovic et al., 2020) with a depthwise 3×3 convolution, LayerNorm and SiLU.

    The squeeze-excitation is a quarter of the block's *input* channels wide; the shortcut is projected where the
    number of channels changes. `(N, in_channels, H, W)` → `(N, out_channels, H, W)`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.norm1 = LayerNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, groups=out_channels, bias=False)
        self.norm2 = LayerNorm2d(out_channels)
        self.squeeze_excite = SqueezeExcite(out_channels, max(1, round(in_channels * 0.25)))
        self.conv3 = nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False)
        self.norm3 = LayerNorm2d(out_channels)
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False), LayerNorm2d(out_channels)
            )
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(hidden_states)
        hidden_states = F.silu(self.norm1(self.conv1(hidden_states)))
        hidden_states = F.silu(self.norm2(self.conv2(hidden_states)))
        hidden_states = self.norm3(self.conv3(self.squeeze_excite(hidden_states)))
        return F.silu(hidden_states + residual)


def regnet_stage(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """`depth` blocks at one resolution, the first of which changes the number of channels."""
    return nn.Sequential(*(RegNetBlock(out_channels if i else in_channels, out_channels) for i in range(depth)))


class SpatioTemporalConvConnector(nn.Module):
    """
    The spatio-temporal convolution connector (STC; VideoLLaMA 2, Cheng et al., 2024, as MultiMood uses it).

    RegNet stage → convolution that halves time, height and width (no padding, so odd ends are dropped) → RegNet stage
    → two-layer GELU MLP.
    """

    def __init__(self, vision_size: int, text_size: int, depth: int):
        super().__init__()
        self.stage1 = regnet_stage(vision_size, text_size, depth)
        self.sampler = nn.Conv3d(text_size, text_size, kernel_size=2, stride=2)
        self.stage2 = regnet_stage(text_size, text_size, depth)
        self.linear1 = nn.Linear(text_size, text_size)
        self.linear2 = nn.Linear(text_size, text_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(num_videos, num_frames, grid_height, grid_width, vision_size)`): of the
                vision tower's patches.

        Returns:
            `torch.Tensor` of shape `(num_videos, (num_frames // 2) * (grid_height // 2) * (grid_width // 2),
            text_size)`, time-major.

        Raises:
            ValueError: with less than two frames, rows or columns of patches: nothing would be left.
        """
        num_videos, num_frames, height, width, _ = features.shape
        if min(num_frames, height, width) < 2:
            raise ValueError(
                f"The video connector halves time, height and width, so it needs at least 2 frames of 2 × 2 patches, got "
                f"{num_frames} frames of {height} × {width}. Repeat the frame, or take larger frames."
            )
        hidden_states = self.stage1(features.flatten(0, 1).permute(0, 3, 1, 2))  # (N·T, C, H, W)
        hidden_states = hidden_states.unflatten(0, (num_videos, num_frames)).transpose(1, 2)  # (N, C, T, H, W)
        hidden_states = F.silu(self.sampler(hidden_states))  # (N, C, T/2, H/2, W/2)
        num_steps = hidden_states.shape[2]
        hidden_states = self.stage2(hidden_states.transpose(1, 2).flatten(0, 1))  # (N·T/2, C, H/2, W/2)
        hidden_states = hidden_states.unflatten(0, (num_videos, num_steps)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        return self.linear2(F.gelu(self.linear1(hidden_states)))


class AudioProjector(nn.Module):
    """
    Two-layer GELU MLP over groups of `pooling` consecutive audio vectors, which are stacked along their channels (the
    usual frame stacking of speech LLMs: nothing is averaged away). The last group is filled up with zeros.
    """

    def __init__(self, audio_size: int, text_size: int, pooling: int = 1):
        super().__init__()
        self.pooling = pooling
        self.linear1 = nn.Linear(audio_size * pooling, text_size)
        self.linear2 = nn.Linear(text_size, text_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(num_audios, num_vectors, audio_size)` → `(num_audios, ceil(num_vectors / pooling), text_size)`."""
        features = F.pad(features, (0, 0, 0, -features.shape[1] % self.pooling))
        features = features.unflatten(1, (-1, self.pooling)).flatten(2)  # (N, groups, pooling · audio_size)
        return self.linear2(F.gelu(self.linear1(features)))


__all__ = ["AudioProjector", "SpatioTemporalConvConnector"]
