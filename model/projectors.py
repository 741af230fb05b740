"""Projectors between the parts (X-SAM AAAI26_Archive, model/modules/{projector,connector}), their weights' names too.

A projector turns features into vectors of another width; the connector turns hidden states into a pyramid of maps.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from model.config import ConnectorConfig
from model.shuffle import pixel_shuffle, pixel_shuffle_nchw

_INIT_STD = 0.02


class Projector(nn.Module):
    """Linear, GELU (erf), Linear. With `downsample` below 1 it takes maps and packs their pixels first."""

    def __init__(self, in_dim: int, out_dim: int, downsample: float = 1.0) -> None:
        super().__init__()
        self.downsample = downsample
        self.model = nn.Sequential(
            nn.Linear(int(in_dim / downsample**2), out_dim), nn.GELU(), nn.Linear(out_dim, out_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in) to (B, T, out); or (B, H, W, in) to (B, H W downsample², out), row by row."""
        if x.dim() == 4:
            x = pixel_shuffle(x, self.downsample).flatten(1, 2)
        return self.model(x)


class Connector(nn.Module):
    """Hidden states of the segmentation encoder to the pixel decoder's maps, one neck a level, from fine to coarse."""

    def __init__(self, config: ConnectorConfig, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.model = nn.ModuleList(
            _Neck(channels, config.hidden_dim, scale)
            for channels, scale in zip(in_channels, config.scales, strict=True)
        )

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """(B, H, W, C) of each level to (B, C / scale, H scale, W scale); odd sides gain a row or column of zeros."""
        return [neck(state) for neck, state in zip(self.model, states, strict=True)]


def connected_channels(config: ConnectorConfig, in_channels: Sequence[int]) -> list[int]:
    """Channels of the connector's maps."""
    return [int(int(c * scale) / scale**2) for c, scale in zip(in_channels, config.scales, strict=True)]


class _Neck(nn.Module):
    """Three convolutions, each followed by a norm over channels; no activation. Then the pixel shuffle."""

    def __init__(self, in_channels: int, hidden_dim: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        out_channels = int(in_channels * scale)
        self.model = nn.Sequential(
            nn.Conv2d(in_channels, hidden_dim, 1, bias=False),
            _ChannelNorm(hidden_dim),
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, bias=False),
            _ChannelNorm(hidden_dim),
            nn.Conv2d(hidden_dim, out_channels, 1, bias=False),
            _ChannelNorm(out_channels),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=_INIT_STD)

    def forward(self, state: Tensor) -> Tensor:
        height, width = state.shape[1:3]
        even = functional.pad(state, (0, 0, 0, width % 2, 0, height % 2))
        return pixel_shuffle_nchw(self.model(even.permute(0, 3, 1, 2)), self.scale)


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
