"""Self-attention with its joint projection as bare parameters, as open_clip's text encoder has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.layers.attention import SelfAttention, attend


class InProjectionAttention(nn.Module):
    """Same function as `SelfAttention`: (B, N, dim) -> (B, N, dim).

    Args:
        dim: width of a token.
        heads: number of heads; divides `dim`.
    """

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.in_proj_weight, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the N tokens; `mask` (N, N) is added to the scores."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        out: Tensor = self.out_proj(attend(qkv, heads=self.heads, scale=self.scale, mask=mask))
        return out

    def reparameterized(self) -> SelfAttention:
        """Return plain linear layers, with the scale of the scores in the query weights."""
        dim = self.out_proj.in_features
        with torch.device("meta"):
            plain = SelfAttention(dim, heads=self.heads)
        plain.joint.weight, plain.joint.bias = self.in_proj_weight, self.in_proj_bias
        plain.replace(output=self.out_proj)
        return plain.reparameterized().train(self.training)
