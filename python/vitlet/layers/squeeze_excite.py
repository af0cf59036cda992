"""Squeeze-and-excitation: a gate per channel from all channel means (Hu et al., 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Scales each channel by a sigmoid of the pooled map: (B, C, H, W) -> same.

    Args:
        dim: number of channels C.
        hidden: channels between the two 1x1 convolutions.
        names: attribute names of the two convolutions.
    """

    def __init__(self, dim: int, hidden: int, *, names: tuple[str, str] = ("fc1", "fc2")) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Conv2d(dim, hidden, 1))
        self.add_module(names[1], nn.Conv2d(hidden, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated (B, C, H, W)."""
        first, second = (self.get_submodule(name) for name in self.names)
        gate = torch.sigmoid(second(F.relu(first(x.mean(dim=(2, 3), keepdim=True)))))
        return x * gate
