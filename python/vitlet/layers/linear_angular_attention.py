"""Attention without softmax whose queries and keys are single bits.

out = unit(V / 2 + Q (K^T V) / pi) + taps along the tokens of V, per head. Linear-angular attention
(Castling-ViT, You et al., 2023); with Q and K of ones and zeros both products are additions
(ShiftAddViT, You et al., 2023, https://arxiv.org/abs/2306.06446).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.errors import UsageError
from vitlet.ops.torch_attention import TAPS, attention_in_torch

Codes = Literal["none", "calibrated", "batch"]


class Taps(nn.Module):
    """The filters along the tokens as a (heads, 9) matrix."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())


def taps_of(filters: nn.Module) -> Tensor:
    """Return the filters of a convolution (9, 1) or of `Taps`, (heads, 9)."""
    weight = filters.weight
    assert isinstance(weight, Tensor)
    return weight if weight.ndim == 2 else weight.reshape(-1, TAPS)


class LinearAngularAttention(nn.Module):
    """(B, N, dim) -> (B, N, dim) at a cost that grows with N, not with its square.

    Args:
        dim: width of a token.
        heads: number of heads; divides `dim`.
        codes: how the unit-length queries and keys become bits. "calibrated": a number is 1 above
            its head's threshold, a parameter that `calibrate` sets. "batch": above the mean over
            the whole batch, as ShiftAddViT's code does; an output then depends on its batch mates.
            "none": they stay as they are.
        exact: sum in float32; otherwise V is rounded to about 9 bits (`vitlet.ops`).
        linear: builds a projection from its sizes in and out.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        codes: Codes = "calibrated",
        exact: bool = True,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UsageError(f"heads must divide dim, got dim {dim} and {heads} heads")
        if codes not in ("none", "calibrated", "batch"):
            raise UsageError(f"codes must be none, calibrated or batch, got {codes!r}")
        self.heads, self.codes, self.exact = heads, codes, exact
        self.qkv, self.proj = linear(dim, 3 * dim), linear(dim, dim)
        # One filter per head along the tokens, shared by the head's channels.
        self.dconv: nn.Conv2d | Taps = nn.Conv2d(
            heads, heads, (TAPS, 1), padding=(TAPS // 2, 0), groups=heads, bias=False
        )
        if codes == "calibrated":
            self.q_threshold = nn.Parameter(torch.zeros(heads))
            self.k_threshold = nn.Parameter(torch.zeros(heads))

    @property
    def taps(self) -> Tensor:
        """(heads, 9), as `torch.ops.vitlet.binary_linear_attention` takes them."""
        return taps_of(self.dconv)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q and k of unit length, v, and the thresholds above which q and k are 1."""
        q, k, v = self.directions(x)
        return q, k, v, *self._thresholds(q, k)

    def reparameterized(self) -> LinearAngularAttention:
        """Keep the filter as a matrix, which is what compilers take for a weight."""
        self.dconv = Taps(self.taps)
        return self

    def directions(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q and k of unit length, and v, each (B, heads, N, dim / heads)."""
        b, n, _ = x.shape
        q, k, v = (
            part.reshape(b, n, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v

    def mixed(self, x: Tensor) -> Tensor:
        """Return what goes into the output projection, (B, N, dim)."""
        if self.codes == "none":
            heads = attention_in_torch(*self.directions(x), self.taps)
        else:
            q, k, v, *levels = self.operands(x)
            heads = torch.ops.vitlet.binary_linear_attention(
                q, k, v.contiguous(), *levels, self.taps, False, self.exact
            )
        return heads.transpose(1, 2).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        out: Tensor = self.proj(self.mixed(x))
        return out

    def _thresholds(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.codes == "calibrated":
            return self.q_threshold, self.k_threshold
        return q.mean().detach().expand(self.heads), k.mean().detach().expand(self.heads)
