"""A convolution without bias followed by BatchNorm, on (B, C, H, W)."""

from __future__ import annotations

from torch import Tensor, nn

from vitlet.layers.fuse import fuse_into_previous


class ConvNorm(nn.Module):
    """Convolution and BatchNorm: (B, C, H, W) -> (B, D, H', W').

    Args:
        dim: channels in.
        out_dim: channels out.
        kernel: height and width of the filter.
        stride: step of the filter.
        padding: zeros on each side; by default half the kernel, which keeps the size at stride 1.
        groups: groups of channels.
        norm: attribute name of the BatchNorm.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        groups: int = 1,
        norm: str = "bn",
    ) -> None:
        super().__init__()
        if padding is None:
            padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(
            dim, out_dim, kernel, stride=stride, padding=padding, groups=groups, bias=False
        )
        self.norm_name = norm
        self.add_module(norm, nn.BatchNorm2d(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized map."""
        out: Tensor = self.get_submodule(self.norm_name)(self.conv(x))
        return out

    def reparameterized(self) -> nn.Conv2d:
        """Fold the BatchNorm into the convolution."""
        norm = self.get_submodule(self.norm_name)
        assert isinstance(norm, nn.BatchNorm2d)
        return fuse_into_previous(self.conv, norm)
