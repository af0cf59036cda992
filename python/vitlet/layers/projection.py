"""A linear map whose matrix is stored as (in, out), as CLIP and Apple's MobileCLIP do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """x @ proj: (B, dim) -> (B, out_dim), without bias."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(dim, out_dim) * dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected rows."""
        return x @ self.proj
