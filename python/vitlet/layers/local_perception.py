"""CAS-ViT's local perception: pointwise, depthwise 3x3, pointwise, on (B, C, H, W)."""

from __future__ import annotations

from torch import Tensor, nn

from vitlet.layers.fold_sequential import fold_sequential


class LocalPerception(nn.Module):
    """1x1 convolution, BatchNorm, depthwise 3x3, GELU, 1x1 convolution (Zhang et al., 2024)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.BatchNorm2d(dim),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        out: Tensor = self.network(x)
        return out

    def reparameterized(self) -> LocalPerception:
        """Fold the BatchNorm into the first convolution."""
        self.network = fold_sequential(self.network)
        return self
