"""A learned vector for each place in a row of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """Adds (1, 1, N, dim) positions to (B, N, dim), under Apple's doubly nested name."""

    def __init__(self, tokens: int, dim: int, *, std: float = 0.02) -> None:
        super().__init__()
        self.pos_embed = nn.Module()
        self.pos_embed.pos_embed = nn.Parameter(torch.randn(1, 1, tokens, dim) * std)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, dim)."""
        positions = self.pos_embed.pos_embed
        assert isinstance(positions, Tensor)
        return x + positions[0]
