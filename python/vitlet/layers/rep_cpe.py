"""Conditional positional encoding by a depthwise convolution (Chu et al., 2023; FastViT)."""

from __future__ import annotations

from torch import Tensor, nn

from vitlet.layers.fuse import identity_kernel, layer_bias, with_parameters
from vitlet.layers.naming import Naming


class RepCPE(nn.Module):
    """x + depthwise(x): (B, C, H, W) -> same.

    Args:
        dim: number of channels C.
        kernel: side of the filter, odd.
        naming: name of the convolution.
        merged: build the form that upstream saves after merging: the convolution alone.
    """

    def __init__(self, dim: int, *, naming: Naming, kernel: int = 7, merged: bool = False) -> None:
        super().__init__()
        self.name = "reparam_conv" if merged else naming.position
        self.merged = merged
        self.add_module(self.name, nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with positions added."""
        positions: Tensor = self.get_submodule(self.name)(x)
        return positions if self.merged else x + positions

    def reparameterized(self) -> nn.Conv2d:
        """Return one depthwise convolution, the identity in its kernel's centre."""
        conv = self.get_submodule(self.name)
        assert isinstance(conv, nn.Conv2d)
        if self.merged:
            return conv
        weight = conv.weight.detach().double() + identity_kernel(conv.weight)
        return with_parameters(conv, weight, layer_bias(conv))
