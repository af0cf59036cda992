"""ShiftAddViT's released attention: one projection for queries and keys, hashed to 16 bits.

Kernel-based supervised hashing (Liu et al., 2012) as in EcoFormer (Liu et al., 2022): a bit is the
sign of a weighted sum of Gaussian kernels to anchors. Anchors and weights come with a checkpoint;
they are not fitted here, for `LinearAngularAttention` costs less (https://arxiv.org/abs/2306.06446).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.errors import UsageError
from vitlet.layers.linear_angular_attention import Taps, taps_of
from vitlet.ops.torch_attention import TAPS

BITS, ANCHORS = 16, 25


class KernelHash(nn.Module):
    """Kernel sums of unit rows: (B, heads, N, d) -> (B, heads, N, 16); a bit is 1 above 0."""

    A: Tensor
    mvec: Tensor
    anchor: Tensor

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("A", torch.randn(heads, BITS, ANCHORS))
        self.register_buffer("mvec", torch.zeros(1, heads, 1, ANCHORS))
        self.register_buffer("anchor", torch.zeros(1, heads, ANCHORS, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums; their width is the image's and the head's own."""
        distance = (x.unsqueeze(-2) - self.anchor.unsqueeze(-3)).square().sum(-1)
        width = distance.mean(dim=(-1, -2), keepdim=True)
        kernels = torch.exp(-distance / (2 * width)) - self.mvec
        return kernels @ self.A.detach().transpose(-1, -2)


class _Hash(nn.Module):
    """Holds what upstream's checkpoints hold; the projection is not used, there neither."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("projection_matrix", torch.zeros(int(dim * math.log(dim)), dim))
        self.ksh = KernelHash(heads, dim)


class KernelHashAttention(nn.Module):
    """(B, N, dim) -> (B, N, dim) with one hash for queries and keys.

    Args:
        dim: width of a token.
        heads: number of heads; divides `dim`.
        linear: builds a projection from its sizes in and out.
    """

    def __init__(
        self, dim: int, *, heads: int, linear: Callable[[int, int], nn.Module] = nn.Linear
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UsageError(f"heads must divide dim, got dim {dim} and {heads} heads")
        self.heads = heads
        self.qk_quant = _Hash(heads, dim // heads)
        self.to_qk, self.to_v, self.proj = (linear(dim, dim) for _ in range(3))
        self.dconv: nn.Conv2d | Taps = nn.Conv2d(
            heads, heads, (TAPS, 1), padding=(TAPS // 2, 0), groups=heads, bias=False
        )

    @property
    def taps(self) -> Tensor:
        """(heads, 9), as `torch.ops.vitlet.binary_linear_attention` takes them."""
        return taps_of(self.dconv)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return what becomes the bits of q and k where it is above 0, v, and no thresholds."""
        b, n, _ = x.shape
        qk, v = (
            part.reshape(b, n, self.heads, -1).transpose(1, 2)
            for part in (self.to_qk(x), self.to_v(x))
        )
        sums = self.qk_quant.ksh(F.normalize(qk, dim=-1)).contiguous()
        return sums, sums, v, None, None

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        q, k, v, *levels = self.operands(x)
        mixed = torch.ops.vitlet.binary_linear_attention(
            q, k, v.contiguous(), *levels, self.taps, False, True
        )
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return out

    def reparameterized(self) -> KernelHashAttention:
        """Keep the filter as a matrix, which is what compilers take for a weight."""
        self.dconv = Taps(self.taps)
        return self
