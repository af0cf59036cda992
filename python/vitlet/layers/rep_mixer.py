"""RepMixer: a depthwise token mixer that becomes one convolution when deployed.

FastViT (Vasu et al., 2023). With a (1, k) kernel it mixes the tokens of a text, as (B, C, 1, N).
"""

from __future__ import annotations

from torch import Tensor, nn

from vitlet.layers.fuse import identity_kernel, layer_bias, pad_kernel, with_parameters
from vitlet.layers.layer_scale import factor, layer_scale
from vitlet.layers.mobileone import MobileOneBlock
from vitlet.layers.naming import Naming


class RepMixer(nn.Module):
    """x + scale * (mixer(x) - norm(x)): (B, C, H, W) -> same.

    Args:
        dim: number of channels C.
        kernel: height and width of the filter, odd.
        naming: names of the branches.
        merged: build the form that upstream saves after merging: one convolution with bias.
    """

    def __init__(
        self, dim: int, *, kernel: tuple[int, int], naming: Naming, merged: bool = False
    ) -> None:
        super().__init__()
        self.reparam_conv: nn.Conv2d | None = None
        if merged:
            padding = (kernel[0] // 2, kernel[1] // 2)
            self.reparam_conv = nn.Conv2d(dim, dim, kernel, padding=padding, groups=dim)
            return
        self.layer_scale = layer_scale(dim, naming)
        self.norm: nn.Module = MobileOneBlock(
            dim,
            dim,
            kernel=kernel,
            groups=dim,
            conv=False,
            scale=False,
            activation=False,
            naming=naming,
        )
        # A one-dimensional mixer has no 1x1 branch: upstream looks at the kernel's first side.
        self.mixer: nn.Module = MobileOneBlock(
            dim,
            dim,
            kernel=kernel,
            groups=dim,
            scale=kernel[0] > 1,
            activation=False,
            naming=naming,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        if self.reparam_conv is not None:
            mixed: Tensor = self.reparam_conv(x)
            return mixed
        out: Tensor = x + factor(self.layer_scale) * (self.mixer(x) - self.norm(x))
        return out

    def reparameterized(self) -> nn.Conv2d:
        """Return one depthwise convolution."""
        if self.reparam_conv is not None:
            return self.reparam_conv
        mixer, norm = (
            part.reparameterized() if isinstance(part, MobileOneBlock) else part
            for part in (self.mixer, self.norm)
        )
        assert isinstance(mixer, nn.Conv2d) and isinstance(norm, nn.Conv2d)
        scale = factor(self.layer_scale).detach().double()
        size = (mixer.weight.shape[2], mixer.weight.shape[3])
        difference = mixer.weight.detach().double()
        difference = difference - pad_kernel(norm.weight.detach().double(), size)
        weight = identity_kernel(mixer.weight) + scale.reshape(-1, 1, 1, 1) * difference
        bias = scale.flatten() * (layer_bias(mixer) - layer_bias(norm))
        return with_parameters(mixer, weight, bias)
