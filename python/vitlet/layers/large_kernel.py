"""Large-kernel convolution with a small-kernel branch beside it.

RepLKNet (Ding et al., 2022), as FastViT and MobileCLIP (Vasu et al., 2023, 2024) downsample.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.layers.conv_norm import ConvNorm
from vitlet.layers.fuse import layer_bias, pad_kernel, with_parameters
from vitlet.layers.naming import Naming


class LargeKernelConv(nn.Module):
    """Sum of two strided convolutions with BatchNorm, then a gate and GELU.

    (B, C, H, W) -> (B, D, ceil(H/s), ceil(W/s)), with one group per input channel.

    Args:
        dim: channels in; also the number of groups.
        out_dim: channels out.
        kernel: side of the large filter; odd.
        small_kernel: side of the small filter; odd.
        stride: step of both filters.
        gate: squeeze-excite module after the sum.
        naming: names of the branches.
        merged: build the form that upstream saves after merging: one convolution with bias.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        naming: Naming,
        kernel: int = 7,
        small_kernel: int = 3,
        stride: int = 2,
        gate: nn.Module | None = None,
        merged: bool = False,
    ) -> None:
        super().__init__()
        self.names = (naming.large_merged,) if merged else (naming.large, "small_conv")
        if gate is not None:
            self.se = gate
        if merged:
            conv = nn.Conv2d(dim, out_dim, kernel, stride, kernel // 2, groups=dim)
            self.add_module(naming.large_merged, conv)
            return
        for name, side in zip(self.names, (kernel, small_kernel), strict=True):
            branch = ConvNorm(dim, out_dim, kernel=(side, side), stride=stride, groups=dim)
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map."""
        first, *others = (self.get_submodule(name) for name in self.names)
        total = first(x)
        for branch in others:
            total = total + branch(x)
        if hasattr(self, "se"):
            total = self.se(total)
        return F.gelu(total)

    def reparameterized(self) -> nn.Sequential:
        """Return one convolution, followed by the gate, if any, and GELU."""
        parts = []
        for name in self.names:
            branch = self.get_submodule(name)
            part = branch.reparameterized() if isinstance(branch, ConvNorm) else branch
            assert isinstance(part, nn.Conv2d)
            parts.append(part)
        large = parts[0]
        if len(parts) == 2:
            small = parts[1]
            size = (large.weight.shape[2], large.weight.shape[3])
            weight = large.weight.detach().double()
            weight = weight + pad_kernel(small.weight.detach().double(), size)
            large = with_parameters(large, weight, layer_bias(large) + layer_bias(small))
        gate = [self.se] if hasattr(self, "se") else []
        return nn.Sequential(large, *gate, nn.GELU())
