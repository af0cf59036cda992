"""MobileOne block: parallel branches at train time, one convolution when deployed.

MobileOne (Vasu et al., 2023); used in MobileCLIP's image encoders (Vasu et al., 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.layers.conv_norm import ConvNorm
from vitlet.layers.fuse import (
    batch_norm_affine,
    identity_kernel,
    layer_bias,
    pad_kernel,
    with_parameters,
)
from vitlet.layers.naming import Naming


class MobileOneBlock(nn.Module):
    """Sum of up to three branches, then a gate and GELU: (B, C, H, W) -> (B, D, H/s, W/s).

    The branches are a k x k convolution with BatchNorm, a 1x1 convolution with BatchNorm, and a
    BatchNorm alone where input and output have one shape. Padding is half the kernel.

    Args:
        dim: channels in.
        out_dim: channels out.
        kernel: height and width of the filter, odd.
        stride: step of the filter.
        groups: groups of channels.
        conv: whether there is a k x k branch.
        scale: whether there is a 1x1 branch.
        gate: squeeze-excite module after the sum.
        activation: whether GELU comes last.
        naming: names of the branches.
        merged: build the form that upstream saves after merging: one convolution with bias.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel: tuple[int, int],
        naming: Naming,
        stride: int = 1,
        groups: int = 1,
        conv: bool = True,
        scale: bool = True,
        gate: nn.Module | None = None,
        activation: bool = True,
        merged: bool = False,
    ) -> None:
        super().__init__()
        self.geometry = {
            "kernel_size": kernel,
            "stride": stride,
            "padding": (kernel[0] // 2, kernel[1] // 2),
            "groups": groups,
        }
        self.dim, self.out_dim, self.activation = dim, out_dim, activation
        self.branches: tuple[str, ...] = ()
        self.reparam_conv: nn.Conv2d | None = None
        if gate is not None:
            self.se = gate
        if merged:
            self.reparam_conv = nn.Conv2d(dim, out_dim, **self.geometry)  # type: ignore[arg-type]
            return
        if dim == out_dim and stride == 1:
            self._branch(naming.skip, nn.BatchNorm2d(dim))
        if conv:
            branch = ConvNorm(dim, out_dim, kernel=kernel, stride=stride, groups=groups)
            self._branch(naming.conv, nn.Sequential(branch))
        if scale:
            branch = ConvNorm(dim, out_dim, kernel=(1, 1), stride=stride, groups=groups)
            self._branch(naming.scale, branch)

    def _branch(self, name: str, module: nn.Module) -> None:
        self.add_module(name, module)
        self.branches = (*self.branches, name)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches, gated and activated."""
        if self.reparam_conv is not None:
            total: Tensor = self.reparam_conv(x)
        else:
            first, *others = (self.get_submodule(name) for name in self.branches)
            total = first(x)
            for branch in others:
                total = total + branch(x)
        if hasattr(self, "se"):
            total = self.se(total)
        return F.gelu(total) if self.activation else total

    def _merged(self) -> nn.Conv2d:
        if self.reparam_conv is not None:
            return self.reparam_conv
        like = next(self.parameters())
        # Through the meta device no random numbers are drawn for weights that are replaced.
        conv = nn.Conv2d(self.dim, self.out_dim, **self.geometry, device="meta")  # type: ignore[arg-type]
        conv = conv.to_empty(device=like.device).to(like.dtype)
        weight = torch.zeros_like(conv.weight, dtype=torch.float64)
        bias = weight.new_zeros(self.out_dim)
        for name in self.branches:
            branch = self.get_submodule(name)
            if isinstance(branch, nn.Sequential):
                branch = branch[0]
            if isinstance(branch, nn.BatchNorm2d):
                scale, shift = batch_norm_affine(branch)
                weight = weight + identity_kernel(weight) * scale.reshape(-1, 1, 1, 1)
                bias = bias + shift
                continue
            # Already one convolution where a whole model is merged from the leaves up.
            fused = branch.reparameterized() if isinstance(branch, ConvNorm) else branch
            assert isinstance(fused, nn.Conv2d)
            kernel = fused.weight.detach().double()
            weight = weight + pad_kernel(kernel, tuple(weight.shape[2:]))  # type: ignore[arg-type]
            bias = bias + layer_bias(fused)
        return with_parameters(conv, weight, bias).train(self.training)

    def reparameterized(self) -> nn.Conv2d | nn.Sequential:
        """Return one convolution, followed by the gate and GELU where there are any."""
        rest: list[nn.Module] = [self.se] if hasattr(self, "se") else []
        if self.activation:
            rest.append(nn.GELU())
        return nn.Sequential(self._merged(), *rest) if rest else self._merged()
