"""Convolutional additive token mixer: attention without softmax, heads or matrix products.

out = proj(dwc(gate(q) + gate(k)) * v), where a gate weighs first the positions, then the channels,
and `dwc` and `proj` are depthwise 3x3 convolutions. CAS-ViT (Zhang et al., 2024).
"""

from __future__ import annotations

from torch import Tensor, nn

from vitlet.layers.fold_sequential import fold_sequential


class SpatialGate(nn.Module):
    """Weighs each position by a sigmoid of its 3x3 neighbourhood: (B, C, H, W) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, 1, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated (B, C, H, W)."""
        gate: Tensor = self.block(x)
        return x * gate

    def reparameterized(self) -> SpatialGate:
        """Fold the BatchNorm into the depthwise convolution."""
        self.block = fold_sequential(self.block)
        return self


class ChannelGate(nn.Module):
    """Weighs each channel by a sigmoid of all channel means: (B, C, H, W) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, dim, 1, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated (B, C, H, W)."""
        gate: Tensor = self.block[1:](x.mean(dim=(2, 3), keepdim=True))
        return x * gate


class AdditiveTokenMixer(nn.Module):
    """CAS-ViT's token mixer on a map of tokens, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: number of channels C.
        bias: whether the joint q, k, v projection has a bias.
    """

    def __init__(self, dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.oper_q = nn.Sequential(SpatialGate(dim), ChannelGate(dim))
        self.oper_k = nn.Sequential(SpatialGate(dim), ChannelGate(dim))
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of (B, C, H, W)."""
        q, k, v = self.qkv(x).chunk(3, dim=1)
        mixed: Tensor = self.proj(self.dwc(self.oper_q(q) + self.oper_k(k)) * v)
        return mixed
