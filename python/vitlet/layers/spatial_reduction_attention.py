"""Softmax attention over keys and values of a smaller map (PVT, Wang et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.errors import UsageError


class SpatialReductionAttention(nn.Module):
    """Attention of N = H * W tokens to those of a strided convolution: (B, N, dim) -> same.

    Args:
        dim: width of a token.
        heads: number of heads; divides `dim`.
        reduction: side of the squares that become one key; 1 for none.
        linear: builds a projection from its sizes in and out.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        reduction: int,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UsageError(f"heads must divide dim, got dim {dim} and {heads} heads")
        self.heads, self.reduction, self.scale = heads, reduction, (dim // heads) ** -0.5
        self.q, self.kv, self.proj = linear(dim, dim), linear(dim, 2 * dim), linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend; `size` is (H, W) of the map that the tokens are, row by row."""
        b, n, dim = x.shape
        source = x
        if self.reduction > 1:
            small: Tensor = self.sr(x.transpose(1, 2).reshape(b, dim, *size))
            source = self.norm(small.flatten(2).transpose(1, 2))
        q = self.q(x).reshape(b, n, self.heads, -1).transpose(1, 2) * self.scale
        k, v = (
            part.reshape(b, source.shape[1], self.heads, -1).transpose(1, 2)
            for part in self.kv(source).chunk(2, dim=-1)
        )
        mixed = F.softmax(q @ k.transpose(-2, -1), dim=-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n, dim))
        return out
