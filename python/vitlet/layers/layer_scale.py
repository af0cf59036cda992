"""Learned factor per channel on a residual branch (CaiT, Touvron et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitlet.layers.naming import Naming

INITIAL = 1e-5


class LayerScale(nn.Module):
    """Multiplies each channel of (B, C, H, W) by `gamma` (C, 1, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim, 1, 1), INITIAL))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled map."""
        return x * self.gamma


Scale = LayerScale | nn.Parameter


def layer_scale(dim: int, naming: Naming) -> Scale:
    """Return a layer scale as `naming` stores it: a module, or a bare (C, 1, 1) parameter."""
    if naming.scale_module:
        return LayerScale(dim)
    return nn.Parameter(torch.full((dim, 1, 1), INITIAL))


def factor(scale: Scale) -> Tensor:
    """Return the (C, 1, 1) tensor that a layer scale multiplies by."""
    return scale.gamma if isinstance(scale, LayerScale) else scale
