"""Feed-forward network with a depthwise convolution in front (FastViT, Vasu et al., 2023)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.layers.conv_norm import ConvNorm


class ConvFFN(nn.Module):
    """Depthwise k x k with BatchNorm, 1x1, GELU, 1x1: (B, C, H, W) -> same.

    Args:
        dim: number of channels C.
        hidden: channels between the 1x1 convolutions.
        kernel: height and width of the depthwise filter, odd.
    """

    def __init__(self, dim: int, hidden: int, *, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, dim, kernel=kernel, groups=dim)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(self.conv(x))))
        return out
